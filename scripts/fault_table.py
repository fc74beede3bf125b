"""Break things on purpose, count what came of it, and write docs/results/faults.md and .json.

    python scripts/fault_table.py [--quick] [--only F7,F8] [--out docs/results]

Each row is a fault, how it was made, how often, and what had to hold; a row that did not hold says where. --quick takes few of each: does
it run? Its page goes to out/faults. Nothing here is timed against a limit but what says so; the machine need not be quiet.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import pytest
import torch

from benchmarks.machine import facts
from scripts.fault_data import Row, bombs, pictures, shards
from scripts.fault_kills import _fork, kills
from tests.faults import breaking
from tests.training import toy
from triptych.training import Locked, room, state

__all__ = ["FAULTS", "main", "page"]


# --- F1, F2, F4, F5, F6, F13: a run ---------------------------------------------------------------------------------------------


def killed(n: int, seed: int = 0) -> Row:
    """kill -9 at a random moment, resume, compare with a twin: weights, averages, optimizer, metrics, to the bit."""
    with tempfile.TemporaryDirectory() as folder:
        told = kills(n, Path(folder), seed=seed)
    counts = {"before the end": told["died_before_the_end"], "while saving": told["while_saving"], "differences": len(told["differences"])}
    return {"n": n, "counts": counts, "wrong": [str(one) for one in told["differences"]]}


def failed_saves(n: int, seed: int = 0) -> Row:
    """Every call of a save that touches the disk fails once, by each error, or dies there; the one before is whole, the next succeeds."""
    count, wrong = 0, []
    ways = [("ENOSPC", False), ("EIO", False), ("EIO", True), ("kill", True)][: max(1, n)]
    for how, forever in ways:
        with tempfile.TemporaryDirectory() as folder:
            calls, _, failed = breaking.failed_saves(Path(folder), how, forever=forever)
        count, wrong = count + calls, [*wrong, *failed]
    return {"n": count, "counts": {"ways": len(ways)}, "wrong": wrong}


def full_disks(n: int, seed: int = 0) -> Row:
    """Full from a random checkpoint on, for a random number of writes, some of which are torn: paused, told, equal to a twin."""
    draw, wrong, paused = random.Random(seed), [], 0
    with tempfile.TemporaryDirectory() as folder:
        twin = Path(folder) / "twin"
        with contextlib.redirect_stderr(io.StringIO()):
            toy.run(twin, steps=20)
        for number in range(n):
            out, report = Path(folder) / f"run-{number}", toy.Lines()
            first, failures = f"step-{5 * draw.randrange(1, 5):06d}", draw.randrange(1, 40)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(room.Room.__init__, "__defaults__", (0.01,))
                breaking.Disk(patch, out, failures=failures, first=first)
                toy.run(out, steps=20, report=report)
            told = [line for line in report.lines if line.startswith("paused: ") and "free some space" in line]
            paused += len(told)
            if not told or toy.differences(twin, out, 20):
                wrong.append(f"{first}, {failures} writes: {len(told)} pauses, {toy.differences(twin, out, 20)}")
            shutil.rmtree(out)
    return {"n": n, "counts": {"pauses": paused}, "wrong": wrong}


def signals(n: int, seed: int = 0) -> Row:
    """SIGTERM or Ctrl+C at a random moment: saved where it stands, exit 143 or 130, and resumed as if nothing had been."""
    draw, wrong, worst = random.Random(seed), [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(n):
            out, sign = Path(folder) / f"run-{number}", draw.choice((signal.SIGTERM, signal.SIGINT))
            child = _fork.Process(target=_until_told, args=(out,))
            child.start()
            lines = draw.randrange(2, 40)  # the first is of a look before the first step, when nobody listens for signals yet
            while not (out / "metrics.jsonl").exists() or len(toy.metrics(out)) < lines:
                time.sleep(0.001)
            begun = time.monotonic()
            os.kill(child.pid or 0, sign)
            child.join()
            worst = max(worst, time.monotonic() - begun)
            saved = state.newest(out, verify=True)
            if child.exitcode != {signal.SIGTERM: 143, signal.SIGINT: 130}[sign] or saved is None:
                wrong.append(f"signal {sign.name}: exit {child.exitcode}")
            shutil.rmtree(out)
    return {"n": n, "counts": {"most seconds to leave": round(worst, 2)}, "wrong": wrong}


def _until_told(out: Path) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        os._exit(toy.run(out, steps=5000, save_every=5000).exit_code)


def two_trainers(n: int, seed: int = 0) -> Row:
    """A second trainer on a run's folder is refused and told who holds it; after kill -9 of the first it is not."""
    wrong, worst = [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(n):
            out = Path(folder) / f"run-{number}"
            child = _fork.Process(target=_until_told, args=(out,))
            child.start()
            while not (out / "metrics.jsonl").exists():
                time.sleep(0.001)
            begun = time.monotonic()
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    toy.run(out)
                wrong.append("a second trainer was let in")
            except Locked as error:
                if f"process {child.pid} on " not in str(error):
                    wrong.append(f"refused, and not told by whom: {error}")
            worst = max(worst, time.monotonic() - begun)
            os.kill(child.pid or 0, signal.SIGKILL)
            child.join()
            try:
                with state.locked(out):
                    pass
            except Locked as error:
                wrong.append(f"the lock of a killed trainer held: {error}")
    return {"n": n, "counts": {"most seconds to refuse": round(worst, 3)}, "wrong": wrong}


def flipped_checkpoints(n: int, seed: int = 0) -> Row:
    """One bit of the newest checkpoint is flipped: it is named, and the one before it is used."""
    with tempfile.TemporaryDirectory() as folder:
        return {"n": n, "counts": {}, "wrong": breaking.flipped_bits(Path(folder), n, random.Random(seed))}


# --- the table --------------------------------------------------------------------------------------------------------------

FAULTS: dict[str, tuple[str, Callable[[int], Row], int, int]] = {  # name -> (what must hold, how, how often, with --quick)
    "F1 kill -9 while training": ("resumed, equal to the bit to a twin that was never disturbed", killed, 100, 2),
    "F2 every write, fsync and rename of a save fails": ("the checkpoint before loads; the next save succeeds", failed_saves, 4, 1),
    "F4 SIGTERM, Ctrl+C": ("saved, and left with 143 or 130", signals, 40, 2),
    "F5 the disk fills while training": ("paused, told how to go on, then equal to the bit to a twin", full_disks, 60, 2),
    "F6 two trainers on one folder": ("the second is told who holds it; a killed one holds nothing", two_trainers, 20, 1),
    "F7 damaged shards": ("no crash; what is used is as it was, and used + named = written", shards, 2000, 20),
    "F8 damaged and odd pictures": ("no crash; used + named = written, each with its reason", pictures, 2000, 60),
    "F9 image bombs": ("refused within 1 s and 100 MB", bombs, 40, 10),
    "F13 a flipped bit in a checkpoint": ("named, and the one before is used", flipped_checkpoints, 2000, 20),
}


def page(found: dict[str, Any]) -> str:
    m = found["machine"]
    lines = [
        "# Faults, made on purpose", "", "Written by `scripts/fault_table.py`; figures in [faults.json](faults.json). "
        f"{m['processor']}, {m['cores']} cores, torch {m['torch']}, {m['system']}.", "",
        "| fault | how often | what must hold | what came of it | held | seconds |", "|---|---:|---|---|---|---:|",
    ]  # fmt: skip
    for name, row in found["rows"].items():
        counts = ", ".join(f"{key} {value}" for key, value in row["counts"].items())
        held = "yes" if not row["wrong"] else f"no: {len(row['wrong'])} times, as {row['wrong'][0]}"
        lines.append(f"| {name} | {row['n']:,} | {FAULTS[name][0]} | {counts} | {held} | {row['seconds']:.0f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", help="faults by their numbers, F7,F8")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out = asked.out or Path(__file__).resolve().parent.parent / ("out/faults" if asked.quick else "docs/results")
    file = out / "faults.json"
    rows = json.loads(file.read_text())["rows"] if file.exists() and asked.only else {}
    for name, (_, make, n, few) in FAULTS.items():
        if asked.only and name.split()[0] not in asked.only.split(","):
            continue
        begun = time.monotonic()
        rows[name] = {**make(few if asked.quick else n), "seconds": time.monotonic() - begun}
        print(f"{name}: {rows[name]['n']} times, {rows[name]['counts']}, {rows[name]['wrong'][:3] or 'held'}", flush=True)
    found = {"quick": asked.quick, "machine": facts(), "rows": {name: rows[name] for name in FAULTS if name in rows}}
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (out / "faults.md").write_text(page(found), encoding="utf-8")
    sys.exit(any(row["wrong"] for row in rows.values()))


if __name__ == "__main__":
    main()
