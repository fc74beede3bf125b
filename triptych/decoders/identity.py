"""The identity decoder: the latents are the picture itself, standardised. For pixel diffusion, GANs, and as a control.

Shape legend: B batch, C = 3 channels, H W grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..contracts import Condition, LatentSpace, Rng
from ..layers.pixels import average_down, pixel_space

__all__ = ["Identity", "Config", "SIZES", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """size: side of the picture. mean, std: of the pixels in [-1, 1]; the defaults are those of emoji on white."""

    size: int = 32
    mean: float = 0.5
    std: float = 0.6


SIZES = {"tiny": Config(size=8), "32": Config(size=32), "64": Config(size=64)}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Nothing to choose."""


class Identity(nn.Module):
    """z [B, 3, size, size] = (pixels - mean) / std. No parameters."""

    Sampling = Sampling

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.image_size, self.factor = config.size, 1
        self.latent: LatentSpace = pixel_space(config.size, 3, config.mean, config.std)

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Picture in [-1, 1], averaged down to `size` where it is larger, to z."""
        small = min(image_BCHW.shape[-2:]) < self.config.size
        return self.latent.standardise(image_BCHW if small else average_down(image_BCHW, self.config.size))

    def decode(
        self, z: Tensor, cond: Condition | None = None, how: Any = None, rng: Rng | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """z to the picture, clamped to [-1, 1]. Any height and width."""
        return self.latent.restore(z).clamp(-1, 1)
