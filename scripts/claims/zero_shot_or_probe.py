"""Is a CLIP that was shown no labels as good as one that was? Names alone against k labelled pictures a class, on the same features.

    python scripts/claims/zero_shot_or_probe.py [--eyes NAME|DIR] [--draws 5] [--quick]          (2 minutes, two cores)

Each picture is one thing at a random place and size on white. Three sets of classes:

    things   the 8 drawn shapes, in a random colour, and the 40 cut-outs of the scenes: training has said all these names
    pairs    the 12 held-out pairs of colour and shape: the words are known, no picture and no text ever joined them
    ideas    48 held-out emoji: neither names nor pictures were seen; what zero-shot finds there beyond chance is in the words' parts

zero     the class whose name lies nearest: the bare name, one template, or the mean over all templates; English and Chinese
probe    softmax regression (`judges/linear_probe.py`) on k pictures a class, k = 1 ... 32, in several draws of these
meets    the k at which the probe is as good, between two measured k by a straight line over log2 k

Intervals are 95 %: Wilson's for names, bootstraps over pictures and draws of the shots for the probe and where they meet.
Writes zero_shot_or_probe.json.
Shape legend: N pictures asked about, S draws, D width of the features, E the common space, K classes.
"""

from __future__ import annotations

import math
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import triptych
from scripts.claims import evidence
from scripts.claims.evidence import Row, percent
from triptych.data import artwork, emoji, scenes
from triptych.data.graph import GRID, held_out_pairs
from triptych.data.index import as_images, draws, pick
from triptych.judges.linear_probe import logistic
from triptych.judges.nearest import wilson

NAME = Path(__file__).stem
KS = (1, 2, 4, 8, 16, 32)
SIDE, ASKED, POOL = 128, 20, 64  # pixels; pictures of each class that are asked about, and from which shots are drawn
PENALTY = 1e-2
TEMPLATES = {
    "en": ("{name}", "a {name}", "one {name}", "there is a {name}", "a picture of a {name}"),
    "zh": ("{name}", "一{measure}{name}", "{name}的图片", "一{measure}{name}的图片", "图中有一{measure}{name}"),
}
HOW = {"name": slice(0, 1), "template": slice(-1, None), "ensemble": slice(None)}  # of the templates


@dataclass(frozen=True)
class Class:
    """measure: the Chinese measure word.  draw: a picture, uint8 [SIDE, SIDE, 3]."""

    en: str
    zh: str
    draw: Callable[[random.Random], np.ndarray]
    measure: str = "个"

    def said(self, language: str, template: str) -> str:
        text = template.format(name=getattr(self, language), measure=self.measure)
        return re.sub(r"\ba (?=[aeiou])", "an ", text)


def place(rng: random.Random) -> tuple[int, int, int]:
    """(left, top, side) in 32nds of the picture, as large as things are in scenes."""
    side = 7 + int(rng.random() * 12)
    left, top = (1 + int(rng.random() * (GRID - 1 - side)) for _ in range(2))
    return left, top, side


def thing(shape: str, colors: Sequence[str | None], rng: random.Random) -> np.ndarray:
    left, top, side = place(rng)
    middle = {"cx": (left + side / 2) / GRID, "cy": (top + side / 2) / GRID, "r": side / 2 / GRID}
    return scenes.render(scenes.Scene(objects=(scenes.Object(shape=shape, color=pick(rng, colors), size="", **middle),)), SIDE)


