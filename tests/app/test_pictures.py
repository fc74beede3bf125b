"""Picture files: what is written is read back, by us and by A1111's own rules; what is damaged or hostile is refused."""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from triptych.app import pictures

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80) | st.lists(
    st.sampled_from(["Negative prompt:", "\n", " ", "a cat", "Steps: 20, Sampler: Euler, Seed: 1, Size: 8x8", '"', ",", "\\", "猫"]),
    max_size=8,
).map("".join)
NAME = st.text(st.characters(exclude_categories=["Cs"]), max_size=20).filter(lambda s: s not in ("Euler", "Heun", "DPM++ 2M"))
RECORD = st.fixed_dictionaries(
    {
        "schema": st.just(1),
        "prompt": TEXT,
        "seed": st.integers(0, 2**63 - 1),
        "size": st.lists(st.integers(1, 4096), min_size=2, max_size=2),
        "version": st.just("triptych 0.1.0"),
    },
    optional={
        "negative": TEXT,
        "steps": st.integers(1, 1000),
        "guidance": st.floats(0, 50),
        "sampler": NAME | st.just("dpmpp_2m"),
        "model": NAME,
        "model_hash": st.from_regex(r"[0-9a-f]{10}", fullmatch=True),
        "exact": st.booleans(),
        "settings": st.dictionaries(NAME, st.floats(0, 1)),
    },
)
IN_THE_LINE = ("prompt", "negative", "steps", "sampler", "guidance", "seed", "size", "model_hash", "model", "version")
SMALL = {"schema": 1, "prompt": "a cat", "negative": "dogs", "seed": 7, "steps": 20, "sampler": "euler", "guidance": 3.0, "size": [8, 4],
         "model": "emoji", "model_hash": "0123456789", "version": "triptych 0.1.0"}  # fmt: skip


def image() -> Image.Image:
    return Image.effect_noise((8, 4), 60).convert("RGB")


@given(RECORD)
@settings(max_examples=300, deadline=None)
def test_parameters_text_is_read_back_exactly(record: dict) -> None:
    text = pictures.format_parameters(record)
    read = pictures.parse_parameters(text)
    assert read == {"negative": "", **{k: record[k] for k in IN_THE_LINE if k in record}}
    assert pictures.format_parameters(read) == text


