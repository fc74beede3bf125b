"""A save that fails at any call, and a file that changes afterwards: the last good checkpoint always wins."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import pytest

from tests.faults.breaking import failed_saves, flipped_bits, save, whole
from tests.training import toy
from triptych.training import BadCheckpoint, DiskFull, state


@pytest.mark.parametrize(("how", "forever"), [("ENOSPC", False), ("EIO", False), ("EIO", True), ("kill", True)])
def test_a_save_may_fail_at_every_single_call(tmp_path: Path, how: str, forever: bool) -> None:
    calls, outcomes, wrong = failed_saves(tmp_path, how, forever=forever)
    assert calls > 20 and wrong == []
    assert {"ENOSPC": "DiskFull", "EIO": "OSError", "kill": "Died"}[how] in outcomes


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    assert flipped_bits(tmp_path, 60, random.Random(0)) == []


def test_a_cut_or_missing_file_is_found_without_hashes(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "checkpoints/step-000003/weights.safetensors").write_bytes(b"")
    assert state.newest(tmp_path).step == 2  # type: ignore[union-attr]
    (tmp_path / "checkpoints/step-000002/manifest.json").unlink()
    assert state.newest(tmp_path) is None


def test_a_file_that_changes_between_the_look_and_the_reading(tmp_path: Path) -> None:
    save(tmp_path, 1)
    found = state.newest(tmp_path)
    path = tmp_path / "checkpoints/step-000001/weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(BadCheckpoint, match=r"weights\.safetensors is damaged"):
        found.tensors("weights")  # type: ignore[union-attr]


def test_training_goes_on_from_before_a_damaged_checkpoint(tmp_path: Path) -> None:
    toy.run(tmp_path / "twin", steps=20, save_every=5)
    toy.run(tmp_path / "run", steps=20, save_every=5)
    path = tmp_path / "run/checkpoints/step-000020/averages.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    report = toy.Lines()
    toy.run(tmp_path / "run", steps=20, save_every=5, resume=True, report=report)
    assert any("averages.safetensors is damaged" in line for line in report.lines)
    assert any("resumed at step 15" in line for line in report.lines)
    assert toy.differences(tmp_path / "run", tmp_path / "twin", 20) == []


def test_a_short_disk_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))  # type: ignore[attr-defined]
    with pytest.raises(DiskFull, match=r"need \d+ bytes, 1000000 are free; free \d+ more"):
        toy.run(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_kept_are_the_newest(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step)
    assert whole(tmp_path) == [5, 4]


def test_no_pickle() -> None:
    source = "".join(p.read_text() for p in Path(state.__file__).parent.glob("*.py"))
    assert not re.search(r"torch\.(save|load)\b|import pickle", source)
