"""Pictures with boxes: a COCO instances file (arXiv 1405.0312) and the folder of its pictures. For layout to image.

    Source(name="coco", options={"path": "val2017", "annotations": "annotations/instances_val2017.json"})

A picture is cut to its middle square and made `size` wide; boxes are cut with it, and one of which too little is left is dropped. The
class of a box is its category's place among the categories, sorted by id. Crowds (`iscrowd`) are no objects and are passed over. With a
captions file a row says one of its picture's captions. One picture in twenty, by a hash of its id, is held out.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..contracts import Prompt
from .album import BROKEN_AT_MOST
from .forms import as_json, inside, some
from .index import Row, draws, pick, place, stable_hash
from .picture import opened
from .store import stored

__all__ = ["CocoSource", "cut"]


class _Picture(NamedTuple):
    """boxes: (class, left, top, width, height) in pixels of the whole picture."""

    id: int
    file: Path
    width: int
    height: int
    boxes: tuple[tuple[float, ...], ...]
    captions: tuple[str, ...]


class CocoSource:
    """path: the folder that `file_name` is relative to.  annotations: the instances file.  captions: the captions file, "" = no words.

    least: the share of a box's area that must be left after the cut.  most: boxes of one picture, the largest first.
    labels: the classes' names, to be kept in a layout panel's `Config.labels`.
    Raises ValueError for files that are missing, damaged or contradict each other, naming the file and the entry; of broken pictures
    as `folder` does.
    """

    name = "coco"

    def __init__(
        self, *, size: int, split: str = "train", path: str = "", annotations: str = "", captions: str = "", least: float = 0.25,
        most: int = 30,
    ) -> None:  # fmt: skip
        if not path or not annotations:
            raise ValueError("source 'coco' needs the options 'path', a folder of pictures, and 'annotations', its instances file")
        if not 0 < least <= 1 or most < 1:
            raise ValueError(f"coco least {least} is a share in 0..1, most {most} a number of boxes: 1 or more")
        self.root, self.size, self.least, self.most = Path(path).expanduser(), size, least, most
        self.labels, pictures = _read(self.root, Path(annotations).expanduser(), Path(captions).expanduser() if captions else None)
        self.broken: dict[str, str] = {}
        digests = [_digest(picture.file) if size else str(picture.id) for picture in pictures]
        pixels = self._pixels(pictures, digests) if size else None
        if len(self.broken) > BROKEN_AT_MOST * len(pictures):
            named = some([f"{name} ({reason})" for name, reason in self.broken.items()])
            raise ValueError(f"{self.root}: {len(self.broken)} of {len(pictures)} pictures cannot be read: {named}; replace or remove them")
        for name, reason in self.broken.items():
            print(f"{self.root / name} is left out: {reason}", file=sys.stderr)
        good = [i for i, picture in enumerate(pictures) if self._named(picture) not in self.broken]
        held = {i for i in good if stable_hash("coco", pictures[i].id) % 100 < 5}
        held = held or {min(good, key=lambda i: stable_hash("coco", pictures[i].id))}
        mine = [i for i in good if (i in held) == (split == "held_out")]
        if not mine:
            raise ValueError(f"{annotations}: one picture cannot be both learnt and held out; give it two at least")
        self._rows = [(None if pixels is None else pixels[i], pictures[i], digests[i]) for i in mine]
        self.count = len(mine)

    def _named(self, picture: _Picture) -> str:
        return str(picture.file.relative_to(self.root))

    def _pixels(self, pictures: Sequence[_Picture], digests: Sequence[str]) -> np.ndarray:
        said = [f"{digest} {picture.width}x{picture.height}" for digest, picture in zip(digests, pictures, strict=True)]
        content = hashlib.blake2b(" ".join(["1", *said]).encode(), digest_size=12).hexdigest()
        shape, what = (len(pictures), self.size, self.size, 3), f"pictures of side {self.size} from {self.root}"
        pixels, why = stored(f"coco-{content}-{self.size}", shape, lambda i: _square(pictures[i], self.size), what)
        self.broken = {self._named(pictures[i]): reason for i, reason in why.items()}
        return pixels

    def words(self, seed: int, position: int) -> str:
        return self._words(self._rows[place(seed, position, self.count)][1], seed, position)

    def _words(self, picture: _Picture, seed: int, position: int) -> str:
        return pick(draws(seed, "caption", position), picture.captions) if picture.captions else ""

    def row(self, seed: int, position: int) -> Row:
        pixels, picture, digest = self._rows[place(seed, position, self.count)]
        boxes_N5 = cut(picture.boxes, picture.width, picture.height, self.least)[: self.most]
        return Row(pixels, Prompt(text=self._words(picture, seed, position), boxes_N5=boxes_N5), f"coco:{digest}")

    def describe(self) -> dict[str, Any]:
        boxes = [len(picture.boxes) for _, picture, _ in self._rows]
        return {
            "pictures": self.count, "path": str(self.root), "classes": len(self.labels), "boxes": sum(boxes),
            "without_boxes": boxes.count(0), "captions": sum(len(p.captions) for _, p, _ in self._rows), "broken": dict(self.broken),
        }  # fmt: skip


def cut(boxes: Sequence[tuple[float, ...]], width: int, height: int, least: float) -> Tensor:
    """Boxes of the middle square, float32 [N, 5]: class, centre x, centre y, width, height in 0..1 of it; the largest first.

    boxes: (class, left, top, width, height) in pixels of the whole picture. One of which less than `least` is left is dropped.
    """
    side = min(width, height)
    x0, y0 = (width - side) / 2, (height - side) / 2
    kept = []
    for label, left, top, w, h in boxes:
        near, far = (max(left - x0, 0), max(top - y0, 0)), (min(left + w - x0, side), min(top + h - y0, side))
        wide, high = far[0] - near[0], far[1] - near[1]
        if wide > 0 and high > 0 and wide * high >= least * w * h:
            kept.append((label, (near[0] + far[0]) / 2 / side, (near[1] + far[1]) / 2 / side, wide / side, high / side))
    return torch.tensor(sorted(kept, key=lambda box: -box[3] * box[4]), dtype=torch.float32).reshape(-1, 5)


def _square(picture: _Picture, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: the middle square. Raises ValueError with the reason if it cannot be read or has another size than is said."""
    from PIL import Image

    try:
        whole = opened(picture.file)
    except FileNotFoundError:
        raise ValueError("it is gone") from None
    if whole.size != (picture.width, picture.height):
        raise ValueError(f"it is {whole.width} x {whole.height}, its annotation says {picture.width} x {picture.height}")
    side = min(whole.size)
    x, y = (whole.width - side) / 2, (whole.height - side) / 2
    return np.asarray(whole.resize((size, size), Image.Resampling.LANCZOS, box=(x, y, x + side, y + side)))


