"""The order is a pure function of the seed: any sample can be asked for alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from triptych import data
from triptych.contracts import Prompt
from triptych.data.index import Dataset, Row, deal, place, shares, stable_hash
from triptych.recipe import Data, Source


class Numbers:
    """A source of `count` rows, each saying its number."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count

    def row(self, seed: int, position: int) -> Row:
        n = place(seed, position, self.count)
        return Row(np.full((4, 4, 3), n, dtype=np.uint8), Prompt(text=f"{self.name} {n}"), f"{self.name}:{n}")

    def describe(self) -> dict:
        return {}


def test_hash_is_pinned():
    assert stable_hash("idea", "1f63b") == 8015521019358286914  # another number would move every split and order


@pytest.mark.parametrize("length", [1, 7, 100])
def test_each_epoch_shows_everything_once(length):
    epochs = [[place(5, epoch * length + i, length) for i in range(length)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    if length == 100:
        assert epochs[0] != epochs[1] != epochs[2]


def test_dealing_equals_counting():
    counts, seen = (7, 2, 1), Counter()
    for n in range(60):
        owner, turn = deal(3, n, counts)
        assert turn == seen[owner]
        seen[owner] += 1
    assert seen == {0: 42, 1: 12, 2: 6}
    assert deal(3, 10**12, counts)[1] > 10**10  # no loop behind it


def test_shares_are_whole_and_none_is_lost():
    assert shares([0.7, 0.3], 10) == (7, 3)
    assert sum(shares([1, 1, 1])) == 1000
    assert shares([1000, 1e-6])[1] == 1
    assert shares([1.0, 0.0], 100) == (100, 0)


def test_batches_are_random_access_and_of_any_size():
    mix = Dataset([Numbers("a", 11), Numbers("b", 5)], [3, 1], size=4)
    assert len(mix) == 16
    whole = mix.batch(9, 0, 40)
    assert whole.index == tuple(range(40)) and whole.images_BCHW.shape == (40, 3, 4, 4)
    for size in (1, 4, 8):
        parts = [mix.batch(9, step, size) for step in reversed(range(40 // size))][::-1]
        assert [p.text for part in parts for p in part.prompts] == [p.text for p in whole.prompts]
        assert torch.equal(torch.cat([part.images_BCHW for part in parts]), whole.images_BCHW)
    assert mix.batch(10, 0, 40).keys != whole.keys
    assert mix.texts(40, seed=9) == [p.text for p in whole.prompts]


def test_wrong_names_are_answered_with_the_right_one():
    with pytest.raises(ValueError, match=r"emojis.*did you mean 'emoji'"):
        data.build(Data(sources=(Source(name="emojis"),)))
    with pytest.raises(ValueError, match="background'; did you mean 'backgrounds'"):
        data.build(Data(sources=(Source(name="scenes", options={"background": 1}),)))
    with pytest.raises(ValueError, match=r"set data\.size to 0"):
        sources = (Source(name="scenes"), Source(name="texts", options={"emoji_share": 0}))
        data.build(Data(sources=sources, size=32))
