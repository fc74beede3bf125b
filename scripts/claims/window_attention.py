"""Is attention within windows linear in the picture's size, where global attention is quadratic; and is the shift needed, and its mask?

    python scripts/claims/window_attention.py [--rounds 3] [--minutes 12] [--quick]          (16 minutes, two cores)

cost     a Swin of one stage and a ViT of the same width and depth (patches of 4, width 96, 2 blocks: Swin-T's first stage) at 64, 128,
         256 and 512 px, one picture, forward. Time is the best of some runs, memory the growth of the process at its peak; each in a
         process of its own, all of them in turn, round after round. The exponent is the slope of log(time) over log(patches), once a
         round: its interval is the range of the rounds. FLOP are counted; `core` is their part in the products of attention alone.
         "written out" = the ViT with its matrix of attention in memory, without the fused kernel (up to 256 px).
shift    Swins of 32 px learn where a red thing stands, seen from a blue one: left, right, above, below. They know no absolute places,
         so that what is in different windows must meet. As it is; without the shift; with the shift and without its mask (patches from
         opposite edges then hear each other). One stage of 4 blocks with windows half as wide as the picture, and two stages of 2
         blocks, the second with one window, which is the picture. Equal steps, at most 1,000, 3 seeds; how many fit into --minutes is
         measured first. Accuracy on other scenes, interval by a bootstrap over seeds and pictures.

Writes window_attention.json.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import evidence
from scripts.claims.evidence import Row, around, percent
from triptych.contracts import Batch, Prompt
from triptych.data import scenes
from triptych.data.index import as_images, draws
from triptych.recipe import Family, Optimizer, Recipe
from triptych.training import Report, build_task, train
from triptych.vision import swin, vit

NAME = Path(__file__).stem
SIDES = (64, 128, 256, 512)
KINDS = ("window", "global", "written out")
LARGEST_WRITTEN_OUT = 256  # px: at 512 its matrices would take 6 GB
WIDTH, DEPTH, HEADS, PATCH, WINDOW = 96, 2, 3, 4, 8  # of the networks whose cost is measured
BATCH = 64  # of the trainings


# --- cost -------------------------------------------------------------------------------------------------------------------


def network(kind: str, side: int) -> nn.Module:
    if kind == "window":
        size = {"width": WIDTH, "depths": (DEPTH,), "num_heads": (HEADS,), "window": WINDOW, "drop_path": 0.0}
        return swin.Swin(swin.Config(image_size=side, patch_size=PATCH, **size)).eval()
    return vit.ViT(vit.Config(image_size=side, patch_size=PATCH, width=WIDTH, depth=DEPTH, num_heads=HEADS)).eval()


@contextlib.contextmanager
def kernel_of(kind: str) -> Iterator[None]:
    with sdpa_kernel(SDPBackend.MATH) if kind == "written out" else contextlib.nullcontext():
        yield


def one(kind: str, side: int, runs: int) -> dict[str, Any]:
    """Best seconds of some runs, and bytes by which this process grew; to be asked of a fresh process."""
    from triptych.layers.memory import forget_peak, peak

    net, small = network(kind, side), network(kind, 32)
    with torch.no_grad(), kernel_of(kind):
        small.features(torch.zeros(1, 3, 32, 32))  # type: ignore[operator]
        pixels = torch.rand(1, 3, side, side)
        forget_peak()
        before, seconds = peak(), []
        for _ in range(runs):
            begun = time.perf_counter()
            net.features(pixels)  # type: ignore[operator]
            seconds.append(time.perf_counter() - begun)
        after = peak()
    return {"seconds": min(seconds), "bytes": None if before is None or after is None else after - before}


def flop(kind: str, side: int) -> dict[str, int]:
    """Counted without computing. core: the products q k and their sums of v."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network(kind, side).features(torch.zeros(1, 3, side, side))  # type: ignore[operator]
    core = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "bmm" in str(op) or "attention" in str(op))
    return {"all": counter.get_total_flops(), "core": core}


