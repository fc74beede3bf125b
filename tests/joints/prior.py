"""Drawing from a fixed prior: the process of the plain VAE (arXiv 1312.6114). Nothing is learnt; what is drawn can be measured."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, Latents, Rng, Start, State

__all__ = ["Prior", "SIZES", "Config", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose."""


SIZES = {"tiny": Config()}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature: the standard deviation of the noise."""

    temperature: float = 1.0


class Prior:
    drives = "oneshot"
    Sampling = Sampling
    abilities = frozenset()

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self, network: nn.Module, teacher: nn.Module | None = None) -> nn.ModuleDict:
        return nn.ModuleDict()

    def plan(self, step: int) -> tuple[str, ...]:
        return ()

    def losses(self, network: Any, batch: Latents, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        raise AssertionError("a prior has no phase")

    def after_step(self, network: Any, phase: str, step: int) -> None: ...

    def validate(self, network: Any, batch: Latents, rng: Rng) -> dict[str, Tensor]:
        """loss: -log N(raw z; 0, 1) in nats a latent, [B]."""
        raw = network.latent.restore(batch.z)
        return {"loss": 0.5 * (raw.square() + math.log(2 * math.pi)).mean(1)}

    def begin(self, network: Any, cond: Condition, null: Condition, how: Sampling, start: Start, rng: Rng) -> State:
        noise = rng.normal("start", network.noise_shape) if start.noise is None else start.noise
        once = torch.ones(len(rng), dtype=torch.int64)
        return State(
            x=torch.zeros(len(rng), *start.shape), index_B=0 * once, total_B=once, cond=cond, null=null, rng=rng,
            extra={"noise": noise * how.temperature},
        )  # fmt: skip

    def step(self, network: Any, state: State) -> State:
        live_B = ~state.done_B
        if not live_B.all():
            return state.put(live_B, self.step(network, state.rows(live_B))) if live_B.any() else state
        return replace(state, x=network(state.extra["noise"], state.cond), index_B=state.total_B)

    def preview(self, state: State) -> Tensor | None:
        return None
