"""What is compiled learns what is learnt without: the layers that once did not, and the trainer's own look at the first step."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training import toy
from tests.training.toy import Lines
from triptych.contracts import Batch
from triptych.layers.conv import Enlarge, ResBlock

compiler = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler: sudo apt-get install g++")


@compiler
def test_gradients_pass_through_compiled_enlarging() -> None:
    """In bf16 on a CPU torch 2.13's compiler gives nearest upsampling a gradient of zeros, and all in front of it stands still."""
    torch.manual_seed(0)
    network, x = nn.Sequential(ResBlock(8, 8, 4), Enlarge(8), ResBlock(8, 4, 4)), torch.randn(2, 8, 8, 8)
    norms = []
    for forward in (network, torch.compile(network, dynamic=False)):
        network.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            y = forward(x)
        y.float().square().mean().backward()
        norms.append(torch.stack([p.grad.norm() for p in network.parameters()]))  # type: ignore[union-attr]
    torch.testing.assert_close(norms[1], norms[0], rtol=0.05, atol=1e-4)


class Cut(toy.Denoiser):
    """Wrong where it is compiled, and nowhere else: nothing in front of its last layer learns."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x.flatten(1)))
        return self.last(h.detach() if torch.compiler.is_compiling() else h).view_as(x)


@compiler
def test_compiled_code_that_is_wrong_is_found_and_left(tmp_path: Path) -> None:
    def task() -> toy.Toy:
        made = toy.Toy()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made.modules["generator"] = Cut()
        return made

    report = Lines()
    toy.run(tmp_path / "a", task(), steps=5, compile=True, report=report)
    assert any("went wrong" in line and "gets no gradient" in line for line in report.lines), report.lines
    toy.run(tmp_path / "b", task(), steps=5, compile=False)
    losses = [[line["loss"] for line in toy.metrics(tmp_path / name)] for name in ("a", "b")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3), "no step was lost, and none made twice"


class Shapes(toy.Pixels):
    """Batches of several shapes, in turn."""

    def __init__(self, count: int) -> None:
        self.shapes, self.sides = count, ((8, 8), (4, 16), (16, 4))

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        batch = super().batch(seed, step, batch_size)
        assert batch.images_BCHW is not None
        return replace(batch, images_BCHW=batch.images_BCHW.reshape(batch_size, 3, *self.sides[step % len(self.sides)]))


@compiler
def test_every_shape_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own limit, after which it compiles no more, is lower than the number of shapes here; another order after a kill would
    compile others, and learn others."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    counters = torch._dynamo.utils.counters
    counters.clear()
    report = Lines()
    toy.run(tmp_path / "a", toy.Toy(), data=Shapes(3), steps=6, compile=True, report=report)
    assert not any("compile" in line for line in report.lines), report.lines
    assert counters["stats"]["unique_graphs"] >= 3


def test_too_many_shapes_are_not_compiled(tmp_path: Path) -> None:
    report = Lines()
    toy.run(tmp_path / "a", toy.Toy(), data=Shapes(9), steps=2, compile=True, report=report)
    assert any(line.startswith("not compiled: pictures come in 9 shapes") for line in report.lines), report.lines
