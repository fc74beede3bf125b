"""The VAE's panel 2: nothing but its prior. A generator without a parameter, deaf to words."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from triptych.contracts import Condition, ConditionSpec, LatentSpace

__all__ = ["StandardNormal", "SIZES", "Config"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose."""


SIZES = {"tiny": Config()}


class StandardNormal(nn.Module):
    """forward(noise [B, K], cond) -> [B, K]: raw latents that are the noise itself, standardised.

    Raises ValueError for latents that are no vector: their prior is not normal.
    """

    role = "oneshot"

    def __init__(self, config: Config, *, latent: LatentSpace, condition: ConditionSpec) -> None:
        super().__init__()
        if latent.kind != "vector":
            raise ValueError(f"StandardNormal draws latents of kind 'vector', this decoder's are {latent.kind!r}; take one with vectors")
        self.config, self.latent, self.condition, self.noise_shape = config, latent, condition, latent.shape

    def forward(self, noise: Tensor, cond: Condition) -> Tensor:
        return self.latent.standardise(noise)
