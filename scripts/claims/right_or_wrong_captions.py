"""Does the CLIP score tell a right caption from a wrong one? One word is swapped at a time, and the picture stays.

    python scripts/claims/right_or_wrong_captions.py [--eyes NAME|DIR] [--n 300] [--quick]          (2 minutes, two cores)

Scenes of drawn shapes, held out (compositions that no training showed) and of the trained kinds. Each is shown with a true caption and
with the same phrase about a graph in which one thing was changed:

    colour     one thing has another colour             shape      one thing has another shape
    binding    two things exchange their colours        count      another number of them, of 2 to 4
    left/right, above/below     the relation is turned round
    language   nothing is wrong: the true caption in English against the true one in Chinese; 0.5 = the language does not matter
    scene      the caption of another scene of the same kind; also the true one in one language (en>zh: English), the other's in the other

auc     that a true caption's score, of any scene, is above a false one's, of any other: can one threshold part them?
wins    the share of pictures for which their own true caption has the higher score: is the ORDER right?

A false caption may be of a kind that training has said, while that of a held-out scene was never said: held_out is the harder test.
Intervals are 95 %: a bootstrap over scenes for auc, Wilson's for wins. Writes right_or_wrong_captions.json.
"""

from __future__ import annotations

import dataclasses
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import triptych
from scripts.claims import evidence
from scripts.claims.evidence import Row, around
from triptych.data import scenes
from triptych.data.graph import OPPOSITE, Scene
from triptych.data.index import as_images, draws, pick
from triptych.judges.nearest import wilson

NAME = Path(__file__).stem
SIDE = 128
LANGUAGES = ("en", "zh")
ALL = ("one", "relation", "list")


class Pair(NamedTuple):
    """A picture, what is true of it, what is not."""

    scene: Scene
    true: str
    false: str


# --- what is swapped --------------------------------------------------------------------------------------------------------


def recoloured(scene: Scene, rng: random.Random) -> Scene | None:
    first, *rest = scene.objects
    other = pick(rng, [color for color in scenes.COLORS if color not in {thing.color for thing in scene.objects}])
    return _with(scene, [dataclasses.replace(first, color=other), *rest])


def reshaped(scene: Scene, rng: random.Random) -> Scene | None:
    first, *rest = scene.objects
    other = pick(rng, [shape for shape in scenes.SHAPES if shape not in {thing.shape for thing in scene.objects}])
    return _with(scene, [dataclasses.replace(first, shape=other), *rest])


def exchanged(scene: Scene, rng: random.Random) -> Scene | None:
    """Of two things that differ in colour and in shape."""
    a, b, *rest = scene.objects
    if a.color == b.color or a.shape == b.shape:
        return None
    return _with(scene, [dataclasses.replace(a, color=b.color), dataclasses.replace(b, color=a.color), *rest])


def recounted(scene: Scene, rng: random.Random) -> Scene | None:
    return _with(scene, [scene.objects[0]] * pick(rng, [n for n in (2, 3, 4) if n != len(scene.objects)]))


def turned(*relations: str) -> Callable[[Scene, random.Random], Scene | None]:
    def swap(scene: Scene, rng: random.Random) -> Scene | None:
        return dataclasses.replace(scene, relation=OPPOSITE[scene.relation]) if scene.relation in relations else None

    return swap


def _with(scene: Scene, objects: list) -> Scene | None:
    """None where equal things would fall together, and the phrase would tell their number too."""
    made = dataclasses.replace(scene, objects=tuple(objects))
    return made if len(made.groups()) == len(scene.groups()) else None


SWAPS: dict[str, tuple[Callable[[Scene, random.Random], Scene | None], tuple[str, ...]]] = {  # name -> (swap, forms of scenes)
    "colour": (recoloured, ALL), "shape": (reshaped, ALL), "binding": (exchanged, ("relation",)), "count": (recounted, ("number",)),
    "left/right": (turned("left", "right"), ("relation",)), "above/below": (turned("above", "below"), ("relation",)),
}  # fmt: skip


def drawn(n: int, held_out: bool, swap: Any, forms: tuple[str, ...], *seeds: int | str) -> list[tuple[Scene, Scene]]:
    """n scenes, each with its changed graph."""
    rng, found = draws(*seeds, int(held_out)), []
    while len(found) < n:
        scene = scenes.random_scene(rng, held_out, form=forms[len(found) % len(forms)])
        if (other := swap(scene, rng)) is not None:
            found.append((scene, other))
    return found


