"""`triptych train own` around the trainer: any model that has learnt, a word of one's own, what must not be forgotten, before and after."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych import load
from triptych.recipes.own import own

SHORT = ["--set", "steps=3", "--set", "batch=4", "--set", "compile=false", "--set", "preview_every=3", "--set", "optimizer.warmup=0"]


@pytest.fixture(scope="module")
def learnt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of ours that a recipe trained."""
    from triptych.recipe import override
    from triptych.recipes import get
    from triptych.training import Report, train

    out = tmp_path_factory.mktemp("learnt")
    recipe = override(get("tiny"), ["steps=4", "batch=4", "preview_prompts=[]", "task_options.vocabulary_texts=300"])
    train(recipe, out=out / "run", report=Report(quiet=True))
    return shutil.copytree(out / "run" / "model", out / "mine")


@pytest.fixture
def pictures(here: Path) -> Path:
    folder = here / "robots"
    folder.mkdir()
    for i in range(24):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("[trigger] on a hill" if i % 2 else "a toy on a table", encoding="utf-8")
    return folder


def test_what_own_is_made_of(learnt: Path) -> None:
    assert own().init == "emoji" and own().data.size == 32 and own().family.size == "emoji"
    sd = own("sd")
    assert sd.family.name == "unet" and sd.process is not None and sd.process.name == "ddpm" and sd.data.size == 64
    assert sd.neighbours["decoder"].model == "sd" and sd.sampling["guidance"] == 3.0
    mine = own(str(learnt))
    assert mine.family.name == "dit" and mine.data.size == 16
    with pytest.raises(ValueError, match=r"layout hears more than words \(boxes\)"):
        own("layout")


def test_a_word_a_prior_and_a_sheet(run: Callable, learnt: Path, pictures: Path, here: Path) -> None:
    (here / "more.txt").write_text("a red cat\n\n 一只猫 \n", encoding="utf-8")
    command = ["train", "own", "--data", pictures, "--init", learnt, "--trigger", "sks robot", "--prior", "a robot", "--prior", "@more.txt",
               "--prior-pictures", "6", "--out", "run", *SHORT]  # fmt: skip
    ran = run(*command, "--json")
    assert ran.code == 0, ran.err
    prior = sorted(path.name for path in (here / "run" / "prior").iterdir())
    assert len(prior) == 12 and (here / "run/prior/00002.txt").read_text(encoding="utf-8") == "一只猫"
    first = load(learnt).generate(["a robot"], seeds=[3])[0]
    with Image.open(here / "run/prior/00003.png") as kept:
        assert np.array_equal(np.asarray(kept.convert("RGB")), np.asarray(first))
    card = json.loads((here / "run/model/generator/card.json").read_text(encoding="utf-8"))
    sources = card["recipe"]["data"]["sources"]
    assert [one["weight"] for one in sources] == [1.0, 1.0] and sources[0]["options"]["trigger"] == "sks robot"
    prompts = card["recipe"]["preview_prompts"]
    assert prompts[-1] == "a red apple" and set(prompts[:-1]) == {"sks robot on a hill", "sks robot, a toy on a table"}
    assert ran.json["before_after"] == "run/before-after.png"
    with Image.open(here / "run/before-after.png") as sheet:
        assert sheet.size[0] > 2 * 128
    assert run("generate", "sks robot on a hill", "--model", "run/model", "-o", "robot.png").code == 0

    changed = (here / "run/prior/00003.png").read_bytes()
    (here / "run/prior/00005.txt").unlink()  # a kill between picture and words
    ran = run(*command, "--resume", "--json")
    assert ran.code == 0 and ran.json["step"] == 3 and (here / "run/prior/00005.txt").exists()
    assert (here / "run/prior/00003.png").read_bytes() == changed


