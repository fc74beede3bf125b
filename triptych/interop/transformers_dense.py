"""transformers' ViTMAE, Swin and DETR into `vision/mae.py`, `vision/swin.py`, `vision/detr.py`: names and tensors only.

Each function takes `config.json` and the tensors of `model.safetensors`, and gives the family, its Config and the tensors under our
names. transformers writes files under the names of its version 4 and computes under those of version 5; both are read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..vision import detr, mae, swin
from .transformers_towers import resnet_from_transformers

__all__ = ["detr_from_transformers", "swin_from_transformers", "vit_mae_from_transformers"]

Told = tuple[str, Any, dict[str, Tensor]]

_RENAMED = {  # version 4 -> version 5; inside a transformer block
    "attention.attention.query": "attention.q_proj", "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj", "attention.self.query": "attention.q_proj", "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj", "attention.output.dense": "attention.o_proj", "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2", "attention.self.relative_position_bias": "attention.relative_position_bias.relative_position_bias",
    "decoder.decoder_encoder.layer.": "decoder.decoder_layers.", "encoder.layer.": "layers.",
}  # fmt: skip


def _renamed(theirs: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Under version 5's names, without the model's prefix, which a bare model does not write."""
    out = {}
    for name, tensor in theirs.items():
        for old, new in _RENAMED.items():
            name = name.replace(old, new)
        out[name.removeprefix(prefix)] = tensor
    return out


def _needs(config: Mapping[str, Any], **values: Any) -> None:
    for name, value in values.items():
        if config.get(name, value) != value:
            raise ValueError(f"a {config['model_type']} with {name} = {config[name]!r} cannot be read: only {value!r} can")


