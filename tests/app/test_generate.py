"""`triptych generate` with a real model: files, seeds, batches, records, and the same pixels again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych import load
from triptych.app import pictures


@pytest.fixture(scope="session")
def eyes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights, that hears other words than the model does; and beside it eyes that are deaf, and a stranger's."""
    from tests.contract import tiny
    from triptych.eyes import Eyes

    folder = tmp_path_factory.mktemp("eyes")
    words: Any = tiny.build("text_encoders", "bilingual").eval()
    for seed, name in enumerate(("mine", "other")):
        Eyes(tiny.awake(tiny.build("vision", "clip", condition=words.gives, seed=seed)).eval(), words, name=name).save(folder / name)
    Eyes(tiny.build("vision", "vit", condition=words.gives).eval(), words, name="deaf").save(folder / "deaf")
    return folder / "mine"


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
        (["--size", "9x9"], "multiples of 4"),
        (["--precision", "fp8"], "bf16"),
        (["--device", "tpu"], "cpu"),
    ):
        ran = run("generate", "x", "--seed", "1", "--model", model, *more)
        assert ran.code == 2 and said in ran.err and not list(Path().glob("out/*"))
    assert run("generate", "x", "--seed", "1", "--model", model, "--size", "8x8").code == 0


# --- guided by eyes -----------------------------------------------------------------------------------------------------------


def test_a_guide_pulls_and_is_recorded(run: Callable, model: Path, eyes: Path, here: Path) -> None:

    base = ["generate", "a red circle", "two hearts", "--seed", "7", "--model", model, "-o"]
    assert run(*base, "base.png").code == 0 and "guide" not in (pictures.read("base-1.png") or {})
    value = run(*base, "guided.png", "--guide", eyes, "--json").json
    guide, there = value["guide"], load(eyes)
    prints = {"fingerprint": there.fingerprint, "text_encoder": there.text_encoder.card["fingerprint"]}
    assert guide == {"name": "mine", **prints, "scale": 10.0} and all(len(one) == 16 for one in prints.values())
    for i in (1, 2):
        record = pictures.read(f"guided-{i}.png")
        assert record is not None and record["guide"] == guide and str(eyes) not in str(record)
        assert (pixels(f"guided-{i}.png") != pixels(f"base-{i}.png")).any()
    assert run(*base, "off.png", "--guide", eyes, "--guide-scale", "0").code == 0
    assert (pixels("off-1.png") == pixels("base-1.png")).all() and pictures.read("off-1.png") == pictures.read("base-1.png")
    moved = []
    for scale in ("1", "400"):
        assert run(*base, f"s{scale}.png", "--guide", eyes, "--guide-scale", scale).code == 0
        moved.append(np.abs(pixels(f"s{scale}-1.png") - pixels("base-1.png")).mean())
    assert moved[0] < moved[1]


def test_a_guide_pulls_each_picture_by_its_own_words(run: Callable, model: Path, eyes: Path) -> None:
    more = ["--model", model, "--guide", eyes, "--guide-scale", "100"]
    assert run("generate", "smiling cat", "a red circle", "two hearts", "--seed", "0", *more, "-o", "all/").code == 0
    assert run("generate", "a red circle", "--seed", "1", *more, "-o", "alone.png").code == 0
    assert np.abs(pixels("alone.png") - pixels("all/0002-a-red-circle-1.png")).max() <= 2


def test_eyes_raise_what_they_see(model: Path, eyes: Path) -> None:
    import torch

    from triptych.eyes import as_tensor

    drawing, looking, said = load(model), load(eyes), ["a red circle", "two hearts", "三个绿色的三角形", "star"]
    sight = looking.sight()
    means = []
    for scale in (0.0, 20.0, 100.0):
        images = drawing.generate(said, guide=looking, guide_scale=scale)
        means.append((sight.image(torch.cat([as_tensor(image) for image in images])) * sight.text(said)).sum(1).mean().item())
    assert means[0] < means[1] < means[2], means
    with pytest.raises(ValueError, match="no guide"):
        drawing.generate(said, guide_scale=1.0)


