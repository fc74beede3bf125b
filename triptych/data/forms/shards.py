"""WebDataset: tar files whose members key.jpg, key.txt, key.json make one example. Read by an index of our own, without unpacking.

The index of SHARD.tar is written once beside it, SHARD.tar.index.json (in the cache folder where that cannot be written to): of each member
its name, offset, size and checksum. It gives random access, and it knows what a shard that was damaged later has lost.

A tar file is a row of blocks of 512 bytes; each member has a header with a checksum of its own. Where one is damaged, reading goes on at
the next block that is one. Links, devices, paths that lead out and endings that are neither picture nor text are passed over: nothing is
decoded by its ending, and nothing is unpacked onto the disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..picture import MOST_BYTES, SUFFIXES
from ..store import cache_folder
from . import Fault, Found, Reading, as_json, column_of, one_line, said

__all__ = ["Member", "find", "index_of"]

BLOCK = 512
TEXTS = (".txt", ".caption", ".json")
MOST_TEXT = 2**20
SCHEMA = 1


class Member(NamedTuple):
    """offset, size: of its content in the tar.  check: zlib.crc32 of it, -1 where it is cut off."""

    name: str
    offset: int
    size: int
    check: int


def find(root: Path, how: Reading) -> Iterator[Found | Fault]:
    """Every example of every shard, named SHARD/KEY.jpg; a fault for each that lacks its picture or its caption, is cut off or damaged."""
    every = [root] if root.is_file() else sorted(path for path in root.rglob("*.tar") if path.is_file())
    if not every:
        raise ValueError(f"{root} holds no .tar file")
    for shard in every:
        file = shard.name if root.is_file() else shard.relative_to(root).as_posix()
        members, faults = index_of(shard)
        for name, reason, counts in faults:
            yield Fault(f"{file}/{name}" if name else file, reason, counts)
        bad = {_key(name) for name, _, _ in faults if name}
        yield from _examples(shard, file, members, bad, how)


def _examples(shard: Path, file: str, members: Sequence[Member], bad: set[str], how: Reading) -> Iterator[Found | Fault]:
    """Members of one key, wherever they stand in the shard."""
    parts: dict[str, dict[str, Member]] = {}
    for member in members:
        parts.setdefault(_key(member.name), {})[PurePosixPath(member.name).suffix.lower()] = member
    with open(shard, "rb") as opened:
        for key, one in parts.items():
            picture = next((one[suffix] for suffix in SUFFIXES if suffix in one), None)
            if picture is None:
                if key not in bad and one.keys() & {".txt", ".caption"}:
                    yield Fault(f"{file}/{key}", f"has words and no picture ({', '.join(SUFFIXES)})")
                continue
            name = f"{file}/{picture.name}"
            if picture.check < 0:
                continue  # cut off: named already
            if picture.size > MOST_BYTES:
                yield Fault(name, f"{picture.size} bytes are more than {MOST_BYTES}")
                continue
            captions = ()
            if how.captions:
                try:
                    captions = _captions(opened, name, one, how)
                except ValueError as error:
                    yield Fault(name, str(error))
                    continue
                if not captions:
                    yield Fault(name, "has no words beside it (.txt, .caption or .json)")
                    continue
            yield Found(name, captions, file, picture.offset, picture.size, picture.check)


def _captions(opened: Any, name: str, one: dict[str, Member], how: Reading) -> tuple[str, ...]:
    texts = {suffix: _content(opened, one[suffix]) for suffix in TEXTS if suffix in one}
    for suffix in (".txt", ".caption"):
        if suffix in texts and not how.column:
            try:
                text = texts[suffix].decode("utf-8-sig")
            except UnicodeDecodeError as error:
                raise ValueError(f"its words are not UTF-8 ({error.reason} at byte {error.start})") from None
            return tuple(line for part in (text.splitlines() if how.lines else [text]) if (line := one_line(part)))
    if ".json" not in texts:
        return ()
    row = as_json(texts[".json"], "its .json")
    if not isinstance(row, dict):
        raise ValueError("its .json is no object")
    return said(row[column_of(row, how.column, "its .json")])


def _content(opened: Any, member: Member) -> bytes:
    if member.size > MOST_TEXT:
        raise ValueError(f"{member.size} bytes of words are more than {MOST_TEXT}")
    opened.seek(member.offset)
    data = opened.read(member.size)
    if zlib.crc32(data) != member.check:
        raise ValueError(f"its words ({member.name} at {member.offset}) are damaged: they do not have the checksum of the index")
    return data


def _key(name: str) -> str:
    """WebDataset's: the path up to the first dot of its last part."""
    path = PurePosixPath(name)
    return (path.parent / path.name.split(".")[0]).as_posix()


# --- the index --------------------------------------------------------------------------------------------------------------


def index_of(shard: Path) -> tuple[list[Member], list[Fault]]:
    """The members that can be used, and what is wrong; from the index, which is written where there is none.

    A shard that has changed since is read again: where what is left stands where it stood, it was damaged, and what is missing is named;
    where not, it is another shard, and the index is written anew.
    """
    stat = shard.stat()
    stamp = {"schema": SCHEMA, "bytes": stat.st_size, "changed": stat.st_mtime_ns}
    for path in _places(shard):
        known = _load(path)
        if known is None:
            continue
        told, members, faults = known
        if told == stamp:
            return members, faults
        left, wrong = _scan(shard)
        standing = {(one.name, one.offset, one.size) for one in left}
        if standing <= {(one.name, one.offset, one.size) for one in members} and len(left) and _damaged(members, left):
            return _compared(members, left), [*wrong, *_lost(members, standing, wrong)]
        break
    members, faults = _scan(shard)
    _store(shard, stamp, members, faults)
    return members, faults


