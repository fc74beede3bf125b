"""Noise: how much of it there is at time t, and what a network may be asked to say about it.

The conventions of the whole project stand here, once:

    t = 0 is data, t = 1 is noise.
    x_t = alpha(t) x0 + sigma(t) eps,   eps ~ N(0, 1)
    eps = (x_t - alpha x0) / sigma,     v = d x_t / dt = alpha'(t) x0 + sigma'(t) eps
    lambda(t) = log(alpha / sigma), half the logarithm of the signal-to-noise ratio: -inf at pure noise, +inf at data.
    guidance 1.0 = off.

A `Schedule` is the pair (alpha, sigma). `convert` turns any of the three targets x0, eps, v into any other: for a given x_t
each is an affine function of each. On the linear path of rectified flow v = eps - x0 and x0 = x_t - t v. Where alpha^2 + sigma^2 = 1
v is taken by the angle, not by t: v = alpha eps - sigma x0, so that it has the same size at all times.

A schedule of T steps (`tabled`) knows alpha and sigma at t = 1/T, 2/T, ... 1, and is clean at 0; what lies between is told by the
straight line of sigma / alpha. Step number n of the papers and of other libraries, 0 ... T - 1, is t = (n + 1) / T.

Shapes: x0, eps, v, x_t are [B, ...]; t is [B], float, in [0, 1].

Sources: Kingma et al., Variational Diffusion Models, arXiv 2107.00630 (alpha, sigma, lambda); Salimans & Ho, arXiv 2202.00512
(v on the cosine path); Liu et al., arXiv 2209.03003 (the linear path); Esser et al. (SD3), arXiv 2403.03206, eq. 23 (shift);
Ho et al., arXiv 2006.11239 (linear betas); Nichol & Dhariwal, arXiv 2102.09672, eq. 17 (cosine); Rombach et al., arXiv 2112.10752
(betas whose roots are linear); Lin et al., arXiv 2305.08891, algorithm 1 (zero terminal SNR).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Schedule", "Target", "betas", "linear", "shifted", "spread", "tabled", "uniform", "variance_preserving"]

Target = Literal["x0", "eps", "v"]
Curve = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """alpha(t), sigma(t) and what v is made of, their derivatives by t (or by the angle): functions of times of any shape, elementwise."""

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


def betas(name: str, steps: int, first: float, last: float, rescale: bool = False) -> Tensor:
    """The variance that each of T steps adds, float64 [T].

    linear: from `first` to `last`.  scaled_linear: their square roots are.  cosine: of alpha-bar, `first` and `last` play no part.
    rescale: times 1000 / T, so that fewer steps end as noisy (OpenAI's linear schedule does, diffusers' does not).
    Raises ValueError for another name, and for a variance out of 0..1.
    """
    rising = torch.linspace(0, 1, steps, dtype=torch.float64)
    if name == "cosine":
        t = torch.arange(steps + 1, dtype=torch.float64) / steps
        bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
    if name not in ("linear", "scaled_linear"):
        raise ValueError(f"beta_schedule = {name!r}: must be one of linear, scaled_linear, cosine")
    root = 0.5 if name == "scaled_linear" else 1.0
    scale = 1000 / steps if rescale else 1.0
    if not 0 < scale * first <= scale * last < 1:
        way = "raise num_timesteps, or set rescale = false" if rescale else "beta_start and beta_end lie in between"
        raise ValueError(f"betas from {scale * first:g} to {scale * last:g}: must rise, within 0..1; {way}")
    return scale * (first**root + (last**root - first**root) * rising) ** (1 / root)


def variance_preserving(betas_T: Tensor, zero_terminal_snr: bool = False) -> Schedule:
    """DDPM's path: alpha^2 = alpha-bar = prod (1 - beta), sigma^2 = 1 - alpha-bar.

    zero_terminal_snr: move and stretch alpha until the last step is noise alone.
    """
    alpha_T = torch.cumprod(1 - betas_T.double(), 0).sqrt()
    if zero_terminal_snr:
        alpha_T = (alpha_T - alpha_T[-1]) * alpha_T[0] / (alpha_T[0] - alpha_T[-1])
    return tabled(alpha_T, (1 - alpha_T**2).sqrt(), by_angle=True)


def tabled(alpha_T: Tensor, sigma_T: Tensor, by_angle: bool = False) -> Schedule:
    """A path known at T times. by_angle: alpha^2 + sigma^2 = 1, and v = alpha eps - sigma x0; else alpha stays 1, and v = eps."""
    T, zero = len(alpha_T), torch.zeros(1, dtype=torch.float64)
    alphas, sigmas = torch.cat([zero + 1, alpha_T.double()]), torch.cat([zero, sigma_T.double()])
    ratios = (sigmas / alphas).clamp(max=4096.0)  # finite also behind zero terminal SNR

    def at(table: Tensor, t: Tensor, between: Callable[[Tensor], Tensor]) -> Tensor:
        k = t.double() * T
        low, whole = k.floor().clamp(0, T - 1).long(), k.round().clamp(0, T).long()
        ratio = torch.lerp(ratios.to(t.device)[low], ratios.to(t.device)[low + 1], k - low)
        return torch.where((k - whole).abs() < 1e-3, table.to(t.device)[whole], between(ratio)).to(t.dtype)  # float32 knows k to 1e-4

    def alpha(t: Tensor) -> Tensor:
        return at(alphas, t, lambda ratio: (1 + ratio**2).rsqrt() if by_angle else torch.ones_like(ratio))

    def sigma(t: Tensor) -> Tensor:
        return at(sigmas, t, lambda ratio: ratio * (1 + ratio**2).rsqrt() if by_angle else ratio)

    if by_angle:
        return Schedule(alpha=alpha, sigma=sigma, dalpha=lambda t: -sigma(t), dsigma=alpha)
    return Schedule(alpha=alpha, sigma=sigma, dalpha=torch.zeros_like, dsigma=torch.ones_like)


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