def _block(theirs: Mapping[str, Tensor], mine: str, yours: str) -> dict[str, Tensor]:
    """A pre-norm transformer block as `layers/encoder.py` names it."""
    out = {}
    pairs = {"norm1": "layernorm_before", "out": "attention.o_proj", "norm2": "layernorm_after", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    for part in ("weight", "bias"):
        out |= {f"{mine}.{a}.{part}": theirs[f"{yours}.{b}.{part}"] for a, b in pairs.items()}
        if f"{yours}.attention.q_proj.{part}" in theirs:
            out[f"{mine}.qkv.{part}"] = torch.cat([theirs[f"{yours}.attention.{x}_proj.{part}"] for x in "qkv"])
    return out


def _copies(theirs: Mapping[str, Tensor], names: Mapping[str, str], parts: Sequence[str] = ("weight", "bias")) -> dict[str, Tensor]:
    return {f"{mine}.{part}": theirs[f"{yours}.{part}"] for mine, yours in names.items() for part in parts if f"{yours}.{part}" in theirs}


def vit_mae_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Told:
    """ViTMAEForPreTraining, or ViTMAEModel, which has no decoder.

    Raises ValueError for settings that our MAE has no counterpart for.
    """
    _needs(config, hidden_act="gelu", num_channels=3, qkv_bias=True)
    theirs, width, decoder_width = _renamed(tensors, "vit."), config["hidden_size"], config["decoder_hidden_size"]
    whole = "decoder.mask_token" in theirs
    ours = mae.Config(
        image_size=config["image_size"], patch_size=config["patch_size"], width=width, depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"], mlp_ratio=config["intermediate_size"] / width, mask=config["mask_ratio"],
        decoder_depth=config["decoder_num_hidden_layers"] if whole else 0, decoder_heads=config["decoder_num_attention_heads"],
        decoder_width=decoder_width, decoder_mlp_ratio=config["decoder_intermediate_size"] / decoder_width,
        normalise=config["norm_pix_loss"], eps=config["layer_norm_eps"],
    )  # fmt: skip
    out = {"class_D": theirs["embeddings.cls_token"].flatten(), "place_LD": theirs["embeddings.position_embeddings"][0]}
    out |= _copies(theirs, {"patches": "embeddings.patch_embeddings.projection", "norm": "layernorm"})
    for i in range(ours.depth):
        out |= _block(theirs, f"blocks.{i}", f"layers.{i}")
    if whole:
        out |= {"decoder.mask_D": theirs["decoder.mask_token"].flatten(), "decoder.place_LD": theirs["decoder.decoder_pos_embed"][0]}
        names = {"first": "embed", "norm": "norm", "last": "pred"}
        out |= _copies(theirs, {f"decoder.{a}": f"decoder.decoder_{b}" for a, b in names.items()})
    for i in range(ours.decoder_depth):
        out |= _block(theirs, f"decoder.blocks.{i}", f"decoder.decoder_layers.{i}")
    return "mae", ours, out


def swin_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Told:
    """SwinModel or SwinForImageClassification. Raises ValueError for settings that our Swin has no counterpart for."""
    _needs(config, hidden_act="gelu", num_channels=3, use_absolute_embeddings=False, layer_norm_eps=1e-5)
    theirs = _renamed(tensors, "swin.")
    ours = swin.Config(
        image_size=config["image_size"], patch_size=config["patch_size"], width=config["embed_dim"], depths=tuple(config["depths"]),
        num_heads=tuple(config["num_heads"]), window=config["window_size"], mlp_ratio=config["mlp_ratio"], qkv_bias=config["qkv_bias"],
        drop_path=config["drop_path_rate"], num_classes=len(theirs["classifier.weight"]) if "classifier.weight" in theirs else 0,
    )  # fmt: skip
    names = {"patches": "embeddings.patch_embeddings.projection", "patch_norm": "embeddings.norm"}
    names |= {"norm": "layernorm", "head": "classifier"}
    out = {}
    for i, depth in enumerate(ours.depths):
        if i:
            names |= {f"merges.{i - 1}.norm": f"encoder.layers.{i - 1}.downsample.norm"}
            names |= {f"merges.{i - 1}.reduce": f"encoder.layers.{i - 1}.downsample.reduction"}
        for j in range(depth):
            mine, yours = f"stages.{i}.{j}", f"encoder.layers.{i}.blocks.{j}"
            out |= _block(theirs, mine, yours)
            out[f"{mine}.bias_RN"] = theirs[f"{yours}.attention.relative_position_bias.relative_position_bias_table"]
    return "swin", ours, out | _copies(theirs, names)


def detr_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Told:
    """DetrForObjectDetection or DetrForSegmentation, over their own ResNet or timm's (as the published files have it).

    With `auxiliary_loss` theirs hands each decoder layer's NORMALISED state to the next, which the paper's code does not, and so
    computes other numbers in inference too; the weights are read all the same, and ours computes as the paper's.
    Raises ValueError for settings that our DETR has no counterpart for.
    """
    _needs(config, activation_function="relu", num_channels=3, position_embedding_type="sine", dilation=False)
    for a, b in (("encoder_attention_heads", "decoder_attention_heads"), ("encoder_ffn_dim", "decoder_ffn_dim")):
        if config[a] != config[b]:
            raise ValueError(f"a detr with {a} = {config[a]} and {b} = {config[b]} cannot be read: ours has one number for both")
    theirs = {_substituted(name, _DETR): tensor for name, tensor in tensors.items()}
    backbone = {name.removeprefix("backbone."): tensor for name, tensor in theirs.items() if name.startswith("backbone.")}
    described = dict(config.get("backbone_config") or {})
    if described.get("model_type", "timm_backbone") == "timm_backbone":
        name = described.get("backbone") or config.get("backbone", "resnet50")
        if name not in _TIMM:
            raise ValueError(f"a detr over timm's {name!r} cannot be read: only over {', '.join(_TIMM)}")
        described = _TIMM_RESNET | {"depths": _TIMM[name]}
        backbone = {_substituted(name, _TIMM_NAMES): tensor for name, tensor in backbone.items()}
    _, resnet, under = resnet_from_transformers(described, backbone)
    fields = {f.name: getattr(resnet, f.name) for f in dataclasses.fields(resnet) if f.name not in ("image_size", "num_classes")}
    names, many = config.get("id2label") or {}, len(theirs["class_head.weight"]) - 1
    labels = tuple(str(names[key]) for key in sorted(names, key=int))
    ours = detr.Config(
        backbone=fields, num_classes=many, labels=labels if len(labels) == many else (), num_queries=config["num_queries"],
        width=config["d_model"], hidden=config["encoder_ffn_dim"], num_heads=config["encoder_attention_heads"],
        depth=config["encoder_layers"], decoder_depth=config["decoder_layers"], dropout=config["dropout"],
        masks="mask_head.last.bias" in theirs,
    )  # fmt: skip
    out = {f"backbone.{name}": tensor for name, tensor in under.items()}
    return "detr", ours, out | {name: tensor for name, tensor in theirs.items() if not name.startswith("backbone.")}


_DETR = {  # patterns of theirs, of either version, to ours; one after the other
    r"^detr\.": "", r"^model\.": "", r"^backbone\.(conv_encoder\.)?model\.": "backbone.",
    r"^(encoder|decoder)\.layers": r"\1", r"^decoder\.layernorm": "norm", r"^input_projection": "project",
    r"^query_position_embeddings\.weight": "query_QD", r"^class_labels_classifier": "class_head", r"^bbox_predictor\.layers\.": "box_head.",
    r"^(encoder\.\d+)\.final_layer_norm": r"\1.norm2", r"^(decoder\.\d+)\.final_layer_norm": r"\1.norm3",
    r"self_attn_layer_norm": "norm1", r"encoder_attn_layer_norm": "norm2", r"self_attn": "attention", r"encoder_attn": "cross",
    r"^(..coder\.\d+)\.(mlp\.)?fc1": r"\1.mlp.0", r"^(..coder\.\d+)\.(mlp\.)?fc2": r"\1.mlp.3",
    r"^(..coder\..*)q_proj": r"\1query", r"^(..coder\..*)k_proj": r"\1key", r"^(..coder\..*)v_proj": r"\1value",
    r"^(..coder\..*)(out|o)_proj": r"\1out", r"^box_head\.2": "box_head.6", r"^box_head\.1": "box_head.3",
    r"^bbox_attention\.q_(proj|linear)": "mask_head.look.query", r"^bbox_attention\.k_(proj|linear)": "mask_head.look.key",
    r"^mask_head\.(output_conv|out_lay)": "mask_head.last", r"^mask_head\.lay(\d)": r"mask_head.conv\1.conv",
    r"^mask_head\.gn(\d)": r"mask_head.conv\1.norm",
    r"^mask_head\.conv1\.": "mask_head.first.", r"^mask_head\.conv2\.": "mask_head.second.",
    **{rf"^mask_head\.conv{i + 3}\.": f"mask_head.convs.{i}." for i in range(3)},
    **{rf"^mask_head\.adapter{i + 1}\.": f"mask_head.adapters.{i}." for i in range(3)},
    r"^mask_head\.fpn_stages\.(\d)\.fpn_adapter": r"mask_head.adapters.\1", r"^mask_head\.fpn_stages\.(\d)\.refine": r"mask_head.convs.\1",
}  # fmt: skip

_TIMM = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
_TIMM_RESNET = {
    "embedding_size": 64, "hidden_sizes": (256, 512, 1024, 2048), "layer_type": "bottleneck", "downsample_in_first_stage": False,
}  # fmt: skip
_TIMM_NAMES = {  # timm's to transformers', one stage later there
    r"^conv1": "embedder.embedder.convolution", r"^bn1": "embedder.embedder.normalization",
    **{rf"^layer{i + 1}\.(\d+)": rf"encoder.stages.{i}.layers.\1" for i in range(4)},
    **{rf"\.conv{i + 1}\.": f".layer.{i}.convolution." for i in range(3)},
    **{rf"\.bn{i + 1}\.": f".layer.{i}.normalization." for i in range(3)},
    r"downsample\.0": "shortcut.convolution", r"downsample\.1": "shortcut.normalization",
}  # fmt: skip


def _substituted(name: str, patterns: Mapping[str, str]) -> str:
    for theirs, ours in patterns.items():
        name = re.sub(theirs, ours, name)
    return name
