"""Disks that fail, and checkpoints that were damaged: what the tests of faults and their table (`scripts/fault_table.py`) both do."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.training import state

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


def failed_saves(folder: Path, how: str, *, forever: bool) -> tuple[int, set[str], list[str]]:
    """A save fails, or dies, at each of its calls in turn: how many there are, what came of it, and what did not hold.

    What must hold: the checkpoint before is whole, the next save succeeds, and nothing half-written is left behind it.
    """
    for step in (1, 2):
        save(folder / "before", step)
    shutil.copytree(folder / "before", folder / "counted")
    with failing(-1, how, forever=False) as count:
        save(folder / "counted", 3)
    outcomes, wrong = set(), []
    for at in range(1, count() + 1):
        run = folder / f"run-{at}"
        shutil.copytree(folder / "before", run)
        with failing(at, how, forever=forever):
            try:
                save(run, 3)
                outcomes.add("saved")
            except (OSError, Died) as error:
                outcomes.add(type(error).__name__)
        if 2 not in whole(run):
            wrong.append(f"{how} at call {at}: the checkpoint before is gone")
        save(run, 4)
        if whole(run)[0] != 4 or list((run / "checkpoints").glob("*.tmp-*")):
            wrong.append(f"{how} at call {at}: the next save did not succeed")
        shutil.rmtree(run)
    return count(), outcomes, wrong


def flipped_bits(folder: Path, n: int, draw: random.Random) -> list[str]:
    """A bit of the newest checkpoint is flipped, n times, in its files by turns; what did not hold: it is named, the one before is used."""
    for step in (1, 2):
        save(folder, step)
    files, wrong = sorted((folder / "checkpoints/step-000002").iterdir()), []
    for number in range(n):
        path = files[number % len(files)]
        good = path.read_bytes()
        damaged = bytearray(good)
        damaged[draw.randrange(len(good))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        said: list[str] = []
        found = state.newest(folder, verify=True, say=said.append)
        if found is None or found.step != 1 or len(said) != 1 or "step-000002" not in said[0]:
            wrong.append(f"{path.name}: {found}, {said}")
        path.write_bytes(good)
    last = state.newest(folder, verify=True)
    return wrong if last is not None and last.step == 2 else [*wrong, f"mended, the last is {last}"]


class Disk:
    """Writes below a folder fail with ENOSPC from those of a checkpoint on, until so many have failed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, below: Path, *, failures: int, first: str = "step-") -> None:
        self.failures, self.below, self.first, self.failed, self._write = failures, str(below), first, 0, os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, handle: int, data: Any) -> int:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if path.startswith(self.below) and (self.first in path or self.failed) and self.failed < self.failures:
            self.failed += 1
            if self.failed % 3 == 0 and len(data) > 1:  # a little fits: what is torn must not stay
                return self._write(handle, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return self._write(handle, data)
