"""ResNet (He et al., arXiv 1512.03385), version 1.5: a bottleneck halves the grid in its 3 x 3 convolution, not in the first 1 x 1.

    224 x 224 -> stem 112 -> pool 56 -> stages 56, 28, 14, 7 (256, 512, 1024, 2048 channels) -> mean -> classes

With `norm_groups` the network is the other ResNet of the field: GroupNorm in place of BatchNorm, standardised weights (arXiv
1903.10520) and padding at the right and at the bottom where it does not come out even, as in BiT (arXiv 1912.11370, there with the
norms in front) and in the stem of the hybrid ViT (arXiv 2010.11929). A row then does not depend on its batch, in training either.

Shape legend: B batch, C channels, H W grid, L = H W positions, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import ConditionSpec
from ._classify import Classification

__all__ = ["ResNet", "Config", "SIZES", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """image_size: side that it is trained and shown at; any side works, best a multiple of all strides together.
    widths: channels behind each stage; a bottleneck works with a quarter of them inside.  depths: blocks of each stage.
    first_stride: of the first stage.  stride_in: of a bottleneck, "1x1" is version 1.  norm_groups: 0 = BatchNorm.
    num_classes: 0 = no head."""

    image_size: int = 224
    stem_width: int = 64
    widths: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)
    block: Literal["basic", "bottleneck"] = "bottleneck"
    first_stride: Literal[1, 2] = 1
    stride_in: Literal["3x3", "1x1"] = "3x3"
    norm_groups: int = 0
    num_classes: int = 0


SIZES = {
    "tiny": Config(image_size=32, stem_width=8, widths=(16, 32), depths=(1, 1), num_classes=10),
    "small": Config(image_size=32, stem_width=32, widths=(32, 64, 128), depths=(1, 1, 1), block="basic", num_classes=10),
    "resnet18": Config(widths=(64, 128, 256, 512), depths=(2, 2, 2, 2), block="basic", num_classes=1000),
    "resnet34": Config(widths=(64, 128, 256, 512), depths=(3, 4, 6, 3), block="basic", num_classes=1000),
    "resnet50": Config(num_classes=1000),
    "resnet101": Config(depths=(3, 4, 23, 3), num_classes=1000),
}


class ConvNorm(nn.Module):
    """A convolution without bias and its norm. With `groups`: standardised weights, GroupNorm, and the grid's side rounded up."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, groups: int) -> None:
        super().__init__()
        self.kernel, self.stride, self.groups = kernel, stride, groups
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=0 if groups else kernel // 2, bias=False)
        self.norm = nn.GroupNorm(groups, out_channels) if groups else nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        if not self.groups:
            return self.norm(self.conv(x))
        weight = self.conv.weight
        var, mean = torch.var_mean(weight, dim=(1, 2, 3), keepdim=True, correction=0)
        weight = (weight - mean) * torch.rsqrt(var + 1e-8)
        return self.norm(F.conv2d(_padded(x, self.kernel, self.stride), weight, stride=self.stride))


class Block(nn.Module):
    """relu(shortcut(x) + convs(x)): two 3 x 3 convolutions, or 1 x 1, 3 x 3, 1 x 1 at a quarter of the width."""

    def __init__(self, config: Config, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        groups, inner = config.norm_groups, out_channels // 4
        early, late = (stride, 1) if config.stride_in == "1x1" else (1, stride)
        if config.block == "basic":
            shapes = [(in_channels, out_channels, 3, stride), (out_channels, out_channels, 3, 1)]
        else:
            shapes = [(in_channels, inner, 1, early), (inner, inner, 3, late), (inner, out_channels, 1, 1)]
        self.convs = nn.ModuleList(ConvNorm(*shape, groups) for shape in shapes)
        same = in_channels == out_channels and stride == 1
        self.shortcut = nn.Identity() if same else ConvNorm(in_channels, out_channels, 1, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in self.convs[:-1]:
            y = F.relu(conv(y))
        return F.relu(self.convs[-1](y) + self.shortcut(x))


class ResNet(nn.Module):
    """`condition` is what a text encoder beside it gives; a ResNet does not listen.

    All methods take pixels as the network was trained on them, float32 [B, 3, H, W], each side at least as long as all strides together.
    Raises ValueError if there are not as many widths as depths, or a width does not split.
    """

    def __init__(self, config: Config, *, condition: ConditionSpec | None = None) -> None:
        super().__init__()
        if not config.depths or len(config.widths) != len(config.depths):
            raise ValueError(f"{len(config.widths)} widths and {len(config.depths)} depths: a stage has one of each, and there is a stage")
        unit = (4 if config.block == "bottleneck" else 1) * max(1, config.norm_groups)
        wrong = [width for width in config.widths if width % unit] + [config.stem_width][: config.stem_width % max(1, config.norm_groups)]
        if wrong:
            raise ValueError(f"width {wrong[0]} does not split into bottlenecks and groups; take a multiple of {unit}")
        self.config, self.image_size = config, config.image_size
        self.stem = ConvNorm(3, config.stem_width, 7, 2, config.norm_groups)
        strides = (config.first_stride, *[2] * (len(config.depths) - 1))
        before = (config.stem_width, *config.widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(Block(config, a, b, stride), *(Block(config, b, b, 1) for _ in range(depth - 1)))
            for a, b, stride, depth in zip(before, config.widths, strides, config.depths, strict=True)
        )
        self.head = nn.Linear(config.widths[-1], config.num_classes) if config.num_classes else None

    def pyramid(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """The map behind each stage, [B, widths[i], H_i, W_i], the finest first."""
        x = F.relu(self.stem(pixels_BCHW))
        x = F.max_pool2d(_padded(x, 3, 2), 3, 2) if self.config.norm_groups else F.max_pool2d(x, 3, 2, padding=1)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """The last map, row by row: [B, L, C]."""
        return rearrange(self.pyramid(pixels_BCHW)[-1], "b c h w -> b (h w) c")

    def pooled(self, pixels_BCHW: Tensor) -> Tensor:
        """The mean over the last map: [B, C]."""
        return self.pyramid(pixels_BCHW)[-1].mean(dim=(2, 3))

    def classify(self, pixels_BCHW: Tensor) -> Tensor:
        """Logits [B, K]. Raises ValueError if the network was built without a head."""
        if self.head is None:
            raise ValueError("this ResNet has no head (num_classes = 0): it gives features, not classes")
        return self.head(self.pooled(pixels_BCHW))


TASKS = {"classify": Classification}


def _padded(x_BCHW: Tensor, kernel: int, stride: int) -> Tensor:
    """Zeros around, so that a side of n gives ceil(n / stride); the odd one stands at the right and at the bottom."""
    need = [max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in (x_BCHW.shape[3], x_BCHW.shape[2])]
    return F.pad(x_BCHW, [part for n in need for part in (n // 2, n - n // 2)])
