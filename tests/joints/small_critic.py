"""A critic of latents by words: is this a true picture, and of these words? What CLIP is to VQGAN-CLIP.

B batch, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, ConditionSpec, LatentSpace

__all__ = ["SmallCritic", "SIZES", "Config"]


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 64


SIZES = {"tiny": Config()}


class SmallCritic(nn.Module):
    """forward(x [B, ...], clock_B, cond) -> score_B, higher = better. Raises ValueError for latents that are no floats."""

    role = "critic"

    def __init__(self, config: Config, *, latent: LatentSpace, condition: ConditionSpec) -> None:
        super().__init__()
        if latent.kind not in ("image", "vector"):
            raise ValueError(f"SmallCritic judges latents of kind 'image' or 'vector', this decoder's are {latent.kind!r}")
        self.config, self.latent, self.condition, w = config, latent, condition, config.width
        self.first = nn.Linear(math.prod(latent.shape) + condition.pooled, w)
        self.rest = nn.Sequential(nn.SiLU(), nn.Linear(w, w), nn.SiLU(), nn.Linear(w, 1))

    def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        heard = [] if cond.pooled_BD is None else [cond.pooled_BD.to(x)]
        return self.rest(self.first(torch.cat([x.flatten(1), *heard], dim=1)))[:, 0]
