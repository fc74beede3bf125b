"""The joints: everything that panels, processes, tasks and judges say to each other.

    words -> TEXT ENCODER -> Condition -> GENERATOR -> latents -> DECODER -> image

A file of types. Nothing here computes anything but the bookkeeping of batches, so this is the first file to read: whoever
fulfils one of these protocols takes part, whatever it is made of inside.

Shape legend (the whole project uses it, as a suffix of public tensors):
    B batch, C channels, H W grid, L tokens, D width, N heads or boxes, K free, V vocabulary.
Images are float32 BCHW in [-1, 1].  Time: t = 0 data, t = 1 noise.  Guidance 1.0 = off.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

__all__ = [
    "Batch", "Codebook", "Condition", "ConditionSpec", "Critic", "Decoder", "Denoiser", "Judge", "Latents", "LatentSpace",
    "OneShot", "Process", "Prompt", "Rng", "Start", "State", "Task", "TextEncoder", "TokenModel",
]  # fmt: skip


# --- what is said -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """All that is said about ONE picture, by a person or by a row of data.

    text: words, English or Chinese.                 label: a class number.
    boxes_N5: float, (class, centre x, centre y, width, height), the last four in 0..1.
    image_CHW: float in [-1, 1], a picture that conditions (low resolution, map, start).
    mask_1HW: float, 1 = to be drawn, 0 = to be kept.  size_HW: the wanted size in pixels.
    truth: the scene graph behind a procedural picture. For judges only: no panel may look.
    """

    text: str = ""
    label: int | None = None
    boxes_N5: Tensor | None = None
    image_CHW: Tensor | None = None
    mask_1HW: Tensor | None = None
    size_HW: tuple[int, int] | None = None
    truth: Any = None

    @classmethod
    def of(cls, said: str | int | Prompt) -> Prompt:
        """`"a cat"` means `Prompt(text="a cat")`, `3` means `Prompt(label=3)`."""
        if isinstance(said, Prompt):
            return said
        return cls(text=said) if isinstance(said, str) else cls(label=int(said))


@dataclass(frozen=True, kw_only=True)
class ConditionSpec:
    """What a text encoder gives, so that a network can be built to listen. 0 = this port stays silent."""

    vocab: int = 0  # ids_BL take values in [0, vocab)
    width: int = 0  # D of tokens_BLD
    context_length: int = 0  # the largest L of ids_BL and tokens_BLD
    pooled: int = 0  # D of pooled_BD
    num_labels: int = 0  # label_B takes values in [0, num_labels]; the last one is "no class"
    vector: int = 0  # K of vector_BK
    concat: int = 0  # channels of concat_BCHW
    hint: int = 0  # channels of hint_BCHW


@dataclass(frozen=True, kw_only=True, eq=False)
class Condition:
    """What panel 1 tells panel 2. Every port is batch first; None = nobody speaks there.

    prepared_BLX holds what ONE network computed from the other ports for a whole request (its text keys and values, say);
    it is made by that network's `prepare` and read by nobody else.
    """

    ids_BL: Tensor | None = None  # int64
    tokens_BLD: Tensor | None = None
    mask_BL: Tensor | None = None  # bool, True = a real token
    pooled_BD: Tensor | None = None
    label_B: Tensor | None = None  # int64
    vector_BK: Tensor | None = None
    concat_BCHW: Tensor | None = None
    hint_BCHW: Tensor | None = None
    prepared_BLX: Tensor | None = None

    _SEQUENCES = ("ids_BL", "tokens_BLD", "mask_BL", "prepared_BLX")

    def ports(self) -> dict[str, Tensor]:
        """The ports that speak, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    def _map(self, function: Callable[[Tensor], Tensor]) -> Condition:
        return replace(self, **{name: function(port) for name, port in self.ports().items()})

    def rows(self, index: Any) -> Condition:
        """The condition of some rows; `index` is anything that indexes a tensor's first dimension."""
        return self._map(lambda port: port[index])

    def to(self, *args: Any, **kwargs: Any) -> Condition:
        """`Tensor.to` for every port; a dtype reaches the floating ports only."""
        where, how = [a for a in args if not isinstance(a, torch.dtype)], {k: v for k, v in kwargs.items() if k != "dtype"}
        return self._map(lambda p: p.to(*args, **kwargs) if p.is_floating_point() else p.to(*where, **how))

    def cat(self, others: Sequence[Condition]) -> Condition:
        """Rows below rows. Sequences of unequal length are padded at the end and masked out.

        Raises ValueError if one condition speaks on a port on which another is silent.
        """
        parts = _aligned([self, *others])
        for part in parts[1:]:
            if part.ports().keys() != parts[0].ports().keys():
                raise ValueError(f"conditions with ports {sorted(parts[0].ports())} and {sorted(part.ports())} cannot be one batch")
        return replace(self, **{name: torch.cat([getattr(part, name) for part in parts]) for name in parts[0].ports()})

    def drop(self, keep: Mapping[str, Tensor], null: Condition) -> Condition:
        """Dropout of a condition, port by port: where `keep[port]` (bool, B) is False the row of `null` is heard instead."""
        mine, void = _aligned([self, null])
        swapped = {}
        for name, keep_B in keep.items():
            a, b = getattr(mine, name), getattr(void, name)
            if a is not None:
                swapped[name] = torch.where(keep_B.view(-1, *[1] * (a.ndim - 1)).to(a.device), a, b.to(a.dtype))
        return replace(mine, **swapped)


