"""Convolutional parts that autoencoders and U-Nets share. All keep channels-last inputs channels-last.

A convolution's weight is read by oneDNN in a layout of its own, and torch makes it anew at every call. Where maps are small that costs
more than the product: 1280 channels at 8 x 8 take 87 ms a core in float32 and 27 in bf16, without it 19 and 9; 1280 at 16 x 16
147 and 64 ms, without it 66 and 33; 320 at 64 x 64 as long as before. `pack` keeps the weights in that layout: the same results,
bit for bit.

Shape legend: B batch, C channels, H W grid, L = H W positions, D = C.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from triptych.layers.attention import attend
from triptych.layers.linear import learns

__all__ = ["AttentionBlock", "Conv", "Down", "Enlarge", "GroupNorm", "ResBlock", "doubled", "halved", "pack", "silu", "unpack"]

_ONEDNN = torch.backends.mkldnn.is_available()


class Conv(nn.Conv2d):
    """nn.Conv2d with one group. After `pack` its weight is kept as oneDNN reads it, and nowhere else, from the first picture on, whose
    size says which layout is best.

    Whatever asks for the weight as it was undoes that: learning, another precision or device, `load_state_dict`, a copy.
    `state_dict` gives it as it was, and undoes nothing. torch's compiler cannot read it: `unpack` comes before it.
    """

    packing = False
    kept: tuple[Tensor, int, Tensor] | None = None  # a weight, its version, and what was made of it for `Enlarge`

    def forward(self, x: Tensor) -> Tensor:
        return self._product(x) if self.packs(x) else super().forward(x)

    def packs(self, x: Tensor) -> bool:
        """Is the packed way the right one for x? Where it was asked for and is not, the weight is as it was again."""
        if not self.packing or torch.compiler.is_compiling():
            return False
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if x.is_cpu and dtype is self.weight.dtype and not learns(x, self.weight):
            return True
        self.unpack()
        return False

    def unpack(self) -> None:
        if self.weight.is_mkldnn:
            self.weight = nn.Parameter(self.weight.to_dense(), requires_grad=self.weight.requires_grad)
        self.packing, self.kept = False, None

    def dense(self) -> Tensor:
        """The weight as it was, [O, I, h, w]."""
        return self.weight.to_dense() if self.weight.is_mkldnn else self.weight

    def _product(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        if not self.weight.is_mkldnn:
            packed = reordered(self.weight.detach(), x, self.padding, self.stride)
            self.weight = nn.Parameter(packed, requires_grad=self.weight.requires_grad)
        return product(x, self.weight, self.bias, self.padding, self.stride)

    def _apply(self, fn: Any, recurse: bool = True) -> Conv:
        self.unpack()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unpack()
        super()._load_from_state_dict(*args, **kwargs)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_mkldnn:
            destination[prefix + "weight"] = self.dense()

    def __getstate__(self) -> dict[str, Any]:
        self.unpack()
        return self.__dict__


def pack(module: nn.Module) -> None:
    """For a module that is done with learning: from now on each `Conv` keeps its weight as oneDNN reads it. It takes no more memory."""
    for layer in module.modules():
        if isinstance(layer, Conv) and _ONEDNN and layer.weight.is_cpu and layer.weight.dtype in (torch.float32, torch.bfloat16):
            layer.packing = True


def unpack(module: nn.Module) -> None:
    """Each `Conv`'s weight as it was."""
    for layer in module.modules():
        if isinstance(layer, Conv):
            layer.unpack()


def reordered(weight: Tensor, x: Tensor, padding: Any, stride: Any = (1, 1)) -> Tensor:
    """[O, I, h, w] in the layout that oneDNN likes best for pictures like x."""
    return torch.ops.mkldnn._reorder_convolution_weight(weight, list(padding), list(stride), [1, 1], 1, list(x.shape))


def product(x: Tensor, weight: Tensor, bias: Tensor | None, padding: Any, stride: Any = (1, 1)) -> Tensor:
    """The convolution by a `reordered` weight."""
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, list(padding), list(stride), [1, 1], 1, "none", [], "")