def _damaged(before: Sequence[Member], left: Sequence[Member]) -> bool:
    now = {one.name: one.check for one in left}
    return any(now.get(one.name, -1) != one.check for one in before)


def _compared(before: Sequence[Member], left: Sequence[Member]) -> list[Member]:
    """What is left, with the checksums that it had."""
    checks = {one.name: one.check for one in before}
    return [one if one.check < 0 else one._replace(check=checks[one.name]) for one in left]


def _lost(before: Sequence[Member], standing: set[tuple[str, int, int]], wrong: Sequence[Fault]) -> list[Fault]:
    """Members that the index knows and the shard has no more; a key whose picture was lost counts once."""
    gone = [one for one in before if (one.name, one.offset, one.size) not in standing]
    named = {fault.name for fault in wrong}
    return [
        Fault(one.name, f"was at {one.offset} and is gone", PurePosixPath(one.name).suffix.lower() in SUFFIXES)
        for one in gone
        if one.name not in named
    ]


def _scan(shard: Path) -> tuple[list[Member], list[Fault]]:
    """All headers, and the checksums of what they announce. Members behind a damaged header are found by the next one that is whole."""
    size, members, faults, end = shard.stat().st_size, [], [], 0
    try:
        with tarfile.open(shard, mode="r:", ignore_zeros=True) as tar, open(shard, "rb") as opened:
            while (member := _next(tar)) is not None:
                gap = _gap(opened, end, member.offset)
                if gap is not None:
                    faults.append(Fault("", f"a header at {gap} is damaged: a member is lost, read on at {member.offset}", False))
                end = member.offset_data + -(-member.size // BLOCK) * BLOCK
                if not member.isfile() or member.issparse() or not _wanted(member.name):
                    continue
                cut = member.offset_data + member.size - size
                if cut > 0:
                    picture = PurePosixPath(member.name).suffix.lower() in SUFFIXES
                    faults.append(Fault(member.name, f"at {member.offset_data}: the shard ends {cut} bytes too early", picture))
                    members.append(Member(member.name, member.offset_data, member.size, -1))
                    continue
                members.append(Member(member.name, member.offset_data, member.size, _checksum(opened, member.offset_data, member.size)))
            if (gap := _gap(opened, end, size)) is not None:
                faults.append(Fault("", f"from {gap} on there is no member that can be read", False))
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        faults.append(Fault("", f"at {end}: no tar that can be read ({' '.join(str(error).split())[:100]})", False))
    return members, faults


def _next(tar: tarfile.TarFile) -> tarfile.TarInfo | None:
    try:
        member = tar.next()
    except tarfile.ReadError:
        return None  # the end is cut off within a header; the gap tells where
    tar.members.clear()  # type: ignore[attr-defined]  tarfile keeps every header: of a shard that is an index of its own
    return member


def _gap(opened: Any, start: int, stop: int) -> int | None:
    """Where something stands that is neither a member nor the zeros of an end; None = nowhere."""
    while start < stop:
        opened.seek(start)
        piece = opened.read(min(2**20, stop - start))
        if piece.strip(b"\0"):
            return start
        if not piece:
            return None
        start += len(piece)
    return None


def _checksum(opened: Any, offset: int, size: int) -> int:
    opened.seek(offset)
    check = 0
    while size > 0:
        piece = opened.read(min(2**20, size))
        if not piece:
            return -1
        check, size = zlib.crc32(piece, check), size - len(piece)
    return check


def _wanted(name: str) -> bool:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name or path.name.startswith("."):
        return False
    return path.suffix.lower() in (*SUFFIXES, *TEXTS)


# --- on the disk ------------------------------------------------------------------------------------------------------------


def _places(shard: Path) -> tuple[Path, Path]:
    """Beside the shard, or where that cannot be."""
    named = hashlib.blake2b(str(shard.resolve()).encode(), digest_size=12).hexdigest()
    return shard.with_name(f"{shard.name}.index.json"), cache_folder() / f"shard-{named}.index.json"


def _load(path: Path) -> tuple[dict[str, Any], list[Member], list[Fault]] | None:
    try:
        found = json.loads(path.read_bytes())
        members = [Member(str(n), int(o), int(s), int(c)) for n, o, s, c in found["members"]]
        faults = [Fault(str(name), str(reason), bool(counts)) for name, reason, counts in found["faults"]]
        stamp = {key: found[key] for key in ("schema", "bytes", "changed")}
    except (OSError, ValueError, TypeError, KeyError):
        return None  # not there, or damaged: it is made again
    if stamp["schema"] != SCHEMA or any(one.offset < 0 or one.size < 0 or not _wanted(one.name) for one in members):
        return None
    return stamp, members, faults


def _store(shard: Path, stamp: dict[str, Any], members: Sequence[Member], faults: Sequence[Fault]) -> None:
    data = json.dumps({**stamp, "members": members, "faults": faults}).encode()
    for path in _places(shard):
        half = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            half.write_bytes(data)
            half.replace(path)
            return
        except OSError:
            half.unlink(missing_ok=True)
