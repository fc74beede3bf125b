"""Squares of photographs: none of a held-out one is learnt from, and a missing package is named."""

from __future__ import annotations

import pytest

from triptych import data
from triptych.data import photos
from triptych.recipe import Data, Source

SPEC = Data(sources=(Source(name="photos"),), size=48)


def test_squares_of_photographs() -> None:
    train, held = data.build(SPEC), data.build(SPEC, split="held_out")
    assert len(train) > 200 and len(held) > 200
    whole = {split: {dataset.row(0, n).key for n in range(len(dataset))} for split, dataset in (("train", train), ("held", held))}
    assert [len(keys) for keys in whole.values()] == [len(train), len(held)]
    names = {split: {key.split(":")[1] for key in keys} for split, keys in whole.items()}
    assert not names["train"] & names["held"] and "chelsea" in names["held"] and len(names["train"] | names["held"]) == len(photos.PHOTOS)
    batch = held.examples(16)
    assert batch.images_BCHW is not None and batch.images_BCHW.shape == (16, 3, 48, 48) and float(batch.images_BCHW.std()) > 0.2
    texts = set(held.texts(200))
    assert {"a cat", "一只猫"} <= texts


def test_a_package_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"skimage.*not installed: pip install 'triptych\[photos\]'"):
        data.build(SPEC)
