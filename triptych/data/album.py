"""Everything that a person has in a place, in whatever form, as one index: looked at once, then kept in the cache folder.

    album = Album(root, Reading())
    album.count, album.faults               what can be used, what cannot, and why
    album[i]                                -> Picture: captions, size, where its bytes stand
    album.bytes(i)

Each picture is unpacked once, so that what is damaged is known before a training begins. The order is that of the pictures' content: the
same pictures in another form are the same album. The index is a SQLite file, of which as much is in memory as is being read, be it of a
thousand pictures or of a hundred thousand; it holds as long as no file of the place is added, removed or changed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sqlite3
import sys
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import forms
from .forms import Fault, Found, Reading
from .index import stable_hash
from .picture import seen
from .store import cache_folder

__all__ = ["BROKEN_AT_MOST", "Album", "Picture"]

SCHEMA = 4
BROKEN_AT_MOST = 0.01  # a share: more, and something is wrong with the place, not with a file
AT_ONCE = 256  # pictures that are being looked at, by all threads together
HELD_OUT = 5  # of a hundred


class Picture(NamedTuple):
    """One picture of an album. digest: of its bytes. width, height: upright. kind, look: of `picture.Seen`. held: never learnt from."""

    name: str
    captions: tuple[str, ...]
    digest: str
    width: int
    height: int
    kind: str
    look: int
    held: bool
    file: str
    offset: int
    size: int


_COLUMNS = "name, captions, digest, width, height, kind, look, held, file, offset, size"  # of Picture, in its order
_TABLES = f"""
create table about (key text primary key, value text);
create table found ({_COLUMNS});
create table pictures (id integer primary key, {_COLUMNS});
create table faults (name text, reason text, counts integer);
"""
_SORT = f"""
insert into pictures ({_COLUMNS}) select {_COLUMNS} from found order by held, digest, captions, name;
drop table found;
"""


class Album:
    """root: a folder, or one .tar or .parquet file.  form: what it turned out to be.  faults: at most `named` of them, `wrong` in all.

    Pictures 0 ... learnt - 1 are to be learnt from, the rest, one in twenty by a hash of its content, is held out.
    Raises ValueError for a place where nothing can be used, and where more than one in a hundred pictures cannot.
    """

    def __init__(self, root: str | Path, how: Reading, *, strict: bool = True, named: int = 1000) -> None:
        self.root, self.how = Path(root).expanduser(), how
        self.form = forms.form_of(self.root, how)
        path = self._index()
        self._lock = threading.Lock()
        self._base = _read_only(path)
        self.count, self.learnt = self._one("select count(*), coalesce(sum(1 - held), 0) from pictures")
        (self.wrong,) = self._one("select coalesce(sum(counts), 0) from faults")
        faults = self._all("select * from faults order by name limit ?", named)
        self.faults = [Fault(os.fsdecode(name), why, bool(counts)) for name, why, counts in faults]
        self.fingerprint = str(self._one("select value from about where key = 'fingerprint'")[0])
        if not self.count and not self.wrong:
            raise ValueError(f"{self.root} holds no picture")
        if strict and self.wrong > BROKEN_AT_MOST * (self.count + self.wrong):
            said = forms.some([f"{fault.name} ({fault.reason})" for fault in self.faults if fault.counts])
            of = f"{self.wrong} of {self.count + self.wrong} pictures"
            raise ValueError(f"{self.root}: {of} cannot be used: {said}; replace or remove them")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> Picture:
        return _picture(self._one(f"select {_COLUMNS} from pictures where id = ?", i + 1))

    def bytes(self, i: int) -> bytes:
        """Raises ValueError with the reason, for a picture that is gone since, or another one now."""
        one = self[i]
        data = forms.read(self.root, one.file, one.offset, one.size)
        if _digest(data) != one.digest:
            raise ValueError("it is not the picture any more that was looked at")
        return data

    def captions(self, i: int) -> tuple[str, ...]:
        return tuple(json.loads(self._one("select captions from pictures where id = ?", i + 1)[0]))

    def sizes(self) -> np.ndarray:
        """(width, height) of each, int32 [N, 2]."""
        found = np.empty((self.count, 2), dtype=np.int32)
        with self._lock:
            for i, pair in enumerate(self._base.execute("select width, height from pictures order by id")):
                found[i] = pair
        return found

    def each(self) -> Iterator[Picture]:
        """All, in order."""
        for first in range(1, self.count + 1, AT_ONCE):
            question = f"select {_COLUMNS} from pictures where id between ? and ? order by id"
            yield from map(_picture, self._all(question, first, first + AT_ONCE - 1))

    def _one(self, question: str, *values: object) -> tuple:
        with self._lock:
            found = self._base.execute(question, values).fetchone()
        if found is None:
            raise IndexError(f"{self.root}: no picture {values}")
        return found

    def _all(self, question: str, *values: object) -> list[tuple]:
        with self._lock:
            return self._base.execute(question, values).fetchall()

    # --- looking ---

    def _index(self) -> Path:
        """The index's file; made where there is none that tells of this place as it is."""
        said = json.dumps([SCHEMA, str(self.root.resolve()), self.form, dataclasses.asdict(self.how)])
        path = cache_folder() / f"album-{hashlib.blake2b(said.encode(), digest_size=12).hexdigest()}.sqlite"
        stamp = self._stamp()
        if _stamp_in(path) == stamp:
            return path
        half = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            half.unlink(missing_ok=True)
            self._look(half, stamp)
            half.replace(path)
        except (OSError, sqlite3.OperationalError) as error:
            way_out = "set XDG_CACHE_HOME to a folder that can"
            raise ValueError(f"{path.parent} cannot hold the index of {self.root} ({error}); {way_out}") from None
        finally:
            half.unlink(missing_ok=True)
        return path

    def _stamp(self) -> str:
        """Of names, sizes and times of all files on which the index depends."""
        made = hashlib.blake2b(digest_size=16)
        for path in forms.files(self.root, self.how):
            stat, name = path.stat(), path.name if self.root.is_file() else path.relative_to(self.root)
            made.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return made.hexdigest()

    def _look(self, path: Path, stamp: str) -> None:
        base = sqlite3.connect(path)
        try:
            base.executescript(_TABLES)
            with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
                found = forms.find(self.root, self.how)
                done, named = 0, f"looking at the pictures of {self.root}"
                while some := list(islice(found, AT_ONCE)):
                    for one in pool.map(self._seen, some):
                        if isinstance(one, Fault):
                            base.execute("insert into faults values (?, ?, ?)", (os.fsencode(one.name), one.reason, int(one.counts)))
                        else:
                            base.execute(f"insert into found values ({', '.join('?' * len(one))})", one)
                    done += len(some)
                    _progress(named, done, last=len(some) < AT_ONCE)
            if not base.execute("select 1 from found where held limit 1").fetchone():  # few pictures: one of them is held out
                base.execute(
                    "update found set held = 1 where digest = (select digest from found order by digest limit 1) "
                    "and (select count(distinct digest) from found) > 1"
                )
            base.executescript(_SORT)
            made = hashlib.blake2b(digest_size=12)
            for row in base.execute("select digest, captions from pictures order by id"):
                made.update("\0".join(row).encode())
            base.executemany("insert into about values (?, ?)", [("stamp", stamp), ("fingerprint", made.hexdigest())])
            base.commit()
        finally:
            base.close()

    def _seen(self, one: Found | Fault) -> tuple | Fault:
        """A row of the index; or why there is none."""
        if isinstance(one, Fault):
            return one
        try:
            data = forms.read(self.root, one.file, one.offset, one.size)
            if one.check >= 0 and zlib.crc32(data) != one.check:
                return Fault(one.name, f"at {one.offset}: it does not have the checksum of the index, it was damaged")
            told = seen(data)
        except ValueError as error:
            return Fault(one.name, f"at {one.offset}: {error}" if one.size >= 0 else str(error))
        digest = _digest(data)
        held, captions = stable_hash("folder", digest) % 100 < HELD_OUT, json.dumps(one.captions, ensure_ascii=False)
        return os.fsencode(one.name), captions, digest, *told, int(held), os.fsencode(one.file), one.offset, one.size


def _picture(row: tuple) -> Picture:
    found = Picture._make(row)
    names = {"name": os.fsdecode(found.name), "file": os.fsdecode(found.file)}  # not all names are letters
    return found._replace(**names, captions=tuple(json.loads(row[1])), held=bool(found.held))


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, check_same_thread=False)


def _stamp_in(path: Path) -> str:
    """ "" for an index that is not there, or damaged."""
    try:
        base = _read_only(path)
        try:
            found = base.execute("select value from about where key = 'stamp'").fetchone()
        finally:
            base.close()
    except sqlite3.Error:
        return ""
    return found[0] if found else ""


def _progress(what: str, done: int, last: bool) -> None:
    if sys.stderr.isatty() and (done > AT_ONCE or not last):
        print(f"\r{what}, once: {done}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif not sys.stderr.isatty() and done == 10 * AT_ONCE:
        print(f"{what}, once", file=sys.stderr, flush=True)
