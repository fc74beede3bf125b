"""Who hears what: results on stdout (one JSON object with --json), everything else on stderr, a bar only on a terminal."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

__all__ = ["Bar", "bar", "note", "result"]


def result(value: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a verb's result: `value` as one JSON object, or `text`."""
    _write(sys.stdout, json.dumps(value, ensure_ascii=not _is_utf8(sys.stdout), default=str) if as_json else text)


def note(text: str) -> None:
    """A line for the person who waits; never part of the result."""
    _write(sys.stderr, text)


def _is_utf8(stream: TextIO) -> bool:
    return (getattr(stream, "encoding", "") or "").lower().replace("-", "") == "utf8"


def _write(stream: TextIO, text: str) -> None:
    if not text:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except BrokenPipeError:  # whoever read us has left (`triptych list | head`): nobody to talk to, and nothing is wrong
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError):
            pass


class Bar:
    """Progress from 0 to 1, with words beside it."""

    def __init__(self, progress: Any = None, task: Any = None) -> None:
        self._progress, self._task = progress, task

    def update(self, fraction: float, words: str) -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=fraction, description=words)


@contextmanager
def bar(words: str, quiet: bool = False) -> Iterator[Bar]:
    """A bar on stderr where that is a terminal, silence elsewhere."""
    if quiet or not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, progress.add_task(words, total=1.0))
