"""Shards and pictures that were damaged or made to hurt, and what becomes of them: rows of the table of faults (`fault_table.py`)."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import random
import struct
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image

from triptych import data
from triptych.data.album import Album
from triptych.data.forms import Reading
from triptych.data.picture import opened
from triptych.layers.memory import forget_peak, peak
from triptych.recipe import Data, Source

__all__ = ["Row", "bombs", "pictures", "shards"]

Row = dict[str, Any]  # n: how often; counts: what came of it; wrong: what did not hold


def shards(n: int, seed: int = 0) -> Row:
    """A shard of 24 pairs, indexed, then cut, bits of it flipped, blocks of it zeroed or overwritten: used and named make up 24."""
    counts, wrong, draw = {"used": 0, "named": 0, "whole": 0}, [], random.Random(seed)
    pairs = [(_png(i), f"picture {i}") for i in range(24)]
    known = dict(pairs)
    with _cache() as folder:
        root = folder / "own"
        root.mkdir()
        good = _shard(pairs)
        for number in range(n):
            shard, index = root / "00000.tar", root / "00000.tar.index.json"
            shard.write_bytes(good)
            if number == 0:
                Album(root, Reading())
                whole = index.read_bytes()
            index.write_bytes(whole)
            shard.write_bytes(_mutated(good, draw))
            os.utime(shard, ns=(number, number))
            try:
                album = Album(root, Reading(), strict=False)
                same = all(known.get(album.bytes(i)) == album.captions(i)[0] for i in range(len(album)))
                used, named = len(album), album.wrong
            except ValueError as error:  # nothing is left that could be used
                same, used, named = "holds no picture" in str(error), 0, 24
            counts["used"] += used
            counts["named"] += named
            counts["whole"] += named == 0
            if used + named != 24 or not same:
                wrong.append(f"mutation {number}: {used} used, {named} named")
    return {"n": n, "counts": counts, "wrong": wrong}


def pictures(n: int, seed: int = 0) -> Row:
    """n pictures in one folder, most of them mutated: each is used, upright and of the size, or named with the reason; the sum is n."""
    draw, made = random.Random(seed), 0
    with _cache() as folder:
        root = folder / "own"
        root.mkdir()
        for i in range(n):
            name, content = _odd(i, draw)
            (root / name).write_bytes(content)
            made += 1
        album = Album(root, Reading(captions=False), strict=False, named=n)
        wrong = [] if len(album) + album.wrong == made else [f"{len(album)} used and {album.wrong} named of {made}"]
        wrong += [f"{fault.name} is named without a reason" for fault in album.faults if not fault.reason]
        for i in range(len(album)):
            try:
                assert opened(album.bytes(i)).mode == "RGB"
            except (ValueError, AssertionError) as error:
                wrong.append(f"{album[i].name} was found whole, and cannot be read: {error}")
        try:  # and a training takes none of it for good: far more than one in a hundred is broken
            data.build(Data(sources=(Source(name="folder", options={"path": str(root), "captions": False}),), size=16))
            wrong.append("a folder that is mostly broken was taken")
        except ValueError:
            pass
        return {"n": n, "counts": {"used": len(album), "named": album.wrong}, "wrong": wrong}


def bombs(n: int = 10, seed: int = 0) -> Row:
    """Files of a few kB that claim a hundred thousand pixels a side, or carry text that unpacks to 256 MB."""
    kinds, wrong, worst, slowest = list(BOMBS), [], 0.0, 0.0
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder, context.Pool(1) as pool:  # a process that has not grown by anything else
        for i in range(n):
            kind = kinds[i % len(kinds)]
            path = Path(folder) / f"{i}.bin"
            path.write_bytes(BOMBS[kind]())
            refused, seconds, megabytes = pool.apply(_bombed, (str(path),))
            worst, slowest = max(worst, megabytes), max(slowest, seconds)
            if not refused or seconds > 1 or megabytes > 100:
                wrong.append(f"{kind}: refused {refused}, {seconds:.2f} s, {megabytes:.0f} MB")
    return {"n": n, "counts": {"most MB": round(worst, 1), "most seconds": round(slowest, 3)}, "wrong": wrong}


def _bombed(path: str) -> tuple[bool, float, float]:
    """(refused, or harmless; seconds; megabytes more than before), for one file."""
    opened(_png(0))  # Pillow and its plugins are there before it is measured
    forget_peak()
    before, begun = peak(), time.perf_counter()
    try:
        opened(path)
        refused = False
    except ValueError:
        refused = True
    seconds = time.perf_counter() - begun
    return refused, seconds, (peak() - before) / 2**20


def _png_of(width: int, height: int, more: bytes = b"") -> bytes:
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + more + _chunk(b"IDAT", zlib.compress(bytes(10_000))) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _text(kind: bytes) -> bytes:
    """A text chunk that unpacks to 256 MB."""
    packed = zlib.compress(bytes(2**28), 9)
    return _chunk(kind, b"k\0\0" + packed if kind == b"zTXt" else b"k\0\1\0\0\0" + packed)


def _jpeg_of(side: int) -> bytes:
    """A true JPEG whose header says another size."""
    out = io.BytesIO()
    Image.new("L", (64, 64)).save(out, "JPEG")
    small = bytearray(out.getvalue())
    at = small.index(b"\xff\xc0")
    small[at + 5 : at + 9] = struct.pack(">HH", side, side)
    return bytes(small)


def _gif_of(side: int) -> bytes:
    screen, frame = struct.pack("<HHBBB", side, side, 0, 0, 0), struct.pack("<HHHHB", 0, 0, side, side, 0)
    return b"GIF89a" + screen + b"," + frame + b"\x08\0;"


BOMBS: dict[str, Callable[[], bytes]] = {
    "png": lambda: _png_of(100_000, 100_000), "png, wide": lambda: _png_of(2**31 - 1, 1), "png, large": lambda: _png_of(9_000, 9_000),
    "png, zTXt": lambda: _png_of(8, 8, _text(b"zTXt")), "png, iTXt": lambda: _png_of(8, 8, _text(b"iTXt")),
    "jpeg": lambda: _jpeg_of(65_000), "gif": lambda: _gif_of(65_535), "slim": lambda: _png_of(2**27, 1),
    "webp": lambda: b"RIFF\x1a\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\xff" * 2,
    "no picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(4_000),
}  # fmt: skip


def _png(i: int, side: int = 12) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, "png")
    return out.getvalue()


def _shard(pairs: list[tuple[bytes, str]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i, (picture, text) in enumerate(pairs):
            for name, content in ((f"p{i:03}.png", picture), (f"p{i:03}.txt", text.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def _mutated(content: bytes, draw: random.Random) -> bytes:
    """Cut, or with flipped bits, or with blocks zeroed or overwritten."""
    made, kind = bytearray(content), draw.randrange(4)
    if kind == 0:
        return bytes(made[: draw.randrange(len(made))])
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(len(made))
        if kind == 1:
            made[at] ^= 1 << draw.randrange(8)
        else:
            at -= at % 512
            made[at : at + 512] = bytes(512) if kind == 2 else draw.randbytes(min(512, len(made) - at))
    return bytes(made)


def _odd(i: int, draw: random.Random) -> tuple[str, bytes]:
    """(name, bytes) of a picture as people have them: another mode, turned, animated, slim, of another ending, cut, flipped, empty."""
    kind = draw.choice(("PNG", "JPEG", "WEBP", "GIF"))
    mode = draw.choice({"PNG": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), "JPEG": ("RGB", "L", "CMYK"), "WEBP": ("RGB", "RGBA"),
                        "GIF": ("P", "L")}[kind])  # fmt: skip
    width, height = draw.choice(((12, 9), (9, 12), (1, 1), (20, 1), (33, 40), (64, 64)))
    pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
    base = Image.fromarray(pixels)
    picture = Image.fromarray(pixels[..., 0].astype(np.uint16) * 257) if mode == "I;16" else base.convert(mode)
    more: dict[str, Any] = {}
    if kind in ("JPEG", "WEBP") and draw.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = draw.randrange(1, 9)
        more["exif"] = exif
    if kind in ("GIF", "WEBP") and draw.random() < 0.3:
        more |= {"save_all": True, "append_images": [picture.rotate(180)]}
    out = io.BytesIO()
    picture.save(out, kind, **more)
    content = bytearray(out.getvalue())
    fate = draw.randrange(6)
    if fate == 0:
        content = content[: draw.randrange(len(content))]
    elif fate == 1:
        for _ in range(draw.choice((1, 3, 20))):
            content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif fate == 2 and draw.random() < 0.3:
        content = bytearray(draw.randbytes(len(content)))
    return f"p{i:05}.{draw.choice(('png', 'jpg', 'webp', 'gif', 'jpeg', 'PNG'))}", bytes(content)


@contextlib.contextmanager
def _cache() -> Iterator[Path]:
    """A folder of its own, and a cache in it; nothing is printed."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        before = os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        try:
            yield Path(folder)
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            if before is not None:
                os.environ["XDG_CACHE_HOME"] = before
