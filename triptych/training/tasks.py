"""The task of every generator: pictures and words become latents and conditions, and a process says what is learnt from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.contracts import Batch, Condition, Decoder, Latents, Process, Prompt, Rng, Start, TextEncoder
from triptych.processes import sample

from .kept import Kept

__all__ = ["GeneratorTask"]

_SEQUENCES = ("ids_BL", "tokens_BLD", "mask_BL")


class GeneratorTask:
    """Train panel 2 between its two neighbours.

    neighbours: "text_encoder", "decoder" and "process".  The decoder is frozen; the text encoder too, unless
    `train_text_encoder`: then it learns with the network (GLIDE, LDM).
    dropout: how often a row hears the null condition instead (classifier-free guidance).
    sampling: settings of the previews.
    cache: megabytes that latents of a frozen decoder, and as many that states of a frozen text encoder, may take in the cache folder
    (`kept`). Worth it where examples return and encoding is dear.

    A phase named like a module of `process.prepare()` trains that module; every other phase trains the network.
    """

    def __init__(
        self, panel: nn.Module, *, neighbours: Mapping[str, Any], dropout: float = 0.1, train_text_encoder: bool = False,
        sampling: Mapping[str, Any] | None = None, cache: int = 0, vocabulary_texts: int = 100_000,
    ) -> None:  # fmt: skip
        missing = {"text_encoder", "decoder", "process"} - neighbours.keys()
        if missing:
            raise ValueError(
                f"a generator is trained between a text encoder and a decoder, by a process; it lacks {', '.join(sorted(missing))}"
            )
        self.network = panel
        self.text_encoder: TextEncoder = neighbours["text_encoder"]
        self.decoder: Decoder = neighbours["decoder"]
        self.process: Process = neighbours["process"]
        role = getattr(panel, "role", "")
        if role != self.process.drives:
            drives = f"{type(self.process).__name__} drives a network of role {self.process.drives!r}"
            raise ValueError(f"{drives}, {type(panel).__name__} is {role!r}")
        self.dropout, self.trains_text, self.vocabulary_texts = dropout, train_text_encoder, vocabulary_texts
        self.sampling = dict(sampling or {})
        self.how = self.process.Sampling(**self.sampling)
        self.modules = nn.ModuleDict({"generator": panel})
        if train_text_encoder:
            self.modules["text_encoder"] = self.text_encoder  # type: ignore[assignment]
        self.aux = self.process.prepare(panel)
        self.modules.update(dict(self.aux.items()))
        self._latents = Kept("latents", neighbours["decoder"], cache * 2**20)
        self._texts = Kept("texts", neighbours["text_encoder"], 0 if train_text_encoder else cache * 2**20)

    def prepare_data(self, dataset: Any) -> None:
        """A text encoder made new learns its vocabulary from the texts at hand."""
        if not getattr(self.text_encoder, "has_vocabulary", True):
            self.text_encoder.learn_vocabulary(dataset.texts(self.vocabulary_texts))  # type: ignore[attr-defined]

    def compiles(self) -> list[nn.Module]:
        """A stack is compiled block by block: one block's code serves all of them, and compiling takes seconds, not minutes."""
        return list(getattr(self.network, "blocks", [])) or [self.network]

    def panels(self) -> dict[str, nn.Module]:
        return {place: self.modules[place] for place in ("text_encoder", "generator") if place in self.modules}

    def plan(self, step: int) -> tuple[str, ...]:
        return self.process.plan(step)

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        own = (phase,) if phase in self.aux else tuple(self.panels())
        return {name: p for name, p in self.modules.named_parameters() if name.split(".")[0] in own}

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        latents = self._frozen(batch, rng)
        keep_B = rng.uniform("condition dropout") >= self.dropout
        heard = latents.cond.drop(dict.fromkeys(latents.cond.ports(), keep_B), latents.null)
        return self.process.losses(self.network, replace(latents, cond=heard), phase, step, rng)

    def after_step(self, phase: str, step: int) -> None:
        self.process.after_step(self.network, phase, step)

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Held-out losses, a row each, with every row's condition heard, on (t, noise) that depend on the row's number alone."""
        rng = Rng.of_samples(0, batch.index)
        latents = self._frozen(batch, rng)
        if hasattr(self.process, "validate"):
            return self.process.validate(self.network, latents, rng)  # type: ignore[attr-defined]
        phase = next(p for p in self.process.plan(0) if p not in self.aux)
        losses = self.process.losses(self.network, latents, phase, 0, rng)
        return {name: value.detach().expand(len(batch.index)) for name, value in losses.items() if value.ndim == 0}

    @torch.no_grad()
    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        """The prompts drawn and decoded; row i has seed i."""
        if not prompts:
            return None
        rng = Rng.of_seeds(range(len(prompts)))
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        cond = self.text_encoder.encode(prompts, encode_image=self.decoder.encode, rng=rng).to(device)
        null = self.text_encoder.null(prompts).to(device)
        start = Start(shape=self._drawn(batch))
        return self.decoder.decode(sample(self.process, self.network, cond, null, self.how, start, rng), cond, rng=rng.child("decoder"))

    def _drawn(self, batch: Batch) -> tuple[int, ...]:
        """The shape of a row of latents: of pictures as large as those that are learnt from."""
        images = batch.images_BCHW
        return self.decoder.latent.shape if images is None else tuple(self.decoder.encode(images[:1]).shape[1:])

    # --- what the neighbours say ---------------------------------------------------------------------------------------

    def _frozen(self, batch: Batch, rng: Rng) -> Latents:
        """Latents and conditions, padded to few lengths, so that a compiled network sees few shapes."""
        if batch.images_BCHW is None:
            raise ValueError("a generator learns from pictures with words; this data has texts alone (data.size = 0?)")
        images = batch.images_BCHW
        with torch.no_grad():
            z = self._encoded(batch.keys, images)
        with torch.set_grad_enabled(self.trains_text and torch.is_grad_enabled()):
            cond, null = self._said(batch.prompts, rng), self.text_encoder.null(batch.prompts)
        longest = self.text_encoder.gives.context_length
        cond, null = (_padded(c.to(z.device), longest) for c in (cond, null))
        return Latents(z=z, cond=cond, null=null)

    def _encoded(self, keys: Sequence[str], images: Tensor) -> Tensor:
        if not self._latents.room:
            return _float(self.decoder.encode(images))
        named = [f"{key} {tuple(images.shape[1:])}" for key in keys]
        rows = self._latents.rows(named, lambda i: {"z": _float(self.decoder.encode(images[i : i + 1]))[0]})
        return torch.stack([row["z"] for row in rows]).to(images.device)

    def _said(self, prompts: Sequence[Prompt], rng: Rng) -> Condition:
        if not self._texts.room or not self._by_text(prompts):
            return self.text_encoder.encode(prompts, encode_image=self.decoder.encode, rng=rng)
        rows = self._texts.rows([prompt.text for prompt in prompts], lambda i: self.text_encoder.encode(prompts[i : i + 1]).ports())
        first, *rest = (Condition(**row) for row in rows)
        return first.cat(rest)

    def _by_text(self, prompts: Sequence[Prompt]) -> bool:
        """Is a text the key to all that panel 1 says? Yes where it `reads` nothing else; a panel that does not say may read more."""
        reads = getattr(self.text_encoder, "reads", None)
        return reads <= {"text"} if reads is not None else not any(_says_more(p) for p in prompts)


def _float(z: Tensor) -> Tensor:
    """float32, except tokens, which stay integers."""
    return z.float() if z.is_floating_point() else z


def _says_more(prompt: Prompt) -> bool:
    """More than text: then the text is no key for what panel 1 says."""
    return any(said is not None for said in (prompt.label, prompt.boxes_N5, prompt.image_CHW, prompt.mask_1HW, prompt.size_HW))


def _padded(cond: Condition, longest: int) -> Condition:
    """Sequences padded at the end, masked out, to the next of 16, 32, 64, ... and the context length."""
    ports = {name: port for name, port in cond.ports().items() if name in _SEQUENCES}
    length = next((port.shape[1] for port in ports.values()), 0)
    wanted = 16
    while wanted < length:
        wanted *= 2
    wanted = min(wanted, longest)
    if not ports or length >= wanted:
        return cond
    some = next(iter(ports.values()))
    ports.setdefault("mask_BL", some.new_ones(some.shape[:2], dtype=torch.bool))
    add = wanted - length
    return replace(cond, **{name: F.pad(port, (0, 0, 0, add) if port.ndim == 3 else (0, add)) for name, port in ports.items()})
