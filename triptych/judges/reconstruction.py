"""Reconstruction: how near a decoder's picture is to the one that was encoded. PSNR, SSIM, feature distance, use of the codebook.

PSNR is of the range [-1, 1], each picture by itself, then averaged. SSIM (Wang et al., 2004): Gaussian window of 11 x 11, sigma 1.5,
K1 = 0.01, K2 = 0.03, each channel by itself, only where the window lies wholly inside.

Shape legend: B batch, C channels, H W grid, D width of the features, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contracts import Prompt
from ._samples import mean_of

__all__ = ["Reconstruction", "Config", "SIZES", "psnr", "ssim"]

RANGE = 2.0  # of [-1, 1]


@dataclass(frozen=True, kw_only=True)
class Config:
    """window, sigma: SSIM's.  exact: the decibels that a picture without any error counts.  resamples, seed: of the bootstrap."""

    window: int = 11
    sigma: float = 1.5
    exact: float = 100.0
    resamples: int = 200
    seed: int = 0


SIZES = {"tiny": Config(resamples=20), "default": Config()}


def psnr(images_BCHW: Tensor, references_BCHW: Tensor, exact: float = 100.0) -> Tensor:
    """10 log10 (2² / mean squared error), at most `exact`: [B], float64, decibels."""
    error_B = (images_BCHW.double() - references_BCHW.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(RANGE**2 / error_B)).clamp_max(exact)


def ssim(images_BCHW: Tensor, references_BCHW: Tensor, window: int = 11, sigma: float = 1.5) -> Tensor:
    """Structural similarity: [B], float64, 1 = the same. Raises ValueError for pictures smaller than the window."""
    channels, height, width = images_BCHW.shape[1:]
    if min(height, width) < window:
        raise ValueError(f"pictures of {width} x {height} do not hold SSIM's window of {window} x {window}")
    at = torch.arange(window, dtype=torch.float64) - (window - 1) / 2
    line = torch.exp(-at.square() / (2 * sigma**2))
    line = (line / line.sum()).to(images_BCHW.device)

    def mean(x_BCHW: Tensor) -> Tensor:  # the window is a product of two lines
        across = F.conv2d(x_BCHW, line.expand(channels, 1, 1, window), groups=channels)
        return F.conv2d(across, line[:, None].expand(channels, 1, window, 1), groups=channels)

    x, y = images_BCHW.double(), references_BCHW.double()
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
    similar = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return similar.flatten(1).mean(1)


class Reconstruction:
    """eyes: `.name`, `.features(images_BCHW)` -> [B, D]; None = no feature distance.  vocab: V, the codebook's size, 0 = no tokens."""

    def __init__(self, config: Config, *, eyes: Any = None, vocab: int = 0, **decided: Any) -> None:
        self.config, self.eyes = config, eyes
        self.psnr: list[float] = []
        self.ssim: list[float] = []
        self.far: list[float] = []
        self.used_V = torch.zeros(vocab, dtype=torch.int64)

    @torch.no_grad()
    def add(
        self, images_BCHW: Tensor, prompts: Sequence[Prompt] = (), references: Tensor | None = None, *, tokens: Tensor | None = None
    ) -> None:
        """images: as decoded; references: as encoded, both in [-1, 1]; tokens: the codes between them, int64 [B, ...].

        Raises ValueError for references of another shape, or tokens outside the vocabulary.
        """
        if references is None or references.shape != images_BCHW.shape:
            there = "none" if references is None else "x".join(map(str, references.shape))
            raise ValueError(f"reconstructions {'x'.join(map(str, images_BCHW.shape))} need references of the same shape, here are {there}")
        images_BCHW, references = images_BCHW.clamp(-1, 1), references.clamp(-1, 1)
        self.psnr += psnr(images_BCHW, references, self.config.exact).tolist()
        self.ssim += ssim(images_BCHW, references, self.config.window, self.config.sigma).tolist()
        if self.eyes is not None:
            apart_BD = self.eyes.features(images_BCHW).double() - self.eyes.features(references).double()
            self.far += apart_BD.norm(dim=1).tolist()
        if tokens is not None:
            if tokens.min() < 0 or tokens.max() >= len(self.used_V):
                low, high = int(tokens.min()), int(tokens.max())
                raise ValueError(f"tokens from {low} to {high} in a vocabulary of {len(self.used_V)}; give the right vocab=")
            self.used_V += torch.bincount(tokens.flatten().cpu(), minlength=len(self.used_V))

    def result(self) -> dict[str, float]:
        """psnr (dB), ssim, feature_distance(eyes), each with an interval; codebook_usage (share of codes seen), perplexity (exp of the
        entropy of the codes, at most V), `tokens` seen; n."""
        c = self.config
        out: dict[str, float] = {"n": len(self.psnr)}
        for name, values in (("psnr", self.psnr), ("ssim", self.ssim), (f"feature_distance({getattr(self.eyes, 'name', '')})", self.far)):
            out |= mean_of(name, values, c.resamples, c.seed)
        total = int(self.used_V.sum())
        if total:
            p_V = self.used_V.double() / total
            perplexity = torch.exp(-torch.special.xlogy(p_V, p_V).sum()).item()
            out |= {"codebook_usage": (self.used_V > 0).double().mean().item(), "perplexity": perplexity, "tokens": total}
        return out
