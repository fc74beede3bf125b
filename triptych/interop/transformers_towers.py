"""transformers' ViT, ResNet and CLIP into `vision/vit.py`, `vision/resnet.py`, `vision/clip.py` and `text_encoders/clip.py`.

Each function takes `config.json` and the tensors of `model.safetensors`, and gives the family, its Config and the tensors under our
names. Tensors of parts that we do not have raise ValueError, as do settings that ours have no counterpart for. transformers writes
ViT under the names of its version 4 and computes under those of version 5; both are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..text_encoders import clip as clip_text
from ..vision import clip, resnet, vit

__all__ = ["clip_from_transformers", "clip_text_from_transformers", "resnet_from_transformers", "vit_from_transformers"]

Told = tuple[str, Any, dict[str, Tensor]]


def vit_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Told:
    """ViTModel and ViTForImageClassification."""
    theirs = _Tensors(_version_5(tensors), without="vit.")
    _only(config, num_channels=3, pooler_act="tanh")
    width = config["hidden_size"]
    ours = {
        "class_D": theirs.take("embeddings.cls_token").reshape(width),
        "position_LD": theirs.take("embeddings.position_embeddings")[0],
    }
    theirs.move(ours, "patches", "embeddings.patch_embeddings.projection")
    theirs.move(ours, "norm", "layernorm")
    pooler = theirs.get("pooler.dense.weight")
    head = theirs.get("classifier.weight")
    theirs.move(ours, "pooler.0", "pooler.dense", there=pooler is not None)
    theirs.move(ours, "head", "classifier", there=head is not None)
    for i in range(config["num_hidden_layers"]):
        here, there = f"blocks.{i}", f"layers.{i}"
        theirs.fuse(ours, f"{here}.qkv", [f"{there}.attention.{part}_proj" for part in "qkv"], config["qkv_bias"])
        theirs.move(ours, f"{here}.out", f"{there}.attention.o_proj")
        theirs.move(ours, f"{here}.mlp.0", f"{there}.mlp.fc1")
        theirs.move(ours, f"{here}.mlp.2", f"{there}.mlp.fc2")
        theirs.move(ours, f"{here}.norm1", f"{there}.layernorm_before")
        theirs.move(ours, f"{here}.norm2", f"{there}.layernorm_after")
    theirs.done()
    chosen = vit.Config(
        image_size=_side(config, "image_size"), patch_size=_side(config, "patch_size"), eps=config["layer_norm_eps"],
        qkv_bias=config["qkv_bias"], pooler=0 if pooler is None else len(pooler), num_classes=0 if head is None else len(head),
        **_transformer(config),
    )  # fmt: skip
    return "vit", chosen, ours


_VERSION_5 = {
    "encoder.layer.": "layers.", "attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj", "attention.output.dense": "attention.o_proj", "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}  # fmt: skip


def _version_5(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, tensor in tensors.items():
        for old, new in _VERSION_5.items():
            name = name.replace(old, new)
        out[name] = tensor
    return out


def resnet_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Told:
    """ResNetModel and ResNetForImageClassification. Their image_size is nowhere said: 224, as published."""
    theirs = _Tensors(tensors, without="resnet.")
    _only(config, num_channels=3, hidden_act="relu")
    ours: dict[str, Tensor] = {}

    def conv(here: str, there: str) -> None:
        ours[f"{here}.conv.weight"] = theirs.take(f"{there}.convolution.weight")
        for part in ("weight", "bias", "running_mean", "running_var"):
            ours[f"{here}.norm.{part}"] = theirs.take(f"{there}.normalization.{part}")
        count = f"{there}.normalization.num_batches_tracked"  # not in every file, and read by nobody
        ours[f"{here}.norm.num_batches_tracked"] = theirs.take(count) if count in theirs.left else torch.zeros((), dtype=torch.int64)

    conv("stem", "embedder.embedder")
    for i, depth in enumerate(config["depths"]):
        for k in range(depth):
            here, there = f"stages.{i}.{k}", f"encoder.stages.{i}.layers.{k}"
            for n in range(2 if config["layer_type"] == "basic" else 3):
                conv(f"{here}.convs.{n}", f"{there}.layer.{n}")
            if f"{there}.shortcut.convolution.weight" in theirs.left:
                conv(f"{here}.shortcut", f"{there}.shortcut")
    head = theirs.get("classifier.1.weight")
    theirs.move(ours, "head", "classifier.1", there=head is not None)
    theirs.done()
    chosen = resnet.Config(
        stem_width=config["embedding_size"], widths=tuple(config["hidden_sizes"]), depths=tuple(config["depths"]),
        block=config["layer_type"], first_stride=2 if config["downsample_in_first_stage"] else 1,
        stride_in="1x1" if config.get("downsample_in_bottleneck") else "3x3", num_classes=0 if head is None else len(head),
    )  # fmt: skip
    return "resnet", chosen, ours


def clip_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Told:
    """CLIPModel's image tower, its two projections and its temperature; the rest is `clip_text_from_transformers`'s."""
    theirs = _Tensors({name: tensor for name, tensor in tensors.items() if not name.startswith("text_model.")})
    vision = _CLIP_VISION | dict(config.get("vision_config") or {}) | dict(config.get("vision_config_dict") or {})
    _only(vision, num_channels=3)
    theirs.drop("vision_model.embeddings.position_ids")
    ours = {
        "class_D": theirs.take("vision_model.embeddings.class_embedding"),
        "position_LD": theirs.take("vision_model.embeddings.position_embedding.weight"),
        "patches.weight": theirs.take("vision_model.embeddings.patch_embedding.weight"),
        "image_projection.weight": theirs.take("visual_projection.weight"),
        "text_projection.weight": theirs.take("text_projection.weight"),
        "logit_scale": theirs.take("logit_scale").reshape(()),
    }
    theirs.move(ours, "norm_in", "vision_model.pre_layrnorm")  # sic
    theirs.move(ours, "norm", "vision_model.post_layernorm")
    _clip_blocks(theirs, ours, "vision_model.", vision["num_hidden_layers"])
    theirs.done()
    chosen = clip.Config(
        tower="clip", image_size=_side(vision, "image_size"), patch_size=_side(vision, "patch_size"), eps=vision["layer_norm_eps"],
        embed=len(ours["image_projection.weight"]), **_transformer(vision),
    )  # fmt: skip
    return "clip", chosen, ours


def clip_text_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Told:
    """CLIPModel's text tower, or CLIPTextModel alone (Stable Diffusion's panel 1)."""
    whole = config.get("model_type") == "clip"
    given = dict(config.get("text_config") or {}) | dict(config.get("text_config_dict") or {}) if whole else dict(config)
    text = _CLIP_TEXT | given
    mine = {name: tensor for name, tensor in tensors.items() if not whole or name.startswith("text_model.")}
    theirs = _Tensors(mine, without="text_model.")
    theirs.drop("embeddings.position_ids")
    ours = {
        "embedding.weight": theirs.take("embeddings.token_embedding.weight"),
        "position_LD": theirs.take("embeddings.position_embedding.weight"),
    }
    theirs.move(ours, "norm", "final_layer_norm")
    _clip_blocks(theirs, ours, "", text["num_hidden_layers"])
    theirs.done()
    end = text["eos_token_id"]
    if not isinstance(end, int):
        raise ValueError(f"eos_token_id = {end!r}: only one number can be read")
    chosen = clip_text.Config(
        vocab=text["vocab_size"], context_length=text["max_position_embeddings"], eps=text["layer_norm_eps"],
        end=None if end == 2 else end, **_transformer(text),
    )  # fmt: skip
    return "clip", chosen, ours


# What transformers takes for granted where an older config.json is silent: ViT-B/32.
_CLIP_SHARED = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_CLIP_VISION = _CLIP_SHARED | {
    "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 32,
}  # fmt: skip
_CLIP_TEXT = _CLIP_SHARED | {
    "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "vocab_size": 49408, "max_position_embeddings": 77,
    "eos_token_id": 49407,
}  # fmt: skip


def _clip_blocks(theirs: _Tensors, ours: dict[str, Tensor], tower: str, depth: int) -> None:
    for i in range(depth):
        here, there = f"blocks.{i}", f"{tower}encoder.layers.{i}"
        theirs.fuse(ours, f"{here}.qkv", [f"{there}.self_attn.{part}_proj" for part in "qkv"])
        names = {"out": "self_attn.out_proj", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2", "norm1": "layer_norm1", "norm2": "layer_norm2"}
        for mine, yours in names.items():
            theirs.move(ours, f"{here}.{mine}", f"{there}.{yours}")


def _transformer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that all transformers here share."""
    if config["hidden_act"] not in ("gelu", "quick_gelu"):
        raise ValueError(f"hidden_act = {config['hidden_act']!r}: only 'gelu' and 'quick_gelu' can be read")
    return {
        "width": config["hidden_size"], "depth": config["num_hidden_layers"], "num_heads": config["num_attention_heads"],
        "mlp_ratio": config["intermediate_size"] / config["hidden_size"], "activation": config["hidden_act"],
    }  # fmt: skip