@pytest.mark.parametrize("more", [[], ["--exact"], ["--precision", "bf16"], ["--sampler", "heun", "--guide-scale", "3"]])
def test_from_draws_the_same_guided_pixels(run: Callable, model: Path, eyes: Path, more: list[str]) -> None:
    more = [*more, "--guide", eyes]  # type: ignore[list-item]
    assert run("generate", "a red circle", "-n", "3", "--seed", "1", "--steps", "3", "--model", model, "-o", "old/", *more).code == 0
    for old in sorted(Path("old").iterdir())[::2]:
        assert run("generate", "--from", old, "--model", model, "--guide", eyes, "-o", f"new-{old.name}").code == 0
        assert (pixels(f"new-{old.name}") == pixels(old)).all() and pictures.read(f"new-{old.name}") == pictures.read(old)


def test_from_without_the_eyes_names_them(run: Callable, model: Path, eyes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triptych import checkpoint, load

    base = ["generate", "a red circle", "--seed", "1", "--model", model]
    run(*base, "--guide", eyes, "--guide-scale", "50", "-o", "old.png")
    ran, again = run("generate", "--from", "old.png", "--model", model), ["generate", "--from", "old.png", "--model", model]
    assert ran.code == 4 and "'mine'" in ran.err and load(eyes).fingerprint in ran.err and "--guide DIR" in ran.err
    ran, other = run(*again, "--guide", eyes.with_name("other")), load(eyes.with_name("other"))
    assert ran.code == 4 and load(eyes).fingerprint in ran.err and other.fingerprint in ran.err
    assert run(*base, "-o", "plain.png").code == run(*again, "--guide-scale", "0", "-o", "off.png").code == 0
    assert (pixels("off.png") == pixels("plain.png")).all() and pictures.read("off.png") == pictures.read("plain.png")
    assert run(*again, "--guide", eyes, "--guide-scale", "9", "-o", "less.png").code == 0
    assert (pictures.read("less.png") or {})["guide"]["scale"] == 9
    assert run("generate", "--from", "plain.png", "--model", model, "--guide", eyes, "--guide-scale", "50", "-o", "now.png").code == 0
    assert (pixels("now.png") == pixels("old.png")).all()
    monkeypatch.setattr(checkpoint, "WEIGHTS", eyes.parent)  # where these eyes are embedded, their name is enough
    assert run(*again, "-o", "same.png").code == 0 and (pixels("same.png") == pixels("old.png")).all()


def test_what_cannot_guide_is_said(run: Callable, model: Path, eyes: Path) -> None:
    base = ["generate", "x", "--seed", "1", "--model", model]
    for more, said in (
        (["--guide-scale", "5"], "--guide NAME|PATH"),
        (["--guide", "nobody"], "nobody"),
        (["--guide", eyes.with_name("deaf")], "hears no words"),
        (["--guide", model], "has no eyes"),
        (["--guide", eyes, "--guide-scale", "-1"], "guide_scale = -1.0"),
        (["--guide", eyes, "--guide-scale", "nan"], "guide_scale = nan"),
    ):
        ran = run(*base, *more)
        assert ran.code == 2 and said in ran.err and len(ran.err.splitlines()) == 1, ran.err
    assert not list(Path().glob("out/*"))
    run(*base, "--guide", eyes, "-o", "old.png")
    record = pictures.read("old.png") or {}
    for i, wrong in enumerate(({"scale": "x"}, {"name": None}, {"fingerprint": 3}, {"scale": True})):
        with pytest.raises(ValueError, match="guide"):
            pictures.write(Image.new("RGB", (8, 8)), f"evil-{i}.png", {**record, "guide": {**record["guide"], **wrong}})


def test_show_and_trace(run: Callable, model: Path) -> None:
    value = run("show", model, "--json").json
    assert value["panels"]["generator"]["family"] == "dit" and value["panels"]["generator"]["card"]["fingerprint"]
    assert "parameters" in run("show", model).out
    stages = run("show", model, "--trace", "--json").json["stages"]
    order = list(dict.fromkeys(stage["stage"] for stage in stages))
    assert order == ["words", "text encoder", "condition", "generator", "latents", "image"]
    assert stages[-1]["shapes"] == "[1, 3, 8, 8] float32" and any(s["what"].startswith("blocks.0-1: ") for s in stages)


# --- like a picture -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def blue(here: Path) -> Path:
    Image.new("RGB", (40, 20), (20, 60, 200)).save(here / "blue.png")
    return here / "blue.png"


def test_a_picture_pulls_towards_itself_and_is_recorded(run: Callable, model: Path, eyes: Path, blue: Path) -> None:
    base = ["generate", "a cat", "--model", model, "--seed", "3", "-o"]
    assert run(*base, "base.png").code == 0 and "like" not in (pictures.read("base.png") or {})
    wanted = np.array([20.0, 60.0, 200.0])
    far = [np.abs(pixels("base.png").reshape(-1, 3) - wanted).mean()]
    for scale in ("1", "4"):
        assert run(*base, f"s{scale}.png", "--like", blue, "--like-by", "pixels", "--like-scale", scale).code == 0
        far.append(np.abs(pixels(f"s{scale}.png").reshape(-1, 3) - wanted).mean())
    assert far[0] > far[1] > far[2], "stronger is nearer"
    record = pictures.read("s4.png")
    assert record is not None and record["like"]["by"] == "pixels" and record["like"]["scale"] == 4 and "eyes" not in record["like"]
    assert run(*base, "off.png", "--like", blue, "--like-by", "pixels", "--like-scale", "0").code == 0
    assert (pixels("off.png") == pixels("base.png")).all() and "like" not in (pictures.read("off.png") or {})
    for by in ("features", "gram"):
        seen = ["--like-by", by, "--like-scale", "50", "--guide", eyes, "--guide-scale", "0"]
        value = run(*base, f"{by}.png", "--like", blue, *seen, "--json")
        assert value.json["like"]["by"] == by and value.json["like"]["fingerprint"] == load(eyes).fingerprint and "guide" not in value.json
        assert (pixels(f"{by}.png") != pixels("base.png")).any()


def test_from_draws_the_same_pixels_like_a_picture(run: Callable, model: Path, eyes: Path, blue: Path) -> None:
    how = ["--like", blue, "--like-by", "pixels", "--like-scale", "3"]
    assert run("generate", "a cat", "--model", model, "--seed", "3", "-o", "old.png", *how, "--guide", eyes).code == 0
    again = ["generate", "--from", "old.png", "--model", model, "--guide", eyes]
    assert run(*again, "--like", blue, "-o", "new.png").code == 0 and (pixels("new.png") == pixels("old.png")).all()
    ran = run(*again, "-o", "none.png")
    assert ran.code == 2 and "blue.png" in ran.err and "--like FILE" in ran.err
    Image.new("RGB", (40, 20), "red").save("red.png")
    assert run(*again, "--like", "red.png", "-o", "other.png").code == 2
    assert run(*again, "--like-scale", "0", "-o", "without.png").code == 0


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--like-by", "gram"], "--like PICTURE"), (["--like", "nowhere.png"], "nowhere.png"),
        (["--like", "blue.png", "--like-by", "taste"], "pixels, features, gram"),
        (["--like", "blue.png", "--like-scale", "-1"], "must be 0"), (["--like", "blue.png", "--like-scale", "nan"], "must be 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_resembled_is_said(run: Callable, model: Path, blue: Path, more: list[str], said: str) -> None:
    ran = run("generate", "a cat", "--model", model, "-o", "x.png", *more)
    assert ran.code in (2, 3) and said in ran.err and not Path("x.png").exists()
