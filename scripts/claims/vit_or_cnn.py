"""Claim 18: does a ViT need more pictures than a CNN, and is it better once it has them? Sets of 500 to 500,000, equal FLOP and minutes.

    python scripts/claims/vit_or_cnn.py [--minutes 3] [--seeds 1] [--quick]                  (45 minutes of one core, 36 training)

What is it? One thing on a plain ground, 32 x 32: the 8 drawn shapes in ten colours, and the 40 cut-outs of the scenes, with noise that
stays with its picture. A set of n is the first n of an endless order, so that a larger set holds the smaller ones.

networks     vision/vit on patches of 4, vision/resnet (basic blocks), and the hybrid: the ViT behind a stage of ResNet, on as many
             tokens. One picture forward costs all of them nearly the same FLOP, which are counted; parameters differ, and are told.
steps        as many as fit into the minutes, measured first; the same for all sets. Convolutions are faster on most machines than
             attention of as many FLOP, so the networks do not see as many pictures as each other: told, too.
accuracy     on pictures of another order, the network as it is at the end: no set is held back to stop earlier.
shift        share of these pictures whose answer stays when all of it is moved by 1 ... 4 pixels along both axes, away from the nearer
             border; right or wrong, so it is told beside the accuracy.

Nothing is varied in training: a shift would be a lesson in shifts. Intervals are bootstraps over seeds and pictures; with one seed they
know nothing of what another would have given. Needs Debian's emoji font. Writes vit_or_cnn.json.
Shape legend: B batch, N pictures, C channels, H W grid, S seeds.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import evidence, minutes
from scripts.claims.evidence import Row, percent
from triptych import catalog
from triptych.contracts import Batch, Prompt
from triptych.data import scenes
from triptych.data.graph import BACKGROUNDS, GRID
from triptych.data.index import draws, pick, place
from triptych.recipe import Family, Optimizer, Recipe
from triptych.training import build_task

NAME = Path(__file__).stem
NUMBERS = (500, 5_000, 50_000, 500_000)
SIDE, NOISE, BATCH, LR = 32, 0.1, 64, 1e-3  # pixels; deviation, of 0..1
SHIFTS = (1, 2, 3, 4)
KINDS = ("ViT", "ResNet", "hybrid")
_VIT = {"image_size": SIDE, "patch_size": 4, "width": 64, "num_heads": 4, "num_classes": len(scenes.CLASSES)}


# --- pictures ---------------------------------------------------------------------------------------------------------------


def thing(rng: Any) -> scenes.Scene:
    """One thing of any kind, as large as things are in scenes, anywhere, on one of five grounds."""
    shape, ground, side = pick(rng, scenes.CLASSES), pick(rng, list(BACKGROUNDS)), 7 + int(rng.random() * 12)
    left, top = (1 + int(rng.random() * (GRID - 1 - side)) for _ in range(2))
    color = pick(rng, list(scenes.COLORS)) if shape in scenes.SHAPES else None
    middle = {"cx": (left + side / 2) / GRID, "cy": (top + side / 2) / GRID, "r": side / 2 / GRID}
    return scenes.Scene(objects=(scenes.Object(shape=shape, color=color, size="", **middle),), background=ground)


def pictures(n: int, *order: int | str) -> tuple[Tensor, Tensor, Tensor]:
    """The first n of an order: uint8 [n, 3, SIDE, SIDE], classes [n], and the corner (x, y) each is farther from, -1 or 1, [n, 2]."""
    images = np.empty((n, SIDE, SIDE, 3), dtype=np.uint8)
    labels, away = torch.empty(n, dtype=torch.int64), torch.empty(n, 2, dtype=torch.int64)
    for i in range(n):
        rng = draws(*order, i)
        scene = thing(rng)
        one = scene.objects[0]
        noise = np.random.Generator(np.random.Philox(key=int(rng.random() * 2**53))).standard_normal((SIDE, SIDE, 3), dtype=np.float32)
        images[i] = np.rint(np.clip(scenes.render(scene, SIDE) + 255 * NOISE * noise, 0, 255))
        labels[i] = scenes.CLASSES.index(one.shape)
        away[i] = torch.tensor([1 if one.cx < 0.5 else -1, 1 if one.cy < 0.5 else -1])
    return torch.from_numpy(images).permute(0, 3, 1, 2), labels, away


def as_float(images_NCHW: Tensor) -> Tensor:
    """In [-1, 1], where it is uint8."""
    return images_NCHW.float() / 127.5 - 1 if images_NCHW.dtype == torch.uint8 else images_NCHW


def moved(images_NCHW: Tensor, away_N2: Tensor, by: int) -> Tensor:
    """What leaves at one border comes in at the other: the ground, which is one colour, never a thing, which goes where there is room."""
    out = torch.empty_like(images_NCHW)
    for x in (-1, 1):
        for y in (-1, 1):
            some = (away_N2 == torch.tensor([x, y])).all(1)
            out[some] = images_NCHW[some].roll((by * y, by * x), (2, 3))
    return out


# --- networks ---------------------------------------------------------------------------------------------------------------


def flop(family: str, config: Mapping[str, Any]) -> int:
    """Of one picture forward, counted on meta tensors: nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), torch.no_grad():
        net: Any = catalog.build("vision", family, dict(config)).eval()
        with FlopCounterMode(display=False) as counter:
            net.classify(torch.zeros(1, 3, SIDE, SIDE))
    return counter.get_total_flops()


