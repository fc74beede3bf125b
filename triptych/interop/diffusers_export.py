"""A model of ours as a folder that diffusers loads, and samples to the same picture.

    call = export(text_encoder, network, process, decoder, how, folder)

    CLIP text + U-Net + AutoencoderKL + DDPM       -> StableDiffusionPipeline
    nothing said + U-Net + pixels + DDPM           -> DDPMPipeline, DDIMPipeline

Stable Diffusion's pipeline fills prompts up to the text encoder's length and hears the padding; a text encoder that masks it instead
would be heard differently there, and is refused. What else diffusers has no name for is refused too, with the part's name.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych import catalog
from triptych.contracts import ConditionSpec
from triptych.interop import diffusers_unet, diffusers_vae
from triptych.interop.diffusers_schedulers import scheduler_to_diffusers
from triptych.interop.diffusers_text import clip_text_to_transformers
from triptych.processes.ddpm import Sampling

__all__ = ["export"]

_VERSION = "0.42.1"  # whose settings these are
_START = "<|startoftext|>"


def export(text_encoder: Any, network: Any, process: Any, decoder: Any, how: Sampling, size: tuple[int, int], folder: Path) -> str:
    """Write the folder, whole or not at all; weights in float32. Returns the Python that draws with it.

    how: the sampling that its scheduler will do.  size: height and width of its pictures.
    Raises ValueError, naming the part, for what diffusers cannot be told, and for a folder that is there already.
    """
    if folder.exists():
        raise ValueError(f"{folder} is there already; name a new folder")
    families = {
        place: catalog.name_of(kind, one)
        for place, kind, one in (
            ("text_encoder", "text_encoders", text_encoder), ("generator", "generators", network), ("process", "processes", process),
            ("decoder", "decoders", decoder),
        )
    }  # fmt: skip
    for place, known in (("generator", ("unet",)), ("process", ("ddpm",))):
        if families[place] not in known:
            raise ValueError(f"{place}: {families[place]!r} cannot be exported, only {' or '.join(map(repr, known))} can")
    both = families["text_encoder"], families["decoder"]
    if both == ("clip", "autoencoder_kl"):
        parts, call = _words(text_encoder, network, process, decoder, how, size), _call("StableDiffusionPipeline", folder, how)
    elif both == ("label", "identity"):
        parts, call = _pixels(text_encoder, network, process, decoder, how, size)
        call = _call(call, folder, how)
    else:
        can = "'clip' with 'autoencoder_kl', and 'label' without classes with 'identity'"
        raise ValueError(f"text_encoder {both[0]!r} with decoder {both[1]!r} cannot be exported, only {can} can")
    temporary = folder.with_name(f".{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        for name, data in parts.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, data)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return call


def _words(
    text: Any, network: Any, process: Any, decoder: Any, how: Sampling, size: tuple[int, int]
) -> dict[str, Mapping[str, Any] | bytes]:
    """File's name -> JSON, tensors or bytes of a StableDiffusionPipeline."""
    if text.config.pad == "mask":
        why = "its padding is masked, and Stable Diffusion's pipeline hears it"
        raise ValueError(f"text_encoder: {why}: the picture would be another; train with text_encoder.config.pad = end")
    if text.tokenizer is None:
        raise ValueError("text_encoder: it has no vocabulary yet: load a trained one")
    class_name, settings = scheduler_to_diffusers(process.config, how, words=True)
    index = {
        "vae": ["diffusers", "AutoencoderKL"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"],
        "safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None], "requires_safety_checker": False,
    }  # fmt: skip
    config, tensors = clip_text_to_transformers(text.config, _plain(text), start=text.tokenizer.start, end=text.tokenizer.end)
    files: dict[str, Mapping[str, Any] | bytes] = {
        "text_encoder/config.json": config, "text_encoder/model.safetensors": tensors, **_tokenizer(text, config["pad_token_id"]),
    }  # fmt: skip
    config, vae = _standardised(decoder.config, _plain(decoder))
    files["vae/config.json"] = {"_class_name": "AutoencoderKL", **diffusers_vae.config_to_diffusers(config, vae)}
    files["vae/diffusion_pytorch_model.safetensors"] = diffusers_vae.tensors_to_diffusers(vae)
    files |= _unet(network, (size[0] // decoder.factor, size[1] // decoder.factor))
    return _pipeline("StableDiffusionPipeline", index, class_name, settings) | files


def _standardised(config: Any, vae: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The same autoencoder, its latents told by one scaling factor: all of their statistics that Stable Diffusion's pipeline hears.

    Others go into the 1 x 1 convolutions around the latents: std z + mean in front of post_quant, (raw - mean) / std behind quant.
    """
    mean, std = vae["latent_mean"], vae["latent_std"]
    if bool((mean == 0).all()) and bool((std == std[0]).all()):
        return config, vae
    z = config.z_channels
    same = {"post_quant": torch.eye(z)[..., None, None], "quant": torch.eye(2 * z)[..., None, None]}
    weight = {name: vae.get(f"{name}.weight", one) for name, one in same.items()}
    bias = {name: vae.get(f"{name}.bias", torch.zeros(len(one))) for name, one in same.items()}
    of_mean, of_logvar = bias["quant"].chunk(2)
    scale = torch.cat([1 / std, torch.ones(z)])
    folded = {
        "post_quant.weight": weight["post_quant"] * std[:, None, None], "quant.weight": weight["quant"] * scale[:, None, None, None],
        "post_quant.bias": bias["post_quant"] + weight["post_quant"][:, :, 0, 0] @ mean,
        "quant.bias": torch.cat([(of_mean - mean) / std, of_logvar - 2 * std.log()]),
        "latent_mean": torch.zeros(z), "latent_std": torch.ones(z),
    }  # fmt: skip
    return replace(config, quant_convs=True, mean=(0.0,), std=(1.0,)), vae | folded


def _pixels(
    text: Any, network: Any, process: Any, decoder: Any, how: Sampling, size: tuple[int, int]
) -> tuple[dict[str, Mapping[str, Any] | bytes], str]:
    if text.gives != ConditionSpec():
        raise ValueError(
            f"text_encoder: it says one of {text.gives.num_labels} classes, and no pipeline of diffusers gives a U-Net classes"
        )
    if (decoder.config.mean, decoder.config.std) != (0.0, 1.0):
        said = f"mean = {decoder.config.mean}, std = {decoder.config.std}"
        raise ValueError(
            f"decoder: pixels standardised by {said}: diffusers' own are in [-1, 1]; train with decoder.config.mean = 0, std = 1"
        )
    if how.sampler not in ("ddpm", "ddim"):
        raise ValueError(f"the process: sampler = {how.sampler}: diffusers draws unconditional pictures by ddpm or ddim; name one of them")
    class_name, settings = scheduler_to_diffusers(process.config, how, words=False)
    name = "DDIMPipeline" if how.sampler == "ddim" else "DDPMPipeline"
    parts = _pipeline(name, {"unet": ["diffusers", "UNet2DModel"]}, class_name, settings)
    return parts | _unet(network, size), name


def _unet(network: Any, sides: tuple[int, int]) -> dict[str, Mapping[str, Any] | bytes]:
    try:
        config = diffusers_unet.config_to_diffusers(network.config, network.latent, network.condition)
        tensors = diffusers_unet.tensors_to_diffusers(_plain(network), network.config)
    except ValueError as error:
        raise ValueError(f"generator: {error}") from None
    config["sample_size"] = sides[0] if sides[0] == sides[1] else list(sides)
    return {"unet/config.json": config, "unet/diffusion_pytorch_model.safetensors": tensors}


def _pipeline(name: str, parts: Mapping[str, Any], scheduler: str, settings: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | bytes]:
    index = {"_class_name": name, "_diffusers_version": _VERSION, "scheduler": ["diffusers", scheduler], **parts}
    said = {"_class_name": scheduler, "_diffusers_version": _VERSION, **settings}
    return {"model_index.json": index, "scheduler/scheduler_config.json": said}


def _tokenizer(text: Any, pad: int) -> dict[str, Mapping[str, Any] | bytes]:
    """tokenizer.json, and the two files that older versions read."""
    whole = json.loads(text.tokenizer.json_bytes)
    vocabulary, merges = whole["model"]["vocab"], whole["model"]["merges"]
    padding = next((token for token, number in vocabulary.items() if number == pad), None)
    if padding is None:
        raise ValueError(f"text_encoder: pad = {pad} is no token of its vocabulary")
    end = next(token for token, number in vocabulary.items() if number == text.tokenizer.end)
    lines = ["#version: 0.2", *(" ".join(pair) if isinstance(pair, list) else pair for pair in merges)]
    named = {"bos_token": _START, "eos_token": end, "unk_token": end, "pad_token": padding}
    return {
        "tokenizer/tokenizer.json": text.tokenizer.json_bytes, "tokenizer/vocab.json": vocabulary,
        "tokenizer/merges.txt": ("\n".join(lines) + "\n").encode("utf-8"), "tokenizer/special_tokens_map.json": named,
        "tokenizer/tokenizer_config.json": {
            **named, "tokenizer_class": "CLIPTokenizer", "model_max_length": text.config.context_length, "do_lower_case": True,
        },
    }  # fmt: skip


def _plain(module: nn.Module) -> dict[str, Tensor]:
    """Its state dict in float32, on the CPU. Raises ValueError for a weight that is not finite."""
    out = {}
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{type(module).__name__}: weight {name!r} is not finite; nothing was written")
        out[name] = tensor.detach().cpu().float() if tensor.is_floating_point() else tensor.detach().cpu()
    return out


def _write(path: Path, data: Mapping[str, Any] | bytes) -> None:
    from safetensors.torch import save_file

    if isinstance(data, bytes):
        path.write_bytes(data)
    elif path.suffix == ".safetensors":
        save_file({name: tensor.contiguous().clone() for name, tensor in data.items()}, path, metadata={"format": "pt"})
    else:
        path.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _call(pipeline: str, folder: Path, how: Sampling) -> str:
    words = pipeline == "StableDiffusionPipeline"
    settings = [f"num_inference_steps={how.steps}"]
    settings += [f"guidance_scale={how.guidance:g}"] if words else []
    settings += [f"eta={how.eta:g}"] if how.eta else []
    first = ['"a red apple"'] if words else []
    return f"diffusers.{pipeline}.from_pretrained({str(folder)!r})({', '.join(first + settings)})"
