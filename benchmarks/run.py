"""Race ours against diffusers and write docs/results/benchmarks.json and .md.

    python benchmarks/run.py [sampling|training|cold|all] [--quick] [--threads N] [--models paper,cross,modern]

Leave the machine alone meanwhile. `--quick` runs fewer rounds and nothing compiled. A part that is run alone replaces its own
figures and leaves the others as they were.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cold, race, report
from benchmarks.machine import facts
from benchmarks.setting import Lane, Setting
from benchmarks.worker import Worker

__all__ = ["lanes_of", "main", "measure"]

MODELS = ("paper", "cross", "modern")


def lanes_of(part: str, models: Sequence[str], *, compiled: bool) -> Iterator[list[Lane]]:
    """The races of a part: lanes that run in turn, and are compared with one another."""
    jobs: list[tuple[Any, int]] = [("training", 1)] if part == "training" else [("evaluation", 1), ("evaluation", 8), ("trajectory", 1)]
    for model in models:
        for job, pictures in jobs:
            lanes: list[Lane] = []
            for precision in ("float32", "bf16"):
                for fast in (False, True) if compiled and pictures == 1 and (job, precision) != ("trajectory", "float32") else (False,):
                    sides = ["ours"] if model == "modern" else ["diffusers", "ours"]
                    if (job, precision, fast, model) == ("evaluation", "float32", False, "paper"):
                        sides.insert(1, "diffusers+malloc")
                    lanes += [Lane(side=s, model=model, job=job, precision=precision, compiled=fast, pictures=pictures) for s in sides]  # type: ignore[arg-type]
            yield lanes


def measure(
    part: str, setting: Setting, *, threads: int, rounds: int, budget: float, models: Sequence[str] = MODELS, compiled: bool = True,
    say: Any = print, races: Sequence[list[Lane]] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """One part's figures: the ceilings, then all its races. Everything is prepared first, so that measuring is one stretch.

    races: instead of the part's own.  Raises RuntimeError if the two sides do not compute the same.
    """
    races = list(lanes_of(part, models, compiled=compiled)) if races is None else list(races)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        sides = sorted({lane.side for lanes in races for lane in lanes})
        workers = {side: stack.enter_context(Worker(side, threads, Path(folder), asdict(setting))) for side in sides}
        if "diffusers" in workers:
            workers["diffusers"].ask("make", models=[m for m in models if m != "modern"])
        ready = [race.prepare(workers, lanes, say) for lanes in races]
        agreement = [report.agreement(list(results.values())) for results in ready]
        say(f"measuring {part}")
        begun = time.perf_counter()
        ceilings = workers["ours"].ask("machine")
        for results in ready:
            race.race(workers, list(results.values()), rounds, budget)
        say(f"measured {part} in {time.perf_counter() - begun:.0f} s")
    return {
        "when": time.strftime("%Y-%m-%d"), "threads": threads, "load": race.load(), "rounds": rounds, "setting": asdict(setting),
        "ceilings": ceilings,
        "races": [{"lanes": [r.plain() for r in results.values()], "agreement": a} for results, a in zip(ready, agreement, strict=True)],
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="?", default="all", choices=["sampling", "training", "cold", "all"])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing compiled: two minutes instead of ten")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "docs" / "results")
    asked = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    compiler = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    if not compiler and not asked.quick:
        say("no C++ compiler here (c++, g++ or clang++): nothing compiled is measured")
    found: dict[str, Any] = {"machine": facts()}
    for part in ("sampling", "training") if asked.part == "all" else [asked.part] if asked.part != "cold" else []:
        found[part] = measure(
            part, Setting(), threads=asked.threads, rounds=10 if asked.quick else 15, budget=0.1 if asked.quick else 0.15,
            models=asked.models.split(","), compiled=compiler and not asked.quick, say=say,
        )  # fmt: skip
    if asked.part in ("cold", "all"):
        found["cold"] = cold.measure(Setting(), rounds=5 if asked.quick else 10, say=say)
    report.write(asked.out, found)
    say(f"written: {asked.out / 'benchmarks.json'} and benchmarks.md")


if __name__ == "__main__":
    main()
