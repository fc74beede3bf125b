"""The benchmark's pieces at a tiny size: both sides compute the same, and every table is written. Nothing is timed for its own sake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("diffusers", reason="diffusers (the test extra) is the peer")

from benchmarks import report
from benchmarks.machine import facts
from benchmarks.run import lanes_of, measure
from benchmarks.setting import Setting

TINY = Setting(width=32, depth=2, heads=2, side=8, patch=2, labels=5, text_width=16, words=6, steps=3, batch=2)


@pytest.mark.parametrize("part", ["sampling", "training"])
def test_both_sides_compute_the_same_and_are_told(tmp_path: Path, part: str) -> None:
    said: list[str] = []
    found = measure(part, TINY, threads=1, rounds=2, budget=0.001, models=("paper", "cross", "modern"), compiled=False, say=said.append)
    lanes = [lane for race in found["races"] for lane in race["lanes"]]
    assert len(lanes) == sum(map(len, lanes_of(part, ("paper", "cross", "modern"), compiled=False)))
    assert all(lane["flop"] > 0 and lane["median_s"] > 0 for lane in lanes)
    if part == "sampling":  # `measure` raises where float32 differs; bf16 is near, and no twin
        told = {name: value for race in found["races"] for name, value in race["agreement"].items() if "bf16" in name}
        assert told and all(value > 0 for value in told.values())

    report.write(tmp_path, {"machine": facts(), part: found})
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert page.count("**ours float32**") == len(found["races"])
    assert json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))[part]["threads"] == 1


def test_equal_work_is_counted_equally() -> None:
    """Both sides of a race are asked for the same job at the same precision: nobody is compared with somebody else's lane."""
    for race in lanes_of("sampling", ("paper", "cross"), compiled=True):
        ours = {(lane.job, lane.precision, lane.compiled, lane.pictures) for lane in race if lane.side == "ours"}
        theirs = {(lane.job, lane.precision, lane.compiled, lane.pictures) for lane in race if lane.side == "diffusers"}
        assert ours == theirs and len({(lane.model, lane.job, lane.pictures) for lane in race}) == 1
