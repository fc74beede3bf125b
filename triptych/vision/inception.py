"""Inception v3 as the FID measures with it (Szegedy et al., arXiv 1512.00567; Heusel et al., arXiv 1706.08500).

The network of TensorFlow's file of 2015-12-05 has quirks that its published scores depend on, all of them kept here:
    average pooling counts no padding;  the LAST block pools by maximum where its twin before it averages;  1,008 classes, eight unused;
    pictures of any size are resized inside, bilinear by the rule of TensorFlow 1: no smoothing, corners at 0, the last row repeated;
    pixels are (byte - 128) / 128;  probabilities for the Inception Score leave the head's bias out (arXiv 1606.03498's program).

The weights are a person's own: `Inception.from_file(PATH)` reads the public `pt_inception-2015-12-05` state dict saved as safetensors, and
says in `.original` whether they are the original ones: only then may a distance be called FID. Without a file the weights are random.
Names of tensors are the file's.

Shape legend: B batch, C channels, H W grid, L positions, D width, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import ConditionSpec
from ._classify import Classification

__all__ = ["Inception", "Config", "SIZES", "TASKS", "digest", "resize", "save_original"]

PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"  # SHA-256 of the file pt_inception-2015-12-05-6726825d.pth


@dataclass(frozen=True, kw_only=True)
class Config:
    """side: to which pictures are resized inside, 75 or more.  image_size: of the pictures it is made for; any other is resized too.
    shrink: by which every number of channels is divided.  num_classes: 0 = no head."""

    image_size: int = 299
    side: int = 299
    shrink: int = 1
    num_classes: int = 1008


SIZES = {"tiny": Config(image_size=32, side=75, shrink=16, num_classes=10), "2015-12-05": Config(), "ImageNet": Config(num_classes=1000)}


class Conv(NamedTuple):
    """A convolution with its norm. At stride 1 it keeps the size; at stride 2 it has no padding."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


# A branch is a chain: of convolutions, of forks into two of them side by side, and of pools: "avg" and "max" at stride 1, "down" at 2.
Branch = Sequence["str | Conv | list[Conv]"]
SQUARE, ROW, COLUMN = (3, 3), (1, 7), (7, 1)


def _a(pool: int) -> Sequence[Branch]:
    return (
        [Conv("branch1x1", 64)],
        [Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))],
        [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, SQUARE), Conv("branch3x3dbl_3", 96, SQUARE)],
        ["avg", Conv("branch_pool", pool)],
    )


def _c(inner: int) -> Sequence[Branch]:
    long = [Conv("branch7x7dbl_1", inner), Conv("branch7x7dbl_2", inner, COLUMN), Conv("branch7x7dbl_3", inner, ROW)]
    return (
        [Conv("branch1x1", 192)],
        [Conv("branch7x7_1", inner), Conv("branch7x7_2", inner, ROW), Conv("branch7x7_3", 192, COLUMN)],
        [*long, Conv("branch7x7dbl_4", inner, COLUMN), Conv("branch7x7dbl_5", 192, ROW)],
        ["avg", Conv("branch_pool", 192)],
    )


def _e(pool: str) -> Sequence[Branch]:
    deep = [Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, SQUARE)]
    return (
        [Conv("branch1x1", 320)],
        [Conv("branch3x3_1", 384), [Conv("branch3x3_2a", 384, (1, 3)), Conv("branch3x3_2b", 384, (3, 1))]],
        [*deep, [Conv("branch3x3dbl_3a", 384, (1, 3)), Conv("branch3x3dbl_3b", 384, (3, 1))]],
        [pool, Conv("branch_pool", 192)],
    )


B: Sequence[Branch] = (
    [Conv("branch3x3", 384, SQUARE, 2)],
    [Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, SQUARE), Conv("branch3x3dbl_3", 96, SQUARE, 2)],
    ["down"],
)
D: Sequence[Branch] = (
    [Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, SQUARE, 2)],
    [
        Conv("branch7x7x3_1", 192), Conv("branch7x7x3_2", 192, ROW), Conv("branch7x7x3_3", 192, COLUMN),
        Conv("branch7x7x3_4", 192, SQUARE, 2),
    ],
    ["down"],
)  # fmt: skip
STEM = {"Conv2d_1a_3x3": (32, 3, 2, 0), "Conv2d_2a_3x3": (32, 3, 1, 0), "Conv2d_2b_3x3": (64, 3, 1, 1)}
AFTER = {"Conv2d_3b_1x1": (80, 1, 1, 0), "Conv2d_4a_3x3": (192, 3, 1, 0)}  # channels, kernel, stride, padding; "down" before and behind
BLOCKS: Mapping[str, Sequence[Branch]] = {
    "Mixed_5b": _a(32), "Mixed_5c": _a(64), "Mixed_5d": _a(64), "Mixed_6a": B, "Mixed_6b": _c(128), "Mixed_6c": _c(160),
    "Mixed_6d": _c(160), "Mixed_6e": _c(192), "Mixed_7a": D, "Mixed_7b": _e("avg"), "Mixed_7c": _e("max"),
}  # fmt: skip


