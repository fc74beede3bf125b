"""Solvers of the probability-flow ODE, each a table of coefficients.

With D(x, t) = E[x0 | x_t = x] (the denoised estimate, whatever the network's own target is) a diffusion's ODE is

    dx/dt = p x + q D(x, t),      p = sigma' / sigma,      q = alpha' - alpha p,

linear in x and D. So every linear one-step or multistep method, of any schedule, is a list of rows, one row an evaluation:

    x_next = a x + b D + c D_prev + d x_anchor + s noise

The table is float64 [K, 8], K evaluations, with the columns of `COLUMNS`:

    t       the time at which D is evaluated
    a b     of x and of the fresh D
    c d     of D_prev and x_anchor, which earlier rows kept
    s       of fresh unit-normal noise (0 everywhere: an ODE)
    keep    1: this row's x and D become x_anchor and D_prev for the rows after it
    t_next  the time of x_next

Because a row says all there is to say, rows of a batch may stand at different steps of different solvers of different
lengths and still advance together, in one network evaluation: `advance`.

A grid is float64, strictly falling, from the starting time to 0 (`noise.uniform`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from triptych.processes.noise import Schedule, spread

__all__ = ["COLUMNS", "SOLVERS", "advance", "dpmpp_2m", "euler", "heun"]

COLUMNS = ("t", "a", "b", "c", "d", "s", "keep", "t_next")


def euler(schedule: Schedule, grid: Tensor) -> Tensor:
    """x' = x + h v, first order, one evaluation a step. On the linear path this is DDIM: x' = (t'/t) x + (1 - t'/t) D."""
    t, t_next, p, q = _ode(schedule, grid)
    h = t_next - t
    return _table(t=t, a=1 + h * p, b=h * q, keep=torch.ones_like(t), t_next=t_next)


def heun(schedule: Schedule, grid: Tensor) -> Tensor:
    """The trapezoid with Euler's step as its guess: second order, two evaluations a step, the last step Euler's (arXiv 2206.00364).

        x~ = x + h v(x, t),       x' = x + h/2 (v(x, t) + v(x~, t'))

    The second row finds x and D(x, t) as anchor and D_prev, and the guess x~ as its x.
    """
    t, t_next, p, q = _ode(schedule, grid)
    guess = euler(schedule, grid)
    half = (t_next - t)[:-1] / 2
    mend = _table(
        t=t_next[:-1], a=half * p[1:], b=half * q[1:], c=half * q[:-1], d=1 + half * p[:-1], t_next=t_next[:-1],
    )  # fmt: skip
    pairs = torch.stack([guess[:-1], mend], dim=1).flatten(0, 1)
    return torch.cat([pairs, guess[-1:]])


def dpmpp_2m(schedule: Schedule, grid: Tensor) -> Tensor:
    """DPM-Solver++ (2M), data prediction: second order, one evaluation a step (arXiv 2211.01095, algorithm 2).

        h = lambda' - lambda,   w = h / (2 h_before)
        x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) ((1 + w) D - w D_prev)

    First and last step are of first order (w = 0): nothing came before the one, and the other's h is infinite. From pure
    noise (alpha = 0) the first h is infinite too, and the second step's w is its limit, 0. Order 2 holds for bounded lambda;
    on a grid uniform in t down to 0, lambda's steps near the ends never become small, and the error is h^2 log(1/h).
    """
    t, t_next = _times(grid)
    alpha, sigma, lam = schedule.alpha(grid), schedule.sigma(grid), schedule.lam(grid)
    a = sigma[1:] / sigma[:-1]
    base = alpha[1:] - alpha[:-1] * a  # = -alpha' (exp(-h) - 1), also where lambda is infinite
    h = lam[1:] - lam[:-1]
    w = torch.zeros_like(h)
    w[1:-1] = h[1:-1] / (2 * h[:-2])
    return _table(t=t, a=a, b=base * (1 + w), c=-base * w, keep=torch.ones_like(t), t_next=t_next)


SOLVERS: dict[str, Callable[[Schedule, Tensor], Tensor]] = {"dpmpp_2m": dpmpp_2m, "euler": euler, "heun": heun}


def advance(
    rows_B8: Tensor, x: Tensor, D: Tensor, D_prev: Tensor, anchor: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """One evaluation's update: (x_next, D_prev, anchor), each [B, ...]. Every row of the batch follows its own table row."""
    of = {name: spread(column, x) for name, column in zip(COLUMNS, rows_B8.unbind(1), strict=True)}
    x_next = of["a"] * x + of["b"] * D + of["c"] * D_prev + of["d"] * anchor
    if noise is not None:
        x_next = x_next + of["s"] * noise
    keep = of["keep"] > 0
    return x_next, torch.where(keep, D, D_prev), torch.where(keep, x, anchor)


def _times(grid: Tensor) -> tuple[Tensor, Tensor]:
    assert grid.dtype == torch.float64 and grid.ndim == 1 and len(grid) > 1 and bool((grid.diff() < 0).all()), grid
    return grid[:-1], grid[1:]


def _ode(schedule: Schedule, grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """t, t_next, and p, q of dx/dt = p x + q D at t."""
    t, t_next = _times(grid)
    p = schedule.dsigma(t) / schedule.sigma(t)
    return t, t_next, p, schedule.dalpha(t) - schedule.alpha(t) * p


def _table(**columns: Tensor) -> Tensor:
    zero = torch.zeros_like(columns["t"])
    return torch.stack([columns.get(name, zero) for name in COLUMNS], dim=1)
