"""Aspect-ratio buckets: pictures of many shapes, each learnt from in a shape near its own, and batches of one shape each.

    shapes = plan(area=64 * 64, step=8, slimmest=2.0)       -> [(height, width), ...], the square among them
    which = assign(sizes_N2, shapes, upscale=False)         -> the bucket of each picture, -1 = too small for its own
    group, j = turn(seed, k, counts, batch)                 -> batch number k is the j-th of that bucket

A picture is made as small as it still covers its bucket, and its middle is taken: with the nearest ratio little is lost. It is never
enlarged unless that is asked for.

Each bucket is an endless row of epochs, each a permutation of its pictures, which is cut into batches: none is left out or seen more often
because its bucket's number is no multiple of the batch. In what order buckets take their turns is drawn anew each epoch. All of it is a
function of (seed, number of the batch), so that a run goes on with one integer. Shape legend: N pictures, (width, height) of each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from .index import deck, stable_hash

__all__ = ["assign", "histogram", "plan", "turn"]


def plan(area: int, step: int, slimmest: float) -> list[tuple[int, int]]:
    """All (height, width) in multiples of `step`, at most `area` large, up to `slimmest` times as long as wide; by ratio.

    Raises ValueError where not even one fits.
    """
    if slimmest < 1:
        raise ValueError(f"buckets up to 1 : {slimmest}: a picture is 1 or more times as long as it is wide")
    found = set()
    for short in range(step, math.isqrt(area) + 1, step):
        long = area // short // step * step
        if short <= long <= slimmest * short:
            found |= {(short, long), (long, short)}
    if not found:
        raise ValueError(f"no bucket of {area} pixels in multiples of {step}: give a larger size, or a smaller step")
    best: dict[float, tuple[int, int]] = {}
    for height, width in sorted(found):  # of one ratio the largest
        ratio = round(height / width, 6)
        if ratio not in best or height * width > best[ratio][0] * best[ratio][1]:
            best[ratio] = (height, width)
    return [best[ratio] for ratio in sorted(best)]


def assign(sizes_N2: np.ndarray, shapes: Sequence[tuple[int, int]], *, upscale: bool) -> np.ndarray:
    """The nearest bucket by the logarithm of the ratio, int64 [N]; -1 for a picture that does not cover it, unless it may be enlarged."""
    ratios_K = np.log([height / width for height, width in shapes])
    mine_N = np.log(sizes_N2[:, 1] / sizes_N2[:, 0])
    which_N = np.abs(mine_N[:, None] - ratios_K[None]).argmin(1) if len(sizes_N2) else np.zeros(0, dtype=np.int64)
    if not upscale:
        wanted_N2 = np.array([(width, height) for height, width in shapes])[which_N]
        which_N = np.where((sizes_N2 >= wanted_N2).all(1), which_N, -1)
    return which_N


def histogram(which_N: np.ndarray, shapes: Sequence[tuple[int, int]]) -> dict[str, int]:
    """ "64x96" (width x height) -> how many pictures, of buckets that hold any; "too small" of those that stay out."""
    counts = {f"{width}x{height}": int((which_N == i).sum()) for i, (height, width) in enumerate(shapes)}
    return {name: n for name, n in {**counts, "too small": int((which_N < 0).sum())}.items() if n}


def turn(seed: int, k: int, counts: tuple[int, ...], batch: int) -> tuple[int, int]:
    """(the bucket of batch number k, how many of its batches come before).

    Up to the end of epoch e bucket b has had floor(e n_b / batch) batches: all that its pictures fill.
    """
    epoch, first = _epoch(k, counts, batch)
    before, these = _batches(epoch, counts, batch), _batches(epoch + 1, counts, batch)
    owners, earlier = deck(stable_hash(seed, "buckets", epoch), tuple(b - a for a, b in zip(before, these, strict=True)))
    group = int(owners[k - first])
    return group, before[group] + int(earlier[k - first])


def _batches(epochs: int, counts: tuple[int, ...], batch: int) -> list[int]:
    return [epochs * n // batch for n in counts]


@lru_cache(maxsize=64)
def _epoch(k: int, counts: tuple[int, ...], batch: int) -> tuple[int, int]:
    """The epoch in which batch k falls, and the number of its first batch."""
    low, high = 0, (k + len(counts) + 1) * batch // max(1, sum(counts)) + 1
    while low < high:  # the last epoch that begins at or before k
        middle = (low + high + 1) // 2
        if sum(_batches(middle, counts, batch)) <= k:
            low = middle
        else:
            high = middle - 1
    return low, sum(_batches(low, counts, batch))
