"""Prompts to jobs, sizes, seeds, and the rule of output paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.app.jobs import Job, Target, numbered, parse_file, parse_line, parse_size, slug


def test_a_line_of_kohya() -> None:
    job = parse_line("a red apple, on a table  --n blurry, dark --w 128 --h 96 --s 20 --d 7 --l 3.5")
    assert job == Job(prompt="a red apple, on a table", negative="blurry, dark", size=(128, 96), steps=20, seed=7, guidance=3.5)
    assert parse_line("火箭 --w 64").size == (64, None)
    assert parse_line("a well-known -- dash --- and 3--4").prompt == "a well-known -- dash --- and 3--4"


@pytest.mark.parametrize(
    "line, said", [("a --s many", "whole number"), ("a --x 3", "--n, --w"), ("a --w 0", "out of range"), ("a --d 1.5", "whole")]
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "p.txt"
    path.write_text(f"# comment\n\nfine\n{line}\n")
    with pytest.raises(ValueError, match=r"p\.txt, line 4") as error:
        parse_file(path)
    assert said in str(error.value)


def test_a_file_of_prompts(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("\ufeff# colours\na cat --d 3\n\n  猫  \r\n", encoding="utf-8")
    assert [(job.prompt, job.seed) for job in parse_file(path)] == [("a cat", 3), ("猫", None)]
    for data, said in ((b"\xff\xfe\x00", "UTF-8"), (b"# only\n", "no prompt")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=said):
            parse_file(path)


def test_picture_i_has_seed_plus_i() -> None:
    pictures, drawn = numbered([Job(prompt="a"), Job(prompt="b", seed=100), Job(prompt="c")], 2, 7)
    assert [(p.prompt, p.seed) for p in pictures] == [("a", 7), ("a", 8), ("b", 100), ("b", 101), ("c", 11), ("c", 12)] and drawn is None
    for seed in (None, -1):
        pictures, drawn = numbered([Job(prompt="a")], 3, seed)
        assert drawn is not None and [p.seed for p in pictures] == [drawn, drawn + 1, drawn + 2]
    for seed in (-2, 2**63):
        with pytest.raises(ValueError, match="out of range"):
            numbered([Job(prompt="a")], 1, seed)


def test_sizes() -> None:
    assert parse_size("128x96") == (128, 96) and parse_size("64") == (64, 64) and parse_size(" 8 × 9 ") == (8, 9)
    for wrong in ("", "x", "12x", "-1x5", "1.5x2", "0x8", "9999x9999", "٣x٣", "8x8x8"):
        with pytest.raises(ValueError):
            parse_size(wrong)


@given(st.text(max_size=300))
def test_a_slug_is_a_name_on_every_system(text: str) -> None:
    name = slug(text)
    assert name and len(name.encode()) <= 120 and not set(name) & set('/\\:*?"<>|\0 \n') and not name.startswith(".")


def test_a_folder_counts_on(tmp_path: Path) -> None:
    job = Job(prompt="A red apple!", seed=7)
    target = Target(str(tmp_path / "new"), 2)
    names = [target.put(i, job, lambda path: path.write_text("x") and None).name for i in range(2)]
    assert names == ["0001-a-red-apple-7.png", "0002-a-red-apple-7.png"]
    again = Target(str(tmp_path / "new") + "/", 1)
    (tmp_path / "new" / "0003-of-another-run.png").write_text("x")  # taken after we looked
    assert again.put(0, job, lambda path: path.write_text("x") and None).name == "0004-a-red-apple-7.png"


def test_a_file_gets_a_padded_index(tmp_path: Path) -> None:
    target = Target(str(tmp_path / "deep" / "a.png"), 12)
    assert [target.path(i).name for i in (0, 11)] == ["a-01.png", "a-12.png"]
    assert Target(str(tmp_path / "a.webp"), 1).path(0) == tmp_path / "a.webp"


def test_what_is_there_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "a-2.png").write_text("mine")
    with pytest.raises(ValueError, match=r"a-2\.png is there already"):
        Target(str(tmp_path / "a.png"), 3)
    (tmp_path / "b-strip.png").write_text("mine")
    Target(str(tmp_path / "b.png"), 1)
    with pytest.raises(ValueError, match="b-strip"):
        Target(str(tmp_path / "b.png"), 1, strip=True)
    with pytest.raises(ValueError, match=r"cannot write \.gif"):
        Target("a.gif", 1)


def test_the_default_folder(here: Path) -> None:
    assert Target(None, 1).path(0, Job(prompt="x", seed=1)) == Path("out/0001-x-1.png")
