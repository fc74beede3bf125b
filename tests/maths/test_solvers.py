"""Every solver against flows whose end is known: the right distribution, and the order of convergence that it claims."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.maths.exact import Mixture, solve
from tests.maths.test_noise import cosine
from triptych.processes.noise import linear, uniform
from triptych.processes.solvers import COLUMNS, SOLVERS, euler, heun

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
    t, a, b, c, d, s, _, t_next = table.T
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
