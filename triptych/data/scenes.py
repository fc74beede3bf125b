"""A procedural world with ground truth: the pictures, boxes and masks of the scene graphs, as an endless source of pairs.

Judges ask the graph (`Prompt.truth`) what should have been drawn. A scene can be drawn at any side from the same graph, so that the
picture at 256 is a real large version of the one at 32. The eight drawn shapes need nothing but Pillow; the cut-outs of 40 emoji need
the emoji font, and are left out, with a note, where it is missing.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..catalog import nearest
from ..contracts import Prompt
from .graph import BACKGROUNDS, CLASSES, COLORS, CUTOUTS, RELATIONS, SHAPES, Object, Scene, held_out_pairs, is_held_out, random_scene
from .index import Row, draws, pick
from .phrases import captions

__all__ = [
    "CLASSES", "COLORS", "CUTOUTS", "RELATIONS", "SHAPES", "Object", "Scene", "ScenesSource", "boxes", "captions", "is_held_out", "masks",
    "random_scene", "render", "two_object_prompts",
]  # fmt: skip

FORMS = ("one", "number", "relation", "list")
ENDLESS = 1_000_000_000  # the number of different examples an endless source admits to


# --- pictures -------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2048)
def _mask(shape: str, side: int) -> np.ndarray:
    """Cover of one drawn shape, float32 [side, side] in 0..1: drawn at four times the side, box-averaged."""
    from PIL import Image, ImageDraw

    n = 4 * side
    image = Image.new("L", (n, n), 0)
    draw = ImageDraw.Draw(image)
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, n - 1, n - 1), fill=255)
        if shape == "ring":
            draw.ellipse((0.26 * n, 0.26 * n, 0.74 * n - 1, 0.74 * n - 1), fill=0)
    elif shape == "square":
        draw.rectangle((0, 0, n - 1, n - 1), fill=255)
    elif shape == "cross":
        draw.rectangle((0.33 * n, 0, 0.67 * n - 1, n - 1), fill=255)
        draw.rectangle((0, 0.33 * n, n - 1, 0.67 * n - 1), fill=255)
    else:
        draw.polygon([(x * (n - 1), y * (n - 1)) for x, y in _outline(shape)], fill=255)
    cover = np.asarray(image, dtype=np.float32) / 255
    cover = cover.reshape(side, 4, side, 4).mean(axis=(1, 3))
    cover.flags.writeable = False
    return cover


def _outline(shape: str) -> list[tuple[float, float]]:
    """Corners in the unit square, y downwards."""
    if shape == "triangle":
        return [(0.5, 0.04), (1.0, 0.94), (0.0, 0.94)]
    if shape == "diamond":
        return [(0.5, 0.0), (0.9, 0.5), (0.5, 1.0), (0.1, 0.5)]
    if shape == "star":
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 0.525, 0.22)
        return [(0.5 + r * float(np.sin(a)), 0.53 - r * float(np.cos(a))) for a, r in zip(angles, radii, strict=True)]
    assert shape == "heart", shape
    t = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(float(a), float(b)) for a, b in zip((x + 16) / 32, (12.5 - y) / 30.5, strict=True)]


@lru_cache(maxsize=4096)
def _sprite(shape: str, color: str | None, background: str, side: int, font: str | None) -> np.ndarray:
    """One object over the background: uint8 [side, side, 3]."""
    if color is None:
        from .artwork import cutout

        rgba = cutout(CUTOUTS[shape][0], side, font).astype(np.float32)
        cover, rgb = rgba[..., 3:] / 255, rgba[..., :3]
    else:
        cover, rgb = _mask(shape, side)[..., None], np.array(COLORS[color][0], dtype=np.float32)
    return np.rint(cover * rgb + (1 - cover) * np.array(BACKGROUNDS[background][0])).astype(np.uint8)


def _corner(thing: Object, side: int) -> tuple[int, int, int]:
    """(left, top, side) in pixels; exact where 32 divides the picture's side."""
    pixels = max(1, round(2 * thing.r * side))
    return round((thing.cx - thing.r) * side), round((thing.cy - thing.r) * side), pixels


def render(scene: Scene, side: int, font: str | None = None) -> np.ndarray:
    """The picture: uint8 [side, side, 3]. Objects do not overlap, so that each is copied with its piece of background.

    Raises ValueError for a side below 16.
    """
    if side < 16:
        raise ValueError(f"a scene of side {side} shows nothing; take 16 or more")
    canvas = np.empty((side, side, 3), dtype=np.uint8)
    canvas[:] = BACKGROUNDS[scene.background][0]
    for thing in scene.objects:
        x, y, d = _corner(thing, side)
        sprite = _sprite(thing.shape, thing.color, scene.background, d, font)
        canvas[y : y + d, x : x + d] = sprite[: side - y, : side - x]
    return canvas


def masks(scene: Scene, side: int, font: str | None = None) -> np.ndarray:
    """Which pixels each object covers by more than half: bool [N, side, side]."""
    out = np.zeros((len(scene.objects), side, side), dtype=bool)
    for i, thing in enumerate(scene.objects):
        x, y, d = _corner(thing, side)
        out[i, y : y + d, x : x + d] = (_cover(thing, d, font) > 0.5)[: side - y, : side - x]
    return out


def _cover(thing: Object, side: int, font: str | None) -> np.ndarray:
    if thing.color is not None:
        return _mask(thing.shape, side)
    from .artwork import cutout

    return cutout(CUTOUTS[thing.shape][0], side, font)[..., 3] / np.float32(255)


