"""What is computed, by both sides: the shape of the networks, their inputs, and the lanes of a race."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

__all__ = ["Inputs", "Lane", "Setting", "inputs"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Width, depth and tokens of the embedded default: (32 / 4)^2 = 64 tokens. words: the length that captions are padded to."""

    width: int = 256
    depth: int = 8
    heads: int = 4
    side: int = 32
    patch: int = 4
    channels: int = 4
    labels: int = 1000
    text_width: int = 160
    words: int = 16
    steps: int = 20
    guidance: float = 3.0
    batch: int = 48  # of training


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One thing that is timed.

    side: "ours", "diffusers", or "diffusers+malloc": with our setting of malloc, which is no part of diffusers.
    model: "paper" (DiT, labels), "cross" (adaLN-single, cross-attention: PixArt's form), "modern" (ours alone), or one of `unets.SHAPES`.
    job: "evaluation" (one pass of the network over all rows of a guided batch), "trajectory" (noise to latents, all of it),
        "training" (forward, backward, clipping, optimizer), "loading" (from a folder to a network that can be asked).
    channels_last: the peer's layout as its documentation advises; ours has it always.
    pictures: guided pictures drawn together; the network sees twice as many rows.  Training takes `Setting.batch` pictures.
    """

    side: str
    model: str
    job: Literal["evaluation", "trajectory", "training", "loading"]
    precision: Literal["float32", "bf16"]
    compiled: bool = False
    pictures: int = 1
    channels_last: bool = False

    @property
    def name(self) -> str:
        ways = {"channels-last": self.channels_last, "compiled": self.compiled}
        return " ".join([self.side, self.precision, *(way for way, taken in ways.items() if taken)])

    def plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """P guided pictures: what they start from, what they hear, and what their unconditional branch hears."""

    noise_PCHW: Tensor
    label_P: Tensor
    null_label_P: Tensor
    tokens_PLD: Tensor
    mask_PL: Tensor
    null_tokens_PLD: Tensor
    null_mask_PL: Tensor
    pooled_PD: Tensor


def inputs(setting: Setting, pictures: int) -> Inputs:
    """The same for everybody. A caption has 5 to 12 words, "" has 2 (begin and end)."""
    g = torch.Generator().manual_seed(7)
    s, place = setting, torch.arange(setting.words)
    length_P = torch.randint(min(5, s.words), min(12, s.words) + 1, (pictures,), generator=g)
    return Inputs(
        noise_PCHW=torch.randn(pictures, s.channels, s.side, s.side, generator=g),
        label_P=torch.randint(s.labels, (pictures,), generator=g),
        null_label_P=torch.full((pictures,), s.labels),
        tokens_PLD=torch.randn(pictures, s.words, s.text_width, generator=g),
        mask_PL=place < length_P[:, None],
        null_tokens_PLD=torch.randn(1, s.words, s.text_width, generator=g).expand(pictures, -1, -1).contiguous(),
        null_mask_PL=(place < 2).expand(pictures, -1).contiguous(),
        pooled_PD=torch.randn(pictures, s.text_width, generator=g),
    )
