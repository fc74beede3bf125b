"""Checkpoints of a run that cannot be half-written, and the lock that keeps a run to one trainer.

    RUN/checkpoints/step-000123/       weights, averages, optimizer: one safetensors file each; manifest.json, written last
    RUN/checkpoints/step-000123.tmp-*  a save that never finished: never read, swept away by the next save

The order is what makes it safe: every file is written and synced under a temporary folder name, then the manifest with all
sizes and hashes, then the folder, then one rename, then its parent. Whatever dies in between, no folder of a final name lacks
a byte. Which checkpoint is the latest is computed from what is whole, never stored. No pickle: tensors and JSON.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["FULL", "BadCheckpoint", "Checkpoint", "DiskFull", "Locked", "check_space", "complete", "locked", "newest", "write"]

SCHEMA = 1
FULL = (errno.ENOSPC, errno.EDQUOT)  # of OSError.errno: nothing more fits
_FINAL = re.compile(r"step-(\d{6,})")
_SLACK = 16 * 2**20  # free space left over beside a checkpoint: metrics, previews, the folder itself


class DiskFull(OSError):
    """The disk cannot hold the next checkpoint. The message says how many bytes are missing."""


class BadCheckpoint(ValueError):
    """A checkpoint is damaged or belongs to another run. The message names the file and what is wrong with it."""


class Locked(RuntimeError):
    """Another trainer holds this run folder. The message says which."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint. facts: what the trainer wanted remembered beside the tensors."""

    folder: Path
    step: int
    facts: Mapping[str, Any]
    sizes: Mapping[str, int]
    hashes: Mapping[str, str]

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of one file, checked against its hash. Raises BadCheckpoint."""
        data = (self.folder / f"{name}.safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != self.hashes[f"{name}.safetensors"]:
            raise BadCheckpoint(f"{self.folder / name}.safetensors is damaged: it does not have the hash its manifest says")
        return load(data)


# --- writing ------------------------------------------------------------------------------------------------------------


def write(run: Path, step: int, files: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any], *, keep: int) -> Path:
    """Save `files` (name -> tensors) as the checkpoint of `step`, then remove whole ones beyond the newest `keep`.

    Raises DiskFull before anything is written if it cannot fit, or when the disk fills meanwhile; OSError for a disk that
    fails otherwise. In either case older checkpoints stay as they were.
    """
    root = run / "checkpoints"
    root.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    needed = sum(t.numel() * t.element_size() for tensors in files.values() for t in tensors.values())
    check_space(root, needed)
    final = root / f"step-{step:06d}"
    temporary = root / f"{final.name}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        os.mkdir(temporary)
        entries = {}
        for name, tensors in files.items():
            data = save({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
            _write_synced(temporary / f"{name}.safetensors", data)
            entries[f"{name}.safetensors"] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        manifest = {"schema": SCHEMA, "step": step, "torch": torch.__version__, "files": entries, "facts": dict(facts)}
        _write_synced(temporary / "manifest.json", json.dumps({**manifest, "sha256": _hash_of(manifest)}, indent=1).encode())
        _sync_folder(temporary)
        if final.exists():  # only a damaged one can stand here: whole ones are not saved twice
            _remove(final)
        os.rename(temporary, final)
        _sync_folder(root)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if error.errno in FULL:
            raise DiskFull(f"the disk filled while {final} was written ({needed} bytes); free some space and resume") from error
        raise
    for old in complete(run)[keep:]:
        _remove(old.folder)
    return final


def check_space(folder: Path, needed: int) -> None:
    """Raises DiskFull if `folder`'s disk has fewer than `needed` bytes and a little slack."""
    free = shutil.disk_usage(folder).free
    if free < needed + _SLACK:
        raise DiskFull(
            f"{folder}: checkpoints need {needed + _SLACK} bytes, {free} are free; free {needed + _SLACK - free} more and resume"
        )


def _write_synced(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(handle, rest[: 2**28]) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # Windows has no handle of a folder to sync
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """First away from its final name in one rename, so that no half-deleted folder ever bears it."""
    gone = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    os.rename(folder, gone)
    shutil.rmtree(gone, ignore_errors=True)


def _sweep(root: Path) -> None:
    for left in root.glob("step-*.tmp-*"):  # the run's lock is held: nobody is writing these
        shutil.rmtree(left, ignore_errors=True)


# --- reading ------------------------------------------------------------------------------------------------------------


def complete(run: Path, *, verify: bool = False, say: Callable[[str], None] | None = None) -> list[Checkpoint]:
    """All whole checkpoints, newest first. Damaged ones are named to `say` and left out. verify: hashes too, not only sizes."""
    found = []
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        if not _FINAL.fullmatch(folder.name):
            continue
        try:
            found.append(_open(folder, verify))
        except BadCheckpoint as error:
            if say is not None:
                say(f"skipped: {error}")
    return sorted(found, key=lambda c: c.step, reverse=True)


def newest(run: Path, *, verify: bool = False, say: Callable[[str], None] | None = None) -> Checkpoint | None:
    """The latest whole checkpoint, None if there is none."""
    return next(iter(complete(run, verify=verify, say=say)), None)


def _open(folder: Path, verify: bool) -> Checkpoint:
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_bytes())
        own = manifest.pop("sha256")
        schema, step, facts, entries = manifest["schema"], manifest["step"], manifest["facts"], manifest["files"]
        sizes = {name: entry["bytes"] for name, entry in entries.items()}
        hashes = {name: entry["sha256"] for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadCheckpoint(f"{path} cannot be read: {type(error).__name__}: {error}") from None
    if schema != SCHEMA:
        raise BadCheckpoint(f"{path} has schema {schema}; this version reads {SCHEMA}")
    if own != _hash_of(manifest):
        raise BadCheckpoint(f"{path} is damaged: it does not have the hash it says of itself")
    if folder.name != f"step-{step:06d}":
        raise BadCheckpoint(f"{path} speaks of step {step}: the folder was renamed")
    for name, size in sizes.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise BadCheckpoint(f"{file} is missing")
        if file.stat().st_size != size:
            raise BadCheckpoint(f"{file} has {file.stat().st_size} bytes, its manifest says {size}")
        if verify and _hash(file) != hashes[name]:
            raise BadCheckpoint(f"{file} is damaged: it does not have the hash its manifest says")
    return Checkpoint(folder, step, facts, sizes, hashes)


def _hash_of(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- one trainer a run --------------------------------------------------------------------------------------------------


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder. Raises Locked, naming the holder. The lock dies with its process: a kill leaves none behind."""
    from filelock import FileLock, Timeout

    run.mkdir(parents=True, exist_ok=True)
    lock, holder = FileLock(run / ".lock"), run / ".lock-holder.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        try:
            who = json.loads(holder.read_text())
        except (OSError, ValueError):
            who = {}
        named = f"process {who.get('pid', '?')} on {who.get('host', '?')}"
        raise Locked(f"{run} is being trained by {named}; wait for it, or choose another --out") from None
    try:
        holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
