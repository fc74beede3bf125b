"""A disk that fills while a training runs: it pauses, says how much to free, goes on by itself, and is equal to the bit to its twin."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from tests.faults.breaking import Disk
from tests.training import toy
from triptych.training import DiskFull, room, state


@pytest.fixture(autouse=True)
def _look_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room.Room.__init__, "__defaults__", (0.05,))


@pytest.mark.parametrize("failures", [1, 2, 7, 30])
def test_it_pauses_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    toy.run(tmp_path / "twin", steps=20)
    disk, report = Disk(monkeypatch, tmp_path / "run", failures=failures), toy.Lines()
    assert toy.run(tmp_path / "run", steps=20, report=report).reason == "finished"
    assert disk.failed == failures
    paused = [line for line in report.lines if line.startswith("paused: ")]
    assert paused and "free some space" in paused[0] and "Ctrl+C leaves" in paused[0]
    assert sum(line.startswith("there is room again") for line in report.lines) == len(paused)
    monkeypatch.undo()
    assert toy.differences(tmp_path / "twin", tmp_path / "run", 20) == []
    assert not list((tmp_path / "run" / "checkpoints").glob("*.tmp-*"))


def test_too_little_is_said_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is asked before anything is written; when there is room it is written."""
    real, asked = state.check_space, []

    def check_space(folder: Path, needed: int) -> None:
        asked.append(needed)
        if 2 <= len(asked) <= 4:  # not at the beginning, which would end the run
            raise DiskFull(f"{folder}: checkpoints need {needed} bytes, 10 are free; free {needed - 10} more and resume")
        real(folder, needed)

    monkeypatch.setattr(state, "check_space", check_space)
    report = toy.Lines()
    assert toy.run(tmp_path, steps=10, report=report).reason == "finished"
    assert len(asked) >= 5 and any(line.startswith("paused: ") and "more and resume" in line for line in report.lines)


def test_a_signal_ends_the_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 6, and what was saved before is whole."""
    report = toy.Lines()

    def struck() -> None:
        while not any(line.startswith("paused") for line in report.lines):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    Disk(monkeypatch, tmp_path, failures=10**9, first="step-000015")
    threading.Thread(target=struck, daemon=True).start()
    with pytest.raises(DiskFull, match="free some space"):
        toy.run(tmp_path, steps=40, report=report)
    monkeypatch.undo()
    found = state.newest(tmp_path, verify=True)
    assert found is not None and found.step == 10
    toy.run(tmp_path, steps=40, resume=True)
    toy.run(tmp_path.parent / "twin", steps=40)
    assert toy.differences(tmp_path, tmp_path.parent / "twin", 40) == []
