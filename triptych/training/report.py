"""What is said of a run: to the person (a bar on a terminal, plain lines elsewhere) and to `metrics.jsonl`, always."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from .state import FULL

__all__ = ["Metrics", "Report"]


class Report:
    """Progress for a person. On a terminal a bar with ETA and pictures/s; elsewhere a line every `every` seconds.

    quiet: nothing but `say`.  stream: standard error by default, so that results on standard output stay clean.
    """

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None, every: float = 10.0) -> None:
        self.quiet, self.stream, self.every = quiet, stream or sys.stderr, every
        self._recent: deque[tuple[float, int]] = deque(maxlen=200)
        self._bar: Any = None
        self._task: Any = None
        self._last = -math.inf
        self._steps = self._batch = 0

    def begin(self, title: str, step: int, steps: int, batch: int) -> None:
        self._steps, self._batch = steps, batch
        self._recent.append((time.monotonic(), step))
        if self.quiet or not self.stream.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        text = "{task.completed}/{task.total}  loss {task.fields[loss]}  {task.fields[speed]} pictures/s  ETA {task.fields[eta]}"
        self._bar = Progress(TextColumn(title), BarColumn(), TextColumn(text), console=Console(file=self.stream))
        self._task = self._bar.add_task(title, total=steps, completed=step, loss="-", speed="-", eta="-")
        self._bar.start()

    def step(self, step: int, loss: float) -> float:
        """Step number `step` is done. Returns pictures/s over the last steps."""
        now = time.monotonic()
        self._recent.append((now, step))
        (then, first), _ = self._recent[0], None
        speed = (step - first) * self._batch / max(now - then, 1e-9)
        eta = _clock((self._steps - step) * self._batch / max(speed, 1e-9))
        if self._bar is not None:
            self._bar.update(self._task, completed=step, loss=f"{loss:.4f}", speed=f"{speed:.1f}", eta=eta)
        elif not self.quiet and (now - self._last >= self.every or step == self._steps):
            self._last = now
            print(f"step {step}/{self._steps}  loss {loss:.4f}  {speed:.1f} pictures/s  ETA {eta}", file=self.stream, flush=True)
        return speed

    def say(self, text: str) -> None:
        """One line that matters."""
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def end(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(min(seconds, 3.6e7)), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Metrics:
    """`metrics.jsonl`: one JSON object a line with "step" and "kind"; what is not finite is null. Written line by line; where the disk is
    full lines wait in memory, and `sync` says so.

    upto: lines of later steps are cut off first (and a last line that a kill has torn), so that a resumed run's file equals
    an uninterrupted one's in all but the fields "time" and "pictures_per_s".
    """

    def __init__(self, path: Path, *, upto: int) -> None:
        whole = [line for line in path.read_text(encoding="utf-8").splitlines() if _step_of(line) <= upto] if path.exists() else []
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text("".join(line + "\n" for line in whole), encoding="utf-8")
        os.replace(temporary, path)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._waiting = b""

    def write(self, step: int, kind: str, values: Mapping[str, Any]) -> None:
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        self._waiting += (json.dumps({"step": step, "kind": kind, **clean, "time": round(time.time(), 3)}) + "\n").encode()
        try:
            self._pass_on()
        except OSError as error:
            if error.errno not in FULL:
                raise

    def sync(self) -> None:
        """On the disk itself: called before a checkpoint is, so that no checkpoint is ahead of its metrics. Raises OSError."""
        self._pass_on()
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)

    def _pass_on(self) -> None:
        while self._waiting:
            self._waiting = self._waiting[os.write(self._file, self._waiting) :]


def _step_of(line: str) -> float:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
