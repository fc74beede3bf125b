"""`triptych train --all GROUP`: a file of recipes, each by the one trainer, in an order in which every recipe finds what it stands on.

ROOT/NAME is the run of a recipe. The same command goes on where it was left: what is finished is told in a line, what was interrupted
is resumed, what failed is tried again. A recipe stands on another of its group where a neighbour's model has that recipe's name: then
the panel is taken from that run. Beside its runs a group keeps nothing: what is finished is read from their checkpoints and cards.
"""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import checkpoint, recipes
from ..recipe import Recipe, to_mapping
from . import say
from .errors import EXIT, classify
from .train import changed, train_one

__all__ = ["Told", "in_order", "run", "train_all"]

_DONE = ("finished", "was finished")


@dataclass(kw_only=True)
class Told:
    """What became of one recipe.

    state: "planned", "not begun", "waits" (for another, which failed), "failed", "interrupted", "terminated", "finished" (now), "was
    finished" (before).  step: of `steps`.  minutes: of training; of a plan, those that are left.  measures: on held-out data and the
    judges'.  why: it failed, or what it waits for; code: the failure's, of `errors.EXIT`.
    """

    name: str
    state: str = "not begun"
    step: int = 0
    steps: int = 0
    pictures: int = 0
    minutes: float | None = None
    measures: dict[str, float | None] = field(default_factory=dict)
    expected: list[str] = field(default_factory=list)
    model: str | None = None
    why: str = ""
    code: str = ""


def run(group: str, *, data: str | None, settings: Sequence[str], out: str | None, dry_run: bool, as_json: bool) -> None:
    """Train a group, and leave with 130 or 143 where a signal ended it, else with the code of the first failure if there was one."""
    wanted = [changed(recipe, data, settings) for recipe in recipes.group(group)]
    root = Path(out) if out is not None else Path("runs") / group
    told = train_all(wanted, root, dry_run=dry_run, quiet=as_json)
    said = [*(["--data", data] if data else []), *(part for one in settings for part in ("--set", one)), *(["--out", out] if out else [])]
    again = shlex.join(["triptych", "train", "--all", group, *said])
    minutes = sum(one.minutes or 0.0 for one in told)
    runs = [dataclasses.asdict(one) for one in told]
    value = {"group": group, "out": str(root), "runs": runs, "minutes": round(minutes, 2), "again": again}
    total = f"{len(told)} recipes, {minutes:.0f} minutes" + (" to go, as measured on three steps each" if dry_run else " of training")
    say.result(value, "\n".join([table(told), "", f"{total}; below {root}"]), as_json)
    if not dry_run and any(one.state not in _DONE for one in told):
        say.note(f"go on: {again}")
    left = next((one.state for one in told if one.state in ("interrupted", "terminated")), None)
    code = left or next((one.code for one in told if one.code), None)
    if code is not None:
        sys.exit(EXIT[code])


def train_all(wanted: Sequence[Recipe], root: Path, *, dry_run: bool = False, quiet: bool = False) -> list[Told]:
    """Train each recipe in root/NAME, or measure what it would cost. What fails is told and does not stop the others.

    Raises ValueError for recipes that stand on each other, before anything is done.
    """
    ordered = in_order(wanted)
    told = {one.name: Told(name=one.name, steps=one.steps, pictures=one.steps * one.batch) for one in ordered}
    for turn, recipe in enumerate(ordered, 1):
        one, count = told[recipe.name], f"{turn} of {len(ordered)}, {recipe.name}"
        try:
            _turn(recipe, root, one, told, count, dry_run=dry_run, quiet=quiet)
        except KeyboardInterrupt:  # between two runs, or a second Ctrl+C in one
            one.state = "interrupted"
        except SystemExit as left:
            one.state = "terminated" if left.code == EXIT["terminated"] else "interrupted"
        except Exception as error:  # whatever broke in one recipe, the others can still be trained
            code, one.why = classify(error)
            one.state, one.code = "failed", code
            say.note(f"{count}: failed: {one.why}")
        if one.state in ("interrupted", "terminated"):
            break
    return list(told.values())


def _turn(recipe: Recipe, root: Path, one: Told, told: Mapping[str, Told], count: str, *, dry_run: bool, quiet: bool) -> None:
    out, needs = root / recipe.name, _stands_on(recipe, told)
    missing = [name for name in needs if told[name].state not in _DONE]
    if missing and not dry_run:
        one.state, one.why = "waits", f"for {', '.join(missing)}"
        return say.note(f"{count}: waits {one.why}, on which it stands")
    recipe = _standing(recipe, {name: root / name / "model" for name in needs if name not in missing})
    if _is_finished(recipe, out):
        _read_card(recipe, out, one)
        one.state, one.minutes = "was finished", 0.0 if dry_run else one.minutes
        return say.note(f"{count}: was finished, {_result(one)}")
    if dry_run:
        return _plan(recipe, out, one, [name for name in missing if name not in checkpoint.embedded()])
    say.note(f"{count}: {recipe.steps} steps of {recipe.batch}")
    _forget_compiled()
    result, _ = train_one(recipe, out, resume=(out / "checkpoints").is_dir(), quiet=quiet)
    _read_card(recipe, out, one)
    one.state, one.step = result.reason, result.step
    say.note(f"{count}: {one.state}, {_result(one)}")


