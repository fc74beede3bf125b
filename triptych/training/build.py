"""From a recipe to a task, and from a trained task to a model's folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych import catalog, checkpoint
from triptych.contracts import Task
from triptych.recipe import Family, Neighbour, Recipe

from .tasks import GeneratorTask

__all__ = ["build_task", "export"]


def build_task(recipe: Recipe, *, init: str | Path | None = None) -> Task:
    """The recipe's panel between its neighbours, ready to train; its weights are a pure function of the recipe.

    init: an embedded model's name or a folder; its panel of the same place gives the starting weights (and its tokenizer).
    Raises ValueError for names, options and shapes that do not fit, naming the tensor where it is a tensor.
    """
    init = init or recipe.init
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        neighbours = {place: _neighbour(place, one) for place, one in recipe.neighbours.items() if place != "guide"}  # it only draws
        decided = _decided(recipe.panel, neighbours)
        panel = _panel(recipe, decided, init)
        if recipe.panel == "generators" and not recipe.task:
            return _generator_task(recipe, panel, neighbours)
        tasks = getattr(catalog.find(recipe.panel, recipe.family.name), "TASKS", {})
        name = recipe.task or next(iter(tasks), "")
        if name not in tasks:
            raise ValueError(f"{recipe.family.name} has no task {name!r}; there are: {', '.join(tasks) or 'none'}")
        return tasks[name](panel, neighbours=neighbours, **recipe.task_options)


def _generator_task(recipe: Recipe, panel: nn.Module, neighbours: dict[str, Any]) -> GeneratorTask:
    if recipe.process is None:
        raise ValueError(f"recipe {recipe.name!r} trains a generator and names no process; set process.name (say rectified_flow)")
    neighbours["process"] = _family("processes", recipe.process)
    trained = "text_encoder" in recipe.neighbours and recipe.neighbours["text_encoder"].trained
    options = {"dropout": recipe.dropout, "sampling": recipe.sampling, "train_text_encoder": trained}
    return GeneratorTask(panel, neighbours=neighbours, **{**options, **recipe.task_options})


def _neighbour(place: str, one: Neighbour) -> Any:
    if (one.model is None) == (one.family is None):
        raise ValueError(f"neighbours.{place}: give either a model or a family")
    if one.model is not None:
        module = checkpoint.load_panel(one.model, place)
    else:
        if place not in checkpoint.PLACES:
            raise ValueError(f"neighbours.{place}: there is no such place; there are: {', '.join(checkpoint.PLACES)}")
        module = _family(checkpoint.PLACES[place], one.family)
    if not isinstance(module, nn.Module):
        return module
    return module.train(one.trained).requires_grad_(one.trained)


def _family(kind: str, family: Family | None, **decided: Any) -> Any:
    assert family is not None
    return catalog.build(kind, family.name, dict(family.config), size=family.size, **decided)


def _decided(kind: str, neighbours: Mapping[str, Any]) -> dict[str, Any]:
    """What the neighbours decide about a panel of this kind."""
    decided: dict[str, Any] = {}
    if kind == "generators":
        for place in ("text_encoder", "decoder"):
            if place not in neighbours:
                raise ValueError(f"a generator stands between two panels; set neighbours.{place}.model or neighbours.{place}.family")
        decided["latent"] = neighbours["decoder"].latent
    if kind in ("generators", "vision") and "text_encoder" in neighbours:
        decided["condition"] = neighbours["text_encoder"].gives
    return decided


def _panel(recipe: Recipe, decided: dict[str, Any], init: str | Path | None) -> nn.Module:
    if init is None:
        return _family(recipe.panel, recipe.family, **decided)
    place = checkpoint.place_of(recipe.panel)
    given = checkpoint.load_panel(init, place, **decided)
    assets = given.assets() if hasattr(given, "assets") else None
    panel = _family(recipe.panel, recipe.family, **decided, **({"assets": assets} if assets else {}))
    checkpoint.fill(panel, given.state_dict(), f"{init}: {place}")
    return panel


# --- out ----------------------------------------------------------------------------------------------------------------


def export(task: Task, recipe: Recipe, folder: Path, card: Mapping[str, Any]) -> None:
    """The task's panels as they stand now, each with a card, below `folder`; a generator's model is completed by its neighbours."""
    prints: dict[str, str] = {}
    made = task.panels()
    neighbours = {"text_encoder": task.text_encoder, "decoder": task.decoder} if isinstance(task, GeneratorTask) else {}
    copied: dict[str, Path] = {}
    for place in ("text_encoder", "decoder", "vision", "generator"):
        panel = made.get(place, neighbours.get(place))
        if panel is None:
            continue
        source = recipe.neighbours.get(place)
        if place not in made and source is not None and source.model is not None:
            copied[place] = checkpoint.panel_folder(source.model, place)
            prints[place] = checkpoint.panel_fingerprint(source.model, place)
            continue
        said: dict[str, Any] = {**card, "neighbours": dict(prints)} if place in made else {"recipe": None, "note": "built new, not trained"}
        extra: dict[str, Any] = {}
        if place == "generator" and isinstance(task, GeneratorTask):
            said["neighbours"] = {"text_encoder": prints["text_encoder"], "latent": task.decoder.latent.fingerprint}
            extra["process"] = {"family": catalog.name_of("processes", task.process), "config": _fields(task.process)}
        kind = checkpoint.PLACES[place]
        prints[place] = checkpoint.save_panel(
            folder / place, panel, kind=kind, name=catalog.name_of(kind, panel), config=panel.config, card=said, **extra
        )
    if "generator" in made:
        smaller = isinstance(task, GeneratorTask) and hasattr(task.decoder, "factor") and 0 < recipe.data.size < task.decoder.image_size
        more: dict[str, Any] = {"size": [recipe.data.size] * 2} if smaller else {}  # what was learnt is what is drawn
        if recipe.guide is not None:
            more["guide"] = {"scale": recipe.guide.scale, **({"eyes": recipe.guide.eyes} if recipe.guide.eyes else {})}
        if "guide" in recipe.neighbours:
            copied["guide"] = _guide_folder(recipe.neighbours["guide"])
        checkpoint.export_model(folder, name=recipe.name, sampling=recipe.sampling, panels=copied, **more)


def _guide_folder(one: Neighbour) -> Path:
    """A critic that was trained for itself stands as vision, in a model that it already guides as its guide."""
    if one.model is None:
        raise ValueError("neighbours.guide: a guide is trained before; name its model or folder")
    place = "guide" if checkpoint.has_panel(one.model, "guide") else "vision"
    return checkpoint.panel_folder(one.model, place)


def _fields(process: Any) -> dict[str, Any]:
    import dataclasses

    return dataclasses.asdict(process.config)
