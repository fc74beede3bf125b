"""What a run writes beside its checkpoints: recipe, metrics, previews; and what a resume must find unchanged.

RUN/recipe.yaml  metrics.jsonl  previews/step-000500.png  checkpoints/step-000500/  model/<place>/  [lora/  best/<place>/  judged.svg]
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triptych import checkpoint
from triptych.recipe import Recipe, to_mapping, to_yaml

from . import state
from .expect import check
from .report import Metrics, Report

if TYPE_CHECKING:
    from .run import Run

__all__ = ["begin", "card", "facts", "keep_best", "look", "save_strip", "settle_best"]

_FREE = {  # fields that may change at a resume: they look at the run or name it, and do not steer it
    "name", "init", "save_every", "keep", "validate_every", "preview_every", "preview_prompts", "sampling", "judges",
    "judge_every", "judge_pictures", "eyes", "detector", "expect",
}  # fmt: skip


def look(recipe: Recipe, out: Path, resume: bool, report: Report) -> state.Checkpoint | None:
    """The checkpoint to go on from, None to start.

    Raises ValueError if `out` holds a run and nobody said resume, BadCheckpoint if it holds another recipe's.
    """
    found = state.newest(out, verify=resume, say=report.say)
    if found is None:
        if resume:
            report.say(f"{out} holds no whole checkpoint: starting from the beginning")
        return None
    if not resume:
        raise ValueError(f"{out} holds a run that reached step {found.step}; go on with --resume, or choose another --out")
    _same(found, recipe)
    for what, value in (("torch", torch.__version__), ("threads", torch.get_num_threads())):
        if found.facts[what] != value:
            report.say(f"{what} was {found.facts[what]}, is {value}: the last bits may differ from an uninterrupted run's")
    return found


def begin(run: Run, out: Path, found: state.Checkpoint | None) -> Metrics:
    """Take up `found`; returns the metrics, cut back to where the run goes on. Raises DiskFull if what is to come does not fit."""
    if found:
        run.restore(found)
        run.report.say(f"resumed at step {run.step} from {found.folder}")
    if run.judged:
        run.judged.begin(run, out, found.facts if found else None)
    kept = sum(sum(c.sizes.values()) for c in state.complete(out))
    state.check_space(out, max(run.checkpoint_bytes() * (run.recipe.keep + 1) - kept, 0))
    checkpoint.write_atomically(out / "recipe.yaml", to_yaml(run.recipe).encode())
    return Metrics(out / "metrics.jsonl", upto=run.step if found else -1)


def _same(found: state.Checkpoint, recipe: Recipe) -> None:
    """Nothing that steers a run may change, but for its end: while the learning rate is flat before and after the change, the
    number of steps and the decay are still to be chosen."""
    before, now = _flat(found.facts["recipe"]), _flat(_steering(recipe))
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    if {*differing} <= {"steps", "optimizer.decay", "optimizer.warmup"} and all(_flat_at(found.step, r) for r in (before, now)):
        return
    if differing:
        said = ", ".join(f"{key} was {before.get(key)!r}, is {now.get(key)!r}" for key in differing[:5])
        raise state.BadCheckpoint(f"{found.folder} is another recipe's run: {said}; set it back, or choose another --out")


def _flat_at(step: int, recipe: dict[str, Any]) -> bool:
    steps, warmup, decay = (recipe[key] for key in ("steps", "optimizer.warmup", "optimizer.decay"))
    return warmup * steps <= step < (1 - decay) * steps


def _steering(recipe: Recipe) -> dict[str, Any]:
    return {key: value for key, value in to_mapping(recipe).items() if key not in _FREE}


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for key, one in items for k, v in _flat(one, f"{path}.{key}" if path else str(key)).items()}
    return {} if value in ([], {}) else {path: value}  # nothing said, and a field that was not there yet, are the same


def facts(run: Run) -> dict[str, Any]:
    """What a checkpoint remembers beside its tensors. The data's position is the step."""
    return {
        "recipe": _steering(run.recipe), "init": run.init, "frozen": run.frozen, "phases": list(run.phases), "skipped": run.skipped,
        "in_a_row": run.in_a_row, "seconds": run.seconds, "validation": run.validation, "torch": torch.__version__,
        "threads": torch.get_num_threads(), "judged": run.judged.facts() if run.judged else None,
    }  # fmt: skip


def card(run: Run) -> dict[str, Any]:
    """How the panel was made, for its card."""
    return {
        "recipe": to_mapping(run.recipe), "steps": run.step, "examples": run.step * run.recipe.batch, "skipped": run.skipped,
        "hours": round(run.seconds / 3600, 4), "hardware": f"{run.device}, {torch.get_num_threads()} threads, {platform.machine()}",
        "precision": "bf16" if run.bf16 else "float32", "torch": torch.__version__, "held_out": run.validation,
        **({"judged": {k: v if math.isfinite(v) else None for k, v in run.judged.scores.items()}} if run.judged else {}),
        "expected": [str(one) for one in check(run.recipe.expect, run.measured)],
    }  # fmt: skip


def keep_best(out: Path, write: Callable[[Path], None], record: Mapping[str, Any]) -> None:
    """`write(folder)` makes a new RUN/best, which takes the place of the old one when it is whole; `record` becomes its judged.json."""
    new, old, best = _best(out)
    shutil.rmtree(new, ignore_errors=True)
    try:
        write(new)
        checkpoint.write_atomically(new / "judged.json", (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        if best.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(best, old)
        os.rename(new, best)  # between the two the old one is whole, and `settle_best` gives it back its name
        state._sync_folder(out)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def settle_best(out: Path, *, fresh: bool) -> dict[str, Any] | None:
    """What a kill has left of `keep_best` is put in order. Returns the record of RUN/best, None if there is none.

    fresh: a run begins here, and what another one kept goes.
    """
    new, old, best = _best(out)
    shutil.rmtree(new, ignore_errors=True)
    if old.exists() and not best.exists():
        os.rename(old, best)
    shutil.rmtree(old, ignore_errors=True)
    try:
        record = json.loads((best / "judged.json").read_bytes())
    except (OSError, ValueError):
        return None
    if fresh:
        shutil.rmtree(best)
        return None
    return record


def _best(out: Path) -> tuple[Path, Path, Path]:
    return out / ".best.new", out / ".best.old", out / "best"


def save_strip(images_BCHW: Tensor, path: Path) -> None:
    """Pictures in [-1, 1] side by side, as one PNG."""
    import io

    from PIL import Image

    pixels = ((images_BCHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
    strip = torch.cat(list(pixels.permute(0, 2, 3, 1)), dim=1).numpy()
    data = io.BytesIO()
    Image.fromarray(strip if strip.shape[-1] == 3 else strip[..., 0]).save(data, "png")
    checkpoint.write_atomically(path, data.getvalue())
