"""Memorisation: is a drawn picture a copy of a training picture? The nearest one is found, measured and kept to be shown.

A distance alone says little: plain pictures are near to many. So it is divided by the distance to the second nearest: a copy is much
nearer to one picture than to any other (Carlini et al., arXiv 2301.13188, divide by the mean over the 50 nearest, for the same reason).
Training pictures that are the same to the eyes count as one. The same is asked of real pictures that were not trained on, the
`references`: the share of near-copies among them is what no memory needs to explain.

Shape legend: B batch, C channels, H W grid, T training pictures, D width of the features.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..contracts import Prompt
from ._samples import mean_of
from .nearest import wilson

__all__ = ["Memorisation", "Config", "Pair", "SIZES"]

ROWS = 16_384  # training pictures that are compared at a time


@dataclass(frozen=True, kw_only=True)
class Config:
    """ratio: below it a picture is a near-copy.  same: training pictures nearer to one another than this share of their size are one.
    keep: pairs kept to be shown, those of the smallest ratios."""

    ratio: float = 0.5
    same: float = 1e-3
    keep: int = 16
    resamples: int = 200
    seed: int = 0


SIZES = {"tiny": Config(keep=2, resamples=20), "default": Config()}


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A drawn picture [C, H, W] and the place of its nearest training picture, in the order in which `learn` saw them."""

    image_CHW: Tensor
    prompt: Prompt
    nearest: int
    distance: float
    ratio: float


class Memorisation:
    """eyes: `.name`, `.features(images_BCHW)` -> [B, D].  training_TD: features of the training pictures by the same eyes; or none,
    and the pictures go through `learn` before the first `add`."""

    def __init__(self, config: Config, *, eyes: Any, training_TD: Tensor | None = None, **decided: Any) -> None:
        self.config, self.eyes = config, eyes
        self._training = [] if training_TD is None else [training_TD.float().cpu()]
        self.distances: list[float] = []
        self.ratios: list[float] = []
        self.real: list[float] = []
        self._kept: list[tuple[float, int, Pair]] = []

    @torch.no_grad()
    def learn(self, images_BCHW: Tensor) -> None:
        """Training pictures, in order."""
        self._training.append(self.eyes.features(images_BCHW).float().cpu())

    def nearest(self, features_BD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(place of the nearest training picture, distance to it, its ratio to the second nearest distinct one): [B] each.

        Raises ValueError without two distinct training pictures.
        """
        if len(self._training) > 1:
            self._training = [torch.cat(self._training)]
        if not self._training or len(self._training[0]) < 2:
            raise ValueError("two training pictures or more are needed: give training_TD, or call learn() first")
        bank_TD, x_BD = self._training[0], features_BD.float().cpu()
        best_B, place_B = self._search(bank_TD, x_BD, None)
        second_B, _ = self._search(bank_TD, x_BD, bank_TD[place_B])
        if not torch.isfinite(second_B).all():
            raise ValueError(f"to {self.eyes.name} all {len(bank_TD)} training pictures are the same: nothing is nearer than another")
        return place_B, best_B, best_B / second_B

    def _search(self, bank_TD: Tensor, x_BD: Tensor, but_BD: Tensor | None) -> tuple[Tensor, Tensor]:
        """Distance and place of the nearest row, of those that are not the same as `but_BD`."""
        best_B, place_B = torch.full((len(x_BD),), torch.inf), torch.zeros(len(x_BD), dtype=torch.int64)
        middle_D = bank_TD[:ROWS].mean(0)
        for first in range(0, len(bank_TD), ROWS):
            part = bank_TD[first : first + ROWS]
            far = torch.cdist(x_BD - middle_D, part - middle_D)  # near 0 a product of matrices loses less
            if but_BD is not None:
                but_size_B1 = (but_BD - middle_D).norm(dim=1, keepdim=True)
                far[torch.cdist(but_BD - middle_D, part - middle_D) <= self.config.same * but_size_B1] = torch.inf
            found, at = far.min(1)
            place_B = torch.where(found < best_B, at + first, place_B)
            best_B = torch.minimum(best_B, found)
        if but_BD is None:  # one distance of each, without the rounding of a product of matrices
            best_B = (x_BD - bank_TD[place_B]).norm(dim=1)
        return best_B, place_B

    @torch.no_grad()
    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt], references: Tensor | None = None) -> None:
        """references: real pictures that were NOT trained on, any number of them."""
        if references is not None and len(references):
            self.real += self.nearest(self.eyes.features(references))[2].tolist()
        if not len(images_BCHW):
            return
        every = zip(images_BCHW, prompts, *(t.tolist() for t in self.nearest(self.eyes.features(images_BCHW))), strict=True)
        for image_CHW, prompt, place, distance, ratio in every:
            pair = Pair(image_CHW=image_CHW.cpu(), prompt=prompt, nearest=place, distance=distance, ratio=ratio)
            item = (-ratio, -len(self.ratios), pair)  # a heap of the smallest ratios, the earlier first; no two are equal
            (heapq.heappush if len(self._kept) < self.config.keep else heapq.heappushpop)(self._kept, item)
            self.distances.append(distance)
            self.ratios.append(ratio)

    def pairs(self) -> list[Pair]:
        """The kept pairs, likest first."""
        return [pair for _, _, pair in sorted(self._kept, key=lambda item: (-item[0], -item[1]))]

    def each(self) -> dict[str, list[float]]:
        """ratio of each picture: the smaller, the more it is a copy."""
        return {"ratio": self.ratios}

    def result(self) -> dict[str, float]:
        """copies: the share of near-copies; ratio, distance: means; `_real`: of references; n, `n_training`."""
        c = self.config
        out: dict[str, float] = {"n": len(self.ratios), "n_training": sum(map(len, self._training))}
        for name, ratios in (("copies", self.ratios), ("copies_real", self.real)):
            if ratios:
                found = sum(ratio < c.ratio for ratio in ratios)
                low, high = wilson(found, len(ratios))
                out |= {name: found / len(ratios), f"{name}_low": low, f"{name}_high": high}
        for name, values in (("ratio", self.ratios), ("ratio_real", self.real), (f"distance({self.eyes.name})", self.distances)):
            out |= mean_of(name, values, c.resamples, c.seed)
        return out
