"""The conventions of `processes/noise.py`: which end is data, what the targets mean, where the grids lie."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from triptych.processes.noise import Schedule, betas, linear, shifted, tabled, uniform, variance_preserving

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


# --- schedules of T steps ---------------------------------------------------------------------------------------------------


def test_betas_by_definition() -> None:
    linear_T = betas("linear", 1000, 1e-4, 0.02)
    assert linear_T.dtype == torch.float64 and linear_T[0] == 1e-4 and float(linear_T[-1]) == pytest.approx(0.02, rel=1e-14)
    torch.testing.assert_close(linear_T.diff(), torch.full((999,), (0.02 - 1e-4) / 999, dtype=torch.float64))
    roots = betas("scaled_linear", 1000, 0.00085, 0.012).sqrt()
    torch.testing.assert_close(roots.diff(), torch.full((999,), (0.012**0.5 - 0.00085**0.5) / 999, dtype=torch.float64))
    for T in (100, 1000, 4000):  # times 1000 / T: fewer and larger, so that the end is as noisy
        torch.testing.assert_close(betas("linear", T, 1e-4, 0.02, rescale=True), betas("linear", T, 0.1 / T, 20 / T))
        assert float((1 - betas("linear", T, 1e-4, 0.02, rescale=True)).prod()) < 5e-5


def test_a_short_chain_does_not_end_in_noise() -> None:
    """A known trap: the betas of 1000 steps over 300 leave alpha-bar at 0.048, and pictures that begin in pure noise miss it."""
    for T, end in ((1000, 4.04e-5), (300, 0.048)):
        schedule = variance_preserving(betas("linear", T, 1e-4, 0.02))
        assert float(schedule.alpha(torch.ones(1)) ** 2) == pytest.approx(end, rel=0.01)


def test_cosine_betas() -> None:
    """alpha-bar = f(t) / f(0), f = cos^2((t + 0.008) / 1.008 pi / 2), until the cap of 0.999 (arXiv 2102.09672, eq. 17)."""
    found = betas("cosine", 1000, 0.0, 0.0)
    assert found[-1] == 0.999 and (found[:-1] < 0.999).all() and float(found[0]) == pytest.approx(4.128e-5, rel=1e-3)
    bar = torch.cumprod(1 - found, 0)
    f = torch.cos((torch.arange(1001, dtype=torch.float64) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(bar[:-1], (f[1:] / f[0])[:-1], atol=1e-12, rtol=1e-8)
    assert float(bar[499]) == pytest.approx(0.4938, abs=1e-3)  # half way: half of it


def test_wrong_betas() -> None:
    with pytest.raises(ValueError, match="beta_schedule = 'sigmoid': must be one of linear, scaled_linear, cosine"):
        betas("sigmoid", 10, 1e-4, 0.02)
    for first, last in ((0.0, 0.02), (0.3, 0.2), (0.1, 1.0), (-0.1, 0.2)):
        with pytest.raises(ValueError, match=f"betas from {first:g} to {last:g}: must rise, within 0..1"):
            betas("linear", 10, first, last)
    with pytest.raises(ValueError, match=r"to 2: .*raise num_timesteps"):
        betas("linear", 10, 1e-4, 0.02, rescale=True)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_variance_preserving(name: str, zero: bool) -> None:
    """alpha^2 + sigma^2 = 1 at every time; alpha-bar at the steps; clean at 0, and with zero terminal SNR noise alone at 1."""
    beta_T = betas(name, 50, 0.001, 0.2)
    schedule, k = variance_preserving(beta_T, zero), torch.arange(51, dtype=torch.float64) / 50
    root = torch.cumprod(1 - beta_T, 0).sqrt()
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1]) if zero else root  # arXiv 2305.08891, algorithm 1
    torch.testing.assert_close(schedule.alpha(k)[1:], expected, atol=1e-14, rtol=0)
    assert (
        schedule.alpha(k)[0] == 1 and schedule.sigma(k)[0] == 0 and (not zero or (schedule.alpha(k)[-1], schedule.sigma(k)[-1]) == (0, 1))
    )
    t = torch.linspace(0, 1, 777, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))
    assert (schedule.alpha(t).diff() < 0).all() and (schedule.sigma(t).diff() > 0).all()
    middle = (k[:-2] + k[1:-1]) / 2  # between two steps sigma / alpha is their mean
    ratio = schedule.sigma(k) / schedule.alpha(k)
    torch.testing.assert_close(schedule.sigma(middle) / schedule.alpha(middle), (ratio[:-2] + ratio[1:-1]) / 2)
    assert torch.equal(schedule.alpha(k.float()), schedule.alpha(k).float())  # float32 finds every step


@pytest.mark.parametrize("zero", [False, True])
def test_v_by_the_angle(triple: tuple[Tensor, Tensor, Tensor], zero: bool) -> None:
    """v = alpha eps - sigma x0 has one size at all times, and says x0 = alpha x - sigma v, eps = sigma x + alpha v, also at alpha = 0."""
    x0, eps, _ = triple
    schedule, t = variance_preserving(betas("linear", 64, 0.001, 0.3), zero), torch.arange(1, 65, dtype=torch.float64) / 64
    alpha, sigma = (f(t).view(-1, 1, 1) for f in (schedule.alpha, schedule.sigma))
    v, x_t = schedule.velocity(x0, t, eps), schedule.corrupt(x0, t, eps)
    torch.testing.assert_close(v, alpha * eps - sigma * x0)
    for to, truth in (("x0", x0), ("eps", eps)):
        torch.testing.assert_close(schedule.convert(v, x_t, t, source="v", to=to), truth)  # type: ignore[arg-type]
    torch.testing.assert_close(v.square() + x_t.square(), x0.square() + eps.square())
    for source, truth in (("x0", x0), ("eps", eps)):
        found = schedule.convert(truth, x_t, t, source=source, to="v")  # type: ignore[arg-type]
        known = slice(None, 63 if zero and source == "eps" else 64)  # eps says nothing of x0 where alpha = 0
        torch.testing.assert_close(found[known], v[known])


def test_noise_that_only_grows() -> None:
    """A table whose alpha stays 1: v is eps, and nothing shrinks."""
    sigma_T, t = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64), torch.tensor([1, 2, 3, 1.5], dtype=torch.float64) / 3
    schedule = tabled(torch.ones(3), sigma_T)
    assert schedule.alpha(t).tolist() == [1.0] * 4
    torch.testing.assert_close(schedule.sigma(t), torch.tensor([0.1, 1.0, 10.0, 0.55], dtype=torch.float64))
    x0, eps = torch.randn(2, 4, 5, dtype=torch.float64)
    assert torch.equal(schedule.velocity(x0, t, eps), eps)
    torch.testing.assert_close(schedule.convert(eps, schedule.corrupt(x0, t, eps), t, source="v", to="x0"), x0)
