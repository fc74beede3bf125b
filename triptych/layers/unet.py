"""The parts of U-Nets: residual blocks that hear the time, attention over positions, transformers over positions, half a network.

A block hears a row of numbers, its modulation, which one product makes for all blocks of a network (`Clock`); an attention hears
the words' keys and values, which one product makes for all of them (`TextKeys`). `Heard` hands both out in the order of the blocks.

A picture may be told more than one thing: where the condition has k times the pictures' rows, row i stands for rows i, B + i, ... of
it. What is the same for all of them is computed once; where what was told comes in, the rows become as many (`together`). So both
branches of guidance share a prefix: with SD 1.5 all up to the first question to the words.

Shape legend: B batch, C channels, H W grid, L = H W positions, M words, D width, N heads, d = C / N, E width of the time's code.
Pictures inside are channels-last: the products over positions then need no copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from triptych.layers.attention import attend
from triptych.layers.conv import Conv, Down, Enlarge, GroupNorm, doubled, halved, silu
from triptych.layers.embed import timestep_embedding
from triptych.layers.linear import Linear

__all__ = [
    "AttentionPool", "Clock", "DownPath", "Heard", "Level", "Plan", "SpatialAttention", "Stage", "TextKeys", "TimeBlock", "Transformer",
    "per_level", "together",
]  # fmt: skip

Text = tuple[Tensor, Tensor]  # keys and values, [B, N, M, d] each


class Heard(NamedTuple):
    """What blocks and attentions are told, each taking the next of its own; texts gives None for ever where nobody speaks."""

    modulations: Iterator[Tensor]
    texts: Iterator[Text | None]
    mask_BM: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What all levels of one network have in common; the fields are `generators.unet.Config`'s, one entry a level.

    hears: the words that attentions are told: by "cross" each is a transformer, by "keys" they join the positions' own.
    middle_attention: does the middle have one?
    """

    widths: tuple[int, ...]
    num_res_blocks: tuple[int, ...]
    attention: tuple[int, ...]
    num_heads: tuple[int, ...]
    depth: tuple[int, ...]
    hears: Literal["cross", "keys", "none"] = "none"
    form: Literal["add", "scale_shift"] = "add"
    resize: Literal["conv", "resnet"] = "conv"
    asymmetric: bool = False
    groups: int = 32
    eps: float = 1e-5
    dropout: float = 0.0
    middle_attention: bool = True

    def __post_init__(self) -> None:
        """Raises ValueError for widths that heads or groups do not divide, and levels that do not exist."""
        levels = len(self.widths)
        if not levels or not all(0 <= level < levels for level in self.attention):
            raise ValueError(f"attention at levels {self.attention} of {levels}: the first is 0, the last {levels - 1}")
        listening = {*self.attention, *([levels - 1] if self.middle_attention else [])}  # the middle is as the last level
        for level, (width, heads) in enumerate(zip(self.widths, self.num_heads, strict=True)):
            if width % self.groups:
                raise ValueError(f"level {level} is {width} wide, no multiple of norm_groups = {self.groups}: change one of them")
            if level in listening and (heads < 1 or width % heads):
                raise ValueError(f"level {level} is {width} wide and does not split into {heads} heads: change num_heads or head_width")

    def block(self, in_channels: int, out_channels: int, resample: Literal["down", "up"] | None = None) -> TimeBlock:
        return TimeBlock(
            in_channels, out_channels, form=self.form, groups=self.groups, eps=self.eps, dropout=self.dropout, resample=resample
        )  # fmt: skip

    def attend(self, level: int) -> nn.Module:
        width, heads = self.widths[level], self.num_heads[level]
        if self.hears == "cross":
            return Transformer(width, heads, self.depth[level], self.groups)
        return SpatialAttention(width, heads, self.groups, self.eps, hears=self.hears == "keys")

    def stage(self, in_channels: int, level: int) -> Stage:
        return Stage(self.block(in_channels, self.widths[level]), self.attend(level) if level in self.attention else None)


def per_level(value: int | Sequence[int], levels: int, name: str) -> tuple[int, ...]:
    """One number a level. Raises ValueError for another count of them."""
    numbers = (value,) * levels if isinstance(value, int) else tuple(value)
    if len(numbers) != levels or min(numbers, default=0) < 1:
        raise ValueError(f"{name} = {value}: give one number, or one for each of the {levels} levels, at least 1")
    return numbers


