"""A person's own folder: what is wrong is named, and nothing is cropped or mirrored."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych import data
from triptych.data import forms, picture
from triptych.recipe import Data, Source


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def spec(path: Path, size: int = 32, **options) -> Data:
    return Data(sources=(Source(name="folder", options={"path": str(path), **options}),), size=size)


def fill(folder: Path, n: int, suffix: str = ".png") -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(n):
        Image.new("RGB", (20, 10), (i % 256, 100, i // 256)).save(folder / f"p{i:03}{suffix}")
        (folder / f"p{i:03}.txt").write_text(f"picture  number {i}\n", encoding="utf-8")
    return folder


def test_sidecars_and_split(tmp_path):
    folder = fill(tmp_path / "own", 60)
    (folder / "p000.txt").rename(folder / "p000.caption")
    train, held = data.build(spec(folder)), data.build(spec(folder), split="held_out")
    assert len(train) + len(held) == 60 and 1 <= len(held) <= 9
    texts = set(train.texts(len(train))) | set(held.texts(len(held)))
    assert texts == {f"picture number {i}" for i in range(60)}
    batch = train.batch(0, 1, 8)
    assert batch.images_BCHW.shape == (8, 3, 32, 32)
    assert train.batch(0, 1, 8).keys == data.build(spec(folder)).batch(0, 1, 8).keys and all(k.startswith("folder:") for k in batch.keys)
    assert data.describe(spec(folder))["sources"][0]["held_out"]["pictures"] == len(held)


def test_whole_picture_on_white_upright_and_never_mirrored(tmp_path):
    from triptych.data.picture import fitted

    wide = np.full((10, 20, 3), 255, dtype=np.uint8)
    wide[:, :10], wide[:, 10:] = (255, 0, 0), (0, 0, 255)
    Image.fromarray(wide).save(tmp_path / "a.png")
    picture = fitted(tmp_path / "a.png", 40)
    assert (picture[:10] == 255).all() and (picture[30:] == 255).all()  # padded, not cropped
    assert (picture[20, 2] == (255, 0, 0)).all() and (picture[20, 37] == (0, 0, 255)).all()
    turned = Image.fromarray(wide)
    exif = turned.getexif()
    exif[0x0112] = 6  # turn clockwise to see it
    turned.save(tmp_path / "b.png", exif=exif)
    upright = fitted(tmp_path / "b.png", 40)
    assert (upright[2, 20] == (255, 0, 0)).all() and (upright[37, 20] == (0, 0, 255)).all()
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "c.png")
    assert (fitted(tmp_path / "c.png", 16) == 255).all()
    Image.new("I;16", (8, 8), 0x8000).save(tmp_path / "d.png")
    assert abs(int(fitted(tmp_path / "d.png", 16)[8, 8, 0]) - 128) <= 1


def test_all_formats(tmp_path):
    for i, suffix in enumerate((".png", ".jpg", ".jpeg", ".webp", ".gif")):
        Image.new("RGB", (16, 16), (40 * i, 90, 30)).save(tmp_path / f"x{i}{suffix}")
    (tmp_path / "notes.pdf").write_bytes(b"not a picture")
    assert len(data.build(spec(tmp_path, captions=False))) + len(data.build(spec(tmp_path, captions=False), split="held_out")) == 5


def test_metadata_table(tmp_path):
    folder = fill(tmp_path / "own", 5)
    rows = [{"file_name": f"p{i:03}.png", "text": f"row {i}", "more": 1} for i in range(5)]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    train, held = data.build(spec(folder)), data.build(spec(folder), split="held_out")
    assert set(train.texts(len(train)) + held.texts(len(held))) == {f"row {i}" for i in range(5)}


@pytest.mark.parametrize(("line", "message"), [
    ('{"file_name": "../secret.png", "text": "x"}', r"metadata\.jsonl:1.*secret\.png.*leads out"),
    ('{"file_name": "/etc/secret.png", "text": "x"}', r"leads out"),
    ('{"file_name": "..\\\\secret.png", "text": "x"}', r"leads out"),
    ('{"file_name": "p009.png", "text": "x"}', r"p009\.png \(.*metadata\.jsonl:1 names it, and it is not there"),
    ('{"file_name": "p001.tiff", "text": "x"}', r"p001\.tiff.*no picture"),
    ('{"file_name": "p001.png"}', r"metadata\.jsonl:1 has none of the columns text, caption"),
    ('{"file_name": "p001.png", "text": " "}', r"metadata\.jsonl:1 needs 'file_name' and 'text'"),
    ('["p001.png"]', r"metadata\.jsonl:1 needs"),
    ("{nonsense", r"metadata\.jsonl:1 is not JSON"),
    ("", r"is empty"),
])  # fmt: skip
def test_wrong_tables_are_named(tmp_path, line, message):
    folder = fill(tmp_path / "own", 3)
    (folder / "metadata.jsonl").write_text(line, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        data.build(spec(folder))


def test_missing_captions_are_named(tmp_path):
    folder = fill(tmp_path / "own", 9)
    (folder / "p004.txt").unlink()
    (folder / "p006.txt").write_text("  \n")
    with pytest.raises(ValueError, match=r"2 of 9.*p004\.png \(no caption: write p004\.txt.*p006\.png"):
        data.build(spec(folder))
    assert len(data.build(spec(folder, captions=False))) == 8


def test_one_in_a_hundred_may_lack_its_caption(tmp_path, capsys):
    folder = fill(tmp_path / "own", 120)
    (folder / "p007.txt").unlink()
    train = data.build(spec(folder))
    assert len(train) + len(data.build(spec(folder), split="held_out")) == 119
    assert "p007.png: left out: no caption" in capsys.readouterr().err
    rows = [{"file_name": f"p{i:03}.png", "text": f"row {i}"} for i in range(121)]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    assert set(data.build(spec(folder)).sources[0].describe()["broken"]) == {"p120.png"}


def test_broken_pictures_are_named_or_refused(tmp_path, capsys):
    folder = fill(tmp_path / "own", 120)
    (folder / "p007.png").write_bytes((folder / "p007.png").read_bytes()[:45])
    for _ in range(2):  # drawn, and then from the cache
        train = data.build(spec(folder))
        assert "p007.png" in capsys.readouterr().err and set(train.sources[0].describe()["broken"]) == {"p007.png"}
        assert len(train) + len(data.build(spec(folder), split="held_out")) == 119
        capsys.readouterr()
    (folder / "p008.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 120.*p007\.png \(.*p008\.png \("):
        data.build(spec(folder))


def test_a_bomb_is_refused(tmp_path, monkeypatch):
    folder = fill(tmp_path / "own", 3)
    monkeypatch.setattr(picture, "MOST_PIXELS", 150)
    with pytest.raises(ValueError, match="20 x 10 pixels are more than 150"):
        data.build(spec(folder))


def test_wrong_folders(tmp_path):
    with pytest.raises(ValueError, match="needs the option 'path'"):
        data.build(Data(sources=(Source(name="folder"),)))
    with pytest.raises(ValueError, match="nowhere is no folder"):
        data.build(spec(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no picture"):
        data.build(spec(tmp_path / "empty"))
    with pytest.raises(ValueError, match="two different"):
        data.build(spec(fill(tmp_path / "one", 1)))


def test_odd_places(tmp_path, monkeypatch):
    """Names that are no letters, that SQLite or a shell would trip over; links that go in circles or lead out; a cache beside them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "100% cache?#"))
    folder = fill(tmp_path / "own ' \" ?#%", 6)
    (tmp_path / "secret.png").write_bytes((folder / "p000.png").read_bytes())
    (folder / "in").mkdir()
    for i, name in enumerate((b"\xff\xfe.png", "图 片.png".encode(), b"a\nb.png", b"-x'; drop table pictures;.png")):
        path = os.path.join(os.fsencode(folder / "in"), name)
        with open(path, "wb") as file:
            file.write((folder / f"p00{i}.png").read_bytes()[:-1] + bytes([i]))  # other bytes behind the end
        with open(path[:-3] + b"txt", "w") as file:
            file.write(f"odd {i}")
    (folder / "in" / "loop").symlink_to(folder)
    (folder / "in" / "out.png").symlink_to(tmp_path / "secret.png")
    train, held = data.build(spec(folder)), data.build(spec(folder), split="held_out")
    texts = [*train.texts(len(train)), *held.texts(len(held))]
    assert sorted(texts) == sorted([*(f"picture number {i}" for i in range(6)), *(f"odd {i}" for i in range(4))])
    assert train.batch(0, 0, 8).images_BCHW.shape == (8, 3, 32, 32)


def test_a_file_that_is_far_too_large_is_not_read(tmp_path, monkeypatch):
    folder = fill(tmp_path / "own", 3)
    monkeypatch.setattr(forms, "MOST_BYTES", 1000)
    with open(folder / "huge.png", "wb") as file:
        file.truncate(10**9)  # nothing but a size
    (folder / "huge.txt").write_text("huge")
    with pytest.raises(ValueError, match=r"huge\.png \(1000000000 bytes are more than 1000\)"):
        data.build(spec(folder))


def test_a_picture_that_changes_while_it_is_read(tmp_path, monkeypatch):
    """It is named, nothing of it is kept, and the next run takes it as it is then."""
    from triptych.data import folder as source

    own, fitted = fill(tmp_path / "own", 5), source.fitted

    def struck(data, size):
        raise ValueError("struck")

    monkeypatch.setattr(source, "fitted", struck)
    with pytest.raises(ValueError, match=r"p00\d\.png of .* changed while it was being read: struck; run again"):
        data.build(spec(own))
    monkeypatch.setattr(source, "fitted", fitted)
    assert len(data.build(spec(own))) == 4
