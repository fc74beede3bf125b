"""A tiny image embedder: what CLIP's image tower is to unCLIP. Random features of a box-averaged picture, never trained.

B batch, K numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.layers.pixels import average_down

__all__ = ["Embedder", "SIZES", "Config"]


@dataclass(frozen=True, kw_only=True)
class Config:
    image_size: int = 4
    width: int = 64
    embed: int = 12


SIZES = {"tiny": Config()}


class Embedder(nn.Module):
    """forward(picture [B, 3, h, w] in [-1, 1]) -> [B, K], of mean 0 and standard deviation 1 in every row."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        count, w = 3 * config.image_size**2, config.width
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(count, w), nn.Tanh(), nn.Linear(w, config.embed))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm(self.net(average_down(image_BCHW, self.config.image_size)), (self.config.embed,))
