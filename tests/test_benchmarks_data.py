"""The loaders' benchmark and the fine-tuning script, in their pieces and tiny: they run, and say what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import data as loaders
from scripts import finetune
from triptych.data.album import Album
from triptych.data.forms import Reading


def test_loaders_are_raced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "BATCH", 4)
    said: list[str] = []
    found = loaders.indexing(12, 1, said.append)
    assert set(found["forms"]) == set(loaders.FORMS) and all(one["ours"] > 0 and one["peer"] > 0 for one in found["forms"].values())
    shares = loaders.waiting(12, 1, (32,), said.append, compiled=False)["shares"]
    assert len(shares) == 2 * len(loaders.FORMS) and all(0 <= one["share"] <= 1 for one in shares.values())
    grown = loaders.memory((12,), said.append)
    assert set(grown) == {"12, looking", "12, drawing"} and len(said) == len(loaders.FORMS) + len(shares) + 2


def test_a_robot_is_the_same_robot_in_other_places(tmp_path: Path) -> None:
    a, b, again = (finetune.robot(i) for i in (0, 1, 0))
    assert np.array_equal(np.asarray(a[0]), np.asarray(again[0])) and not np.array_equal(np.asarray(a[0]), np.asarray(b[0]))
    finetune.write(tmp_path / "pictures")
    album = Album(tmp_path / "pictures", Reading())
    assert len(album) == 20 and all(one.captions[0].startswith("[trigger] ") for one in album.each())
    assert len({one.captions for one in album.each()}) > 3
    assert not set(finetune.PRIOR) & set(finetune.OTHERS)


def test_what_is_told_of_a_fine_tuning() -> None:
    one = {"thing": {"value": 0.9, "low": 0.8, "high": 1.0}, "FD": 12.0, "apple": {"value": 70.0, "low": 69.0, "high": 71.0}, "kept": 2.0}
    training = {"learnt": 184320, "memory_MB": 342.0, "minutes": 5.1}
    found = {"before": {**one, "training": None}, "lora-8": {**one, "training": training}}
    page = finetune.page({"steps": 300, "n": 100, "found": found, "floor": 1.5})
    assert "| before |  |  |  | 90.0 % [80.0, 100.0] |" in page and "| lora-8 | 184,320 | 342 | 5.1 |" in page
    assert "other seeds: 1.50" in page
