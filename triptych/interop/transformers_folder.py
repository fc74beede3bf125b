"""A folder that transformers saved: config.json, model.safetensors, and what stands beside them, as families of ours.

    read(folder) -> Reading: each part by its place in a model of ours, how pictures are prepared, the names of the classes

Nothing in a folder names code: `model_type` is looked up in a table here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ..catalog import nearest
from . import transformers_dense as dense
from . import transformers_text as text
from . import transformers_towers as towers

__all__ = ["Part", "Preprocessing", "Reading", "is_transformers", "read"]

_LARGEST_JSON = 64 * 2**20
_TOKENIZER = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")


class Part(NamedTuple):
    """One panel: `catalog.build(kind, family, config, ...)`, then `checkpoint.fill(module, tensors, where)`."""

    family: str
    config: Any
    tensors: dict[str, Tensor]
    assets: dict[str, bytes]


class Preprocessing(NamedTuple):
    """How a picture of values in 0..1 becomes what the network sees, in the words of `eyes.Pixels`. fit: "stretch" to height and width;
    "crop": the shorter side to `shorter`, then the middle is cut out; "shorter": nothing is cut off, the longer side is at most
    `longer` (0 = any). filter: "bicubic", "bilinear", "nearest" (for Lanczos, bicubic); all but "nearest" are antialiased."""

    height: int
    width: int
    fit: str
    shorter: int
    longer: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    filter: str


class Reading(NamedTuple):
    """parts: by place ("vision", "text_encoder").  labels: names of the classes, in order, () where there are none."""

    model_type: str
    parts: dict[str, Part]
    preprocessing: Preprocessing
    labels: tuple[str, ...]


Reader = Callable[[Mapping[str, Any], Mapping[str, Tensor]], tuple[str, Any, dict[str, Tensor]]]

_READERS: dict[str, dict[str, Reader]] = {
    "vit": {"vision": towers.vit_from_transformers},
    "resnet": {"vision": towers.resnet_from_transformers},
    "clip": {"vision": towers.clip_from_transformers, "text_encoder": towers.clip_text_from_transformers},
    "clip_text_model": {"text_encoder": towers.clip_text_from_transformers},
    "bert": {"text_encoder": text.bert_from_transformers},
    "gpt2": {"text_encoder": text.gpt2_from_transformers},
    "t5": {"text_encoder": text.t5_from_transformers},
    "vit_mae": {"vision": dense.vit_mae_from_transformers},
    "swin": {"vision": dense.swin_from_transformers},
    "detr": {"vision": dense.detr_from_transformers},
}

_HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OPENAI = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
# With what each kind was published; heard only where a folder has no preprocessor_config.json.
_MEAN_STD = {"vit": _HALF, "clip": _OPENAI, "clip_text_model": _OPENAI}
_RESAMPLE = {0: "nearest", 1: "bicubic", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers; 1 is Lanczos


def is_transformers(folder: str | Path) -> bool:
    """Does a folder look like one of theirs: a config.json with a `model_type`?"""
    path = Path(folder) / "config.json"
    return path.is_file() and "model_type" in _json(path)


def read(folder: str | Path) -> Reading:
    """Everything in the folder, nothing built. Raises ValueError for kinds that cannot be read, and for whatever is missing or broken."""
    folder = Path(folder)
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _READERS:
        raise ValueError(f"{folder / 'config.json'}: model_type {kind!r} cannot be read; {nearest(str(kind), sorted(_READERS))}")
    tensors = _tensors(folder)
    parts = {}
    for place, reader in _READERS[kind].items():
        try:
            family, chosen, ours = reader(config, tensors)
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:  # whatever breaks on a file's values is its fault
            raise ValueError(f"{folder}: {_said(error)}") from error
        parts[place] = Part(family, chosen, ours, _assets(folder) if place == "text_encoder" else {})
    size = getattr(parts["vision"].config, "image_size", 224) if "vision" in parts else 224
    return Reading(kind, parts, _preprocessing(folder, kind, size), _labels(config))


def _said(error: Exception) -> str:
    return f"config.json lacks {error}" if isinstance(error, KeyError) else str(error)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {path.parent} is no folder that transformers saved")
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a description has at most {_LARGEST_JSON}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def _tensors(folder: Path) -> dict[str, Tensor]:
    """model.safetensors, or the files that its index names."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    names = ["model.safetensors"]
    if not (folder / names[0]).is_file() and (folder / f"{names[0]}.index.json").is_file():
        shards = _json(folder / f"{names[0]}.index.json").get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise ValueError(f"{folder / names[0]}.index.json has no 'weight_map' of file names")
        names = sorted(set(shards.values()))
    tensors: dict[str, Tensor] = {}
    for name in names:
        path = folder / name
        if Path(name).name != name or not path.is_file():
            pickled = " (a .bin file is a pickle, which can run code: save the model anew, as safetensors)"
            raise ValueError(f"{path} is missing{pickled if list(folder.glob('*.bin')) else ''}")
        try:
            tensors |= load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    return tensors


def _assets(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in _TOKENIZER if (folder / name).is_file()}


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    said = config.get("id2label")
    return tuple(str(said[key]) for key in sorted(said, key=int)) if isinstance(said, dict) else ()


def _preprocessing(folder: Path, kind: str, image_size: int) -> Preprocessing:
    """From preprocessor_config.json, or from the part of processor_config.json that newer versions write instead."""
    said: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        said = _json(folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():
        said = _json(folder / "processor_config.json").get("image_processor") or {}
    mean, std = _MEAN_STD.get(kind, _IMAGENET)
    try:
        size = said.get("size", image_size)
        side, keeps = _size(size)
        cut, shorter, longer, fit = side, 0, 0, "stretch"
        if said.get("do_center_crop") and "crop_size" in said:
            cut, fit, shorter = _size(said["crop_size"])[0], "crop", side
        elif said.get("crop_pct") is not None and side < 384:  # ConvNext's rule, for ResNet too: below 384 resize a little larger and cut
            fit, shorter = "crop", int(side / said["crop_pct"])
        elif keeps:
            fit, shorter, longer = "shorter", side, int(size.get("longest_edge") or 0)
        chosen = _RESAMPLE[said.get("resample", 3)]
        mean, std = _three(said.get("image_mean", mean)), _three(said.get("image_std", std))
        if not all(std):
            raise ValueError(f"image_std {std} divides by 0")
    except (ValueError, KeyError, TypeError, ArithmeticError) as error:
        raise ValueError(f"{folder}: the image processor's numbers cannot be read: {_said(error)}") from None
    if said.get("do_normalize") is False:
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return Preprocessing(height=cut, width=cut, fit=fit, shorter=shorter, longer=longer, mean=mean, std=std, filter=chosen)


def _three(said: Any) -> tuple[float, float, float]:
    red, green, blue = (float(number) for number in said)
    return red, green, blue


def _size(said: Any) -> tuple[int, bool]:
    """(pixels, whether they are the shorter side's): a number or {"height", "width"} is both sides, {"shortest_edge"} the shorter."""
    if isinstance(said, dict) and "shortest_edge" in said:
        return int(said["shortest_edge"]), True
    if isinstance(said, dict):
        if said["height"] != said["width"]:
            raise ValueError(f"size {said['height']} x {said['width']}: only squares can be read")
        return int(said["height"]), False
    return int(said), False