def _plan(recipe: Recipe, out: Path, one: Told, missing: Sequence[str]) -> None:
    """Foretell a run. What stands on a recipe that was never trained, and on no embedded model either, cannot be measured yet."""
    from ..training import state

    one.state, begun = "planned", state.newest(out)
    one.step = begun.step if begun else 0
    if missing:
        one.why = f"stands on {', '.join(missing)}: measured when that is trained"
        return
    say.note(f"{recipe.name}: measuring")
    result, _ = train_one(recipe, out, resume=False, dry_run=True, quiet=True)
    one.minutes = 60 * result.estimate["hours"] * (1 - one.step / recipe.steps)


# --- what stands on what ----------------------------------------------------------------------------------------------------


def in_order(wanted: Sequence[Recipe]) -> list[Recipe]:
    """Each after those that it stands on, else as they came. Raises ValueError for a name that comes twice, and for a circle."""
    by_name = {recipe.name: recipe for recipe in wanted}
    if len(by_name) < len(wanted):
        names = [recipe.name for recipe in wanted]
        raise ValueError(f"two recipes are called {next(n for n in names if names.count(n) > 1)!r}: each needs a folder of its own")
    placed: dict[str, Recipe] = {}

    def place(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            raise ValueError(f"recipes stand on each other: {' -> '.join([*way[way.index(name) :], name])}")
        if name not in placed:
            for other in _stands_on(by_name[name], by_name):
                place(other, (*way, name))
            placed[name] = by_name[name]

    for name in by_name:
        place(name, ())
    return list(placed.values())


def _stands_on(recipe: Recipe, names: Iterable[str]) -> list[str]:
    """The others whose panels this recipe takes. Its own name means the embedded model, as everywhere."""
    known = set(names) - {recipe.name}
    return list(dict.fromkeys(one.model for one in recipe.neighbours.values() if one.model in known and one.model is not None))


def _standing(recipe: Recipe, models: Mapping[str, Path]) -> Recipe:
    """With the runs' models in the places where the recipe names their recipes."""
    neighbours = {
        place: dataclasses.replace(one, model=str(models[one.model])) if one.model is not None and one.model in models else one
        for place, one in recipe.neighbours.items()
    }  # fmt: skip
    return dataclasses.replace(recipe, neighbours=neighbours)


# --- what was done ----------------------------------------------------------------------------------------------------------


def _card(recipe: Recipe, out: Path) -> dict[str, Any] | None:
    """Of the panel that a run has exported; None where it has not, or not whole."""
    place = checkpoint.place_of(recipe.panel)
    path = out / "model" / place / "card.json"
    if not path.is_file() or (place == "generator" and not (out / "model" / "triptych.json").is_file()):
        return None
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None
    return card if isinstance(card, dict) else None


def _is_finished(recipe: Recipe, out: Path) -> bool:
    """Trained to its end, and exported then. Raises ValueError where the folder holds another recipe's run.

    A model alone, its checkpoints thrown away, is enough if it is exactly this recipe's.
    """
    from ..training import Report, run_folder

    card = _card(recipe, out)
    if card is None or card.get("steps", 0) < recipe.steps:
        return False
    found = run_folder.look(recipe, out, True, Report(stream=io.StringIO()))
    if found is None and card.get("recipe") != to_mapping(recipe):
        raise ValueError(f"{out / 'model'} is another recipe's, and its checkpoints are gone; choose another --out")
    return found is None or found.step >= recipe.steps


def _read_card(recipe: Recipe, out: Path, one: Told) -> None:
    card = _card(recipe, out) or {}
    one.step, one.minutes = card.get("steps", 0), 60 * card.get("hours", 0.0)
    one.measures = {**card.get("held_out", {}), **card.get("judged", {})}
    one.expected = card.get("expected", [])
    one.model = str(out / "model")


def _forget_compiled() -> None:
    """What was compiled for one recipe's network must not count against the next one's: torch compiles a function a few times only."""
    if "torch._dynamo" in sys.modules:
        import torch

        torch.compiler.reset()


# --- telling ----------------------------------------------------------------------------------------------------------------


def _result(one: Told) -> str:
    return f"{one.minutes or 0.0:.1f} minutes, {_measure(one)}"


def _measure(one: Told) -> str:
    """What the recipe expects, else the first measure of all."""
    if one.expected:
        return "; ".join(one.expected)
    name, value = next(iter(one.measures.items()), ("", None))
    return f"{name} {value:.4g}" if value is not None else "not measured"


def table(told: Sequence[Told]) -> str:
    """name, state, steps, pictures, minutes, measure."""
    rows = [("name", "state", "steps", "pictures", "minutes", "")]
    for one in told:
        steps = f"{one.step} of {one.steps}" if one.step not in (0, one.steps) else str(one.steps)
        minutes = "-" if one.minutes is None else f"{one.minutes:.1f}"
        last = one.why or (_measure(one) if one.measures or one.expected else "")
        rows.append((one.name, one.state, steps, f"{one.pictures:,}", minutes, last))
    widths = [max(len(row[i]) for row in rows) for i in range(5)]
    right = (False, False, True, True, True)
    lines = [[cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(row, widths, right, strict=False)] + [row[5]] for row in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)
