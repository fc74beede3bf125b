"""Plain text files, for panel 1: each line that says anything is a text. A file, or all .txt files of a folder.

Where lines begin is found once, at the start; the texts stay on the disk. One text in twenty, by a hash of its words, is held out.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..contracts import Prompt
from .forms import one_line, walk
from .index import Row, place, stable_hash

__all__ = ["LinesSource"]

LONGEST = 2**16  # bytes of a line: more is no text that a text encoder reads
HELD_OUT = 5  # of a hundred


class _Line(NamedTuple):
    file: int
    offset: int


class LinesSource:
    """path: a text file, or a folder of them.

    Raises ValueError naming the file and the line of what is not UTF-8 or longer than LONGEST, and for a place without a text.
    """

    name = "lines"

    def __init__(self, *, size: int = 0, split: str = "train", path: str = "") -> None:
        if not path:
            raise ValueError("source 'lines' needs the option 'path': a text file, or a folder of .txt files")
        if size:
            raise ValueError(f"source 'lines' has no pictures and cannot be mixed with pictures of side {size}; set data.size to 0")
        root = Path(path).expanduser()
        self.files = [root] if root.is_file() else list(walk(root, (".txt",))) if root.is_dir() else []
        if not self.files:
            raise ValueError(f"{path} is no text file, and no folder that holds a .txt file")
        self._numbers, self._offsets = array("I"), array("Q")
        for number, offset in self._found(split == "held_out"):
            self._numbers.append(number)
            self._offsets.append(offset)
        self.count = len(self._offsets)
        if not self.count and split == "train":
            raise ValueError(f"{path} holds no text")
        self._lock, self._open = threading.Lock(), {}

    def _found(self, held_out: bool) -> Iterator[_Line]:
        for number, file in enumerate(self.files):
            with open(file, "rb") as lines:
                offset = 0
                for count, line in enumerate(lines, start=1):
                    if len(line) > LONGEST:
                        raise ValueError(f"{file}:{count} has {len(line)} bytes; a text has at most {LONGEST}")
                    try:
                        text = one_line(line.decode("utf-8-sig" if offset == 0 else "utf-8"))
                    except UnicodeDecodeError as error:
                        raise ValueError(f"{file}:{count} is not UTF-8 ({error.reason} at byte {error.start} of the line)") from None
                    if text and (stable_hash("lines", text) % 100 < HELD_OUT) == held_out:
                        yield _Line(number, offset)
                    offset += len(line)

    def words(self, seed: int, position: int) -> str:
        i = place(seed, position, self.count)
        number, offset = self._numbers[i], self._offsets[i]
        with self._lock:
            if number not in self._open:
                self._open[number] = open(self.files[number], "rb")  # noqa: SIM115  it stays open as long as the source
            self._open[number].seek(offset)
            line = self._open[number].readline(LONGEST + 1)
        return one_line(line.decode("utf-8-sig" if offset == 0 else "utf-8", "replace"))

    def row(self, seed: int, position: int) -> Row:
        text = self.words(seed, position)
        return Row(None, Prompt(text=text), f"lines:{stable_hash(text):x}")

    def describe(self) -> dict[str, Any]:
        return {"texts": self.count, "files": len(self.files)}
