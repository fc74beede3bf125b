"""DETR: objects as a set, drawn from a picture by attention alone (Carion et al., arXiv 2005.12872).

    picture -> ResNet -> 1 x 1 -> H W places of width 256 -> encoder, 6 layers -> decoder, 6 layers of 100 queries
            -> each query a class (or "no object") and a box

No anchors, no suppression of doubles: training gives each object to one query (`layers/matching.py`), after every decoder layer.
Sines of the place are added to queries and keys of every attention, never to what is heard. Layers are post-norm.

The backbone's batch norms stay frozen, as in the paper: pictures come few at a time. A backbone that learns from nothing should
have `norm_groups` instead, and queries that are "anchored": each belongs to a point of the picture, told by the same sines, and
says its box's centre relative to it (Anchor DETR, arXiv 2109.07107); that converges in a fraction of the time.

Shape legend: B batch, C channels, H W grid, L = H W places, Q queries, D width, N heads, K classes and "no object", the last.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .. import catalog
from ..contracts import ConditionSpec
from ..layers.attention import attend
from ._detect import Detect
from ._panoptic import MaskHead

__all__ = ["DETR", "Config", "Detect", "SIZES", "Seen", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """image_size: the shortest side of pictures.  backbone: fields of vision/resnet's Config; {} = ResNet-50.

    num_classes: K, without "no object".  labels: their names, where they have some.
    attributes: further things to be said of an object, each (name, its values), as of colour; one more value means none of them.
    ink: whether attributes are told from the colours within the box alone, and not by the query, which knows what the thing is: a
    head that knows tells a gray ring's colour by what rings were shown in (`Ink`).
    hidden: width inside the MLPs.  depth, decoder_depth: layers.  masks: with the head for panoptic segmentation.
    """

    image_size: int = 800
    backbone: Mapping[str, int | str | tuple[int, ...]] = field(default_factory=dict)
    num_classes: int = 91
    labels: tuple[str, ...] = ()
    attributes: tuple[tuple[str, tuple[str, ...]], ...] = ()
    ink: bool = False
    num_queries: int = 100
    queries: Literal["learnt", "anchored"] = "learnt"
    width: int = 256
    hidden: int = 2048
    num_heads: int = 8
    depth: int = 6
    decoder_depth: int = 6
    dropout: float = 0.1
    masks: bool = False

    @property
    def num_attributes(self) -> tuple[int, ...]:
        """Width of each attribute's head, "none of them" included."""
        return tuple(len(values) + 1 for _, values in self.attributes)


_COLORS = (("color", ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "gray")),)
_PLAIN = {"block": "basic", "norm_groups": 8}
_R101 = {"depths": (3, 4, 23, 3)}