def artwork_of(sequence: str, rng: random.Random) -> np.ndarray:
    left, top, side = (value * SIDE // GRID for value in place(rng))
    rgba = artwork.cutout(sequence, side).astype(np.float32)
    cover, canvas = rgba[..., 3:] / 255, np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
    canvas[top : top + side, left : left + side] = np.rint(cover * rgba[..., :3] + (1 - cover) * 255)
    return canvas


def classes(seed: int) -> dict[str, list[Class]]:
    held = sorted(held_out_pairs())
    things = [
        Class(shape, chinese, partial(thing, shape, [c for c in scenes.COLORS if (c, shape) not in held]))
        for shape, (_, chinese) in scenes.SHAPES.items()
    ] + [Class(name, chinese, partial(thing, name, [None]), measure) for name, (_, _, chinese, measure) in scenes.CUTOUTS.items()]
    pairs = [Class(f"{c} {s}", f"{scenes.COLORS[c][1]}{scenes.SHAPES[s][1]}", partial(thing, s, [c])) for c, s in held]
    unseen = [e for e in emoji.load_emoji() if e.group == "held_out_idea" and e.single]
    order = torch.randperm(len(unseen), generator=torch.Generator().manual_seed(seed)).tolist()[: len(things)]
    ideas = [Class(unseen[i].name("en"), unseen[i].name("zh"), partial(artwork_of, unseen[i].sequence)) for i in order]
    return {"things": things, "pairs": pairs, "ideas": ideas}


def pictures(chosen: Sequence[Class], n: int, *seeds: int | str) -> tuple[Tensor, Tensor]:
    """n of each class, [K n, 3, SIDE, SIDE], and their labels."""
    drawn = [one.draw(draws(*seeds, label, i)) for label, one in enumerate(chosen) for i in range(n)]
    return as_images(drawn), torch.arange(len(chosen)).repeat_interleave(n)


# --- the two ----------------------------------------------------------------------------------------------------------------


def zero_shot(sight: Any, image_NE: Tensor, chosen: Sequence[Class], language: str, templates: Sequence[str]) -> Tensor:
    """The class of each picture, [N]. Names are means over templates of unit vectors (arXiv 2103.00020, section 3.1.4)."""
    text_TKE = torch.stack([sight.text([one.said(language, template) for one in chosen]) for template in templates])
    return (image_NE @ F.normalize(text_TKE.mean(0), dim=-1).T).argmax(1)


def probe(x_LD: Tensor, label_L: Tensor, x_ND: Tensor, k: int) -> Tensor:
    """The class of each picture, [N], by k labelled ones of each."""
    middle, size = x_LD.mean(0), x_LD.std(0, correction=0).clamp_min(1e-8)
    w_DK, b_K = logistic((x_LD - middle) / size, label_L, len(label_L) // k, PENALTY)
    return ((x_ND - middle) / size @ w_DK + b_K).argmax(1)


def meets(zero: float, curve: Sequence[float], ks: Sequence[int] = KS) -> float:
    """The k from which on the probe is as good: 0 = with the fewest it is already, inf = with the most it is not yet."""
    if curve[0] >= zero:
        return 0.0
    for (k, low), (more, high) in zip(zip(ks, curve, strict=True), list(zip(ks, curve, strict=True))[1:], strict=False):
        if high >= zero:
            return k * (more / k) ** ((zero - low) / (high - low))
    return math.inf


def measure(sight: Any, chosen: Sequence[Class], what: str, args: Any) -> dict[str, Any]:
    """One set of classes, its figures."""
    asked, pool, ks = (4, 4, KS[:3]) if args.quick else (ASKED, POOL, KS)
    images, label_N = pictures(chosen, asked, args.seed, "asked", what)
    image_NE, x_ND = sight.image(images), sight.features(images).double()
    learnt, _ = pictures(chosen, pool, args.seed, "pool", what)
    pool_KPD = sight.features(learnt).double().unflatten(0, (len(chosen), pool))
    n, right_kSN = len(label_N), {}
    for k in ks:
        rows = []
        for draw in range(args.draws):
            generator = torch.Generator().manual_seed(args.seed + 1000 * draw + k)
            some = torch.stack([torch.randperm(pool, generator=generator)[:k] for _ in chosen])
            x_LD = torch.cat([one[at] for one, at in zip(pool_KPD, some, strict=True)])
            rows.append((probe(x_LD, torch.arange(len(chosen)).repeat_interleave(k), x_ND, k) == label_N).numpy())
        right_kSN[k] = np.stack(rows)
        print(f"{what}, {k} shots: {right_kSN[k].mean():.3f}", flush=True)
    curve = {
        str(k): evidence.estimate(lambda s, i, right=right: right[np.ix_(s, i)].mean(), args.draws, n) for k, right in right_kSN.items()
    }
    zero: dict[str, Any] = {}
    for language in ("en", "zh"):
        zero[language] = {}
        for how, part in HOW.items():
            right_N = (zero_shot(sight, image_NE, chosen, language, TEMPLATES[language][part]) == label_N).numpy()

            def met(s: np.ndarray, i: np.ndarray, right_N: np.ndarray = right_N) -> float:
                return meets(right_N[i].mean(), [right[np.ix_(s, i)].mean() for right in right_kSN.values()], ks)

            k = evidence.estimate(met, args.draws, n)
            told = {key: None if math.isinf(value) else value for key, value in k.items()}  # None: with the most shots not yet
            low, high = wilson(int(right_N.sum()), n)
            zero[language][how] = {"value": right_N.mean().item(), "low": low, "high": high, "meets": told}
            print(f"{what}, {language}, {how}: {right_N.mean():.3f}, meets {told['value']}", flush=True)
    return {"classes": len(chosen), "chance": 1 / len(chosen), "n": n, "draws": args.draws, "pool": pool, "zero": zero, "probe": curve}


# --- what is said of it -----------------------------------------------------------------------------------------------------


def shots(met: Mapping[str, float | None], most: int, language: str) -> str:
    def one(value: float | None) -> str:
        if value is None:
            return f"> {most}"
        return "< 1" if value == 0 else f"{value:.1f}"

    and_so_on = f"{one(met['value'])} [{one(met['low'])}, {one(met['high'])}]"
    return f"{and_so_on} pictures a class" if language == "en" else f"每类 {and_so_on} 张图"


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    things, pairs, ideas = (report["sets"][what] for what in ("things", "pairs", "ideas"))
    most = max(int(k) for k in things["probe"])
    last = things["probe"][str(most)]
    en, zh = (things["zero"][language]["ensemble"] for language in ("en", "zh"))
    met = en["meets"]
    head = ("does not hold", "不成立") if met["value"] == 0 else ("holds in part", "部分成立")
    if met["low"] is None:
        head = ("holds", "成立")
    template = [f"{100 * things['zero']['en'][how]['value']:.1f} %" for how in HOW]
    guess = ideas["zero"]["en"]["ensemble"]
    known = guess["low"] > ideas["chance"]
    return {
        "en": Row(
            "000",
            "zero-shot CLIP is as good as a network trained with labels",
            evidence.shown_by(NAME, "en"),
            f"{head[0]}: of {things['classes']} trained names it finds {percent(en)} in English, {percent(zh)} in Chinese (chance "
            f"{100 * things['chance']:.1f} %), worth {shots(met, most, 'en')} to a linear probe on the same features, which reaches "
            f"{percent(last)} with {most}. Bare name, one template, all: {', '.join(template)}. Pairs "
            f"of colour and shape that training never joined: {percent(pairs['zero']['en']['ensemble'])} of {pairs['classes']}, worth "
            f"{shots(pairs['zero']['en']['ensemble']['meets'], most, 'en')}. Names that training never said: {percent(guess)}, "
            f"{'above' if known else 'not told from'} the chance of {100 * ideas['chance']:.1f} %",
        ),
        "zh": Row(
            "000",
            "零样本 CLIP 不逊于有标注训练的网络",
            evidence.shown_by(NAME, "zh"),
            f"{head[1]}：{things['classes']} 个训练中出现过的名称，英文认对 {percent(en)}，中文 {percent(zh)}（随机为 "
            f"{100 * things['chance']:.1f} %），相当于同一特征上的线性探针用{shots(met, most, 'zh')}；用 {most} 张时达到 {percent(last)}。"
            f"只用名称、一个模板、全部模板：{'、'.join(template)}。训练中从未搭配过的颜色与形状："
            f"{pairs['classes']} 类中认对 {percent(pairs['zero']['en']['ensemble'])}，相当于"
            f"{shots(pairs['zero']['en']['ensemble']['meets'], most, 'zh')}。训练从未说过的名称：{percent(guess)}，"
            f"{'高于' if known else '未能区分于'}随机的 {100 * ideas['chance']:.1f} %",
        ),
    }


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--draws", type=int, default=5, help="of the shots")
    args = parser.parse_args()
    eyes = triptych.load(args.eyes)
    report = evidence.begin(args, eyes=eyes)
    with torch.no_grad():
        report["sets"] = {
            what: measure(eyes.sight(), chosen[:: 8 if args.quick else 1], what, args) for what, chosen in classes(args.seed).items()
        }
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
