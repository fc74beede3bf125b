"""Pictures made once: one uint8 array in the cache folder, memory-mapped ever after. The cache may be deleted at any time."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["Kept", "cache_folder", "kept", "stored"]


class Kept(NamedTuple):
    """A file of the cache folder. used: when it was last read or made, seconds since 1970."""

    name: str
    size: int
    used: float


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/triptych, or ~/.cache/triptych."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "triptych"


def kept() -> list[Kept]:
    """All files of the cache folder, the largest first."""
    found = []
    for path in cache_folder().rglob("*") if cache_folder().is_dir() else ():
        if path.is_file():
            stat = path.stat()
            found.append(Kept(path.relative_to(cache_folder()).as_posix(), stat.st_size, max(stat.st_atime, stat.st_mtime)))
    return sorted(found, key=lambda one: -one.size)


def stored(name: str, shape: tuple[int, ...], make: Callable[[int], np.ndarray], what: str) -> tuple[np.ndarray, dict[int, str]]:
    """(uint8 array of `shape`, why rows are blank). Row i is make(i); where that raises ValueError the row stays blank, its reason kept.

    name: must name the content, all of it: what is found under it is taken as it is.  what: said while it is made.
    Raises ValueError for a cache folder that cannot be written.
    """
    file = cache_folder() / f"{name}.npy"
    known = _mapped(file, shape)
    if known is None:
        try:
            _make(file, shape, make, what)
        except OSError as error:
            megabytes = int(np.prod(shape)) // 2**20 + 1
            way_out = f"{megabytes} MB are needed; set XDG_CACHE_HOME to a folder that has them"
            raise ValueError(f"{file.parent} cannot hold {what} ({error}): {way_out}") from None
        known = _mapped(file, shape)
        assert known is not None, file
    reasons = file.with_suffix(".json")
    return known, {int(i): why for i, why in json.loads(reasons.read_text()).items()} if reasons.exists() else {}


def _mapped(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        known = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None  # not there, or damaged: it is made again
    return known if known.shape == shape and known.dtype == np.uint8 else None


def _make(file: Path, shape: tuple[int, ...], make: Callable[[int], np.ndarray], what: str) -> None:
    """Written beside its place and then moved there, so that a half-written file is never read."""
    half, blank = file.with_name(f"{file.name}.{os.getpid()}.part"), {}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        out = np.lib.format.open_memmap(half, mode="w+", dtype=np.uint8, shape=shape)
        for i in range(shape[0]):
            try:
                out[i] = make(i)
            except ValueError as error:
                blank[i] = str(error)
            _progress(what, i + 1, shape[0])
        out.flush()
        del out
        file.with_suffix(".json").unlink(missing_ok=True)  # of an earlier time
        if blank:
            file.with_suffix(".json").write_text(json.dumps(blank))
        half.replace(file)
    finally:
        half.unlink(missing_ok=True)


def _progress(what: str, done: int, total: int) -> None:
    live = sys.stderr.isatty()
    if live and (done % 50 == 0 or done == total):
        print(f"\rmaking {what}, once: {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif not live and done == 1 and total >= 1000:
        print(f"making {what}, once: {total} of them", file=sys.stderr, flush=True)
