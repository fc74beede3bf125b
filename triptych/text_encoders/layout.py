"""Boxes as panel 1: the layout-to-image encoder of latent diffusion (LDM, arXiv 2112.10752, `layout2img-openimages256`).

A box is three tokens, its class, its top left corner and its bottom right corner, each one word of a vocabulary; a bidirectional
transformer of 16 layers, width 512, reads 30 boxes and the two corners of the picture: 92 tokens of a vocabulary of 8192. Blocks
are x-transformers': LayerNorm in front, eight heads without biases but the last, GELU, learnt places. It learns with the generator.

Corners are rounded to a square grid, as many points as the vocabulary has room for beside the classes and the padding:

    [class 0 ... class n - 1][corner (x, y) = n + y grid + x][... unused ...][padding = vocab - 1]

The authors' training data was never released. The nearest code of theirs (taming-transformers, `conditional_builder`) lets classes
and corners share numbers (their places tell them apart), puts the corners of a crop last, pads all to 92 and hears the padding.
Here numbers are not shared, the picture's corners come first, and padding is masked out: short layouts are short sequences.

Shape legend: B batch, L tokens, D width, H heads, K = D / H, N boxes.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from ..contracts import Condition, ConditionSpec, Prompt, Rng
from ..layers.attention import attend

__all__ = ["LayoutTransformer", "Config", "SIZES", "TooManyBoxes"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """labels: the classes' names, "|" between those of one class; they are stored, not read.  num_labels: the count, without names.

    vocab: words.  num_objects: boxes that are read, at most.  mlp_ratio: hidden width over width.
    """

    labels: tuple[str, ...] = ()
    num_labels: int = 48
    vocab: int = 48 + 33 * 33 + 1
    width: int = 64
    depth: int = 2
    num_heads: int = 4
    mlp_ratio: float = 3.0
    num_objects: int = 8


SIZES = {
    "tiny": Config(vocab=48 + 17 * 17 + 1, width=32, depth=1, num_heads=2, num_objects=4),
    "scenes": Config(),  # its grid of 33 x 33 holds every corner of an object's square exactly
    "LDM": Config(num_labels=601, vocab=8192, width=512, depth=16, num_heads=8, mlp_ratio=4.0, num_objects=30),
}


class TooManyBoxes(UserWarning):
    """A layout did not fit; the warning says how many boxes were not read."""


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); every token hears every real one."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, hidden = config.width, int(config.mlp_ratio * config.width)
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x_BLD)), "b l (three h k) -> three b h l k", three=3, h=self.num_heads)
        x_BLD = x_BLD + self.out(rearrange(attend(q, k, v, mask_B11L), "b h l k -> b l (h k)"))
        return x_BLD + self.mlp(self.norm2(x_BLD))


class LayoutTransformer(nn.Module):
    """`Prompt.boxes_N5` in, token states out; no boxes, or none given, is the null condition: the picture's own two corners.

    A layout is a set: boxes are read the largest first, whatever order they came in. In training (`train()` mode, and an rng) they
    are shuffled instead, so that every place learns from every box.
    Raises ValueError if the heads do not divide the width, or the vocabulary has no room for a grid of 2 x 2 corners.
    """

    reads = frozenset({"boxes"})

    def __init__(self, config: Config, *, assets: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        c = self.config = config
        if c.width % c.num_heads:
            raise ValueError(f"width {c.width} does not split into {c.num_heads} heads; take a multiple of {c.num_heads}")
        self.num_labels = len(c.labels) or c.num_labels
        self.grid = math.isqrt(max(0, c.vocab - self.num_labels - 1))
        if self.grid < 2:
            raise ValueError(f"vocab {c.vocab} holds {self.num_labels} classes and no corners; take {self.num_labels + 5} or more")
        length = 2 + 3 * c.num_objects
        self.gives = ConditionSpec(width=c.width, context_length=length)
        self.embedding = nn.Embedding(c.vocab, c.width)
        self.places = nn.Parameter(torch.empty(length, c.width))
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width)
        for weight in (self.embedding.weight, self.places):
            nn.init.normal_(weight, std=0.02)

    def encode(
        self, prompts: Sequence[Prompt | str], *, encode_image: Callable[[Tensor], Tensor] | None = None, rng: Rng | None = None
    ) -> Condition:
        """tokens_BLD (final-normed, 0 at padding) and mask_BL of B prompts; only `boxes_N5` is read. L is the longest layout's.

        Raises ValueError for boxes that leave the picture and classes that do not exist. Warns TooManyBoxes where a layout is cut:
        the largest boxes stay.
        """
        boxes = [None if isinstance(prompt, str) else prompt.boxes_N5 for prompt in prompts]
        orders = [None] * len(boxes) if rng is None or not self.training else rng.uniform("boxes", (self.config.num_objects,))
        return self._states([self.ids(*one) for one in zip(boxes, orders, strict=True)])

    def null(self, prompts: Sequence[Prompt | str]) -> Condition:
        """The layout without boxes, for each of the prompts."""
        return self._states([self.ids(None)]).rows(torch.zeros(len(prompts), dtype=torch.long, device=self.places.device))

    def ids(self, boxes_N5: Tensor | None, order_N: Tensor | None = None) -> list[int]:
        """One layout's words: [top left, bottom right of the picture, then (class, top left, bottom right) of each box].

        order_N: numbers by which the boxes are sorted; None = by area, then by class and place. Errors as in `encode`.
        """
        ids = [self._corner(0.0, 0.0), self._corner(1.0, 1.0)]
        if boxes_N5 is None or not len(boxes_N5):
            return ids
        label_N, x, y, w, h = self._checked(boxes_N5).unbind(1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1).clamp(0, 1).tolist()
        boxes = sorted(zip((w * h).tolist(), label_N.tolist(), corners, strict=True), key=lambda box: (-box[0], *box[1:]))
        most = self.config.num_objects
        if len(boxes) > most:
            warnings.warn(f"a layout of {len(boxes)} boxes, where {most} are read; the smallest are not", TooManyBoxes, stacklevel=3)
            boxes = boxes[:most]
        if order_N is not None:
            boxes = [boxes[i] for i in order_N[: len(boxes)].argsort().tolist()]
        for _, label, (left, top, right, bottom) in boxes:
            ids += [int(label), self._corner(left, top), self._corner(right, bottom)]
        return ids

    def _corner(self, x: float, y: float) -> int:
        column, row = (math.floor(value * (self.grid - 1) + 0.5) for value in (x, y))
        return self.num_labels + row * self.grid + column

    def _checked(self, boxes_N5: Tensor) -> Tensor:
        boxes = torch.as_tensor(boxes_N5, dtype=torch.float32).cpu()
        if boxes.ndim != 2 or boxes.shape[1] != 5:
            raise ValueError(f"boxes of the shape {list(boxes.shape)}; they are [N, 5]: class, centre x, centre y, width, height")
        label_N, centre_N2, side_N2 = boxes[:, 0], boxes[:, 1:3], boxes[:, 3:]
        inside = ((centre_N2 - side_N2 / 2 >= -1e-4) & (centre_N2 + side_N2 / 2 <= 1 + 1e-4) & (side_N2 >= 0)).all(1)  # false for nan
        if not inside.all():
            wrong = boxes[int((~inside).nonzero()[0])].tolist()
            raise ValueError(f"box {wrong} leaves the picture; centre x, centre y, width and height are shares of its sides, in 0..1")
        named = (label_N >= 0) & (label_N < self.num_labels) & (label_N == label_N.round())
        if not named.all():
            wrong = float(label_N[~named][0])
            raise ValueError(f"a box of class {wrong:g}: this panel knows whole numbers in 0..{self.num_labels - 1}")
        return boxes

    def _states(self, rows: list[list[int]]) -> Condition:
        device, longest = self.places.device, max(map(len, rows))
        padded = [row + [self.config.vocab - 1] * (longest - len(row)) for row in rows]
        lengths_B = torch.tensor([len(row) for row in rows]).to(device)
        mask_BL = torch.arange(longest, device=device) < lengths_B[:, None]
        x_BLD = self.embedding(torch.tensor(padded).to(device)) + self.places[:longest]
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_BL[:, None, None])
        return Condition(tokens_BLD=self.norm(x_BLD) * mask_BL[..., None], mask_BL=mask_BL)
