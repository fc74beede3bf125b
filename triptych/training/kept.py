"""What frozen panels make of a picture or of a text, kept in the cache folder, so that no run makes it twice.

    latents = Kept("latents", module, room=2**30)
    z = latents.rows(keys, make)            # make(i) gives row i alone, as {name: tensor without a batch}

A row is found by its content and by the fingerprint of the panel that made it: a panel that learns, or another one, finds nothing of it.
It is made alone, so that it does not depend on the batch in which it came first. One SQLite file a panel; a row is a safetensors in it,
so that what a kill leaves is whole, two trainers may share it, and nothing in it can run. Beyond its room the rows that came first go.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors.torch import load, save
from torch import Tensor, nn

from triptych.data.store import cache_folder
from triptych.layers.fingerprint import fingerprint_tensors

__all__ = ["Kept", "Rows"]

Rows = Mapping[str, Tensor]
_TABLE = "create table if not exists rows (id integer primary key, key blob unique, bytes integer, checksum integer, row blob)"
SWEPT = 0.9  # of its room a file keeps when it has grown beyond it


class Kept:
    """what: of what these rows are, the first part of the file's name.  room: bytes of the file, 0 = nothing is kept.

    Raises ValueError where the cache folder cannot hold it.
    """

    def __init__(self, what: str, module: nn.Module | None, room: int) -> None:
        self.what, self.room, self._module = what, room, module
        self._base: sqlite3.Connection | None = None
        self._size = 0  # bytes of rows; of another trainer's only those that were there at the beginning
        self._lock = threading.Lock()

    def rows(self, keys: Sequence[str], make: Callable[[int], Rows]) -> list[Rows]:
        """The row of each key, made where it is not known. What cannot be kept, for the disk is full, is made all the same."""
        if not self.room:
            return [make(i) for i in range(len(keys))]
        with self._lock:
            base, found = self._opened(), []
            for i, key in enumerate(keys):
                named = hashlib.blake2b(key.encode(), digest_size=16).digest()
                row = _read(base, named)
                if row is None:
                    row = {name: tensor.detach().cpu().contiguous() for name, tensor in make(i).items()}
                    self._keep(base, named, save(row))
                found.append(row)
            self._settle(base)
        return found

    def _keep(self, base: sqlite3.Connection, named: bytes, data: bytes) -> None:
        try:
            values = (named, len(data), zlib.crc32(data), data)
            base.execute("insert or replace into rows (key, bytes, checksum, row) values (?, ?, ?, ?)", values)
            self._size += len(data)
        except sqlite3.OperationalError:  # a full disk, or another trainer holds it: what is not kept is made again
            base.rollback()

    def _settle(self, base: sqlite3.Connection) -> None:
        """What was made stays; beyond the room the first rows go."""
        try:
            if self._size > self.room:
                for number, size in base.execute("select id, bytes from rows order by id").fetchall():
                    if self._size <= SWEPT * self.room:
                        break
                    base.execute("delete from rows where id = ?", (number,))
                    self._size -= size
            base.commit()
        except sqlite3.OperationalError:
            base.rollback()

    def _opened(self) -> sqlite3.Connection:
        if self._base is None:
            path = self._path()
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._base = _connected(path)
                (self._size,) = self._base.execute("select coalesce(sum(bytes), 0) from rows").fetchone()
            except (OSError, sqlite3.Error) as error:
                way_out = "set XDG_CACHE_HOME to a folder that can, or task_options.cache to 0"
                raise ValueError(f"{path.parent} cannot keep {self.what} ({error}): {way_out}") from None
        return self._base

    def _path(self) -> Path:
        tensors = dict(self._module.state_dict()) if isinstance(self._module, nn.Module) else {}
        words = getattr(self._module, "assets", dict)().values()  # a tokenizer says as much as weights do
        kind = f"{type(self._module).__name__} {getattr(self._module, 'config', '')} {[zlib.crc32(one) for one in words]}"
        return cache_folder() / f"{self.what}-{fingerprint_tensors(tensors, kind)}.sqlite"


def _read(base: sqlite3.Connection, named: bytes) -> Rows | None:
    """None for a row that is not there, or not as it was written."""
    found = base.execute("select row, checksum from rows where key = ?", (named,)).fetchone()
    return load(found[0]) if found is not None and zlib.crc32(found[0]) == found[1] else None


def _connected(path: Path) -> sqlite3.Connection:
    """A file that is damaged is begun anew: nothing in it is worth more than the time to make it."""
    base = sqlite3.connect(path, check_same_thread=False, timeout=60)
    try:
        base.execute("pragma journal_mode = wal")
        base.execute("pragma synchronous = off")  # after a loss of power it may be damaged, and is begun anew
        base.execute("pragma auto_vacuum = full")
        base.execute(_TABLE)
        base.execute("select count(*) from rows").fetchone()
        return base
    except sqlite3.DatabaseError as error:
        base.close()
        if "locked" in str(error):
            raise
        path.unlink(missing_ok=True)
        base = sqlite3.connect(path, check_same_thread=False, timeout=60)
        base.execute(_TABLE)
        return base
