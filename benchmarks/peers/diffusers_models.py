"""diffusers' two transformers at the setting's size, with random weights that let every branch be heard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, ModelMixin, PixArtTransformer2DModel

from benchmarks.setting import Setting

__all__ = ["load", "make"]

_CLASSES = {"paper": DiTTransformer2DModel, "cross": PixArtTransformer2DModel}


def make(model: str, setting: Setting, folder: Path) -> None:
    """Build `model` and save it as diffusers saves models: `folder` is then what both sides load."""
    s = setting
    shape: dict[str, Any] = {
        "num_attention_heads": s.heads, "attention_head_dim": s.width // s.heads, "in_channels": s.channels, "out_channels": s.channels,
        "num_layers": s.depth, "sample_size": s.side, "patch_size": s.patch,
    }  # fmt: skip
    if model == "paper":
        network = DiTTransformer2DModel(**shape, num_embeds_ada_norm=s.labels, norm_eps=1e-6)
    else:
        text = {"cross_attention_dim": s.width, "caption_channels": s.text_width, "use_additional_conditions": False}
        network = PixArtTransformer2DModel(**shape, **text)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    if model == "paper":
        for block in network.transformer_blocks:  # DiT has one embedding of time and class for all blocks; diffusers keeps copies
            block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())
    network.save_pretrained(folder)


def load(model: str, folder: Path, dtype: torch.dtype = torch.float32) -> ModelMixin:
    network = _CLASSES[model].from_pretrained(folder, torch_dtype=dtype, low_cpu_mem_usage=False)  # no accelerate needed
    if model == "paper":
        for block in network.transformer_blocks:  # frequencies as in DiT's own code: see triptych/interop/diffusers_dit.py
            block.norm1.emb.time_proj.downscale_freq_shift = 0
    return network
