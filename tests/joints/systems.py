"""Nine systems in one frame: which families each is made of, and how each is trained, by the one trainer.

The families of this folder are outside families: `register` brings them in, from Python.
"""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

import triptych
from tests.joints import (
    ascent,
    cascade,
    embedder,
    gpt,
    multiscale,
    next_scale,
    next_token,
    prior,
    scale_transformer,
    shot,
    small_critic,
    standard_normal,
    unclip,
    vae,
    vector_denoiser,
    vqgan,
    wgan_gp,
)  # fmt: skip
from triptych import checkpoint
from triptych.recipe import Data, Family, Neighbour, Optimizer, Recipe, Source
from triptych.training import Report, train

__all__ = ["DECODERS", "SCENES", "SYSTEMS", "Workshop", "measured", "quiet", "register"]

OUTSIDE = {
    "decoders": (cascade, multiscale, unclip, vae, vqgan),
    "generators": (gpt, scale_transformer, shot, small_critic, standard_normal, vector_denoiser),
    "processes": (ascent, next_scale, next_token, prior, wgan_gp),
    "vision": (embedder,),
}


def register() -> None:
    for kind, modules in OUTSIDE.items():
        for module in modules:
            triptych.register(kind, f"joints_{module.__name__.rpartition('.')[2]}", module)


@dataclass(frozen=True, kw_only=True)
class System:
    """A decoder (of `DECODERS`, or one that needs no training), a generator and its process. steps, lr: of the generator."""

    decoder: str
    generator: str
    process: str
    process_size: str = "tiny"
    steps: int = 40
    lr: float = 3e-3
    sampling: dict[str, Any] = field(default_factory=dict)  # what makes drawing short


DECODERS = {"joints_vae": 100, "joints_vqgan": 150, "joints_multiscale": 100, "joints_unclip": 60, "joints_cascade": 60}  # and their steps

SCENES = Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=16)
SMALL = {"batch": 32, "compile": False, "precision": "float32"}

SYSTEMS = {
    "vae": System(decoder="joints_vae", generator="joints_standard_normal", process="joints_prior", steps=1),
    "vqgan": System(decoder="joints_vqgan", generator="joints_gpt", process="joints_next_token", process_size="vqgan"),
    "wgan_gp": System(decoder="identity", generator="joints_shot", process="joints_wgan_gp", lr=1e-3, steps=60),
    "rectified_flow": System(decoder="identity", generator="dit", process="rectified_flow", sampling={"steps": 4}),
    "dalle": System(decoder="joints_vqgan", generator="joints_gpt", process="joints_next_token", sampling={"top_k": 8, "temperature": 0.9}),
    "var": System(decoder="joints_multiscale", generator="joints_scale_transformer", process="joints_next_scale"),
    "unclip": System(decoder="joints_unclip", generator="joints_vector_denoiser", process="rectified_flow", sampling={"steps": 4}),
    "cascade": System(decoder="joints_cascade", generator="dit", process="rectified_flow", sampling={"steps": 4}),
    "ascent": System(decoder="identity", generator="joints_small_critic", process="joints_ascent"),
}


class Workshop:
    """Trains what is asked for, once, below `root`, which several test workers may share. A name is a run's folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def model(self, name: str) -> Path:
        """A system's folder, ready for `triptych.load`."""
        return self._swapped("rectified_flow", SYSTEMS[name]) if name == "cascade" else self._run(self.recipe(name))

    def recipe(self, name: str) -> Recipe:
        """How a system's panel 2 is trained, between panels that are made first."""
        system = SYSTEMS[name]
        decoder = Neighbour(model=str(self.decoder(system.decoder))) if system.decoder in DECODERS else None
        neighbours = {
            "text_encoder": Neighbour(model=str(self.words())),
            "decoder": decoder or Neighbour(family=Family(name=system.decoder, size="tiny")),
        }
        return Recipe(
            name=name, panel="generators", family=Family(name=system.generator, size="tiny"), neighbours=neighbours, steps=system.steps,
            process=Family(name=system.process, size=system.process_size), optimizer=Optimizer(lr=system.lr), sampling=system.sampling,
            data=SCENES, **SMALL,
        )  # fmt: skip

    def words(self) -> Path:
        """Panel 1, the same for all."""
        family, texts = Family(name="bilingual", size="tiny"), replace(SCENES, size=0)
        options = {"vocabulary_texts": 300}
        return self._run(Recipe(name="words", panel="text_encoders", family=family, task_options=options, data=texts, steps=2, **SMALL))

    def decoder(self, name: str) -> Path:
        family, how = Family(name=name, size="tiny"), Optimizer(lr=3e-3)
        return self._run(Recipe(name=name, panel="decoders", family=family, steps=DECODERS[name], optimizer=how, data=SCENES, **SMALL))

    def _swapped(self, other: str, system: System) -> Path:
        """The other system's generator in front of this decoder: they share a space, so nothing is trained anew."""
        drawn, decoder = triptych.load(self.model(other)), checkpoint.load_panel(self.decoder(system.decoder), "decoder")
        out = self.root / f"{other}+{system.decoder}"
        with FileLock(f"{out}.lock"):
            if not (out / "model" / "triptych.json").exists():
                triptych.TextToImage(drawn.text_encoder, drawn.generator, decoder, sampling=system.sampling).save(out / "model")
        return out / "model"

    def _run(self, recipe: Recipe) -> Path:
        out = self.root / recipe.name
        with FileLock(f"{out}.lock"):
            if not (out / "model").exists():
                assert train(recipe, out=out, report=quiet()).reason == "finished"
        return out / "model"


def quiet() -> Report:
    return Report(quiet=True, stream=io.StringIO())


def measured(run: Path, kind: str, name: str) -> list[float]:
    """A measure's history, out of the trainer's metrics.jsonl."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if row["kind"] == kind and name in row]
