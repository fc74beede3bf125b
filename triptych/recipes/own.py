"""A person's own pictures, and the smallest run there is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..recipe import Data, Family, Neighbour, Optimizer, Recipe, Source

__all__ = ["own", "tiny"]


def own(model: str = "emoji") -> Recipe:
    """A model that has learnt, fine-tuned on your pictures: the embedded one, another of ours, or a folder that diffusers saved.

    triptych train own --data DIR                                         # some minutes on two cores
    triptych train own --data DIR --init sd --lora 8
    triptych train own --data DIR --trigger "sks robot" --prior "a robot"
    triptych generate "..." --model RUN/model

    The generator learns, its neighbours stay as they are; its process, size and settings of drawing are the model's own.
    """
    if model == "emoji":
        family, size, sampling = Family(name="dit", size="emoji"), 32, {"steps": 20, "guidance": 2.5}
        process: Family | None = Family(
            name="rectified_flow", config={"target": "x0", "loss": "x0", "mean": 2.5, "std": 1.5, "uniform": 0.2}
        )
    else:
        family, process, size, sampling = _of(model)
    return Recipe(
        name="own",
        panel="generators",
        family=family,
        process=process,
        init=model,
        neighbours={"text_encoder": Neighbour(model=model), "decoder": Neighbour(model=model)},
        data=Data(sources=(Source(name="folder", options={"path": "my-pictures"}),), size=size),
        task_options={"cache": 1024},
        optimizer=Optimizer(lr=3e-4, warmup=0.05),
        steps=400, batch=32, validate_every=100, preview_every=200, save_every=200,
        sampling=sampling,
    )  # fmt: skip


def _of(model: str) -> tuple[Family, Family | None, int, dict[str, Any]]:
    """(family, process, pictures' side, sampling) of a model's generator. Raises ValueError for one that hears more than words."""
    from .. import checkpoint
    from ..interop import diffusers_folder

    folder = checkpoint.locate(model)
    if diffusers_folder.is_diffusers(folder):
        return _of_diffusers(folder)
    _, _, config = checkpoint.load_config(model, "generator")
    learnt = _learnt(checkpoint.panel_folder(model, "generator") / "card.json").get("data", {})
    if learnt.get("ports"):
        ports = ", ".join(one["name"] for one in learnt["ports"])
        raise ValueError(f"{model} hears more than words ({ports}), and captions say none of it; start from another model")
    process, sampling = config["process"], checkpoint.load_model_file(model).get("sampling", {})
    family = Family(name=config["family"], config=config["config"])
    return family, Family(name=process["family"], config=process["config"]), int(learnt.get("size", 32)), sampling


def _learnt(card: Path) -> dict[str, Any]:
    """The recipe by which a panel was trained, as its card has it; {} where it has none."""
    try:
        return json.loads(card.read_text(encoding="utf-8")).get("recipe") or {}
    except (OSError, ValueError):
        return {}


def _of_diffusers(folder: Path) -> tuple[Family, None, int, dict[str, Any]]:
    """Its network as it is, its scheduler's process, and latents times what its decoder enlarges."""
    part, name = next(((one, kind) for one, kind in (("unet", "unet"), ("transformer", "dit")) if (folder / one).is_dir()), ("", ""))
    try:
        side = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))["sample_size"]
        vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8")) if (folder / "vae").is_dir() else {}
        side = side if isinstance(side, int) else min(side)
        return Family(name=name), None, side * 2 ** max(0, len(vae.get("block_out_channels", [0])) - 1), {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} is no whole folder of diffusers: {' '.join(str(error).split())}") from None


def tiny() -> Recipe:
    """Three tiny panels on drawn scenes: shows in under a minute that everything runs. It does not draw well.

    triptych train tiny
    """
    return Recipe(
        name="tiny",
        panel="generators",
        family=Family(name="dit", size="tiny"),
        process=Family(name="rectified_flow"),
        task_options={"vocabulary_texts": 5000},
        neighbours={
            "text_encoder": Neighbour(family=Family(name="bilingual", size="tiny"), trained=True),
            "decoder": Neighbour(family=Family(name="identity", size="tiny")),
        },
        data=Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=16),
        optimizer=Optimizer(lr=2e-3),
        steps=200, batch=32, compile=False, validate_every=100, preview_every=100, save_every=100,
        preview_prompts=("a red circle", "三个绿色的三角形"),
    )  # fmt: skip