def _aligned(parts: Sequence[Condition]) -> list[Condition]:
    """Pad the sequence ports of several conditions to one length; a mask appears wherever padding does."""
    lengths = [next((getattr(p, n).shape[1] for n in Condition._SEQUENCES if getattr(p, n) is not None), 0) for p in parts]
    longest = max(lengths)
    masked = any(part.mask_BL is not None for part in parts)
    if all(length in (0, longest) for length in lengths) and all((part.mask_BL is not None) == masked for part in parts):
        return list(parts)
    out = []
    for part, length in zip(parts, lengths, strict=True):
        padded = {}
        for name in Condition._SEQUENCES:
            port = getattr(part, name)
            if name == "mask_BL" and (masked or length < longest) and port is None and length:
                any_port = next(getattr(part, n) for n in Condition._SEQUENCES if getattr(part, n) is not None)
                port = any_port.new_ones(any_port.shape[:2], dtype=torch.bool)
            if port is not None:
                tail = port.new_zeros(port.shape[0], longest - length, *port.shape[2:])
                padded[name] = torch.cat([port, tail], dim=1)
        out.append(replace(part, **padded))
    return out


@runtime_checkable
class TextEncoder(Protocol):
    """Panel 1, be it made of several (SD3 has three). `reads`: a frozenset of the Prompt's fields that it hears, where not "text" alone."""

    gives: ConditionSpec

    def encode(
        self, prompts: Sequence[Prompt], *, encode_image: Callable[[Tensor], Tensor] | None = None, rng: Rng | None = None
    ) -> Condition:
        """What the prompts say. `encode_image` is the decoder's, for ports that hold latents."""
        ...

    def null(self, prompts: Sequence[Prompt]) -> Condition:
        """What the unconditional branch hears for these prompts: "", no class, zeros, a learned token: only panel 1 knows."""
        ...


# --- what is drawn ------------------------------------------------------------------------------------------------------


