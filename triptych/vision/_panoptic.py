"""DETR's mask head: a mask for every query, from where it looks and what the backbone saw (arXiv 2005.12872, section 4.4, figure 8).

Each query's attention over the encoder's map, one heat map a head, is stacked onto that map, and convolutions carry it up the
backbone's pyramid, half the channels and twice the grid at each step, to a quarter of the picture's side.

Shape legend: B batch, Q queries, N heads, D width, K = D / N, C channels, H W grid of the encoder, h w of a finer map.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

__all__ = ["MaskHead"]


class AttentionMaps(nn.Module):
    """How much each query looks at each place, by head: [B, Q, N, H, W]. One softmax over heads and places together."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, query_BQD: Tensor, memory_BDHW: Tensor, real_BHW: Tensor) -> Tensor:
        query = rearrange(self.query(query_BQD), "b q (n k) -> b q n k", n=self.num_heads)
        key = rearrange(self.key(memory_BDHW.movedim(1, -1)), "b h w (n k) -> b n k h w", n=self.num_heads)
        score = torch.einsum("bqnk,bnkhw->bqnhw", query * query.shape[-1] ** -0.5, key)
        score = score.masked_fill(~real_BHW[:, None, None], -torch.inf)
        return score.flatten(2).softmax(-1).view_as(score)


class ConvNorm(nn.Module):
    """relu(norm(conv(x))), 3 x 3."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm = nn.GroupNorm(min(8, out_channels), out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)))


class MaskHead(nn.Module):
    """finer: channels of the backbone's maps, from the one before the last up to the finest.

    Raises ValueError for widths that do not halve that often, or then do not split into 8 groups.
    """

    def __init__(self, width: int, num_heads: int, finer: Sequence[int]) -> None:
        super().__init__()
        inner = [width // 2 ** (i + 1) for i in range(len(finer) + 1)]
        if (width + num_heads) % 8 or width % (2 * inner[-1]) or any(n % min(8, n) for n in inner):
            raise ValueError(f"masks halve the width {width} to {inner}: take a power of 2, and a multiple of 8 heads (not {num_heads})")
        self.look = AttentionMaps(width, num_heads)
        self.first = ConvNorm(width + num_heads, width + num_heads)
        self.second = ConvNorm(width + num_heads, width // 2)
        self.adapters = nn.ModuleList(nn.Conv2d(c, d, 1) for c, d in zip(finer, inner, strict=False))
        self.convs = nn.ModuleList(ConvNorm(a, b) for a, b in itertools.pairwise(inner))
        self.last = nn.Conv2d(inner[-1], 1, 3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=1)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, query_BQD: Tensor, source_BDHW: Tensor, memory_BDHW: Tensor, real_BHW: Tensor, finer: Sequence[Tensor]) -> Tensor:
        """Logits [B, Q, h, w] on the finest map. source: the encoder's input; memory: its output; real: False = padding."""
        Q = query_BQD.shape[1]
        maps = rearrange(self.look(query_BQD, memory_BDHW, real_BHW), "b q n h w -> (b q) n h w")
        x = self.second(self.first(torch.cat([repeat(source_BDHW, "b d h w -> (b q) d h w", q=Q), maps], dim=1)))
        for adapter, conv, map_BChw in zip(self.adapters, self.convs, finer, strict=True):
            x = conv(repeat(adapter(map_BChw), "b d h w -> (b q) d h w", q=Q) + F.interpolate(x, map_BChw.shape[-2:], mode="nearest"))
        return rearrange(self.last(x), "(b q) 1 h w -> b q h w", q=Q)
