"""Optimisation of a latent against a critic (the idea of VQGAN-CLIP, Crowson et al., arXiv 2204.08583).

The critic learns to tell true latents with their words from true latents with other words, and from noised ones. A latent is
drawn by climbing its score: each step goes `rate` along the gradient, whose length is one in every row.

B batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.contracts import Condition, Latents, Rng, Start, State

__all__ = ["Ascent", "SIZES", "Config", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """noise: standard deviation of what is added to true latents, to make false ones."""

    noise: float = 1.0


SIZES = {"tiny": Config()}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """rate: length of a step, in latents of unit variance."""

    steps: int = 12
    rate: float = 0.5


class Ascent:
    drives = "critic"
    Sampling = Sampling
    abilities = frozenset({"preview"})

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self, network: nn.Module, teacher: nn.Module | None = None) -> nn.ModuleDict:
        return nn.ModuleDict()

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def after_step(self, network: Any, phase: str, step: int) -> None: ...

    def losses(self, network: Any, batch: Latents, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """Logistic: the true pair up, the two false ones down; right: the share of rows in which the true one leads both."""
        z, clock_B = batch.z, batch.z.new_zeros(len(batch.z))
        noised = z + self.config.noise * rng.normal("noise", z.shape[1:]).to(z)
        true_B = network(z, clock_B, batch.cond)
        false_2B = torch.stack([network(z, clock_B, batch.cond.rows(torch.arange(-1, len(z) - 1))), network(noised, clock_B, batch.cond)])
        right = (true_B > false_2B).all(dim=0).float().mean()
        return {"loss": F.softplus(-true_B).mean() + F.softplus(false_2B).mean(), "right": right}

    def begin(self, network: Any, cond: Condition, null: Condition, how: Sampling, start: Start, rng: Rng) -> State:
        device, index = next(network.parameters()).device, torch.zeros(len(rng), dtype=torch.int64)
        x = rng.normal("start", start.shape) if start.noise is None else start.noise
        rate = torch.full((len(rng),), how.rate, device=device)
        return State(x=x.to(device), index_B=index, total_B=index + how.steps, cond=cond, null=null, rng=rng, extra={"rate": rate})

    def step(self, network: Any, state: State) -> State:
        live_B = ~state.done_B
        if not live_B.all():
            return state.put(live_B, self.step(network, state.rows(live_B))) if live_B.any() else state
        with torch.enable_grad():  # sampling runs without
            x = state.x.detach().requires_grad_()
            up = torch.autograd.grad(network(x, torch.zeros(len(x), device=x.device), state.cond).sum(), x)[0]
        spread = (-1, *[1] * (up.ndim - 1))
        unit = up / up.flatten(1).norm(dim=1).clamp(min=1e-8).view(spread)
        return replace(state, x=x.detach() + state.extra["rate"].view(spread) * unit, index_B=state.index_B + 1)

    def preview(self, state: State) -> Tensor:
        return state.x
