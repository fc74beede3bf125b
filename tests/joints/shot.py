"""A GAN's generator: noise and words to a picture in one pass, by two layers.

B batch, K numbers of noise, D width, C H W the latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, ConditionSpec, LatentSpace

__all__ = ["Shot", "SIZES", "Config"]


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 64
    noise: int = 16


SIZES = {"tiny": Config()}


class Shot(nn.Module):
    """forward(noise [B, K], cond) -> [B, C, H, W]. Raises ValueError for latents that are no picture."""

    role = "oneshot"

    def __init__(self, config: Config, *, latent: LatentSpace, condition: ConditionSpec) -> None:
        super().__init__()
        if latent.kind != "image":
            raise ValueError(f"Shot draws latents of kind 'image', this decoder's are {latent.kind!r}; take one with pictures")
        self.config, self.latent, self.condition, self.noise_shape = config, latent, condition, (config.noise,)
        w = config.width
        self.hear = nn.Linear(config.noise + condition.pooled, w)
        self.draw = nn.Sequential(nn.SiLU(), nn.Linear(w, w), nn.SiLU(), nn.Linear(w, math.prod(latent.shape)))

    def forward(self, noise: Tensor, cond: Condition) -> Tensor:
        heard = [] if cond.pooled_BD is None else [cond.pooled_BD.to(noise)]
        return self.draw(self.hear(torch.cat([noise, *heard], dim=1))).unflatten(1, self.latent.shape)
