"""Every solver against flows whose end is known: the right distribution, and the order of convergence that it claims."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.maths.exact import Mixture, moments, solve
from tests.maths.test_noise import cosine
from triptych.processes import solvers
from triptych.processes.edm import EDM
from triptych.processes.edm import Config as EDMConfig
from triptych.processes.noise import Schedule, betas, linear, uniform, variance_preserving
from triptych.processes.solvers import COLUMNS, SOLVERS, euler, heun

Solver = Callable[[Schedule, Tensor], Tensor]
GAUSS = Mixture()
TWO = Mixture(p=(0.3, 0.7), m=(-1.0, 0.8), S=(0.04, 0.1))


def start(count: int = 2000, seed: int = 0) -> Tensor:
    return torch.randn(1, count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def slope(steps: list[int], errors: list[float]) -> float:
    """Least squares of log error over log steps: minus the order."""
    x, y = torch.tensor(steps).double().log(), torch.tensor(errors).double().log()
    x, y = x - x.mean(), y - y.mean()
    return -float((x * y).sum() / (x * x).sum())


def errors(name: str, steps: list[int], high: float = 1.0, low: float = 0.0) -> list[float]:
    """Root mean square distance from the exact flow of N(m, S) between two times."""
    (m,), (S,), x = GAUSS.m, GAUSS.S, start()
    ends = {t: (1 - t) * m + math.sqrt((1 - t) ** 2 * S + t * t) * x for t in (high, low)}
    grids = [low + (high - low) * uniform(n) for n in steps]
    return [float((solve(SOLVERS[name](linear(), grid), GAUSS, ends[high]) - ends[low]).square().mean().sqrt()) for grid in grids]


@pytest.mark.parametrize(("name", "order"), [("euler", 1.0), ("heun", 2.0)])
def test_order(name: str, order: float) -> None:
    steps = [10, 20, 40, 80, 160]
    assert slope(steps, errors(name, steps)) == pytest.approx(order, abs=0.1)


def test_order_of_dpmpp_2m() -> None:
    """Order 2 where lambda is bounded, as the paper assumes. At t = 0 (and 1) steps in lambda never become small: h^2 log(1/h).

    Below some 40 steps the error changes its sign on the way, and a slope fitted there would say nothing.
    """
    inside = [80, 160, 320, 640]
    assert slope(inside, errors("dpmpp_2m", inside, high=0.98, low=0.02)) == pytest.approx(2.0, abs=0.1)
    whole = [20, 40, 80, 160]
    found = errors("dpmpp_2m", whole)
    assert 1.4 < slope(whole, found) < 2.1
    scaled = [e * n * n / math.log(n) for e, n in zip(found[1:], whole[1:], strict=True)]
    assert max(scaled) < 1.4 * min(scaled)
    assert found[0] < errors("euler", [20])[0] / 5  # at the default's number of steps it is worth its name


@pytest.mark.parametrize("name", SOLVERS)
def test_all_agree_on_a_mixture(name: str) -> None:
    x = start(500)
    fine = solve(heun(linear(), uniform(1000)), TWO, x)
    found = [float((solve(SOLVERS[name](linear(), uniform(n)), TWO, x) - fine).square().mean().sqrt()) for n in (10, 40, 160)]
    assert found[0] > 2.5 * found[1] > 6 * found[2]
    assert found[2] < (0.02 if name == "euler" else 0.001)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("data", [GAUSS, TWO], ids=["gauss", "mixture"])
def test_distribution(name: str, data: Mixture) -> None:
    """50,000 draws have the mean and variance of the data, and its share below zero."""
    n = 50_000
    drawn = solve(SOLVERS[name](linear(), uniform(50)), data, start(n, seed=1))
    true = data.draw(torch.Generator().manual_seed(2), n)
    bias = 0.02 if name == "euler" else 0.003  # what 50 steps leave
    assert abs(drawn.mean() - data.mean) < bias + 5 * math.sqrt(data.variance / n)
    assert abs(drawn.var() / data.variance - 1) < 2 * bias / math.sqrt(data.variance) + 5 * math.sqrt(2 / n)
    assert abs((drawn < 0).double().mean() - (true < 0).double().mean()) < bias + 5 * math.sqrt(0.25 / n)


@pytest.mark.parametrize("name", SOLVERS)
def test_another_schedule(name: str) -> None:
    """The tables know alpha and sigma only through the schedule."""
    data, x = Mixture(schedule=cosine()), start()
    found = [float((solve(SOLVERS[name](cosine(), uniform(n)), data, x) - data.flow(x)).square().mean().sqrt()) for n in (40, 160)]
    assert found[0] / found[1] > {"euler": 3.5, "heun": 14, "dpmpp_2m": 5}[name]
    assert found[1] < (0.005 if name == "euler" else 0.001)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_table(name: str, steps: int) -> None:
    table = SOLVERS[name](linear(), uniform(steps))
    assert table.shape == (2 * steps - 1 if name == "heun" else steps, len(COLUMNS)) and table.dtype == torch.float64
    assert table.isfinite().all()
    t, a, b, c, d, s, _, t_next = table.T[:8]
    assert t[0] == 1 and t_next[-1] == 0 and not s.any()
    torch.testing.assert_close(t[1:], t_next[:-1])  # every evaluation is where the one before it went
    # D = x0 and x = alpha x0 + sigma eps must lead to alpha' x0 + sigma' eps, whatever was kept was on the same line
    torch.testing.assert_close(a * t + d * kept(table), t_next)
    torch.testing.assert_close(a * (1 - t) + b + c + d * (1 - kept(table)), 1 - t_next)
    torch.testing.assert_close(table[-1, 1:5], torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64))  # the last word is D


def kept(table: Tensor) -> Tensor:
    """The time at which each row's anchor was kept."""
    at, out = table[0, 0], []
    for row in table:
        out.append(at)
        at = row[0] if row[6] else at
    return torch.stack(out)


