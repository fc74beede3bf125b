"""Plain text files: every line that says anything, in both languages, none of the held-out ones learnt; and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych import data
from triptych.app.data import parse_data_spec
from triptych.recipe import Data, Source


def spec(path: Path) -> Data:
    return Data(sources=(Source(name="lines", options={"path": str(path)}),), size=0)


def test_every_line_of_every_file(tmp_path: Path) -> None:
    many = "".join(f"line {i}\n" for i in range(200))
    (tmp_path / "a.txt").write_text(f"\ufeffone\n\n  two   words \r\n红色的圆\n{many}", encoding="utf-8")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.txt").write_text("the last, without an end", encoding="utf-8")
    (tmp_path / "notes.md").write_text("not read")
    train, held = data.build(spec(tmp_path)), data.build(spec(tmp_path), split="held_out")
    texts = [*train.texts(len(train)), *held.texts(len(held))]
    assert sorted(texts) == sorted(["one", "two words", "红色的圆", "the last, without an end", *(f"line {i}" for i in range(200))])
    assert 1 <= len(held) <= 30 and train.texts(50, seed=1) != train.texts(50, seed=2)
    batch = train.batch(0, 3, 8)
    assert batch.images_BCHW is None and batch.keys == data.build(spec(tmp_path)).batch(0, 3, 8).keys


def test_a_file_is_a_spec(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("a cat\n" * 3)
    assert parse_data_spec(str(file), 32) == spec(file)
    assert parse_data_spec(f"{tmp_path}?form=texts", 32) == spec(tmp_path)


@pytest.mark.parametrize(("content", "message"), [
    (b"fine\n\xff\xfe\n", r"a\.txt:2 is not UTF-8"), (b"x" * 70_000, r"a\.txt:1 has 70000 bytes"), (b"\n \n", "holds no text"),
])  # fmt: skip
def test_what_is_wrong_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.build(spec(tmp_path))


def test_wrong_places(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs the option 'path'"):
        data.build(Data(sources=(Source(name="lines"),), size=0))
    with pytest.raises(ValueError, match="no text file"):
        data.build(spec(tmp_path / "nowhere"))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match=r"set data\.size to 0"):
        data.build(Data(sources=spec(tmp_path).sources, size=32))