class Codebook(Protocol):
    """A quantizer's inner side: int64 [B, ...] to float [B, width, ...]. A multi-scale one also accumulates (VAR, Infinity)."""

    width: int

    def lookup(self, tokens: Tensor) -> Tensor: ...

    def accumulate(self, sum_BCHW: Tensor, tokens: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Add scale k's tokens [B, l] to the sum (at first zeros, of the last scale's side); returns it and the next scale's input."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentSpace:
    """What panel 2 must produce and panel 3 understands.

    kind: "image" (float, C H W), "grid" (int64, H W), "scales" (int64, L, coarse to fine), "vector" (float, K).
    mean, std: of raw latents, one number a channel; `encode` standardises with them and `decode` undoes it.
    fingerprint: of what ENCODES. Decoders that share an encoder share the space, and swap freely.
    """

    kind: Literal["image", "grid", "scales", "vector"]
    shape: tuple[int, ...]
    scales: tuple[int, ...] = ()
    vocab: int = 0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    codebook: Codebook | None = None
    fingerprint: str = ""

    def _stats(self, like: Tensor) -> tuple[Tensor, Tensor]:
        tail = [1] * (like.ndim - 2)
        return like.new_tensor(self.mean).view(-1, *tail), like.new_tensor(self.std).view(-1, *tail)

    def standardise(self, raw: Tensor) -> Tensor:
        mean, std = self._stats(raw)
        return (raw - mean) / std

    def restore(self, z: Tensor) -> Tensor:
        mean, std = self._stats(z)
        return z * std + mean


@runtime_checkable
class Decoder(Protocol):
    """Panel 3. `Sampling`: a frozen dataclass of its settings (cascades have steps too). `factor`: pixels a latent, if sizes are free."""

    latent: LatentSpace
    Sampling: type
    image_size: int  # side of the decoded picture
    config: Any

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Image in [-1, 1] to standardised latents. Deterministic. Pictures larger than needed are averaged down."""
        ...

    def decode(
        self, z: Tensor, cond: Condition | None = None, how: Any = None, rng: Rng | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Latents to an image in [-1, 1]. `on_step(done, total)` reports progress where there is any."""
        ...


# --- randomness ---------------------------------------------------------------------------------------------------------


