"""Kill a training at random moments with SIGKILL, resume it, and compare it with a twin that was never disturbed.

    python scripts/fault_kills.py 200 [--json docs/results/kills.json]

Every kill is a process of its own (forked from this one, so that it starts at once) that dies between two instructions of its
own choosing; a second process resumes. The twins' weights, averages, optimizer state and metrics must be equal to the bit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from tests.training import toy
from triptych.training import state

_fork = multiprocessing.get_context("fork")


def _train(out: Path, resume: bool) -> None:
    with contextlib.redirect_stderr(io.StringIO()):
        toy.run(out, resume=resume)


def _child(out: Path, resume: bool) -> multiprocessing.Process:
    child = _fork.Process(target=_train, args=(out, resume))
    child.start()
    return child  # type: ignore[return-value]


def kills(count: int, folder: Path, *, seed: int = 0) -> dict[str, object]:
    """`count` runs, each killed once at a random moment of its life and resumed. Returns counts and the worst resume."""
    draw, report = random.Random(seed), {"kills": 0, "died_before_the_end": 0, "while_saving": 0, "differences": [], "resume_seconds": 0.0}
    steps = toy.recipe().steps
    twin = folder / "twin"
    begun = time.monotonic()
    _finished(_child(twin, False))
    life, written = time.monotonic() - begun, (twin / "metrics.jsonl").stat().st_size
    for number in range(count):
        out = folder / f"run-{number}"
        child = _child(out, False)
        _wait_until_written(out / "metrics.jsonl", 0.95 * draw.random() * written, child)
        time.sleep(draw.random() * 3 * life / steps)  # then anywhere within a few steps: in one, or in a save
        if child.pid is not None and child.is_alive():
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        report["kills"] += 1
        report["died_before_the_end"] += child.exitcode == -signal.SIGKILL
        report["while_saving"] += any((out / "checkpoints").glob("*.tmp-*"))
        last = state.newest(out, verify=True)
        begun = time.monotonic()
        _finished(_child(out, True))
        report["resume_seconds"] = max(report["resume_seconds"], time.monotonic() - begun)
        differing = toy.differences(twin, out, steps)
        if differing:
            report["differences"].append({"kill": number, "resumed_at": last.step if last else 0, "differing": differing})
        shutil.rmtree(out)
    return report


def _wait_until_written(path: Path, size: float, child: multiprocessing.Process) -> None:
    """How far a run has come is read from its metrics: by the clock, a machine that grows faster or slower would be struck too late."""
    while child.is_alive() and (not path.exists() or path.stat().st_size < size):
        time.sleep(0.0005)


def _finished(child: multiprocessing.Process) -> None:
    child.join()
    assert child.exitcode == 0, f"a training that nobody killed ended with {child.exitcode}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        report = kills(options.count, Path(folder), seed=options.seed)
    report |= {
        "seed": options.seed,
        "seconds": round(time.monotonic() - begun, 1),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    text = json.dumps(report, indent=1)
    print(text)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(text + "\n")
    sys.exit(bool(report["differences"]))


if __name__ == "__main__":
    main()