def _flop(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * out_shape[0] * out_shape[2] * out_shape[3] * torch.Size(weight).numel()


if _ONEDNN:
    register_flop_formula(torch.ops.mkldnn._convolution_pointwise)(_flop)


class ResBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1 x 1 convolution on the straight path where the width changes."""

    def __init__(self, in_channels: int, out_channels: int, groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps)
        self.conv1 = Conv(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps)
        self.conv2 = Conv(out_channels, out_channels, 3, padding=1)
        self.shortcut = Conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(silu(self.norm1(x)))
        return self.shortcut(x) + self.conv2(silu(self.norm2(h)))


class AttentionBlock(nn.Module):
    """Self-attention with one head over all positions, added to its input."""

    def __init__(self, channels: int, groups: int = 32, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps)
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        h_BLD = rearrange(self.norm(x), "b c h w -> b (h w) c")
        heard = attend(*(part(h_BLD)[:, None] for part in (self.query, self.key, self.value)))
        return x + rearrange(self.out(heard[:, 0]), "b (h w) c -> b c h w", h=x.shape[2])


class Down(nn.Module):
    """Half the side by a convolution of stride 2, padded at the right and at the bottom only (DDPM, LDM's autoencoder), or all around."""

    def __init__(self, channels: int, asymmetric: bool = True) -> None:
        super().__init__()
        self.asymmetric = asymmetric
        self.conv = Conv(channels, channels, 3, stride=2, padding=0 if asymmetric else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.asymmetric else x)


def silu(x: Tensor) -> Tensor:
    """F.silu of what nobody else holds: in place where no gradient is asked for."""
    return F.silu(x, inplace=not torch.is_grad_enabled())


def halved(x: Tensor) -> Tensor:
    """The mean of every 2 x 2 pixels."""
    return F.avg_pool2d(x, 2)


def doubled(x: Tensor) -> Tensor:
    """Every pixel twice in both directions, channels-last."""  # compiled for bf16 on a CPU, torch 2.13 gives F.interpolate no gradient
    B, C, H, W = x.shape
    x_BHWC = x.permute(0, 2, 3, 1)
    return x_BHWC[:, :, None, :, None].expand(B, H, 2, W, 2, C).reshape(B, 2 * H, 2 * W, C).permute(0, 3, 1, 2)


class Enlarge(nn.Module):
    """Twice the side: each pixel repeated, then a convolution; channels-last. `size`: (height, width) of the result, where it is not
    twice x's but a pixel less.

    A window of 3 x 3 over repeated pixels sees but 2 x 2 different ones: for each of the four places that a result can have beside
    its pixel, a convolution of 2 x 2 whose weights are sums gives the same, with 4 / 9 of the multiplications. Summing pays where
    there are more pixels than channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        C, H, W = x.shape[1:]
        size = size or (2 * H, 2 * W)
        if H * W < C:
            return self.conv(doubled(x)[:, :, : size[0], : size[1]])
        y = self._four(x).permute(0, 2, 3, 1).unflatten(3, (2, 2, C))
        rows = [torch.stack([y[:, a : a + H, b : b + W, b, a] for b in (0, 1)], dim=3) for a in (0, 1)]
        out = torch.stack(rows, dim=2).flatten(3, 4).flatten(1, 2)  # strides as torch wants them of channels-last also where B = 1
        return out.permute(0, 3, 1, 2)[:, :, : size[0], : size[1]]

    def _four(self, x: Tensor) -> Tensor:
        """The four convolutions of 2 x 2: channels (column, row, out)."""
        assert self.conv.bias is not None
        bias = self.conv.bias.repeat(4)
        if not self.conv.packs(x):
            return F.conv2d(x, self._sums(), bias, padding=1)
        x, weight, kept = x.to(self.conv.weight.dtype), self.conv.weight, self.conv.kept
        if kept is None or kept[0] is not weight or kept[1] != weight._version:
            kept = self.conv.kept = weight, weight._version, reordered(self._sums().detach(), x, (1, 1))
        return product(x, kept[2], bias, (1, 1))

    def _sums(self) -> Tensor:
        return _summed(_summed(self.conv.dense())).flatten(0, 2)


def _summed(weight: Tensor) -> Tensor:
    """[..., 3, k] -> [2, ..., k, 2]: the three taps as two, for the first and for the second of two equal pixels. Twice: for both sides."""
    a, b, c = weight.unbind(-2)
    return torch.stack([torch.stack([a, b + c], dim=-1), torch.stack([a + b, c], dim=-1)])


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm, faster on a CPU where channels lie together and a group has few of them.

    In bf16 torch 2.13 goes through such groups number by number: forwards where there are fewer than 1,024 positions (16 x 64 channels x
    16 x 16, groups of 2: 3.8 ms on a core of a Xeon, 0.4 with two copies, to channels that lie apart and back), backwards anyway (64 x 16
    x 32 x 32: 10.9 ms against 2.5). Compiled it goes group by group, two lanes of sixteen at work where a group is two channels: see
    `_ByChannel`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            if x.is_cpu and x.ndim == 4 and x.shape[1] <= 256:  # as fast as torch's there, faster below
                return _ByChannel.apply(x, self.weight, self.bias, self.num_groups, self.eps)
            return super().forward(x)
        narrow = x.dtype is torch.bfloat16 and x.is_cpu and x.ndim == 4 and x.shape[1] < 16 * self.num_groups
        if not narrow or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        if learns(x, self.weight) and x.shape[1] <= 64:
            return _GroupNorm.apply(x, self.weight, self.bias, self.num_groups, self.eps)
        if x.shape[2] * x.shape[3] < 1024:
            return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)
        return super().forward(x)


class _ByChannel(torch.autograd.Function):
    """Group norm by sums over positions alone, which torch's compiler makes of all channels at once. A training step of the recipe `ddpm`
    (bf16, 64 pictures, one core of Zen 5) takes 125 ms with it, 157 without.

        y = s x + t,         s = w r,  t = b - m s;        m, r: mean and 1 / deviation of a channel's group
        dx = s dy + p x + q, p = (<w a> m - <w g>) r^3,    q = -p m - <w a> r

    a, g: sums over positions of dy and dy x; <.>: the mean over a group's numbers, handed to each of its channels by M_CC.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
        x_BLC = _together(x)
        M_CC = _means(groups, x_BLC)
        m_BC = x_BLC.sum(1) @ M_CC
        var_BC = (x_BLC.square().sum(1) @ M_CC - m_BC.square()).clamp(min=0)
        r_BC = (var_BC + eps).rsqrt()
        s_BC = r_BC * weight
        t_BC = bias - m_BC * s_BC
        ctx.save_for_backward(x, weight, m_BC, r_BC)
        ctx.groups = groups
        return _apart(x_BLC * s_BC[:, None] + t_BC[:, None], x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, m_BC, r_BC = ctx.saved_tensors
        x_BLC, dy_BLC = _together(x), _together(grad)
        M_CC = _means(ctx.groups, x_BLC)
        a_BC, g_BC = dy_BLC.sum(1), (dy_BLC * x_BLC).sum(1)
        wa_BC, wg_BC = (a_BC * weight) @ M_CC, (g_BC * weight) @ M_CC
        p_BC = (wa_BC * m_BC - wg_BC) * r_BC**3
        q_BC = -p_BC * m_BC - wa_BC * r_BC
        dx_BLC = dy_BLC * (weight * r_BC)[:, None] + x_BLC * p_BC[:, None] + q_BC[:, None]
        return _apart(dx_BLC, x), ((g_BC - a_BC * m_BC) * r_BC).sum(0).to(weight.dtype), a_BC.sum(0).to(weight.dtype), None, None


def _together(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H W, C], float32 at least."""
    return x.permute(0, 2, 3, 1).flatten(1, 2).to(torch.promote_types(x.dtype, torch.float32))


def _apart(x_BLC: Tensor, like: Tensor) -> Tensor:
    return x_BLC.to(like.dtype).unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def _means(groups: int, x_BLC: Tensor) -> Tensor:
    """[C, C]: sums of channels to the means of their groups."""
    per = x_BLC.shape[2] // groups
    group_C = torch.arange(x_BLC.shape[2]) // per
    return (group_C[:, None] == group_C).to(x_BLC.dtype) / (per * x_BLC.shape[1])


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
