"""Where the panels meet, and nowhere else: words -> text encoder -> generator -> decoder -> pictures.

    model = load("emoji")
    images = model.generate(["a red apple", "火箭"], seeds=[0, 1], steps=20, guidance=3.0)

Which panels they are does not matter here. What matters is checked when they are joined: that the generator was trained for
this text encoder and for this latent space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from . import catalog, checkpoint, guides
from .contracts import Condition, Decoder, Process, Prompt, Rng, Start, State, TextEncoder
from .eyes import Eyes, is_eyes, load_eyes
from .layers import conv, linear
from .processes import sample

__all__ = ["Generator", "TextToImage", "load", "load_generator", "to_pil"]

Preview = Callable[[], list[Image.Image]]


@dataclasses.dataclass(frozen=True)
class Generator:
    """Panel 2: a network and the process that trained it and draws with it; a guide is a Critic kept beside them.

    Raises ValueError if the process drives a network of another role.
    """

    network: nn.Module
    process: Process
    guide: nn.Module | None = None

    def __post_init__(self) -> None:
        role = getattr(self.network, "role", "")
        if role != self.process.drives:
            drives = f"{type(self.process).__name__} drives a network of role {self.process.drives!r}"
            raise ValueError(f"{drives}, {type(self.network).__name__} is {role!r}")


class TextToImage:
    """Three panels, joined.

    Raises ValueError if the generator was trained with another text encoder or for another latent space; the message names
    both cards. Panels without cards (built by hand, not loaded) are joined unchecked except for what their shapes say.
    """

    def __init__(
        self, text_encoder: TextEncoder, generator: Generator, decoder: Decoder, *, name: str = "", sampling: dict[str, Any] | None = None,
        size: tuple[int, int] | None = None, guide: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.text_encoder, self.generator, self.decoder = text_encoder, generator, decoder
        self.name, self.sampling = name, dict(sampling or {})
        self.guide = dict(guide or {})  # what pulls when nothing else is said: {"eyes": a model's name, or none: its own critic; "scale"}
        self.size = size or (decoder.image_size, decoder.image_size)  # (H, W) of pictures for which no other is asked
        self._check_joints()
        self._autocast = False
        self.loras: list[dict[str, Any]] = []  # what `add_lora` has folded in, in order: file, its hash, weight
        self.own_eyes: Eyes | None = None  # those that `guide` names, loaded when they are first needed

    # -- joining ---------------------------------------------------------------------------------------------------------

    @property
    def fingerprints(self) -> dict[str, str]:
        """Place -> fingerprint of the panel there ("" for one that was never saved)."""
        panels = {"text_encoder": self.text_encoder, "generator": self.generator.network, "decoder": self.decoder}
        return {place: getattr(panel, "card", {}).get("fingerprint", "") for place, panel in panels.items()}

    def _check_joints(self) -> None:
        card = getattr(self.generator.network, "card", {})
        trained_with = card.get("neighbours", {})
        heard, given = trained_with.get("text_encoder"), self.fingerprints["text_encoder"]
        if heard and given and heard != given:
            raise ValueError(
                f"the generator {card.get('fingerprint')} was trained with text encoder {heard}, not with {given}; "
                "join it to its own, or train it on (`triptych train ... --init`) with the new one"
            )
        space, here = trained_with.get("latent"), self.decoder.latent.fingerprint
        if space and here and space != here:
            raise ValueError(
                f"the generator {card.get('fingerprint')} draws latents of the space {space}, the decoder "
                f"{self.fingerprints['decoder'] or type(self.decoder).__name__} understands {here}; "
                "a decoder over the same encoder swaps freely, another one needs a generator trained for it"
            )

    def to(self, device: str | torch.device, precision: str = "float32") -> TextToImage:
        """Move all panels; "bf16" computes in bfloat16 (autocast), weights stay float32. Returns self."""
        for panel in (self.text_encoder, self.generator.network, self.generator.guide, self.decoder):
            if isinstance(panel, nn.Module):
                panel.to(device)
        if precision not in ("float32", "bf16"):
            raise ValueError(f"precision {precision!r}: there are float32 and bf16")
        self._autocast = precision == "bf16"
        return self

    def compile(self, **how: Any) -> TextToImage:
        """Compile the network of panel 2 as a whole, with `torch.compile`'s own options. Returns self.

        The first pictures of each size and count wait minutes for the compiler (on a CPU a C++ one must be there); those after it differ
        from others in their last bits. What it is worth depends: of the embedded `sd`, nothing on one picture and 17 % on eight.
        """
        self.generator.network.compile(**how)
        return self

    @property
    def device(self) -> torch.device:
        panels = (self.generator.network, self.text_encoder, self.decoder)  # a prior or an identity has no parameters
        return next((p.device for panel in panels if isinstance(panel, nn.Module) for p in panel.parameters()), torch.device("cpu"))

    # -- drawing ---------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[str | int | Prompt],
        *,
        seeds: Sequence[int] | None = None,
        noise: Tensor | None = None,
        negative: Sequence[str] | str | None = None,
        size: tuple[int, int] | None = None,
        decoder: Mapping[str, Any] | None = None,
        exact: bool = False,
        guide: Eyes | None = None,
        guide_scale: float | None = None,
        like: guides.Like | None = None,
        on_step: Callable[[int, int, Preview], None] | None = None,
        batch_size: int = 16,
        **sampling: Any,
    ) -> list[Image.Image]:
        """Pictures from words.

        seeds: one a picture (default 0, 1, 2...): a picture depends on its own seed, never on the batch around it, to at
        most 2/255 on 99.9 % of pixels; with `exact`, where every picture is drawn alone, to the last bit.
        noise: unit-normal start [B, *latent shape] instead of the seeds'; it fixes the size.
        negative: what the unconditional branch hears.  size: (H, W) of the pictures, instead of the model's own.
        decoder: settings of the decoder's own Sampling, where it has any (a cascade's or unCLIP's steps).
        guide: eyes that hear words, and pull at every step towards what they take for the words, with the force guide_scale, in units
        of their own logit; 0 = off. Without eyes the model's own guide pulls, where it has one (a classifier of noised pictures).
        like: a picture that these are to be like, in pixels, features or style (`triptych.guides.Like`).
        sampling: steps, guidance, sampler...: the fields of `model.generator.process.Sampling`.
        on_step(done, total, preview): after each evaluation; `preview()` decodes what stands there now.
        Raises ValueError for unknown settings, eyes that cannot guide, or counts of prompts, seeds, noise, negatives that do not meet.
        """
        said = [Prompt.of(p) for p in ([prompts] if isinstance(prompts, (str, int, Prompt)) else prompts)]
        how = self.settings(**sampling)
        shape, decode_how = self._shape(size, noise), self._decoder_settings(size, decoder or {})
        pulls = guides.pulls(self, guide, guide_scale, like)
        seeds = list(range(len(said))) if seeds is None else list(seeds)
        against = _as_many(negative, len(said))
        if against and "negative" not in self.generator.process.abilities:
            raise ValueError(f"{type(self.generator.process).__name__} hears no negative prompt: leave it out, or take a model that does")
        for what, many in (("seeds", len(seeds)), ("rows of noise", len(said) if noise is None else len(noise))):
            if many != len(said):
                raise ValueError(f"{len(said)} prompts, but {many} {what}: give one a picture")
        images: list[Image.Image] = []
        chunk = 1 if exact else batch_size
        for first in range(0, len(said), chunk):
            rows = slice(first, first + chunk)
            rng = Rng.of_seeds(seeds[rows])
            started = None if noise is None else noise[rows]
            z, cond = self._latents(said[rows], against and against[rows], how, shape, started, rng, on_step, decode_how, pulls)
            images += self._decode(z, said[rows], cond, decode_how, rng)
        return images

    def latents(
        self, prompts: Sequence[str | int | Prompt], *, seeds: Sequence[int] | None = None, noise: Tensor | None = None,
        negative: Sequence[str] | str | None = None, size: tuple[int, int] | None = None, **sampling: Any,
    ) -> Tensor:  # fmt: skip
        """What panel 2 draws, before panel 3: standardised latents [B, ...]. Arguments and errors as of `generate`."""
        said = [Prompt.of(p) for p in prompts]
        rng = Rng.of_seeds(list(range(len(said))) if seeds is None else list(seeds))
        against, shape, pulls = _as_many(negative, len(said)), self._shape(size, noise), guides.pulls(self, None, None, None)
        return self._latents(said, against, self.settings(**sampling), shape, noise, rng, None, None, pulls)[0]

    def settings(self, **sampling: Any) -> Any:
        """The process's Sampling: this model's defaults, then what is asked. Raises ValueError for a setting it does not have."""
        _known_settings(self.generator.process, sampling)
        asked = {k: v for k, v in sampling.items() if v is not None}
        return self.generator.process.Sampling(**{**self.sampling, **asked})

    def _shape(self, size: tuple[int, int] | None, noise: Tensor | None) -> tuple[int, ...]:
        """Of the latents to be drawn, of one row: given noise's own; else what becomes pictures of this size, height and width.

        A decoder with a `factor`, latents' side to picture's, takes any multiple of it; another one has one size of latents.
        Raises ValueError for a size that cannot be.
        """
        latent, factor = self.decoder.latent, getattr(self.decoder, "factor", 0)
        if noise is not None and not hasattr(self.generator.network, "noise_shape"):
            return tuple(noise.shape[1:])
        if not factor:
            return latent.shape
        height, width = size or self.size
        if height % factor or width % factor or min(height, width) < factor:
            raise ValueError(f"{type(self.decoder).__name__} draws multiples of {factor}, not {width}x{height}; choose such a size")
        return (latent.shape[0], height // factor, width // factor)

    def _decoder_settings(self, size: tuple[int, int] | None, asked: Mapping[str, Any]) -> Any:
        panel, fields = self.decoder, {f.name for f in dataclasses.fields(self.decoder.Sampling)}
        _known_settings(panel, asked)
        if size is None or hasattr(panel, "factor"):
            return panel.Sampling(**asked)
        if size[0] != size[1] or "size" not in fields:
            raise ValueError(f"{type(panel).__name__} draws {panel.image_size}x{panel.image_size}, not {size[1]}x{size[0]}")
        return panel.Sampling(**{**asked, "size": size[0]})

    def _latents(
        self, prompts: Sequence[Prompt], negative: Sequence[str] | None, how: Any, shape: tuple[int, ...], noise: Tensor | None, rng: Rng,
        on_step: Callable[[int, int, Preview], None] | None, decode_how: Any, pulls: list[guides.Pull],
    ) -> tuple[Tensor, Condition]:  # fmt: skip
        network, process = self.generator.network, self.generator.process
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            cond = self.text_encoder.encode(prompts, encode_image=self.decoder.encode, rng=rng)
            null = self.text_encoder.encode([Prompt.of(n) for n in negative]) if negative else self.text_encoder.null(prompts)
            start = Start(shape=shape, noise=None if noise is None else noise.float())
            network = guides.guided_by(pulls, self, network, prompts, cond, shape, decode_how, rng)

            def report(state: State, _: Process) -> None:
                total = int(state.total_B.max())
                if on_step is not None:
                    on_step(min(int(state.index_B.max()), total), total, lambda: self._preview(state, prompts, cond, decode_how, rng))

            z = sample(process, network, cond.to(self.device), null.to(self.device), how, start, rng, on_step=report)
        return z, cond

    def _preview(self, state: State, prompts: Sequence[Prompt], cond: Condition, how: Any, rng: Rng) -> list[Image.Image]:
        guess = self.generator.process.preview(state)
        return self._decode(state.x if guess is None else guess, prompts, cond, how, rng)

    def _decode(self, z: Tensor, prompts: Sequence[Prompt], cond: Condition, how: Any, rng: Rng) -> list[Image.Image]:
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            images = self.decoder.decode(z, cond, how, rng.child("decoder"))  # panel 2 draws under the same stream names
        return to_pil(self._kept(images, prompts))

    def _kept(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        """Where panel 1 reads masks, what a prompt's mask keeps is as it was given, not as the decoder makes it again."""
        if "mask" not in getattr(self.text_encoder, "reads", ()):
            return images_BCHW
        out, size = images_BCHW.float().clone(), tuple(images_BCHW.shape[2:])
        for i, prompt in enumerate(prompts):
            if prompt.image_CHW is not None and prompt.mask_1HW is not None:
                known, mask = (one[None].to(out) for one in (prompt.image_CHW, prompt.mask_1HW))
                known, mask = F.interpolate(known, size, mode="bilinear", antialias=True), F.interpolate(mask, size)
                out[i] = torch.lerp(known, out[i : i + 1], mask)[0]
        return out

    def add_lora(self, path: str | Path, weight: float = 1.0) -> int:
        """Fold a LoRA, a .safetensors file or the folder of one, into the weights; drawing costs what it cost before. Several add up, in
        order; a negative weight takes away. Returns how many products it changed. Panels are changed in place, for good.

        Raises ValueError in one line for a file that is none, or that was made for another model; nothing is changed then.
        """
        from .interop.lora import add

        told, count = add(path, self.text_encoder, self.generator.network, weight)
        self.loras.append(told)
        return count

    # -- keeping ---------------------------------------------------------------------------------------------------------

    def save(self, folder: str | Path, *, name: str = "") -> None:
        """Write the whole model as a folder; weights as bf16 safetensors, with cards that name the neighbours."""
        folder, process = Path(folder), self.generator.process
        cards: dict[str, dict[str, Any]] = {}
        panels = {"text_encoder": self.text_encoder, "decoder": self.decoder, "generator": self.generator.network}
        if self.generator.guide is not None:
            panels["guide"] = self.generator.guide  # type: ignore[assignment]
        for place, panel in panels.items():  # the generator behind those that its card names
            card = dict(getattr(panel, "card", {}))
            extra: dict[str, Any] = {}
            if place == "generator":
                card["neighbours"] = {"text_encoder": cards["text_encoder"]["fingerprint"], "latent": self.decoder.latent.fingerprint}
                extra["process"] = {"family": catalog.name_of("processes", process), "config": dataclasses.asdict(process.config)}
            card.pop("fingerprint", None)
            kind = checkpoint.PLACES[place]
            family = catalog.name_of(kind, panel)
            written = checkpoint.save_panel(folder / place, panel, kind=kind, name=family, config=panel.config, card=card, **extra)
            cards[place] = {"fingerprint": written}
        side = (self.decoder.image_size, self.decoder.image_size)
        more: dict[str, Any] = {} if self.size == side else {"size": list(self.size)}
        more |= {"guide": self.guide} if self.guide else {}
        checkpoint.export_model(folder, name=name or self.name, sampling=self.sampling, panels={}, **more)


