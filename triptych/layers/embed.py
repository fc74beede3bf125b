"""Where and when: embeddings of time and of place, and the cutting of a picture into patches.

B batch, C channels, H W grid, L tokens (h * w of them, row by row), D width.
"""

from __future__ import annotations

import functools
import math

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["patchify", "rope_2d", "sincos_2d", "timestep_embedding", "unpatchify"]


def timestep_embedding(clock_B: Tensor, width: int = 256, period: float = 10_000.0) -> Tensor:
    """[cos(w t), sin(w t)] in float32, [B, width]: w falls geometrically from 1 to 1 / period (DiT, arXiv 2212.09748; ADM).

    `width` is even. The clock is meant to run over 0..1000; it need not be whole.
    """
    half = width // 2
    frequency = torch.exp(-math.log(period) / half * torch.arange(half, dtype=torch.float32, device=clock_B.device))
    angle = clock_B.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def patchify(x_BCHW: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, L, C * patch * patch], the channel slowest: as a convolution of stride `patch` reads its patch."""
    return rearrange(x_BCHW, "b c (h p) (w q) -> b (h w) (c p q)", p=patch, q=patch)


def unpatchify(x_BLD: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """[B, h * w, patch * patch * C] -> [B, C, H, W], the channel fastest: as DiT's last layer writes its patch."""
    return rearrange(x_BLD, "b (h w) (p q c) -> b c (h p) (w q)", h=grid[0], p=patch, q=patch)


# Tables of place depend on nothing but shapes: made once a shape.
# A grid unlike the one trained on is stretched over it: the corners of the picture keep their places.


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def sincos_2d(width: int, grid: tuple[int, int], trained: tuple[int, int], device: torch.device) -> Tensor:
    """Sines and cosines of column, then of row, [L, width] float32 (MAE, DiT). `width` is a multiple of 4."""
    row, column = _angles(width, 10_000.0, grid, trained)
    return torch.cat([column.sin(), column.cos(), row.sin(), row.cos()], dim=-1).float().to(device)


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def rope_2d(width: int, grid: tuple[int, int], trained: tuple[int, int], device: torch.device) -> Tensor:
    """Axial rotary angles as (cosines, sines), [2, L, width / 2] float32; `width`, of a head, is a multiple of 4.

    The first half of the angles turns with the row, the second with the column. The period is 100 as for vision
    transformers (arXiv 2403.13298): grids are small.
    """
    angle = torch.cat(_angles(width, 100.0, grid, trained), dim=-1)
    return torch.stack([angle.cos(), angle.sin()]).float().to(device)


def _angles(width: int, period: float, grid: tuple[int, int], trained: tuple[int, int]) -> list[Tensor]:
    """Of every token's row and of its column, [L, width / 4] each."""
    row, column = (torch.arange(n, dtype=torch.float64, device="cpu") * (m / n) for n, m in zip(grid, trained, strict=True))
    places = row.repeat_interleave(grid[1]), column.repeat(grid[0])
    frequency = period ** (-torch.arange(width // 4, dtype=torch.float64, device="cpu") / (width // 4))
    return [place[:, None] * frequency for place in places]
