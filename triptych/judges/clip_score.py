"""CLIP score: how well each picture fits its words, max(100 cos, 0) of CLIP's two embeddings (Hessel et al., arXiv 2104.08718).

The scale is CLIP's own: numbers of different eyes cannot be compared. Beside it stands what pictures of OTHER prompts reach, so that
a reader sees how much of the number is the prompt.

Shape legend: B batch, C channels, H W grid, E CLIP's common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..contracts import Prompt
from ._samples import mean_of

__all__ = ["ClipScore", "Config", "SIZES"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """resamples, seed: of the bootstrap of the mean."""

    resamples: int = 200
    seed: int = 0


SIZES = {"tiny": Config(resamples=20), "default": Config()}


class ClipScore:
    """eyes: `.name`, `.image(images_BCHW)` and `.text(prompts)` -> [B, E], unit vectors of one space."""

    def __init__(self, config: Config, *, eyes: Any, **decided: Any) -> None:
        self.config, self.eyes = config, eyes
        self.scores: list[float] = []
        self.real: list[float] = []
        self._sums: list[Tensor] = []

    @torch.no_grad()
    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt], references: Tensor | None = None) -> None:
        """references: the real pictures of the same prompts, if there are any; they are scored beside the drawn ones.

        Raises ValueError if pictures and prompts are not as many.
        """
        for what, many in (("prompts", prompts), ("references", references)):
            if many is not None and len(many) != len(images_BCHW):
                raise ValueError(f"{len(images_BCHW)} pictures, but {len(many)} {what}: give one a picture")
        text_BE, image_BE = self.eyes.text(prompts).double().cpu(), self.eyes.image(images_BCHW).double().cpu()
        self.scores += _score(image_BE, text_BE).tolist()
        if references is not None:
            self.real += _score(self.eyes.image(references).double().cpu(), text_BE).tolist()
        if len({_said(prompt) for prompt in prompts}) > 1:
            cosines_BB = 100 * image_BE @ text_BE.T
            other_BB = torch.tensor([[_said(a) != _said(b) for b in prompts] for a in prompts])
            self._sums.append(cosines_BB.clamp_min(0)[other_BB])

    def each(self) -> dict[str, list[float]]:
        """The score of each picture."""
        return {f"clip_score({self.eyes.name})": self.scores}

    def result(self) -> dict[str, float]:
        """clip_score(eyes), `_real` of references, each with an interval; `_shuffled`: pictures with other prompts of their batch."""
        name, c = f"clip_score({self.eyes.name})", self.config
        out: dict[str, float] = {"n": len(self.scores), **mean_of(name, self.scores, c.resamples, c.seed)}
        out |= mean_of(f"{name}_real", self.real, c.resamples, c.seed)
        if self._sums:
            out[f"{name}_shuffled"] = torch.cat(self._sums).mean().item()
        return out


def _score(image_BE: Tensor, text_BE: Tensor) -> Tensor:
    return (100 * (image_BE * text_BE).sum(1)).clamp_min(0)


def _said(prompt: Prompt) -> tuple[str, int | None]:
    return prompt.text, prompt.label