def load(model: str | Path, *, device: str = "cpu", precision: str = "float32") -> Any:
    """A model by an embedded name ("emoji") or a folder, ours or one that diffusers or transformers saved.

    A TextToImage; Eyes where there is a vision system and no generator; an AutoencoderKL that stands alone as the decoder that it is.
    Raises ValueError with the nearest name, or what is wrong in the folder.
    """
    theirs = _diffusers(model)
    if theirs is not None and theirs.is_decoder(checkpoint.locate(model)):
        return theirs.read_decoder(checkpoint.locate(model), _dtype(precision)).to(device)
    eyes = theirs is None and is_eyes(model)
    return load_eyes(model, device=device) if eyes else load_generator(model, device=device, precision=precision)


def load_generator(model: str | Path, *, device: str = "cpu", precision: str = "float32") -> TextToImage:
    """Three panels, joined. Raises ValueError as `load` does, and for eyes. A foreign folder's weights are in `precision` themselves."""
    joined = (_own(model) if (theirs := _diffusers(model)) is None else _foreign(model, theirs, precision)).to(device, precision)
    for panel in (joined.generator.network, joined.decoder):
        if isinstance(panel, nn.Module):
            linear.pack(panel)
            conv.pack(panel)
    return joined


def _foreign(model: str | Path, theirs: Any, precision: str) -> TextToImage:
    folder = checkpoint.locate(model)
    found = theirs.read(folder, _dtype(precision))
    panels = found.text_encoder, Generator(found.network, found.process), found.decoder
    return TextToImage(*panels, name=folder.name, sampling=found.sampling, size=found.size)


