"""Errors as a person and a program read them: one line that says what, where, why and what to do next, and a stable exit code.

    0 ok            1 a fault of ours      2 usage          3 bad data       4 bad checkpoint    5 out of memory
    6 disk full     7 training diverged    8 locked         130 Ctrl+C       143 SIGTERM

The layers below raise ValueError for a user's mistake. Where it was made decides the code: `blame` says so.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["EXIT", "Failure", "blame", "classify", "report"]

EXIT = {
    "internal": 1, "usage": 2, "bad_data": 3, "bad_checkpoint": 4, "out_of_memory": 5, "disk_full": 6, "diverged": 7, "locked": 8,
    "interrupted": 130, "terminated": 143,
}  # fmt: skip

# Exceptions of training are known by name: reporting an error must never have to import torch.
_NAMED = {"BadCheckpoint": "bad_checkpoint", "DiskFull": "disk_full", "Diverged": "diverged", "Locked": "locked"}
_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")


class Failure(Exception):
    """An error whose kind is known: `code` is a key of EXIT."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code, self.exit_code = code, EXIT[code]


@contextmanager
def blame(code: str, doing: str = "") -> Iterator[None]:
    """A ValueError raised inside, or a file that cannot be read, is of this kind; memory, disk and a file not there keep theirs."""
    try:
        yield
    except (ValueError, OSError) as error:
        found, message = classify(error)
        if found != "usage" or isinstance(error, FileNotFoundError):
            raise
        raise Failure(code, f"{doing}: {message}" if doing else message) from error


def classify(error: BaseException) -> tuple[str, str]:
    """(code, one line) of any exception."""
    text = " ".join(str(error).split())
    if isinstance(error, Failure):
        return error.code, text
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", "interrupted"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or _speaks_of_memory(error, text):
        return (
            "out_of_memory",
            f"out of memory ({text or 'no more to be had'}); ask for fewer pictures, a smaller batch or --precision bf16",
        )
    code = next((_NAMED[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _NAMED), None)
    if code is not None:
        return code, text
    if isinstance(error, OSError):
        return _of_system(error, text)
    if isinstance(error, ValueError):
        return "usage", text
    where = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return "internal", f"a fault of Triptych's own, {where}; run again with --debug and report what it prints"


def report(error: BaseException) -> dict[str, dict[str, str | int]]:
    """What --json prints on stdout: {"error": {"code", "exit_code", "message"}}."""
    code, message = classify(error)
    return {"error": {"code": code, "exit_code": EXIT[code], "message": message}}


def _speaks_of_memory(error: BaseException, text: str) -> bool:
    return isinstance(error, RuntimeError) and any(words in text.lower() for words in _MEMORY)


def _of_system(error: OSError, text: str) -> tuple[str, str]:
    path = f"{error.filename}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "disk_full", f"{path}no space left; what was finished before is whole; free some space and run again"
    if error.errno == errno.ENOMEM:
        return "out_of_memory", f"{path}out of memory; close something else, or ask for less"
    return "usage", f"{path}{error.strerror}" if error.strerror else text
