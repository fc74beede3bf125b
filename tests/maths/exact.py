"""Denoisers that know the truth, for data whose distribution is known: every number here is a closed form.

The data: every element of x0 is drawn alone from a mixture of normals, sum_k p_k N(m_k, S_k). With one component the flow of
the ODE is closed too: the standardised x, (x_t - alpha m) / sqrt(alpha^2 S + sigma^2), does not change along it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from triptych.contracts import Condition
from triptych.processes.noise import Schedule, linear, spread
from triptych.processes.solvers import COLUMNS, advance, posterior


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """E[x0 | x_t] for sum_k p_k N(m_k, S_k), elementwise."""

    p: tuple[float, ...] = (1.0,)
    m: tuple[float, ...] = (0.7,)
    S: tuple[float, ...] = (0.25,)
    schedule: Schedule = field(default_factory=linear)

    def __call__(self, x: Tensor, t_B: Tensor) -> Tensor:
        t = spread(t_B, x).unsqueeze(-1)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        p, m, S = (torch.tensor(v, dtype=x.dtype) for v in (self.p, self.m, self.S))
        total = alpha**2 * S + sigma**2  # the variance of x_t in each component
        away = x.unsqueeze(-1) - alpha * m
        share = torch.softmax(p.log() - total.log() / 2 - away**2 / (2 * total), dim=-1)
        return (share * (m + S * alpha / total * away)).sum(-1)

    def flow(self, x_1: Tensor) -> Tensor:
        """Where the ODE takes pure noise: of one component only."""
        (m,), (S,) = self.m, self.S
        return m + S**0.5 * x_1

    def draw(self, generator: torch.Generator, *size: int) -> Tensor:
        which = torch.multinomial(torch.tensor(self.p), torch.Size(size).numel(), replacement=True, generator=generator).view(size)
        return torch.tensor(self.m)[which] + torch.tensor(self.S).sqrt()[which] * torch.randn(size, generator=generator)

    @property
    def mean(self) -> float:
        return sum(p * m for p, m in zip(self.p, self.m, strict=True))

    @property
    def variance(self) -> float:
        return sum(p * (S + m * m) for p, m, S in zip(self.p, self.m, self.S, strict=True)) - self.mean**2


def solve(table: Tensor, D: Mixture, x: Tensor) -> Tensor:
    """Run one table for all rows, in x's precision; noise, where there is any, from one generator."""
    D_1, anchor, D_2, drawn = torch.zeros_like(x), x, torch.zeros_like(x), torch.Generator().manual_seed(17)
    for row in table:
        rows = row.expand(len(x), -1)
        fresh = torch.randn(x.shape, dtype=x.dtype, generator=drawn) if row[5] else None
        x, D_1, anchor, D_2 = advance(rows, x, D(x, rows[:, 0]), D_1, anchor, D_2, fresh)
    return x


def moments(table: Tensor, data: Mixture, mean: float, variance: float) -> tuple[float, float]:
    """Exact mean and variance of what a table makes of x ~ N(mean, variance), for one component: there D is affine, and so is all.

    Carried along: mean and covariance of (x, D_1, anchor, D_2).
    """
    (m,), (S,), eye = data.m, data.S, torch.eye(4, dtype=torch.float64)
    total = torch.tensor([mean, 0, mean, 0], dtype=torch.float64)
    seen = torch.zeros(4, dtype=torch.float64)
    seen[0] = seen[2] = 1
    cov = variance * torch.outer(seen, seen)
    for row in table.double():
        of = dict(zip(COLUMNS, row, strict=True))
        alpha, sigma = data.schedule.alpha(of["t"]), data.schedule.sigma(of["t"])
        gain = alpha * S / (alpha**2 * S + sigma**2)
        D, h = gain * eye[0], m - gain * alpha * m
        x = of["a"] * eye[0] + of["b"] * D + of["c"] * eye[1] + of["d"] * eye[2] + of["e"] * eye[3]
        anchor = of["A"] * eye[0] + of["B"] * D + of["C"] * eye[1] + of["E"] * eye[2] + of["F"] * eye[3]
        zero = torch.zeros((), dtype=torch.float64)
        kept = bool(of["keep"])
        M = torch.stack([x, D, anchor, eye[1]] if kept else [x, eye[1], eye[2], eye[3]])
        shift = torch.stack([of["b"] * h, h, of["B"] * h, zero] if kept else [of["b"] * h, zero, zero, zero])
        total, cov = M @ total + shift, M @ cov @ M.T + of["s"] ** 2 * torch.outer(eye[0], eye[0])
    return float(total[0]), float(cov[0, 0])