def test_what_was_left_out_is_kept(run: Callable, learnt: Path, pictures: Path, here: Path) -> None:
    for i in range(24, 130):
        shutil.copy(pictures / f"{i % 24}.png", pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"number {i}")
    (pictures / "77.png").write_bytes((pictures / "7.png").read_bytes()[:60])
    ran = run("train", "own", "--data", pictures, "--init", learnt, "--out", "run", *SHORT)
    assert ran.code == 0, ran.err
    (line,) = (here / "run" / "bad_files.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["name"] == "77.png" and "truncated" in json.loads(line)["reason"]
    (pictures / "78.png").write_bytes(b"")
    ran = run("train", "own", "--data", pictures, "--init", learnt, "--out", "other", *SHORT)
    assert ran.code == 3 and "2 of 130 pictures cannot be used" in ran.err


def test_a_lora_of_any_model(run: Callable, learnt: Path, pictures: Path, here: Path) -> None:
    ran = run("train", "own", "--data", pictures, "--init", learnt, "--lora", "2", "--out", "run", *SHORT)
    assert ran.code == 0 and "--lora run/lora" in ran.err, ran.err
    for way in (["--model", "run/model"], ["--model", learnt, "--lora", "run/lora"]):
        assert run("generate", "a toy", *way, "--seed", "3", "-o", f"{len(way)}.png").code == 0
    a, b = (np.asarray(Image.open(f"{n}.png").convert("RGB")).astype(int) for n in (2, 4))
    assert np.abs(a - b).max() <= 1


def test_what_cannot_be(run: Callable, learnt: Path, pictures: Path) -> None:
    ran = run("train", "own", "--data", "scenes", "--trigger", "sks", *SHORT)
    assert ran.code == 2 and "learns from no folder" in ran.err
    ran = run("train", "own", "--data", pictures, "--init", "nowhere")
    assert ran.code in (2, 4) and "nowhere" in ran.err
    ran = run("train", "tiny", "--prior", "a robot")
    assert ran.code == 2 and "give --init MODEL" in ran.err
    ran = run("train", "own", "--data", pictures, "--prior", "@nowhere.txt")
    assert ran.code == 2 and "one a line" in ran.err
    ran = run("train", "--all", "emoji", "--trigger", "sks")
    assert ran.code == 2 and "--trigger" in ran.err


def test_a_public_folder(run: Callable, pictures: Path, here: Path) -> None:
    """As diffusers saved it: one word, and its own panels, process and size are taken."""
    diffusers = pytest.importorskip("diffusers")
    from tests.oracle import public_folders as public

    diffusers.utils.logging.disable_progress_bar()
    public.stable(here, diffusers.DDIMScheduler(**public.DDIM)).save_pretrained(here / "sd")
    shutil.copytree(here / "files", here / "sd" / "tokenizer", dirs_exist_ok=True)
    found = own(str(here / "sd"))
    assert found.process is None and found.family.name == "unet"
    ran = run("train", "own", "--data", pictures, "--init", "sd", "--lora", "2", "--out", "run", "--set", "sampling.steps=2", *SHORT)
    assert ran.code == 0, ran.err
    assert run("generate", "a toy", "--model", "sd", "--lora", "run/lora", "--steps", "2", "-o", "toy.png").code == 0


def test_pictures_of_many_shapes(run: Callable, learnt: Path, pictures: Path, here: Path) -> None:
    """Buckets through the whole command: batches of several shapes are learnt from, and the sheet shows one of them."""
    for i in range(24):
        shape = ((16, 24, 3), (24, 16, 3))[i % 2]
        Image.fromarray(np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)).save(pictures / f"{i}.png")
    ran = run("train", "own", "--data", pictures, "--init", learnt, "--out", "run", "--set", "data.buckets.step=4", *SHORT)
    assert ran.code == 0, ran.err
    assert (here / "run/before-after.png").exists() and run("generate", "a toy", "--model", "run/model", "-o", "a.png").code == 0
    ran = run("train", "own", "--data", pictures, "--init", learnt, "--out", "other", "--set", "data.buckets.stp=4", *SHORT)
    assert ran.code == 2 and "step" in ran.err
