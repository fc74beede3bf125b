"""Captions in one file for all pictures: Hugging Face's metadata tables, kohya's JSON, COCO's captions."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from . import TABLES, Fault, Found, Reading, as_json, column_of, inside, one_line, said, some

__all__ = ["coco", "kind_of", "kohya", "table"]

READ_AT_ONCE = 2**30  # bytes of a table: more is no table of captions


def table(root: Path, how: Reading) -> Iterator[Found | Fault]:
    """metadata.jsonl, .csv or .parquet: file_name, and a column of captions. Raises ValueError that names line and file."""
    path = next((root / name for name in TABLES if (root / name).is_file()), None)
    if path is None:
        raise ValueError(f"{root} holds none of {', '.join(TABLES)}")
    column, count = how.column, 0
    for where, row in {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}[path.suffix](path):
        column = column or (column_of(row, "", where) if isinstance(row, dict) and any(row) else "text")
        name, captions = (row.get("file_name"), said(row.get(column))) if isinstance(row, dict) else (None, ())
        if not isinstance(name, str) or not captions:
            raise ValueError(f"{where} needs 'file_name' and {column!r}, neither empty")
        name = inside(root, name, where)
        count += 1
        yield Found(name, captions, name) if (root / name).is_file() else Fault(name, f"{where} names it, and it is not there")
    if not count:
        raise ValueError(f"{path} is empty")


def kind_of(path: Path) -> str:
    """ "coco", "kohya", or "" for a JSON that is neither."""
    try:
        if path.stat().st_size > READ_AT_ONCE:
            return ""
        value = as_json(path.read_bytes(), str(path))
    except (OSError, ValueError):
        return ""
    if not isinstance(value, dict):
        return ""
    if isinstance(value.get("images"), list) and isinstance(value.get("annotations"), list):
        return "coco"
    first = next(iter(value.values()), None)
    return "kohya" if isinstance(first, dict) and first.keys() & {"caption", "tags"} else ""


def kohya(root: Path, how: Reading) -> Iterator[Found | Fault]:
    """path, with or without its ending -> {caption, tags}; the caption, or where there is none the tags. `column` chooses."""
    path, value = _only(root, "kohya")
    for name, row in value.items():
        where = f"{path}: {name!r}"
        if not isinstance(row, dict):
            raise ValueError(f"{where} is no object of caption and tags")
        captions = said(row.get(how.column)) if how.column else said(row.get("caption")) or said(row.get("tags"))
        if not captions:
            raise ValueError(f"{where} has neither caption nor tags" if not how.column else f"{where} has no {how.column!r}")
        found = _resolved(root, name, where)
        yield Found(found, captions, found) if found else Fault(name, f"{path.name} names it, and it is not there")


def coco(root: Path, how: Reading) -> Iterator[Found | Fault]:
    """images[] and annotations[] {image_id, caption}: all captions of each picture, in the order of their ids."""
    path, value = _only(root, "coco")
    captions: dict[Any, list[tuple[int, str]]] = {}
    for i, one in enumerate(value["annotations"]):
        where = f"{path}: annotations.{i}"
        if not isinstance(one, dict) or not isinstance(text := one.get(how.column or "caption"), str):
            raise ValueError(f"{where} has no {how.column or 'caption'!r}; a file of captions is needed, not one of boxes")
        if text := one_line(text):
            captions.setdefault(one.get("image_id"), []).append((one.get("id", i), text))
    for i, one in enumerate(value["images"]):
        where = f"{path}: images.{i}"
        name = one.get("file_name") if isinstance(one, dict) else None
        if not isinstance(name, str):
            raise ValueError(f"{where} has no file_name")
        name = inside(root, name, where)
        name = name if (root / name).is_file() else f"images/{name}"
        known = tuple(text for _, text in sorted(captions.get(one.get("id"), [])))
        if not (root / name).is_file():
            yield Fault(name, f"{where} names it, and it is not there")
        else:
            yield Found(name, known, name) if known else Fault(name, f"no caption: no annotation of {path.name} says anything of it")


def _only(root: Path, kind: str) -> tuple[Path, dict[str, Any]]:
    found = [path for path in sorted(root.glob("*.json")) if kind_of(path) == kind]
    if len(found) != 1:
        names = some([path.name for path in found]) or "none"
        raise ValueError(f"{root} must hold one JSON of this form ({kind}), and there are: {names}")
    return found[0], as_json(found[0].read_bytes(), str(found[0]))


def _resolved(root: Path, name: str, where: str) -> str:
    """kohya's keys are paths of any machine, often absolute and without an ending: what counts is what is below the root, or ""."""
    from ..picture import SUFFIXES

    parts = name.replace("\\", "/").split("/")
    for first in range(len(parts)):
        below = "/".join(parts[first:])
        for ending in ("", *SUFFIXES):
            if Path(below + ending).suffix.lower() in SUFFIXES and ".." not in parts and (root / (below + ending)).is_file():
                return inside(root, below + ending, where)
    return ""


# --- rows -------------------------------------------------------------------------------------------------------------------


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield f"{path}:{number}", as_json(line, f"{path}:{number}")


def _csv(path: Path) -> Iterator[tuple[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(io.StringIO(lines.read()))
        for row in reader:
            yield f"{path}:{reader.line_num}", {name: value for name, value in row.items() if name}


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    from .rows import records

    for number, row in records(path):
        yield f"{path}: row {number}", row
