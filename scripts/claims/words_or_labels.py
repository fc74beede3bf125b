"""Claim 21: do words beat labels where concepts are new? A colour and a shape that were never shown together, by CLIP and by classifiers.

    python scripts/claims/words_or_labels.py [--eyes NAME|DIR] [--minutes 2.5] [--quick]      (9 minutes of one core, 8 training)

One drawn shape on white; of the 80 pairs of ten colours and eight shapes 12 are held out (`data/graph.py`). All are asked, always among all
80 pairs. Three networks learn from the same endless pictures of the other 68, in the same minutes, with the tower of the eyes:

    words      CLIP: each picture beside its English caption. The text encoder begins as the default generator's, which knew all the words
               and never these pairs, and learns along; as in the recipe `eyes-clip`
    pairs      a softmax over 80 classes, 12 of which are never shown
    two heads  a softmax over the colours and one over the shapes: labels that were cut up by hand, as words are by themselves
    embedded   not trained here: the embedded CLIP, which saw more pictures of more kinds, and was held from the same pairs

Intervals are bootstraps over pairs and pictures of each: 12 pairs are few. One training each. Writes words_or_labels.json.
Shape legend: B batch, N pictures, P pairs, I pictures of each, E the common space, D width.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import triptych
from scripts.claims import evidence, minutes
from scripts.claims.evidence import Row, percent
from scripts.claims.zero_shot_or_probe import place
from triptych.contracts import Batch, Prompt, Rng
from triptych.data import scenes
from triptych.data.graph import GRID, held_out_pairs
from triptych.data.index import as_images, draws, pick
from triptych.layers.one_phase import OnePhase
from triptych.layers.pixels import varied
from triptych.recipes.eyes import VARY, eyes_clip
from triptych.training import build_task

NAME = Path(__file__).stem
COLORS, SHAPES = tuple(scenes.COLORS), tuple(scenes.SHAPES)
PAIRS = [(color, shape) for color in COLORS for shape in SHAPES]  # the number of a pair: 8 * colour + shape
HELD = np.array([pair in held_out_pairs() for pair in PAIRS])
SIDE, BATCH, LR = 64, 128, 1e-3
ARMS = ("words", "pairs", "two heads", "embedded")


# --- pictures ---------------------------------------------------------------------------------------------------------------


class Shown:
    """A data set without end: pictures of shown pairs, each with one of its English captions and the number of its pair."""

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        index = range(step * batch_size, (step + 1) * batch_size)
        pictures, prompts = [], []
        for i in index:
            rng = draws(seed, "words or labels", i)
            scene = scenes.random_scene(rng, False, form="one")
            thing = scene.objects[0]
            pictures.append(scenes.render(scene, SIDE))
            prompts.append(Prompt(text=pick(rng, scenes.captions(scene, "en")), label=PAIRS.index((str(thing.color), thing.shape))))
        return Batch(index=tuple(index), images_BCHW=as_images(pictures), prompts=tuple(prompts))


def alone(color: str, shape: str, rng: Any) -> scenes.Scene:
    left, top, side = place(rng)
    middle = {"cx": (left + side / 2) / GRID, "cy": (top + side / 2) / GRID, "r": side / 2 / GRID}
    return scenes.Scene(objects=(scenes.Object(shape=shape, color=color, size="medium", **middle),))


def asked(each: int, seed: int) -> Tensor:
    """So many of every pair, in order: [80 * each, 3, SIDE, SIDE]."""
    return as_images([scenes.render(alone(*pair, draws(seed, "asked", *pair, i)), SIDE) for pair in PAIRS for i in range(each)])


# --- by labels --------------------------------------------------------------------------------------------------------------


class Labels(OnePhase):
    """The task: the tower of a CLIP, and in place of the common space one linear layer, over the 80 pairs or over colours and shapes."""

    def __init__(self, tower: Any, two_heads: bool) -> None:
        self.tower, self.two_heads = tower, two_heads
        tower.image_projection, tower.text_projection = nn.Identity(), nn.Identity()  # nobody learns what nobody reads
        self.head = nn.Linear(tower.config.width, len(COLORS) + len(SHAPES) if two_heads else len(PAIRS))
        self.modules = nn.ModuleDict({"vision": tower, "head": self.head})

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.modules.named_parameters() if not name.endswith("logit_scale")}

    def _logits(self, images_BCHW: Tensor) -> tuple[Tensor, ...]:
        """Of pairs; or of colours and of shapes."""
        logits = self.head(self.tower.pooled(images_BCHW))
        return logits.split([len(COLORS), len(SHAPES)], 1) if self.two_heads else (logits,)

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        assert batch.images_BCHW is not None
        label_B = torch.tensor([prompt.label for prompt in batch.prompts])
        wanted = (label_B // len(SHAPES), label_B % len(SHAPES)) if self.two_heads else (label_B,)
        logits = self._logits(varied(batch.images_BCHW, rng, **VARY))
        return {"loss": torch.stack([F.cross_entropy(one, target) for one, target in zip(logits, wanted, strict=True)]).sum()}

    def says(self, images_BCHW: Tensor) -> Tensor:
        """Numbers of pairs, [B]."""
        guesses = [logits.argmax(1) for logits in self._logits(images_BCHW)]
        return guesses[0] * len(SHAPES) + guesses[1] if self.two_heads else guesses[0]


# --- by words ---------------------------------------------------------------------------------------------------------------


def nearest(image: Callable[[Tensor], Tensor], text: Callable[[list[str]], Tensor]) -> Callable[[Tensor], Tensor]:
    """Of a CLIP: pictures -> numbers of pairs. A pair's vector is the mean over its phrasings, unit vectors [T, E]."""
    said = [scenes.captions(alone(*pair, draws(0)), "en") for pair in PAIRS]
    text_PE = F.normalize(torch.stack([F.normalize(text(phrases), dim=-1).mean(0) for phrases in said]), dim=-1)
    return lambda images_NCHW: (image(images_NCHW) @ text_PE.T).argmax(1)