def test_one_step_lands_on_the_mean() -> None:
    x = start()
    for solver in SOLVERS.values():
        torch.testing.assert_close(solve(solver(linear(), uniform(1)), GAUSS, x), torch.full_like(x, GAUSS.mean))


def test_euler_is_ddim_on_the_line() -> None:
    """x' = alpha' D + sigma' eps-hat, (Song et al., arXiv 2010.02502, eq. 12 without noise)."""
    grid = uniform(7, shift=2.0)
    t, t_next = grid[:-1], grid[1:]
    table = euler(linear(), grid)
    torch.testing.assert_close(table[:, 1], t_next / t)
    torch.testing.assert_close(table[:, 2], (1 - t_next) - (1 - t) * t_next / t)


# --- by the levels alone: discrete chains, continuous ones, and noise that only grows ------------------------------------------

ODE: dict[str, Solver] = {"ddim": solvers.ddim, "heun_edm": solvers.heun_edm, "dpmpp_2m": solvers.dpmpp_2m, "unipc": solvers.unipc}
SDE: dict[str, Solver] = {
    "ddim-eta": partial(solvers.ddim, eta=0.6), "fixed_small": solvers.ancestral,
    "fixed_large": partial(solvers.ancestral, variance="fixed_large"), "euler_a": solvers.euler_a, "dpmpp_2m_sde": solvers.dpmpp_2m_sde,
}  # fmt: skip
PATHS: dict[str, Schedule] = {
    "chain": variance_preserving(betas("linear", 1000, 1e-4, 0.02)), "zero": variance_preserving(betas("linear", 1000, 1e-4, 0.02), True),
    "cosine": cosine(), "ve": EDM(EDMConfig()).schedule,
}  # fmt: skip


