"""Convolutional parts that autoencoders and U-Nets share. All keep channels-last inputs channels-last.

Shape legend: B batch, C channels, H W grid, L = H W positions, D = C.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

__all__ = ["AttentionBlock", "Down", "Enlarge", "GroupNorm", "ResBlock", "Up", "doubled", "halved"]


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1 x 1 convolution on the straight path where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttentionBlock(nn.Module):
    """Self-attention with one head over all positions, added to its input."""

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h_BLD = rearrange(self.norm(x), "b c h w -> b (h w) c")
        heard = F.scaled_dot_product_attention(*(part(h_BLD)[:, None] for part in (self.query, self.key, self.value)))
        return x + rearrange(self.out(heard[:, 0]), "b (h w) c -> b c h w", h=x.shape[2])


class Down(nn.Module):
    """Half the side by a convolution of stride 2, padded at the right and at the bottom only (DDPM, LDM's autoencoder), or all around."""

    def __init__(self, channels: int, asymmetric: bool = True) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


class Up(nn.Module):
    """Twice the side: each pixel repeated, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape  # not F.interpolate: compiled for bf16 on a CPU, torch 2.13 gives it a gradient of zeros
        return self.conv(x[:, :, :, None, :, None].expand(b, c, h, 2, w, 2).reshape(b, c, 2 * h, 2 * w))


def halved(x: Tensor) -> Tensor:
    """The mean of every 2 x 2 pixels."""
    return F.avg_pool2d(x, 2)


def doubled(x: Tensor) -> Tensor:
    """Every pixel twice in both directions, channels-last. Not F.interpolate: see `Up`."""
    B, C, H, W = x.shape
    x_BHWC = x.permute(0, 2, 3, 1)
    return x_BHWC[:, :, None, :, None].expand(B, H, 2, W, 2, C).reshape(B, 2 * H, 2 * W, C).permute(0, 3, 1, 2)


class Enlarge(nn.Module):
    """`Up`, channels-last and with less work. `size`: (height, width) of the result, twice x's or a pixel less.

    A window of 3 x 3 over repeated pixels sees but 2 x 2 different ones: for each of the four places that a result can have beside
    its pixel, a convolution of 2 x 2 whose weights are sums gives the same, with 4 / 9 of the multiplications. Summing pays where
    there are more pixels than channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        C, H, W = x.shape[1:]
        if H * W < C:
            return self.conv(doubled(x)[:, :, : size[0], : size[1]])
        assert self.conv.bias is not None
        weight = _summed(_summed(self.conv.weight)).flatten(0, 2)  # (column, row, out), in, 2, 2
        y = F.conv2d(x, weight, self.conv.bias.repeat(4), padding=1).permute(0, 2, 3, 1).unflatten(3, (2, 2, C))
        rows = [torch.stack([y[:, a : a + H, b : b + W, b, a] for b in (0, 1)], dim=3) for a in (0, 1)]
        return rearrange(torch.stack(rows, dim=2), "b h two w too c -> b c (h two) (w too)")[:, :, : size[0], : size[1]]


def _summed(weight: Tensor) -> Tensor:
    """[..., 3, k] -> [2, ..., k, 2]: the three taps as two, for the first and for the second of two equal pixels. Twice: for both sides."""
    a, b, c = weight.unbind(-2)
    return torch.stack([torch.stack([a, b + c], dim=-1), torch.stack([a + b, c], dim=-1)])


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, with a gradient that is as fast for few channels in bf16 on a CPU as it is for channels that lie apart.

    There torch 2.13 takes five times as long where channels lie together (64 x 16 x 32 x 32: 10.9 ms against 2.5 with two copies).
    """

    def forward(self, x: Tensor) -> Tensor:
        slow = x.dtype is torch.bfloat16 and x.is_cpu and x.shape[1] <= 64 and not torch.compiler.is_compiling()
        if slow and torch.is_grad_enabled() and x.is_contiguous(memory_format=torch.channels_last):
            return _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        return super().forward(x)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        ctx.shape, ctx.groups = (x.shape[0], x.shape[1], x.shape[2] * x.shape[3]), groups
        y, mean, scale = torch.native_group_norm(x, weight, bias, *ctx.shape, groups, eps)
        ctx.save_for_backward(x, weight, mean, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale = ctx.saved_tensors
        apart = grad.contiguous(), x.contiguous(), mean, scale, weight
        by_x, by_weight, by_bias = torch.ops.aten.native_group_norm_backward(*apart, *ctx.shape, ctx.groups, [True, True, True])
        return by_x.contiguous(memory_format=torch.channels_last), by_weight, by_bias, None, None
