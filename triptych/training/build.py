"""From a recipe to a task, and from a trained task to a model's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from triptych import catalog, checkpoint
from triptych.contracts import Task
from triptych.interop import diffusers_folder
from triptych.layers import lora
from triptych.recipe import Family, Neighbour, Recipe

from .lora import begin as begin_lora
from .tasks import GeneratorTask

__all__ = ["build_task", "export"]


def build_task(recipe: Recipe, *, init: str | Path | None = None) -> Task:
    """The recipe's panel between its neighbours, ready to train; its weights are a pure function of the recipe.

    init: an embedded model's name or a folder, ours or one that diffusers saved; its panel of the same place gives the starting weights
    (and its tokenizer). Of a folder of diffusers it is the network itself, and its scheduler the process, where the recipe names none.
    Raises ValueError for names, options and shapes that do not fit, naming the tensor where it is a tensor.
    """
    init, public = init or recipe.init, _Public()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        given = {place: one for place, one in recipe.neighbours.items() if place != "guide"}  # which only draws
        neighbours = {place: _neighbour(place, one, public) for place, one in given.items()}
        decided = _decided(recipe.panel, neighbours)
        panel = _panel(recipe, decided, init, public)
        begin_lora(recipe, panel, init)
        if recipe.panel == "generators" and not recipe.task:
            return _generator_task(recipe, panel, neighbours, public.of(init))
        tasks = getattr(catalog.find(recipe.panel, recipe.family.name), "TASKS", {})
        name = recipe.task or next(iter(tasks), "")
        if name not in tasks:
            raise ValueError(f"{recipe.family.name} has no task {name!r}; there are: {', '.join(tasks) or 'none'}")
        return tasks[name](panel, neighbours=neighbours, **recipe.task_options)


def _generator_task(recipe: Recipe, panel: nn.Module, neighbours: dict[str, Any], found: Any) -> GeneratorTask:
    """found: the folder of diffusers to start from, None for a model of ours."""
    if recipe.process is None and found is None:
        raise ValueError(f"recipe {recipe.name!r} trains a generator and names no process; set process.name (say rectified_flow)")
    neighbours["process"] = found.process if recipe.process is None else _family("processes", recipe.process)
    trained = "text_encoder" in recipe.neighbours and recipe.neighbours["text_encoder"].trained
    sampling = {**(found.sampling if found is not None and recipe.process is None else {}), **recipe.sampling}
    options = {"dropout": recipe.dropout, "sampling": sampling, "train_text_encoder": trained}
    return GeneratorTask(panel, neighbours=neighbours, **{**options, **recipe.task_options})


class _Public:
    """Folders that diffusers saved, each read once for all panels that are taken from it."""

    def __init__(self) -> None:
        self._read: dict[Path, diffusers_folder.Found] = {}

    def of(self, model: str | Path | None) -> diffusers_folder.Found | None:
        """None for no model, and for one of ours. Raises ValueError for a folder that cannot be read."""
        if model is None or not _is_public(model):
            return None
        folder = checkpoint.locate(model)
        if folder not in self._read:
            self._read[folder] = diffusers_folder.read(folder)
        return self._read[folder]

    def panel(self, model: str | Path, place: str) -> Any:
        """A panel of it, None for a model of ours. Raises ValueError for a place that such a folder does not have."""
        found = self.of(model)
        if found is None:
            return None
        panels = {"text_encoder": found.text_encoder, "generator": found.network, "decoder": found.decoder}
        if place not in panels:
            raise ValueError(f"{model} has no {place}: a folder of diffusers has {', '.join(panels)}")
        return panels[place]


def _is_public(model: str | Path) -> bool:
    return diffusers_folder.is_diffusers(checkpoint.locate(model))


def _neighbour(place: str, one: Neighbour, public: _Public) -> Any:
    if (one.model is None) == (one.family is None):
        raise ValueError(f"neighbours.{place}: give either a model or a family")
    if one.model is not None:
        theirs = public.panel(one.model, place)
        module = checkpoint.load_panel(one.model, place) if theirs is None else theirs
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


def _panel(recipe: Recipe, decided: dict[str, Any], init: str | Path | None, public: _Public) -> nn.Module:
    if init is None:
        return _family(recipe.panel, recipe.family, **decided)
    place = checkpoint.place_of(recipe.panel)
    if (theirs := public.panel(init, place)) is not None:
        return _theirs(recipe, decided, theirs, init)
    given = checkpoint.load_panel(init, place, **decided)
    assets = given.assets() if hasattr(given, "assets") else None
    panel = _family(recipe.panel, recipe.family, **decided, **({"assets": assets} if assets else {}))
    checkpoint.fill(panel, given.state_dict(), f"{init}: {place}")
    return panel


def _theirs(recipe: Recipe, decided: dict[str, Any], panel: Any, init: str | Path) -> nn.Module:
    """A public folder's network, ready to learn. Raises ValueError where the recipe's family, or its neighbours, are not that network's."""
    kind, family = recipe.panel, recipe.family
    if kind != "generators":
        raise ValueError(f"{init} is a folder of diffusers: its generator can be trained on, its other panels only stand beside it")
    name = catalog.name_of(kind, panel)
    if name != family.name:
        raise ValueError(f"{init} holds a {name}, and family.name = {family.name!r}: set family.name={name}")
    if family.size is not None or family.config:
        wanted = _fields(catalog.configure(kind, name, family.size, family.config))
        for field, value in _fields(panel.config).items():
            if wanted[field] != value:
                said = f"family: {field} = {wanted[field]!r}, and {init} has {value!r}"
                raise ValueError(f"{said}: name the family alone, its configuration is the folder's own")
    hears, heard = panel.condition, decided["condition"]
    for what, own, given in (
        ("latents of channels", panel.latent.shape[0], decided["latent"].shape[0]), ("words of width", hears.width, heard.width),
        ("classes", hears.num_labels, heard.num_labels),
    ):  # fmt: skip
        if own != given:
            raise ValueError(f"{init} was trained for {what} {own}, and its neighbours give {given}: name its own as neighbours")
    panel.latent = decided["latent"]
    return panel.train().requires_grad_(True)


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
        if place not in made and source is not None and source.model is not None and not _is_public(source.model):
            copied[place] = checkpoint.panel_folder(source.model, place)
            prints[place] = checkpoint.panel_fingerprint(source.model, place)
            continue
        if place in made:
            said: dict[str, Any] = {**card, "neighbours": dict(prints)}
        else:
            said = getattr(panel, "card", None) or {"recipe": None, "note": "built new, not trained"}
        extra: dict[str, Any] = {}
        if place == "generator" and isinstance(task, GeneratorTask):
            said["neighbours"] = {"text_encoder": prints["text_encoder"], "latent": task.decoder.latent.fingerprint}
            extra["process"] = {"family": catalog.name_of("processes", task.process), "config": _fields(task.process.config)}
        if any(lora.inserted(panel)):
            extra["tensors"] = lora.plain(panel)
            said["parameters"] = sum(p.numel() for name, p in panel.named_parameters() if not name.endswith((".A", ".B")))
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
        sampling = task.sampling if isinstance(task, GeneratorTask) else recipe.sampling
        checkpoint.export_model(folder, name=recipe.name, sampling=sampling, panels=copied, **more)


def _guide_folder(one: Neighbour) -> Path:
    """A critic that was trained for itself stands as vision, in a model that it already guides as its guide."""
    if one.model is None:
        raise ValueError("neighbours.guide: a guide is trained before; name its model or folder")
    place = "guide" if checkpoint.has_panel(one.model, "guide") else "vision"
    return checkpoint.panel_folder(one.model, place)


def _fields(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)
