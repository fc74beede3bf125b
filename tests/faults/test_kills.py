"""kill -9 at a random moment, resume, and every bit is as if nothing had happened. Signals that ask: saved, and left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from scripts.fault_kills import _fork, kills
from tests.training import toy
from triptych.contracts import Batch, Rng
from triptych.training import Locked, state


def test_eight_kills_change_nothing(tmp_path: Path) -> None:
    report = kills(8, tmp_path, seed=1)
    assert report["kills"] == 8 and report["died_before_the_end"] >= 4
    assert report["differences"] == []


class Slow(toy.Toy):
    """A step of half a second: long enough to be struck twice in."""

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict:
        time.sleep(0.5)
        return super().losses(batch, phase, step, rng)


def _leave(out: Path, task: type[toy.Toy]) -> None:
    try:
        os._exit(toy.run(out, task(), steps=2000, save_every=2000).exit_code)
    except KeyboardInterrupt:
        os._exit(7)


def _wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_leaves(tmp_path: Path, number: signal.Signals, code: int) -> None:
    child = _fork.Process(target=_leave, args=(tmp_path / "run", toy.Toy))
    child.start()
    _wait(lambda: (tmp_path / "run/metrics.jsonl").exists() and len(toy.metrics(tmp_path / "run")) > 4)
    os.kill(child.pid or 0, number)
    child.join()
    assert child.exitcode == code
    saved = state.newest(tmp_path / "run", verify=True)
    assert saved is not None and saved.step == toy.metrics(tmp_path / "run")[-1]["step"]
    more = saved.step + 3
    for out, resume in ((tmp_path / "run", True), (tmp_path / "twin", False)):
        _stopped(out, more, resume)
    assert toy.differences(tmp_path / "run", tmp_path / "twin", more) == []


def _stopped(out: Path, step: int, resume: bool) -> None:
    """Train to `step` of 2000, as a signal would stop it there."""

    class Struck(toy.Toy):
        def after_step(self, phase: str, at: int) -> None:
            if at == step - 1 and phase == "main":
                os.kill(os.getpid(), signal.SIGTERM)

    assert toy.run(out, Struck(), steps=2000, save_every=2000, resume=resume).reason == "terminated"


def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path) -> None:
    child = _fork.Process(target=_leave, args=(tmp_path, Slow))
    child.start()
    _wait(lambda: (tmp_path / "metrics.jsonl").exists() and len(toy.metrics(tmp_path)) > 1)
    for _ in range(2):
        os.kill(child.pid or 0, signal.SIGINT)
        time.sleep(0.05)
    child.join()
    assert child.exitcode == 7
    assert state.newest(tmp_path) is None


def test_a_second_trainer_is_refused_by_name(tmp_path: Path) -> None:
    with state.locked(tmp_path), pytest.raises(Locked, match=f"process {os.getpid()} on "):
        toy.run(tmp_path)
    toy.run(tmp_path, steps=2)


def test_the_lock_of_a_killed_trainer_is_free(tmp_path: Path) -> None:
    child = _fork.Process(target=_leave, args=(tmp_path, Slow))
    child.start()
    _wait(lambda: (tmp_path / "metrics.jsonl").exists())
    with pytest.raises(Locked, match=f"process {child.pid} on "):
        toy.run(tmp_path)
    os.kill(child.pid or 0, signal.SIGKILL)
    child.join()
    toy.run(tmp_path, steps=2, resume=True)
