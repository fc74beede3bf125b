"""Ctrl+C and SIGTERM: the first asks the loop to save and leave, a second Ctrl+C leaves at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Stop"]


class Stop:
    """A context in which `reason` becomes "interrupted" or "terminated" when the signal comes. Only the main thread can listen.

    Leaving at once is safe at any moment: a save that is cut off leaves nothing that a resume would read.
    """

    def __init__(self) -> None:
        self.reason = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._heard) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.reason == "interrupted":
            raise KeyboardInterrupt
        self.reason = "interrupted" if number == signal.SIGINT else "terminated"
