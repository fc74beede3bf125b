"""Does a drawn scene of two objects show both colours, in the order that was asked? Read from pixels, with no learned eyes.

Each pixel belongs to the named colour that it is near to, or to none; an object is where its colour is, and stands at the mean
of those pixels. Pixels at an edge mix with the background and say nothing: only pixels whose neighbours agree count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contracts import Prompt
from .nearest import wilson

__all__ = ["SceneReader", "Config", "SIZES"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """side: pictures are averaged to it first.  near: RGB distance (0..255) at which a pixel still has a colour.
    smallest: the least share of the picture that an object covers.  margin: of the order, as a share of the side."""

    side: int = 64
    near: float = 70.0
    smallest: float = 0.008
    margin: float = 0.05


SIZES = {"tiny": Config(side=32), "64": Config()}


class SceneReader:
    """palette: colour name -> RGB, as the scenes are drawn. Prompts carry their scene as `truth`: two objects with a `color`, and
    their centres `cx`, `cy` in 0..1; the order along the axis on which they are further apart is the one that was asked."""

    def __init__(self, config: Config, *, palette: Mapping[str, Sequence[int]]) -> None:
        self.config, self.names = config, list(palette)
        self.palette_K3 = torch.tensor([list(palette[name]) for name in self.names], dtype=torch.float32)
        self.verdicts: list[tuple[bool, bool]] = []

    def read(self, images_BCHW: Tensor) -> Tensor:
        """Which named colour each pixel has, -1 = none or an edge. int64 [B, side, side]."""
        c = self.config
        pixels = F.adaptive_avg_pool2d((images_BCHW.float() + 1) * 127.5, c.side) if images_BCHW.shape[-1] >= c.side else F.interpolate(
            (images_BCHW.float() + 1) * 127.5, size=c.side, mode="nearest")  # fmt: skip
        every = torch.cat([self.palette_K3, torch.full((1, 3), 255.0)])
        distance = torch.cdist(pixels.permute(0, 2, 3, 1).flatten(1, 2), every[None].expand(len(pixels), -1, -1))
        nearest, which = distance.min(-1)
        which = torch.where((nearest <= c.near) & (which < len(self.names)), which, -1).view(-1, c.side, c.side)
        around = F.pad(which[:, None].float(), (1, 1, 1, 1), value=-1).unfold(2, 3, 1).unfold(3, 3, 1).flatten(4)[:, 0]
        agree = (around == which[..., None].float()).sum(-1) >= 7
        return torch.where(agree, which, -1)

    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt], references: Tensor | None = None) -> None:
        for seen, prompt in zip(self.read(images_BCHW), prompts, strict=True):
            self.verdicts.append(self._verdict(seen, prompt.truth.objects))

    def _verdict(self, seen_HW: Tensor, objects: Sequence) -> tuple[bool, bool]:
        """(both colours there, and their order right)."""
        places = []
        for one in objects:
            at = (seen_HW == self.names.index(one.color)).nonzero().float()
            if len(at) < self.config.smallest * seen_HW.numel():
                return False, False
            places.append(at.mean(0) / self.config.side)  # y, x
        a, b = objects
        across = abs(a.cx - b.cx) >= abs(a.cy - b.cy)
        wanted = (b.cx - a.cx) if across else (b.cy - a.cy)
        found = (places[1] - places[0])[1 if across else 0].item()
        return True, found * (1 if wanted > 0 else -1) > self.config.margin

    def result(self) -> dict[str, float]:
        """right: both colours and the order; colours: both colours alone; each with n and right's 95 % interval."""
        n, right = len(self.verdicts), sum(order for _, order in self.verdicts)
        low, high = wilson(right, n)
        colours = sum(there for there, _ in self.verdicts)
        return {"n": n, "right": right / max(1, n), "right_low": low, "right_high": high, "colours": colours / max(1, n)}
