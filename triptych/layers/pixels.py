"""Pixels as a latent space, and the one way in which pictures are made smaller.

Shape legend: B batch, C channels, H W grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contracts import LatentSpace

__all__ = ["average_down", "pixel_space"]


def pixel_space(size: int, channels: int = 3, mean: float = 0.0, std: float = 1.0) -> LatentSpace:
    """The space of small pictures [channels, size, size]: z = (pixel - mean) / std, with pixels in [-1, 1].

    The fingerprint follows from the arguments alone, so every decoder that starts from such pictures shares the space.
    """
    fingerprint = f"pixels-{channels}x{size}x{size}-{mean:g}-{std:g}"
    return LatentSpace(kind="image", shape=(channels, size, size), mean=(mean,) * channels, std=(std,) * channels, fingerprint=fingerprint)


def average_down(image_BCHW: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The exact box average to `size` (one side, or height and width): each pixel is the mean of the area it covers.

    Raises ValueError if either side would have to grow.
    """
    height, width = (size, size) if isinstance(size, int) else size
    H, W = image_BCHW.shape[-2:]
    if height > H or width > W:
        raise ValueError(f"a picture of {H} x {W} cannot be averaged down to {height} x {width}; give pictures of at least that size")
    if height == H and width == W:
        return image_BCHW
    if H % height == 0 and W % width == 0:
        return F.avg_pool2d(image_BCHW, (H // height, W // width))
    return _box(height, H, image_BCHW) @ image_BCHW @ _box(width, W, image_BCHW).T


def _box(new: int, old: int, like: Tensor) -> Tensor:
    """[new, old] matrix of means: entry (i, j) is the share of old pixel j in the interval that new pixel i covers."""
    step = old / new
    start = torch.arange(new, dtype=torch.float64)[:, None] * step
    pixel = torch.arange(old, dtype=torch.float64)[None, :]
    overlap = torch.minimum(start + step, pixel + 1) - torch.maximum(start, pixel)
    return (overlap.clamp(min=0) / step).to(like)
