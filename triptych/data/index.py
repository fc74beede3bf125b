"""One random-access index: which row sample number n is, computed without reading the n before it.

    sample n = step * batch_size + row  ->  (source, position in it)  ->  (epoch, place in that epoch's permutation)

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

__all__ = ["Dataset", "Port", "Row", "Source", "as_images", "deal", "draws", "pick", "place", "stable_hash"]

T = TypeVar("T")

DECK = 1000  # samples in which each source gets its exact share; weights are honoured to 1 / DECK


class Row(NamedTuple):
    """One example. picture: uint8 [H, W, 3], or None where there are words alone. key: names the CONTENT of the picture."""

    picture: np.ndarray | None
    prompt: Prompt
    key: str


class Source(Protocol):
    """count: the number of different examples. `row` is a pure function: the position-th example in this seed's order."""

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
def _permutation(key: int, length: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=key)).permutation(length)


def place(seed: int, position: int, length: int) -> int:
    """Where the position-th draw of a finite source falls: every epoch is a permutation of its own."""
    epoch, offset = divmod(position, length)
    return int(_permutation(stable_hash(seed, "epoch", epoch), length)[offset])


@lru_cache(maxsize=64)
def _deck(key: int, counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """A shuffled deck: for each of its cards the owner, and the number of the owner's cards before it."""
    owners = np.repeat(np.arange(len(counts)), counts)[_permutation(key, sum(counts))]
    before = np.zeros(len(owners), dtype=np.int64)
    for owner in range(len(counts)):
        mine = owners == owner
        before[mine] = np.arange(int(mine.sum()))
    return owners, before


def deal(seed: int, n: int, counts: tuple[int, ...]) -> tuple[int, int]:
    """(whose turn sample n is, how often it was theirs before), in O(1): decks of sum(counts) cards, each shuffled on its own."""
    deck, card = divmod(n, sum(counts))
    owners, before = _deck(stable_hash(seed, "deck", deck), counts)
    owner = int(owners[card])
    return owner, deck * counts[owner] + int(before[card])


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

    With size 0 there are no pictures: every source gives its words alone.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float], *, size: int, ports: Sequence[tuple[str, Port]] = ()
    ) -> None:  # fmt: skip
        self.sources, self.size, self.ports = tuple(sources), size, tuple(ports)
        for source in sources:
            if not source.count:
                raise ValueError(f"data source {source.name!r} holds nothing in this split; {source.describe()}")
        silent = [source.name for source in sources if source.name == "texts"]
        if size and silent and len(silent) < len(sources):
            raise ValueError(f"source 'texts' has no pictures and cannot be mixed with pictures of side {size}; set data.size to 0")
        self._cards = shares(weights)

    def __len__(self) -> int:
        return sum(source.count for source in self.sources)

    def row(self, seed: int, n: int) -> Row:
        """Sample number n."""
        which, position = deal(seed, n, self._cards)
        row = self.sources[which].row(stable_hash(seed, "source", which), position)
        for name, port in self.ports:
            row = row._replace(prompt=port(row, Rng.of_samples(stable_hash(seed, "port", name), [n])))
        return row

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        """Samples step * batch_size ... of this seed's order. Images float32 [B, 3, size, size] in [-1, 1], or None for texts alone."""
        index = range(step * batch_size, (step + 1) * batch_size)
        rows = [self.row(seed, n) for n in index]
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