def taught(arm: str, steps: int, args: Any, folder: Path) -> tuple[Callable[[Tensor], Tensor], minutes.Clock]:
    """(what then answers, its clock)."""
    recipe = dataclasses.replace(eyes_clip(), seed=args.seed, batch=args.batch, ema=0.0, compile=False)
    task: Any = build_task(recipe)
    tower, words = task.panel, task.text
    if arm != "words":
        torch.manual_seed(args.seed)
        task = Labels(tower, arm == "two heads")
    _, clock = minutes.trained(minutes.of_steps(recipe, steps), folder, arm, data=Shown(), task=task)
    task.modules.eval()
    if arm != "words":
        return task.says, clock
    with torch.no_grad():
        return nearest(tower.encode_image, lambda said: tower.encode_text(words.encode([Prompt(text=one) for one in said]))), clock


# --- measures ---------------------------------------------------------------------------------------------------------------


def measure(says: Callable[[Tensor], Tensor], images_NCHW: Tensor, each: int) -> dict[str, Any]:
    """Shares of unseen and of shown pairs that are named right, and of each the colour and the shape alone."""
    with torch.no_grad():
        said_PI = torch.cat([says(part) for part in images_NCHW.split(200)]).reshape(len(PAIRS), each).numpy()
    true_P1, n = np.arange(len(PAIRS))[:, None], len(SHAPES)
    right = {"pair": said_PI == true_P1, "colour": said_PI // n == true_P1 // n, "shape": said_PI % n == true_P1 % n}
    out: dict[str, Any] = {}
    for which, some in {"unseen": HELD, "shown": ~HELD}.items():
        for what, right_PI in right.items():
            chosen = right_PI[some]
            out.setdefault(which, {})[what] = evidence.estimate(lambda p, i, x=chosen: x[np.ix_(p, i)].mean(), len(chosen), each)
        out[which]["as_shown"] = float((~HELD)[said_PI[some]].mean())  # how often a pair that was shown is named
    return out


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    unseen, known = ({arm: found[arm][which]["pair"] for arm in ARMS} for which in ("unseen", "shown"))
    words = unseen["words"]
    over = [words["low"] > unseen[arm]["high"] for arm in ("pairs", "two heads")]
    if all(over):
        head = ("holds, against both kinds of labels", "成立，两种标签都不如文字")
    elif over[0]:
        same = words["high"] >= unseen["two heads"]["low"]
        en_, zh_ = ("they are not told apart", "未能区分") if same else ("it does not hold", "不成立")
        head = (
            f"holds against one label a pair; against labels for colour and shape {en_}",
            f"胜过每对一个标签；对颜色、形状分开的标签，{zh_}",
        )
    else:
        worse = words["high"] < unseen["pairs"]["low"]
        head = ("does not hold", "不成立") if worse else ("words are not told apart from one label a pair", "文字与每对一个标签未能区分")

    def listed(which: dict[str, Any], names: tuple[str, ...], comma: str) -> str:
        return comma.join(f"{name} {percent(which[arm])}" for name, arm in zip(names, ARMS, strict=True))

    en, zh = ("words", "one label a pair", "two labels", "the embedded CLIP"), ("文字", "每对一个标签", "两个标签", "内置 CLIP")
    told = [found[arm] for arm in ARMS if "minutes" in found[arm]]
    took = minutes.told(report["minutes_asked"], [one["minutes"] for one in told])
    saw = " / ".join(f"{one['pictures']:,}" for one in told)
    return {
        "en": Row(
            "000", "words beat labels for new concepts", evidence.shown_by(NAME, "en"),
            f"{head[0]}. {HELD.sum()} pairs of colour and shape that were never shown together, named among all 80: "
            f"{listed(unseen, en, ', ')}; of the other pairs {listed(known, en, ', ')}. The same tower and order of pictures, {took[0]}, "
            f"{saw} pictures, one training each; the embedded one was trained longer, on more",
        ),
        "zh": Row(
            "000", "遇到新概念时，文字胜过标签", evidence.shown_by(NAME, "zh"),
            f"{head[1]}。从未同时出现过的 {HELD.sum()} 对颜色与形状，在全部 80 对中认出：{listed(unseen, zh, '、')}；其余各对："
            f"{listed(known, zh, '、')}。图像塔与图像次序相同，各训练一次，{took[1]}，{saw} 张图；内置 CLIP 训练更久，数据更多",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--minutes", type=float, default=2.5, help="of training, each of three")
    args = parser.parse_args()
    each, args.batch = (2, 16) if args.quick else (25, BATCH)
    if args.quick:
        args.minutes = 0.03
    eyes = triptych.load(args.eyes)
    report = evidence.begin(args, eyes=eyes) | {"minutes_asked": args.minutes, "each": each, "chance": 1 / len(PAIRS), "batch": args.batch}
    trials = {arm: (lambda steps, at, arm=arm: taught(arm, steps, args, at)[1]) for arm in ARMS[:3]}
    steps = minutes.fit(args.minutes, trials, few=3 if args.quick else 20)
    images, found = asked(each, args.seed), {}
    for arm in ARMS:
        if arm == "embedded":
            sight, saw = eyes.sight(), {}
            with torch.no_grad():
                says = nearest(sight.image, sight.text)
        else:
            with tempfile.TemporaryDirectory() as folder:
                says, clock = taught(arm, steps[arm], args, Path(folder) / "run")
            saw = {"steps": steps[arm], "minutes": clock.minutes, "pictures": steps[arm] * args.batch}
        found[arm] = measure(says, images, each) | saw
        print(f"{arm}: unseen {percent(found[arm]['unseen']['pair'])}, shown {percent(found[arm]['shown']['pair'])}", flush=True)
    report["found"] = found
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
