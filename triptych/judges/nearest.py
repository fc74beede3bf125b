"""Is the drawn picture the one that was named? Nearest neighbour among all candidates, plain distance, no learned eyes.

Every picture is averaged to 16 x 16 RGB; the distance is Euclidean; identical pictures count as one. A measure that anyone can
check by hand, and that no training can flatter: the eyes were never trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..contracts import Prompt

__all__ = ["NearestPicture", "Config", "SIZES", "copier", "thumbnails", "wilson"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """side: pictures are averaged to side x side.  top: the ranks that are reported."""

    side: int = 16
    top: tuple[int, ...] = (1, 5)


SIZES = {"tiny": Config(side=4), "16": Config()}


def thumbnails(images_BCHW: Tensor, side: int = 16) -> Tensor:
    """[-1, 1] images of any size to float64 vectors in [0, 255], [B, 3 * side * side]."""
    pixels = (images_BCHW.double() + 1) * 127.5
    return F.adaptive_avg_pool2d(pixels, side).flatten(1)


def wilson(right: float, total: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % Wilson score interval of a proportion."""
    if total == 0:
        return 0.0, 1.0
    p, n = right / total, total
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, (centre - spread) / (1 + z * z / n)), min(1.0, (centre + spread) / (1 + z * z / n))


class NearestPicture:
    """Rank of the right picture among the candidates.

    candidates_NCHW: float in [-1, 1], all pictures there are. `add(images, prompts, references)`: references is int64 [B], the
    candidate that each prompt names.
    """

    def __init__(self, config: Config, *, candidates_NCHW: Tensor) -> None:
        self.config = config
        every = thumbnails(candidates_NCHW, config.side)
        self.distinct, self.of_candidate = torch.unique(every.round(decimals=3), dim=0, return_inverse=True)
        self.ranks: list[int] = []

    def rank(self, images_BCHW: Tensor, references_B: Tensor) -> Tensor:
        """0 = the nearest distinct candidate is the right one. int64 [B]."""
        distances = torch.cdist(thumbnails(images_BCHW, self.config.side), self.distinct)
        right = distances.gather(1, self.of_candidate[references_B][:, None])
        return (distances < right).sum(1)

    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt], references: Tensor | None = None) -> None:
        if references is None or len(references) != len(images_BCHW):
            raise ValueError(f"{len(images_BCHW)} pictures need as many references: the candidate that each prompt names")
        self.ranks += self.rank(images_BCHW, references).tolist()

    def result(self) -> dict[str, float]:
        """top1, top5, ... each with its 95 % interval, and n."""
        out: dict[str, float] = {"n": len(self.ranks)}
        for top in self.config.top:
            right = sum(rank < top for rank in self.ranks)
            low, high = wilson(right, len(self.ranks))
            out |= {f"top{top}": right / max(1, len(self.ranks)), f"top{top}_low": low, f"top{top}_high": high}
        return out


def copier(caption: str, training_captions: Sequence[str]) -> int:
    """The index of the nearest training caption (F1 of shared words; characters where there are no spaces): what a program
    would return that had learnt nothing but to look captions up."""
    asked = _words(caption)
    scores = [2 * len(asked & words) / (len(asked) + len(words)) if words else 0.0 for words in map(_words, training_captions)]
    return max(range(len(scores)), key=scores.__getitem__)


def _words(text: str) -> frozenset[str]:
    parts = text.lower().replace(":", " ").replace(",", " ").replace("：", "").replace("，", "").split()
    return frozenset(piece for part in parts for piece in (part if any("一" <= c <= "鿿" for c in part) else [part]))
