"""A person's own pictures: a folder of PNG, JPEG, WebP and GIF (first frame) files, subfolders included, with captions beside them.

A caption is in `cat.txt` or `cat.caption` beside `cat.png`; or all are in `metadata.jsonl`, one {"file_name": ..., "text": ...} a line
(Hugging Face imagefolder). The whole picture is fitted into a white square: nothing is cropped or mirrored, since captions speak of
left, right and number. One picture in twenty, by a hash of its content, is held out.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..contracts import Prompt
from .index import Row, place, stable_hash
from .store import stored

__all__ = ["FolderSource"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
BROKEN_AT_MOST = 0.01  # a share: more, and something is wrong with the folder, not with a file


def _listed(root: Path, captions: bool) -> list[tuple[Path, str]]:
    """(picture, caption) in path order. Raises ValueError naming what is missing or refused."""
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give the source's option 'path' a folder of pictures")
    table = root / "metadata.jsonl"
    if captions and table.exists():
        return _table(root, table)
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise ValueError(f"{root} holds no picture ({', '.join(SUFFIXES)})")
    if not captions:
        return [(file, "") for file in files]
    pairs = [(file, _sidecar(file)) for file in files]
    silent = [file for file, text in pairs if not text]
    if silent:
        first = silent[0]
        raise ValueError(
            f"no caption for {_some([str(f.relative_to(root)) for f in silent])}: write {first.with_suffix('.txt').name} beside "
            f"{first.name}, or set the option 'captions' to false (pictures alone)"
        )
    return pairs


def _sidecar(picture: Path) -> str:
    for suffix in (".txt", ".caption"):
        beside = picture.with_suffix(suffix)
        if beside.exists():
            try:
                return " ".join(beside.read_text(encoding="utf-8-sig").split())
            except UnicodeDecodeError as error:
                raise ValueError(f"{beside} is not UTF-8 ({error.reason} at byte {error.start})") from None
    return ""


def _table(root: Path, table: Path) -> list[tuple[Path, str]]:
    pairs, missing = [], []
    for number, line in enumerate(table.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{table}:{number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON: {error.msg}") from None
        name, text = (row.get("file_name"), row.get("text")) if isinstance(row, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where} needs two strings, 'file_name' and 'text', neither empty")
        parts = PurePosixPath(name.replace("\\", "/"))
        file = root / parts
        if parts.is_absolute() or ":" in name or ".." in parts.parts or not file.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"{where}: file_name {name!r} leads out of {root}; only files inside it are read")
        if file.suffix.lower() not in SUFFIXES:
            raise ValueError(f"{where}: {name!r} is no picture that is read here ({', '.join(SUFFIXES)})")
        if not file.is_file():
            missing.append(name)
        pairs.append((file, " ".join(text.split())))
    if missing:
        raise ValueError(f"{table} names files that are not there: {_some(missing)}")
    if not pairs:
        raise ValueError(f"{table} is empty")
    return sorted(pairs)


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # of Pillow's, those that are read without another program


def opened(file: str | Path) -> Any:
    """A PIL picture in RGB, the first frame: upright as EXIF says, transparent parts over white.

    Raises FileNotFoundError, and ValueError with the reason if it cannot be read or has more pixels than `Image.MAX_IMAGE_PIXELS`.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    damaged = (OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, struct.error, Image.DecompressionBombError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of bombs, which are refused below, and of odd EXIF, which is passed over
            with Image.open(file, formats=_FORMATS) as raw:
                most = Image.MAX_IMAGE_PIXELS
                if most is not None and raw.width * raw.height > most:
                    raise ValueError(f"{raw.width} x {raw.height} pixels are more than {most}")
                picture = ImageOps.exif_transpose(raw)
                if picture.mode.startswith("I"):  # 16-bit grey: Pillow would clip, not scale
                    picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
                if not picture.has_transparency_data:
                    return picture.convert("RGB")
                picture = picture.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("no picture that can be read") from None
    except FileNotFoundError:
        raise
    except damaged as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ValueError(str(reason)[:200]) from None


def fitted(file: Path, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: the whole picture in the middle of a white square. Raises ValueError with the reason if it cannot be read."""
    from PIL import Image

    try:
        flat = opened(file)
    except FileNotFoundError:
        raise ValueError("it is gone") from None
    scale = size / max(flat.size)
    width, height = (max(1, round(side * scale)) for side in flat.size)
    square = Image.new("RGB", (size, size), (255, 255, 255))
    square.paste(flat.resize((width, height), Image.Resampling.LANCZOS), ((size - width) // 2, (size - height) // 2))
    return np.asarray(square)


class FolderSource:
    """Pairs, or with captions=False pictures alone. The pictures are fitted to the size once and kept in the cache folder.

    Raises ValueError naming each file without a caption, each path that leads out of the folder, and the broken pictures where they
    are more than one in a hundred; fewer are left out and named on stderr and in `describe`.
    """

    name = "folder"

    def __init__(self, *, size: int, split: str = "train", path: str = "", captions: bool = True) -> None:
        if not path:
            raise ValueError("source 'folder' needs the option 'path': a folder of pictures")
        self.root = Path(path).expanduser()
        pairs = _listed(self.root, captions)
        digests = [hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest() for file, _ in pairs]
        self.broken: dict[str, str] = {}
        pixels = self._pixels([file for file, _ in pairs], digests, size) if size else None
        if len(self.broken) > BROKEN_AT_MOST * len(pairs):
            named = _some([f"{name} ({reason})" for name, reason in self.broken.items()])
            raise ValueError(f"{self.root}: {len(self.broken)} of {len(pairs)} pictures cannot be read: {named}; replace or remove them")
        for name, reason in self.broken.items():
            print(f"{self.root / name} is left out: {reason}", file=sys.stderr)
        good = [i for i, (file, _) in enumerate(pairs) if str(file.relative_to(self.root)) not in self.broken]
        held = {d for d in (digests[i] for i in good) if stable_hash("folder", d) % 100 < 5}
        held = held or {min((digests[i] for i in good), key=lambda d: stable_hash("folder", d))}
        mine = [i for i in good if (digests[i] in held) == (split == "held_out")]
        if not mine:
            raise ValueError(f"{self.root}: one picture cannot be both learnt and held out; give it two different ones at least")
        self._rows = [(None if pixels is None else pixels[i], pairs[i][1], digests[i]) for i in mine]
        self.count = len(mine)

    def _pixels(self, files: Sequence[Path], digests: Sequence[str], size: int) -> np.ndarray:
        from PIL import Image

        content = hashlib.blake2b(" ".join(["1", str(Image.MAX_IMAGE_PIXELS), *digests]).encode(), digest_size=12).hexdigest()
        shape, what = (len(files), size, size, 3), f"pictures of side {size} from {self.root}"
        pixels, why = stored(f"folder-{content}-{size}", shape, lambda i: fitted(files[i], size), what)
        self.broken = {str(files[i].relative_to(self.root)): reason for i, reason in why.items()}
        return pixels

    def words(self, seed: int, position: int) -> str:
        return self._rows[place(seed, position, self.count)][1]

    def row(self, seed: int, position: int) -> Row:
        picture, text, digest = self._rows[place(seed, position, self.count)]
        return Row(picture, Prompt(text=text), f"folder:{digest}")

    def describe(self) -> dict[str, Any]:
        return {"pictures": self.count, "path": str(self.root), "broken": dict(self.broken)}
