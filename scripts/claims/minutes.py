"""Equal minutes, for claims that train several arms: how many steps of the one trainer fit into them, measured on a few real ones of each.

A run is then a number of steps, as anybody's. What fits is counted in time of the processor, so that it does not depend on who else works
there meanwhile; what a run really took, by the clock on the wall, stands beside it.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from triptych.recipe import Recipe
from triptych.training import Result, train

__all__ = ["Clock", "fit", "of_steps", "seeds", "told", "trained", "worked"]

Arm = TypeVar("Arm")


class Clock:
    """Stands where a report stands, and notes when each step ended, and what had been worked by then."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.begin()

    def begin(self, *_: Any) -> None:
        self.at, self.worked = [time.monotonic()], [worked()]

    def step(self, step: int, loss: float) -> float:
        self.at.append(time.monotonic())
        self.worked.append(worked())
        if len(self.at) % 100 == 0:
            print(f"{self.title}: step {step}, loss {loss:.3f}", file=sys.stderr, flush=True)
        return 0.0

    def say(self, text: str) -> None:
        pass

    def end(self) -> None:
        pass

    @property
    def seconds_a_step(self) -> float:
        """Of work, the median, without the first step, which warms up."""
        return statistics.median(b - a for a, b in zip(self.worked[1:], self.worked[2:], strict=False))

    @property
    def minutes(self) -> float:
        """Of all steps, by the clock."""
        return (self.at[-1] - self.at[0]) / 60


def worked() -> float:
    """Seconds, if all threads that compute work all the time."""
    return time.monotonic() if torch.cuda.is_available() else time.process_time() / torch.get_num_threads()


def of_steps(recipe: Recipe, steps: int) -> Recipe:
    """So long, and nothing but learning before the end."""
    return replace(recipe, steps=steps, validate_every=steps, save_every=steps, preview_every=steps, preview_prompts=(), keep=1)


def trained(recipe: Recipe, folder: Path, title: str, **more: Any) -> tuple[Result, Clock]:
    """Run it in the folder. more: `train`'s own: data, held_out, task."""
    clock: Any = Clock(title)
    result = train(recipe, out=folder, report=clock, **more)
    if result.exit_code:  # somebody stopped it: nothing is compared with half a run
        sys.exit(result.exit_code)
    return result, clock


def fit(minutes: float, arms: Mapping[Arm, Callable[[int, Path], Clock]], *, few: int = 12, rounds: int = 2) -> dict[Arm, int]:
    """How many steps of each arm fit. arms: name -> what runs so many steps in a folder; a few are run of each, in turn."""
    seconds: dict[Arm, list[float]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            for place, (name, run) in enumerate(arms.items()):
                seconds[name].append(run(few, Path(folder) / f"{number}-{place}").seconds_a_step)
    return {name: max(2, round(60 * minutes / statistics.mean(found))) for name, found in seconds.items()}


def told(asked: float, took: Sequence[float]) -> tuple[str, str]:
    """How long each arm was trained, as rows say it, in English and Chinese."""
    least, most = (f"{one:.1f}" for one in (min(took), max(took)))
    spans = least if least == most else f"{least}-{most}"
    return (
        f"as many steps as fit into {asked:g} minutes of one core (taken: {spans})",
        f"单核 {asked:g} 分钟的步数（实际用时 {spans} 分钟）",
    )


def seeds(n: int) -> tuple[str, str]:
    """With one, an interval knows nothing of what another would have given: said in the row."""
    return (f"{n} seeds", f"{n} 个种子") if n > 1 else ("one seed, so intervals are over pictures alone", "一个种子，区间只对图像而言")