def pairs(n: int, held_out: bool, attribute: str, language: str, seed: int) -> list[Pair]:
    """language: of both captions; "zh>en" = the true one in Chinese, the false one in English."""
    true, false = language.split(">") if ">" in language else (language, language)
    if attribute in SWAPS:
        found = drawn(n, held_out, *SWAPS[attribute], seed, attribute)
    else:
        some = [scene for scene, _ in drawn(n, held_out, lambda scene, _: scene, ("one", "number", "relation", "list"), seed, "scene")]
        # the nearest scene of the same form that is said otherwise; of "language" the scene itself
        others = some if attribute == "language" else [_other(some, i) for i in range(n)]
        found = list(zip(some, others, strict=True))
    rng = draws(seed, attribute, "phrases")
    out = []
    for scene, other in found:
        right, wrong = scenes.captions(scene, true), scenes.captions(other, false)
        number = int(rng.random() * min(len(right), len(wrong)))
        out.append(Pair(scene, right[number], wrong[number]))
    return out


def _other(some: list[Scene], i: int) -> Scene:
    here = scenes.captions(some[i], "en")[0]
    return next(s for s in (some[(i + k) % len(some)] for k in range(4, 4 * len(some), 4)) if scenes.captions(s, "en")[0] != here)


# --- figures ----------------------------------------------------------------------------------------------------------------


def auc(true_N: np.ndarray, false_M: np.ndarray) -> float:
    """The chance that a true one is above a false one; equal ones count half (Mann and Whitney's U over N M)."""
    ordered = np.sort(false_M)
    below, upto = np.searchsorted(ordered, true_N, "left"), np.searchsorted(ordered, true_N, "right")
    return float((below + upto).sum() / (2 * len(true_N) * len(false_M)))


def measure(sight: Any, found: list[Pair]) -> dict[str, Any]:
    pictures = as_images([scenes.render(pair.scene, SIDE) for pair in found])
    image_NE = sight.image(pictures)
    true_N, false_N = (
        (100 * (image_NE * sight.text(said)).sum(1)).clamp_min(0).double().numpy()
        for said in ([pair.true for pair in found], [pair.false for pair in found])
    )
    wins = int((true_N > false_N).sum())
    low, high = wilson(wins, len(found))
    return {
        "n": len(found), "auc": evidence.estimate(lambda i: auc(true_N[i], false_N[i]), len(found)),
        "wins": {"value": wins / len(found), "low": low, "high": high}, "score_true": true_N.mean(), "score_false": false_N.mean(),
    }  # fmt: skip


def verdict(one: Mapping[str, float]) -> str:
    """From 0.9 on "told"; "not told" where the interval holds 0.5 or lies below it; else "weakly"."""
    return "told" if one["value"] >= 0.9 else "not told" if one["low"] <= 0.5 else "weakly"


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    held = report["held_out"]
    names = {
        "scene": "另一场景的说明", "colour": "颜色", "shape": "形状", "binding": "两物互换颜色", "count": "数量",
        "left/right": "左右", "above/below": "上下",
    }  # fmt: skip
    said = [verdict(held[what][language]["auc"]) for what in names for language in LANGUAGES]
    head = ("holds", "成立") if set(said) == {"told"} else ("holds in part", "部分成立") if "told" in said else ("does not hold", "不成立")

    def listed(label: Callable[[str], str], between: str) -> str:
        return between.join(f"{label(what)} {' / '.join(around(held[what][one]['auc']) for one in LANGUAGES)}" for what in names)

    across = [around(held["scene"][one]["auc"]) for one in ("en>zh", "zh>en")]
    n = held["scene"]["en"]["n"]
    return {
        "en": Row(
            "003, 004", "the CLIP score tells right captions from wrong ones", evidence.shown_by(NAME, "en"),
            f"{head[0]}: AUC over {n} held-out scenes each, English / Chinese (0.5 = nothing is told): "
            + listed(lambda what: {"scene": "another scene's caption", "binding": "two things' colours exchanged"}.get(what, what), "; ")
            + f". Another scene's in the other language: {across[0]} (true in English), {across[1]} (true in Chinese)",
        ),
        "zh": Row(
            "003、004", "CLIP 分数能分辨对的与错的说明文字", evidence.shown_by(NAME, "zh"),
            f"{head[1]}：每项 {n} 个留出场景上的 AUC，英文 / 中文（0.5 为毫无分辨）：" + listed(names.__getitem__, "；")
            + f"。另一种语言说的另一场景：{across[0]}（对的是英文）、{across[1]}（对的是中文）",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--n", type=int, default=300, help="scenes of each kind")
    args = parser.parse_args()
    n = 24 if args.quick else args.n
    eyes = triptych.load(args.eyes)
    report = evidence.begin(args, eyes=eyes)
    kinds = [(what, language) for what in (*SWAPS, "scene") for language in LANGUAGES]
    kinds += [(what, language) for what in ("scene", "language") for language in ("en>zh", "zh>en")]
    with torch.no_grad():
        for split in ("held_out", "trained_kinds"):
            report[split] = {}
            for what, language in kinds:
                found = measure(eyes.sight(), pairs(n, split == "held_out", what, language, args.seed))
                report[split].setdefault(what, {})[language] = found
                print(f"{split}, {what}, {language}: AUC {around(found['auc'])}, wins {found['wins']['value']:.2f}", flush=True)
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