@cache
def _extent(shape: str, drawn: bool, font: str | None) -> tuple[float, float, float, float]:
    """The tight box within the object's square: centre x, centre y, width, height, in -0.5..0.5 and 0..1 of its side."""
    thing = Object(shape=shape, color="red" if drawn else None, size="", cx=0, cy=0, r=0)
    cover = _cover(thing, 128, font) > 0.5
    xs, ys = np.flatnonzero(cover.any(axis=0)), np.flatnonzero(cover.any(axis=1))
    left, right, top, bottom = (float(v) / 128 for v in (xs[0], xs[-1] + 1, ys[0], ys[-1] + 1))
    return (left + right) / 2 - 0.5, (top + bottom) / 2 - 0.5, right - left, bottom - top


def boxes(scene: Scene, font: str | None = None) -> torch.Tensor:
    """Tight boxes, float32 [N, 5]: class (a place in CLASSES), centre x, centre y, width, height in 0..1."""
    rows = []
    for thing in scene.objects:
        dx, dy, w, h = _extent(thing.shape, thing.color is not None, font)
        d = 2 * thing.r
        rows.append((CLASSES.index(thing.shape), thing.cx + dx * d, thing.cy + dy * d, w * d, h * d))
    return torch.tensor(rows, dtype=torch.float32)


# --- the source -----------------------------------------------------------------------------------------------------------


def two_object_prompts(n: int, held_out: bool, seed: int = 0, languages: Sequence[str] = ("en", "zh")) -> list[Prompt]:
    """For judges: two drawn shapes of different colours and shapes, one beside or above the other; `truth` is a Scene that fits.

    held_out: whether each holds a composition that training never showed, or only such as it could show. Languages take turns.
    """
    prompts: list[Prompt] = []
    rng = draws(seed, "two objects", int(held_out))
    while len(prompts) < n:
        scene = random_scene(rng, held_out, form="relation")
        a, b = scene.objects
        if a.color != b.color and a.shape != b.shape and {a.size, b.size} == {"medium"}:
            text = pick(rng, captions(scene, languages[len(prompts) % len(languages)]))
            prompts.append(Prompt(text=text, truth=scene, boxes_N5=boxes(scene)))
    return prompts


class ScenesSource:
    """Pairs without end: the graph of row n is a pure function of (seed, n), and so is which of its captions is taken.

    cutouts: let emoji appear.  backgrounds: share of scenes on a pale colour, which the caption then names.  english: its share.
    form: of all scenes: "one" thing, a "number" of equal ones, a "relation" of two, a "list"; "" = all of them, mixed.
    all_compositions: nothing is held out, and both splits differ by their draws alone. For systems that hear classes: where words of a
    composition never shown are known one by one, a class never shown says nothing.
    """

    name = "scenes"

    def __init__(
        self, *, size: int, split: str = "train", cutouts: bool = True, backgrounds: float = 0.0, english: float = 0.55,
        font: str | None = None, form: str = "", all_compositions: bool = False,
    ) -> None:  # fmt: skip
        if not 0 <= backgrounds <= 1 or not 0 <= english <= 1:
            raise ValueError(f"scenes backgrounds {backgrounds} and english {english} are shares, in 0..1")
        if size and size < 16:
            raise ValueError(f"a scene of side {size} shows nothing; take 16 or more")
        if form not in ("", *FORMS):
            raise ValueError(f"scenes form {form!r}; {nearest(form, FORMS)}")
        self.size, self.split, self.font, self.form = size, split, font, form
        self.backgrounds, self.english = backgrounds, english
        self.held_out = None if all_compositions else split == "held_out"
        self.cutouts = _cutouts(font) if cutouts else ()
        self.count = ENDLESS

    def scene(self, seed: int, position: int) -> Scene:
        rng = draws(seed, "scene", self.split, position)
        return random_scene(rng, self.held_out, cutouts=self.cutouts, backgrounds=self.backgrounds, form=self.form or None)

    def words(self, seed: int, position: int) -> str:
        return self._caption(self.scene(seed, position), seed, position)

    def _caption(self, scene: Scene, seed: int, position: int) -> str:
        rng = draws(seed, "phrase", position)
        return pick(rng, captions(scene, "en" if rng.random() < self.english else "zh"))

    def row(self, seed: int, position: int) -> Row:
        scene = self.scene(seed, position)
        picture = render(scene, self.size, self.font) if self.size else None
        prompt = Prompt(text=self._caption(scene, seed, position), truth=scene, boxes_N5=boxes(scene, self.font))
        return Row(picture, prompt, f"scenes:{hashlib.blake2b(repr(scene).encode(), digest_size=12).hexdigest()}")

    def describe(self) -> dict[str, Any]:
        return {
            "pictures": "endless", "shapes": len(SHAPES), "colors": len(COLORS), "cutouts": len(self.cutouts),
            "held_out_pairs": [" ".join(pair) for pair in sorted(held_out_pairs())],
        }  # fmt: skip


def _cutouts(font: str | None) -> tuple[str, ...]:
    from .artwork import FONT

    path = font or FONT
    if Path(path).exists():
        return tuple(CUTOUTS)
    print(f"scenes: {path} is missing, so only drawn shapes appear (Debian package fonts-noto-color-emoji)", file=sys.stderr)
    return ()
