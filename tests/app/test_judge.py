"""`triptych judge` and `compare` as a person types them, on one small model and tiny eyes."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.app.test_people import data_of
from tests.contract import tiny
from tests.judges.test_judging import write_coco
from triptych import catalog
from triptych.data.scenes import CLASSES
from triptych.eyes import Eyes


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eyes and a detector, tiny and at random."""
    folder = tmp_path_factory.mktemp("seeing")
    tiny.eyes().save(folder / "eyes")
    Eyes(catalog.build("vision", "detr", size="tiny").eval(), name="tiny-detector", labels=CLASSES).save(folder / "detector")
    return folder


@pytest.fixture
def judge(run: Callable, model: Path, seeing: Path) -> Callable:
    return lambda *argv: run("judge", *argv, "--eyes", seeing / "eyes", "--detector", seeing / "detector")


def test_scenes_by_numbers_and_a_report(judge: Callable, model: Path, here: Path) -> None:
    ran = judge(model, "--n", 16, "--report", here / "out", "--json")
    assert ran.code == 0, ran.err
    told = ran.json
    assert told["kind"] == "triptych judgement" and told["protocol"]["n"] == 16 and len(told["models"]) == 1
    scores = told["models"][0]["scores"]
    assert {"FD(tiny-eyes)", "KID(tiny-eyes)", "precision(tiny-eyes)", "exact", "clip_score(tiny-eyes)"} <= scores.keys()
    assert all(math.isfinite(one["value"]) and one["n"] for one in scores.values())
    assert told["models"][0]["seconds_per_picture"] > 0 and told["models"][0]["parameters"] > 1000
    kept = json.loads((here / "out" / "judgement.json").read_text(encoding="utf-8"))
    assert kept["models"] == told["models"]
    page = (here / "out" / "report.html").read_text(encoding="utf-8")
    assert "FD(tiny-eyes)" in page and "data:image/" in page
    assert told["report"] == str(here / "out" / "report.html")


def test_two_models_on_a_persons_pairs(judge: Callable, model: Path, here: Path) -> None:
    pictures = here / "mine"
    pictures.mkdir()
    for i in range(40):
        Image.new("RGB", (24, 24), (6 * i, 255 - 6 * i, 128)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(f"colour number {i}")
    asked = ["--data", pictures, "--split", "train", "--n", 12, "--per-prompt", 2]
    ran = judge(model, *asked, "--guidance", "1,3", "--training", pictures, "--report", "out", "--json")
    assert ran.code == 0, ran.err
    told = ran.json
    assert [one["label"] for one in told["models"]] == ["small, guidance 1", "small, guidance 3"]
    assert len(told["prompts"]) == 24 and told["prompts"][0]["text"] == told["prompts"][1]["text"]
    assert {"diversity(tiny-eyes)", "copies"} <= told["measures"].keys() and "exact" not in told["measures"]
    (curve,) = told["curves"]
    assert list(curve["lines"]) == ["small"] and [point[2] for point in curve["lines"]["small"]] == ["1", "3"]
    assert [Path(sheet).name for sheet in told["memorisation"]] == ["memorisation-0.png", "memorisation-1.png"]
    with Image.open(told["memorisation"][0]) as sheet:
        assert sheet.width == 4 * (2 * 130 - 2 + 6) + 6
    assert "--per-prompt 2" in told["command"] and "--guidance 1,3" in told["command"] and "--seed" not in told["command"]
    one, other = (m["scores"]["FD(tiny-eyes)"]["value"] for m in told["models"])
    assert one != other


def test_the_same_command_says_the_same(judge: Callable, model: Path) -> None:
    first, second = (judge(model, "--n", 8, "--judges", "distribution,clip_score", "--json").json for _ in range(2))
    assert first["models"][0]["scores"] == second["models"][0]["scores"] and first["each"] == second["each"]


def test_the_table(judge: Callable, model: Path) -> None:
    ran = judge(model, "--n", 8, "--judges", "objects")
    assert ran.code == 0 and "8 scenes" in ran.out and re.search(r"exact +\(real: [\d.]+\) +[\d.]+ \[[\d.]+, [\d.]+\]", ran.out)
    assert "seconds a picture" in ran.out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--protocol", "scene"], "no protocol 'scene'.*scenes"),
        (["--judges", "objekts"], "no judge 'objekts'.*objects"),
        (["--protocol", "drawbench", "--judges", "objects"], "needs a detector, and prompts of scenes"),
        (["--protocol", "pairs"], "needs --data SPEC"),
        (["--protocol", "coco-zero-shot", "--data", "."], "needs --captions FILE"),
        (["--protocol", "fid-10k", "--data", "scenes", "--n", "50"], "of 10,000 pictures, not of 50"),
        (["--guidance", "a"], "'a' is no number"),
        (["--n", "0"], "judge one picture at least"),
        (["--data", "scenes", "--split", "test"], "train and held_out"),
        (["--training", "scenes"], "at most 20,000 pictures"),
    ],
)
def test_what_does_not_fit_is_said(judge: Callable, model: Path, argv: list[str], said: str) -> None:
    ran = judge(model, *argv)
    assert ran.code == 2 and re.search(said, ran.err), ran.err


