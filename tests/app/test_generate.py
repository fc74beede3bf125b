"""`triptych generate` with a real model: files, seeds, batches, records, and the same pixels again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.app import pictures


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_picture_and_its_record(run: Callable, model: Path, here: Path) -> None:
    ran = run("generate", "a red apple", "--model", model, "--seed", "7")
    assert (ran.code, ran.out, ran.err) == (0, "out/0001-a-red-apple-7.png\n", "")
    record = pictures.read("out/0001-a-red-apple-7.png")
    assert (
        record is not None and {"prompt": "a red apple", "seed": 7, "steps": 4, "size": [8, 8], "model": "small"}.items() <= record.items()
    )
    assert all(len(fingerprint) == 16 for fingerprint in record["panels"].values()) and len(record["panels"]) == 3
    assert str(here) not in str(record)  # where a person keeps things is nobody's business
    assert run("generate", "a red apple", "--model", model, "--seed", "7").out == "out/0002-a-red-apple-7.png\n"
    assert (pixels("out/0001-a-red-apple-7.png") == pixels("out/0002-a-red-apple-7.png")).all()


def test_every_setting_shows(run: Callable, model: Path) -> None:
    base = ["generate", "a red apple", "--model", model, "--seed", "7", "-o"]
    assert run(*base, "base.png").code == 0
    for i, more in enumerate((["--seed", "8"], ["--steps", "2"], ["--guidance", "1"], ["--sampler", "euler"], ["--negative", "cat"])):
        assert run(*base, f"{i}.png", *more).code == 0
        assert (pixels(f"{i}.png") != pixels("base.png")).any(), more
    assert run(*base, "alias.png", "--cfg-scale", "1", "--num-inference-steps", "4").code == 0
    assert (pixels("alias.png") == pixels("2.png")).all()
    assert run(*base[:-1], "--output", "a2.png", "--guidance-scale", "3", "--negative-prompt", "cat", "--num-images", "1").code == 0
    assert (pixels("a2.png") == pixels("4.png")).all()


def test_several_prompts_and_numbers(run: Callable, model: Path) -> None:
    value = run("generate", "a red apple", "火箭", "-n", "2", "--seed", "3", "--model", model, "-o", "two/", "--json").json
    assert [p["path"] for p in value["pictures"]] == [f"two/{p}.png" for p in
        ("0001-a-red-apple-3", "0002-a-red-apple-4", "0003-火箭-5", "0004-火箭-6")]  # fmt: skip
    alone = run("generate", "火箭", "--seed", "5", "--model", model, "-o", "alone.png")
    assert alone.code == 0 and np.abs(pixels("alone.png") - pixels("two/0003-火箭-5.png")).max() <= 2


def test_exact_is_bit_equal_whatever_the_batch(run: Callable, model: Path) -> None:
    assert run("generate", "smiling cat", "a red apple", "-n", "4", "--seed", "0", "--model", model, "-o", "all/", "--exact").code == 0
    assert run("generate", "a red apple", "--seed", "5", "--model", model, "-o", "alone.png", "--exact").code == 0
    assert (pixels("alone.png") == pixels("all/0006-a-red-apple-5.png")).all()


def test_random_seeds_are_said_and_recorded(run: Callable, model: Path) -> None:
    for argv in ([], ["--seed", "-1"]):
        ran = run("generate", "x", "--model", model, "--json", *argv)
        assert f"seed {ran.json['seed']} (random)" in ran.err
        record = pictures.read(ran.json["pictures"][0]["path"])
        assert record is not None and record["seed"] == ran.json["seed"]


@pytest.mark.parametrize(
    "more", [[], ["--exact"], ["--precision", "bf16"], ["--sampler", "heun", "--negative", "cat", "--guidance", "2.5"]]
)
def test_from_draws_the_same_pixels(run: Callable, model: Path, more: list[str]) -> None:
    assert run("generate", "a red apple", "-n", "5", "--seed", "1", "--steps", "3", "--model", model, "-o", "old/", *more).code == 0
    for old in sorted(Path("old").iterdir())[::2]:
        ran = run("generate", "--from", old, "--model", model, "-o", f"new-{old.name}")
        assert ran.code == 0 and (pixels(f"new-{old.name}") == pixels(old)).all()
        assert pictures.read(f"new-{old.name}") == pictures.read(old)


def test_from_can_be_changed(run: Callable, model: Path) -> None:
    run("generate", "a red apple", "--seed", "1", "--steps", "3", "--model", model, "-o", "old.png")
    assert run("generate", "--from", "old.png", "--steps", "5", "-n", "2", "--model", model, "-o", "new.png").code == 0
    records = [pictures.read(f"new-{i}.png") for i in (1, 2)]
    assert [(r["prompt"], r["steps"], r["seed"]) for r in records if r] == [("a red apple", 5, 1), ("a red apple", 5, 2)]


def test_from_without_the_weights_names_what_is_missing(run: Callable, model: Path, here: Path) -> None:
    import torch

    from triptych import load

    run("generate", "a red apple", "--seed", "1", "--model", model, "-o", "old.png")
    record = pictures.read("old.png")
    assert record is not None
    ran = run("generate", "--from", "old.png")
    assert ran.code == 4 and all(fingerprint in ran.err for fingerprint in record["panels"].values()) and "--model" in ran.err
    other = load(model)
    with torch.no_grad():
        next(iter(other.generator.network.parameters())).add_(1.0)
    other.save(here / "other", name="other")
    now = load(here / "other").fingerprints["generator"]
    ran = run("generate", "--from", "old.png", "--model", "other")
    assert ran.code == 4 and record["panels"]["generator"] in ran.err and now in ran.err and record["panels"]["decoder"] not in ran.err


def test_from_a_strangers_picture(run: Callable, model: Path) -> None:
    Image.new("RGB", (8, 8)).save("plain.png")
    ran = run("generate", "--from", "plain.png", "--model", model)
    assert ran.code == 3 and "holds no record" in ran.err
    run("generate", "x", "--seed", "1", "--model", model, "-o", "old.png")
    record = pictures.read("old.png")
    assert record is not None
    for i, settings in enumerate(({"seeds": [1]}, {"shift": "x"}, {"no_such": 1})):
        pictures.write(Image.new("RGB", (8, 8)), f"evil-{i}.png", {**record, "settings": settings})
        ran = run("generate", "--from", f"evil-{i}.png", "--model", model)
        assert ran.code == 2 and len(ran.err.splitlines()) == 1


def test_no_metadata(run: Callable, model: Path) -> None:
    assert run("generate", "x", "--seed", "1", "--model", model, "-o", "a.png", "--no-metadata").code == 0
    assert pictures.read("a.png") is None and pictures.read_parameters("a.png") is None


def test_strip(run: Callable, model: Path) -> None:
    value = run(
        "generate", "x", "--seed", "1", "--steps", "6", "--sampler", "euler", "--strip", "2", "--model", model, "-o", "a.png", "--json"
    ).json
    strip = pixels(value["pictures"][0]["strip"])
    assert strip.shape == (8, 24, 3)  # steps 2 and 4, and the picture
    assert (strip[:, 16:] == pixels("a.png")).all() and (strip[:, :8] != strip[:, 16:]).any()


def test_prompts_from_a_file(run: Callable, model: Path, here: Path) -> None:
    (here / "p.txt").write_text("# two\na red apple --s 2 --d 9\nsmiling cat --n dog --l 1.5\n")
    value = run("generate", "--prompts", "p.txt", "--steps", "3", "--seed", "1", "--model", model, "--json").json
    records = [pictures.read(p["path"]) for p in value["pictures"]]
    assert [(r["prompt"], r["negative"], r["steps"], r["seed"]) for r in records if r] == [
        ("a red apple", "", 2, 9),
        ("smiling cat", "dog", 3, 2),
    ]


def test_a_prompt_that_is_too_long_is_said(run: Callable, model: Path) -> None:
    ran = run("generate", "word " * 100, "--seed", "1", "--model", model, "--json")
    assert ran.code == 0 and ran.json["warnings"] and "note: " in ran.err


def test_a_damaged_model_is_named(run: Callable, model: Path, here: Path) -> None:
    shutil.copytree(model, here / "bad")
    weights = here / "bad" / "generator" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    ran = run("generate", "x", "--model", "bad")
    assert ran.code == 4 and "damaged" in ran.err and "generator" in ran.err
    assert run("show", "bad").code == 4


def test_wrong_settings_draw_nothing(run: Callable, model: Path) -> None:
    for more, said in (
        (["--steps", "0"], "1..1000"),
        (["--sampler", "no"], "euler"),
        (["--size", "9x9"], "8x8"),
        (["--precision", "fp8"], "bf16"),
        (["--device", "tpu"], "cpu"),
    ):
        ran = run("generate", "x", "--seed", "1", "--model", model, *more)
        assert ran.code == 2 and said in ran.err and not list(Path().glob("out/*"))
    assert run("generate", "x", "--seed", "1", "--model", model, "--size", "8x8").code == 0


def test_show_and_trace(run: Callable, model: Path) -> None:
    value = run("show", model, "--json").json
    assert value["panels"]["generator"]["family"] == "dit" and value["panels"]["generator"]["card"]["fingerprint"]
    assert "parameters" in run("show", model).out
    stages = run("show", model, "--trace", "--json").json["stages"]
    order = list(dict.fromkeys(stage["stage"] for stage in stages))
    assert order == ["words", "text encoder", "condition", "generator", "latents", "image"]
    assert stages[-1]["shapes"] == "[1, 3, 8, 8] float32" and any(s["what"].startswith("blocks.0-1: ") for s in stages)
