"""WGAN with gradient penalty (Gulrajani et al., arXiv 1704.00028): k steps of the critic, then one of the generator.

    critic     E[f(fake)] - E[f(true)] + penalty E[(|grad f(between)| - 1)^2]
    generator  -E[f(fake)]

B batch, D width of the pooled words.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, Latents, Rng, Start, State

__all__ = ["WGAN", "SIZES", "Config", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """num_critic: steps of the critic for one of the generator.  width: of the critic."""

    num_critic: int = 3
    penalty: float = 10.0
    width: int = 64


SIZES = {"tiny": Config()}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature: the standard deviation of the noise."""

    temperature: float = 1.0


class WGAN:
    drives = "oneshot"
    Sampling = Sampling
    abilities = frozenset()

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self, network: Any, teacher: nn.Module | None = None) -> nn.ModuleDict:
        count, w = math.prod(network.latent.shape) + network.condition.pooled, self.config.width
        self.critic = nn.Sequential(nn.Linear(count, w), nn.LeakyReLU(0.2), nn.Linear(w, w), nn.LeakyReLU(0.2), nn.Linear(w, 1))
        return nn.ModuleDict({"critic": self.critic})

    def plan(self, step: int) -> tuple[str, ...]:
        return ("critic",) * self.config.num_critic + ("generator",)

    def after_step(self, network: Any, phase: str, step: int) -> None: ...

    def losses(self, network: Any, batch: Latents, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        noise = rng.normal(phase, network.noise_shape).to(batch.z)
        if phase == "generator":
            return {"loss": -self._score(network(noise, batch.cond), batch.cond).mean()}
        with torch.no_grad():
            fake = network(noise, batch.cond)
        between = torch.lerp(fake, batch.z, rng.uniform("between", (1,) * (fake.ndim - 1)).to(fake)).requires_grad_()
        slope = torch.autograd.grad(self._score(between, batch.cond).sum(), between, create_graph=True)[0].flatten(1).norm(dim=1)
        distance = self._score(batch.z, batch.cond).mean() - self._score(fake, batch.cond).mean()
        penalty = (slope - 1).square().mean()
        return {"loss": self.config.penalty * penalty - distance, "distance": distance, "penalty": penalty}

    def _score(self, x: Tensor, cond: Condition) -> Tensor:
        heard = [] if cond.pooled_BD is None else [cond.pooled_BD.to(x)]
        return self.critic(torch.cat([x.flatten(1), *heard], dim=1))[:, 0]

    def validate(self, network: Any, batch: Latents, rng: Rng) -> dict[str, Tensor]:
        """loss: Wasserstein's distance of each latent's values in this batch, drawn and true, by sorting; the mean of all, [B]."""
        fake = network(rng.normal("validate", network.noise_shape).to(batch.z), batch.cond)
        away = (fake.flatten(1).sort(dim=0).values - batch.z.flatten(1).sort(dim=0).values).abs()
        return {"loss": away.mean().expand(len(batch.z))}

    def begin(self, network: Any, cond: Condition, null: Condition, how: Sampling, start: Start, rng: Rng) -> State:
        noise = rng.normal("start", network.noise_shape) if start.noise is None else start.noise
        once, device = torch.ones(len(rng), dtype=torch.int64), next(network.parameters()).device
        return State(
            x=torch.zeros(len(rng), *start.shape, device=device), index_B=0 * once, total_B=once, cond=cond, null=null, rng=rng,
            extra={"noise": (noise * how.temperature).to(device)},
        )  # fmt: skip

    def step(self, network: Any, state: State) -> State:
        live_B = ~state.done_B
        if not live_B.all():
            return state.put(live_B, self.step(network, state.rows(live_B))) if live_B.any() else state
        return replace(state, x=network(state.extra["noise"], state.cond), index_B=state.total_B)

    def preview(self, state: State) -> Tensor | None:
        return None