def test_a_model_beside_itself(judge: Callable, model: Path) -> None:
    ran = judge(model, f"{model}/")
    assert ran.code == 2 and "named twice" in ran.err


def test_coco(judge: Callable, model: Path, here: Path) -> None:
    captions = write_coco(here)
    ran = judge(model, "--protocol", "coco-zero-shot", "--data", here, "--captions", captions, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["protocol"]["name"] == "coco-zero-shot" and ran.json["models"][0]["scores"]["FD(tiny-eyes)"]["n_references"] == 6


def test_a_file_of_the_fids_network_is_named_by_what_it_is(run: Callable, model: Path, here: Path) -> None:
    """Random weights in the right form are used, and are not called FID; a file of something else is a bad checkpoint."""
    from safetensors.torch import save_file

    from triptych.vision.inception import Config, Inception

    torch.manual_seed(0)
    save_file(Inception(Config()).state_dict(), here / "mine.safetensors")
    ran = run("judge", model, "--n", 4, "--eyes", "mine.safetensors", "--json")
    assert ran.code == 0, ran.err
    assert {"FD(mine)", "IS(mine)"} <= ran.json["measures"].keys() and "FID" not in ran.json["measures"]
    save_file({"fc.weight": torch.zeros(3, 3)}, here / "other.safetensors")
    ran = run("judge", model, "--n", 4, "--eyes", "other.safetensors")
    assert ran.code == 4 and "no Inception" in ran.err


def test_without_eyes_there_is_a_word(run: Callable, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triptych import checkpoint

    monkeypatch.setattr(checkpoint, "embedded", list)
    ran = run("judge", model, "--n", 4)
    assert ran.code == 2 and "no judge can say anything" in ran.err


def test_compare(run: Callable, model: Path, here: Path) -> None:
    ran = run("compare", "a red apple", "火箭", "--model", model, "-n", 2, "-o", "sheet.png", "--json")
    assert ran.code == 0, ran.err
    with Image.open(here / "sheet.png") as sheet:
        assert sheet.width > 4 * 160
    assert run("compare", "--model", model).code == 2


def test_people_from_page_to_verdict(run: Callable, model: Path, here: Path) -> None:
    """Two copies of a model; a rater prefers one of them, whatever its side."""
    import shutil

    shutil.copytree(model, here / "b-model")
    described = json.loads((here / "b-model" / "triptych.json").read_text())
    (here / "b-model" / "triptych.json").write_text(json.dumps({**described, "sampling": {"steps": 2}}))
    ran = run("judge", "--people", model, here / "b-model", "-n", 12, "-o", "page.html", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["pairs"] == 12 and set(ran.json["models"]) == {"small", "b-model"}
    key = json.loads((here / "page.key.json").read_text())
    for rater in ("r1", "r2"):
        answers = []
        for pair in data_of(here / "page.html")["pairs"]:
            side = "a" if key["pairs"][pair["pair"]]["a"] == "b-model" else "b"
            answers.append({"pair": pair["pair"], "quality": side, "words": "same", "seconds": 1.0, "left": "a"})
        told = {"format": 1, "page": key["page"], "rater": rater, "seed": 0, "answers": answers}
        (here / f"answers-{rater}.json").write_text(json.dumps(told))
    ran = run("judge", "--answers", "page.key.json", "answers-r1.json", "answers-r2.json", "--json")
    assert ran.code == 0, ran.err
    (told,) = ran.json["comparisons"]
    assert told["A"] == "b-model" and told["quality A"] == 1 and told["raters"] == 2
    assert told["quality winner"] == 1 and told["words winner"] == 0
    ran = run("judge", "--answers", "page.key.json", "answers-r1.json")
    assert "the winner is b-model" in ran.out and "fits the words better" in ran.out
    assert run("judge", "--answers", "answers-r1.json").code == 3