def resnet(width: int) -> dict[str, Any]:
    widths = (width, 2 * width, 4 * width)
    return {
        "image_size": SIDE, "stem_width": width, "widths": widths, "depths": (1, 1, 1), "block": "basic",
        "num_classes": len(scenes.CLASSES),
    }  # fmt: skip


def networks() -> dict[str, tuple[str, dict[str, Any]]]:
    """kind -> (family, config). The ResNet's width is the one that comes nearest to the ViT's FLOP."""
    vit = ("vit", {**_VIT, "depth": 3})
    wanted = flop(*vit)
    width = min(range(16, 128, 2), key=lambda w: abs(math.log(flop("resnet", resnet(w)) / wanted)))
    return {"ViT": vit, "ResNet": ("resnet", resnet(width)), "hybrid": ("vit", {**_VIT, "depth": 1, "stem": (1,)})}


# --- training ---------------------------------------------------------------------------------------------------------------


class Labelled:
    """A data set of pictures at hand, uint8 or in [-1, 1], each with its class; every epoch has an order of its own."""

    def __init__(self, images_NCHW: Tensor, label_N: Tensor) -> None:
        self.images_NCHW, self.label_N = images_NCHW, label_N

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        index = range(step * batch_size, (step + 1) * batch_size)
        rows = torch.tensor([place(seed, i, len(self.images_NCHW)) for i in index])
        prompts = tuple(Prompt(label=label) for label in self.label_N[rows].tolist())
        return Batch(index=tuple(index), images_BCHW=as_float(self.images_NCHW[rows]), prompts=prompts, keys=tuple(map(str, rows.tolist())))


def recipe_of(kind: str, seed: int) -> Recipe:
    """float32: bfloat16 would be slower for one of the three, and faster for another."""
    family, config = networks()[kind]
    return Recipe(
        name=f"what-{kind}", panel="vision", family=Family(name=family, config=config), batch=BATCH, seed=seed, ema=0.0, compile=False,
        optimizer=Optimizer(lr=LR, weight_decay=0.05, warmup=0.05, decay=0.5), precision="float32",
    )  # fmt: skip


def taught(kind: str, data: Labelled, steps: int, seed: int, folder: Path) -> tuple[Any, minutes.Clock]:
    """(the network, its clock)."""
    recipe = minutes.of_steps(recipe_of(kind, seed), steps)
    task: Any = build_task(recipe)
    _, clock = minutes.trained(recipe, folder, f"{kind}, {len(data.images_NCHW)}", data=data, task=task)
    return task.panel, clock


@torch.no_grad()
def answers(net: Any, images_NCHW: Tensor) -> np.ndarray:
    return torch.cat([net.classify(as_float(part)).argmax(1) for part in images_NCHW.split(250)]).numpy()


def measure(args: Any, numbers: Sequence[int], asked: int) -> dict[str, Any]:
    images, labels, _ = pictures(max(numbers), args.seed, "vit or cnn", "train")
    unseen, label_N, away = pictures(asked, args.seed, "vit or cnn", "asked")
    print(f"{len(images)} pictures are drawn", flush=True)
    sets = {n: Labelled(images[:n], labels[:n]) for n in numbers}
    largest = sets[max(numbers)]
    trials = {kind: (lambda steps, at, kind=kind: taught(kind, largest, steps, args.seed, at)[1]) for kind in KINDS}
    steps = minutes.fit(args.minutes, trials, few=3 if args.quick else 30)
    told: dict[str, Any] = {"n": asked, "seeds": args.seeds, "numbers": list(numbers), "chance": 1 / len(scenes.CLASSES)}
    for kind, (family, config) in networks().items():
        found: dict[str, Any] = {"flop": flop(family, config), "config": config, "steps": steps[kind], "sets": {}}
        for n in numbers:
            right, stays, took = [], [], []
            for seed in range(args.seed, args.seed + args.seeds):
                with tempfile.TemporaryDirectory() as folder:
                    net, clock = taught(kind, sets[n], steps[kind], seed, Path(folder) / "run")
                found["parameters"] = sum(p.numel() for p in net.parameters())
                took.append(clock.minutes)
                said = answers(net, unseen)
                right.append(said == label_N.numpy())
                stays.append([answers(net, moved(unseen, away, by)) == said for by in SHIFTS])
            right_SN, stays_SKN = np.stack(right), np.array(stays)
            stays_SN = stays_SKN.mean(1)
            found["sets"][str(n)] = one = {
                "accuracy": evidence.estimate(lambda s, i, x=right_SN: x[np.ix_(s, i)].mean(), args.seeds, asked),
                "stays": evidence.estimate(lambda s, i, x=stays_SN: x[np.ix_(s, i)].mean(), args.seeds, asked),
                "stays_by": {str(by): float(stays_SKN[:, k].mean()) for k, by in enumerate(SHIFTS)},
                "minutes": took, "epochs": steps[kind] * BATCH / n,
            }  # fmt: skip
            print(f"{kind}, {n} pictures: {percent(one['accuracy'])}, stays {percent(one['stays'])}, {took} minutes", flush=True)
        told[kind] = found
    return told