class Rng:
    """Randomness as an argument: one independent key a row, so that a row's draws never depend on its batch.

    Every draw is a pure function of (key, stream, step), made on the CPU in float32: the same seed gives the same picture
    on any device and in any company. In sampling a row's key is its seed; in training it is (seed, global sample index).
    """

    def __init__(self, keys_B: Tensor) -> None:
        self.keys_B = keys_B

    @classmethod
    def of_seeds(cls, seeds: Sequence[int]) -> Rng:
        return cls(torch.tensor([_hash63("seed", int(s)) for s in seeds], dtype=torch.int64))

    @classmethod
    def of_samples(cls, seed: int, index: Sequence[int]) -> Rng:
        return cls(torch.tensor([_hash63("sample", seed, int(i)) for i in index], dtype=torch.int64))

    def __len__(self) -> int:
        return len(self.keys_B)

    def rows(self, index: Any) -> Rng:
        return Rng(self.keys_B[index])

    def child(self, name: str | int) -> Rng:
        """Keys of its own for a part that draws under the same streams: a decoder that samples, a second turn of one phase."""
        return Rng(torch.tensor([_hash63(key, "child", name) for key in self.keys_B.tolist()], dtype=torch.int64))

    def _each(self, stream: str, steps: int | Sequence[int], draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        keys = self.keys_B.tolist()
        every = [steps] * len(keys) if isinstance(steps, int) else list(steps)
        g = torch.Generator()
        return torch.stack([draw(g.manual_seed(_hash63(key, stream, int(step)))) for key, step in zip(keys, every, strict=True)])

    def normal(self, stream: str, shape: Sequence[int], step: int | Sequence[int] = 0) -> Tensor:
        """Unit-normal float32 [B, *shape]; `step` may be one number or one a row."""
        return self._each(stream, step, lambda g: torch.randn(tuple(shape), generator=g))

    def uniform(self, stream: str, shape: Sequence[int] = (), step: int | Sequence[int] = 0) -> Tensor:
        """Uniform float32 in [0, 1), [B, *shape]."""
        return self._each(stream, step, lambda g: torch.rand(tuple(shape), generator=g))


def _hash63(*parts: int | str) -> int:
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


# --- how panel 2 learns and draws ---------------------------------------------------------------------------------------


@runtime_checkable
class Denoiser(Protocol):
    """role = "denoiser". `clock_B` is `process.clock(t)`, in the network's own unit; integers stay integers.

    `prepare(cond)`, where a network has one, does once what is the same at every step of a request, and returns the
    condition with `prepared_BLX` filled; `forward` takes either form and gives the same.
    """

    role: str

    def __call__(self, x_t: Tensor, clock_B: Tensor, cond: Condition) -> Tensor: ...


@runtime_checkable
class TokenModel(Protocol):
    """role = "tokens". Logits at every position, a text prefix included where the process put one.

    `inputs`: ids, or (VAR) what the codebook accumulated. `cache`: a dict of tensors, batch first, as State.extra keeps them; the
    call replaces its entries, and changes no tensor in place.
    """

    role: str
    latent: LatentSpace
    condition: ConditionSpec

    def __call__(self, inputs: Tensor, cond: Condition, cache: Any = None) -> Tensor: ...


@runtime_checkable
class OneShot(Protocol):
    """role = "oneshot": noise [B, *noise_shape], which need not have the latents' shape, to latents in one pass."""

    role: str
    noise_shape: tuple[int, ...]
    latent: LatentSpace

    def __call__(self, noise: Tensor, cond: Condition) -> Tensor: ...


@runtime_checkable
class Critic(Protocol):
    """role = "critic": a noisy classifier, CLIP, a discriminator. Guidance, best of N and score distillation descend it."""

    role: str

    def __call__(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """A training batch as panel 2 sees it; `cond` after its dropout. `noise` is given where it is part of the data (reflow)."""

    z: Tensor
    cond: Condition
    null: Condition
    noise: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Start:
    """Where sampling starts. Words to picture: nothing but the shape. img2img: z0 and strength < 1. Inpainting: z0 and mask.

    shape: of one row, batch excluded.  noise: unit normal [B, *shape], instead of drawn noise.
    mask: [B, 1, H, W] in latent resolution, 1 = draw, 0 = keep z0.
    """

    shape: tuple[int, ...]
    noise: Tensor | None = None
    z0: Tensor | None = None
    strength: float = 1.0
    mask: Tensor | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """A batch of half-drawn rows. Rows stand at steps of their own, may join (`cat`) and leave (`rows`) a running batch.

    x: what is being drawn.  index_B: evaluations made.  total_B: evaluations to make.
    extra: what the process keeps (coefficients, history, caches): tensors, batch first, under the same names in all rows that
    meet; `_K` dimensions (dim 1) of unequal length are padded with zeros when rows join.
    index_B, total_B and an index of rows lie on the CPU: what is done next is decided without waiting for a device.
    """

    x: Tensor
    index_B: Tensor
    total_B: Tensor
    cond: Condition
    null: Condition
    rng: Rng
    extra: dict[str, Tensor] = field(default_factory=dict)

    @property
    def done_B(self) -> Tensor:
        return self.index_B >= self.total_B

    def rows(self, index: Any) -> State:
        return replace(
            self, x=self.x[index], index_B=self.index_B[index], total_B=self.total_B[index], cond=self.cond.rows(index),
            null=self.null.rows(index), rng=self.rng.rows(index), extra={k: v[index] for k, v in self.extra.items()},
        )  # fmt: skip

    def put(self, where_B: Tensor, part: State) -> State:
        """This state with the rows of `where_B` as in `part`: a step of some rows. Conditions and keys are the same in both."""
        at = where_B.nonzero().flatten()
        extra = {k: v.index_copy(0, at.to(v.device), part.extra[k]) for k, v in self.extra.items()}
        x, index_B = self.x.index_copy(0, at.to(self.x.device), part.x), self.index_B.index_copy(0, at, part.index_B)
        return replace(self, x=x, index_B=index_B, extra=extra)

    def cat(self, others: Sequence[State]) -> State:
        parts = [self, *others]
        return State(
            x=torch.cat([p.x for p in parts]), index_B=torch.cat([p.index_B for p in parts]),
            total_B=torch.cat([p.total_B for p in parts]), cond=self.cond.cat([p.cond for p in others]),
            null=self.null.cat([p.null for p in others]), rng=Rng(torch.cat([p.rng.keys_B for p in parts])),
            extra={k: _cat_padded([p.extra[k] for p in parts]) for k in self.extra},
        )  # fmt: skip


def _cat_padded(parts: list[Tensor]) -> Tensor:
    if parts[0].ndim > 1 and len({p.shape[1] for p in parts}) > 1:
        longest = max(p.shape[1] for p in parts)
        parts = [torch.cat([p, p.new_zeros(p.shape[0], longest - p.shape[1], *p.shape[2:])], dim=1) for p in parts]
    return torch.cat(parts)


class Process(Protocol):
    """How panel 2 learns and how it draws: both halves of one paradigm, in one file.

    drives: the role of the network it needs.  Sampling: a frozen dataclass of sampling settings (steps, guidance, ...) that
    feeds CLI, API and page alike.  abilities: of {"negative", "start image", "mask", "preview", "likelihood"}; what is
    absent is greyed out, with the reason.

    A denoiser's process also has `schedule` (alpha, sigma at t), `clock(t)`, time in the network's unit, and its inverse `time(clock)`,
    `corrupt(x0, t, eps) -> x_t`, and `says`, what its network predicts ("eps", "x0", "v", ...): what guides it from outside reads these.
    One that can measure held-out rows on draws that never change has `validate(network, batch, rng) -> {name: value_B}`.
    What it must know of the neighbours (scales, codebook, vocabularies, shapes) it reads from the network, which keeps the
    `latent` and `condition` that it was built with. A phase named like a module of `prepare` trains that module; every other
    phase trains the network. A phase that comes twice in a plan draws anew: its second turn has other keys in `rng`.
    """

    drives: str
    Sampling: type
    abilities: frozenset[str]
    config: Any

    def prepare(self, network: nn.Module, teacher: nn.Module | None = None) -> nn.ModuleDict:
        """Make what training needs beside the network: a discriminator, an EMA target. A teacher is named, not saved."""
        ...

    def plan(self, step: int) -> tuple[str, ...]:
        """The phases of this step, in order; one optimizer a phase. A pure function."""
        ...

    def losses(self, network: nn.Module, batch: Latents, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """`"loss"` (a scalar) is descended, the rest is logged."""
        ...

    def after_step(self, network: nn.Module, phase: str, step: int) -> None: ...
    def begin(self, network: nn.Module, cond: Condition, null: Condition, how: Any, start: Start, rng: Rng) -> State: ...
    def step(self, network: nn.Module, state: State) -> State:
        """One evaluation for all rows, wherever each of them is. Rows that are done do not change."""
        ...

    def preview(self, state: State) -> Tensor | None:
        """The finished latents as guessed from here, where the abilities say so."""
        ...


# --- training and judging -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """What data hands to a task. index: the global sample number of each row, which seeds all its draws."""

    index: tuple[int, ...]
    images_BCHW: Tensor | None = None
    prompts: tuple[Prompt, ...] = ()
    keys: tuple[str, ...] = ()  # content keys, for caches of what frozen panels say


class Task(Protocol):
    """Anything the ONE trainer can train: a decoder, CLIP, MAE, DETR, a text encoder, a generator.

    modules: all that learns or changes, by place; saved and restored together. Frozen neighbours are not among them.
    panels: what is exported at the end, by place in the model's folder ("generator", "text_encoder", ...).
    trainable: named as in `modules.named_parameters()`.
    """

    modules: nn.ModuleDict

    def panels(self) -> dict[str, nn.Module]: ...
    def plan(self, step: int) -> tuple[str, ...]: ...
    def trainable(self, phase: str) -> dict[str, nn.Parameter]: ...
    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]: ...
    def after_step(self, phase: str, step: int) -> None: ...
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Held-out measures, one value a row, on draws that never change. `"loss"` is the one to watch."""
        ...

    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        """Images BCHW in [-1, 1] for the strip of progress, from fixed seeds; None where there is nothing to see."""
        ...


class Judge(Protocol):
    """A judge takes pictures in as they come and gives its numbers at the end."""

    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt], references: Tensor | None = None) -> None: ...
    def result(self) -> dict[str, float]: ...