def _own(model: str | Path) -> TextToImage:
    if is_eyes(model):
        raise ValueError(f"{model} are eyes: they look at pictures and draw none; `triptych list` names the models that draw")
    if not checkpoint.has_panel(model, "generator"):
        raise ValueError(f"{model}: the generator is missing, so it draws nothing; `triptych list` names the models that draw")
    text_encoder = checkpoint.load_panel(model, "text_encoder")
    decoder = checkpoint.load_panel(model, "decoder")
    network = checkpoint.load_panel(model, "generator", latent=decoder.latent, condition=text_encoder.gives)
    described = checkpoint.load_model_file(model)
    critic = checkpoint.load_panel(model, "guide") if checkpoint.has_panel(model, "guide") else None
    generator = Generator(network, checkpoint.load_process(model), critic)
    name = described.get("name") or checkpoint.locate(model).name
    return TextToImage(
        text_encoder, generator, decoder, name=name, sampling=described.get("sampling"), size=_size_of(described),
        guide=_guide_of(described),
    )  # fmt: skip


def _diffusers(model: str | Path) -> Any:
    """`interop.diffusers_folder`, if the model is a folder that diffusers saved; else None."""
    folder = checkpoint.locate(model)
    if not any((folder / name).is_file() for name in ("model_index.json", "config.json")):
        return None
    from .interop import diffusers_folder

    return diffusers_folder if diffusers_folder.is_diffusers(folder) else None