class Toy(nn.Module):
    """A network with the role of a denoiser: the exact answer about N(label, S), in any target; it counts what it evaluates."""

    role = "denoiser"

    def __init__(self, target: str = "x0", S: float = 0.25, schedule: Schedule | None = None) -> None:
        super().__init__()
        self.target, self.S, self.schedule = target, S, schedule or linear()
        self.rows: list[int] = []
        self.prepared = 0

    def prepare(self, cond: Condition) -> Condition:
        self.prepared += 1
        return cond

    def forward(self, x_t: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        assert cond.label_B is not None
        self.rows.append(len(x_t))
        t_B, m = clock_B / 1000, spread(cond.label_B, x_t)
        alpha, sigma = self.schedule.alpha(spread(t_B, x_t)), self.schedule.sigma(spread(t_B, x_t))
        gain = alpha * self.S / (alpha**2 * self.S + sigma**2)
        D = m + gain * (x_t - alpha * m)
        if self.target == "v":  # E[v | x_t] without dividing by sigma: eps = (x - alpha m - alpha (x0 - m)) / sigma
            total = alpha**2 * self.S + sigma**2
            eps = sigma / total * (x_t - alpha * m)
            return self.schedule.dalpha(spread(t_B, x_t)) * D + self.schedule.dsigma(spread(t_B, x_t)) * eps
        return D


class Knows(nn.Module):
    """The exact answer about N(label, S) in the words of a process, whatever they are; with `share`, on the variance too (-1..1)."""

    role = "denoiser"

    def __init__(self, process: Any, S: float = 0.25, share: float | None = None) -> None:
        super().__init__()
        self.process, self.S, self.share = process, S, share
        self.rows: list[int] = []

    def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        self.rows.append(len(x))
        assert cond.label_B is not None
        process, m = self.process, spread(cond.label_B, x)
        if hasattr(process, "scalings"):  # the network stands within: D = c_skip y + c_out F(c_in y)
            c_skip, c_out, c_in = (spread(c, x) for c in process.scalings(clock_B))
            sigma, y = spread(torch.exp(4 * clock_B), x), x / c_in
            return (m + self.S / (self.S + sigma**2) * (y - m) - c_skip * y) / c_out
        t_B = process.time(clock_B)
        alpha, sigma = process.schedule.alpha(spread(t_B, x)), process.schedule.sigma(spread(t_B, x))
        D = m + alpha * self.S / (alpha**2 * self.S + sigma**2) * (x - alpha * m)
        out = said_of(process, D, x, t_B)
        return out if self.share is None else torch.cat([out, torch.full_like(out, self.share)], dim=1)


def said_of(process: Any, D: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
    """What a network of DDPM's has to say so that it is understood as D."""
    target = process.config.target
    if target in ("mean", "previous"):
        before = (t_B.double() - 1 / process.config.num_timesteps).clamp(min=0)
        of_x0, of_x, *_ = (spread(part, x_t) for part in posterior(process.schedule, t_B.double(), before))
        return of_x0 * D + of_x * x_t
    return process.schedule.convert(D, x_t, t_B, source="x0", to=target)


def labels(*values: int) -> Condition:
    return Condition(label_B=torch.tensor(values))
