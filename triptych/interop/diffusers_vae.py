"""diffusers' AutoencoderKL folders (SD, SDXL, SD3, FLUX) in and out of `decoders/autoencoder_kl.py`: names and tensors only.

diffusers says z = (raw - shift_factor) * scaling_factor; here that is mean = shift_factor and std = 1 / scaling_factor. Where
its configuration has a number a channel (latents_mean, latents_std): z = (raw - latents_mean) / latents_std * scaling_factor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..decoders.autoencoder_kl import Config

__all__ = ["config_from_diffusers", "config_to_diffusers", "tensors_from_diffusers", "tensors_to_diffusers"]

_PLACES = (  # ours, theirs; longest first where one begins another
    (r"^encoder\.levels\.(\d+)\.blocks\.(\d+)\.", r"encoder.down_blocks.\1.resnets.\2."),
    (r"^encoder\.levels\.(\d+)\.resize\.", r"encoder.down_blocks.\1.downsamplers.0."),
    (r"^decoder\.levels\.(\d+)\.blocks\.(\d+)\.", r"decoder.up_blocks.\1.resnets.\2."),
    (r"^decoder\.levels\.(\d+)\.resize\.", r"decoder.up_blocks.\1.upsamplers.0."),
    (r"^(\w+)\.mid\.first\.", r"\1.mid_block.resnets.0."),
    (r"^(\w+)\.mid\.second\.", r"\1.mid_block.resnets.1."),
    (r"^(\w+)\.mid\.attention\.norm\.", r"\1.mid_block.attentions.0.group_norm."),
    (r"^(\w+)\.mid\.attention\.query\.", r"\1.mid_block.attentions.0.to_q."),
    (r"^(\w+)\.mid\.attention\.key\.", r"\1.mid_block.attentions.0.to_k."),
    (r"^(\w+)\.mid\.attention\.value\.", r"\1.mid_block.attentions.0.to_v."),
    (r"^(\w+)\.mid\.attention\.out\.", r"\1.mid_block.attentions.0.to_out.0."),
    (r"^(\w+)\.stem\.", r"\1.conv_in."),
    (r"^(\w+)\.norm\.", r"\1.conv_norm_out."),
    (r"^(\w+)\.head\.", r"\1.conv_out."),
    (r"^quant\.", r"quant_conv."),
    (r"^post_quant\.", r"post_quant_conv."),
)
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names before diffusers 0.15, still in SD's own folders


def tensors_to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under diffusers' names. The latents' statistics stay behind: there they are configuration."""
    return {_theirs(name): tensor for name, tensor in tensors.items() if not name.startswith("latent_")}


def tensors_from_diffusers(tensors: Mapping[str, Tensor], config: Config, names: list[str]) -> dict[str, Tensor]:
    """diffusers' state dict under our `names` (those of the module to be filled), attention weights of either vintage.

    Raises ValueError naming the first tensor that is missing or left over.
    """
    given = {}
    for name, tensor in tensors.items():
        for old, new in _OLD.items():
            name = name.replace(f"attentions.0.{old}.", f"attentions.0.{new}.")
        linear = "attentions.0.to_" in name and tensor.ndim == 4  # single-file checkpoints keep 1 x 1 convolutions there
        given[name] = tensor[:, :, 0, 0] if linear else tensor
    out: dict[str, Tensor] = {}
    for name in names:
        if name.startswith("latent_"):
            numbers = config.mean if name == "latent_mean" else config.std
            out[name] = torch.tensor(numbers).expand(config.z_channels).clone()
        elif _theirs(name) in given:
            out[name] = given.pop(_theirs(name))
        else:
            raise ValueError(f"the checkpoint lacks {_theirs(name)!r}, which the configuration asks for")
    if given:
        raise ValueError(f"the checkpoint holds {sorted(given)[0]!r}, which the configuration does not know")
    return out


def config_from_diffusers(values: Mapping[str, Any]) -> Config:
    """The Config of a diffusers `config.json`. Raises ValueError where their network has parts that ours has not."""
    widths = list(values["block_out_channels"])
    wrong = [width for width in widths if width % widths[0]]
    if wrong:
        raise ValueError(f"level widths {widths}: {wrong[0]} is no multiple of {widths[0]}, the first")
    fixed = {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "mid_block_add_attention": True}
    for key, value in fixed.items():
        if values.get(key, value) != value:
            raise ValueError(f"{key} = {values[key]!r}: only {value!r} can be read")
    if values.get("use_quant_conv", True) != values.get("use_post_quant_conv", True):
        raise ValueError("quant_conv without post_quant_conv, or the reverse, cannot be read")
    scale = values["scaling_factor"]
    means = values.get("latents_mean") or (values.get("shift_factor") or 0.0,)
    stds = values.get("latents_std") or (1.0,)
    return Config(
        width=widths[0],
        multipliers=tuple(width // widths[0] for width in widths),
        num_res_blocks=values["layers_per_block"],
        z_channels=values["latent_channels"],
        norm_groups=values["norm_num_groups"],
        quant_convs=values.get("use_quant_conv", True),
        image_size=values["sample_size"],
        mean=tuple(float(mean) for mean in means),
        std=tuple(float(std) / scale for std in stds),
    )


def config_to_diffusers(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments for diffusers' AutoencoderKL. The latents' statistics are those among `tensors`, our state dict."""
    mean, std = tensors["latent_mean"].tolist(), tensors["latent_std"].tolist()
    if len(set(mean)) == len(set(std)) == 1:
        statistics = {"scaling_factor": 1 / std[0], "shift_factor": mean[0] or None}
    else:
        statistics = {"scaling_factor": 1.0, "latents_mean": mean, "latents_std": std}
    levels = len(config.multipliers)
    return {
        "in_channels": 3, "out_channels": 3, "act_fn": "silu",
        "block_out_channels": tuple(config.width * m for m in config.multipliers),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "norm_num_groups": config.norm_groups,
        "use_quant_conv": config.quant_convs,
        "use_post_quant_conv": config.quant_convs,
        "sample_size": config.image_size,
        **statistics,
    }  # fmt: skip


def _theirs(name: str) -> str:
    for ours, theirs in _PLACES:
        name, count = re.subn(ours, theirs, name)
        if count:
            break
    return name.replace(".shortcut.", ".conv_shortcut.")
