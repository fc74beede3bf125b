"""What a SPEC says, and the verbs that read one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from triptych.app.data import parse_data_spec
from triptych.recipe import Data, Source


@pytest.fixture
def folder(here: Path) -> Path:
    path = here / "my pictures, red:2"
    path.mkdir()
    for i in range(24):
        Image.new("RGB", (20 + i, 16), (10 * i, 0, 0)).save(path / f"{i}.png")
        (path / f"{i}.txt").write_text(f"a red card of {i}")
    return path


def test_names_weights_and_folders(folder: Path) -> None:
    assert parse_data_spec("emoji", 32) == Data(sources=(Source(name="emoji"),), size=32)
    assert parse_data_spec(" emoji:2, scenes:0.5 ", 64) == Data(
        sources=(Source(name="emoji", weight=2.0), Source(name="scenes", weight=0.5)), size=64
    )
    assert parse_data_spec("texts", 64).size == 0
    mine = Source(name="folder", options={"path": str(folder)})
    assert parse_data_spec(str(folder), 16) == Data(sources=(mine,), size=16)
    plain = folder.rename(folder.with_name("plain"))
    mixed = parse_data_spec("emoji:3,plain:1", 16)
    assert mixed.sources == (Source(name="emoji", weight=3.0), Source(name="folder", weight=1.0, options={"path": plain.name}))


@pytest.mark.parametrize(
    "spec", ["", "emojis", "emoji:0", "emoji:-1", "emoji:nan", "emoji:inf", "emoji,,scenes", "folder", "nowhere:3", ":", "emoji:x"]
)
def test_what_is_no_spec(here: Path, spec: str) -> None:
    with pytest.raises(ValueError):
        parse_data_spec(spec, 32)


def test_verbs_of_data(run: Callable, folder: Path, here: Path) -> None:
    ran = run("data", "check", folder, "--json")
    assert ran.code == 0 and ran.json["sources"][0]["name"] == "folder"
    assert run("data", "check", folder).code == 0
    ran = run("data", "build", folder, "--size", "16", "--json")
    assert ran.code == 0 and sum(ran.json["examples"].values()) == 24
    ran = run("data", "show", folder, "-n", "6", "--columns", "3", "--json")
    assert ran.code == 0 and len(ran.json["captions"]) == 6
    with Image.open(here / "sheet.png") as sheet:
        assert list(sheet.size) == ran.json["size"]
    assert run("data", "show", folder, "-n", "2").out == "sheet-2.png\n"
    ran = run("data", "show", folder, "-o", "sheet.png")
    assert ran.code == 2 and "nothing is overwritten" in ran.err


def test_train_takes_data_and_settings(folder: Path) -> None:
    from triptych.app.train import find_recipe

    recipe = find_recipe("tiny", str(folder), ["steps=3", "optimizer.lr=1e-4"])
    assert recipe.data.sources[0].options == {"path": str(folder)} and recipe.steps == 3 and recipe.optimizer.lr == 1e-4
