"""Retrieval precision: does each picture find its prompt among all prompts, and each prompt one of its pictures?

As CLIP R-precision (Park et al., 2021, and DreamFusion, arXiv 2209.14988). It depends on how many prompts there are, so their number
and chance stand beside it. Prompts of the same words are one candidate; where candidates tie, the worse rank counts.

Shape legend: B batch, C channels, H W grid, N pictures, P distinct prompts, E CLIP's common space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..contracts import Prompt
from .nearest import wilson

__all__ = ["Retrieval", "Config", "SIZES"]

ROWS = 1024  # of the matrix of similarities that are held at a time


@dataclass(frozen=True, kw_only=True)
class Config:
    """top: the ranks that are reported."""

    top: tuple[int, ...] = (1, 5)


SIZES = {"tiny": Config(), "default": Config()}


class Retrieval:
    """eyes: `.name`, `.image(images_BCHW)` and `.text(prompts)` -> [B, E], unit vectors of one space."""

    def __init__(self, config: Config, *, eyes: Any, **decided: Any) -> None:
        self.config, self.eyes = config, eyes
        self._number: dict[str, int] = {}  # prompt's words -> its place among the candidates
        self._texts: list[Tensor] = []
        self._images: list[Tensor] = []
        self._of: list[int] = []

    @torch.no_grad()
    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt], references: Tensor | None = None) -> None:
        """Raises ValueError if pictures and prompts are not as many, or a prompt has no words."""
        if len(prompts) != len(images_BCHW):
            raise ValueError(f"{len(images_BCHW)} pictures, but {len(prompts)} prompts: give one a picture")
        if not all(prompt.text for prompt in prompts):
            raise ValueError("a prompt without words cannot be looked for; leave pictures of labels out")
        new = list({prompt.text: prompt for prompt in prompts if prompt.text not in self._number}.values())
        if new:
            self._texts.append(self.eyes.text(new).float().cpu())
            self._number |= {prompt.text: len(self._number) + i for i, prompt in enumerate(new)}
        self._images.append(self.eyes.image(images_BCHW).float().cpu())
        self._of += [self._number[prompt.text] for prompt in prompts]

    def ranks(self) -> tuple[Tensor, Tensor]:
        """(rank of each picture's prompt [N], rank among the N pictures of each prompt's best one [P]); 0 = found first."""
        text_PE, image_NE, of_N = torch.cat(self._texts), torch.cat(self._images), torch.tensor(self._of)
        by_picture, best_P = [], torch.full((len(text_PE),), -torch.inf)
        for rows, of in zip(image_NE.split(ROWS), of_N.split(ROWS), strict=True):
            cosines = rows @ text_PE.T
            right = cosines.gather(1, of[:, None])
            by_picture.append((cosines >= right).sum(1) - 1)
            best_P = best_P.scatter_reduce(0, of, right[:, 0], "amax")
        better_P = torch.zeros(len(text_PE), dtype=torch.int64)
        for rows, of in zip(image_NE.split(ROWS), of_N.split(ROWS), strict=True):
            others = of[:, None] != torch.arange(len(text_PE))
            better_P += ((rows @ text_PE.T >= best_P) & others).sum(0)
        return torch.cat(by_picture), better_P

    def result(self) -> dict[str, float]:
        """image_to_text_1, text_to_image_1, ... with Wilson intervals; `chance` of image_to_text_k; n pictures, `prompts` distinct ones."""
        out: dict[str, float] = {"n": len(self._of), "prompts": len(self._number)}
        if not self._of:
            return out
        for way, ranks in zip(("image_to_text", "text_to_image"), self.ranks(), strict=True):
            for top in self.config.top:
                right = int((ranks < top).sum())
                low, high = wilson(right, len(ranks))
                name = f"{way}_{top}({self.eyes.name})"
                out |= {name: right / len(ranks), f"{name}_low": low, f"{name}_high": high}
        return out | {f"chance_{top}": min(1.0, top / len(self._number)) for top in self.config.top}
