"""LoRAs of files and the products of a model: which name means which rows, in every dialect.

    add(path, text_encoder, network, weight)      # a file into a model's weights
    write(path, network)                          # what a network has learnt, under PEFT's names

A network that diffusers can express bears its names: `unet.down_blocks.0...attn1.to_q`, `transformer.transformer_blocks.0...`, and a
CLIP text tower `text_encoder.text_model.encoder.layers.0.self_attn.q_proj`. Every network also bears ours, `generator.` and the path of
the product; where several stand one below the other in it, their numbers behind it: `generator.blocks.0.attention.qkv.0`, `.1` and
`.2` are queries, keys and values. A network that diffusers has no name for, such as the modern DiT, is written so.

Which module of theirs is which of ours stands in the tables of `diffusers_unet`, `diffusers_dit` and `diffusers_text`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from triptych import catalog
from triptych.catalog import nearest
from triptych.interop import diffusers_dit, diffusers_unet
from triptych.interop.diffusers_text import clip_modules_in_transformers
from triptych.interop.lora_files import LoRAFile, hash_of, kohya_name, write_peft
from triptych.layers import lora
from triptych.layers.conv import Conv
from triptych.layers.lora import Addition, LoRA, Part

__all__ = ["add", "read", "write"]


class _Target(NamedTuple):
    place: str
    part: Part


def read(path: str | Path, text_encoder: Any, network: nn.Module) -> tuple[LoRAFile, dict[str, list[Addition]]]:
    """The file, and by place, "generator" or "text_encoder", what it adds.

    Raises ValueError in one line that names file and tensor: see `LoRAFile`; and for a product that the model does not have, or that is
    of another shape. All of it is found out before anything of the model is touched.
    """
    file = LoRAFile(path)
    panels, known = {"generator": network, "text_encoder": text_encoder}, _spellings(text_encoder, network)
    targets: dict[_Target, str] = {}
    for name, pair in file.pairs.items():
        target = known.get(name)
        if target is None:
            raise ValueError(f"{file.path}: tensor {pair.A!r} is for {name!r}, which this model does not have{_hint(name, known)}")
        if target in targets:
            raise ValueError(f"{file.path}: tensor {pair.A!r} is for {name!r}, which is {targets[target]!r} by another name")
        targets[target] = name
        shape = lora.part_shape(panels[target.place].get_submodule(target.part.module), target.part)
        for key, given, wanted in ((pair.A, pair.a_shape[1:], shape[1:]), (pair.B, pair.b_shape[:1], shape[:1])):
            if _stripped(given) != _stripped(wanted):
                raise ValueError(
                    f"{file.path}: tensor {key!r} is for {list(given)}, and {name!r} of this model has {list(wanted)}: "
                    "it was trained on another model"
                )
    found: dict[str, list[Addition]] = {}
    for target, name in targets.items():
        A, B, alpha = file.read(name)
        found.setdefault(target.place, []).append(Addition(target.part, A, B, alpha))
    return file, found


def add(path: str | Path, text_encoder: Any, network: nn.Module, weight: float) -> tuple[dict[str, Any], int]:
    """Fold a file into the panels' weights: what a record says of it, and how many products were changed. Raises ValueError as `read`."""
    if not math.isfinite(weight):
        raise ValueError(f"a LoRA's weight is {weight}: must be a number; 1 is as it was trained")
    file, found = read(path, text_encoder, network)
    panels = {"generator": network, "text_encoder": text_encoder}
    told = {"file": file.path.name, "hash": hash_of(file.path), "weight": float(weight)}
    return told, sum(lora.add(panels[place], additions, weight) for place, additions in found.items())


def write(path: Path, network: nn.Module) -> int:
    """What the LoRAs of a network have learnt, A and B in float32. Returns how many products. Raises ValueError where one is not finite."""
    spelled = {part: name for name, part in reversed(_of_generator(network).items())}  # theirs stand first, and win
    pairs = {spelled[one.part]: (one.A.float(), one.B.float()) for one in lora.additions(network)}
    for name, both in pairs.items():
        if not all(bool(torch.isfinite(one).all()) for one in both):
            raise ValueError(f"{name} is not finite; nothing was written to {path}")
    first = next(one for _, one in lora.inserted(network))
    write_peft(path, pairs, first.rank, first.alpha)
    return len(pairs)


