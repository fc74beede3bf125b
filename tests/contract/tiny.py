"""Tiny real panels of every family in the catalog, each between the first neighbours that it can stand beside.

Nothing here knows a family by name, but for options of tasks that no default can cover (`OPTIONS`): a new file in a folder of
families is found by the catalog, built at size "tiny", and tested by all that stands in `test_catalog.py`.
"""

from __future__ import annotations

import dataclasses
import itertools
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import nn

from triptych import catalog, data
from triptych.contracts import Batch, Process, Prompt, Task
from triptych.eyes import Eyes
from triptych.pipeline import Generator, TextToImage
from triptych.recipe import Data, Source
from triptych.training import GeneratorTask

PANELS = ("text_encoders", "generators", "decoders", "vision")

# Options without which a task leaves a part of its panel alone.
OPTIONS: dict[tuple[str, str], tuple[dict[str, Any], ...]] = {
    ("upscaler", "upscale"): ({"stage": 0}, {"stage": 1}),
    ("mae", "masked_tokens"): (),  # needs a decoder of kind "grid"; test_eyes_dense.py trains it with the joints'
}


def families(*kinds: str) -> list[tuple[str, str]]:
    """(kind, name) of the package's own families: what a test beside this one has registered is that test's business."""
    every = [(kind, name) for kind in kinds for name in catalog.names(kind)]
    return [(kind, name) for kind, name in every if catalog.find(kind, name).__name__.startswith("triptych.")]


def names(kind: str) -> list[str]:
    return [name for _, name in families(kind)]


# --- what is shown and said ---------------------------------------------------------------------------------------------


@cache
def scenes(side: int = 64) -> data.index.Dataset:
    return data.build(Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=side))


@cache
def batch(rows: int, step: int = 0) -> Batch:
    """Drawn scenes with captions in two languages, and a class number each."""
    found = scenes().batch(0, step, rows)
    return replace(found, prompts=tuple(replace(prompt, label=i) for i, prompt in enumerate(found.prompts)))


SAID = [
    "a red circle", "三个绿色的三角形", "", "a blue square left of a large yellow star above a ring", "火箭", "two hearts", "红色的圆形",
    "star",
]  # fmt: skip
PROMPTS = [  # of everything something: each panel hears what it reads
    Prompt(
        text=text, label=i, boxes_N5=torch.tensor([[i, 0.5, 0.5, 0.1 + 0.1 * i, 0.5]]),
        image_CHW=torch.linspace(-1, 1, 48).roll(i).view(3, 4, 4),
    )
    for i, text in enumerate(SAID)
]  # fmt: skip


# --- panels -------------------------------------------------------------------------------------------------------------


def build(kind: str, name: str, *, config: Any = None, seed: int = 0, **neighbours: Any) -> Any:
    """A family at size tiny, in training mode; a text encoder knows words of the scenes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        panel = catalog.build(kind, name, config if config is not None else catalog.find(kind, name).SIZES["tiny"], **neighbours)
    if not getattr(panel, "has_vocabulary", True):
        panel.learn_vocabulary(scenes().texts(100))
    return panel


def awake(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that start at zero are moved a little, so that no branch is silent."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


@dataclass(frozen=True)
class Joined:
    """Families, by place, that can be one model."""

    text_encoder: str
    decoder: str
    generator: str
    process: str


@cache
def joined(**wanted: str) -> Joined:
    """The first families that fit: a generator says by ValueError what it cannot stand between, a process by the role it drives."""
    kinds = {"text_encoder": "text_encoders", "decoder": "decoders", "generator": "generators", "process": "processes"}
    choices = [[wanted[place]] if place in wanted else names(kind) for place, kind in kinds.items()]
    for found in itertools.starmap(Joined, itertools.product(*choices)):
        if not meet(found.process, found.generator):
            continue
        decoder, text_encoder = build("decoders", found.decoder), build("text_encoders", found.text_encoder)
        try:
            build("generators", found.generator, latent=decoder.latent, condition=text_encoder.gives)
        except ValueError:
            continue
        return found
    raise AssertionError(f"no families of the catalog fit {wanted}: a new kind of generator, latent or process needs its neighbours first")


def model(*, seed: int = 0, process_config: Any = None, **wanted: str) -> TextToImage:
    """Three tiny panels and a process, untrained but awake, joined; `wanted` names families by place."""
    found = joined(**wanted)
    text_encoder = awake(build("text_encoders", found.text_encoder, seed=seed)).eval()
    decoder = awake(build("decoders", found.decoder, seed=seed), seed).eval()
    process = build("processes", found.process, config=process_config)
    said = {"config": speaks(found.generator, process), "latent": decoder.latent, "condition": text_encoder.gives}
    network = awake(build("generators", found.generator, seed=seed, **said), seed).eval()
    return TextToImage(text_encoder, Generator(network, process), decoder, name="tiny", sampling=few(process))  # type: ignore[arg-type]


def few(process: Process) -> dict[str, Any]:
    """Few steps, where a process has steps, and guidance, so that the null is heard."""
    known = {f.name for f in dataclasses.fields(process.Sampling)}
    return {name: value for name, value in {"steps": 6, "repeats": 1, "guidance": 3.0}.items() if name in known}


def choices(settings: type) -> Iterator[dict[str, Any]]:
    """Nothing changed; then every other value of every field that is a choice among names."""
    yield {}
    defaults, hints = settings(), typing.get_type_hints(settings)
    for one in dataclasses.fields(settings):
        if typing.get_origin(hints[one.name]) is typing.Literal:
            for value in typing.get_args(hints[one.name]):
                if value != getattr(defaults, one.name):
                    yield {one.name: value}


@dataclass(frozen=True)
class Drawing:
    """A process, one of the generators it drives, and single choices among its settings."""

    process: str
    generator: str
    config: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.process, self.generator, *(f"{k}={v}" for k, v in {**self.config, **self.sampling}.items())])

    def model(self) -> TextToImage:
        config = catalog.configure("processes", self.process, "tiny", self.config)
        return model(process=self.process, generator=self.generator, process_config=config)


def meet(process: str, generator: str) -> bool:
    """Does the process drive networks of this role?"""
    drives: Any = catalog.family("processes", process)
    driven: Any = catalog.family("generators", generator)
    return drives.drives == driven.role


def pairs() -> list[tuple[str, str]]:
    """(process, generator) that can draw together."""
    return [pair for pair in itertools.product(names("processes"), names("generators")) if meet(*pair)]


def drawings() -> list[Drawing]:
    """Every pair; and with the first generator of each process every single choice that its Config and its Sampling allow."""
    found: list[Drawing] = []
    for process, generator in pairs():
        module = catalog.find("processes", process)
        if any(one.process == process for one in found):
            found.append(Drawing(process, generator))
            continue
        sampling = catalog.family("processes", process).Sampling  # type: ignore[attr-defined]
        found += [Drawing(process, generator, config) for config in choices(module.Config) if allowed(process, config)]
        found += [Drawing(process, generator, {}, how) for how in choices(sampling) if how]
    return found


def allowed(process: str, config: dict[str, Any]) -> bool:
    """Some choices only go with others."""
    try:
        catalog.configure("processes", process, "tiny", config)
    except ValueError:
        return False
    return True


def speaks(generator: str, process: Any) -> Any:
    """The generator's tiny Config, with channels for the variance where the process wants it to be said."""
    config = catalog.find("generators", generator).SIZES["tiny"]
    learnt = getattr(process.config, "variance", "") == "learned_range"
    return dataclasses.replace(config, learn_sigma=True) if learnt else config


