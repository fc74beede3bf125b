"""A full disk pauses a run: it says how much to free, looks again by itself, and goes on where it stood."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from .report import Report
from .signals import Stop
from .state import FULL, DiskFull

__all__ = ["Room"]

AGAIN = 5.0  # seconds between two looks
T = TypeVar("T")


class Room:
    """Writes what must be written. stop: a signal ends the waiting, and the error is raised."""

    def __init__(self, report: Report, stop: Stop, again: float = AGAIN) -> None:
        self.report, self.stop, self.again = report, stop, again

    def __call__(self, write: Callable[[], T]) -> T:
        """write() as often as it takes: it begins anew each time, and must bear that. Raises what it raises for another reason."""
        waited = False
        while True:
            try:
                done = write()
            except OSError as error:
                if not isinstance(error, DiskFull) and error.errno not in FULL:
                    raise
                if self.stop.reason:
                    raise
                if not waited:
                    why = str(error) if isinstance(error, DiskFull) else f"{error.filename or 'the disk'}: no space left"
                    self.report.say(f"paused: {why}. It goes on when there is room; Ctrl+C leaves, and what was saved before is whole")
                waited = True
                self._wait()
            else:
                if waited:
                    self.report.say("there is room again: going on")
                return done

    def _wait(self) -> None:
        until = time.monotonic() + self.again
        while time.monotonic() < until and not self.stop.reason:
            time.sleep(0.05)
