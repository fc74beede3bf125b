"""Claim 25, its second half: what must a DETR be told of places? Both axes, in queries and keys alone, in every layer: each left out.

    python scripts/claims/detr_positions.py [--minutes 0.8] [--seeds 1] [--n 500] [--quick]     (5 minutes of one core, 4 training)

The recipe `eyes-detr` at half its side and with a smaller network, on scenes of the 8 drawn shapes, all arms begun from the same weights
and shown the same pictures in the same order. What is told of the places of the PICTURE differs, and nothing else:

    2-D          as DETR has it: sines of row and column, half of the width each, added to queries and keys in every layer
    1-D          sines of a place's number, row by row, over the whole width; the queries' own points are told in the same way
    values       as 2-D, and what is heard has the places in it, too
    input only   added once to what enters the encoder, nowhere else
    none         nowhere; what the convolutions learn of the picture's border is left

How many steps fit into the minutes is measured first; all make as many. AP, and the share of scenes that are read wholly right, on
held-out scenes: the mean of the seeds, and from the lowest to the highest of their intervals, which are bootstraps over pictures. Queries
are anchored, as in the recipe: each belongs to a point, which all arms tell it. Writes detr_positions.json.
Shape legend: B batch, L places, Q queries, D width.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import evidence, minutes
from scripts.claims.evidence import Row, around
from triptych import data
from triptych.contracts import Prompt
from triptych.data import scenes
from triptych.data.index import as_images, draws
from triptych.eyes import Eyes
from triptych.judges.detection import Config, Detection
from triptych.recipe import Data, Recipe, Source
from triptych.recipes.eyes import eyes_detr
from triptych.training import build_task
from triptych.vision import detr

NAME = Path(__file__).stem
ARMS = ("2-D", "1-D", "values", "input only", "none")
MEASURES = ("AP", "AP50", "exact")
SIDE, BATCH = 64, 32
SMALL = {
    "image_size": SIDE, "num_classes": len(scenes.CLASSES), "attributes": (), "ink": False, "num_queries": 12, "width": 64, "hidden": 128,
    "num_heads": 4, "depth": 2, "decoder_depth": 2,
    "backbone": {"block": "basic", "norm_groups": 8, "stem_width": 16, "widths": (32, 64), "depths": (1, 1)},
}  # fmt: skip


def recipe_of(seed: int, batch: int) -> Recipe:
    base = eyes_detr()
    return replace(
        base, family=replace(base.family, config={**base.family.config, **SMALL}), seed=seed, batch=batch, ema=0.0, compile=False,
        task_options={"nothing": 0.3}, data=Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=SIDE),
    )  # fmt: skip


# --- what is told of places -------------------------------------------------------------------------------------------------


def told(panel: detr.DETR, arm: str) -> None:
    """Change, in place, what the network is told of the picture's places."""
    if arm == "1-D":
        side = len(panel._encode(torch.zeros(1, 3, SIDE, SIDE), None)[2][0, 0])

        def one_axis(places_2: Tensor) -> Tensor:
            """Of a place's number, in rows; a point between two rows is in the upper. Periods from a row, as from a picture's side with
            two axes, to as many pictures as there."""
            row, column = places_2.unbind(-1)
            number = (row * side).floor().clamp(max=side - 1) + column
            return detr.sines(number[..., None], 2 * panel.config.width, 20.0 * side)

        panel._sines = one_axis  # type: ignore[method-assign]
    encoder, decoder = (list[Any](layers) for layers in (panel.encoder, panel.decoder))
    if arm in ("input only", "none"):
        for layer in (*encoder, *decoder):
            layer.register_forward_pre_hook(_entering if arm == "input only" and layer is encoder[0] else _without)
    if arm == "values":
        for heard in (*(layer.attention for layer in encoder), *(layer.cross for layer in decoder)):
            heard.register_forward_pre_hook(lambda _, args: (args[0], args[1], args[1], *args[3:]))


