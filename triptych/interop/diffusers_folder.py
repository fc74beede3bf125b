"""A folder that diffusers saved, as three panels and a process of ours.

    read(folder) -> Found          Stable Diffusion 1.x and 2.x, LDM's text-to-image, unconditional DDPM and DDIM, DiT
    read_decoder(folder)           an AutoencoderKL alone

Every name is looked up in a table here: the pipeline's class, its parts, their classes. All parts are described, built without memory
and compared with the files' headers before the first tensor is read. Its network is the folder's own; text encoder, tokenizer,
latents' statistics and the scheduler's settings follow what the pipeline of that name does with them:

* Stable Diffusion and LDM fill every prompt up to 77 tokens, and hear the padding.
* StableDiffusionPipeline never clips, and starts its timesteps at 1, whatever its scheduler's file says.
* DiTPipeline draws with its scheduler's variance, not with the one that is learnt, and guides the channels of x alone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych import catalog
from triptych.catalog import nearest
from triptych.contracts import ConditionSpec, LatentSpace
from triptych.interop import diffusers_dit, diffusers_unet, diffusers_vae
from triptych.interop.diffusers_schedulers import NO_PNDM, scheduler_from_diffusers
from triptych.interop.diffusers_text import read_clip, read_ldm_bert
from triptych.interop.weights import Weights, built, read_json

__all__ = ["Found", "is_decoder", "is_diffusers", "read", "read_decoder"]

_LARGEST, _DEEPEST, _SIDE = 2**20, 1000, 2**14
_DEPTHS = ("layers_per_block", "num_hidden_layers", "num_layers", "transformer_layers_per_block", "encoder_layers")
_STABLE, _LDM, _DIT = "StableDiffusionPipeline", "LDMTextToImagePipeline", "DiTPipeline"
_PARTS: dict[str, dict[str, tuple[str, ...]]] = {  # pipeline -> part -> classes that can be read
    _STABLE: {
        "unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",), "text_encoder": ("CLIPTextModel",),
        "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"), "scheduler": (),
    },
    _LDM: {
        "unet": ("UNet2DConditionModel", "UNet2DModel"), "vqvae": ("AutoencoderKL",), "bert": ("LDMBertModel",),
        "tokenizer": ("BertTokenizer", "BertTokenizerFast"), "scheduler": (),
    },
    "DDPMPipeline": {"unet": ("UNet2DModel",), "scheduler": ()},
    "DDIMPipeline": {"unet": ("UNet2DModel",), "scheduler": ()},
    _DIT: {"transformer": ("DiTTransformer2DModel", "Transformer2DModel"), "vae": ("AutoencoderKL",), "scheduler": ()},
}  # fmt: skip
_UNUSED = ("safety_checker", "feature_extractor")  # of Stable Diffusion: neither is asked here, and both may be there
_STEPS = {"DDPMPipeline": 1000}
_GUIDANCE = {_STABLE: 7.5, _DIT: 4.0}
_VAE = {  # what AutoencoderKL takes for granted where an older config.json is silent
    "block_out_channels": [64], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 32, "sample_size": 32,
    "scaling_factor": 0.18215,
}  # fmt: skip
_UNHEARD = {"shift_factor": None, "latents_mean": None, "latents_std": None}  # these pipelines hear the scaling factor alone
_DIT_DEFAULTS = {
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None, "num_layers": 28, "sample_size": 32,
    "patch_size": 2, "num_embeds_ada_norm": 1000,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Found:
    """Panels, ready to use; sampling: the folder's own settings; size: height and width of a picture."""

    text_encoder: Any
    network: Any
    process: Any
    decoder: Any
    sampling: dict[str, Any]
    size: tuple[int, int]
    notes: list[str] = field(default_factory=list)


def is_diffusers(folder: Path) -> bool:
    """Does a folder look like one of theirs: a model_index.json, or a config.json with a `_class_name`?"""
    if (folder / "triptych.json").exists():
        return False
    path = folder / "config.json"
    return (folder / "model_index.json").is_file() or (path.is_file() and "_class_name" in read_json(folder, path))


