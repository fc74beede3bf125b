"""Pictures that lie about as files: with their captions beside them, in folders of classes, or alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ..picture import SUFFIXES
from . import Fault, Found, Reading, one_line, walk

__all__ = ["classes", "pictures", "sidecars"]


def pictures(root: Path, how: Reading) -> Iterator[Found | Fault]:
    """Every picture, without words."""
    for name in _names(root):
        yield Found(name, (), name)


def classes(root: Path, how: Reading) -> Iterator[Found | Fault]:
    """The folder in which a picture lies says what it shows; what lies in none is an error, for nobody says what it is."""
    for name in _names(root):
        folder = Path(name).parent.name
        if not folder:
            raise ValueError(f"{root / name} lies in no class; put it in a folder that is named like its class")
        yield Found(name, (how.template.replace("{class}", folder.replace("_", " ")),), name)


def sidecars(root: Path, how: Reading) -> Iterator[Found | Fault]:
    """cat.png with cat.txt or cat.caption; a picture without is a fault that says what to write."""
    for name in _names(root):
        captions = _beside(root / name, how.lines)
        if captions:
            yield Found(name, captions, name)
        else:
            yield Fault(name, f"no caption: write {Path(name).with_suffix('.txt').name} beside it, or read pictures alone, captions=false")


def _names(root: Path) -> Iterator[str]:
    count = 0
    for path in walk(root, SUFFIXES):
        count += 1
        yield path.relative_to(root).as_posix()
    if not count:
        raise ValueError(f"{root} holds no picture ({', '.join(SUFFIXES)})")


def _beside(picture: Path, lines: bool) -> tuple[str, ...]:
    for suffix in (".txt", ".caption"):
        try:
            text = picture.with_suffix(suffix).read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            continue
        except UnicodeDecodeError as error:
            raise ValueError(f"{picture.with_suffix(suffix)} is not UTF-8 ({error.reason} at byte {error.start})") from None
        every = text.splitlines() if lines else [text]
        return tuple(said for one in every if (said := one_line(one)))
    return ()
