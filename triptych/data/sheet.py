"""A sheet of cells: pictures side by side, a caption beneath that never leaves its cell."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..contracts import Batch

__all__ = ["contact_sheet", "font", "sheet", "wrapped"]

# Fonts that have Chinese; Pillow's own has none, and draws a box for each character instead.
_FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc", "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc", "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/truetype/arphic/uming.ttc", "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
    "/System/Library/Fonts/PingFang.ttc", "/System/Library/Fonts/STHeiti Light.ttc",
    "C:/Windows/Fonts/msyh.ttc", "C:/Windows/Fonts/simsun.ttc",
)  # fmt: skip
_LINE, _GAP = 16, 6  # pixels


@cache
def font(size: int) -> Any:
    """A font that has Chinese, where this machine has one."""
    from PIL import ImageFont

    for path in _FONTS:
        if Path(path).exists():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)


def contact_sheet(batch: Batch, columns: int = 8, *, least: int = 128) -> Any:
    """A PIL.Image: the batch's pictures left to right, enlarged to `least` pixels by whole steps; texts alone are drawn as text.

    Raises ValueError for an empty batch.
    """
    images = batch.images_BCHW
    longest = least if images is None else max(images.shape[-2:])
    side = longest * max(1, least // longest)
    captions = [prompt.text or f"label {prompt.label}" for prompt in batch.prompts]
    return sheet([(text, [] if images is None else [images[i]]) for i, text in enumerate(captions)], columns, side=side)


def sheet(cells: Sequence[tuple[str, Sequence[Tensor]]], columns: int = 8, *, side: int = 128, smooth: bool = False, lines: int = 3) -> Any:
    """A PIL.Image of cells (caption, its pictures [3, H, W] in [-1, 1] side by side, the longer side of each `side` long).

    smooth: enlarge between pixels, not by whole ones.  lines: of a caption, at most; what does not fit ends in "…".
    Raises ValueError where there is no cell.
    """
    from PIL import Image, ImageDraw

    if not cells:
        raise ValueError("an empty batch has nothing to show")
    letters, how = font(12), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST
    many, columns = max(len(pictures) for _, pictures in cells), max(1, min(columns, len(cells)))
    wide, high = max(1, many) * (side + 2) - 2, lines * _LINE + 2 * _GAP + (side if many else 0)
    canvas = Image.new("RGB", (columns * (wide + _GAP) + _GAP, -(-len(cells) // columns) * high + _GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (caption, pictures) in enumerate(cells):
        x, y = _GAP + i % columns * (wide + _GAP), _GAP + i // columns * high
        for k, picture in enumerate(pictures):
            pixels = ((picture.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
            width, height = (max(1, round(length * side / max(pixels.shape[:2]))) for length in pixels.shape[1::-1])
            drawn = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), how)
            canvas.paste(drawn, (x + k * (side + 2) + (side - width) // 2, y + (side - height) // 2))
            draw.rectangle((x + k * (side + 2) - 1, y - 1, x + k * (side + 2) + side, y + side), outline=(208, 208, 208))
        y += (side if many else 0) + _GAP // 2
        for k, text in enumerate(wrapped(caption, letters, wide, lines)):
            draw.text((x, y + k * _LINE), text, fill="black", font=letters)
    return canvas


def wrapped(text: str, letters: Any, width: int, most: int) -> list[str]:
    """At most so many lines; words are kept whole where there are spaces, Chinese breaks anywhere."""
    lines, rest = [], text
    while rest and len(lines) < most:
        fits = len(rest)
        while fits > 1 and letters.getlength(rest[:fits]) > width:
            fits -= 1
        if fits < len(rest):
            space = rest.rfind(" ", 1, fits + 1)
            fits = space if space > 0 else fits
        lines.append(rest[:fits].strip())
        rest = rest[fits:].lstrip()
    if rest:
        lines[-1] = f"{lines[-1][:-1]}…"
    return lines
