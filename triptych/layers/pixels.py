"""Pixels as a latent space, the one way in which pictures are made smaller, and how one picture varies before eyes that learn.

Shape legend: B batch, C channels, H W grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contracts import LatentSpace, Rng

__all__ = ["average_down", "pixel_space", "recolored", "varied"]


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


def varied(image_BCHW: Tensor, rng: Rng, *, jitter: float = 0.0, halvings: int = 0, noise: float = 0.0) -> Tensor:
    """The same pictures as they might have come from elsewhere, so that eyes learn what is shown and not how it was drawn.

    jitter: each is enlarged by a factor of up to 1 + jitter, or made as much smaller, and moved by up to jitter / 2 of its side; its
    border goes on outside.  halvings: half of them were once so often at half the side, at most.  noise: the largest deviation of
    normal noise, in the units of [-1, 1].  What happens to a row depends on its key alone.
    """
    B, device = len(image_BCHW), image_BCHW.device
    if jitter:
        draw_B3 = (2 * rng.uniform("jitter", (3,)) - 1).to(device)
        theta_B23 = torch.zeros(B, 2, 3, device=device)
        theta_B23[:, 0, 0] = theta_B23[:, 1, 1] = (1 + jitter) ** draw_B3[:, 0]
        theta_B23[:, :, 2] = jitter * draw_B3[:, 1:]
        places = F.affine_grid(theta_B23, list(image_BCHW.shape), align_corners=False)
        image_BCHW = F.grid_sample(image_BCHW, places, padding_mode="border", align_corners=False)
    if halvings:
        times_B = (2 * halvings * rng.uniform("halvings")).long().to(device) - halvings + 1  # at most 0 for one half of them
        for times in range(1, halvings + 1):
            rows_R = (times_B == times).nonzero()[:, 0]
            if len(rows_R):
                small = F.avg_pool2d(image_BCHW[rows_R], 2**times)
                large = F.interpolate(small, size=image_BCHW.shape[-2:], mode="bilinear", align_corners=False)
                image_BCHW = image_BCHW.index_copy(0, rows_R, large)
    if noise:
        sigma = noise * rng.uniform("sigma", (1, 1, 1)).to(device)
        image_BCHW = (image_BCHW + sigma * rng.normal("noise", image_BCHW.shape[1:]).to(device)).clamp(-1, 1)
    return image_BCHW


def recolored(image_BCHW: Tensor, rng: Rng, share: float) -> tuple[Tensor, Tensor]:
    """A share of the pictures in other colours, and which they are (bool [B]): their ink, what is not white, is mixed anew.

    ink' = M ink, M's rows random weights of sum 0.4 to 1.2: white stays white, black takes a colour, equal colours stay equal.
    """
    which_B = (rng.uniform("recolor") < share).to(image_BCHW.device)
    weight_B33 = (2 * rng.normal("ink", (3, 3))).softmax(-1) * (0.4 + 0.8 * rng.uniform("ink's strength", (3, 1)))
    ink_BCHW = torch.einsum("bij,bjhw->bihw", weight_B33.to(image_BCHW), 1 - image_BCHW)
    return torch.where(which_B[:, None, None, None], (1 - ink_BCHW).clamp(-1, 1), image_BCHW), which_B
