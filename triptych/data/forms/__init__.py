"""The forms in which people have pictures with words, each read as one list of what is there, by a file of this folder.

    sidecars   a.jpg beside a.txt or a.caption                                       loose.py
    classes    dog/x.png, and a template: "a photo of a {class}"                     loose.py
    pictures   pictures alone                                                        loose.py
    table      metadata.jsonl, .csv or .parquet with file_name (HF imagefolder)      tables.py
    kohya      one JSON of path -> {caption, tags}                                   tables.py
    coco       one JSON of images and annotations with captions                      tables.py
    shards     WebDataset: tar files of key.jpg with key.txt or key.json             shards.py
    parquet    rows with the picture's own bytes, as `datasets` writes               rows.py

Nothing is unpacked that is no picture or text, nothing is run, no link is followed out of the folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..picture import MOST_BYTES, SUFFIXES

__all__ = [
    "FORMS", "TABLES", "Fault", "Found", "Reading", "as_json", "column_of", "files", "find", "form_of", "inside", "one_line", "read",
    "said", "some", "walk",
]  # fmt: skip

FORMS = ("sidecars", "classes", "pictures", "table", "kohya", "coco", "shards", "parquet")
TABLES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
COLUMNS = ("text", "caption", "captions", "prompt", "description")  # of captions, where none is named; the first that is there


class Found(NamedTuple):
    """A picture as its form names it, before anybody looked at it.

    name: as a person finds it, "/" between folders, a member or row behind its file.  captions: none where there are pictures alone.
    file: below the root.  offset, size: where its bytes stand in the file; size -1: the file is the picture; -2: offset is a row.
    check: of the bytes (zlib.crc32), where somebody wrote it down, else -1.
    """

    name: str
    captions: tuple[str, ...]
    file: str
    offset: int = 0
    size: int = -1
    check: int = -1


class Fault(NamedTuple):
    """What cannot be used, and why. `counts`: it stands for a picture that somebody meant."""

    name: str
    reason: str
    counts: bool = True


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a folder is to be read.

    form: one of FORMS, "" = told by what is there.  captions: False = pictures alone, whatever stands beside them.
    lines: each line of a sidecar is a caption of its own, not a part of one.  column: of a table or a JSON, that holds the captions.
    template: of class folders; {class} becomes the folder's name.
    """

    form: str = ""
    captions: bool = True
    lines: bool = False
    column: str = ""
    template: str = "a photo of a {class}"

    def __post_init__(self) -> None:
        if self.form and self.form not in FORMS:
            from ...catalog import nearest

            raise ValueError(f"no form {self.form!r}; {nearest(self.form, FORMS)}")
        if "{class}" not in self.template:
            raise ValueError(f"template {self.template!r} does not say where the class goes; write {{class}} there")


def form_of(root: Path, how: Reading) -> str:
    """The form of what is there. Raises ValueError where there is nothing, with what was looked for."""
    if how.form:
        return how.form
    if root.is_file():
        known = {".tar": "shards", ".parquet": "parquet"}
        if root.suffix not in known:
            raise ValueError(f"{root} is a file of no form that is read here; give a folder, a .tar or a .parquet")
        return known[root.suffix]
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give the source's option 'path' a folder of pictures")
    there = sorted(path.name for path in root.iterdir() if path.is_file())
    if how.captions and any(name in TABLES for name in there):
        return "table"
    if any(name.endswith(".tar") for name in there):
        return "shards"
    if any(name.endswith(".parquet") and name not in TABLES for name in there):
        return "parquet"
    if not how.captions:
        return "pictures"
    if not any(name.endswith((".txt", ".caption")) for name in there):
        from .tables import kind_of

        for name in there:
            if name.endswith(".json") and (kind := kind_of(root / name)):
                return kind
    return "sidecars"


