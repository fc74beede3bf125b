"""Lanes in turn, round after round, so that whatever disturbs the machine disturbs all of them; then medians and quartiles."""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.setting import Lane
from benchmarks.worker import Worker

__all__ = ["Result", "load", "prepare", "race"]


@dataclass(kw_only=True)
class Result:
    """One lane's outcome. seconds: the median of each round; warm_up: seconds of the first calls, compiling included."""

    lane: Lane
    flop: int
    warm_up: float
    out: Path
    seconds: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def plain(self) -> dict[str, Any]:
        low, _, high = statistics.quantiles(self.seconds, n=4) if len(self.seconds) > 1 else (self.seconds[0],) * 3
        return {
            **self.lane.plain(), "median_s": self.median, "quartiles_s": [low, high], "fastest_s": min(self.seconds),
            "rounds": len(self.seconds), "flop": self.flop, "warm_up_s": self.warm_up,
        }  # fmt: skip


def prepare(workers: Mapping[str, Worker], lanes: Sequence[Lane], say: Any) -> dict[Lane, Result]:
    """Build every lane and warm it up. A compiled lane that cannot be compiled here is named and left out."""
    ready: dict[Lane, Result] = {}
    for lane in lanes:
        say(f"preparing {lane.model} {lane.job} x{lane.pictures}: {lane.name}")
        try:
            made = workers[lane.side].ask("prepare", key=repr(lane), lane=lane.plain())
        except RuntimeError as error:
            if not lane.compiled:
                raise
            say(f"left out: {error}")
            continue
        ready[lane] = Result(lane=lane, flop=made["flop"], warm_up=made["seconds"], out=Path(made["out"]))
    return ready


def race(workers: Mapping[str, Worker], results: Sequence[Result], rounds: int, budget: float) -> None:
    """`rounds` rounds; in each every lane runs for at most about `budget` seconds, and its median call counts."""
    repeats = dict.fromkeys((r.lane for r in results), 1)
    for number in range(rounds):
        ordered = results if number % 2 == 0 else results[::-1]  # nobody always follows the same one
        for result in ordered:
            took = workers[result.lane.side].ask("time", key=repr(result.lane), repeats=repeats[result.lane])["seconds"]
            result.seconds.append(statistics.median(took))
            repeats[result.lane] = max(1, min(20, int(budget / max(result.seconds[-1], 1e-3))))


def load() -> float:
    """How many processes want a core, on average over the last minute: above the cores that a race uses, it was disturbed."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
