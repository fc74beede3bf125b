"""Judging: every model hears the same, every picture counts, and what a judge lacks is said before anything is drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.contract import tiny
from triptych import catalog, judging
from triptych.contracts import Prompt
from triptych.data.scenes import CLASSES, is_held_out, render
from triptych.eyes import Eyes
from triptych.pipeline import to_pil


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    return tiny.eyes()


@pytest.fixture(scope="module")
def detector() -> Eyes:
    torch.manual_seed(1)
    return Eyes(catalog.build("vision", "detr", size="tiny").eval(), name="tiny-detector", labels=CLASSES)


def true_pictures(prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Image.Image]:
    """A model that draws what is asked."""
    return [Image.fromarray(render(prompt.truth, 64)) for prompt in prompts]


def noise(prompts: Sequence[Prompt], seeds: Sequence[int]) -> list[Image.Image]:
    return [to_pil(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed)))[0] for seed in seeds]


def test_scenes_are_the_same_for_all_and_of_all_kinds() -> None:
    a, b = judging.scenes(32, seed=3), judging.scenes(32, seed=3)
    assert [p.text for p in a.prompts] == [p.text for p in b.prompts] and a.seeds == tuple(range(3, 35))
    assert [p.text for p in a.prompts] != [p.text for p in judging.scenes(32, seed=4).prompts]
    held = ["never shown" in c for c in a.categories]
    assert held == [is_held_out(p.truth) for p in a.prompts] and sum(held) == 16
    chinese = [any("一" <= c <= "鿿" for c in p.text) for p in a.prompts]
    assert sum(chinese) == 16 and len({(c, h, z) for c, h, z in zip(a.categories, held, chinese, strict=True)}) == 16
    assert torch.equal(a.real(range(4, 6)), torch.cat([a.real(range(4, 5)), a.real(range(5, 6))]))  # type: ignore[misc]


def test_what_draws_the_truth_is_better_than_noise(eyes: Eyes, detector: Eyes) -> None:
    asked = judging.scenes(24)
    seen = {
        name: judging.look(draw, asked, judging.judges_for(asked, eyes=eyes, detector=detector), shown=[0, 5], batch=7)
        for name, draw in {"truth": true_pictures, "noise": noise}.items()
    }
    told = judging.judgement(asked, seen, {name: {"name": name} for name in seen}, eyes=(eyes, detector), shown=[0, 5])
    assert json.loads(json.dumps(told)) == told
    fd = {one["label"]: one["scores"]["FD(tiny-eyes)"]["value"] for one in told["models"]}
    assert fd["truth"] < 1e-3 * fd["noise"]
    assert told["measures"]["FD(tiny-eyes)"] == {"judge": "distribution", "better": "lower"}
    assert told["measures"]["exact"]["better"] == "higher" and "ceiling" in told["measures"]["exact"]
    assert len(told["prompts"]) == 24 and all(len(rows) == 24 for one in told["each"].values() for rows in one.values())
    assert told["eyes"] == {"tiny-eyes": eyes.fingerprint, "tiny-detector": detector.fingerprint}
    for one in told["models"]:
        assert one["scores"]["FD(tiny-eyes)"]["n"] == 24 and one["scores"]["clip_score(tiny-eyes)"]["low"] is not None
        assert [n for n, _ in one["curves"]["FD(tiny-eyes)"]][-1] == 24
    for one in seen.values():  # those asked for, and the extremes of each measure, no more
        kept = {0, 5, *(i for rows in one.each.values() for i in sorted(range(24), key=rows.__getitem__)[:6])}
        assert kept <= one.pictures.keys() and len(one.pictures) <= 2 + 12 * len(one.each)
        assert one.memory is None or one.memory > 1e7


def test_pieces_do_not_change_what_is_found(eyes: Eyes, detector: Eyes) -> None:
    asked = judging.scenes(16)
    found = [
        judging.look(true_pictures, asked, judging.judges_for(asked, ["distribution", "objects"], eyes=eyes, detector=detector), batch=size)
        for size in (16, 5)
    ]
    for judge in ("distribution", "objects"):
        for name, value in found[0].scores[judge].items():
            assert found[1].scores[judge][name] == pytest.approx(value, abs=1e-5), name


def test_what_a_judge_needs_is_said(eyes: Eyes, detector: Eyes) -> None:
    asked = judging.scenes(8)
    assert set(judging.judges_for(asked, eyes=eyes, detector=detector)) == {"distribution", "objects", "clip_score", "retrieval"}
    assert set(judging.judges_for(asked.times(2), eyes=eyes)) == {"distribution", "clip_score", "retrieval", "diversity"}
    assert not judging.judges_for(asked)
    with pytest.raises(ValueError, match=r"no judge 'object'.*objects"):
        judging.judges_for(asked, ["object"], eyes=eyes)
    with pytest.raises(ValueError, match="'objects' needs a detector"):
        judging.judges_for(asked, ["objects"], eyes=eyes)
    with pytest.raises(ValueError, match="'diversity' needs several pictures"):
        judging.judges_for(asked, ["diversity"], eyes=eyes)
    with pytest.raises(ValueError, match="'distribution' needs eyes and real pictures"):
        judging.judges_for(judging.drawbench(4), ["distribution"], eyes=eyes)
    with pytest.raises(ValueError, match="does not name its classes"):
        judging.judges_for(asked, ["objects"], detector=Eyes(detector.vision, name="nameless"))


def test_times(eyes: Eyes) -> None:
    asked = judging.scenes(4).times(3)
    assert [p.text for p in asked.prompts] == [p.text for p in judging.scenes(4).prompts for _ in range(3)]
    assert asked.seeds == tuple(range(12))
    assert torch.equal(asked.real(range(2, 4)), judging.scenes(4).real(range(2)))  # type: ignore[misc]


def test_drawbench_begins_with_every_category() -> None:
    few = judging.drawbench(22, language="zh")
    assert len(set(few.categories)) == 11 and few.real is None and len(judging.drawbench(500)) == 200


def write_coco(folder: Path, entries: int = 6) -> Path:
    for i in range(entries):
        Image.new("RGB", (40 + 10 * i, 60), (40 * i, 0, 0)).save(folder / f"{i:012}.jpg")
    captions = {
        "images": [{"id": 7 * i, "file_name": f"{i:012}.jpg"} for i in range(entries)],
        "annotations": [
            {"image_id": 7 * i, "id": 10 * i + k, "caption": f" picture {i}, said {k} "} for i in range(entries) for k in range(5)
        ],
    }
    path = folder / "captions.json"
    path.write_text(json.dumps(captions))
    return path


def test_coco_zero_shot(tmp_path: Path) -> None:
    path = write_coco(tmp_path)
    asked = judging.coco(path, tmp_path, n=5, seed=1, side=32)
    assert len(asked) == 5 and asked.name == "coco-zero-shot" and [p.text for p in asked.prompts] == [
        p.text for p in judging.coco(path, tmp_path, n=5, seed=1, side=32).prompts
    ]  # fmt: skip
    real = asked.real(range(5))  # type: ignore[misc]
    assert real.shape == (5, 3, 32, 32)
    for prompt, picture in zip(asked.prompts, real, strict=True):  # each caption beside its own picture
        number = int(prompt.text.split()[1].rstrip(","))
        assert picture[0].mean().item() == pytest.approx(40 * number / 127.5 - 1, abs=0.05)
    with pytest.raises(ValueError, match="lacks 6 of 6 pictures"):
        judging.coco(path, tmp_path / "elsewhere")
    for wrong in ("{}", "[]", "no JSON", '{"images": [], "annotations": [{"image_id": 1, "caption": "x"}]}'):
        (tmp_path / "wrong.json").write_text(wrong)
        with pytest.raises(ValueError, match=r"wrong\.json is no COCO captions file"):
            judging.coco(tmp_path / "wrong.json", tmp_path)


def test_memory_is_asked_of_what_was_learnt(eyes: Eyes) -> None:
    asked = judging.scenes(8)
    training = asked.real(range(4))  # type: ignore[misc]
    other = judging.scenes(8, seed=100).real(range(8))  # type: ignore[misc]
    judges = judging.judges_for(asked, ["memorisation"], eyes=eyes, training=torch.cat([training, other]))
    found = judging.look(lambda prompts, seeds: [to_pil(asked.real(range(s, s + 1)))[0] for s in seeds], asked, judges)  # type: ignore[misc]
    assert [ratio < 0.5 for ratio in found.each["ratio"]] == [True] * 4 + [False] * 4