def exponent(found: Mapping[int, float]) -> float:
    """Of the number of patches, that is of the picture's area: 1 = linear, 2 = quadratic."""
    return evidence.fit([2 * np.log(side) for side in found], [np.log(value) for value in found.values()])[0]


def costs(args: Any) -> dict[str, Any]:
    sides = SIDES[:2] if args.quick else SIDES
    cells = [(kind, side) for kind in KINDS for side in sides if kind != "written out" or side <= LARGEST_WRITTEN_OUT]
    told: dict[tuple[str, int], list[dict[str, Any]]] = {cell: [] for cell in cells}
    for number in range(args.rounds):
        for kind, side in cells:
            command = [sys.executable, __file__, "--one", kind, str(side), "--runs", str(args.runs)]
            told[kind, side].append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        print(f"cost: round {number + 1} of {args.rounds}", flush=True)
    out: dict[str, Any] = {}
    for kind in KINDS:
        here = [side for k, side in cells if k == kind]
        counted = {side: flop(kind, side) for side in here}
        rounds = [{side: told[kind, side][r]["seconds"] for side in here} for r in range(args.rounds)]
        best = {side: min(r[side] for r in rounds) for side in here}
        grown = {side: max(one["bytes"] or 0 for one in told[kind, side]) for side in here}
        out[kind] = {
            "sides": {
                str(side): {"patches": (side // PATCH) ** 2, "seconds": best[side], "bytes": grown[side], "flop": counted[side]}
                for side in here
            },
            "time": ranged(best, rounds), "time_last_doubling": ranged(_last(best), [_last(r) for r in rounds]),
            "flop": exponent({side: n["all"] for side, n in counted.items()}),
            "flop_core": exponent({side: n["core"] for side, n in counted.items()}),
            "memory_last_doubling": exponent(_last(grown)) if min(grown.values()) > 0 else None,
        }  # fmt: skip
    return out


def _last(found: Mapping[int, float]) -> dict[int, float]:
    return dict(sorted(found.items())[-2:])


def ranged(best: Mapping[int, float], rounds: list[dict[int, float]]) -> dict[str, float]:
    every = [exponent(one) for one in rounds]
    return {"value": exponent(best), "low": min(every), "high": max(every), "rounds": len(rounds)}


# --- the shift --------------------------------------------------------------------------------------------------------------


class Where:
    """A data set without end: where the red thing stands, seen from the blue one."""

    def __init__(self, split: str, side: int = 32) -> None:
        self.split, self.side = split, side

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        index = range(step * batch_size, (step + 1) * batch_size)
        found = [self.scene(seed, i) for i in index]
        prompts = tuple(Prompt(label=scenes.RELATIONS.index(scene.relation or "")) for scene in found)
        images = as_images([scenes.render(scene, self.side) for scene in found])
        return Batch(index=tuple(index), images_BCHW=images, prompts=prompts, keys=tuple(map(str, index)))

    def scene(self, seed: int, i: int) -> scenes.Scene:
        scene = scenes.random_scene(draws(seed, "where", self.split, i), False, form="relation")
        colored = (dataclasses.replace(thing, color=color) for thing, color in zip(scene.objects, ("red", "blue"), strict=True))
        return dataclasses.replace(scene, objects=tuple(colored))

    def examples(self, n: int, seed: int = 0) -> Batch:
        return self.batch(seed, 0, n)


ARMS = ("shift and mask", "shift, no mask", "no shift")
NETWORKS = {
    "one stage": {"depths": [4], "num_heads": [3], "width": 48}, "two stages": {"depths": [2, 2], "num_heads": [3, 6], "width": 48},
}  # fmt: skip


@contextlib.contextmanager
def without_mask(really: bool) -> Iterator[None]:
    """Inside, a window of the rolled picture may hear all that is in it."""
    kept = swin.shift_mask
    if really:
        swin.shift_mask = lambda grid, window, shift, device: torch.ones(1, 1, 1, 1, dtype=torch.bool, device=device)  # type: ignore[assignment]
    try:
        yield
    finally:
        swin.shift_mask = kept


def recipe_of(which: str, steps: int, seed: int) -> Recipe:
    config = {**NETWORKS[which], "image_size": 32, "patch_size": 4, "window": 4, "drop_path": 0.0, "num_classes": len(scenes.RELATIONS)}
    return Recipe(
        name="where", panel="vision", family=Family(name="swin", size="tiny", config=config),
        optimizer=Optimizer(lr=2e-3, weight_decay=0.05, warmup=0.1, decay=0.5), steps=steps, batch=BATCH, seed=seed, ema=0.0,
        validate_every=steps, save_every=steps, preview_every=steps,
    )  # fmt: skip


def taught(which: str, arm: str, steps: int, seed: int, asked: Batch) -> Tensor:
    """Which of the asked pictures it then gets right, bool [N]."""
    recipe = recipe_of(which, steps, seed)
    task: Any = build_task(recipe)
    if arm == "no shift":
        for module in task.panel.modules():
            if isinstance(module, swin.Block):
                module.shift = 0
    with tempfile.TemporaryDirectory() as folder, without_mask(arm == "shift, no mask"):
        result = train(recipe, out=Path(folder) / "run", data=Where("train"), task=task, report=Report(quiet=True))
        if result.exit_code:  # somebody stopped it: nothing is compared with half a run
            sys.exit(result.exit_code)
        label_N = torch.tensor([prompt.label for prompt in asked.prompts])
        assert asked.images_BCHW is not None
        with torch.no_grad():
            device = next(task.panel.parameters()).device
            said = [task.panel.classify(part.to(device)).argmax(1).cpu() for part in asked.images_BCHW.split(200)]
        return torch.cat(said) == label_N


def shifts(args: Any) -> dict[str, Any]:
    asked, seeds = Where("held_out").examples(64 if args.quick else 1000), list(range(1 if args.quick else 3))
    runs = [(which, arm, seed) for which in NETWORKS for arm in ARMS for seed in seeds]
    few = 4 if args.quick else 30
    taught("one stage", ARMS[0], 2, 0, asked)
    begun = time.monotonic()
    for which in NETWORKS:
        taught(which, ARMS[0], few, 0, asked)
    seconds = (time.monotonic() - begun) / (few * len(NETWORKS))
    steps = max(2, min(1000, round(60 * args.minutes / len(runs) / seconds)))
    right: dict[tuple[str, str], list[np.ndarray]] = {}
    for which, arm, seed in runs:
        right.setdefault((which, arm), []).append(taught(which, arm, steps, args.seed + seed, asked).numpy())
        print(f"{which}, {arm}, seed {seed}: {right[which, arm][-1].mean():.3f}", flush=True)
    n = len(asked.prompts)
    out: dict[str, Any] = {"steps": steps, "batch": BATCH, "seeds": len(seeds), "n": n, "chance": 1 / len(scenes.RELATIONS)}
    for (which, arm), rows in right.items():
        right_SN = np.stack(rows)
        told = evidence.estimate(lambda s, i, right_SN=right_SN: right_SN[np.ix_(s, i)].mean(), len(seeds), n)
        out.setdefault(which, {})[arm] = told | {"each_seed": [float(r.mean()) for r in rows]}
    return out


# --- what is said of it -----------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    cost, where = report["cost"], report["shift"]
    window, every = cost["window"], cost["global"]
    linear = window["time_last_doubling"]["value"] < 1.3 and abs(window["flop"] - 1) < 0.05
    quadratic = every["time_last_doubling"]["value"] > 1.5 and every["flop_core"] > 1.9
    head = ("holds", "成立") if linear and quadratic else ("holds in FLOP", "按 FLOP 成立")
    single = where["one stage"]
    with_, bare, without = (single[arm] for arm in ARMS)
    shift = ("needed", "需要移位") if with_["low"] > without["high"] else ("the shift's use is not told", "移位的用处未能分出")
    mask = ("the mask helps", "掩码有用") if with_["low"] > bare["high"] else ("that the mask helps is not told", "掩码的用处未能分出")
    largest = max(every["sides"], key=int)
    times = every["sides"][largest]["seconds"] / window["sides"][largest]["seconds"]
    memory = [cost[kind]["memory_last_doubling"] for kind in KINDS]
    exponents = ", ".join("-" if value is None else f"{value:.1f}" for value in memory)

    def listed(which: str, names: tuple[str, ...], comma: str) -> str:
        return comma.join(f"{name} {percent(where[which][arm])}" for name, arm in zip(names, ARMS, strict=True))

    zh = ("移位加掩码", "移位无掩码", "不移位")
    time_ = [around(one["time"]) for one in (window, every)]
    doubled = [around(one["time_last_doubling"]) for one in (window, every)]
    counted = [f"{one[key]:.2f}" for key in ("flop", "flop_core") for one in (window, every)]
    chance, length = f"{100 * where['chance']:.0f} %", (where["steps"], where["seeds"])
    return {
        "en": Row(
            "002", "attention in windows is linear in the picture, global attention quadratic; the shift is needed",
            evidence.shown_by(NAME, "en"),
            f"cost: {head[0]}. Time grows with the area to the power {time_[0]} in windows and {time_[1]} globally from 64 to {largest} "
            f"px, {doubled[0]} and {doubled[1]} in the last doubling; FLOP {counted[0]} and {counted[1]}, attention's own products "
            f"{counted[2]} and {counted[3]}. At {largest} px windows are {times:.1f} times as fast. Memory's powers in the last doubling: "
            f"{exponents} (windows, global with a fused kernel, global with its matrix written out: only the last has to be quadratic). "
            f"Shift: {shift[0]}, {mask[0]}. Left, right, above or below (chance {chance}), one stage: {listed('one stage', ARMS, ', ')}; "
            f"two stages: {listed('two stages', ARMS, ', ')} ({length[0]} steps, {length[1]} seeds)",
        ),
        "zh": Row(
            "002", "窗口注意力对图像大小是线性的，全局注意力是平方的；移位必不可少", evidence.shown_by(NAME, "zh"),
            f"代价：{head[1]}。从 64 到 {largest} 像素，时间随面积增长的幂次，窗口为 {time_[0]}，全局为 {time_[1]}；最后一次加倍时为 "
            f"{doubled[0]} 与 {doubled[1]}；FLOP 为 {counted[0]} 与 {counted[1]}，只算注意力的乘积为 {counted[2]} 与 {counted[3]}。"
            f"{largest} 像素时窗口快 {times:.1f} 倍。内存在最后一次加倍时的幂次：{exponents}"
            f"（窗口、融合核的全局、写出矩阵的全局：只有最后一种必然是平方的）。移位：{shift[1]}，{mask[1]}。判断左右上下（随机为 "
            f"{chance}），单阶段：{listed('one stage', zh, '、')}；两阶段：{listed('two stages', zh, '、')}"
            f"（{length[0]} 步，{length[1]} 个种子）",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of the timing")
    parser.add_argument("--runs", type=int, default=3, help="in each round, of which the best counts")
    parser.add_argument("--minutes", type=float, default=12, help="of training in all")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "SIDE"), help="one measurement, in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], int(args.one[1]), args.runs)))
        return
    if args.quick:
        args.rounds, args.runs, args.minutes = 1, 1, 0.1
    report = evidence.begin(args)
    report |= {"network": {"width": WIDTH, "depth": DEPTH, "patch": PATCH, "window": WINDOW}, "cost": costs(args), "shift": shifts(args)}
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