def _digest(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=16).hexdigest()


# --- the files ------------------------------------------------------------------------------------------------------------


def _read(root: Path, instances: Path, captions: Path | None) -> tuple[tuple[str, ...], list[_Picture]]:
    """(names of the classes, pictures by id). Raises ValueError naming what is missing, damaged or contradicts itself."""
    if not root.is_dir():
        raise ValueError(f"{root} is no folder; give the source's option 'path' the folder of the pictures")
    found = _json(instances, "images", "annotations", "categories")
    names = {
        _field(one, "id", int, f"{instances}: categories.{i}"): _field(one, "name", str, f"{instances}: categories.{i}")
        for i, one in enumerate(found["categories"])
    }
    classes = {category: k for k, category in enumerate(sorted(names))}
    sizes: dict[int, tuple[Path, int, int]] = {}
    for i, one in enumerate(found["images"]):
        where = f"{instances}: images.{i}"
        width, height = _field(one, "width", int, where), _field(one, "height", int, where)
        if width < 1 or height < 1:
            raise ValueError(f"{where}: a picture of {width} x {height}")
        sizes[_field(one, "id", int, where)] = root / inside(root, _field(one, "file_name", str, where), where), width, height
    missing = [str(file.relative_to(root)) for file, *_ in sizes.values() if not file.is_file()]
    if missing:
        raise ValueError(f"{instances} names files that are not in {root}: {some(missing)}")
    if not sizes or not classes:
        raise ValueError(f"{instances} holds {len(sizes)} images and {len(classes)} categories; there must be one of each at least")

    boxes, words = defaultdict(list), defaultdict(list)
    for i, one in enumerate(found["annotations"]):
        where = f"{instances}: annotations.{i}"
        image, category = _known(one, "image_id", sizes, where), _known(one, "category_id", classes, where)
        box = one.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(isinstance(v, (int, float)) and math.isfinite(v) for v in box):
            raise ValueError(f"{where}: bbox {box!r} is no [left, top, width, height] in pixels")
        if not one.get("iscrowd"):
            boxes[image].append((float(classes[category]), *map(float, box)))
    for i, one in enumerate(_json(captions, "annotations")["annotations"] if captions else ()):
        where = f"{captions}: annotations.{i}"
        text = " ".join(_field(one, "caption", str, where).split())
        if isinstance(one.get("image_id"), int) and text:  # a captions file may speak of more pictures than these
            words[one["image_id"]].append(text)
    pictures = [_Picture(key, *sizes[key], tuple(boxes[key]), tuple(words[key])) for key in sorted(sizes)]
    return tuple(names[category] for category in sorted(names)), pictures


def _json(file: Path, *lists: str) -> dict[str, list[dict[str, Any]]]:
    try:
        value = as_json(file.read_bytes(), str(file))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from None
    for name in lists:
        entries = value.get(name) if isinstance(value, dict) else None
        if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
            raise ValueError(f"{file} has no list of objects {name!r}: it is no COCO file of this kind")
    return value


def _field(entry: dict[str, Any], name: str, kind: type, where: str) -> Any:
    value = entry.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"{where}: {name} is {value!r}, expected {'text' if kind is str else 'a whole number'}")
    return value


def _known(entry: dict[str, Any], name: str, known: dict[int, Any], where: str) -> int:
    value = _field(entry, name, int, where)
    if value not in known:
        raise ValueError(f"{where}: {name} {value} is nowhere in this file")
    return value
