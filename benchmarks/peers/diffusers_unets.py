"""diffusers' U-Nets: built, saved, loaded and asked as its Stable Diffusion pipeline asks (one pass over both branches, concatenated)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin, UNet2DConditionModel, UNet2DModel
from torch import Tensor

from benchmarks.unets import Shape, UNetInputs

__all__ = ["build", "evaluation", "load", "loading", "make"]


def build(shape: Shape) -> ModelMixin:
    """With the weights that diffusers starts from; every branch is heard."""
    torch.manual_seed(1)
    s = shape
    both: dict[str, Any] = {
        "sample_size": s.side, "in_channels": s.channels, "out_channels": s.channels, "block_out_channels": s.widths,
        "layers_per_block": s.layers, "norm_num_groups": s.groups,
    }  # fmt: skip
    asks = "CrossAttn" if s.words else "Attn"
    both["down_block_types"] = tuple(f"{asks if one else ''}DownBlock2D" for one in s.attention)
    both["up_block_types"] = tuple(f"{asks if one else ''}UpBlock2D" for one in reversed(s.attention))
    if s.words:
        return UNet2DConditionModel(**both, cross_attention_dim=s.text, attention_head_dim=s.heads)
    return UNet2DModel(**both)


def make(shape: Shape, folder: Path) -> None:
    build(shape).save_pretrained(folder)


def load(shape: Shape, folder: Path, dtype: torch.dtype = torch.float32) -> ModelMixin:
    kind = UNet2DConditionModel if shape.words else UNet2DModel
    return kind.from_pretrained(folder, torch_dtype=dtype, low_cpu_mem_usage=False)  # no accelerate needed


def loading(shape: Shape, folder: Path, dtype: torch.dtype) -> Callable[[], Tensor]:
    return lambda: load(shape, folder, dtype).conv_out.weight


def evaluation(unet: Any, given: UNetInputs, dtype: torch.dtype, channels_last: bool) -> Callable[[], Tensor]:
    """Returns the conditioned answers, below them the unconditional ones.

    channels_last: as "Optimize inference" of its documentation says for speed.
    """
    unet.eval()
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    latents, t = given.noise_PCHW.to(dtype), torch.tensor(500)
    if given.tokens_PLD is None or given.null_PLD is None:
        embeds = None
    else:
        embeds = torch.cat([given.tokens_PLD, given.null_PLD]).to(dtype)

    @torch.no_grad()
    def run() -> Tensor:
        if embeds is None:
            return unet(latents, t, return_dict=False)[0]
        return unet(torch.cat([latents] * 2), t, encoder_hidden_states=embeds, return_dict=False)[0]

    return run