def together(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with as many rows as the longer one, whose number is a multiple of the other's; the same tensors where they are as long."""
    if len(a) == len(b):
        return a, b
    return (a, torch.cat([b] * (len(a) // len(b)))) if len(a) > len(b) else (torch.cat([a] * (len(b) // len(a))), b)


# --- time ---------------------------------------------------------------------------------------------------------------


class Clock(nn.Module):
    """The time, and what is said beside it, to every block's modulation, in float32: it is a few rows, and costs nothing.

    dialect: "openai" = [cos, sin], frequencies from 1 to almost 1 / 10000 (ADM, LDM, SD); "ddpm" = [sin, cos], from 1 to exactly
    1 / 10000 (arXiv 2006.11239).  Raises ValueError for a width that is odd or less than 4.
    """

    def __init__(self, width: int, code: int, dialect: Literal["ddpm", "openai"], modulations: Sequence[int]) -> None:
        super().__init__()
        if width < 4 or width % 2:
            raise ValueError(f"a time is told by {width} sines and cosines: take an even width of at least 4")
        self.width, self.dialect, self.modulations = width, dialect, list(modulations)
        self.first = Linear(width, code)
        self.second = Linear(code, code)
        self.modulation = Linear(code, sum(modulations), parts=modulations)

    def forward(self, clock_B: Tensor, beside: Sequence[Tensor] = ()) -> Iterator[Tensor]:
        """clock_B: floats or integers in the process's unit.  beside: [B, E] each, added to the code."""
        with nullcontext() if clock_B.is_meta else torch.autocast(clock_B.device.type, enabled=False):
            code_BE = self.second(F.silu(self.first(self._sines(clock_B).to(self.first.weight.dtype))))
            for said_BE in beside:
                code_BE, said_BE = together(code_BE, said_BE)
                code_BE = code_BE + said_BE
            return iter(self.modulation(F.silu(code_BE)).split(self.modulations, dim=1))

    def _sines(self, clock_B: Tensor) -> Tensor:
        if self.dialect == "openai":
            return timestep_embedding(clock_B, self.width)
        half = self.width // 2
        exponent = torch.arange(half, dtype=torch.float32, device=clock_B.device) / (half - 1)
        angle = clock_B.float()[:, None] * torch.exp(-math.log(10_000) * exponent)
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class TimeBlock(nn.Module):
    """shortcut(x) + conv(silu(norm(conv(silu(norm(x)))))), told the time behind the first convolution.

    form: "add" = norm(h + m) (DDPM, arXiv 2006.11239); "scale_shift" = (1 + m1) norm(h) + m2 (AdaGN, ADM, arXiv 2105.05233).
    resample: "down" averages 2 x 2 pixels, "up" repeats each, behind the first norm and on the shortcut (BigGAN, arXiv 1809.11096).
    The last convolution starts at zero: the block starts as its shortcut.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, form: Literal["add", "scale_shift"], groups: int, eps: float, dropout: float = 0.0,
        resample: Literal["down", "up"] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.form, self.resample = form, resample
        self.modulation_width = out_channels * (2 if form == "scale_shift" else 1)
        self.norm1 = GroupNorm(groups, in_channels, eps)
        self.conv1 = Conv(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(groups, out_channels, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = Conv(out_channels, out_channels, 3, padding=1)
        self.shortcut = Conv(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, modulation_BM: Tensor) -> Tensor:
        h = silu(self.norm1(x))
        if self.resample is not None:
            resampled = halved if self.resample == "down" else doubled
            x, h = resampled(x), resampled(h)
        h = self.conv1(h)
        h, told = together(h, modulation_BM[:, :, None, None].to(h.dtype))
        if self.form == "scale_shift":
            scale, shift = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + told)
        x, h = together(self.shortcut(x), h)
        return x + self.conv2(self.dropout(silu(h)))


# --- attention ----------------------------------------------------------------------------------------------------------


def positions(x_BCHW: Tensor) -> Tensor:
    return rearrange(x_BCHW, "b c h w -> b (h w) c")


class SpatialAttention(nn.Module):
    """Every position asks every position, and the words where they are told (DDPM; ADM; GLIDE, arXiv 2112.10741); added to x."""

    def __init__(self, channels: int, num_heads: int, groups: int, eps: float, *, hears: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.listeners = [(channels, num_heads)] if hears else []
        self.norm = GroupNorm(groups, channels, eps)
        self.qkv = Linear(channels, 3 * channels, parts=(channels,) * 3)
        self.out = Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, texts: Iterator[Text | None], mask_BM: Tensor | None) -> Tensor:
        asked_BLX, mask_B11K = self.qkv(positions(self.norm(x))), None
        text = next(texts) if self.listeners else None
        if text is not None:
            asked_BLX, _ = together(asked_BLX, text[0])
        q, k, v = rearrange(asked_BLX, "b l (three n d) -> three b n l d", three=3, n=self.num_heads)
        if text is not None:
            k, v = (torch.cat([said.to(k.dtype), own], dim=2) for said, own in zip(text, (k, v), strict=True))
            if mask_BM is not None:  # the positions' own keys stand behind the words'
                mask_B11K = F.pad(mask_BM, (0, q.shape[2]), value=True)[:, None, None]
        heard = rearrange(attend(q, k, v, mask_B11K), "b n l d -> b l (n d)")
        x, heard = together(x, rearrange(self.out(heard), "b (h w) c -> b c h w", h=x.shape[2]))
        return x + heard


class TransformerBlock(nn.Module):
    """Positions ask positions, then the words, then each thinks by itself (GEGLU, arXiv 2002.05202): the block of LDM."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.listeners = num_heads, [(width, num_heads)]
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.qkv = Linear(width, 3 * width, bias=False, parts=(width,) * 3)
        self.out = Linear(width, width)
        self.cross_query = Linear(width, width, bias=False)
        self.cross_out = Linear(width, width)
        self.up = Linear(width, 8 * width, gated=True)
        self.down = Linear(4 * width, width)

    def forward(self, x_BLD: Tensor, text: Text, mask_B11M: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x_BLD)), "b l (three n d) -> three b n l d", three=3, n=self.num_heads)
        x_BLD = x_BLD + self.out(rearrange(attend(q, k, v), "b n l d -> b l (n d)"))
        q_BLD, _ = together(self.cross_query(self.norm2(x_BLD)), text[0])
        q = rearrange(q_BLD, "b l (n d) -> b n l d", n=self.num_heads)
        k, v = (said.to(q.dtype) for said in text)
        x_BLD, _ = together(x_BLD, q)
        x_BLD = x_BLD + self.cross_out(rearrange(attend(q, k, v, mask_B11M), "b n l d -> b l (n d)"))
        return x_BLD + self.down(self.up.geglu(self.norm3(x_BLD)))


class Transformer(nn.Module):
    """A norm, a product, transformer blocks over all positions, a product, added to x (LDM, arXiv 2112.10752, appendix E.2.1).

    The two products are 1 x 1 convolutions in LDM and SD 1, and linear layers in SD 2: the same numbers.
    """

    def __init__(self, channels: int, num_heads: int, depth: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, 1e-6)
        self.enter = Linear(channels, channels)
        self.blocks = nn.ModuleList(TransformerBlock(channels, num_heads) for _ in range(depth))
        self.leave = Linear(channels, channels)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, texts: Iterator[Text | None], mask_BM: Tensor | None) -> Tensor:
        h_BLD = self.enter(positions(self.norm(x)))
        mask_B11M = None if mask_BM is None else mask_BM[:, None, None]
        for block in self.blocks:
            h_BLD = block(h_BLD, next(texts), mask_B11M)
        x, h = together(x, rearrange(self.leave(h_BLD), "b (h w) c -> b c h w", h=x.shape[2]))
        return x + h


class TextKeys(nn.Module):
    """The words' keys and values for all attentions in one product: nothing in it depends on the picture or on time.

    listeners: (width, heads) of each attention, in order.  X = the sum of 2 * width.
    """

    def __init__(self, text_width: int, listeners: Sequence[tuple[int, int]], bias: bool) -> None:
        super().__init__()
        self.listeners = list(listeners)
        parts = [width for width, _ in listeners for _ in range(2)]
        self.keys_values = Linear(text_width, sum(parts), bias=bias, parts=parts)
        for part in self.keys_values.weight.split(parts):
            nn.init.xavier_uniform_(part)  # each is as wide as the picture's own keys, not as all together

    def forward(self, tokens_BMD: Tensor) -> Tensor:
        """[B, M, D] -> [B, M, X]."""
        return self.keys_values(tokens_BMD)

    def split(self, prepared_BMX: Tensor) -> list[Text]:
        """Keys and values [B, N, M, d] of each attention, in order."""
        parts = prepared_BMX.split([2 * width for width, _ in self.listeners], dim=2)
        both = [rearrange(p, "b m (two n d) -> two b n m d", two=2, n=n) for p, (_, n) in zip(parts, self.listeners, strict=True)]
        return [(k, v) for k, v in both]


class AttentionPool(nn.Module):
    """The mean of all positions asks all positions and itself: [B, C, H, W] -> [B, C] (CLIP, arXiv 2103.00020; ADM's classifier)."""

    def __init__(self, channels: int, num_heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.position_LD = nn.Parameter(torch.randn(1 + grid[0] * grid[1], channels) * channels**-0.5)
        self.query = Linear(channels, channels)
        self.keys_values = Linear(channels, 2 * channels, parts=(channels,) * 2)

    def forward(self, x: Tensor) -> Tensor:
        x_BLD = positions(x)
        x_BLD = torch.cat([x_BLD.mean(dim=1, keepdim=True), x_BLD], dim=1) + self.position_LD.to(x.dtype)
        q = rearrange(self.query(x_BLD[:, :1]), "b 1 (n d) -> b n 1 d", n=self.num_heads)
        k, v = rearrange(self.keys_values(x_BLD), "b l (two n d) -> two b n l d", two=2, n=self.num_heads)
        return rearrange(attend(q, k, v), "b n 1 d -> b (n d)")


# --- levels -------------------------------------------------------------------------------------------------------------


class Stage(nn.Module):
    """A residual block, and an attention behind it where the level has one."""

    def __init__(self, block: TimeBlock, attention: nn.Module | None) -> None:
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, x: Tensor, heard: Heard) -> Tensor:
        x = self.block(x, next(heard.modulations))
        return x if self.attention is None else self.attention(x, heard.texts, heard.mask_BM)


class Level(nn.Module):
    """The stages of one resolution, and what leads to the next."""

    def __init__(self, stages: Sequence[Stage], resize: nn.Module | None = None) -> None:
        super().__init__()
        self.stages, self.resize = nn.ModuleList(stages), resize

    def resized(self, x: Tensor, heard: Heard, size: tuple[int, int]) -> Tensor:
        """size: of the result; only an enlarging convolution asks."""
        if isinstance(self.resize, TimeBlock):
            return self.resize(x, next(heard.modulations))
        assert self.resize is not None
        return self.resize(x, size) if isinstance(self.resize, Enlarge) else self.resize(x)


class DownPath(nn.Module):
    """The half of a U-Net that grows smaller, and its middle: a picture to its smallest map, and all that it was on the way."""

    def __init__(self, plan: Plan, in_channels: int) -> None:
        super().__init__()
        last, channels = len(plan.widths) - 1, plan.widths[0]
        self.stem = Conv(in_channels, channels, 3, padding=1)
        self.kept = [channels]  # channels of what the way up is handed, in order
        levels = []
        for i, width in enumerate(plan.widths):
            stages = []
            for _ in range(plan.num_res_blocks[i]):
                stages.append(plan.stage(channels, i))
                channels = width
            resize = None
            if i < last:
                resize = plan.block(width, width, "down") if plan.resize == "resnet" else Down(width, plan.asymmetric)
            levels.append(Level(stages, resize))
            self.kept += [width] * (len(stages) + (i < last))
        self.levels = nn.ModuleList(levels)
        middle = plan.widths[last]
        attention = plan.attend(last) if plan.middle_attention else None
        self.mid = Level([Stage(plan.block(middle, middle), attention), Stage(plan.block(middle, middle), None)])

    def forward(self, x: Tensor, heard: Heard) -> tuple[Tensor, list[Tensor]]:
        """x [B, C, H, W] to the middle's map and the skips, one for each entry of `kept`."""
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for level in self.levels:
            for stage in level.stages:  # type: ignore[union-attr]
                x = stage(x, heard)
                skips.append(x)
            if level.resize is not None:
                x = level.resized(x, heard, (0, 0))  # type: ignore[operator]
                skips.append(x)
        for stage in self.mid.stages:
            x = stage(x, heard)
        return x, skips