# --- trainings ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """A way in which a family can be trained: one of its own TASKS, or, for a generator, a process with each choice of its Config."""

    kind: str
    name: str
    task: str
    options: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.name, self.task, *(f"{k}={v}" for k, v in {**self.options, **self.config}.items())])

    def build(self) -> Task:
        if self.kind == "generators" and self.task in names("processes"):
            found = joined(generator=self.name, process=self.task)
            text_encoder, decoder = build("text_encoders", found.text_encoder), build("decoders", found.decoder).eval()
            process = build("processes", self.task, config=catalog.configure("processes", self.task, "tiny", self.config))
            said = {"config": speaks(self.name, process), "latent": decoder.latent, "condition": text_encoder.gives}
            panel = build("generators", self.name, **said)
            neighbours = {"text_encoder": text_encoder, "decoder": decoder, "process": process}
            kept = {"threshold": "static"} if self.config.get("target") in ("mean", "previous") else {}  # an untrained guess grows
            return GeneratorTask(panel, neighbours=neighbours, dropout=0.0, train_text_encoder=True, sampling=kept)
        alone = self.kind in ("decoders", "text_encoders")
        neighbours = {} if alone else {"text_encoder": build("text_encoders", names("text_encoders")[0])}
        decided = {"condition": neighbours["text_encoder"].gives} if self.kind == "vision" else {}
        panel = build(self.kind, self.name, **decided)
        return catalog.find(self.kind, self.name).TASKS[self.task](panel, neighbours=neighbours, **self.options)


def beside(text_encoder: str) -> Task:
    """What trains a text encoder that has no task of its own: a generator that hears it."""
    found = joined(text_encoder=text_encoder, process="rectified_flow", generator="unet")
    panel, decoder = build("text_encoders", text_encoder), build("decoders", found.decoder).eval()
    network = build("generators", found.generator, latent=decoder.latent, condition=panel.gives)
    neighbours = {"text_encoder": panel, "decoder": decoder, "process": build("processes", found.process)}
    return GeneratorTask(network, neighbours=neighbours, dropout=0.0, train_text_encoder=True)


def trainings() -> list[Training]:
    found = []
    for kind, name in families(*PANELS):
        for task in getattr(catalog.find(kind, name), "TASKS", {}):
            found += [Training(kind, name, task, options) for options in OPTIONS.get((name, task), ({},))]
    for process, generator in pairs():
        seen = any(one.task == process for one in found)
        configs = [{}] if seen else [config for config in choices(catalog.find("processes", process).Config) if allowed(process, config)]
        found += [Training("generators", generator, process, config=config) for config in configs]
    return found


def eyes(name: str = "tiny-eyes") -> Eyes:
    """A CLIP that hears words, at random, nothing at zero."""
    torch.manual_seed(0)
    words = build("text_encoders", "bilingual")
    vision = awake(catalog.build("vision", "clip", size="tiny", condition=words.gives))
    return Eyes(vision.eval(), words.eval(), name=name)
