"""What an album holds, told whole: counts, sizes, formats, captions and their languages, pictures that are there twice, what is broken.

    told = check(album, buckets=Buckets(), size=64, too_long=lambda captions: [...])      -> JSON-ready

Pictures that look alike, though their bytes differ (another format, another size, a little brighter), are found by a difference hash: they
share all but NEAR of its 64 bits. Of a picture that is nearly even the hash says nothing, and it is not compared. Shape legend: N pictures.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ..recipe import Buckets
from . import buckets as shapes
from .album import BROKEN_AT_MOST, Album

__all__ = ["NEAR", "check", "language_of", "pairs_alike"]

NEAR = 3
PLAIN = 6  # bits that are set; fewer: nearly even
NAMED = 20  # of each kind; the counts are of all
BANDS = 4  # of 16 bits: two that differ in fewer bits than there are bands agree in one of them
CROWDED = 200  # pictures of one band: more are compared only where few share the whole hash


def check(
    album: Album, *, size: int, buckets: Buckets | None = None, too_long: Callable[[Sequence[str]], list[bool]] | None = None
) -> dict[str, Any]:  # fmt: skip
    """buckets: as they would be, of pictures about size x size large.  too_long: which captions panel 1 would cut.

    Lists hold at most NAMED names; counts are of all.
    """
    kinds, languages, lengths = Counter(), Counter(), []
    names: dict[str, list[str]] = defaultdict(list)
    cut, several, silent, looks = [], 0, 0, np.empty(len(album), dtype=np.int64)
    for i, one in enumerate(album.each()):
        kinds[one.kind] += 1
        looks[i] = one.look
        names[one.digest].append(one.name)
        languages.update(map(language_of, one.captions))
        lengths += [len(text) for text in one.captions]
        several, silent = several + (len(one.captions) > 1), silent + (not one.captions)
        if too_long is not None and any(too_long(one.captions)):
            cut.append(one.name)
    sizes_N2 = album.sizes()
    twice = [some for some in names.values() if len(some) > 1]
    alike = [[album[i].name, album[j].name] for i, j in pairs_alike(looks) if album[i].digest != album[j].digest]
    pictures: dict[str, Any] = {
        "count": len(album), "learnt": album.learnt, "held_out": len(album) - album.learnt, "formats": dict(sorted(kinds.items())),
        "width": _span(sizes_N2[:, 0]), "height": _span(sizes_N2[:, 1]),
    }  # fmt: skip
    captions = {
        "count": len(lengths), "pictures_with_several": several, "pictures_without": silent, "letters": _span(np.array(lengths)),
        "languages": dict(languages.most_common()), **({"too_long": len(cut), "too_long_named": cut[:NAMED]} if too_long else {}),
    }  # fmt: skip
    faults = [{"name": fault.name, "reason": fault.reason} for fault in album.faults]
    told: dict[str, Any] = {
        "path": str(album.root), "form": album.form, "pictures": pictures, "captions": captions,
        "duplicates": {"pictures": sum(len(some) - 1 for some in twice), "named": twice[:NAMED]},
        "alike": {"pairs": len(alike), "named": alike[:NAMED]},
        "broken": {"count": album.wrong, "allowed": int(BROKEN_AT_MOST * (len(album) + album.wrong)), "named": faults},
    }  # fmt: skip
    if buckets is not None:
        planned = shapes.plan(size * size, buckets.step, buckets.slimmest)
        told["buckets"] = shapes.histogram(shapes.assign(sizes_N2, planned, upscale=buckets.upscale), planned)
    return told


def language_of(text: str) -> str:
    """ "en", "zh", "en+zh", "other": by letters; English is any text of Latin ones alone."""
    letters = [c for c in text if c.isalpha()]
    han = sum("一" <= c <= "鿿" or "㐀" <= c <= "䶿" for c in letters)
    latin = sum(c.isascii() for c in letters)
    if not letters or han + latin < 0.8 * len(letters):
        return "other"
    return "zh" if latin < 0.2 * len(letters) else "en" if han < 0.05 * len(letters) else "en+zh"


def pairs_alike(looks_N: np.ndarray) -> Iterator[tuple[int, int]]:
    """Each pair once that shares all but NEAR bits."""
    bits_N, seen = looks_N.view(np.uint64), set()
    full_N = np.array([bits.bit_count() >= PLAIN for bits in bits_N.tolist()], dtype=bool)
    for band in range(BANDS):
        rows: dict[int, list[int]] = defaultdict(list)
        for i, value in enumerate(((bits_N >> np.uint64(16 * band)) & np.uint64(0xFFFF)).tolist()):
            if full_N[i]:
                rows[value].append(i)
        for some in rows.values():
            if len(some) > CROWDED:
                some = _without_crowds(some, bits_N)
            for i, j in combinations(some, 2) if len(some) <= CROWDED else ():
                if (i, j) not in seen and int(bits_N[i] ^ bits_N[j]).bit_count() <= NEAR:
                    seen.add((i, j))
                    yield i, j


def _without_crowds(some: list[int], bits_N: np.ndarray) -> list[int]:
    often = Counter(bits_N[some].tolist())
    return [i for i in some if often[int(bits_N[i])] <= NEAR]


def _span(values: np.ndarray) -> dict[str, float] | None:
    if not len(values):
        return None
    return {"least": int(values.min()), "median": float(statistics.median(values.tolist())), "most": int(values.max())}
