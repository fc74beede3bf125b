"""diffusers' DiTTransformer2DModel and PixArtTransformer2DModel into `generators/dit.py`: names and tensors only.

One difference is theirs, and stays behind: DiTTransformer2DModel's time frequencies fall by 1 / 127 of the range (a shift of 1),
where DiT's own code, which the published weights were trained with, and PixArt's fall by 1 / 128, as here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.contracts import ConditionSpec, LatentSpace
from triptych.generators.dit import Config

__all__ = ["config_from_diffusers", "tensors_from_diffusers"]

_KINDS = ("DiTTransformer2DModel", "PixArtTransformer2DModel")
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

    def stacked(*names: str, blocks: Sequence[int] = range(config.depth)) -> Tensor:
        return torch.cat([theirs[f"transformer_blocks.{i}.{name}"] for i in blocks for name in names])

    patch = "pos_embed.proj"
    ours = {"patch_in.weight": theirs[f"{patch}.weight"].flatten(1), "patch_in.bias": theirs[f"{patch}.bias"]}
    copies = {"patch_out": "proj_out"}
    if config.modulation == "block":
        shared = "transformer_blocks.0.norm1.emb"
        for name in [name for name in theirs if ".norm1.emb." in name]:
            if not torch.equal(theirs[name], theirs[f"{shared}.{name.split('.norm1.emb.')[1]}"]):
                raise ValueError(f"{name} differs from block 0's: DiT has one embedding of time and class for all blocks")
        ours["label.weight"] = theirs[f"{shared}.class_embedder.embedding_table.weight"]
        copies = {"patch_out": "proj_out_2", "modulation_out": "proj_out_1"}
    else:
        shared = "adaln_single.emb"
        ours["table"] = stacked("scale_shift_table").unflatten(0, (config.depth, 6))
        ours["table_out"] = theirs["scale_shift_table"]
        copies |= {"modulation": "adaln_single.linear", "text.caption.up": "caption_projection.linear_1"}
        copies |= {"text.caption.down": "caption_projection.linear_2"}
    copies |= {"clock.0": f"{shared}.timestep_embedder.linear_1", "clock.2": f"{shared}.timestep_embedder.linear_2"}
    for i in range(config.depth):
        block = {"attention.out": "attn1.to_out.0", "mlp.up": "ff.net.0.proj", "mlp.down": "ff.net.2"}
        if config.text == "cross":
            block |= {"cross.query": "attn2.to_q", "cross.out": "attn2.to_out.0"}
        copies |= {f"blocks.{i}.{mine}": f"transformer_blocks.{i}.{yours}" for mine, yours in block.items()}
    for part in ("weight", "bias"):
        ours |= {f"{mine}.{part}": theirs[f"{yours}.{part}"] for mine, yours in copies.items()}
        for i in range(config.depth):
            ours[f"blocks.{i}.attention.qkv.{part}"] = stacked(*(f"attn1.to_{x}.{part}" for x in "qkv"), blocks=[i])
        if config.modulation == "block":
            ours[f"modulation.{part}"] = stacked(f"norm1.linear.{part}")
        if config.text == "cross":
            ours[f"text.keys_values.{part}"] = stacked(f"attn2.to_k.{part}", f"attn2.to_v.{part}")
    return ours
