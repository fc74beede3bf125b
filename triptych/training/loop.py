"""The one training loop: any Task, any family, phases of several optimizers, stop and resume to the bit.

    result = train(recipe, out=Path("runs/mine"))

Step s of a run is a pure function of (weights, averages, optimizer state, s): the batch is the dataset's s-th, every draw has
the key (seed, global sample number), torch's own generator is seeded by the same. So a checkpoint is those tensors and one
number, and a resumed run is bit-equal to one that was never stopped (same machine, same number of threads).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from triptych.contracts import Task
from triptych.layers.memory import keep_freed_memory
from triptych.recipe import Recipe

from . import lora, run_folder, state
from .build import build_task
from .build import export as export_panels
from .expect import Expectation, check, strange
from .measure import estimate, in_words
from .report import Metrics, Report
from .room import Room
from .run import Run, device_of
from .signals import Stop

if TYPE_CHECKING:
    from .judged import Judged

__all__ = ["Result", "train"]


@dataclass(frozen=True)
class Result:
    """How a run ended. reason: "finished", "interrupted" (Ctrl+C), "terminated" (SIGTERM), "dry run".

    skipped: steps that were not finite.  validation: the last held-out measures.  expected: each of the recipe's expectations, at
    the end of a finished run.  model: the exported folder.  estimate: what a dry run measured.  judged: the judges' last measures.
    best: the folder of the model that they found best, and best_at, its step, measure and value.
    """

    reason: str
    step: int
    out: Path
    skipped: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    expected: list[Expectation] = field(default_factory=list)
    model: Path | None = None
    estimate: dict[str, Any] = field(default_factory=dict)
    judged: dict[str, float] = field(default_factory=dict)
    best: Path | None = None
    best_at: dict[str, Any] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        return {"interrupted": 130, "terminated": 143}.get(self.reason, 0)


def train(
    recipe: Recipe, *, out: str | Path, data: Any = None, held_out: Any = None, resume: bool = False, init: str | Path | None = None,
    dry_run: bool = False, report: Report | None = None, device: str = "auto", task: Task | None = None,
    export: Callable[[Task, Recipe, Path, Mapping[str, Any]], None] | None = None,
) -> Result:  # fmt: skip
    """Train what `recipe` says in the run folder `out`; at the end, or where it is stopped, export the averaged weights to `out/model`,
    and what a LoRA has learnt to `out/lora` too.

    data, held_out: datasets instead of the recipe's.  task, export: a task built by hand, and what to do with it at the end.
    A task may also have `prepare_data(dataset)`, called before training (to learn a vocabulary), `finish(dataset)`, called
    after it (to measure what the card or the latents need), and `compiles()`, the modules worth compiling.
    resume: go on from the newest whole checkpoint.  init: start from a model's weights, with a fresh optimizer.
    dry_run: measure what the run would cost; nothing is written.
    Raises ValueError (recipe, data, judges that cannot work), state.BadCheckpoint (another run's), state.Locked, state.DiskFull,
    Diverged. A second Ctrl+C raises KeyboardInterrupt at once.
    """
    out, report = Path(out), report or Report()
    keep_freed_memory()
    with state.locked(out) if not dry_run else contextlib.nullcontext(), torch.random.fork_rng(devices=[]):
        found = None if dry_run else run_folder.look(recipe, out, resume, report)
        init = init or (found.facts.get("init") if found else None)
        if data is None:
            data, held_out = _datasets(recipe, report)
        task = task or build_task(recipe, init=init)
        judged = _judged(recipe, task, data, held_out, device)
        if hook := getattr(task, "prepare_data", None):
            hook(data)
        run = Run(recipe, task, data, held_out, device, report, init=str(init) if init else None, judged=judged)
        if dry_run:
            cost = estimate(run)
            for line in in_words(cost):
                report.say(line)
            return Result("dry run", 0, out, estimate=cost)
        metrics, export = run_folder.begin(run, out, found), export or export_panels
        try:
            result = _loop(run, out, metrics, export)
            if judged:
                best_at = {key: judged.best[key] for key in ("step", "measure", "value")} if judged.best else {}
                result = replace(result, judged=judged.scores, best=out / "best" if best_at else None, best_at=best_at)
            if result.reason == "finished":
                result = replace(result, expected=check(recipe.expect, run.measured))
                for line in (*result.expected, *([judged.in_words(out, run.step)] if judged else [])):
                    report.say(str(line))
            task.modules.eval()
            with run.averages.applied():
                if hook := getattr(task, "finish", None):
                    hook(data)
                with Stop() as stop:
                    room = Room(report, stop)
                    room(lambda: export(task, recipe, out / "model", run_folder.card(run)))
                    room(lambda: lora.export(task, out / "lora", run_folder.card(run), init=init or recipe.init, frozen=run.frozen))
            return replace(result, model=out / "model")
        finally:
            report.end()
            metrics.close()


def _loop(run: Run, out: Path, metrics: Metrics, export: Callable[[Task, Recipe, Path, Mapping[str, Any]], None]) -> Result:
    recipe, report = run.recipe, run.report
    if run.step == 0:
        run.measure(out, metrics, validate=True, preview=bool(recipe.preview_prompts))
    for line in strange(recipe.expect, [*run.measured, *(run.judged.measures if run.judged else ())]):
        report.say(line)
    report.begin(recipe.name, run.step, recipe.steps, recipe.batch)
    with Stop() as stop, run.batches() as batches:
        begun, run.room = time.monotonic(), Room(report, stop)
        while run.step < recipe.steps:
            values = run.update(next(batches))
            speed = report.step(run.step, values["loss"])
            metrics.write(run.step, "train", {**values, "pictures_per_s": round(speed, 2)})
            last, leaving = run.step == recipe.steps, stop.reason  # read once: a signal that comes later waits for the next step
            validate, preview = (last or run.step % every == 0 for every in (recipe.validate_every, recipe.preview_every))
            run.measure(out, metrics, validate=validate, preview=preview)
            if run.judged and run.judged.due(run.step):
                run.judged.turn(run, out, metrics, export)
            if last or leaving or run.step % recipe.save_every == 0:
                now = time.monotonic()
                run.seconds, begun = run.seconds + now - begun, now
                run.room(metrics.sync)
                run.room(lambda: run.save(out))
            if leaving and not last:
                report.say(f"{leaving} at step {run.step}, saved in {out}; go on with --resume")
                return Result(leaving, run.step, out, run.skipped, run.validation)
    return Result("finished", run.step, out, run.skipped, run.validation)


def _judged(recipe: Recipe, task: Task, data: Any, held_out: Any, device: str) -> Judged | None:
    if not recipe.judges:
        return None
    from .judged import Judged

    return Judged(recipe, task, data, held_out, device_of(device))


def _datasets(recipe: Recipe, report: Report) -> tuple[Any, Any]:
    from triptych import data

    train_set = data.build(recipe.data)
    try:
        return train_set, data.build(recipe.data, split="held_out")
    except ValueError as error:
        report.say(f"no held-out loss: {error}")
        return train_set, None
