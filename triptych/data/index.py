"""One random-access index: which row sample number n is, computed without reading the n before it.

    sample n = step * batch_size + row  ->  (source, position in it)  ->  (epoch, place in that epoch's permutation)

or, where pictures have many shapes, the same of batches, each of one source and one shape (`buckets`).


Every arrow is a pure function of the seed, so an order is resumed with one integer, and batch(seed, step) is the same whether the
batches before it were read or not.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from ..contracts import Batch, Prompt, Rng
from . import WORDS

__all__ = ["Dataset", "Port", "Row", "Source", "as_images", "deal", "deck", "draws", "permutation", "pick", "place", "stable_hash"]

T = TypeVar("T")

DECK = 1000  # samples in which each source gets its exact share; weights are honoured to 1 / DECK


class Row(NamedTuple):
    """One example. picture: uint8 [H, W, 3], or None where there are words alone. key: names the CONTENT of the picture."""

    picture: np.ndarray | None
    prompt: Prompt
    key: str


class Source(Protocol):
    """count: the number of different examples. `row` is a pure function: the position-th example in this seed's order.

    A source of pictures of several shapes has `groups` as well, how many it has of each, and its `row` takes a group's number.
    """

    name: str
    count: int

    def row(self, seed: int, position: int) -> Row: ...

    def describe(self) -> dict[str, Any]: ...


class Port(Protocol):
    """Fills a row's prompt further, by one draw's rng (of one row). Raises ValueError for a row that lacks what the port reads."""

    def __call__(self, row: Row, rng: Rng) -> Prompt: ...


def stable_hash(*parts: int | str) -> int:
    """63 bits, the same on every machine and in every process."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def draws(*parts: int | str) -> random.Random:
    """A stream of draws of its own. Only `.random()` is used of it: the one method whose values Python promises to keep."""
    return random.Random(stable_hash(*parts))


def pick(rng: random.Random, choices: Sequence[T]) -> T:
    return choices[int(rng.random() * len(choices))]


@lru_cache(maxsize=64)
def permutation(key: int, length: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=key)).permutation(length)


def place(seed: int, position: int, length: int) -> int:
    """Where the position-th draw of a finite source falls: every epoch is a permutation of its own."""
    epoch, offset = divmod(position, length)
    return int(permutation(stable_hash(seed, "epoch", epoch), length)[offset])


@lru_cache(maxsize=64)
def deck(key: int, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A shuffled deck: for each of its cards the owner, and the number of the owner's cards before it."""
    owners = np.repeat(np.arange(len(counts)), counts)[permutation(key, sum(counts))]
    before = np.zeros(len(owners), dtype=np.int64)
    for owner in range(len(counts)):
        mine = owners == owner
        before[mine] = np.arange(int(mine.sum()))
    return owners, before


def deal(seed: int, n: int, counts: tuple[int, ...]) -> tuple[int, int]:
    """(whose turn sample n is, how often it was theirs before), in O(1): decks of sum(counts) cards, each shuffled on its own."""
    number, card = divmod(n, sum(counts))
    owners, before = deck(stable_hash(seed, "deck", number), counts)
    owner = int(owners[card])
    return owner, number * counts[owner] + int(before[card])


def shares(weights: Sequence[float], cards: int = DECK) -> tuple[int, ...]:
    """Weights as whole cards of a deck, by largest remainder; a weight above zero gets at least one card."""
    exact = np.asarray(weights, dtype=np.float64) / sum(weights) * cards
    counts = np.maximum(np.floor(exact), np.asarray(weights) > 0).astype(int)
    for i in np.argsort(counts - exact, kind="stable"):
        if counts.sum() < cards:
            counts[i] += exact[i] > 0
    return tuple(int(count) for count in counts)


def as_images(pictures: Sequence[Any]) -> torch.Tensor:
    """uint8 [H, W, 3] each, or RGB pictures of PIL, of one size -> float32 [B, 3, H, W] in [-1, 1]."""
    pixels = np.stack([np.array(picture) for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1.0)


class Dataset:
    """A mixture of sources. `sources` and `size` are as built; `len` is the number of different examples.

    ports: (name, what fills the prompt of each row further), in order; see `triptych.data.ports`.
    buckets: batches are of one shape each; sources are mixed batch by batch, and one without `groups` has squares.

    With size 0 there are no pictures: every source gives its words alone.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], *, size: int, ports: Sequence[tuple[str, Port]] = (),
        buckets: bool = False,
    ) -> None:  # fmt: skip
        self.sources, self.size, self.ports, self.buckets = tuple(sources), size, tuple(ports), buckets
        for source in sources:
            if not source.count:
                raise ValueError(f"data source {source.name!r} holds nothing in this split; {source.describe()}")
        silent = [source.name for source in sources if source.name in WORDS]
        if size and silent and len(silent) < len(sources):
            raise ValueError(f"source {silent[0]!r} has no pictures and cannot be mixed with pictures of side {size}; set data.size to 0")
        self._cards = shares(weights)

    def __len__(self) -> int:
        return sum(source.count for source in self.sources)

    @property
    def shapes(self) -> int:
        """How many shapes its batches have, at most."""
        return sum(len(getattr(source, "groups", ())) or 1 for source in self.sources) if self.buckets else 1

    def row(self, seed: int, n: int) -> Row:
        """Sample number n; in buckets it is one of some shape, and in no batch's order."""
        which, position = deal(seed, n, self._cards)
        return self._filled(self.sources[which].row(stable_hash(seed, "source", which), position), seed, n)

    def _filled(self, row: Row, seed: int, n: int) -> Row:
        for name, port in self.ports:
            row = row._replace(prompt=port(row, Rng.of_samples(stable_hash(seed, "port", name), [n])))
        return row

    def _of_one_shape(self, seed: int, step: int, batch_size: int) -> list[Row]:
        from .buckets import turn

        which, k = deal(seed, step, self._cards)
        source, key = self.sources[which], stable_hash(seed, "source", which)
        groups = getattr(source, "groups", ())
        group, j = turn(key, k, groups, batch_size) if groups else (0, k)
        more, first = ((group,), j * batch_size) if groups else ((), j * batch_size)
        rows = [source.row(stable_hash(key, "bucket", group), position, *more) for position in range(first, first + batch_size)]
        return [self._filled(row, seed, step * batch_size + i) for i, row in enumerate(rows)]

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Samples step * batch_size ... of this seed's order. Images float32 [B, 3, H, W] in [-1, 1], or None for texts alone.

        H = W = size, but in buckets: there each batch has the shape of its own.
        """
        index = range(step * batch_size, (step + 1) * batch_size)
        rows = self._of_one_shape(seed, step, batch_size) if self.buckets else [self.row(seed, n) for n in index]
        images = None
        if rows and rows[0].picture is not None:
            images = as_images([row.picture for row in rows if row.picture is not None])
        return Batch(index=tuple(index), images_BCHW=images, prompts=tuple(row.prompt for row in rows), keys=tuple(row.key for row in rows))

    def examples(self, n: int, seed: int = 0) -> Batch:
        """The first n of a fixed order, for validation."""
        return self.batch(seed, 0, n)

    def texts(self, n: int, seed: int = 0) -> list[str]:
        """The words of the first n samples; no picture is made. What a tokenizer learns from."""
        return [self._words(seed, i) for i in range(n)]

    def _words(self, seed: int, n: int) -> str:
        which, position = deal(seed, n, self._cards)
        source, key = self.sources[which], stable_hash(seed, "source", which)
        words = getattr(source, "words", None)
        return words(key, position) if words else source.row(key, position).prompt.text
