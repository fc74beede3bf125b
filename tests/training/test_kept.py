"""Rows of frozen panels on the disk: made once, found by content and panel, bounded, and never worth a run."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
import torch
from torch import nn

from triptych.data.store import kept
from triptych.training.kept import Kept


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


class Counted:
    """Makes a row of its number, and counts."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, i: int) -> dict[str, torch.Tensor]:
        self.made.append(i)
        return {"z": torch.full((4, 2), float(i)), "ids": torch.arange(3)}


def panel(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Linear(3, 3)


def test_a_row_is_made_once_and_found_by_another_process_of_the_same_panel() -> None:
    make = Counted()
    rows = Kept("latents", panel(0), 2**20).rows(["a", "b", "a"], make)
    assert make.made == [0, 1] and [float(row["z"][0, 0]) for row in rows] == [0.0, 1.0, 0.0]
    again = Kept("latents", panel(0), 2**20).rows(["b", "a"], make)
    assert make.made == [0, 1] and [float(row["z"][0, 0]) for row in again] == [1.0, 0.0]
    assert again[0]["ids"].dtype == torch.int64 and again[0]["z"].shape == (4, 2)
    other = Kept("latents", panel(1), 2**20)
    other.rows(["a"], make)
    assert make.made == [0, 1, 0] and len([one for one in kept() if one.name.endswith(".sqlite")]) == 2
    assert Kept("latents", panel(0), 0).rows(["a"], make)[0]["z"].shape == (4, 2) and make.made[-1] == 0 and len(make.made) == 4


def test_its_room_is_kept_and_the_first_go_first() -> None:
    made = Kept("latents", panel(0), 40_000)
    for i in range(400):
        made.rows([str(i)], Counted())
    make = Counted()
    made.rows(["399"], make)
    assert not make.made
    made.rows(["0"], make)
    assert make.made == [0]
    assert sum(one.size for one in kept() if one.name.endswith(".sqlite")) < 4 * 40_000


def test_what_is_damaged_is_made_again(tmp_path: Path) -> None:
    Kept("latents", panel(0), 2**20).rows(["a", "b"], Counted())
    (file,) = (tmp_path / "cache" / "triptych").glob("latents-*.sqlite")
    with sqlite3.connect(file) as base:  # a bit of a row
        base.execute("update rows set row = zeroblob(bytes) where id = 1")
    base.close()
    make = Counted()
    rows = Kept("latents", panel(0), 2**20).rows(["a", "b"], make)
    assert make.made == [0] and [float(row["z"][0, 0]) for row in rows] == [0.0, 1.0]
    for beside in file.parent.glob("latents-*"):
        beside.unlink()
    file.write_bytes(b"no database" * 1000)
    make = Counted()
    Kept("latents", panel(0), 2**20).rows(["a"], make)
    assert make.made == [0]


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot keep latents .*XDG_CACHE_HOME"):
        Kept("latents", panel(0), 2**20).rows(["a"], Counted())


def test_two_trainers_share_what_is_kept() -> None:
    """Two connections, by turns and with the same rows: each finds what the other made."""
    one, two, make = Kept("latents", panel(0), 2**20), Kept("latents", panel(0), 2**20), Counted()
    for i in range(20):
        (one if i % 2 else two).rows([str(i)], make)
        (two if i % 2 else one).rows([str(i)], make)
    assert len(make.made) == 20
