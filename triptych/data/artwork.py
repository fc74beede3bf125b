"""The emoji artwork: colour bitmaps out of the font, drawn over white once and kept as one memory-mapped array.

The bitmaps are the PNGs of the CBDT strike (136 x 128 in Noto Color Emoji), reached through `cmap` and through GSUB's ligatures (lookup
type 4, also behind extension type 7). U+FE0F changes no artwork and is skipped.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .store import stored

__all__ = ["FONT", "SIDE", "VARIATION", "bitmaps", "cutout", "drawn", "found"]

FONT = "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
SIDE = 128  # of the stored pictures; the artwork's own height
VARIATION = "\ufe0f"


def found(path: str, package: str, option: str) -> str:
    if not Path(path).exists():
        raise ValueError(f"{path} is missing: `sudo apt-get install {package}`, or set the emoji source's option {option!r} to where it is")
    return path


@cache
def bitmaps(font: str) -> dict[str, bytes]:
    """Sequence -> PNG bytes of the largest colour strike."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        with TTFont(font, lazy=True) as tables:
            if "CBDT" not in tables or "GSUB" not in tables:
                raise ValueError(f"{font} has no colour bitmaps (tables CBDT and GSUB); take NotoColorEmoji.ttf of fonts-noto-color-emoji")
            strike = max(tables["CBDT"].strikeData, key=lambda glyphs: next(iter(glyphs.values())).metrics.height)
            images = {name: bytes(glyph.imageData) for name, glyph in strike.items()}
            names = {chr(code): glyph for code, glyph in (tables.getBestCmap() or {}).items()}
            ligatures = list(_ligatures(tables["GSUB"].table, {glyph: c for c, glyph in names.items()}))
    except TTLibError as error:
        raise ValueError(f"{font} is not a font: {error}") from None
    sequences = {c: images[glyph] for c, glyph in names.items() if glyph in images}
    sequences |= {sequence: images[glyph] for sequence, glyph in ligatures if glyph in images}
    return sequences


def _ligatures(gsub: Any, character: dict[str, str]) -> Iterator[tuple[str, str]]:
    """(sequence without U+FE0F, glyph) of every ligature substitution."""
    for lookup in gsub.LookupList.Lookup:
        for table in lookup.SubTable:
            if table.LookupType == 7:
                table = table.ExtSubTable
            if table.LookupType != 4:
                continue
            for first, ligatures in table.ligatures.items():
                for ligature in ligatures:
                    glyphs = [first, *ligature.Component]
                    if all(glyph in character for glyph in glyphs):
                        yield "".join(character[glyph] for glyph in glyphs).replace(VARIATION, ""), ligature.LigGlyph


def _canvas(png: bytes) -> Any:
    """The bitmap in the middle of a transparent square: 136 x 128 lands at y = 4. RGBA."""
    from PIL import Image

    bitmap = Image.open(io.BytesIO(png)).convert("RGBA")
    side = max(bitmap.size)
    canvas = Image.new("RGBA", (side, side), (255, 255, 255, 0))
    canvas.paste(bitmap, ((side - bitmap.width) // 2, (side - bitmap.height) // 2))
    return canvas


def _draw(png: bytes) -> np.ndarray:
    """uint8 [128, 128, 3] over white."""
    from PIL import Image

    canvas = _canvas(png)
    white = Image.new("RGBA", canvas.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, canvas).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def cutout(sequence: str, side: int, font: str | None = None) -> np.ndarray:
    """One emoji without a background: uint8 [side, side, 4], colours not multiplied by alpha. True detail up to side 136."""
    from PIL import Image

    path = found(font or FONT, "fonts-noto-color-emoji", "font")
    canvas = _canvas(bitmaps(path)[sequence]).convert("RGBa")  # premultiplied, or the transparent border bleeds in
    return np.asarray(canvas.resize((side, side), Image.Resampling.LANCZOS).convert("RGBA"))


def drawn(sequences: Sequence[str], size: int, font: str) -> np.ndarray:
    """uint8 [N, size, size, 3] over white, row i the picture of sequences[i]; memory-mapped from the cache folder.

    128 is a Lanczos resize of the artwork's 136; smaller sides are exact box averages of that. Drawn once, at the first use.
    Raises ValueError for a size that does not divide 128, and for a cache folder that cannot be written.
    """
    if not 0 < size <= SIDE or SIDE % size:
        raise ValueError(f"emoji pictures of side {size}: the artwork ends at {SIDE}; take a side that divides it: 16, 32, 64, 128")
    images = bitmaps(font)
    recipe = hashlib.blake2b(b"1", digest_size=12)  # the version of `_draw`
    for sequence in sequences:
        recipe.update(sequence.encode() + images[sequence])
    whole: list[np.ndarray] = []

    def make(i: int) -> np.ndarray:
        if size == SIDE:
            return _draw(images[sequences[i]])
        if not whole:
            whole.append(drawn(sequences, SIDE, font))
        return _box(whole[0][i], SIDE // size)

    return stored(f"emoji-{recipe.hexdigest()}-{size}", (len(sequences), size, size, 3), make, f"emoji pictures of side {size}")[0]


def _box(picture: np.ndarray, k: int) -> np.ndarray:
    side = picture.shape[0] // k
    sums = picture.reshape(side, k, side, k, 3).sum(axis=(1, 3), dtype=np.uint32)
    return ((sums + k * k // 2) // (k * k)).astype(np.uint8)
