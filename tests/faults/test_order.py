"""Tar shards and buckets, killed five times: every picture was learnt from exactly once an epoch, and the weights are the twin's."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from scripts.fault_kills import _fork
from tests.training import toy
from triptych import data
from triptych.contracts import Batch, Prompt, Rng
from triptych.recipe import Buckets, Data, Source
from triptych.training import state

BATCH, EPOCHS = 4, 3


class Tones:
    """Learns the mean of noisy pictures of any shape, and writes down what it was shown: step, keys."""

    def __init__(self, log: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.modules = nn.ModuleDict({"generator": nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 3, 1))})
        self.log = log

    def panels(self) -> dict[str, nn.Module]:
        return {"generator": self.modules["generator"]}

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        return dict(self.modules.named_parameters())

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        with open(self.log, "a") as log:
            log.write(json.dumps([step, batch.keys]) + "\n")
        time.sleep(0.005)  # a step long enough to be struck in
        x0 = batch.images_BCHW
        assert x0 is not None
        noisy = x0 + 0.3 * rng.normal("noise", x0.shape[1:])
        return {"loss": (self.modules["generator"](noisy) - x0).square().mean()}

    def after_step(self, phase: str, step: int) -> None: ...

    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        return None


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Data, int]:
    """Two shards of 84 pictures in three shapes; and how many steps an epoch has. Of each shape a multiple of the batch is learnt."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("triptych.data.album.HELD_OUT", 0)  # but one, for there must be one
    (tmp_path / "own").mkdir()
    draw = np.random.default_rng(0)
    for k in range(2):
        with tarfile.open(tmp_path / "own" / f"{k}.tar", "w") as tar:
            for i in range(42 + k):
                height, width = ((16, 16), (24, 12), (12, 24))[i % 3] if i < 42 else (16, 16)
                out = io.BytesIO()
                Image.fromarray(draw.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(out, "png")
                for name, content in ((f"{k}-{i}.png", out.getvalue()), (f"{k}-{i}.txt", b"a picture")):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    source = Source(name="folder", options={"path": str(tmp_path / "own")})
    spec = Data(sources=(source,), size=16, buckets=Buckets(step=4))
    return spec, 84


def train(spec: Data, out: Path, log: Path, steps: int, resume: bool) -> Any:
    with contextlib.redirect_stderr(io.StringIO()):
        return toy.run(out, Tones(log), data=data.build(spec), held_out=None, steps=steps, batch=BATCH, save_every=5, resume=resume)


def test_every_picture_once_an_epoch_through_five_kills(world: tuple[Data, int], tmp_path: Path) -> None:
    spec, _ = world
    dataset = data.build(spec)
    counts = dataset.sources[0].groups  # type: ignore[attr-defined]
    steps = EPOCHS * sum(counts) // BATCH
    train(spec, tmp_path / "twin", tmp_path / "twin.log", steps, False)
    log, draw = tmp_path / "run.log", random.Random(0)
    for number in range(5):
        child = _fork.Process(target=train, args=(spec, tmp_path / "run", log, steps, number > 0))
        child.start()
        known = _lines(log)
        struck = known + draw.randrange(4, steps // 6)
        while child.is_alive() and _lines(log) < struck:
            time.sleep(0.001)
        os.kill(child.pid or 0, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
    train(spec, tmp_path / "run", log, steps, True)
    assert toy.differences(tmp_path / "twin", tmp_path / "run", steps) == []
    assert state.newest(tmp_path / "run", verify=True).step == steps  # type: ignore[union-attr]

    seen = dict(map(json.loads, log.read_text().splitlines()))  # what was done again counts once
    assert len(log.read_text().splitlines()) > steps and sorted(seen) == list(range(steps))
    by_shape: dict[str, list[str]] = {}
    for step in range(steps):
        shape = {key.rpartition(":")[2] for key in seen[step]}
        assert len(shape) == 1
        by_shape.setdefault(shape.pop(), []).extend(seen[step])
    assert sorted({len(set(keys)) for keys in by_shape.values()}) == sorted(set(counts)) and len(by_shape) == 3
    for keys in by_shape.values():
        n = len(set(keys))
        for first in range(0, len(keys) - n + 1, n):  # each run of n of a shape is a permutation of its n pictures
            assert Counter(keys[first : first + n]) == Counter(set(keys))
    learnt = Counter(key for keys in seen.values() for key in keys)
    assert set(learnt) == {key for keys in by_shape.values() for key in keys} and max(learnt.values()) <= EPOCHS + 1


def _lines(log: Path) -> int:
    return log.read_bytes().count(b"\n") if log.exists() else 0
