"""Every reading of every denoiser, small: a network by its name, what it is told, and something noised. For tests of what they share."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.generators import dit, unet

__all__ = ["BASE", "IMAGE", "READINGS", "TINY", "WORDS", "network", "noisy", "said"]

IMAGE = LatentSpace(kind="image", shape=(3, 16, 16))
WORDS = ConditionSpec(width=24, context_length=8, pooled=16)
TINY = dit.SIZES["tiny"]
BASE = unet.Config(width=8, multipliers=(1, 2), num_res_blocks=1, attention=(1,), num_heads=2, time_width=16, norm_groups=4, pooled=False)
ADM = replace(BASE, form="scale_shift", resize="resnet", head_width=4, learn_sigma=True, text="none", attention=(0, 1))
READINGS: dict[str, tuple[Any, ConditionSpec]] = {
    "modern": (TINY, WORDS),
    "modern, rope alone, class": (replace(TINY, position="rope"), ConditionSpec(num_labels=5)),
    "modern, adaLN-Zero": (replace(TINY, modulation="block", position="sincos"), WORDS),
    "paper": (replace(dit.SIZES["DiT-S/2"], width=32, depth=2, num_heads=2), ConditionSpec(num_labels=5)),
    "pixart": (replace(dit.SIZES["PixArt-XL/2"], width=32, depth=2, num_heads=2), ConditionSpec(width=24, context_length=8)),
    "tiny": (unet.SIZES["tiny"], WORDS),
    "DDPM": (replace(BASE, asymmetric=True, time="ddpm", text="none", num_heads=1), ConditionSpec()),
    "ADM, class": (ADM, ConditionSpec(num_labels=5)),
    "GLIDE": (replace(ADM, text="keys", pooled=True, num_heads=1, head_width=0), WORDS),
    "LDM, unequal depths": (
        replace(BASE, num_res_blocks=(1, 2), num_heads=(1, 4), depth=(1, 2), attention=(0, 1)), ConditionSpec(width=24)),
    "pictures and a vector beside, no skips": (replace(BASE, skips=False), ConditionSpec(width=24, vector=7, concat=2)),
    "a summary alone, no attention": (
        replace(BASE, attention=(), middle_attention=False, text="none", pooled=True, num_heads=3), ConditionSpec(pooled=16)),
}  # fmt: skip


def network(reading: str, awake: bool = True) -> nn.Module:
    """`awake`: gates and layers that start at zero are moved, so that every part is heard."""
    config, condition = READINGS[reading]
    torch.manual_seed(0)
    family = dit.DiT if isinstance(config, dit.Config) else unet.UNet
    made = family(config, latent=IMAGE, condition=condition)
    if awake:
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def said(reading: str, batch: int = 3, length: int = 6, size: tuple[int, int] = (16, 16)) -> Condition:
    spec, draw = READINGS[reading][1], torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=draw)

    mask = torch.arange(length) < 1 + torch.arange(batch)[:, None] % length
    return Condition(
        tokens_BLD=normal(length, spec.width) if spec.width else None, mask_BL=mask if spec.width else None,
        pooled_BD=normal(spec.pooled) if spec.pooled else None, vector_BK=normal(spec.vector) if spec.vector else None,
        label_B=torch.arange(batch) % (spec.num_labels + 1) if spec.num_labels else None,
        concat_BCHW=normal(spec.concat, *size) if spec.concat else None,
    )  # fmt: skip


def noisy(batch: int = 3, size: tuple[int, int] = (16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(batch, 3, *size, generator=draw), 1000 * torch.rand(batch, generator=draw)
