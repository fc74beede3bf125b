"""What to draw and where to put it: prompts from the command line, a file or an old picture become `Job`s; `Target` names files."""

from __future__ import annotations

import re
import secrets
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .pictures import SUFFIXES

__all__ = ["Job", "Request", "Target", "from_record", "numbered", "parse_file", "parse_line", "parse_size", "slug"]

_LARGEST_FILE = 16 * 2**20
_SEEDS = 2**63


@dataclass(frozen=True, kw_only=True)
class Request:
    """The command line of `generate`, as typed. None = not given."""

    prompts: Sequence[str] = ()
    model: str | None = None
    n: int = 1
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    negative: str | None = None
    size: str | None = None
    prompts_file: str | None = None
    old: str | None = None
    strip: int | None = None
    out: str | None = None
    device: str = "auto"
    precision: str | None = None
    exact: bool = False
    metadata: bool = True
    guide: str | None = None
    guide_scale: float | None = None
    like: str | None = None
    like_by: str | None = None
    like_scale: float | None = None
    label: str | None = None
    boxes: str | None = None
    image: str | None = None
    mask: str | None = None
    loras: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Job:
    """One picture to draw. None = the model's own default.

    size: (width, height), either may be None.  settings: more sampling settings by name.
    batch: (row, rows), the place that an old picture had in its batch; it is given the same place again, so that even the
    last bit of its arithmetic is the same.
    """

    prompt: str
    negative: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    size: tuple[int | None, int | None] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    batch: tuple[int, int] | None = None

    def sampling(self) -> dict[str, Any]:
        """What is asked of the process."""
        asked = {"steps": self.steps, "guidance": self.guidance, "sampler": self.sampler}
        return {**self.settings, **{k: v for k, v in asked.items() if v is not None}}


def numbered(jobs: Sequence[Job], n: int, seed: int | None) -> tuple[list[Job], int | None]:
    """n pictures of each job, each with its seed, and the random base if one was drawn.

    Picture i of the request has seed + i; a job with a seed of its own counts from that. Absent or -1 means random.
    """
    for value in [seed, *(job.seed for job in jobs)]:
        if value is not None and not -1 <= value < _SEEDS - len(jobs) * n:
            raise ValueError(f"seed {value} is out of range: -1 (random) or 0 up to 2^63")
    drawn = None
    if seed in (None, -1) and any(job.seed in (None, -1) for job in jobs):
        drawn = secrets.randbelow(2**32)
    base = drawn if drawn is not None else seed
    pictures = []
    for job in jobs:
        for k in range(n):
            own = base + len(pictures) if job.seed in (None, -1) else job.seed + k  # type: ignore[operator]
            pictures.append(replace(job, seed=own))
    return pictures, drawn


def parse_size(text: str) -> tuple[int, int]:
    """ "128x96" -> (128, 96), width first; "128" is a square."""
    match = re.fullmatch(r"\s*(\d{1,5})\s*(?:[xX×*]\s*(\d{1,5})\s*)?", text, re.ASCII)
    if match is None:
        raise ValueError(f"size {text!r} is not WIDTHxHEIGHT, such as 128x128")
    width = int(match[1])
    return _sides(width, int(match[2] or width))


def _sides(*sides: int) -> Any:
    for side in sides:
        if not 1 <= side <= 8192:
            raise ValueError(f"a side of {side} pixels is out of range: 1 to 8192")
    return sides


# --- prompt files -------------------------------------------------------------------------------------------------------

_OPTION = re.compile(r"(?:^|\s)--(?=[A-Za-z])")
_KOHYA: dict[str, tuple[str, Callable[[str], Any]]] = {
    "n": ("negative", str), "w": ("width", int), "h": ("height", int), "s": ("steps", int), "d": ("seed", int), "l": ("guidance", float),
}  # fmt: skip


