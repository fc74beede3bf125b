"""`triptych train`: a recipe by name or from a file, changed by --data and --set, handed to the trainer."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from .. import recipe as recipes_of
from .. import recipes
from ..recipe import Recipe
from ..recipes.own import own
from . import finetune, say
from .data import open_split, sources_of
from .errors import blame

if TYPE_CHECKING:
    from ..data.index import Dataset
    from ..training import Result

__all__ = ["changed", "find_recipe", "run", "train_one"]

LORA_RATE = 1e-3  # of `own`: at the whole network's rate, 3e-4, what a LoRA of 8 ranks drew after 300 steps was still vague (looked at)


def find_recipe(name: str, data: str | None = None, settings: Sequence[str] = (), init: str | None = None) -> Recipe:
    """The recipe to train, shipped or of a file, as `changed` says. init: what `own` is made for.

    Raises ValueError for a recipe, a file, a field or a source that is not there, with the nearest right name.
    """
    is_file = name.endswith((".yaml", ".yml")) or Path(name).is_file()
    if init is not None and not is_file and name.removeprefix("recipes/") == "own":
        with blame("bad_checkpoint", f"model {init}"):
            found = own(init)
        return changed(found, data, settings)
    return changed(recipes_of.from_yaml(name) if is_file else recipes.get(name.removeprefix("recipes/")), data, settings)


def changed(found: Recipe, data: str | None = None, settings: Sequence[str] = ()) -> Recipe:
    """--data takes the place of its sources, then --set changes single fields. Raises ValueError for those that are not there."""
    if data is not None:
        found = dataclasses.replace(found, data=dataclasses.replace(found.data, sources=sources_of(data)))
    return recipes_of.override(found, settings) if settings else found


def run(
    name: str, *, data: str | None, settings: Sequence[str], out: str | None, resume: bool, init: str | None, lora: int | None = None,
    trigger: str | None = None, prior: Sequence[str] = (), prior_pictures: int = 100, dry_run: bool, as_json: bool,
) -> None:  # fmt: skip
    """Train, and leave with 130 or 143 where a signal ended the run (saved)."""
    thin = [] if lora is None else [f"lora.rank={lora}"]
    if thin and name.removeprefix("recipes/") == "own":
        thin.append(f"optimizer.lr={LORA_RATE}")
    recipe = find_recipe(name, data, [*thin, *settings], init)
    folder = _folder(recipe.name, out, resume)
    recipe = finetune.with_trigger(recipe, trigger)
    recipe = finetune.with_prior(recipe, folder, prior, prior_pictures, init=init, dry_run=dry_run)
    result, sheet = train_one(recipe, folder, resume=resume, init=init, dry_run=dry_run, quiet=as_json)
    model = str(result.model) if result.model else None
    value = {"recipe": recipe.name, **dataclasses.asdict(result), "out": str(result.out), "model": model}
    say.result({**value, **({"before_after": str(sheet)} if sheet else {})}, model or "", as_json)
    if sheet:
        say.note(f"before and after: {sheet}")
    if result.model and (result.model / "triptych.json").exists():
        say.note(f'draw with it: triptych generate "..." --model {result.model}')
    if result.model and recipe.lora is not None:
        say.note(f'or beside others: triptych generate "..." --model {init or recipe.init} --lora {result.out / "lora"}')
    if result.exit_code:
        sys.exit(result.exit_code)


def train_one(
    recipe: Recipe, folder: Path, *, resume: bool, init: str | None = None, dry_run: bool = False, quiet: bool = False
) -> tuple[Result, Path | None]:  # fmt: skip
    """A recipe to the trainer, once its models and data are found to be in order: how it ended, and the sheet of before and after.

    quiet: no bar, only what matters.
    """
    _check_models(recipe, init)
    from ..training import Report, train

    train_set = open_split(recipe.data, "train")
    held_out = open_split(recipe.data, "held_out")
    if held_out is None:
        say.note("note: too few examples to hold some out; there is no held-out loss")
    if not dry_run:
        say.note(f"run folder {folder}")
        _keep_broken(train_set, folder)
    recipe = finetune.told_what_to_show(recipe, train_set) if train_set is not None else recipe
    given = {"data": train_set, "held_out": held_out, "resume": resume, "init": init, "dry_run": dry_run}
    result = train(recipe, out=folder, report=Report(quiet=quiet), **given)
    return result, finetune.before_after(recipe, result)


def _keep_broken(dataset: Dataset | None, folder: Path) -> None:
    """RUN/bad_files.jsonl: what is not learnt from, and why, where there is any."""
    from ..checkpoint import write_atomically

    told = [source.describe() for source in dataset.sources] if dataset is not None else []
    lines = [
        json.dumps({"path": one.get("path", ""), "name": name, "reason": reason}, ensure_ascii=False)
        for one in told
        for name, reason in one.get("broken", {}).items()
    ]
    if lines:
        write_atomically(folder / "bad_files.jsonl", ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace"))


def _folder(name: str, out: str | None, resume: bool) -> Path:
    if out is not None:
        return Path(out)
    slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip(".") or "run"
    if resume:
        runs = sorted(p for p in Path("runs").glob(f"{slug}-[0-9]*") if (p / "checkpoints").is_dir())
        if not runs:
            raise ValueError(f"--resume: no run runs/{slug}-* is here; name its folder with --out, or train without --resume")
        return runs[-1]
    return Path("runs") / f"{slug}-{datetime.now():%Y%m%d-%H%M%S}"


def _check_models(recipe: Recipe, init: str | None) -> None:
    """The models that the recipe stands on are here and whole: found out before data is touched."""
    from .. import checkpoint
    from ..interop.diffusers_folder import is_diffusers

    own = checkpoint.place_of(recipe.panel)
    wanted = [(place, one.model) for place, one in recipe.neighbours.items() if place != "guide"] + [(own, init or recipe.init)]
    for place, model in wanted:
        if model is None:
            continue
        folder = checkpoint.locate(model)
        if place in checkpoint.PLACES and not is_diffusers(folder):  # which are found out when they are read
            with blame("bad_checkpoint", f"model {model}"):
                checkpoint.load_config(model, place)
                checkpoint.load_tensors(model, place)
