"""diffusers' DiTTransformer2DModel and PixArtTransformer2DModel into `generators/dit.py`: names and tensors only.

One difference is theirs, and stays behind: DiTTransformer2DModel's time frequencies fall by 1 / 127 of the range (a shift of 1),
where DiT's own code, which the published weights were trained with, and PixArt's fall by 1 / 128, as here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from triptych.contracts import ConditionSpec, LatentSpace
from triptych.generators.dit import Config

__all__ = ["config_from_diffusers", "in_diffusers", "modules_in_diffusers", "tensors_from_diffusers"]

_KINDS = ("DiTTransformer2DModel", "PixArtTransformer2DModel")
_SHARED = "transformer_blocks.0.norm1.emb"
_NEEDED = {
    "activation_fn": "gelu-approximate", "attention_bias": True, "norm_elementwise_affine": False, "use_additional_conditions": False,
}  # fmt: skip


def config_from_diffusers(theirs: Mapping[str, Any]) -> tuple[Config, LatentSpace, ConditionSpec]:
    """What `DiT(config, latent=..., condition=...)` needs, from their `config.json`.

    Raises ValueError for another class of theirs, or a setting that our DiT has no counterpart for.
    """
    kind, size, channels = theirs["_class_name"], theirs["sample_size"], theirs["in_channels"]
    if kind not in _KINDS:
        raise ValueError(f"{kind} is no DiT; those that can be read are {', '.join(_KINDS)}")
    for name, value in _NEEDED.items():
        if theirs.get(name, value) not in (value, None):
            raise ValueError(f"{kind} with {name} = {theirs[name]!r} cannot be read: only {value!r} can")
    paper = kind.startswith("DiT")
    heads = theirs["num_attention_heads"]
    config = Config(
        width=heads * theirs["attention_head_dim"], depth=theirs["num_layers"], num_heads=heads, patch_size=theirs["patch_size"],
        mlp_ratio=4.0, norm="layer", mlp="gelu", position="sincos", modulation="block" if paper else "single",
        text="none" if paper else "cross", qk_norm=False, bias=True, learn_sigma=(theirs["out_channels"] or channels) == 2 * channels,
    )  # fmt: skip
    said = ConditionSpec(num_labels=theirs["num_embeds_ada_norm"]) if paper else ConditionSpec(width=theirs["caption_channels"])
    return config, LatentSpace(kind="image", shape=(channels, size, size)), said


def tensors_from_diffusers(theirs: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Their state dict under our names: fused products, modulations stacked.

    Raises ValueError if the blocks of a DiTTransformer2DModel do not share one embedding of time and class, as DiT's do.
    """
    ours: dict[str, Tensor] = {}
    if config.modulation == "block":
        for name in [name for name in theirs if ".norm1.emb." in name]:
            if not torch.equal(theirs[name], theirs[f"{_SHARED}.{name.split('.norm1.emb.')[1]}"]):
                raise ValueError(f"{name} differs from block 0's: DiT has one embedding of time and class for all blocks")
        ours["label.weight"] = theirs[f"{_SHARED}.class_embedder.embedding_table.weight"]
    else:
        tables = [theirs[f"transformer_blocks.{i}.scale_shift_table"] for i in range(config.depth)]
        ours["table"] = torch.cat(tables).unflatten(0, (config.depth, 6))
        ours["table_out"] = theirs["scale_shift_table"]
    for mine, yours in modules_in_diffusers(config).items():
        for part in ("weight", "bias"):
            whole = torch.cat([theirs[f"{name}.{part}"] for name in yours]) if len(yours) > 1 else theirs[f"{yours[0]}.{part}"]
            ours[f"{mine}.{part}"] = whole.flatten(1) if (mine, part) == ("patch_in", "weight") else whole
    return ours


def modules_in_diffusers(config: Config) -> dict[str, list[str]]:
    """Path of a product -> the paths of theirs whose rows stand in it, one below the other."""
    blocks = [f"transformer_blocks.{i}" for i in range(config.depth)]
    found = {"patch_in": ["pos_embed.proj"]}
    if config.modulation == "block":
        shared = _SHARED
        found |= {"patch_out": ["proj_out_2"], "modulation_out": ["proj_out_1"], "modulation": [f"{one}.norm1.linear" for one in blocks]}
    else:
        shared = "adaln_single.emb"
        found |= {"patch_out": ["proj_out"], "modulation": ["adaln_single.linear"]}
        found |= {"text.caption.up": ["caption_projection.linear_1"], "text.caption.down": ["caption_projection.linear_2"]}
    found |= {"clock.0": [f"{shared}.timestep_embedder.linear_1"], "clock.2": [f"{shared}.timestep_embedder.linear_2"]}
    for i, block in enumerate(blocks):
        single = {"attention.out": "attn1.to_out.0", "mlp.up": "ff.net.0.proj", "mlp.down": "ff.net.2"}
        if config.text == "cross":
            single |= {"cross.query": "attn2.to_q", "cross.out": "attn2.to_out.0"}
        found |= {f"blocks.{i}.{mine}": [f"{block}.{yours}"] for mine, yours in single.items()}
        found[f"blocks.{i}.attention.qkv"] = [f"{block}.attn1.to_{x}" for x in "qkv"]
    if config.text == "cross":
        found["text.keys_values"] = [f"{block}.attn2.to_{x}" for block in blocks for x in "kv"]
    return found


def in_diffusers(config: Config, condition: ConditionSpec) -> bool:
    """Is this DiT one of theirs, and not the modern one?"""
    c, paper = config, config.modulation == "block"
    theirs = (c.norm, c.mlp, c.position, c.qk_norm, c.bias) == ("layer", "gelu", "sincos", False, True) and not condition.pooled
    hears_text = condition.width > 0 and c.text != "none"
    return theirs and (not hears_text if paper else hears_text and c.text == "cross") and (condition.num_labels > 0) == paper