def _pool(x_BCHW: Tensor, how: str) -> Tensor:
    if how == "avg":
        return F.avg_pool2d(x_BCHW, 3, stride=1, padding=1, count_include_pad=False)
    return F.max_pool2d(x_BCHW, 3, stride=1, padding=1) if how == "max" else F.max_pool2d(x_BCHW, 3, stride=2)


class ConvBN(nn.Module):
    """Convolution without bias, batch norm (eps 0.001), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: Any, stride: int, padding: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels, eps=0.001)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x_BCHW)))


class Mixed(nn.Module):
    """Branches side by side, their channels in order."""

    def __init__(self, channels: int, branches: Sequence[Branch], shrink: int) -> None:
        super().__init__()
        self.branches, self.out_channels = branches, 0
        for branch in branches:
            here = channels
            for part in branch:
                if isinstance(part, str):
                    continue
                fork = [part] if isinstance(part, Conv) else part
                for conv in fork:
                    padding = (conv.kernel[0] // 2, conv.kernel[1] // 2) if conv.stride == 1 else 0
                    self.add_module(conv.name, ConvBN(here, conv.channels // shrink, conv.kernel, conv.stride, padding))
                here = sum(conv.channels // shrink for conv in fork)
            self.out_channels += here

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out = []
        for branch in self.branches:
            y = x_BCHW
            for part in branch:
                if isinstance(part, str):
                    y = _pool(y, part)
                elif isinstance(part, Conv):
                    y = self.get_submodule(part.name)(y)
                else:
                    y = torch.cat([self.get_submodule(conv.name)(y) for conv in part], dim=1)
            out.append(y)
        return torch.cat(out, dim=1)


class Inception(nn.Module):
    """`condition` is what a text encoder beside it gives; this network does not listen.

    Methods take pixels as `preprocess` makes them, of any size. Raises ValueError for a side below 75, or a shrink that does not divide 16.
    """

    mean, std = (128 / 255,) * 3, (128 / 255,) * 3  # what `preprocess` does, said in [0, 1]

    def __init__(self, config: Config, *, condition: ConditionSpec | None = None) -> None:
        super().__init__()
        if config.side < 75:
            raise ValueError(f"side {config.side}: nothing is left of a picture below 75 behind five halvings without padding")
        if 16 % config.shrink:
            raise ValueError(f"shrink {config.shrink} must divide 16, as all numbers of channels do")
        self.config, self.image_size = config, config.image_size
        self.original = False
        channels = 3
        for name, (wanted, *shape) in {**STEM, **AFTER}.items():
            self.add_module(name, ConvBN(channels, wanted // config.shrink, *shape))
            channels = wanted // config.shrink
        for name, branches in BLOCKS.items():
            block = Mixed(channels, branches, config.shrink)
            self.add_module(name, block)
            channels = block.out_channels
        self.width = channels
        self.fc = nn.Linear(channels, config.num_classes) if config.num_classes else None

    @classmethod
    def from_file(cls, path: str | Path) -> Inception:
        """The network with a person's weights, frozen, in evaluation mode; `.original` says whether they are the original ones.

        Recognised is what `save_original` wrote: a file that names the SHA-256 of the published one, and whose tensors, hashed again, are
        those that were read from it. Raises ValueError for a file that cannot be read or is of another network.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                said = file.metadata() or {}
                tensors = _without_counters({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 (it is no dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
        made = cls(Config(num_classes=len(tensors["fc.weight"]) if "fc.weight" in tensors else 0))
        own = _without_counters(made.state_dict())
        for name in sorted(own.keys() | tensors.keys()):
            mine, theirs = (list(side[name].shape) if name in side else "missing" for side in (own, tensors))
            if mine != theirs:
                raise ValueError(f"{path} is no Inception of 2015-12-05: tensor {name!r} is {theirs} there, {mine} in the network")
        made.load_state_dict(tensors, strict=False)  # all names were compared; only the counters, which nothing reads, are left
        made.original = said.get("source_sha256") == PUBLISHED and said.get("content_sha256") == digest(tensors)
        return made.eval().requires_grad_(False)

    def fuse(self) -> Inception:
        """Batch norms drawn into their convolutions, channels last in memory: the same output, faster. It can no longer train."""
        for part in self.modules():
            if isinstance(part, ConvBN) and isinstance(part.bn, nn.BatchNorm2d):
                part.conv, part.bn = nn.utils.fuse_conv_bn_eval(part.conv.eval(), part.bn.eval()), nn.Identity()
        return self.eval().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def preprocess(self, images_BCHW: Tensor) -> Tensor:
        """Pictures in [-1, 1] to pixels: whole bytes, as the picture would be in its file, then (byte - 128) / 128."""
        return (((images_BCHW.float() + 1) * 127.5).round().clamp(0, 255) - 128) / 128

    def maps(self, pixels_BCHW: Tensor) -> Tensor:
        """The last map, [B, D, H, W]: of the original 2048 x 8 x 8."""
        x_BCHW = resize(pixels_BCHW, self.config.side)
        for group in (STEM, AFTER):
            for name in group:
                x_BCHW = self.get_submodule(name)(x_BCHW)
            x_BCHW = _pool(x_BCHW, "down")
        for name in BLOCKS:
            x_BCHW = self.get_submodule(name)(x_BCHW)
        return x_BCHW

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """The last map, row by row: [B, L, D]."""
        return rearrange(self.maps(pixels_BCHW), "b d h w -> b (h w) d")

    def pooled(self, pixels_BCHW: Tensor) -> Tensor:
        """pool3, what the FID compares: the mean over the last map, [B, D]."""
        return self.maps(pixels_BCHW).mean(dim=(2, 3))

    def classify(self, pixels_BCHW: Tensor) -> Tensor:
        """Logits [B, K]. Raises ValueError if the network was built without a head."""
        if self.fc is None:
            raise ValueError("this Inception has no head (num_classes = 0): it gives features, not classes")
        return self.fc(self.pooled(pixels_BCHW))

    def features_and_probabilities(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """pool3 [B, D], and what the Inception Score asks, in one look: softmax of the logits without their bias, [B, K]."""
        if self.fc is None:
            raise ValueError("this Inception has no head (num_classes = 0): it gives features, not classes")
        pooled_BD = self.pooled(pixels_BCHW)
        return pooled_BD, F.linear(pooled_BD, self.fc.weight).softmax(dim=1)

    def probabilities(self, pixels_BCHW: Tensor) -> Tensor:
        """The Inception Score's [B, K] alone."""
        return self.features_and_probabilities(pixels_BCHW)[1]


TASKS = {"classify": Classification}


def resize(x_BCHW: Tensor, side: int) -> Tensor:
    """TensorFlow 1's bilinear resize: row i lies at i * H / side of the picture, between two of its rows, the last one repeated."""
    for dim in (2, 3):
        size = x_BCHW.shape[dim]
        if size == side:
            continue
        at = torch.arange(side, device=x_BCHW.device, dtype=torch.float32) * torch.tensor(size / side, dtype=torch.float32)
        low = at.floor().long().clamp_max(size - 1)
        share = (at - low).to(x_BCHW.dtype).view([-1 if d == dim else 1 for d in range(4)])
        below, above = x_BCHW.index_select(dim, low), x_BCHW.index_select(dim, (low + 1).clamp_max(size - 1))
        x_BCHW = below + (above - below) * share
    return x_BCHW


def _without_counters(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values as float32, in the order of names: the same however the file was written."""
    found = hashlib.sha256()
    for name, tensor in sorted(_without_counters(tensors).items()):
        values = tensor.detach().cpu().float().contiguous()
        found.update(f"{name} {list(values.shape)}\n".encode() + values.numpy().astype("<f4").tobytes())
    return found.hexdigest()


def save_original(path: str | Path, tensors: Mapping[str, Tensor], source_sha256: str) -> None:
    """Write the published state dict as safetensors, so that `from_file` recognises it. `source_sha256`: of the file it was read from.

    Raises ValueError if that is not the published file.
    """
    from safetensors.torch import save_file

    if source_sha256 != PUBLISHED:
        raise ValueError(f"the file's SHA-256 is {source_sha256}; pt_inception-2015-12-05-6726825d.pth has {PUBLISHED}")
    plain = {name: tensor.detach().float().contiguous() for name, tensor in _without_counters(tensors).items()}
    save_file(plain, str(path), metadata={"source_sha256": source_sha256, "content_sha256": digest(plain)})