def _only(config: Mapping[str, Any], **wanted: Any) -> None:
    for name, value in wanted.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} = {config[name]!r}: only {value!r} can be read")


def _side(config: Mapping[str, Any], name: str) -> int:
    """Their sizes are a number, or a height and a width."""
    sides = config[name] if isinstance(config[name], (list, tuple)) else [config[name]]
    if len(set(sides)) != 1:
        raise ValueError(f"{name} = {list(sides)}: only squares can be read")
    return int(sides[0])


class _Tensors:
    """Their tensors, each to be taken once; `without` a prefix that task models put in front of the tower's names."""

    def __init__(self, tensors: Mapping[str, Tensor], without: str = "") -> None:
        self.left = {name.removeprefix(without): tensor for name, tensor in tensors.items()}

    def get(self, name: str) -> Tensor | None:
        return self.left.get(name)

    def take(self, name: str) -> Tensor:
        if name not in self.left:
            raise ValueError(f"the checkpoint lacks {name!r}, which its configuration asks for")
        return self.left.pop(name)

    def drop(self, name: str) -> None:
        self.left.pop(name, None)

    def move(self, ours: dict[str, Tensor], mine: str, yours: str, there: bool = True) -> None:
        """A layer's weight and bias."""
        for part in ("weight", "bias") if there else ():
            ours[f"{mine}.{part}"] = self.take(f"{yours}.{part}")

    def fuse(self, ours: dict[str, Tensor], mine: str, yours: list[str], bias: bool = True) -> None:
        """Layers that read the same input, one below the other."""
        for part in ("weight", "bias") if bias else ("weight",):
            ours[f"{mine}.{part}"] = torch.cat([self.take(f"{one}.{part}") for one in yours])

    def done(self) -> None:
        if self.left:
            raise ValueError(f"the checkpoint holds {sorted(self.left)[0]!r}, which cannot be read")
