"""What a SPEC says, and the verbs that read one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.app.data import parse_data_spec
from triptych.recipe import Data, Source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept here, and cleared, is nobody else's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


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
    told = {"path": str(folder), "form": "classes", "lines": True, "template": "a {class}, whole"}
    said = parse_data_spec(f"{folder}?form=classes&lines=true&template=a {{class}}, whole", 16)
    assert said.sources == (Source(name="folder", options=told),)
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
    ran = run("data", "check", "scenes,emoji", "--json")
    assert ran.code == 0 and [one["name"] for one in ran.json["sources"]] == ["scenes", "emoji"]
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


# --- a check ----------------------------------------------------------------------------------------------------------------


def test_a_check_tells_all_of_it(run: Callable, folder: Path, here: Path) -> None:
    """Twice the same, alike to the eye, too long, in Chinese, broken: each is counted and named, in JSON, in text and on a page."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    noise = Image.fromarray(pixels).resize((60, 60), Image.Resampling.BICUBIC)
    noise.save(folder / "n.png")
    (folder / "n.txt").write_text("noise", encoding="utf-8")
    noise.resize((120, 120)).save(folder / "large.webp", quality=90)
    (folder / "large.txt").write_text("<b>大的噪声</b>", encoding="utf-8")
    (folder / "again.png").write_bytes((folder / "n.png").read_bytes())
    (folder / "again.txt").write_text("a very long caption " * 30, encoding="utf-8")
    ran = run("data", "check", folder, "--page", "check.html", "--json")
    told = ran.json
    assert ran.code == 0 and told["pictures"]["count"] == 27 and told["pictures"]["formats"] == {"PNG": 26, "WEBP": 1}
    assert told["duplicates"]["named"] == [["again.png", "n.png"]] or told["duplicates"]["named"] == [["n.png", "again.png"]]
    assert told["alike"]["pairs"] == 2 and told["captions"]["too_long_named"] == ["again.png"]
    assert told["captions"]["languages"] == {"en": 26, "zh": 1} or told["captions"]["languages"] == {"en": 26, "en+zh": 1}
    assert sum(told["buckets"].values()) == 27
    page = (here / "check.html").read_text(encoding="utf-8")
    assert "&lt;b&gt;大的噪声" in page and not any(bad in page for bad in ("<b>大的噪声", "<script", "http:", "https:"))
    assert page.count("data:image/webp;base64,") == 27 + 2 + 4
    (folder / "silent.png").write_bytes((folder / "3.png").read_bytes())
    assert "silent.png (no caption: write silent.txt beside it" in run("data", "check", folder).out
    (folder / "silent.png").unlink()
    (folder / "broken.png").write_bytes(b"\x80\x04no picture")
    (folder / "broken.txt").write_text("broken", encoding="utf-8")
    ran = run("data", "check", folder)
    assert ran.code == 3 and "1 of 28 pictures cannot be used" in ran.err
    assert "broken.png (no PNG" in ran.out and "1 pictures are there twice" in ran.out
    assert run("data", "check", folder, "--page", "check.html").code == 2
    ran = run("data", "check", f"{folder}?frm=classes")
    assert ran.code == 3 and "no option 'frm'; did you mean 'form'" in ran.err


def test_what_is_kept_can_be_seen_and_cleared(run: Callable, folder: Path) -> None:
    assert run("data", "build", folder, "--size", "16").code == 0
    kept = run("data", "cache", "list", "--json").json
    names = {one["name"] for one in kept["kept"]}
    assert any(name.startswith("album-") for name in names) and any(name.startswith("folder-") for name in names)
    assert kept["folder"].startswith(os.environ["XDG_CACHE_HOME"])
    assert kept["bytes"] == sum(one["bytes"] for one in kept["kept"]) and kept["folder"] in run("data", "cache", "list").out
    assert run("data", "cache", "clear", "nothing-*").code == 2
    removed = run("data", "cache", "clear", "album-*", "--json").json["removed"]
    assert set(removed) == {name for name in names if name.startswith("album-")}
    assert run("data", "cache", "clear").code == 0 and not run("data", "cache", "list", "--json").json["kept"]
    assert run("data", "build", folder, "--size", "16").code == 0