@given(record=RECORD)
@settings(max_examples=60, deadline=None)
def test_record_is_read_back_from_png(record: dict, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("png") / "a.png"
    pictures.write(image(), path, record)
    assert pictures.read(path) == record


@given(st.text(max_size=300) | st.binary(max_size=300).map(lambda b: b.decode("latin-1")))
@settings(max_examples=300, deadline=None)
def test_any_text_can_be_parsed(text: str) -> None:
    assert isinstance(pictures.parse_parameters(text)["prompt"], str)


def test_parsing_takes_linear_time() -> None:
    for text in ("a" * 10**6, "aa:" * 300_000, 'aa:"' * 200_000, "a, " * 300_000, " " * 10**6, 'a: "' + "\\" * 10**6):
        pictures.parse_parameters(text)  # a quadratic pattern would take hours


def test_parameters_are_written_as_a1111_writes_them() -> None:
    """The text, checked by A1111's published pattern and by eye."""
    text = pictures.format_parameters(SMALL | {"model": "a, b"})
    assert text.splitlines() == [
        "a cat", "Negative prompt: dogs",
        'Steps: 20, Sampler: Euler, CFG scale: 3, Seed: 7, Size: 8x4, Model hash: 0123456789, Model: "a, b", Version: triptych 0.1.0',
    ]  # fmt: skip
    theirs = re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', text.splitlines()[-1])
    assert dict(theirs)["CFG scale"] == "3" and dict(theirs)["Model"] == '"a, b"'


def test_a1111_text_of_others_is_read() -> None:
    read = pictures.parse_parameters(
        "a cat,\non a mat\nNegative prompt: bad, worse\nstill bad\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 96, Size: 512x768, Clip skip: 2"
    )
    assert read == {"prompt": "a cat,\non a mat", "negative": "bad, worse\nstill bad", "steps": 20, "sampler": "Euler a", "guidance": 7.5,
                    "seed": 96, "size": [512, 768], "other": {"Clip skip": "2"}}  # fmt: skip
    assert pictures.parse_parameters("only: a, prompt") == {"prompt": "only: a, prompt", "negative": ""}


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".webp", ".PNG"])
def test_every_format_carries_record_parameters_and_mark(tmp_path: Path, suffix: str) -> None:
    path, record = tmp_path / f"a{suffix}", SMALL | {"prompt": "猫 🐱\nNegative prompt: not one"}
    drawn = image()
    pictures.write(drawn, path, record)
    assert pictures.read(path) == record
    assert pictures.read_parameters(path) == {k: record[k] for k in IN_THE_LINE}
    assert b"digitalsourcetype/trainedAlgorithmicMedia" in path.read_bytes()
    with Image.open(path) as read:
        assert read.size == (8, 4)
        if suffix.lower() != ".jpg" and suffix != ".jpeg":
            assert read.convert("RGB").tobytes() == drawn.tobytes()
        if suffix == ".png":
            assert read.info["XML:com.adobe.xmp"].startswith("<?xpacket")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_without_record_a_picture_says_nothing(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    pictures.write(image(), path, None)
    assert pictures.read(path) is None and pictures.read_parameters(path) is None
    assert b"trainedAlgorithmicMedia" not in path.read_bytes() and b"riptych" not in path.read_bytes()


def test_nothing_is_overwritten_and_nothing_is_left_over(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pictures.write(image(), path, SMALL)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        pictures.write(image(), path, None)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.png"]
    pictures.write(image(), path, None, overwrite=True)
    assert pictures.read(path) is None


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\.gif"):
        pictures.write(image(), tmp_path / "a.gif", None)
    with pytest.raises(ValueError, match="EXIF"):
        pictures.write(image(), tmp_path / "a.jpg", SMALL | {"prompt": "long " * 20_000})
    with pytest.raises(ValueError, match="'seed'"):
        pictures.write(image(), tmp_path / "a.png", SMALL | {"seed": "7"})
    assert not list(tmp_path.iterdir())


def png(path: Path, record: str) -> Path:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("triptych", record)
    image().save(path, pnginfo=chunks)
    return path


@pytest.mark.parametrize("record", [
    "{", "[1]", "7", "[" * 100_000, "{}", json.dumps(SMALL | {"schema": 99}), json.dumps(SMALL | {"size": [1, 2, 3]}),
    json.dumps(SMALL | {"seed": True}), json.dumps(SMALL | {"batch": [0, "x"]}), json.dumps(SMALL | {"prompt": "x" * 2**20}),
    json.dumps(SMALL | {"settings": [1]}), '{"seed": ' + "9" * 5000 + "}",
])  # fmt: skip
def test_hostile_records_are_refused_by_name(tmp_path: Path, record: str) -> None:
    with pytest.raises(ValueError, match=r"a\.png"):
        pictures.read(png(tmp_path / "a.png", record))


def test_damaged_pictures_are_refused(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    pictures.write(image(), whole, SMALL)
    data, path = whole.read_bytes(), tmp_path / "a.png"
    for cut in range(0, len(data), 37):
        path.write_bytes(data[:cut])
        try:
            assert pictures.read(path) in (None, SMALL)
        except ValueError as error:
            assert "a.png" in str(error)
    path.write_bytes(b"GIF89a" + data)
    with pytest.raises(ValueError, match="no PNG"):
        pictures.read(path)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    pictures.write(image(), whole, None)
    data = whole.read_bytes()
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + data[24:29]
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(data[:12] + header + zlib.crc32(header).to_bytes(4, "big") + data[33:])
    with pytest.raises(ValueError, match="trusted"):
        pictures.read(bomb)
