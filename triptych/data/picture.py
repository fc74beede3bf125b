"""A picture of anybody's, from its bytes to upright 8-bit RGB of the size that is wanted; what may hurt is refused by its header.

Read are PNG, JPEG, WebP and the first frame of a GIF, told by their content, whatever they are called. Pixels stand upright as EXIF says;
grey, palettes, CMYK and 16 bits become 8-bit RGB; what is transparent shows white.
"""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

__all__ = ["MOST_BYTES", "MOST_PIXELS", "SLIMMEST", "SUFFIXES", "Seen", "covering", "fitted", "opened", "seen"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif")
FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # Pillow's names
MOST_PIXELS = 64 * 2**20
MOST_BYTES = 50 * 2**20  # of a file
SLIMMEST = 16  # times as long as it is wide
NOISE = 3  # of 255: smaller differences are JPEG's

Source = str | Path | bytes


class Seen(NamedTuple):
    """What one look tells. width, height: upright.  kind: of FORMATS.  look: 64 bits; pictures that look alike share nearly all."""

    width: int
    height: int
    kind: str
    look: int


def opened(source: Source) -> Any:
    """A PIL picture in RGB.

    Raises FileNotFoundError, and ValueError with the reason: not of the formats, damaged, or beyond MOST_BYTES or MOST_PIXELS, which its
    header tells before anything is unpacked.
    """
    return _read(source, _upright)


def seen(source: Source) -> Seen:
    """What a picture is that was unpacked to its end and found whole. Raises as `opened` does, and for one that is slimmer than SLIMMEST:
    no square and no bucket shows it.

    A large JPEG is unpacked to an eighth of its sides: all of its data is read, and its pixels need not be made.
    """
    return _read(source, _looked_at)


def fitted(source: Source, size: int) -> np.ndarray:
    """uint8 [size, size, 3]: the whole picture in the middle of a white square. Raises ValueError with the reason if it cannot be read."""
    from PIL import Image

    flat = _here(source)
    scale = size / max(flat.size)
    width, height = (max(1, round(side * scale)) for side in flat.size)
    square = Image.new("RGB", (size, size), (255, 255, 255))
    square.paste(flat.resize((width, height), Image.Resampling.LANCZOS), ((size - width) // 2, (size - height) // 2))
    return np.asarray(square)


def covering(source: Source, height: int, width: int) -> np.ndarray:
    """uint8 [height, width, 3]: as small as it still covers that, its middle. Raises ValueError with the reason if it cannot be read."""
    from PIL import Image

    flat = _here(source)
    scale = max(width / flat.width, height / flat.height)
    wide, high = width / scale, height / scale
    left, top = (flat.width - wide) / 2, (flat.height - high) / 2
    return np.asarray(flat.resize((width, height), Image.Resampling.LANCZOS, box=(left, top, left + wide, top + high)))


def _here(source: Source) -> Any:
    try:
        return opened(source)
    except FileNotFoundError:
        raise ValueError("it is gone") from None


def _read(source: Source, use: Any) -> Any:
    from PIL import Image, UnidentifiedImageError

    damaged = (OSError, SyntaxError, ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error)
    try:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        if size > MOST_BYTES:
            raise ValueError(f"{size} bytes are more than {MOST_BYTES}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's of bombs, which are refused below, and of odd EXIF, which is passed over
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as raw:
                if raw.width * raw.height > MOST_PIXELS:
                    raise ValueError(f"{raw.width} x {raw.height} pixels are more than {MOST_PIXELS}")
                return use(raw)
    except UnidentifiedImageError:
        raise ValueError(f"no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture that can be read") from None
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:  # Pillow's own limit, of what lies far beyond ours
        raise ValueError(" ".join(str(error).split())[:200]) from None
    except damaged as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise ValueError(str(reason)[:200]) from None


def _upright(raw: Any) -> Any:
    from PIL import Image, ImageOps

    picture = ImageOps.exif_transpose(raw)
    if picture.mode.startswith("I"):  # 16-bit grey: Pillow would clip, not scale
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def _looked_at(raw: Any) -> Seen:
    from PIL import Image

    width, height = raw.size
    if max(raw.size) > SLIMMEST * min(raw.size):
        raise ValueError(f"{width} x {height} is slimmer than 1 : {SLIMMEST}")
    if raw.getexif().get(0x0112, 1) >= 5:  # EXIF's four orientations that swap the sides
        width, height = height, width
    if raw.format == "JPEG":
        raw.draft(None, (max(9, raw.width // 8), max(8, raw.height // 8)))
    raw.load()
    grey = np.asarray(_upright(raw).convert("L").resize((9, 8), Image.Resampling.BOX)).astype(np.int16)
    bits = np.packbits(grey[:, 1:] > grey[:, :-1] + NOISE)  # dHash: is each of 8 x 8 places lighter than the one left of it?
    return Seen(width, height, raw.format, int.from_bytes(bits.tobytes(), "big", signed=True))
