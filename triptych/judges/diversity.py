"""Diversity within a prompt: how unlike one another are pictures of the same words?

The mean distance over all pairs of pictures of one prompt, averaged over prompts; beside it the mean over pairs of different prompts,
which is as unlike as these pictures get. Neither needs the pairs: with s the sum and q the sum of squares of n features,

    mean |x - y|² over pairs = 2 (q - |s|² / n) / (n - 1),      and for unit vectors 1 - cos = |x - y|² / 2.

Shape legend: B batch, C channels, H W grid, D width of the features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contracts import Prompt
from ._samples import mean_of

__all__ = ["Diversity", "Config", "SIZES"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """distance: "cosine" (1 - cos, the mean) or "euclidean" (the root of the mean square).  resamples, seed: of the bootstrap."""

    distance: Literal["cosine", "euclidean"] = "cosine"
    resamples: int = 200
    seed: int = 0


SIZES = {"tiny": Config(resamples=20), "default": Config()}


class _Sums:
    """n, s and q of one group of features, float64."""

    def __init__(self) -> None:
        self.n, self.sum_D, self.squares = 0, torch.zeros(()), 0.0

    def add(self, x_D: Tensor) -> None:
        self.n, self.sum_D, self.squares = self.n + 1, self.sum_D + x_D, self.squares + x_D.square().sum().item()

    def pairs(self) -> float:
        """The sum of |x - y|² over all ordered pairs."""
        return max(0.0, 2 * (self.n * self.squares - self.sum_D.square().sum().item()))


class Diversity:
    """eyes: `.name`, `.features(images_BCHW)` -> [B, D]."""

    def __init__(self, config: Config, *, eyes: Any, **decided: Any) -> None:
        self.config, self.eyes = config, eyes
        self._groups: dict[tuple[str, int | None], _Sums] = {}

    @torch.no_grad()
    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt], references: Tensor | None = None) -> None:
        """Raises ValueError if pictures and prompts are not as many."""
        if len(prompts) != len(images_BCHW):
            raise ValueError(f"{len(images_BCHW)} pictures, but {len(prompts)} prompts: give one a picture")
        features_BD = self.eyes.features(images_BCHW).detach().cpu().double()
        if self.config.distance == "cosine":
            features_BD = F.normalize(features_BD, dim=1)
        for x_D, prompt in zip(features_BD, prompts, strict=True):
            self._groups.setdefault((prompt.text, prompt.label), _Sums()).add(x_D)

    def _distance(self, mean_square: float) -> float:
        return mean_square / 2 if self.config.distance == "cosine" else mean_square**0.5

    def result(self) -> dict[str, float]:
        """diversity(eyes) with an interval over prompts; `_between` prompts; n pictures, `prompts` that have two pictures or more.

        Raises ValueError if no prompt has two pictures.
        """
        groups, c = list(self._groups.values()), self.config
        within = [self._distance(g.pairs() / (g.n * (g.n - 1))) for g in groups if g.n > 1]
        n = sum(g.n for g in groups)
        if not within:
            raise ValueError(f"{n} pictures of {len(groups)} prompts: diversity within a prompt needs two pictures or more of one")
        name = f"diversity({self.eyes.name})"
        out: dict[str, float] = {"n": n, "prompts": len(within), **mean_of(name, within, c.resamples, c.seed)}
        every = _Sums()
        every.n, every.squares = n, sum(g.squares for g in groups)
        every.sum_D = torch.stack([g.sum_D for g in groups]).sum(0)
        pairs = n * n - sum(g.n**2 for g in groups)
        if pairs:
            out[f"{name}_between"] = self._distance(max(0.0, every.pairs() - sum(g.pairs() for g in groups)) / pairs)
        return out
