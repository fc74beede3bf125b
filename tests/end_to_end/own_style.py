"""A person's own style: hatched shapes with a thick black outline on pale yellow paper. The embedded model never learnt from such."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

__all__ = ["COLOURS", "SHAPES", "captions", "draw", "write_folder"]

PAPER = (255, 240, 170)
COLOURS = {
    "red": (225, 50, 45), "blue": (40, 90, 215), "green": (50, 165, 75), "orange": (245, 140, 30), "purple": (140, 70, 185),
    "pink": (245, 130, 175), "brown": (140, 90, 55), "grey": (140, 140, 145),
}  # fmt: skip
SHAPES = ("circle", "square", "triangle", "star", "heart", "diamond", "cross", "moon")
SIDE = 128


def captions() -> list[str]:
    """All that can be said: one colour, one shape."""
    return [f"a {colour} {shape}" for colour in COLOURS for shape in SHAPES]


def _cover(shape: str, side: int) -> Image.Image:
    """Where the shape is, 255 inside."""
    image = Image.new("L", (side, side), 0)
    pen, n = ImageDraw.Draw(image), side - 1
    if shape in ("circle", "moon"):
        pen.ellipse((0, 0, n, n), fill=255)
        if shape == "moon":
            pen.ellipse((0.38 * n, -0.05 * n, 1.2 * n, 0.8 * n), fill=0)
    elif shape == "square":
        pen.rectangle((0.06 * n, 0.06 * n, 0.94 * n, 0.94 * n), fill=255)
    elif shape == "cross":
        pen.rectangle((0.33 * n, 0, 0.67 * n, n), fill=255)
        pen.rectangle((0, 0.33 * n, n, 0.67 * n), fill=255)
    elif shape == "heart":
        pen.ellipse((0, 0.05 * n, 0.53 * n, 0.58 * n), fill=255)
        pen.ellipse((0.47 * n, 0.05 * n, n, 0.58 * n), fill=255)
        pen.polygon([(0.04 * n, 0.43 * n), (0.96 * n, 0.43 * n), (0.5 * n, n)], fill=255)
    else:
        turns = {"triangle": (3, 1.0), "diamond": (4, 1.0), "star": (10, 0.42)}
        corners, inner = turns[shape]
        angles = np.arange(corners) * 2 * np.pi / corners
        radii = np.where(np.arange(corners) % 2 == 1, inner, 1.0) * n / 2
        pen.polygon([(n / 2 + r * float(np.sin(a)), n / 2 - r * float(np.cos(a))) for a, r in zip(angles, radii, strict=True)], fill=255)
    return image


def draw(caption: str, seed: int) -> Image.Image:
    """One picture: size, place and hatching differ with the seed."""
    _, colour, shape = caption.split()
    rng = random.Random(f"{caption} {seed}")
    side = round(SIDE * rng.uniform(0.55, 0.8))
    at = tuple(round((SIDE - side) * rng.uniform(0.25, 0.75)) for _ in range(2))
    cover = Image.new("L", (SIDE, SIDE), 0)
    cover.paste(_cover(shape, side), at)
    wide = cover.filter(ImageFilter.MaxFilter(11))
    image = Image.new("RGB", (SIDE, SIDE), PAPER)
    image.paste((15, 15, 15), mask=wide)
    image.paste(COLOURS[colour], mask=cover)
    hatching, gap = Image.new("L", (SIDE, SIDE), 0), rng.choice((10, 12))
    pen = ImageDraw.Draw(hatching)
    for start in range(-SIDE, SIDE, gap):
        pen.line((start, SIDE, start + SIDE, 0), fill=255, width=3)
    image.paste((15, 15, 15), mask=ImageChops.multiply(hatching, cover))
    return image


def write_folder(folder: Path, count: int, said: list[str]) -> None:
    """`count` pictures of these captions, each with its sidecar."""
    folder.mkdir(parents=True)
    for i in range(count):
        caption = said[i % len(said)]
        draw(caption, i).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(caption + "\n", encoding="utf-8")