# --- what is said of it -----------------------------------------------------------------------------------------------------


def compared(a: Mapping[str, float], b: Mapping[str, float]) -> int:
    """1: more, -1: less, 0: the intervals overlap."""
    return (a["low"] > b["high"]) - (a["high"] < b["low"])


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    few, many = str(min(found["numbers"])), str(max(found["numbers"]))
    vit, cnn, mixed = ({n: one["accuracy"] for n, one in found[kind]["sets"].items()} for kind in KINDS)
    sides = {n: compared(vit[n], cnn[n]) for n in vit}
    head = ("holds", "成立") if (sides[few], sides[many]) == (-1, 1) else ("does not hold in these minutes", "在这样的训练时间内不成立")
    said = {-1: ("worse", "更差"), 0: ("not told apart", "未能区分"), 1: ("better", "更好")}
    than_cnn = [comma.join(said[side][i] for side in sides.values()) for i, comma in enumerate((", ", "、"))]
    stands = {
        (-1, 1): ("stands between", "居中"), (1, -1): ("stands between", "居中"), (1, 1): ("is better than both", "比两者都好"),
        (-1, -1): ("is worse than both", "比两者都差"),
    }  # fmt: skip
    middle = stands.get((compared(mixed[few], vit[few]), compared(mixed[few], cnn[few])), ("is not told apart", "未能区分"))

    def listed(what: str, comma: str, stop: str, zh: bool) -> str:
        names: dict[str, str] = dict(zip(KINDS, ("ViT", "ResNet", "混合" if zh else "hybrid"), strict=True))
        rows = {kind: comma.join(percent(found[kind]["sets"][str(n)][what]) for n in found["numbers"]) for kind in KINDS}
        return stop.join(f"{names[kind]} {said}" for kind, said in rows.items())

    numbers = [f"{n:,}" for n in found["numbers"]]
    cost, size, seen, epochs = (
        "/".join(f"{told(found[kind])}" for kind in KINDS)
        for told in (
            lambda one: f"{one['flop'] / 1e6:.0f}", lambda one: f"{one['parameters'] / 1e6:.2f}",
            lambda one: f"{one['steps'] * report['batch']:,}", lambda one: f"{one['sets'][many]['epochs']:.1f}",
        )
    )  # fmt: skip
    took = minutes.told(
        report["minutes_asked"], [one for kind in KINDS for each in found[kind]["sets"].values() for one in each["minutes"]]
    )
    seeds = minutes.seeds(found["seeds"])
    return {
        "en": Row(
            "000, 002", "ViT is worse than a CNN on little data and better on much, the hybrid stands between",
            evidence.shown_by(NAME, "en"),
            f"{head[0]}: with {', '.join(numbers)} pictures the ViT is {than_cnn[0]} than the ResNet. What is the one thing of 48, 32 px; "
            f"{took[0]} each, {seeds[0]}; {cost} MFLOP a picture, {size} M parameters, {seen} pictures seen (ViT/ResNet/hybrid). Accuracy: "
            f"{listed('accuracy', ', ', '; ', False)}. With {few} the hybrid {middle[0]}. Epochs of the largest set: {epochs}. Answer "
            f"stays when moved by 1-4 px: {listed('stays', ', ', '; ', False)}",
        ),
        "zh": Row(
            "000, 002", "数据少时 ViT 不如 CNN，数据多时更好，混合网络居中", evidence.shown_by(NAME, "zh"),
            f"{head[1]}：图像数为 {'、'.join(numbers)} 时，ViT 与 ResNet 相比依次{than_cnn[1]}。在 32 像素的图中认出 48 种物体之一；"
            f"各训练{took[1]}，{seeds[1]}；每张图 {cost} MFLOP，{size} 百万参数，看过 {seen} 张图（ViT/ResNet/混合）。"
            f"准确率：{listed('accuracy', '、', '；', True)}。{few} 张时混合网络{middle[1]}。最大的集合看了 {epochs} 遍。"
            f"移动 1-4 像素后答案不变：{listed('stays', '、', '；', True)}",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--minutes", type=float, default=3, help="of training, each network on each set")
    parser.add_argument("--seeds", type=int, default=1)
    args = parser.parse_args()
    if args.quick:
        args.minutes, args.seeds = 0.01, 1
    report = evidence.begin(args)
    report |= {"minutes_asked": args.minutes, "batch": BATCH, "lr": LR, "noise": NOISE}
    report["found"] = measure(args, (100, 200) if args.quick else NUMBERS, 100 if args.quick else 4000)
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
