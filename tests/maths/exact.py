"""Denoisers that know the truth, for data whose distribution is known: every number here is a closed form.

The data: every element of x0 is drawn alone from a mixture of normals, sum_k p_k N(m_k, S_k). With one component the flow of
the ODE is closed too: the standardised x, (x_t - alpha m) / sqrt(alpha^2 S + sigma^2), does not change along it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from triptych.contracts import Condition
from triptych.processes.noise import Schedule, linear, spread
from triptych.processes.solvers import advance


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
    """Run one table for all rows, in x's precision."""
    D_prev, anchor = torch.zeros_like(x), x
    for row in table:
        rows = row.expand(len(x), -1)
        x, D_prev, anchor = advance(rows, x, D(x, rows[:, 0]), D_prev, anchor)
    return x


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


def labels(*values: int) -> Condition:
    return Condition(label_B=torch.tensor(values))
