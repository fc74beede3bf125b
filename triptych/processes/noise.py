"""Noise: how much of it there is at time t, and what a network may be asked to say about it.

The conventions of the whole project stand here, once:

    t = 0 is data, t = 1 is noise.
    x_t = alpha(t) x0 + sigma(t) eps,   eps ~ N(0, 1)
    eps = (x_t - alpha x0) / sigma,     v = d x_t / dt = alpha'(t) x0 + sigma'(t) eps
    lambda(t) = log(alpha / sigma), half the logarithm of the signal-to-noise ratio: -inf at pure noise, +inf at data.
    guidance 1.0 = off.

A `Schedule` is the pair (alpha, sigma). `convert` turns any of the three targets x0, eps, v into any other: for a given x_t
each is an affine function of each. On the linear path of rectified flow v = eps - x0 and x0 = x_t - t v.

Shapes: x0, eps, v, x_t are [B, ...]; t is [B], float, in [0, 1].

Sources: Kingma et al., Variational Diffusion Models, arXiv 2107.00630 (alpha, sigma, lambda); Salimans & Ho, arXiv 2202.00512
(v on the cosine path); Liu et al., arXiv 2209.03003 (the linear path); Esser et al. (SD3), arXiv 2403.03206, eq. 23 (shift).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Schedule", "Target", "linear", "shifted", "spread", "uniform"]

Target = Literal["x0", "eps", "v"]
Curve = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """alpha(t), sigma(t) and their derivatives by t: functions of a tensor of times, of any shape, elementwise."""

    alpha: Curve
    sigma: Curve
    dalpha: Curve
    dsigma: Curve

    def lam(self, t: Tensor) -> Tensor:
        """lambda(t) = log(alpha / sigma), in [-inf, inf]."""
        return torch.log(self.alpha(t)) - torch.log(self.sigma(t))

    def corrupt(self, x0: Tensor, t_B: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha x0 + sigma eps."""
        t = spread(t_B, x0)
        return self.alpha(t) * x0 + self.sigma(t) * eps

    def velocity(self, x0: Tensor, t_B: Tensor, eps: Tensor) -> Tensor:
        """v = alpha' x0 + sigma' eps."""
        t = spread(t_B, x0)
        return self.dalpha(t) * x0 + self.dsigma(t) * eps

    def convert(self, value: Tensor, x_t: Tensor, t_B: Tensor, *, source: Target, to: Target) -> Tensor:
        """What `value` (a `source`, at x_t and t) says about another target. Exact wherever the question has an answer.

        eps says nothing of x0 where alpha = 0 (linear: t = 1), and x0 nothing of eps or v where sigma = 0 (t = 0): the
        result there is inf or nan.
        """
        if source == to:
            return value
        t = spread(t_B, x_t)
        alpha, sigma, dalpha, dsigma = self.alpha(t), self.sigma(t), self.dalpha(t), self.dsigma(t)
        if source == "v":  # two equations, x_t and v, in x0 and eps: Cramer's rule
            det = alpha * dsigma - sigma * dalpha
            return (dsigma * x_t - sigma * value) / det if to == "x0" else (alpha * value - dalpha * x_t) / det
        if source == "x0":
            x0, eps = value, (x_t - alpha * value) / sigma
        else:
            x0, eps = (x_t - sigma * value) / alpha, value
        return {"x0": lambda: x0, "eps": lambda: eps, "v": lambda: dalpha * x0 + dsigma * eps}[to]()


def linear() -> Schedule:
    """Rectified flow: alpha = 1 - t, sigma = t: a straight line from data to noise (arXiv 2209.03003)."""
    return Schedule(alpha=lambda t: 1 - t, sigma=lambda t: t, dalpha=lambda t: -torch.ones_like(t), dsigma=torch.ones_like)


def shifted(t: Tensor, shift: float) -> Tensor:
    """SD3's shift t' = s t / (1 + (s - 1) t): s > 1 moves times towards the noise; 0 and 1 stay (arXiv 2403.03206, eq. 23)."""
    return shift * t / (shift * t + (1 - t))  # in this form 1 stays exactly 1


def uniform(steps: int, shift: float = 1.0, start: float = 1.0) -> Tensor:
    """A time grid of `steps` steps from `start` down to 0: float64 [steps + 1]; equal steps, then shifted, then scaled."""
    assert steps >= 1 and shift > 0 and 0 < start <= 1, (steps, shift, start)
    return start * shifted(torch.arange(steps, -1, -1, dtype=torch.float64) / steps, shift)


def spread(t_B: Tensor, like: Tensor) -> Tensor:
    """[B] -> [B, 1, ...], to multiply with `like`, on its device and in its precision."""
    return t_B.to(like.device, like.dtype).view(-1, *[1] * (like.ndim - 1))