def find(root: Path, how: Reading) -> Iterator[Found | Fault]:
    """All that is there. Raises ValueError for what no picture can be had from: a broken table, a caption that nobody wrote."""
    from . import loose, rows, shards, tables

    readers = {
        "sidecars": loose.sidecars, "classes": loose.classes, "pictures": loose.pictures, "table": tables.table, "kohya": tables.kohya,
        "coco": tables.coco, "shards": shards.find, "parquet": rows.find,
    }  # fmt: skip
    return readers[form_of(root, how)](root, how)


def files(root: Path, how: Reading) -> Iterator[Path]:
    """The files on which the list depends, in a fixed order: while none of them changes, neither does it."""
    form = form_of(root, how)
    if root.is_file():
        yield root
    elif form in ("shards", "parquet"):
        yield from sorted(path for path in root.rglob(f"*.{'tar' if form == 'shards' else 'parquet'}") if path.is_file())
    else:
        yield from walk(root, (*SUFFIXES, ".txt", ".caption", ".json", ".jsonl", ".csv", ".parquet"))


def read(root: Path, file: str, offset: int, size: int) -> bytes:
    """A picture's bytes. Raises ValueError with the reason: gone, or shorter than it was."""
    from . import rows

    path = root if root.is_file() else root / file
    try:
        if size == -2:
            return rows.read(path, offset)
        with open(path, "rb") as opened:
            if size == -1:
                if (many := os.fstat(opened.fileno()).st_size) > MOST_BYTES:
                    raise ValueError(f"{many} bytes are more than {MOST_BYTES}")
                return opened.read()
            opened.seek(offset)
            data = opened.read(size)
    except FileNotFoundError:
        raise ValueError("it is gone") from None
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from None
    if len(data) < size:
        raise ValueError(f"its file ends {size - len(data)} bytes too early")
    return data


# --- what the forms share ---------------------------------------------------------------------------------------------------


def walk(root: Path, endings: Sequence[str]) -> Iterator[Path]:
    """The files below with one of these endings, folder by folder, by name. Links to folders, which may go round in circles, and links
    that lead out are not followed."""
    here = root.resolve()
    for path in sorted(root.iterdir(), key=lambda one: one.name):
        linked = path.is_symlink()
        if path.is_dir():
            if not linked:
                yield from walk(path, endings)
        elif path.suffix.lower() in endings and not (linked and not path.resolve().is_relative_to(here)):
            yield path


def inside(root: Path, name: str, where: str) -> str:
    """The name with "/" between its parts. Raises ValueError for one that leads out of the folder, or is no picture's."""
    parts = PurePosixPath(name.replace("\\", "/"))
    outside = parts.is_absolute() or ":" in name or ".." in parts.parts or not name.strip()
    if outside or not (root / parts).resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{where}: file_name {name!r} leads out of {root}; only files inside it are read")
    if parts.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{where}: {name!r} is no picture that is read here ({', '.join(SUFFIXES)})")
    return parts.as_posix()


def one_line(text: str) -> str:
    """With single spaces; what is half a letter, as JSON can hold it, is a question mark."""
    return " ".join(text.encode("utf-8", "replace").decode().split())


def said(value: Any) -> tuple[str, ...]:
    """Captions from a column: a text, or a list of them. () where it says nothing."""
    given = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else []
    return tuple(text for one in given if isinstance(one, str) and (text := one_line(one)))


def column_of(names: Iterable[str], wanted: str, where: str) -> str:
    """The column of captions. Raises ValueError with those that are there."""
    names = list(names)
    if wanted:
        if wanted not in names:
            raise ValueError(f"{where} has no column {wanted!r}; there are: {', '.join(names)}")
        return wanted
    found = next((name for name in COLUMNS if name in names), None)
    if found is None:
        raise ValueError(f"{where} has none of the columns {', '.join(COLUMNS)}; name the one that holds captions by the option 'column'")
    return found


def as_json(data: bytes | str, where: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {getattr(error, 'msg', error)}") from None


def some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
