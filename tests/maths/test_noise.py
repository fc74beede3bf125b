"""The conventions of `processes/noise.py`: which end is data, what the targets mean, where the grids lie."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from triptych.processes.noise import Schedule, linear, shifted, uniform

TARGETS = ("x0", "eps", "v")


def cosine() -> Schedule:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2): another path, so that nothing rests on the linear one."""
    w = math.pi / 2
    return Schedule(
        alpha=lambda t: torch.cos(w * t), sigma=lambda t: torch.sin(w * t),
        dalpha=lambda t: -w * torch.sin(w * t), dsigma=lambda t: w * torch.cos(w * t),
    )  # fmt: skip


@pytest.fixture
def triple() -> tuple[Tensor, Tensor, Tensor]:
    """x0, eps and times of 64 rows."""
    g = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(64, 3, 4, generator=g, dtype=torch.float64) for _ in range(2))
    return x0, eps, torch.linspace(0.01, 0.99, 64, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [linear(), cosine()], ids=["linear", "cosine"])
class TestEverySchedule:
    def test_ends(self, schedule: Schedule, triple: tuple[Tensor, Tensor, Tensor]) -> None:
        x0, eps, _ = triple
        zero, one = torch.zeros(64, dtype=torch.float64), torch.ones(64, dtype=torch.float64)
        assert torch.equal(schedule.corrupt(x0, zero, eps), x0)
        torch.testing.assert_close(schedule.corrupt(x0, one, eps), eps)

    def test_velocity_is_the_derivative(self, schedule: Schedule, triple: tuple[Tensor, Tensor, Tensor]) -> None:
        x0, eps, t = triple
        _, v = torch.autograd.functional.jvp(lambda at: schedule.corrupt(x0, at, eps), t, torch.ones_like(t))
        torch.testing.assert_close(schedule.velocity(x0, t, eps), v)

    @pytest.mark.parametrize("source", TARGETS)
    @pytest.mark.parametrize("to", TARGETS)
    def test_targets_say_the_same(self, schedule: Schedule, triple: tuple[Tensor, Tensor, Tensor], source: str, to: str) -> None:
        x0, eps, t = triple
        x_t = schedule.corrupt(x0, t, eps)
        true = {"x0": x0, "eps": eps, "v": schedule.velocity(x0, t, eps)}
        torch.testing.assert_close(schedule.convert(true[source], x_t, t, source=source, to=to), true[to])  # type: ignore[arg-type]
        wrong = torch.randn_like(x_t)  # and for an answer that is not the truth, there and back
        there = schedule.convert(wrong, x_t, t, source=source, to=to)  # type: ignore[arg-type]
        torch.testing.assert_close(schedule.convert(there, x_t, t, source=to, to=source), wrong)  # type: ignore[arg-type]

    def test_lambda(self, schedule: Schedule, triple: tuple[Tensor, Tensor, Tensor]) -> None:
        t = triple[2]
        torch.testing.assert_close(schedule.lam(t), torch.log(schedule.alpha(t) / schedule.sigma(t)))
        assert (schedule.lam(t).diff() < 0).all()
        assert schedule.lam(torch.zeros(1)) == math.inf


def test_linear_path(triple: tuple[Tensor, Tensor, Tensor]) -> None:
    x0, eps, t = triple
    assert torch.equal(linear().velocity(x0, t, eps), eps - x0)
    assert linear().lam(torch.ones(1)) == -math.inf
    at = t.view(-1, 1, 1)
    torch.testing.assert_close(linear().corrupt(x0, t, eps), (1 - at) * x0 + at * eps)


def test_velocity_answers_at_both_ends(triple: tuple[Tensor, Tensor, Tensor]) -> None:
    """x0 and eps are blind at one end each; v sees everywhere."""
    x0, eps, _ = triple
    for end in (0.0, 1.0):
        t = torch.full((64,), end, dtype=torch.float64)
        x_t, v = linear().corrupt(x0, t, eps), eps - x0
        torch.testing.assert_close(linear().convert(v, x_t, t, source="v", to="x0"), x0)
        torch.testing.assert_close(linear().convert(v, x_t, t, source="v", to="eps"), eps)


def test_moments_of_corrupted_data() -> None:
    """E x_t = alpha m, Var x_t = alpha^2 S + sigma^2, to five standard errors."""
    g, n = torch.Generator().manual_seed(1), 200_000
    x0 = 0.7 + 0.5 * torch.randn(3, n, generator=g, dtype=torch.float64)
    x_t = linear().corrupt(x0, torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), torch.randn(3, n, generator=g, dtype=torch.float64))
    for row, t in zip(x_t, (0.1, 0.5, 0.9), strict=True):
        variance = (1 - t) ** 2 * 0.25 + t**2
        assert abs(row.mean() - (1 - t) * 0.7) < 5 * (variance / n) ** 0.5
        assert abs(row.var() - variance) < 5 * variance * (2 / n) ** 0.5


def test_grids() -> None:
    grid = uniform(4)
    assert grid.dtype == torch.float64
    assert grid.tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert uniform(4, start=0.5).tolist() == [0.5, 0.375, 0.25, 0.125, 0.0]
    assert uniform(1).tolist() == [1.0, 0.0]
    for shift in (0.3, 1.0, 3.0):
        bent = uniform(10, shift)
        assert bent[0] == 1 and bent[-1] == 0 and (bent.diff() < 0).all()
        torch.testing.assert_close(linear().lam(bent[1:-1]), linear().lam(uniform(10)[1:-1]) - math.log(shift))  # SD3, eq. 23
    assert shifted(torch.tensor(0.5), 3.0) == 0.75