def parse_file(path: str | Path) -> list[Job]:
    """One prompt a line, with kohya's options inside the line; empty lines and lines that begin with '#' are passed over.

    Raises ValueError naming the line.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a file of prompts has at most {_LARGEST_FILE}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    jobs = []
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                jobs.append(parse_line(line))
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
    if not jobs:
        raise ValueError(f"{path} holds no prompt; write one a line")
    return jobs


def parse_line(line: str) -> Job:
    """ "a red apple --n blurry --w 128 --h 128 --s 20 --d 7 --l 3": negative, width, height, steps, seed, guidance."""
    prompt, *options = _OPTION.split(line)
    said: dict[str, Any] = {}
    for option in options:
        letter, _, value = option.strip().partition(" ")
        if letter not in _KOHYA:
            raise ValueError(f"no option --{letter}; there are: {', '.join('--' + k for k in _KOHYA)}")
        name, read = _KOHYA[letter]
        try:
            said[name] = read(value.strip())
        except ValueError:
            raise ValueError(f"--{letter} {value.strip()[:40]!r} is no {'number' if read is float else 'whole number'}") from None
    width, height = said.pop("width", None), said.pop("height", None)
    _sides(*(side for side in (width, height) if side is not None))
    return Job(prompt=prompt.strip(), size=None if width is height is None else (width, height), **said)


def from_record(record: Mapping[str, Any]) -> Job:
    """The job that made a picture, from its record (`pictures.read`, which has checked the types)."""
    batch, settings = record.get("batch"), record.get("settings") or {}
    return Job(
        prompt=record["prompt"], negative=record.get("negative") or None, seed=record["seed"], steps=record.get("steps"),
        guidance=record.get("guidance"), sampler=record.get("sampler"), size=(record["size"][0], record["size"][1]),
        settings={name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()},
        batch=(batch[0], batch[1]) if batch else None,
    )  # fmt: skip


# --- where pictures go --------------------------------------------------------------------------------------------------


def slug(prompt: str, longest: int = 40) -> str:
    """Words for a file name: letters and digits of any script, joined by hyphens."""
    words = re.findall(r"\w+", unicodedata.normalize("NFKC", prompt).lower().replace("_", " "))
    text = "-".join(words)[:longest]
    while len(text.encode()) > 3 * longest:  # file systems count bytes
        text = text[:-1]
    return text.strip("-") or "picture"


class Target:
    """-o: a folder gets numbered files (prompt and seed in the name), a file's name gets a padded index where n > 1.

    Nothing is ever overwritten: a name that is taken is refused before any work, and a folder goes on counting.
    Raises ValueError for a name that is taken or a suffix that cannot be written.
    """

    def __init__(self, out: str | None, pictures: int, strip: bool = False) -> None:
        given = out or "out"
        path = Path(given)
        self._pictures, self._file = pictures, None
        if path.is_dir() or given.endswith(("/", "\\")) or not path.suffix:
            self.folder, self._next = path, 1 + _highest(path)
        elif path.suffix.lower() in SUFFIXES:
            self.folder, self._file = path.parent, path
            for taken in [self.path(i) for i in range(pictures)]:
                for name in [taken, strip_of(taken)] if strip else [taken]:
                    if name.exists():
                        raise ValueError(f"{name} is there already and nothing is overwritten; give another -o, or a folder")
        else:
            raise ValueError(f"-o {given}: cannot write {path.suffix}; there are: {', '.join(SUFFIXES)}, or give a folder")
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, index: int, job: Job | None = None) -> Path:
        """The name of picture `index`, counted from 0."""
        if self._file is None:
            assert job is not None
            return self.folder / f"{self._next + index:04d}-{slug(job.prompt)}-{job.seed}.png"
        if self._pictures == 1:
            return self._file
        digits = len(str(self._pictures))
        return self._file.with_name(f"{self._file.stem}-{index + 1:0{digits}d}{self._file.suffix}")

    def put(self, index: int, job: Job, write: Callable[[Path], None]) -> Path:
        """Write picture `index` under its name; in a folder, a number that another run took meanwhile is passed over."""
        while True:
            path = self.path(index, job)
            if self._file is None and any(self.folder.glob(f"{self._next + index:04d}-*")):
                self._next += 1
                continue
            try:
                write(path)
                return path
            except FileExistsError:
                if self._file is not None:
                    raise ValueError(f"{path} appeared meanwhile and nothing is overwritten; give another -o") from None
                self._next += 1


def strip_of(path: Path) -> Path:
    """Where the strip of a picture goes: beside it."""
    return path.with_name(f"{path.stem}-strip.png")


def _highest(folder: Path) -> int:
    numbers = [int(m[1]) for m in (re.match(r"(\d{4,9})-", p.name) for p in folder.glob("*")) if m] if folder.is_dir() else []
    return max(numbers, default=0)