SIZES = {
    "tiny": Config(
        image_size=32, backbone={**_PLAIN, "stem_width": 16, "widths": (16, 32), "depths": (1, 1)}, num_classes=48, attributes=_COLORS,
        num_queries=6, queries="anchored", width=32, hidden=64, num_heads=2, depth=1, decoder_depth=2, dropout=0.0,
    ),
    "scenes": Config(
        image_size=128, backbone={**_PLAIN, "stem_width": 32, "widths": (64, 96, 128), "depths": (1, 1, 1)}, num_classes=48,
        attributes=_COLORS, ink=True, num_queries=25, queries="anchored", width=128, hidden=512, num_heads=8, depth=3, decoder_depth=3,
        dropout=0.0,
    ),
    "DETR-R50": Config(),
    "DETR-R101": Config(backbone=_R101),
    "DETR-R50-panoptic": Config(num_classes=250, masks=True),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What the queries say. logits: [B, Q, K + 1].  boxes: cx, cy, w, h in 0..1.  attributes: logits [B, Q, values + 1] each.

    masks: logits on a quarter of the side.  earlier: what each decoder layer but the last said, where it was asked for.
    """

    logits_BQK: Tensor
    boxes_BQ4: Tensor
    attributes: tuple[Tensor, ...] = ()
    masks_BQhw: Tensor | None = None
    earlier: tuple[Seen, ...] = ()

    def row(self, i: int) -> Seen:
        """What is said last of picture i, alone."""
        masks = None if self.masks_BQhw is None else self.masks_BQhw[i : i + 1]
        attributes = tuple(logits[i : i + 1] for logits in self.attributes)
        return Seen(logits_BQK=self.logits_BQK[i : i + 1], boxes_BQ4=self.boxes_BQ4[i : i + 1], attributes=attributes, masks_BQhw=masks)


def sines(places_2: Tensor, width: int, longest: float) -> Tensor:
    """(row, column), each 0..1 over the picture, to [..., width]: for either, sines and cosines by turns, with periods of 1..longest."""
    half = width // 2
    period = longest ** (torch.arange(0, half, 2, device=places_2.device) / half)
    angle = 2 * math.pi * places_2[..., None] / period
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-3)


def shares(real_BHW: Tensor, before: float) -> Tensor:
    """(row, column) of each place in 0..1 of the picture, which `real` tells from padding: [B, H, W, 2].

    before: how far in front of its far corner, in places; the paper has 0, the middle is 0.5.
    """
    counts = [real_BHW.cumsum(axis, dtype=torch.float32) for axis in (1, 2)]
    return torch.stack([(n - before) / (n.amax(axis, keepdim=True) + 1e-6) for axis, n in zip((1, 2), counts, strict=True)], dim=-1)


class Attention(nn.Module):
    """Multi-head attention whose keys (with places) and values (without) differ. Dropout is on the weights."""

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, asks_BLD: Tensor, keys_BMD: Tensor, values_BMD: Tensor, mask_B11M: Tensor | None = None) -> Tensor:
        q, k, v = (self._heads(part) for part in (self.query(asks_BLD), self.key(keys_BMD), self.value(values_BMD)))
        drops = self.training and self.dropout > 0
        heard = F.scaled_dot_product_attention(q, k, v, mask_B11M, self.dropout) if drops else attend(q, k, v, mask_B11M)
        return self.out(rearrange(heard, "b n l k -> b l (n k)"))

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return rearrange(x_BLD, "b l (n k) -> b n l k", n=self.num_heads)


class MLP(nn.Sequential):
    """Linear layers with ReLU between them."""

    def __init__(self, *widths: int, dropout: float = 0.0) -> None:
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)]
        super().__init__(*layers[:-2])


def ink(pixels_BCHW: Tensor, boxes_BQ4: Tensor, points: int = 12) -> Tensor:
    """What colour the ink in each box has: its mean and deviation in each channel, [B, Q, 6]; no shape is left in them.

    Ink is what differs from the paper, the median of the picture's border: points of the box weigh by the square of how far they do.
    """
    border_BCL = torch.cat([pixels_BCHW[:, :, 0], pixels_BCHW[:, :, -1], pixels_BCHW[..., 0], pixels_BCHW[..., -1]], dim=-1)
    paper_BC11 = border_BCL.median(dim=-1).values[..., None, None]
    at_P = (torch.arange(points, device=boxes_BQ4.device) + 0.5) / points - 0.5
    at_P2 = torch.cartesian_prod(at_P, at_P)
    places_BQP2 = 2 * (boxes_BQ4[..., None, :2] + boxes_BQ4[..., None, 2:] * at_P2) - 1
    x_BCQP = F.grid_sample(pixels_BCHW, places_BQP2.to(pixels_BCHW), padding_mode="border", align_corners=False)
    weight_BCQP = (x_BCQP - paper_BC11).square().sum(1, keepdim=True) + 1e-4
    weight_BCQP = weight_BCQP / weight_BCQP.sum(-1, keepdim=True)
    mean_BCQ1 = (weight_BCQP * x_BCQP).sum(-1, keepdim=True)
    spread_BCQ = (weight_BCQP * (x_BCQP - mean_BCQ1).square()).sum(-1).sqrt()
    return rearrange([mean_BCQ1[..., 0], spread_BCQ], "two b c q -> b q (two c)")


class EncoderLayer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = Attention(config.width, config.num_heads, config.dropout)
        self.mlp = MLP(config.width, config.hidden, config.width, dropout=config.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_BLD: Tensor, place_BLD: Tensor, mask_B11L: Tensor | None) -> Tensor:
        placed = x_BLD + place_BLD
        x_BLD = self.norm1(x_BLD + self.drop(self.attention(placed, placed, x_BLD, mask_B11L)))
        return self.norm2(x_BLD + self.drop(self.mlp(x_BLD)))


class DecoderLayer(nn.Module):
    """Queries hear each other, then the picture."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention, self.cross = (Attention(config.width, config.num_heads, config.dropout) for _ in range(2))
        self.mlp = MLP(config.width, config.hidden, config.width, dropout=config.dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.width) for _ in range(3))
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_BQD: Tensor, query_BQD: Tensor, memory_BLD: Tensor, place_BLD: Tensor, mask_B11L: Tensor | None) -> Tensor:
        placed = x_BQD + query_BQD
        x_BQD = self.norm1(x_BQD + self.drop(self.attention(placed, placed, x_BQD)))
        x_BQD = self.norm2(x_BQD + self.drop(self.cross(x_BQD + query_BQD, memory_BLD + place_BLD, memory_BLD, mask_B11L)))
        return self.norm3(x_BQD + self.drop(self.mlp(x_BQD)))