# --- names ----------------------------------------------------------------------------------------------------------------


def _spellings(text_encoder: Any, network: nn.Module) -> dict[str, _Target]:
    """Every name, in every dialect, that means a product of this model."""
    found = {name: _Target("generator", part) for name, part in _of_generator(network).items()}
    found |= {name: _Target("text_encoder", part) for name, part in _of_text_encoder(text_encoder).items()}
    for name, target in list(found.items()):
        place, _, inner = name.partition(".")
        spelled = kohya_name(name)
        if spelled is not None:
            found.setdefault(spelled, target)
            found.setdefault(spelled.replace("lora_te_", "lora_te1_", 1), target)
        if place in ("unet", "transformer"):
            found.setdefault(inner, target)  # of a network that was saved alone
    return found


def _of_generator(network: nn.Module) -> dict[str, Part]:
    """PEFT's name -> product, theirs first."""
    prefix, theirs = _theirs(network)
    return _numbered(network, prefix, theirs) | _own(network, "generator")


def _of_text_encoder(text_encoder: Any) -> dict[str, Part]:
    if _family("text_encoders", text_encoder) != "clip":
        return {}
    theirs = clip_modules_in_transformers(text_encoder.config)
    return _numbered(text_encoder, "text_encoder.text_model", theirs) | _numbered(text_encoder, "text_encoder", theirs)


def _theirs(network: Any) -> tuple[str, dict[str, list[str]]]:
    """How diffusers' files begin, and our path -> their paths; nothing where diffusers has no such network."""
    family = _family("generators", network)
    if family == "dit" and diffusers_dit.in_diffusers(network.config, network.condition):
        every = diffusers_dit.modules_in_diffusers(network.config)
        other = "patch_in", "clock.0", "clock.2"  # a convolution there, and of each block its own
        return "transformer", {mine: yours for mine, yours in every.items() if mine not in other}
    if family == "unet":
        try:
            diffusers_unet.config_to_diffusers(network.config, network.latent, network.condition)
        except ValueError:  # it says what has no counterpart
            return "", {}
        names = {name.replace(".base.", "."): tensor for name, tensor in network.state_dict().items()}
        return "unet", diffusers_unet.modules_in_diffusers(network.config, names)
    return "", {}


def _numbered(network: nn.Module, prefix: str, theirs: dict[str, list[str]]) -> dict[str, Part]:
    products = _products(network)
    return {f"{prefix}.{yours}": Part(mine, i, len(names)) for mine, names in theirs.items() if mine in products
            for i, yours in enumerate(names)}  # fmt: skip


def _own(network: nn.Module, prefix: str) -> dict[str, Part]:
    found: dict[str, Part] = {}
    for path, layer in _products(network).items():
        count = len(getattr(layer, "parts", (0,)))
        found |= {f"{prefix}.{path}{f'.{i}' if count > 1 else ''}": Part(path, i, count) for i in range(count)}
    return found


def _products(network: nn.Module) -> dict[str, nn.Module]:
    """Products and convolutions by path; one that has a LoRA bears its own."""
    found = {path: module.base if isinstance(module, LoRA) else module for path, module in network.named_modules()}
    return {path: one for path, one in found.items() if isinstance(one, nn.Linear | Conv) and not path.endswith(".base")}


def _family(kind: str, one: Any) -> str:
    try:
        return catalog.name_of(kind, one)
    except ValueError:
        return ""  # built by hand


def _stripped(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A 1 x 1 convolution is a product."""
    return shape[:-2] if shape[-2:] == (1, 1) and len(shape) > 2 else shape


def _hint(name: str, known: dict[str, _Target]) -> str:
    start = name.split(".")[0].split("_")[0]
    near = [one for one in known if one.startswith(start)]
    close = nearest(name, near).partition("? ")
    return f"; {close[0]}?" if close[1] else ""
