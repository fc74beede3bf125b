"""What `triptych train own` does around the trainer: a word for what the pictures show, pictures of what must not be forgotten, and a
sheet of before and after.

    RUN/prior/               what the model drew, before it learnt anything, for --prior; learnt beside the person's own pictures
    RUN/before-after.png     the same words and seeds, drawn by the model as it was and as it is
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..recipe import Data, Recipe, Source
from . import say
from .errors import blame

if TYPE_CHECKING:
    from ..data.index import Dataset
    from ..training import Result

__all__ = ["before_after", "told_what_to_show", "with_prior", "with_trigger"]

ANCHOR = "a red apple"  # what every model here has seen: does it still draw what it could before?
SHOWN = 3  # captions of the person's own, on the sheet


def with_trigger(recipe: Recipe, trigger: str | None) -> Recipe:
    """Every source that is a folder says the word. Raises ValueError for a recipe without one."""
    if not trigger:
        return recipe
    sources = tuple(_with(one, trigger=trigger) if one.name == "folder" else one for one in recipe.data.sources)
    if sources == recipe.data.sources:
        raise ValueError(f"--trigger {trigger!r}: recipe {recipe.name!r} learns from no folder of pictures; give one by --data")
    return _of_sources(recipe, sources)


def with_prior(recipe: Recipe, out: Path, prompts: Sequence[str], count: int, *, init: str | None, dry_run: bool) -> Recipe:
    """Half of what is learnt are pictures that the model draws itself for these prompts (prior preservation, DreamBooth, arXiv 2208.12242,
    section 3.2), so that it does not forget what they are. They are drawn once, into out/prior; what is there already is kept.

    prompts: "@FILE" stands for the lines of a file.
    """
    if not prompts:
        return recipe
    prompts = [line for one in prompts for line in (_lines(one[1:]) if one.startswith("@") else [one])]
    folder, own = out / "prior", sum(one.weight for one in recipe.data.sources)
    model = init or recipe.init
    if model is None:
        raise ValueError("--prior: pictures are drawn by the model that is trained on; give --init MODEL")
    if not dry_run:
        _draw(folder, model, prompts, count)
    prior = Source(name="folder", weight=own, options={"path": str(folder), "form": "sidecars"})
    return recipe if dry_run else _of_sources(recipe, (*recipe.data.sources, prior))


def _lines(file: str) -> list[str]:
    try:
        found = [line.strip() for line in Path(file).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ValueError(f"--prior @{file}: {why}; a file of prompts has one a line") from None
    if not found:
        raise ValueError(f"--prior @{file} holds no prompt; a file of prompts has one a line")
    return found


def _draw(folder: Path, model: str, prompts: Sequence[str], count: int) -> None:
    """Picture k is prompt k of the list, round and round, with seed k: what a kill left out is drawn by the next run."""
    from .. import pipeline
    from . import pictures

    wanted = [k for k in range(count) if not (folder / f"{k:05}.txt").exists()]
    if not wanted:
        return
    with blame("bad_checkpoint", f"model {model}"):
        drawer = pipeline.load(model)
    folder.mkdir(parents=True, exist_ok=True)
    with say.bar("drawing what must not be forgotten") as bar:
        for first in range(0, len(wanted), 16):
            some = wanted[first : first + 16]
            drawn = drawer.generate([prompts[k % len(prompts)] for k in some], seeds=some)
            for k, picture in zip(some, drawn, strict=True):
                path = folder / f"{k:05}.png"
                path.unlink(missing_ok=True)  # which has no words yet: a kill came between
                pictures.write(picture, path, None)
                path.with_suffix(".txt").write_text(prompts[k % len(prompts)], encoding="utf-8")
            bar.update((first + len(some)) / len(wanted), "drawing what must not be forgotten")
    say.note(f"{folder}: {count} pictures of what must not be forgotten")


def told_what_to_show(recipe: Recipe, dataset: Dataset) -> Recipe:
    """Prompts of the previews, where the recipe has none: a few of the person's captions, and one of what the model knew before."""
    if recipe.preview_prompts or recipe.name != "own":
        return recipe
    words = getattr(dataset.sources[0], "words", None)  # the person's own come first, and what must not be forgotten behind it
    own = list(dict.fromkeys(text for i in range(200) if words and (text := words(0, i))))[:SHOWN]
    return dataclasses.replace(recipe, preview_prompts=(*own, ANCHOR)) if own else recipe


def before_after(recipe: Recipe, result: Result) -> Path | None:
    """The sheet, of the run's first and last previews, which have the same words and seeds; None where there are not both."""
    from ..data.sheet import sheet

    first, last = (result.out / "previews" / f"step-{step:06d}.png" for step in (0, result.step))
    if result.step == 0 or not (first.is_file() and last.is_file()) or not recipe.preview_prompts:
        return None
    before, after = (_cut(path, len(recipe.preview_prompts)) for path in (first, last))
    cells = [(text, [a, b]) for text, a, b in zip(recipe.preview_prompts, before, after, strict=True)]
    path = result.out / "before-after.png"
    sheet(cells, columns=2, side=max(128, before[0].shape[-1])).save(path)
    return path


def _cut(strip: Path, count: int) -> list[torch.Tensor]:
    """The pictures of a strip, [3, H, W] in [-1, 1] each."""
    from PIL import Image

    from ..data.index import as_images

    with Image.open(strip) as opened:
        (pixels,) = as_images([opened.convert("RGB")])
    return list(pixels.chunk(count, dim=2))


def _with(source: Source, **options: Any) -> Source:
    return dataclasses.replace(source, options={**source.options, **options})


def _of_sources(recipe: Recipe, sources: tuple[Source, ...]) -> Recipe:
    data: Data = dataclasses.replace(recipe.data, sources=sources)
    return dataclasses.replace(recipe, data=data)
