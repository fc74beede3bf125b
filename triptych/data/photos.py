"""Photographs, to see what a decoder does with the world: squares cut from the few that scikit-image and scikit-learn carry.

They are read as files of those packages, which need only be installed: `pip install 'triptych[photos]'`. Of each photograph squares as high
as it is, half and a quarter as high are cut, each half over its neighbour. Whole photographs are held out, never squares of one.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..contracts import Prompt
from .index import Row, draws, pick, place
from .picture import opened

__all__ = ["PHOTOS", "PhotosSource"]


class Photo(NamedTuple):
    """package, file: where it lies.  en, zh: what it shows."""

    package: str
    file: str
    en: str
    zh: str
    held: bool


PHOTOS = (
    Photo("skimage", "data/astronaut.png", "an astronaut before a flag", "旗帜前的宇航员", True),
    Photo("skimage", "data/chelsea.png", "a cat", "一只猫", True),
    Photo("skimage", "data/rocket.jpg", "a rocket at night", "夜里的火箭", True),
    Photo("sklearn", "datasets/images/flower.jpg", "a flower", "一朵花", True),
    Photo("skimage", "data/coffee.png", "a cup of coffee", "一杯咖啡", False),
    Photo("skimage", "data/motorcycle_left.png", "a motorcycle in a garage", "车库里的摩托车", False),
    Photo("sklearn", "datasets/images/china.jpg", "a temple in China", "中国的寺庙", False),
    Photo("skimage", "data/gravel.png", "gravel", "碎石", False),
    Photo("skimage", "data/grass.png", "grass", "草地", False),
    Photo("skimage", "data/brick.png", "a wall of bricks", "砖墙", False),
)


class PhotosSource:
    """Squares of photographs, each scaled to `size`; captions say what the whole one shows, by turns of the draw in English and Chinese.

    Raises ValueError where the packages are not installed, with the way out.
    """

    name = "photos"

    def __init__(self, *, size: int, split: str = "train") -> None:
        self.size, self._photos = size, [photo for photo in PHOTOS if photo.held == (split == "held_out")]
        self._pixels = [opened(_file(photo)) for photo in self._photos]
        self._squares = [(k, square) for k, pixels in enumerate(self._pixels) for square in _squares(*pixels.size)]
        self.count = len(self._squares)

    def words(self, seed: int, position: int) -> str:
        photo = self._photos[self._squares[place(seed, position, self.count)][0]]
        return pick(draws(seed, "language", position), (photo.en, photo.zh))

    def row(self, seed: int, position: int) -> Row:
        from PIL import Image

        k, square = self._squares[place(seed, position, self.count)]
        picture = None
        if self.size:
            picture = np.asarray(self._pixels[k].resize((self.size, self.size), Image.Resampling.LANCZOS, box=square))
        key = f"photos:{Path(self._photos[k].file).stem}:{','.join(map(str, square))}"
        return Row(picture, Prompt(text=self.words(seed, position)), key)

    def describe(self) -> dict[str, Any]:
        return {"pictures": self.count, "photographs": [photo.en for photo in self._photos]}


def _file(photo: Photo) -> Path:
    found = find_spec(photo.package)
    for folder in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(folder) / photo.file).is_file():
            return path
    lacks = "is not installed" if found is None else f"does not carry {photo.file}"
    raise ValueError(f"source 'photos' cuts from {photo.package}'s photographs, and it {lacks}: pip install 'triptych[photos]'")


def _squares(width: int, height: int) -> list[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of all."""
    found = []
    for side in (min(width, height) // part for part in (1, 2, 4)):
        lefts, tops = (range(0, length - side + 1, max(1, side // 2)) for length in (width, height))
        found += [(left, top, left + side, top + side) for top in tops for left in lefts]
    return found
