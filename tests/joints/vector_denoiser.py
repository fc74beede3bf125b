"""A denoiser of vectors: the smallest prior for unCLIP (arXiv 2204.06125, section 2.2), three layers instead of a transformer.

B batch, K numbers, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.layers.embed import timestep_embedding

__all__ = ["VectorDenoiser", "SIZES", "Config"]


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 64


SIZES = {"tiny": Config()}


class VectorDenoiser(nn.Module):
    """forward(x_t [B, K], clock_B, cond) -> [B, K]. Raises ValueError for latents that are no vector."""

    role = "denoiser"

    def __init__(self, config: Config, *, latent: LatentSpace, condition: ConditionSpec) -> None:
        super().__init__()
        if latent.kind != "vector":
            raise ValueError(f"VectorDenoiser draws latents of kind 'vector', this decoder's are {latent.kind!r}; take one with vectors")
        self.config, self.latent, self.condition = config, latent, condition
        w, k = config.width, latent.shape[0]
        self.first, self.clock, self.words = nn.Linear(k, w), nn.Linear(256, w), nn.Linear(condition.pooled, w)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(w, w), nn.SiLU(), nn.Linear(w, k))

    def forward(self, x_t: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        assert isinstance(cond.pooled_BD, torch.Tensor)
        return self.rest(self.first(x_t) + self.clock(timestep_embedding(clock_B).to(x_t)) + self.words(cond.pooled_BD.to(x_t)))