def grid_of(path: str, steps: int) -> Tensor:
    """From noise to data: as many of the steps of a chain, or equal steps of t; EDM's end at sigma_min, and then 0."""
    if path == "ve":
        return torch.cat([torch.linspace(1, (0.002 / 80) ** (1 / 7), steps, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    high = 0.99 if path == "cosine" else 1.0  # cos(pi / 2) is 6e-17 there, neither 0 nor a number to divide by
    return torch.round(1000 * uniform(steps)) / 1000 if path in ("chain", "zero") else high * uniform(steps)


def drawn_noise(path: str, grid: Tensor, count: int) -> Tensor:
    """N(0, sigma^2) at the grid's first time: what is drawn from, with a mean that is not quite alpha m."""
    return start(count, seed=1) * PATHS[path].sigma(grid[0])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", [*ODE, *SDE])
@pytest.mark.parametrize("data", [GAUSS, TWO], ids=["gauss", "mixture"])
def test_distribution_by_levels(name: str, path: str, data: Mixture) -> None:
    """8,000 draws have the mean and variance of the data, and its share below zero, but for what 50 steps leave."""
    n, grid, data = 8000, grid_of(path, 50), replace(data, schedule=PATHS[path])
    drawn = solve((ODE | SDE)[name](PATHS[path], grid), data, drawn_noise(path, grid, n))
    below = (data.draw(torch.Generator().manual_seed(2), 50_000) < 0).double().mean()
    bias = 0.05 if name in SDE or name == "ddim" else 0.012
    assert abs(drawn.mean() - data.mean) < bias + 5 * math.sqrt(data.variance / n)
    assert abs(drawn.var() / data.variance - 1) < (6 if name in SDE else 3) * bias + 5 * math.sqrt(2 / n)
    assert abs((drawn < 0).double().mean() - below) < bias + 5 * math.sqrt(0.25 / n)


@pytest.mark.parametrize("path", ["cosine", "ve"])
@pytest.mark.parametrize(("name", "order"), [("ddim", 1.0), ("heun_edm", 2.0), ("dpmpp_2m", 2.0), ("unipc", 3.0)])
def test_order_by_levels(name: str, order: float, path: str) -> None:
    """Where lambda is bounded. UniPC's corrector lifts its predictor of order 2 to 3, as its theorem says."""
    high, low = (0.95, 0.05) if path == "cosine" else (0.8, 0.3)
    data, schedule, x, steps = replace(GAUSS, schedule=PATHS[path]), PATHS[path], start(300), [40, 80, 160, 320]
    (m,), (S,) = data.m, data.S
    ends = {}
    for t in (high, low):
        alpha, sigma = (f(torch.tensor(t, dtype=torch.float64)) for f in (schedule.alpha, schedule.sigma))
        ends[t] = alpha * m + (alpha**2 * S + sigma**2).sqrt() * x
    found = []
    for n in steps:
        out = solve(ODE[name](schedule, low + (high - low) * uniform(n)), data, ends[high])
        found.append(float((out - ends[low]).square().mean().sqrt()))
    assert found[-1] < 1e-2 and slope(steps, found) == pytest.approx(order, abs=0.15), found


@pytest.mark.parametrize("path", ["cosine", "ve"])
@pytest.mark.parametrize("name", SDE)
def test_weak_order(name: str, path: str) -> None:
    """The variance of what is drawn comes nearer by 1 / steps, with 2M's SDE form by its square: counted exactly, without chance."""
    data, schedule, steps = replace(GAUSS, schedule=PATHS[path]), PATHS[path], [40, 80, 160, 320]
    high, low = (torch.tensor(v, dtype=torch.float64) for v in ((0.95, 0.05) if path == "cosine" else (0.8, 0.3)))
    (m,), (S,) = data.m, data.S
    at = [(float(schedule.alpha(t)), float(schedule.alpha(t) ** 2 * S + schedule.sigma(t) ** 2)) for t in (high, low)]
    means, variances = [], []
    for n in steps:
        table = SDE[name](schedule, low + (high - low) * uniform(n))
        mean, variance = moments(table, data, at[0][0] * m, at[0][1])
        means.append(abs(mean - at[1][0] * m))
        variances.append(abs(variance / at[1][1] - 1))
    assert max(means) < 1e-9  # D is affine, and who begins at alpha m stays there
    order = 2 if name == "dpmpp_2m_sde" else 1
    assert variances[-1] < 0.03 and slope(steps, variances) == pytest.approx(order, abs=0.1), variances


def test_moments_are_those_of_draws() -> None:
    """The closed form that the orders rest on, against 100,000 draws."""
    for name, solver in (ODE | SDE).items():
        data = replace(GAUSS, schedule=cosine())
        table = solver(cosine(), 0.05 + 0.9 * uniform(7))
        mean, variance = moments(table, data, 0.3, 1.4)
        drawn = solve(table, data, 0.3 + math.sqrt(1.4) * start(100_000, seed=3))
        assert abs(float(drawn.mean()) - mean) < 5 * math.sqrt(variance / 100_000), name
        assert abs(float(drawn.var()) / variance - 1) < 5 * math.sqrt(2 / 100_000), name


@pytest.mark.parametrize("name", [*ODE, *SDE])
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_tables_by_levels(name: str, steps: int) -> None:
    """Also from noise alone: finite; every evaluation is where the one before it went; points of a line of x0 and eps stay on it."""
    x0, eps = torch.tensor([[1.3, -0.4]], dtype=torch.float64), torch.tensor([[0.2, 0.9]], dtype=torch.float64)
    for path in PATHS:
        table, schedule = (ODE | SDE)[name](PATHS[path], grid_of(path, steps)), PATHS[path]
        assert table.isfinite().all() and table.shape == (2 * steps - 1 if name == "heun_edm" else steps, len(COLUMNS))
        assert table[-1, 7] == 0 and table[-1, 5] == 0
        torch.testing.assert_close(table[1:, 0], table[:-1, 7])
        if name in ODE:  # D = x0 wherever it is asked: then x = alpha x0 + sigma eps all along
            t = table[0, 0]
            for upto in range(1, len(table) + 1):
                x = solve(table[:upto], lambda x, t_B: x0, schedule.alpha(t) * x0 + schedule.sigma(t) * eps)  # type: ignore[arg-type]
                to = table[upto - 1, 7]
                torch.testing.assert_close(x, schedule.alpha(to) * x0 + schedule.sigma(to) * eps, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", [*ODE, *SDE])
def test_one_step_from_noise_lands_on_the_mean(name: str) -> None:
    x, data = start(), replace(GAUSS, schedule=PATHS["zero"])
    torch.testing.assert_close(solve((ODE | SDE)[name](PATHS["zero"], uniform(1)), data, x), torch.full_like(x, GAUSS.mean))


@pytest.mark.parametrize("path", PATHS)
def test_what_is_the_same(path: str) -> None:
    """DDIM with eta 1, Euler ancestral and the chain are one thing; 2M's SDE form begins and ends as they do."""
    schedule, grid = PATHS[path], grid_of(path, 9)
    chain = solvers.ancestral(schedule, grid)
    torch.testing.assert_close(solvers.ddim(schedule, grid, eta=1.0), chain)
    torch.testing.assert_close(solvers.euler_a(schedule, grid), chain)
    torch.testing.assert_close(solvers.dpmpp_2m_sde(schedule, grid)[[0, -1]], chain[[0, -1]])
    assert not torch.allclose(solvers.dpmpp_2m_sde(schedule, grid), chain)


def test_which_data_each_variance_is_exact_for() -> None:
    """beta for x0 ~ N(0, 1), beta~ for a single point, whatever the stride (DDPM, section 3.2): all steps but the last, which is D."""
    schedule, grid = PATHS["chain"], torch.round(1000 * uniform(12)) / 1000
    for variance, S in (("fixed_large", 1.0), ("fixed_small", 1e-18)):
        data = Mixture(m=(0.0,), S=(S,), schedule=schedule)
        table = solvers.ancestral(schedule, grid, variance)
        begin = float(schedule.alpha(grid[0]) ** 2 * S + schedule.sigma(grid[0]) ** 2)
        for k in range(1, 12):
            truth = float(schedule.alpha(grid[k]) ** 2 * S + schedule.sigma(grid[k]) ** 2)
            assert moments(table[:k], data, 0.0, begin)[1] == pytest.approx(truth, rel=1e-9), (variance, k)
            other = moments(solvers.ancestral(schedule, grid, "fixed_small" if S == 1 else "fixed_large")[:k], data, 0.0, begin)[1]
            assert abs(other / truth - 1) > 1e-5


def test_the_learnt_variance_lies_between() -> None:
    """low and s of a learnt row are the deviations of the two fixed chains, and the share takes the logarithm from one to the other."""
    schedule, grid = PATHS["chain"], torch.round(1000 * uniform(12)) / 1000
    small, large, learnt = (solvers.ancestral(schedule, grid, v) for v in ("fixed_small", "fixed_large", "learned_range"))
    s, low = COLUMNS.index("s"), COLUMNS.index("low")
    assert torch.equal(learnt[:, low], small[:, s]) and torch.equal(learnt[:, s], large[:, s])
    blank, share = torch.zeros(12, 5, dtype=torch.float64), torch.linspace(0, 1, 5, dtype=torch.float64).expand(12, 5)
    x, *_ = solvers.advance(learnt, blank, blank, blank, blank, None, torch.ones_like(blank), share)
    expected = torch.lerp(small[:11, s].log()[:, None], large[:11, s].log()[:, None], share[:11])
    torch.testing.assert_close(x[:11].log(), expected)
    assert not x[11].any()
    with pytest.raises(KeyError):
        solvers.ancestral(schedule, grid, "learned")


def test_inversion_is_ddim_backwards() -> None:
    """Where eps is the same at all times both are exact, and one undoes the other; also from clean data up."""
    schedule, eps = PATHS["chain"], torch.tensor([[0.4]], dtype=torch.float64)

    def constant(x: Tensor, t_B: Tensor) -> Tensor:
        return (x - schedule.sigma(t_B) * eps) / schedule.alpha(t_B)

    there, grid = torch.tensor([[1.7]], dtype=torch.float64), torch.round(1000 * uniform(12)) / 1000
    clean = solve(solvers.ddim(schedule, grid), constant, there)  # type: ignore[arg-type]
    table = solvers.ddim_inversion(schedule, grid)
    torch.testing.assert_close(solve(table, constant, clean), there)  # type: ignore[arg-type]
    assert table[-1, 0] == 1 and table[0, 0] == grid[-2] and abs(float(clean - there)) > 0.1
