"""A save that fails at any call, and a file that changes afterwards: the last good checkpoint always wins."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.training import toy
from triptych.training import BadCheckpoint, DiskFull, Report, state

CALLS = ("mkdir", "open", "write", "fsync", "rename", "unlink", "rmdir")


class Died(BaseException):
    """Like a kill: nobody gets to clean up."""


def _raise(how: str) -> None:
    raise Died if how == "kill" else OSError(getattr(errno, how), os.strerror(getattr(errno, how)))


@contextmanager
def failing(at: int, how: str, *, forever: bool) -> Iterator[Callable[[], int]]:
    """The `at`-th call that touches the disk fails, and with `forever` all that follow. Yields the number of calls made."""
    made = 0
    real = {name: getattr(os, name) for name in CALLS}

    def shim(name: str) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            nonlocal made
            made += 1
            if made == at or (forever and made > at):
                _raise(how)
            return real[name](*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, shim(name))
        yield lambda: made


def save(run: Path, step: int) -> None:
    tensors = {"weights": {"w": torch.full((50,), float(step))}, "optimizer": {"m": torch.full((9,), step)}}
    state.write(run, step, tensors, {"note": step}, keep=2)


def whole(run: Path) -> list[int]:
    """Steps of whole checkpoints; asserts that no final name stands for anything less, and that tensors are as saved."""
    final = {int(m[1]) for p in (run / "checkpoints").iterdir() if (m := re.fullmatch(r"step-(\d+)", p.name))}
    found = state.complete(run, verify=True)
    assert {c.step for c in found} == final
    for c in found:
        assert c.tensors("weights")["w"].eq(c.step).all() and c.facts["note"] == c.step
    return [c.step for c in found]


@pytest.mark.parametrize(("how", "forever"), [("ENOSPC", False), ("EIO", False), ("EIO", True), ("kill", True)])
def test_a_save_may_fail_at_every_single_call(tmp_path: Path, how: str, forever: bool) -> None:
    for step in (1, 2):
        save(tmp_path / "before", step)
    shutil.copytree(tmp_path / "before", tmp_path / "run")
    with failing(-1, how, forever=False) as count:
        save(tmp_path / "run", 3)
    calls = count()
    assert calls > 20
    outcomes = set()
    for at in range(1, calls + 1):
        run = tmp_path / f"run-{at}"
        shutil.copytree(tmp_path / "before", run)
        with failing(at, how, forever=forever):
            try:
                save(run, 3)
                outcomes.add("saved")
            except (OSError, Died) as error:
                outcomes.add(type(error).__name__)
        assert 2 in whole(run), f"call {at}"
        save(run, 4)
        assert whole(run)[0] == 4
        assert not list((run / "checkpoints").glob("*.tmp-*"))
    assert {"ENOSPC": "DiskFull", "EIO": "OSError", "kill": "Died"}[how] in outcomes


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    for step in (1, 2):
        save(tmp_path, step)
    files = sorted((tmp_path / "checkpoints/step-000002").iterdir())
    draw = random.Random(0)
    for number in range(60):
        path = files[number % len(files)]
        good = path.read_bytes()
        damaged = bytearray(good)
        damaged[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        said: list[str] = []
        found = state.newest(tmp_path, verify=True, say=said.append)
        assert found is not None and found.step == 1
        assert len(said) == 1 and "step-000002" in said[0]
        path.write_bytes(good)
    assert state.newest(tmp_path, verify=True).step == 2  # type: ignore[union-attr]


def test_a_cut_or_missing_file_is_found_without_hashes(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "checkpoints/step-000003/weights.safetensors").write_bytes(b"")
    assert state.newest(tmp_path).step == 2  # type: ignore[union-attr]
    (tmp_path / "checkpoints/step-000002/manifest.json").unlink()
    assert state.newest(tmp_path) is None


def test_a_file_that_changes_between_the_look_and_the_reading(tmp_path: Path) -> None:
    save(tmp_path, 1)
    found = state.newest(tmp_path)
    path = tmp_path / "checkpoints/step-000001/weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BadCheckpoint, match=r"weights\.safetensors is damaged"):
        found.tensors("weights")  # type: ignore[union-attr]


def test_training_goes_on_from_before_a_damaged_checkpoint(tmp_path: Path) -> None:
    toy.run(tmp_path / "twin", steps=20, save_every=5)
    toy.run(tmp_path / "run", steps=20, save_every=5)
    path = tmp_path / "run/checkpoints/step-000020/averages.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    lines: list[str] = []
    report = Report(quiet=True)
    report.say = lines.append  # type: ignore[method-assign]
    toy.run(tmp_path / "run", steps=20, save_every=5, resume=True, report=report)
    assert any("averages.safetensors is damaged" in line for line in lines)
    assert any("resumed at step 15" in line for line in lines)
    assert toy.differences(tmp_path / "run", tmp_path / "twin", 20) == []


def test_a_short_disk_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))  # type: ignore[attr-defined]
    with pytest.raises(DiskFull, match=r"need \d+ bytes, 1000000 are free; free \d+ more"):
        toy.run(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_kept_are_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    assert whole(tmp_path) == [5, 4]


def test_no_pickle() -> None:
    source = "".join(p.read_text() for p in Path(state.__file__).parent.glob("*.py"))
    assert not re.search(r"torch\.(save|load)\b|import pickle", source)
