"""Swin: attention within windows that shift by half a window from block to block (Liu et al., arXiv 2103.14030).

Windows make the cost linear in the picture's size; the shift lets neighbours across their borders meet. A shifted grid of windows
is the plain grid over the picture rolled by the shift: the windows at the far edge then hold patches from opposite sides of the
picture, and a MASK keeps those apart (section 3.2, figure 4). Between stages patches merge 2 x 2 (space to depth, then 4D -> 2D),
so that the four stages are a pyramid, as of a convolutional network.

Shape legend: B batch, C channels, H W grid of patches, D width, N heads, K = D / N, P windows of a picture, L patches of a window.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import ConditionSpec
from ._classify import Classification

__all__ = ["Swin", "Config", "SIZES", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """width: D of the first stage; it doubles from stage to stage.  depths, num_heads: of each stage.

    window: its side in patches; odd blocks shift by half of it, rounded down.  drop_path: how often the branches of the last
    block are left out in training (stochastic depth, arXiv 1603.09382); it grows from 0 at the first.
    num_classes: of the linear head on the mean of all patches; 0 = no head.
    """

    image_size: int = 224
    patch_size: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    drop_path: float = 0.1
    num_classes: int = 0


SIZES = {
    "tiny": Config(image_size=32, patch_size=2, width=16, depths=(2, 1), num_heads=(2, 4), window=4, drop_path=0.0, num_classes=10),
    "small": Config(image_size=64, patch_size=2, width=48, depths=(2, 2, 2), num_heads=(2, 4, 8), window=4),
    "Swin-T": Config(drop_path=0.2, num_classes=1000),
    "Swin-S": Config(depths=(2, 2, 18, 2), drop_path=0.3, num_classes=1000),
    "Swin-B": Config(width=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32), drop_path=0.5, num_classes=1000),
    "Swin-L": Config(width=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48), drop_path=0.5, num_classes=1000),
}


# Both tables depend on nothing but sizes: made once a size.


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def relative_index(window: int, table: int, device: torch.device) -> Tensor:
    """Which row of a bias table for windows of side `table` two patches of a window share, int64 [L, L].

    A table holds one row for every offset (dy, dx), each in -(table - 1)..table - 1; a window smaller than it uses the middle.
    """
    place = torch.arange(window, device=device)
    y_L, x_L = place.repeat_interleave(window), place.repeat(window)
    dy_LL, dx_LL = y_L[:, None] - y_L, x_L[:, None] - x_L
    return (dy_LL + table - 1) * (2 * table - 1) + dx_LL + table - 1


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def shift_mask(grid: tuple[int, int], window: int, shift: int, device: torch.device) -> Tensor:
    """Which patches of a window of the ROLLED picture were neighbours before, bool [P, 1, L, L].

    On either axis the roll brings the first `shift` rows behind the last ones. So the last window holds two strips that do not
    belong together, and patches may meet where they stand in the same strip on both axes.
    """

    def strip(length: int) -> Tensor:
        at = torch.arange(length, device=device)
        return (at >= length - window).long() + (at >= length - shift).long()

    strips_HW = 3 * strip(grid[0])[:, None] + strip(grid[1])
    strips_PL = rearrange(strips_HW, "(y p) (x q) -> (y x) (p q)", p=window, q=window)
    return (strips_PL[:, None, :, None] == strips_PL[:, None, None, :]).clone()


class Block(nn.Module):
    """x + attention(norm(x)) within windows, then x + mlp(norm(x)). shift: 0, or half the window."""

    def __init__(self, width: int, num_heads: int, window: int, shift: int, mlp_ratio: float, qkv_bias: bool, drop_path: float) -> None:
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} does not split into {num_heads} heads; take a multiple of {num_heads}")
        self.num_heads, self.window, self.shift, self.drop_path = num_heads, window, shift, drop_path
        hidden = int(mlp_ratio * width)
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)
        self.bias_RN = nn.Parameter(torch.randn((2 * window - 1) ** 2, num_heads) * 0.02)  # R: offsets within a window
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BHWD: Tensor) -> Tensor:
        x_BHWD = x_BHWD + self._dropped(self._attention(self.norm1(x_BHWD)))
        return x_BHWD + self._dropped(self.mlp(self.norm2(x_BHWD)))

    def _attention(self, x_BHWD: Tensor) -> Tensor:
        H, W = x_BHWD.shape[1:3]
        window = min(self.window, H, W)
        shift = self.shift if min(H, W) > self.window else 0  # a picture of one window has no borders to cross
        x_BHWD = F.pad(x_BHWD, (0, 0, 0, -W % window, 0, -H % window))  # as in the paper's code: zeros, which are attended to
        grid = (x_BHWD.shape[1], x_BHWD.shape[2])
        x_BHWD = x_BHWD.roll((-shift, -shift), dims=(1, 2))
        cut = "b (y p) (x q) (three n k) -> three b (y x) n (p q) k"
        q, k, v = rearrange(self.qkv(x_BHWD), cut, p=window, q=window, three=3, n=self.num_heads)
        bias = self.bias_RN[relative_index(window, self.window, x_BHWD.device)].permute(2, 0, 1)
        if shift:
            bias = bias.masked_fill(~shift_mask(grid, window, shift, x_BHWD.device), -torch.inf)
        heard = F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype))
        y = rearrange(heard, "b (y x) n (p q) k -> b (y p) (x q) (n k)", y=grid[0] // window, p=window)
        return self.out(y.roll((shift, shift), dims=(1, 2))[:, :H, :W])

    def _dropped(self, branch: Tensor) -> Tensor:
        if not (self.training and self.drop_path):
            return branch
        keep = 1 - self.drop_path
        return branch * (torch.rand(len(branch), 1, 1, 1, device=branch.device) < keep) / keep


class PatchMerging(nn.Module):
    """[B, H, W, D] -> [B, H / 2, W / 2, 2 D]: every 2 x 2 side by side, column by column; an odd side is padded with zeros."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x_BHWD: Tensor) -> Tensor:
        H, W = x_BHWD.shape[1:3]
        x_BHWD = F.pad(x_BHWD, (0, 0, 0, W % 2, 0, H % 2))
        return self.reduce(self.norm(rearrange(x_BHWD, "b (h r) (w c) d -> b h w (c r d)", r=2, c=2)))


