"""Claim 54: does classifier-free guidance help layouts "greatly"? Boxes in, pictures out, and what a detector finds in the boxes.

    python scripts/claims/guided_layouts.py [--model layout|DIR] [--steps 2500] [--n 500] [--scales 1 2 3 5] [--draw 50] [--quick]

The recipe `layout` (latent diffusion that hears boxes, arXiv 2112.10752, section 4.3.1), as embedded or in a folder; where there is no such
model, or --model "" is said, the recipe is taught here for --steps. It draws the boxes of scenes that training did not show, of
compositions that it did, for a class never shown would say nothing: class (colour and shape) and corners of each thing, no words. The same
boxes and seeds at every scale, 1 = no guidance.

IoU        of each asked box with the detected one of its class; detections are given to boxes one to one, so that the sum is largest;
           0 for a box without one. Mean over boxes
found      the share of boxes with an IoU of at least 0.5
besides    detections that are nobody's, for each asked box

A detection counts from a probability of 0.5 on; the detector reads colours besides shapes. What it says of real pictures of the same scenes
stands beside: no drawn picture can be read better. Intervals are bootstraps over pictures, of differences over pairs of the same boxes.

"Helps" is a gain at s = 3, as the recipe draws (the nearest scale that is asked for), that is above 0. "Greatly" is a word: here it is at
least half of what is missing to real pictures without guidance. Other layouts, with things that overlap and many more classes, are not
asked. Writes guided_layouts.json.
Shape legend: P pictures, N boxes, D detections.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import triptych
from scripts.claims import chains, evidence
from scripts.claims.evidence import Row, around, percent
from triptych import checkpoint
from triptych.contracts import Prompt
from triptych.layers.matching import assign, iou
from triptych.recipes.diffusion import layout

NAME = Path(__file__).stem
SCALES = (1.0, 2.0, 3.0, 5.0)
OWN = float(layout().sampling["guidance"])  # decides
THERE = 0.5  # intersection over union from which a thing is where it was asked
GREATLY = 0.5  # of what is missing
WHAT = ("IoU", "found", "besides")


# --- boxes asked, boxes found -------------------------------------------------------------------------------------------------


def met(seen: Sequence[Any], prompt: Prompt) -> list[float]:
    """Of each asked box, in order: the IoU with the detection of its kind that is given to it, 0 without one.

    seen: what `judges.objects` read: kind (shape, colour) and a box each.
    """
    assert prompt.boxes_N5 is not None
    kinds, boxes_N4 = [(thing.shape, thing.color) for thing in prompt.truth.objects], prompt.boxes_N5[:, 1:].double()
    out = [0.0] * len(kinds)
    if not seen:
        return out
    found_D4 = torch.tensor([[one.cx, one.cy, one.w, one.h] for one in seen], dtype=torch.float64)
    same_ND = torch.tensor([[kind == one.kind for one in seen] for kind in kinds])
    overlap_ND = (iou(boxes_N4[:, None], found_D4[None]) * same_ND).numpy()
    for n, d in zip(*assign(-overlap_ND), strict=True):
        out[int(n)] = float(overlap_ND[n, d])
    return out


def read(detector: Any, images_PCHW: Tensor, prompts: Sequence[Prompt]) -> np.ndarray:
    """[P, 4]: of each picture the number of boxes, the sum of their IoU, how many were found, how many things there are besides."""
    judge = chains.reader(detector)
    rows = []
    for first in range(0, len(prompts), chains.PIECE):
        part = slice(first, first + chains.PIECE)
        for seen, prompt in zip(judge.read(images_PCHW[part]), prompts[part], strict=True):
            each = met(seen, prompt)
            rows.append((len(each), sum(each), sum(one >= THERE for one in each), len(seen) - sum(one > 0 for one in each)))
    return np.array(rows, dtype=np.float64)


def shares(read_P4: np.ndarray) -> dict[str, dict[str, float]]:
    """IoU, found and besides, for each box asked."""
    out = {}
    for column, name in enumerate(WHAT, start=1):
        out[name] = evidence.estimate(lambda p, c=column: read_P4[p, c].sum() / max(1.0, read_P4[p, 0].sum()), len(read_P4))
    return out


def gain(guided_P4: np.ndarray, plain_P4: np.ndarray, real_P4: np.ndarray) -> dict[str, dict[str, float]]:
    """IoU by which guidance is ahead, and as a share of what is missing to real pictures (0 where nothing is)."""

    def ahead(p: np.ndarray) -> float:
        return (guided_P4[p, 1].sum() - plain_P4[p, 1].sum()) / max(1.0, plain_P4[p, 0].sum())

    def missing(p: np.ndarray) -> float:
        return (real_P4[p, 1].sum() - plain_P4[p, 1].sum()) / max(1.0, plain_P4[p, 0].sum())

    return {
        "IoU": evidence.estimate(ahead, len(plain_P4)),
        "of missing": evidence.estimate(lambda p: ahead(p) / missing(p) if missing(p) > 1e-6 else 0.0, len(plain_P4)),
    }


def measure(args: Any, report: dict[str, Any], eyes: Any, detector: Any) -> dict[str, Any]:
    scales, rows = sorted({1.0, *args.scales}), {}
    if len(scales) < 2:
        raise ValueError("--scales 1 is no guidance; give a scale besides")
    there = args.model in checkpoint.embedded() or (args.model and Path(args.model).is_dir())
    if there:
        model = triptych.load(args.model)
        folder = args.runs / f"of-{model.name}"
    else:
        if args.model:
            print(f"{args.model} is neither an embedded model nor a folder: the recipe `layout` is taught here", file=sys.stderr)
        model, folder, _ = chains.taught("layout", layout(), args, report)
    network = model.generator.network
    known = {"name": model.name, "fingerprints": model.fingerprints, "parameters": sum(p.numel() for p in network.parameters())}
    card = getattr(network, "card", {})
    if "examples" in card and "hours" in card:
        known |= {"pictures": card["examples"], "minutes": 60 * card["hours"]}
    ruler = chains.Ruler(eyes, layout().data, args)
    real_PCHW, prompts = chains.real_pictures(layout().data, args.n, args.seed, "held_out")
    real_P4 = read(detector, real_PCHW, prompts)
    found: dict[str, Any] = {"model": known, "boxes": int(real_P4[:, 0].sum()), "floor": ruler(real_PCHW), "real": shares(real_P4)}
    found["scales"] = {}
    for scale in scales:
        how = {"sampler": "ddim", "steps": args.draw, "guidance": scale, "threshold": "none"}  # latents have no range
        pictures, seconds = chains.drawn(model, folder / "new", args, prompts, **how)
        rows[scale] = read(detector, pictures, prompts)
        found["scales"][f"{scale:g}"] = one = {**shares(rows[scale]), "FD": ruler(pictures), "seconds": seconds}
        if scale != 1:
            one["gain"] = gain(rows[scale], rows[1.0], real_P4)
        print(f"guidance {scale:g}: IoU {around(one['IoU'], 3)}, found {percent(one['found'])}, FD {around(one['FD'])}", flush=True)
    found["decides"] = f"{min((scale for scale in scales if scale != 1), key=lambda scale: abs(scale - OWN)):g}"
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    decides, plain = found["decides"], found["scales"]["1"]
    won = found["scales"][decides]["gain"]
    helps = (won["IoU"]["low"] > 0) - (won["IoU"]["high"] < 0)
    greatly = (won["of missing"]["low"] > GREATLY) - (won["of missing"]["high"] < GREATLY)
    head = {
        1: {
            1: ("holds", "成立"), 0: ("it helps, whether greatly is not decided", "有帮助，是否极大未能分出"),
            -1: ("it helps, greatly does not hold", "有帮助，但极大不成立"),
        }[greatly],
        0: ("not decided whether it helps at all", "是否有帮助未能分出"), -1: ("does not hold, it harms", "不成立，反而有害"),
    }[helps]  # fmt: skip

    def listed(comma: str, stop: str) -> str:
        return stop.join(
            f"{s}: {around(one['IoU'])}{comma}{percent(one['found'])}{comma}{around(one['besides'])}{comma}{around(one['FD'], 1)}"
            for s, one in found["scales"].items()
        )

    known, real = found["model"], found["real"]
    if report["arms"]:
        took = chains.told(report)
    else:
        numbers = f"{report['n']:,}", f"{report['references']:,}"
        took = (f"FD of {numbers[0]} drawn scenes from {numbers[1]} real ones", f"FD 由 {numbers[0]} 张生成图与 {numbers[1]} 张真实图算得")
        if "pictures" in known:
            took = (
                f"model {known['name']}, {known['pictures']:,} pictures learnt from; {took[0]}",
                f"模型 {known['name']}，学过 {known['pictures']:,} 张图；{took[1]}",
            )
    floor = around(found["floor"], 1)
    gained, part = around(won["IoU"], 3), percent(won["of missing"])
    best = [comma.join((around(real["IoU"]), percent(real["found"]), around(real["besides"]))) for comma in (", ", "、")]
    return {
        "en": Row(
            "some", "classifier-free guidance greatly helps pictures from layouts", evidence.shown_by(NAME, "en"),
            f"{head[0]}. At s = {decides} mean IoU is {gained} above {around(plain['IoU'])} without guidance: {part} of what is missing to "
            f"real pictures (greatly: half). {took[0]} (as many real ones: {floor}). {found['boxes']:,} boxes of new scenes, "
            f"DDIM in {report['draw']} steps; s: mean IoU with the detector's boxes of the same class, share of IoU >= 0.5, things "
            f"besides a box asked for, FD. {listed(', ', '; ')}. Real pictures: {best[0]}",
        ),
        "zh": Row(
            "部分", "无分类器引导对由布局生成图像有极大帮助", evidence.shown_by(NAME, "zh"),
            f"{head[1]}。s = {decides} 时平均 IoU 比无引导的 {around(plain['IoU'])} 高 {gained}：是与真实图差距的 {part}"
            f"（极大：一半）。{took[1]}（同样多的真实图：{floor}）。新场景的 {found['boxes']:,} 个框，DDIM {report['draw']} 步；"
            f"s：与检测器同类框的平均 IoU、IoU 不小于 0.5 的比例、每个所求框之外的物体数、FD。{listed('、', '；')}。真实图：{best[1]}",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row, detector=True,
        model=("layout", "", "an embedded name or a folder; without such a model the recipe is taught"),
        scales=(SCALES, (2.0,), "of guidance; 1, no guidance, is always among them"), draw=(50, 2, "steps of DDIM"),
    )  # fmt: skip
