"""Steps that are not finite are skipped and counted; ten in a row are a stop; nothing that is not finite is ever saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training import toy
from triptych.contracts import Batch, Rng
from triptych.training import Diverged, state


def weights(out: Path) -> dict[str, torch.Tensor]:
    found = state.newest(out)
    assert found is not None
    return found.tensors("weights")


def test_a_skipped_step_is_counted_and_changes_no_weight(tmp_path: Path) -> None:
    result = toy.run(tmp_path / "a", toy.Toy(poison=[4, 7]), steps=8, save_every=1)
    assert result.skipped == 2 and result.reason == "finished"
    skipped = [line for line in toy.metrics(tmp_path / "a") if "skipped" in line]
    assert [(line["step"], line["loss"], line["skipped"]) for line in skipped] == [(5, None, 1), (8, None, 2)]
    before, after = (state.complete(tmp_path / "a")[i].tensors("weights") for i in (1, 0))
    assert all(before[k].equal(after[k]) for k in before if "norm" not in k)


def test_ten_in_a_row_are_a_clear_stop_and_resume_counts_on(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"10 steps in a row .* up to step 16"):
        toy.run(tmp_path, toy.Toy(poison=range(6, 40)), save_every=8)
    assert state.newest(tmp_path).facts["in_a_row"] == 2  # type: ignore[union-attr]
    with pytest.raises(Diverged, match="up to step 16"):
        toy.run(tmp_path, toy.Toy(poison=range(6, 40)), save_every=8, resume=True)
    assert all(t.isfinite().all() for t in weights(tmp_path).values() if t.is_floating_point())


class Exploding(toy.Toy):
    """Finite losses and gradients, and yet a weight that overflows."""

    def after_step(self, phase: str, step: int) -> None:
        if step == 6:
            with torch.no_grad():
                self.modules["generator"].last.bias[0] = float("inf")  # type: ignore[union-attr,index]


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"generator\.last\.bias is not finite at step 7"):
        toy.run(tmp_path, Exploding(), save_every=7, steps=7)
    assert state.newest(tmp_path) is None


class BadGradient(toy.Toy):
    """A finite loss whose gradient is not."""

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict:
        out = super().losses(batch, phase, step, rng)
        weight = self.modules["generator"].first.weight  # type: ignore[union-attr]
        bent = (weight - weight.detach()).square().sum().sqrt()  # type: ignore[operator]  # 0, with a slope of 0 / 0
        return out | {"loss": out["loss"] + bent} if step == 3 else out


def test_a_gradient_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    assert toy.run(tmp_path, BadGradient(), steps=6).skipped == 1
    assert all(t.isfinite().all() for t in weights(tmp_path).values() if t.is_floating_point())