def read(folder: Path, dtype: torch.dtype = torch.float32) -> Found:
    """The whole pipeline, weights in `dtype`. Raises ValueError that names the file and what is wrong in it."""
    index = folder / "model_index.json"
    if not index.is_file():
        kind = _described(folder, folder)["_class_name"]
        raise ValueError(f"{folder} holds a {kind} alone: it draws nothing without its pipeline; give the folder above it")
    said = read_json(folder, index)
    kind = _pipeline(index, said)
    reader = _Reader(folder, dtype, said)
    if kind in ("DDPMPipeline", "DDIMPipeline"):
        return reader.unconditional(kind)
    return reader.classes() if kind == _DIT else reader.words(kind)


def is_decoder(folder: Path) -> bool:
    """An AutoencoderKL that stands alone?"""
    return not (folder / "model_index.json").is_file() and _described(folder, folder)["_class_name"] == "AutoencoderKL"


def read_decoder(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """An AutoencoderKL that stands alone. Raises ValueError for other networks."""
    return _Reader(folder, dtype, {}).vae(folder, None).filled(dtype)


def _pipeline(index: Path, said: Mapping[str, Any]) -> str:
    """The pipeline's class. Raises ValueError for another, and for parts that it does not have or of other classes."""
    kind = said.get("_class_name")
    if not isinstance(kind, str) or kind not in _PARTS:
        code = " (a pipeline of its own code is never run)" if not isinstance(kind, str) else ""
        raise ValueError(f"{index}: a {kind} cannot be read{code}; {nearest(str(kind), list(_PARTS))}")
    wanted = _PARTS[kind]
    for part, value in said.items():
        pair = isinstance(value, list) and len(value) == 2
        if part.startswith("_") or (part in _UNUSED and kind == _STABLE) or (not pair and part != "auto_map"):
            continue
        if part not in wanted and value != [None, None]:
            raise ValueError(f"{index}: part {part!r}, {value}, is none that a {kind} of ours has; {nearest(part, list(wanted))}")
    for part, classes in wanted.items():
        value = said.get(part)
        if not isinstance(value, list) or len(value) != 2:
            raise ValueError(f"{index} names no {part!r}, which a {kind} has")
        library, name = value
        if library not in ("diffusers", "transformers", "latent_diffusion") or (classes and name not in classes):
            known = " or ".join(classes) if classes else "diffusers' own"
            raise ValueError(f"{index}: {part} is {library}.{name}: only {known} can be read, and no code of a folder is ever run")
    return kind


def _described(root: Path, folder: Path) -> dict[str, Any]:
    """config.json, its numbers within reason. Raises ValueError for code in it, and for numbers that no network has."""
    path = folder / "config.json"
    config = read_json(root, path)
    if "auto_map" in config:
        raise ValueError(f"{path}: auto_map = {config['auto_map']!r} names code, and no code of a folder is ever run")
    for name, value in _leaves(config):
        most = _DEEPEST if name in _DEPTHS else _LARGEST
        if isinstance(value, int | float) and not abs(value) <= most:  # not finite is no number either
            raise ValueError(f"{path}: {name} = {value!r}: at most {most} can be read")
    config.setdefault("_class_name", None)
    return config


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _leaves(one, str(key))
    elif isinstance(value, list):
        if len(value) > _DEEPEST:
            yield name, math.inf
        for one in value[:_DEEPEST]:
            yield from _leaves(one, name)
    else:
        yield name, value


@contextmanager
def _blaming(path: Path, weights: Weights | None = None) -> Iterator[None]:
    """Whatever breaks on a file's values is that file's fault; what is said of "the checkpoint" is that of the weights."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{path} lacks {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        said = " ".join(str(error).split())
        if said.startswith(str(path.parent.parent)):
            raise ValueError(said) from error
        raise ValueError(f"{weights if weights and said.startswith('the checkpoint') else path}: {said}") from error


@dataclass(frozen=True)
class _Part:
    """One network, built without memory, and what will fill it."""

    module: Any
    weights: Weights
    plan: Mapping[str, Tensor]

    def filled(self, dtype: torch.dtype) -> Any:
        self.weights.fill(self.module, self.plan, dtype)
        self.module.card = {"source": f"diffusers, {self.weights}"}
        return self.module


@dataclass(frozen=True)
class _Reader:
    root: Path
    dtype: torch.dtype
    index: Mapping[str, Any]

    # -- the pipelines

    def words(self, kind: str) -> Found:
        stable = kind == _STABLE
        process, how, notes = self.scheduler(kind)
        text = self.text(*(("text_encoder", read_clip) if stable else ("bert", read_ldm_bert)))
        unet, latent, heard = self.unet()
        vae = self.vae(self.root / ("vae" if stable else "vqvae"), latent)
        gives, path = text.module.gives, self.root / "unet" / "config.json"
        if heard.width != gives.width:
            raise ValueError(
                f"{path}: cross_attention_dim = {heard.width}, and the text encoder gives {gives.width}: they do not belong together"
            )
        if heard.concat or heard.num_labels:
            raise ValueError(f"{path}: it hears {'pictures beside x_t' if heard.concat else 'classes'} too, which a {kind} does not give")
        return self._joined(text, unet, vae, latent, gives, process, how, notes, _GUIDANCE.get(kind, 1.0), 50)

    def unconditional(self, kind: str) -> Found:
        process, how, notes = self.scheduler(kind)
        unet, latent, heard = self.unet()
        path = self.root / "unet" / "config.json"
        if latent.shape[0] != 3 or heard.concat or heard.num_labels:
            raise ValueError(f"{path}: only networks that draw pictures of 3 channels, and hear nothing, can be read as a {kind}")
        height, width = latent.shape[1:]
        decoder = catalog.build("decoders", "identity", {"size": min(height, width), "mean": 0.0, "std": 1.0})
        text = catalog.build("text_encoders", "label", size="unconditional")
        return self._joined(text, unet, decoder, latent, text.gives, process, how, notes, 1.0, _STEPS.get(kind, 50))

    def classes(self) -> Found:
        process, how, notes = self.scheduler(_DIT)
        folder = self.root / "transformer"
        path, theirs = folder / "config.json", _DIT_DEFAULTS | _described(self.root, folder)
        with _blaming(path):
            if theirs["_class_name"] == "Transformer2DModel" and theirs.get("norm_type") == "ada_norm_zero":
                theirs["_class_name"] = "DiTTransformer2DModel"  # its name in older folders
            if theirs["_class_name"] != "DiTTransformer2DModel":
                raise ValueError(f"a {theirs['_class_name']} cannot be read as a DiT")
            config, latent, heard = diffusers_dit.config_from_diffusers(theirs)
        labels = self._labels(heard.num_labels)
        text = catalog.build("text_encoders", "label", {"labels": labels, "num_labels": heard.num_labels})

        def rename(promised: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            return diffusers_dit.tensors_from_diffusers(promised, config)

        make = self._network("dit", config, heard)
        part = self._part(folder, rename, lambda: make(latent), unread=lambda name: ".norm1.emb." in name)
        vae = self.vae(self.root / "vae", latent)
        return self._joined(text, part, vae, latent, heard, process, how, notes, _GUIDANCE[_DIT], 50)

    def _joined(
        self, text: Any, network: _Part, decoder: Any, latent: LatentSpace, gives: ConditionSpec, process: Any, how: dict[str, Any],
        notes: list[str], guidance: float, steps: int,
    ) -> Found:  # fmt: skip
        """All parts are checked: now tensors are read."""
        steps = min(steps, process.config.num_timesteps)
        panels = [one.filled(self.dtype) if isinstance(one, _Part) else one.eval() for one in (text, network, decoder)]
        network_, decoder_ = panels[1], panels[2]
        network_.latent = decoder_.latent
        network_.card |= {"notes": notes, "pipeline": self.index["_class_name"], "scheduler": self.index["scheduler"][1]}
        factor = decoder_.factor
        return Found(
            text_encoder=panels[0], network=network_, process=process, decoder=decoder_, notes=notes,
            sampling=how | {"steps": steps, "guidance": guidance}, size=(latent.shape[1] * factor, latent.shape[2] * factor),
        )  # fmt: skip

    # -- the parts

    def scheduler(self, kind: str) -> tuple[Any, dict[str, Any], list[str]]:
        path = self.root / "scheduler" / "scheduler_config.json"
        said = read_json(self.root, path)
        if kind == _STABLE:
            said |= {"steps_offset": 1, "clip_sample": False}  # as that pipeline sets them when it is made
        config, how = scheduler_from_diffusers(said, path, latent=kind not in ("DDPMPipeline", "DDIMPipeline"))
        notes = [NO_PNDM] if said.get("_class_name") == "PNDMScheduler" else []
        for note in notes:
            logging.getLogger("triptych").warning("%s: %s", self.root.name, note)
        return catalog.build("processes", "ddpm", config), how, notes

    def text(self, place: str, reader: Callable[..., tuple[str, Any, dict[str, bytes], Any]]) -> _Part:
        folder = self.root / place
        config = _described(self.root, folder)
        weights = Weights(self.root, folder, "model")
        with _blaming(folder / "config.json", weights):
            family, chosen, assets, plan = reader(config, weights.promised, self.root, self.root / "tokenizer")
        with _blaming(folder / "config.json"):
            module = built(lambda: catalog.build("text_encoders", family, chosen, assets=assets))
        if not module.has_vocabulary:
            raise ValueError(f"{self.root / 'tokenizer'} holds no tokenizer that can be read")
        weights.check(module, plan, unread=lambda name: name.endswith("position_ids") or name.startswith("to_logits."))
        return _Part(module, weights, plan)

    def unet(self) -> tuple[_Part, LatentSpace, ConditionSpec]:
        folder = self.root / "unet"
        path, theirs = folder / "config.json", _described(self.root, folder)
        with _blaming(path):
            config, latent, heard = diffusers_unet.config_from_diffusers(theirs)
            if max(latent.shape[1:]) > _SIDE:
                raise ValueError(f"sample_size = {latent.shape[1:]}: at most {_SIDE} can be read")
        make = self._network("unet", config, heard)
        part = self._part(folder, lambda promised: diffusers_unet.tensors_from_diffusers(promised, config), lambda: make(latent))
        return part, latent, heard

    def vae(self, folder: Path, latent: LatentSpace | None) -> _Part:
        """latent: of the network beside it, whose sides are the pictures' too."""
        path, theirs = folder / "config.json", _described(self.root, folder)
        if theirs["_class_name"] != "AutoencoderKL":
            raise ValueError(f"{path}: a {theirs['_class_name']} cannot be read; of decoders only AutoencoderKL can")
        theirs = _VAE | theirs
        with _blaming(path):
            scale = theirs["scaling_factor"]
            if not (isinstance(scale, int | float) and scale > 0):
                raise ValueError(f"scaling_factor = {scale!r}: must be more than 0")
            if latent is not None:
                factor = 2 ** (len(theirs["block_out_channels"]) - 1)
                theirs = theirs | {"sample_size": min(latent.shape[1:]) * factor} | _UNHEARD
                if latent.shape[0] != theirs["latent_channels"]:
                    both = f"latent_channels = {theirs['latent_channels']}, and the network draws {latent.shape[0]}"
                    raise ValueError(f"{both}: they do not belong together")
            config = diffusers_vae.config_from_diffusers(theirs)

        def rename(promised: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
            names = list(built(lambda: catalog.build("decoders", "autoencoder_kl", config)).state_dict())
            return diffusers_vae.tensors_from_diffusers(promised, config, names)

        return self._part(folder, rename, lambda: catalog.build("decoders", "autoencoder_kl", config))

    def _network(self, family: str, config: Any, heard: ConditionSpec) -> Callable[[LatentSpace], Any]:
        return lambda latent: catalog.build("generators", family, config, latent=latent, condition=heard)

    def _part(
        self, folder: Path, rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]], make: Callable[[], Any],
        unread: Callable[[str], bool] = lambda name: False,
    ) -> _Part:  # fmt: skip
        path = folder / "config.json"
        weights = Weights(self.root, folder, "diffusion_pytorch_model")
        try:
            plan = rename(weights.promised)
        except KeyError as error:
            raise ValueError(f"{weights} lacks tensor {error}, which the configuration asks for") from None
        except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"{weights}: {' '.join(str(error).split())}") from None
        with _blaming(path):
            module = built(make)
        weights.check(module, plan, unread)
        return _Part(module, weights, plan)

    def _labels(self, count: int) -> tuple[str, ...]:
        """The classes' names out of model_index.json, where all of them have one: "great white shark, white shark" are two of one."""
        said = self.index.get("id2label")
        if (
            not isinstance(said, dict)
            or sorted(said) != sorted(map(str, range(count)))
            or not all(isinstance(v, str) for v in said.values())
        ):
            return ()
        labels = tuple("|".join(part.strip() for part in said[str(i)].split(",") if part.strip()) for i in range(count))
        return labels if all(labels) else ()
