"""A contact sheet: pictures in rows, each with its caption beneath."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..contracts import Batch

__all__ = ["contact_sheet"]

# Fonts that have Chinese; Pillow's own has none, and draws a box for each character instead.
_FONTS = (
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc", "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-microhei.ttc", "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/usr/share/fonts/truetype/arphic/uming.ttc", "/usr/share/fonts/truetype/droid/DroidSansFallbackFull.ttf",
    "/System/Library/Fonts/PingFang.ttc", "/System/Library/Fonts/STHeiti Light.ttc",
    "C:/Windows/Fonts/msyh.ttc", "C:/Windows/Fonts/simsun.ttc",
)  # fmt: skip
_LINES = 3


@cache
def _font(size: int) -> Any:
    from PIL import ImageFont

    for path in _FONTS:
        if Path(path).exists():
            return ImageFont.truetype(path, size)
    return ImageFont.load_default(size)


def contact_sheet(batch: Batch, columns: int = 8, *, least: int = 128) -> Any:
    """A PIL.Image: the batch's pictures left to right, enlarged to `least` pixels by whole steps; texts alone are drawn as text.

    Raises ValueError for an empty batch.
    """
    from PIL import Image, ImageDraw

    rows = len(batch.prompts)
    if not rows:
        raise ValueError("an empty batch has nothing to show")
    images = batch.images_BCHW
    side = least if images is None else images.shape[-1] * max(1, least // images.shape[-1])
    font = _font(12)
    line, gap = 16, 6
    foot = _LINES * line + 2 * gap
    columns = max(1, min(columns, rows))
    cell = foot + (side if images is not None else 0)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, -(-rows // columns) * cell + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, prompt in enumerate(batch.prompts):
        x, y = gap + i % columns * (side + gap), gap + i // columns * cell
        if images is not None:
            pixels = ((images[i].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
            sheet.paste(Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.Resampling.NEAREST), (x, y))
            draw.rectangle((x - 1, y - 1, x + side, y + side), outline=(208, 208, 208))
            y += side
        for k, text in enumerate(_wrapped(prompt.text or f"label {prompt.label}", font, side)):
            draw.text((x, y + gap // 2 + k * line), text, fill="black", font=font)
    return sheet


def _wrapped(text: str, font: Any, width: int) -> list[str]:
    """At most three lines; words are kept whole where there are spaces, Chinese breaks anywhere."""
    lines, rest = [], text
    while rest and len(lines) < _LINES:
        fits = len(rest)
        while fits > 1 and font.getlength(rest[:fits]) > width:
            fits -= 1
        if fits < len(rest):
            space = rest.rfind(" ", 1, fits + 1)
            fits = space if space > 0 else fits
        lines.append(rest[:fits].strip())
        rest = rest[fits:].lstrip()
    if rest:
        lines[-1] = f"{lines[-1][:-1]}…"
    return lines