class Swin(nn.Module):
    """A pyramid of features, [B, D 2^i, H / 2^i, W / 2^i] of stage i, and their mean as one vector.

    `condition` is what a text encoder beside it gives; a Swin does not listen.
    Pictures may have any size: what does not split into patches, windows or pairs is padded with zeros at the right and below.
    Raises ValueError if depths and heads are not as many, or a width does not split into its heads.
    """

    def __init__(self, config: Config, *, condition: ConditionSpec | None = None) -> None:
        super().__init__()
        c = self.config = config
        if len(c.depths) != len(c.num_heads):
            raise ValueError(f"{len(c.depths)} depths and {len(c.num_heads)} num_heads: a stage needs one of each")
        self.image_size = c.image_size
        self.patches = nn.Conv2d(3, c.width, c.patch_size, c.patch_size)
        self.patch_norm = nn.LayerNorm(c.width)
        rates = torch.linspace(0, c.drop_path, sum(c.depths), device="cpu").tolist()
        self.stages, self.merges = nn.ModuleList(), nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(c.depths, c.num_heads, strict=True)):
            width = c.width * 2**i
            if i:
                self.merges.append(PatchMerging(width // 2))
            shifts, dropped = [(j % 2) * (c.window // 2) for j in range(depth)], [rates.pop(0) for _ in range(depth)]
            blocks = (Block(width, heads, c.window, s, c.mlp_ratio, c.qkv_bias, d) for s, d in zip(shifts, dropped, strict=True))
            self.stages.append(nn.Sequential(*blocks))
        self.width = c.width * 2 ** (len(c.depths) - 1)
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, c.num_classes) if c.num_classes else None
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and name.endswith("weight"):
                nn.init.trunc_normal_(weight, std=0.02)

    def pyramid(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """What each stage ends with, before its patches merge; [B, D 2^i, H / 2^i, W / 2^i] each, not normalised."""
        side, (H, W) = self.config.patch_size, pixels_BCHW.shape[-2:]
        x_BDHW = self.patches(F.pad(pixels_BCHW, (0, -W % side, 0, -H % side)))
        x_BHWD, out = self.patch_norm(rearrange(x_BDHW, "b d h w -> b h w d")), []
        for i, stage in enumerate(self.stages):
            x_BHWD = stage(self.merges[i - 1](x_BHWD) if i else x_BHWD)
            out.append(rearrange(x_BHWD, "b h w d -> b d h w"))
        return out

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """The last stage, normalised: [B, L, D], row by row."""
        return self.norm(rearrange(self.pyramid(pixels_BCHW)[-1], "b d h w -> b (h w) d"))

    def pooled(self, pixels_BCHW: Tensor) -> Tensor:
        """The mean of the last stage's normalised patches, [B, D]."""
        return self.features(pixels_BCHW).mean(dim=1)

    def classify(self, pixels_BCHW: Tensor) -> Tensor:
        """Logits [B, num_classes]. Raises ValueError if the network was built without a head."""
        if self.head is None:
            raise ValueError("this Swin has no head (num_classes = 0): it gives features, not classes")
        return self.head(self.pooled(pixels_BCHW))


TASKS = {"classify": Classification}