def _dtype(precision: str) -> torch.dtype:
    if precision not in ("float32", "bf16"):
        raise ValueError(f"precision {precision!r}: there are float32 and bf16")
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _size_of(described: Mapping[str, Any]) -> tuple[int, int] | None:
    """A model's own size, where its file says one. Raises ValueError for something else than two positive whole numbers."""
    size = described.get("size")
    if size is None:
        return None
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and 0 < n <= 2**14 for n in size)):
        raise ValueError(f"triptych.json: size = {size!r} is no height and width")
    return (size[0], size[1])


def _guide_of(described: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's file says of its guide. Raises ValueError for something else than a scale and an embedded model's name."""
    guide = described.get("guide", {})
    if not isinstance(guide, dict) or not isinstance(guide.get("scale", 0.0), int | float):
        raise ValueError(f"triptych.json: guide = {guide!r} says no scale")
    if "eyes" in guide and guide["eyes"] not in checkpoint.embedded():
        there = catalog.nearest(str(guide["eyes"]), checkpoint.embedded())
        raise ValueError(f"triptych.json: guide.eyes = {guide['eyes']!r}: only embedded eyes can be named; {there}")
    return guide


def to_pil(images_BCHW: Tensor) -> list[Image.Image]:
    """[-1, 1] to 8-bit pictures, rounded to nearest."""
    array = ((images_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(np.ascontiguousarray(row if row.shape[-1] == 3 else row[..., 0])) for row in array]


def _known_settings(part: Any, asked: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that the part's Sampling does not have."""
    fields = sorted(f.name for f in dataclasses.fields(part.Sampling))
    for name in asked:
        if name not in fields:
            raise ValueError(f"{type(part).__name__} has no setting {name!r}; {catalog.nearest(name, fields)}")


def _as_many(negative: Sequence[str] | str | None, many: int) -> list[str] | None:
    if negative is None:
        return None
    given = [negative] * many if isinstance(negative, str) else list(negative)
    if len(given) != many:
        raise ValueError(f"{many} prompts, but {len(given)} negative prompts: give one, or one a picture")
    return given