class DETR(nn.Module):
    """`condition` is what a text encoder beside it gives; a DETR does not listen.

    All methods take pixels as the network was trained on them, float32 [B, 3, H, W], of any size. real_BHW: bool, False where
    pictures of several sizes were padded at the right and below.  Raises ValueError for widths that do not split.
    """

    def __init__(self, config: Config, *, condition: ConditionSpec | None = None) -> None:
        super().__init__()
        c = self.config = config
        if c.width % c.num_heads or c.width % 4:
            raise ValueError(f"width {c.width} does not split into {c.num_heads} heads, and into sines and cosines of row and column")
        if c.labels and len(c.labels) != c.num_classes:
            raise ValueError(f"{len(c.labels)} labels for {c.num_classes} classes: name all of them or none")
        self.image_size = c.image_size
        self.backbone = catalog.build("vision", "resnet", {**c.backbone, "num_classes": 0, "image_size": c.image_size})
        widths = self.backbone.config.widths
        self.project = nn.Conv2d(widths[-1], c.width, 1)
        self.encoder = nn.ModuleList(EncoderLayer(c) for _ in range(c.depth))
        layers = [DecoderLayer(c) for _ in range(c.decoder_depth)]
        self.decoder = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(c.width)  # of what every decoder layer says; the next layer hears it without
        for weight in [p for layer in (*self.encoder, *self.decoder) for p in layer.parameters() if p.ndim > 1]:
            nn.init.xavier_uniform_(weight)
        self.anchored = c.queries == "anchored"
        if self.anchored:
            self.anchor_Q2 = nn.Parameter(torch.logit(torch.rand(c.num_queries, 2), eps=0.05))  # row, column; their sigmoid is the place
            self.start_QD = nn.Parameter(0.02 * torch.randn(c.num_queries, c.width))
            for layer in layers:
                layer.cross.key.load_state_dict(layer.cross.query.state_dict())  # so that at first it is the near that is heard
        else:
            self.query_QD = nn.Parameter(torch.randn(c.num_queries, c.width))
        self.class_head = nn.Linear(c.width, c.num_classes + 1)
        self.box_head = MLP(c.width, c.width, c.width, 4)
        self.attribute_heads = nn.ModuleList(MLP(6, 64, 64, n) if c.ink else nn.Linear(c.width, n) for n in c.num_attributes)
        self.mask_head = MaskHead(c.width, c.num_heads, widths[-2::-1]) if c.masks else None
        self._frozen = [layer for layer in self.backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
        for layer in self._frozen:
            layer.requires_grad_(False)

    def train(self, mode: bool = True) -> DETR:
        super().train(mode)
        for layer in self._frozen:
            layer.eval()
        return self

    # --- seeing -----------------------------------------------------------------------------------------------------------

    def forward(self, pixels_BCHW: Tensor, real_BHW: Tensor | None = None, *, every_layer: bool = False) -> Seen:
        """All that is said of the pictures; after every decoder layer, if asked (in training: the auxiliary losses)."""
        maps, source_BDHW, memory_BDHW, real_BHW = self._encode(pixels_BCHW, real_BHW)
        layers = self._decode(memory_BDHW, real_BHW)
        earlier = tuple(self._said(pixels_BCHW, *layer) for layer in layers[:-1]) if every_layer else ()
        masks = None
        if self.mask_head is not None:
            masks = self.mask_head(layers[-1][0], source_BDHW, memory_BDHW, real_BHW, maps[-2::-1])
        return self._said(pixels_BCHW, *layers[-1], masks_BQhw=masks, earlier=earlier)

    def detect(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(class logits [B, Q, K + 1], the last is "no object"; boxes [B, Q, 4]: centre x, centre y, width, height in 0..1)."""
        seen = self(pixels_BCHW)
        return seen.logits_BQK, seen.boxes_BQ4

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """The queries' last states, normalised: [B, Q, D]."""
        _, _, memory_BDHW, real_BHW = self._encode(pixels_BCHW, None)
        return self._decode(memory_BDHW, real_BHW)[-1][0]

    def pooled(self, pixels_BCHW: Tensor) -> Tensor:
        """The mean of the encoder's map, [B, D]."""
        return self._encode(pixels_BCHW, None)[2].mean(dim=(2, 3))

    def _encode(self, pixels_BCHW: Tensor, real_BHW: Tensor | None) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """(the backbone's maps; the last of them projected; the encoder's map of it; which places of it are no padding)."""
        maps = self.backbone.pyramid(pixels_BCHW)
        source_BDHW = self.project(maps[-1])
        B, _, H, W = source_BDHW.shape
        kept_BHW = source_BDHW.new_ones(B, H, W, dtype=torch.bool)
        if real_BHW is not None:
            kept_BHW = F.interpolate(real_BHW[:, None].float(), (H, W), mode="nearest")[:, 0].bool()
        place_BLD, mask_B11L = self._places(kept_BHW)
        x_BLD = rearrange(source_BDHW, "b d h w -> b (h w) d")
        for layer in self.encoder:
            x_BLD = layer(x_BLD, place_BLD, mask_B11L)
        return maps, source_BDHW, rearrange(x_BLD, "b (h w) d -> b d h w", h=H), kept_BHW

    def _decode(self, memory_BDHW: Tensor, real_BHW: Tensor) -> list[tuple[Tensor, Tensor]]:
        """After each layer: what the queries hold, normalised, [B, Q, D], and their boxes, [B, Q, 4]."""
        place_BLD, mask_B11L = self._places(real_BHW)
        memory_BLD = rearrange(memory_BDHW, "b d h w -> b (h w) d")
        B, out = len(memory_BLD), []
        if self.anchored:
            x_BQD, anchor_BQ2 = self.start_QD.expand(B, -1, -1), self.anchor_Q2.expand(B, -1, -1)
        else:
            query_BQD, anchor_BQ2 = self.query_QD.expand(B, -1, -1), None
            x_BQD = torch.zeros_like(query_BQD)
        for layer in self.decoder:
            if anchor_BQ2 is not None:
                query_BQD = self._sines(anchor_BQ2.sigmoid())
            x_BQD = layer(x_BQD, query_BQD, memory_BLD, place_BLD, mask_B11L)
            state_BQD = self.norm(x_BQD)
            boxes_BQ4 = self.box_head(state_BQD).float()
            if anchor_BQ2 is not None:
                boxes_BQ4 = boxes_BQ4 + F.pad(anchor_BQ2.flip(-1), (0, 2))  # x before y, in boxes
                anchor_BQ2 = boxes_BQ4[..., :2].detach().flip(-1)  # the next layer looks where this one found something
            out.append((state_BQD, boxes_BQ4.sigmoid()))
        return out

    def _places(self, real_BHW: Tensor) -> tuple[Tensor, Tensor]:
        """(sines [B, L, D], mask [B, 1, 1, L])."""
        return self._sines(shares(real_BHW, 0.5 if self.anchored else 0.0)).flatten(1, 2), real_BHW.flatten(1)[:, None, None]

    def _sines(self, places_2: Tensor) -> Tensor:
        return sines(places_2, self.config.width, 20.0 if self.anchored else 10_000.0)

    def _said(self, pixels_BCHW: Tensor, state_BQD: Tensor, boxes_BQ4: Tensor, **more: Any) -> Seen:
        heard = ink(pixels_BCHW, boxes_BQ4.detach()) if self.config.ink else state_BQD
        attributes = tuple(head(heard) for head in self.attribute_heads)
        return Seen(logits_BQK=self.class_head(state_BQD), boxes_BQ4=boxes_BQ4, attributes=attributes, **more)


TASKS = {"detect": Detect}