def _entering(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The first layer of the encoder: (x, places, mask)."""
    x_BLD, place_BLD, mask = args
    return x_BLD + place_BLD, torch.zeros_like(place_BLD), mask


def _without(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Any layer: (..., places, mask)."""
    *first, place_BLD, mask = args
    return *first, torch.zeros_like(place_BLD), mask


# --- training and measuring -------------------------------------------------------------------------------------------------


def taught(arm: str, steps: int, pairs: Any, batch: int, seed: int, folder: Path) -> tuple[detr.DETR, minutes.Clock]:
    recipe = minutes.of_steps(recipe_of(seed, batch), steps)
    task: Any = build_task(recipe)
    told(task.panel, arm)
    _, clock = minutes.trained(recipe, folder, f"{arm}, seed {seed}", data=pairs, task=task)
    return task.panel.eval(), clock


def held_out(n: int, seed: int) -> list[Prompt]:
    rng = draws(seed, "where things stand")
    found = [scenes.random_scene(rng, True) for _ in range(n)]
    return [Prompt(truth=scene, boxes_N5=scenes.boxes(scene)) for scene in found]


def read(panel: detr.DETR, asked: list[Prompt], resamples: int) -> dict[str, dict[str, float]]:
    """measure -> value, low, high."""
    judge = Detection(Config(resamples=resamples), eyes=Eyes(panel).sight(), classes=scenes.CLASSES)
    judge.add(as_images([scenes.render(p.truth, SIDE) for p in asked]), asked)
    found = judge.result()
    return {name: {"value": found[name], "low": found[f"{name}_low"], "high": found[f"{name}_high"]} for name in MEASURES}


def both(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean, and from the lowest to the highest of what any run's interval holds."""
    value = statistics.mean(one["value"] for one in runs)
    return {"value": value, "low": min(one["low"] for one in runs), "high": max(one["high"] for one in runs)}


def measure(args: Any) -> dict[str, Any]:
    pairs, asked = data.build(recipe_of(args.seed, args.batch).data), held_out(args.n, args.seed)
    trials = {arm: (lambda steps, at, arm=arm: taught(arm, steps, pairs, args.batch, args.seed, at)[1]) for arm in ARMS}
    fits = minutes.fit(args.minutes, trials, few=3 if args.quick else 20)
    steps = round(statistics.mean(fits.values()))  # they cost the same, so all make as many
    seeds, runs = range(args.seed, args.seed + args.seeds), {arm: [] for arm in ARMS}
    for seed, arm in itertools.product(seeds, ARMS):
        with tempfile.TemporaryDirectory() as folder:
            panel, clock = taught(arm, steps, pairs, args.batch, seed, Path(folder) / "run")
        runs[arm].append({"seed": seed, "minutes": clock.minutes, **read(panel, asked, 20 if args.quick else 200)})
        print(f"{arm}, seed {seed}: AP {around(runs[arm][-1]['AP'], 3)}, {clock.minutes:.2f} minutes", flush=True)
    arms = {
        arm: {
            **{name: both([one[name] for one in each]) for name in MEASURES}, "steps": steps, "pictures": steps * args.batch, "runs": each,
        }
        for arm, each in runs.items()
    }  # fmt: skip
    return {"n": args.n, "seeds": args.seeds, "arms": arms}


# --- what is said of it -----------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    arms, whole_arm = found["arms"], found["arms"]["2-D"]
    whole = whole_arm["AP"]
    sides = {arm: (one["AP"]["high"] < whole["low"]) - (one["AP"]["low"] > whole["high"]) for arm, one in arms.items() if arm != "2-D"}
    worse = [arm for arm, side in sides.items() if side > 0]
    whole_en, whole_zh = ("holds", "成立") if found["seeds"] > 1 else ("holds in one short training each", "各训练一次、时间很短，成立")
    head = (whole_en, whole_zh) if len(worse) == 4 else (f"{len(worse)} of 4 parts", f"四项中 {len(worse)} 项成立")
    if not worse:
        head = ("does not hold", "不成立") if min(sides.values()) < 0 else ("not decided", "未能分出")
    names = {
        "1-D": ("one axis in place of two", "用一维代替二维"), "values": ("places in values, too", "值里也加位置"),
        "input only": ("at the input alone", "只加在输入"), "none": ("nowhere", "完全不加"),
    }  # fmt: skip
    said = {1: ("worse", "更差"), 0: ("not told apart", "未能区分"), -1: ("better", "更好")}

    def listed(language: int, form: str, comma: str) -> str:
        return comma.join(
            form.format(names[arm][language], said[side][language], around(arms[arm]["AP"], 3)) for arm, side in sides.items()
        )

    took = minutes.told(report["minutes_asked"], [one["minutes"] for arm in ARMS for one in arms[arm]["runs"]])
    seeds = minutes.seeds(found["seeds"])
    saw = f"{whole_arm['pictures']:,}"
    exact = " / ".join(f"{100 * arms[arm]['exact']['value']:.0f}" for arm in ARMS)
    return {
        "en": Row(
            "002", "DETR is told places in two halves, in queries and keys alone, in every layer", evidence.shown_by(NAME, "en"),
            f"{head[0]}. A small DETR of scenes, {took[0]} each, {saw} pictures, {seeds[0]}, {found['n']} "
            f"held-out scenes. AP {around(whole, 3)} when told so; {listed(0, '{0} is {1}, {2}', '; ')}. Read wholly right: {exact} % in "
            f"this order",
        ),
        "zh": Row(
            "002", "DETR 的位置编码：两个轴各占一半、只加在查询与键上、每一层都加", evidence.shown_by(NAME, "zh"),
            f"{head[1]}。场景上的小型 DETR，各训练{took[1]}，{saw} 张图，{seeds[1]}，{found['n']} 个留出场景。"
            f"照此编码时 AP 为 {around(whole, 3)}；{listed(1, '{0}：{1}，{2}', '；')}。整个场景读对的比例依次为 {exact} %",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--minutes", type=float, default=0.8, help="of training, each arm and seed")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--n", type=int, default=500, help="scenes that are asked about")
    args = parser.parse_args()
    args.batch = BATCH
    if args.quick:
        args.minutes, args.n, args.batch = 0.01, 24, 8
    report = evidence.begin(args) | {"recipe": "eyes-detr", "changed": SMALL, "batch": args.batch, "minutes_asked": args.minutes}
    report["found"] = measure(args)
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
