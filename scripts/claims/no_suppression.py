"""Claim 25, its first half: does a DETR need non-maximum suppression? AP with and without it, at three overlaps, on held-out scenes.

    python scripts/claims/no_suppression.py [--detector NAME|DIR] [--n 1000] [--quick]                          (2 minutes, two cores)

The embedded detector reads the same pictures once; greedy suppression of doubles of the same class is then done or left out. If training
gave each object to one query alone, suppression finds nothing to take away, and can only take what it should not. "doubles": detections of
probability 0.5 or more, less the objects there are, a picture. The second half, where places must be told, is
detr_positions.py's.

Writes no_suppression.json.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import triptych
from scripts.claims import evidence
from scripts.claims.evidence import Row, around
from scripts.measure_eyes import as_images, held_out_scenes
from triptych.data import scenes
from triptych.judges.detection import Config, Detection

NAME = Path(__file__).stem
OVERLAPS = (None, 0.7, 0.5, 0.3)
MEASURES = ("AP", "AP50", "exact")


def measure(detector: Any, n: int, seed: int, resamples: int) -> dict[str, Any]:
    prompts = held_out_scenes(n, 4, seed + 2)
    images = as_images([scenes.render(p.truth, 128) for p in prompts])
    out: dict[str, Any] = {}
    for overlap in OVERLAPS:
        config = replace(Config(resamples=resamples, seed=seed), overlap_nms=overlap)
        judge = Detection(config, eyes=detector.sight(), **detector.names())
        judge.add(images, prompts)
        found = judge.result()
        told = {name: {"value": found[name], "low": found[f"{name}_low"], "high": found[f"{name}_high"]} for name in MEASURES}
        out["none" if overlap is None else str(overlap)] = told
        print(f"suppression {overlap}: {({name: around(one, 3) for name, one in told.items()})}", flush=True)
    logits, _ = detector.sight().detect(images)
    score, which = logits.softmax(-1).max(-1)
    many = ((which < logits.shape[-1] - 1) & (score >= 0.5)).sum(1).numpy()
    surplus = many - np.array([len(p.truth.objects) for p in prompts])
    return out | {"n": n, "doubles": evidence.estimate(lambda i: surplus[i].mean(), n, seed=seed)}


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    bare, best = found["none"], max((key for key in found if key not in ("none", "n", "doubles")), key=lambda k: found[k]["AP"]["value"])
    holds = found[best]["AP"]["low"] <= bare["AP"]["value"]
    rest = {key: around(found[key]["AP"], 3) for key in ("0.7", "0.5", "0.3")}
    listed_en, listed_zh = ", ".join(f"{v} at {k}" for k, v in rest.items()), "，".join(f"{k} 时为 {v}" for k, v in rest.items())
    return {
        "en": Row(
            "002", "DETR needs no suppression of doubles", evidence.shown_by(NAME, "en"),
            f"{'holds' if holds else 'does not hold'} for the embedded detector on {found['n']} held-out scenes: "
            f"AP {around(bare['AP'], 3)} without, {listed_en} with; "
            f"scenes read wholly right {around(bare['exact'], 3)} without, {around(found['0.5']['exact'], 3)} with it at 0.5; "
            f"{around(found['doubles'])} detections too many a picture. Where places must be told: `scripts/claims/detr_positions.py`",
        ),
        "zh": Row(
            "002", "DETR 不需要抑制重复的框", evidence.shown_by(NAME, "zh"),
            f"内置检测器在 {found['n']} 个留出场景上{'成立' if holds else '不成立'}："
            f"不抑制时 AP 为 {around(bare['AP'], 3)}，抑制阈值 {listed_zh}；"
            f"整个场景读对的比例，不抑制 {around(bare['exact'], 3)}，阈值 0.5 时 {around(found['0.5']['exact'], 3)}；"
            f"平均每张图多出 {around(found['doubles'])} 个框。位置编码放在哪里：见 `scripts/claims/detr_positions.py`",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--n", type=int, default=1000, help="scenes")
    args = parser.parse_args()
    detector = triptych.load(args.detector)
    report = evidence.begin(args, detector=detector)
    with torch.no_grad():
        report["found"] = measure(detector, 24 if args.quick else args.n, args.seed, 20 if args.quick else 200)
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
