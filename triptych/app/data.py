"""`triptych data build|show|check`, and what a SPEC says: "emoji", "scenes", "emoji:3,scenes:1", or a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import data, recipe
from ..catalog import nearest
from . import pictures, say
from .errors import Failure, blame

if TYPE_CHECKING:
    from ..data.index import Dataset

__all__ = ["open_split", "parse_data_spec", "run_build", "run_check", "run_show", "sources_of"]


def parse_data_spec(text: str, size: int) -> recipe.Data:
    """ "emoji:2,scenes:1" -> the mixture, with pictures of side `size`. A part is a source's name or a folder, ":" its weight.

    Raises ValueError for a part that is neither, with the nearest right name, and for a weight that is not above 0.
    """
    sources = sources_of(text)
    return recipe.Data(sources=sources, size=0 if all(source.name == "texts" for source in sources) else size)


def sources_of(text: str) -> tuple[recipe.Source, ...]:
    """The sources that a SPEC names; see `parse_data_spec`."""
    if Path(text).is_dir() and text not in data.SOURCES:  # a folder's name may hold commas and colons
        return (_source(text, 1.0),)
    sources = []
    for part in text.split(","):
        name, colon, tail = part.strip().rpartition(":")
        weight = _number(tail) if colon else None
        if weight is None:
            name, weight = part.strip(), 1.0
        if not 0 < weight < 1e9:
            raise ValueError(f"data {part.strip()!r}: a weight is a number above 0")
        sources.append(_source(name, weight))
    return tuple(sources)


def _source(name: str, weight: float) -> recipe.Source:
    if name in data.SOURCES and name != "folder":
        return recipe.Source(name=name, weight=weight)
    if name and Path(name).is_dir():
        return recipe.Source(name="folder", weight=weight, options={"path": name})
    named = [source for source in data.SOURCES if source != "folder"]
    raise ValueError(f"data {name!r} is neither a folder here nor a source; {nearest(name, named)}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def run_build(spec: str, size: int, as_json: bool) -> None:
    """Read every example of both splits once, which fills the caches."""
    begun, rows = time.perf_counter(), {}
    described = parse_data_spec(spec, size)
    for split in ("train", "held_out"):
        dataset = open_split(described, split)
        if dataset is None:
            rows[split] = 0
            continue
        rows[split] = min(len(dataset), 20_000)  # endless sources have no cache to fill
        with blame("bad_data", spec), say.bar(f"reading {split}", quiet=as_json) as bar:
            for n in range(rows[split]):
                dataset.row(0, n)
                bar.update((n + 1) / rows[split], f"reading {split}")
    seconds = round(time.perf_counter() - begun, 2)
    text = f"{spec} at {size} px: {rows['train']} examples to train on, {rows['held_out']} held out, read in {seconds} s"
    say.result({"spec": spec, "size": size, "examples": rows, "seconds": seconds}, text, as_json)


def run_show(spec: str, output: str | None, *, n: int, columns: int, seed: int, held_out: bool, size: int, as_json: bool) -> None:
    """Write a contact sheet; what is there already is not overwritten."""
    path = _free("sheet.png") if output is None else Path(output)
    if path.exists():
        raise ValueError(f"{path} is there already and nothing is overwritten; give another -o")
    if path.suffix.lower() not in pictures.SUFFIXES:
        raise ValueError(f"-o {path}: cannot write {path.suffix or 'a file without a suffix'}; there are: {', '.join(pictures.SUFFIXES)}")
    dataset = open_split(parse_data_spec(spec, size), "held_out" if held_out else "train")
    if dataset is None:
        raise Failure("bad_data", f"{spec} holds nothing in the held-out split; leave --held-out away")
    with blame("bad_data", spec):
        batch = dataset.examples(n, seed=seed)
        sheet = data.contact_sheet(batch, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.write(sheet, path, None)
    captions = [prompt.text for prompt in batch.prompts]
    say.result({"path": str(path), "pictures": len(captions), "captions": captions, "size": list(sheet.size)}, str(path), as_json)


def run_check(spec: str, size: int, as_json: bool) -> None:
    """Counts as `data.describe` gives them."""
    described = parse_data_spec(spec, size)
    with blame("bad_data", spec):
        report = data.describe(described)
    say.result(report, _as_text(report), as_json)


def open_split(described: recipe.Data, split: Any) -> Dataset | None:
    """The dataset; None for a held-out split that is empty, as a small folder's may be."""
    with blame("bad_data"):
        try:
            return data.build(described, split=split)
        except ValueError as error:
            if split == "held_out" and "holds nothing in this split" in str(error):
                return None
            raise


def _free(name: str) -> Path:
    path, k = Path(name), 1
    while path.exists():
        k += 1
        path = path.with_name(f"{Path(name).stem}-{k}{path.suffix}")
    return path


def _as_text(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120).rstrip()
