"""A recipe's judges while it is trained: what they say, what is kept, and that the steps do not notice. Real tiny panels and eyes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import triptych
from tests.contract import tiny
from tests.training import toy
from tests.training.test_generator import recipe as plain
from tests.training.test_generator import scenes
from tests.training.toy import Lines
from triptych import catalog, judging
from triptych.data.scenes import CLASSES
from triptych.eyes import Eyes
from triptych.recipe import Family, Recipe, from_yaml, to_yaml
from triptych.training import Report, Result, state, train
from triptych.training.expect import strange
from triptych.training.judged import Judged, curves

QUIET = Report(quiet=True)


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of a tiny CLIP and a tiny detector of scenes, both of random weights."""
    folder = tmp_path_factory.mktemp("eyes")
    words = tiny.build("text_encoders", "bilingual").eval()
    Eyes(tiny.awake(tiny.build("vision", "clip", condition=words.gives)).eval(), words, name="small").save(folder / "eyes")
    detr = tiny.build("vision", "detr", config=catalog.configure("vision", "detr", "tiny", {"labels": tuple(CLASSES)}))
    Eyes(tiny.awake(detr).eval(), name="finder").save(folder / "detector")
    return {"eyes": str(folder / "eyes"), "detector": str(folder / "detector")}


def recipe(seeing: Mapping[str, str], **changed: Any) -> Recipe:
    fields: dict[str, Any] = {"judges": ("distribution",), "judge_every": 2, "judge_pictures": 8, **seeing}
    return plain(**{**fields, **changed})


def run(of: Recipe, out: Path, **how: Any) -> Result:
    return train(of, out=out, data=scenes(), **{"report": QUIET, **how})


def rows(out: Path) -> list[dict[str, Any]]:
    return [row for row in toy.metrics(out) if row["kind"] == "judged"]


class Struck(Report):
    """Dies after the step `at`, before anything is written of it."""

    def __init__(self, at: int) -> None:
        super().__init__(quiet=True)
        self.at = at

    def step(self, step: int, loss: float) -> float:
        if step == self.at:
            raise RuntimeError("struck")
        return super().step(step, loss)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What the judge of objects will say at the coming turns, in order; 0.5 when the list is empty."""
    values: list[float] = []

    def look(draw: Any, asked: Any, judges: Any, **how: Any) -> judging.Seen:
        pictures = dict(enumerate(draw(asked.prompts[:2], asked.seeds[:2])))
        value = values.pop(0) if values else 0.5
        around = {"exact_low": value - 0.1, "exact_high": value + 0.1} if math.isfinite(value) else {}
        return judging.Seen(scores={"objects": {"n": 2, "exact": value, **around, "exact_ceiling": 1.0}}, pictures=pictures)

    monkeypatch.setattr(judging, "look", look)
    yield values


# --- what is said ---------------------------------------------------------------------------------------------------------


def test_all_judges_speak_at_their_turns(seeing: dict[str, str], tmp_path: Path) -> None:
    every = ("distribution", "clip_score", "retrieval", "diversity", "objects")
    lines = Lines()
    result = run(recipe(seeing, judges=every, judge_every=4, expect={"exact": "<= 1", "FD(small)_high": ">= 1e9"}), tmp_path, report=lines)
    said = rows(tmp_path)
    assert [row["step"] for row in said] == [4, 6]
    heads = ["FD(small)", "KID(small)", "precision(small)", "clip_score(small)", "image_to_text_1(small)", "diversity(small)", "exact"]
    for row in said:
        assert {*heads, "FD(small)_low", "FD(small)_high", "exact_low", "exact_high"} <= row.keys()
        assert row["FD(small)_low"] <= row["FD(small)"] <= row["FD(small)_high"]
        assert not any(name.endswith(("_n", "_ceiling", "_real")) or name == "n" for name in row)
    assert result.judged == {k: v for k, v in said[-1].items() if k not in ("step", "kind")}
    spoken = [line for line in lines.lines if line.startswith("step") and "judged:" in line]
    assert len(spoken) == 2 and spoken[0].startswith("step 4  judged: FD(small) ") and "exact 0 [0, " in spoken[1]
    assert [(one.measure, one.reached) for one in result.expected] == [("exact", True), ("FD(small)_high", False)]
    card = json.loads((tmp_path / "model/generator/card.json").read_text())
    assert card["judged"] == result.judged and card["expected"] == [str(one) for one in result.expected]
    strips = sorted(p.name for p in (tmp_path / "previews").glob("judged-*"))
    assert strips == ["judged-000004.png", "judged-000006.png"]
    assert Image.open(tmp_path / "previews" / strips[0]).size == (8 * 8, 8)  # 2 prompts, 4 pictures of each for diversity
    drawn = ET.parse(tmp_path / "judged.svg").getroot()
    texts = [e.text for e in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {*heads} <= {*texts} and len(list(drawn.iter("{http://www.w3.org/2000/svg}polyline"))) == len({*result.judged} & {*texts})


def test_the_words_are_those_of_what_is_held_out_and_never_change(seeing: dict[str, str]) -> None:
    task = triptych.training.build_task(recipe(seeing))
    other = triptych.data.build(plain().data, split="held_out")
    asked = [Judged(recipe(seeing), task, scenes(), held, "cpu").asked for held in (other, other, None)]
    assert asked[0].prompts[3].text == asked[1].prompts[3].text == other.row(0, 3).prompt.text and asked[0].seeds == tuple(range(8))
    assert asked[2].prompts[3].text == scenes().row(0, 3).prompt.text and "(train)" in asked[2].says
    of_scenes = Judged(recipe(seeing, judges=("objects",), judge_pictures=12), task, scenes(), other, "cpu")
    assert [p.text for p in of_scenes.asked.prompts] == [p.text for p in judging.scenes(12).prompts] and of_scenes.eyes is None


# --- the steps do not notice ----------------------------------------------------------------------------------------------


def global_draws() -> list[str]:
    return [repr(random.getstate()), repr(np.random.get_state()), repr(torch.get_rng_state().tolist())]  # noqa: NPY002


class Dropping(torch.nn.Module):
    """A layer that draws by itself, and batch norm, around a network: what judging must not touch."""

    role = "denoiser"

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network, self.drop, self.norm, self.seen = network, torch.nn.Dropout(0.3), torch.nn.BatchNorm2d(3), []

    def forward(self, x_t: torch.Tensor, clock_B: torch.Tensor, cond: Any) -> torch.Tensor:
        self.seen.append(self.training)
        return self.network(self.drop(self.norm(x_t)), clock_B, cond)


def test_weights_are_those_of_a_training_without_judges(seeing: dict[str, str], tmp_path: Path) -> None:
    found = {}
    for name, judges in (("with", ("distribution", "objects")), ("without", ())):
        of = recipe(seeing, judges=judges, judge_every=1)
        task = triptych.training.build_task(of)
        task.network = task.modules["generator"] = odd = Dropping(task.network)
        odd.drop.eval()  # an odd mode of a single part is everybody's own business
        found[name] = {"odd": odd, "before": global_draws()}
        run(of, tmp_path / name, task=task, export=toy.nothing)
        assert global_draws() == found[name]["before"]
        assert len(rows(tmp_path / name)) == (6 if judges else 0)
    one, other = (state.newest(tmp_path / name) for name in ("with", "without"))
    assert one is not None and other is not None and len(one.hashes) == 3 and one.hashes == other.hashes
    trained = [[row for row in toy.metrics(tmp_path / name) if row["kind"] == "train"] for name in ("with", "without")]
    assert trained[0] == trained[1]
    assert {True, False} == {*found["with"]["odd"].seen}, "judged in evaluation, trained in training mode"
    assert all(p.requires_grad for p in found["with"]["odd"].parameters())


def test_looking_leaves_modes_weights_and_draws(seeing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def turn(self: Judged, run: Any, *rest: Any) -> None:
        drop = next(m for m in run.task.modules.modules() if m is not run.task.modules)
        drop.eval()
        modes = [m.training for m in run.task.modules.modules()]
        weights = {name: p.detach().clone() for name, p in run.task.modules.named_parameters()}
        before = torch.get_rng_state()
        with pytest.raises(KeyError), run.looking():
            seen.append(all(not m.training for m in run.task.modules.modules()) and not torch.is_grad_enabled())
            seen.append(any(not weights[name].equal(p) for name, p in run.task.modules.named_parameters()))  # the averages
            torch.rand(3)
            raise KeyError
        assert modes == [m.training for m in run.task.modules.modules()] and torch.is_grad_enabled()
        assert torch.equal(before, torch.get_rng_state())
        assert all(weights[name].equal(p) for name, p in run.task.modules.named_parameters())

    monkeypatch.setattr(Judged, "turn", turn)
    run(recipe(seeing), tmp_path)
    assert seen == [True] * 6


def test_a_stop_in_the_middle_changes_nothing_of_what_is_judged(seeing: dict[str, str], tmp_path: Path) -> None:
    """Also where the best was kept after the last checkpoint: it is the same best again."""
    of = recipe(seeing, steps=8, judge_every=1, save_every=4, judges=("distribution", "objects"))
    whole = run(of, tmp_path / "twin")
    with pytest.raises(RuntimeError, match="struck"):
        run(of, tmp_path / "run", report=Struck(7))
    newest = state.newest(tmp_path / "run")
    assert newest is not None and newest.step == 4 and rows(tmp_path / "run")[-1]["step"] == 6
    again = run(of, tmp_path / "run", resume=True)
    assert toy.differences(tmp_path / "twin", tmp_path / "run", 8) == []
    assert (again.judged, again.best_at, again.best) == (whole.judged, whole.best_at, tmp_path / "run/best")
    for file in ("judged.svg", "best/judged.json", "best/generator/model.safetensors", "model/generator/model.safetensors"):
        assert (tmp_path / "twin" / file).read_bytes() == (tmp_path / "run" / file).read_bytes(), file
    facts = [state.newest(tmp_path / name).facts["judged"] for name in ("twin", "run")]  # type: ignore[union-attr]
    assert facts[0] == facts[1] and [row["step"] for row in facts[0]["history"]] == list(range(1, 9))
    finished = run(of, tmp_path / "run", resume=True)  # nothing is left to do, and nothing is forgotten
    assert (finished.judged, finished.best_at) == (whole.judged, whole.best_at) and len(rows(tmp_path / "run")) == 8


def test_what_is_judged_may_change_at_a_resume(seeing: dict[str, str], tmp_path: Path, told: list[float]) -> None:
    told[:] = [0.9, 0.8, 0.7, 0.3]
    of = recipe(seeing, judges=("objects",), steps=8)
    with pytest.raises(RuntimeError, match="struck"):
        run(of, tmp_path, report=Struck(5))
    lines = Lines()
    result = run(dataclasses.replace(of, judge_pictures=9), tmp_path, resume=True, report=lines)
    assert any("start anew" in line for line in lines.lines)
    assert result.best_at == {"step": 6, "measure": "exact", "value": 0.7}, "0.9 was of other pictures"
    assert [row["step"] for row in rows(tmp_path)] == [2, 4, 6, 8]


def test_a_run_of_before_can_be_judged_from_here_on(seeing: dict[str, str], tmp_path: Path, told: list[float]) -> None:
    """Its checkpoint knows of no judges."""
    write = state.write

    def old(out: Path, step: int, files: Any, facts: dict[str, Any], **how: Any) -> Path:
        less = {key: value for key, value in facts.items() if key != "judged"}
        return write(out, step, files, less, **how)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="struck"):
        patch.setattr(state, "write", old)
        run(recipe(seeing, judges=()), tmp_path, report=Struck(3))
    result = run(recipe(seeing, judges=("objects",)), tmp_path, resume=True)
    assert [row["step"] for row in rows(tmp_path)] == [4, 6] and result.best_at["step"] == 4


# --- what is kept ---------------------------------------------------------------------------------------------------------


def test_the_best_stays_when_later_ones_are_worse(seeing: dict[str, str], tmp_path: Path, told: list[float]) -> None:
    told[:] = [math.nan, 0.4, 0.9, 0.6, 0.9, math.nan]
    lines = Lines()
    result = run(recipe(seeing, judges=("objects",), judge_every=1), tmp_path, report=lines)
    assert result.best == tmp_path / "best" and result.best_at == {"step": 3, "measure": "exact", "value": 0.9}
    record = json.loads((tmp_path / "best/judged.json").read_text())
    assert (record["step"], record["value"], record["better"]) == (3, 0.9, "higher") and record["scores"]["exact_low"] == 0.8
    card = json.loads((tmp_path / "best/generator/card.json").read_text())
    assert card["steps"] == 3 and card["judged"]["exact"] == 0.9
    assert json.loads((tmp_path / "model/generator/card.json").read_text())["judged"] == {"exact": None}
    best, last = triptych.load(tmp_path / "best"), triptych.load(tmp_path / "model")
    assert best.generate(["a red circle"])[0].size == (8, 8)
    assert best.fingerprints["generator"] != last.fingerprints["generator"]
    assert [line.split("  ")[0] for line in lines.lines if "best so far" in line] == ["step 2", "step 3"]
    assert any(
        f"exact 0.9 at step 3; the last, step 6, has nan and is not the best: take {tmp_path / 'best'}" in line for line in lines.lines
    )
    assert math.isnan(result.judged["exact"]) and rows(tmp_path)[-1]["exact"] is None
    assert not list(tmp_path.glob(".best*")) and ET.parse(tmp_path / "judged.svg")


def test_what_is_kept_are_the_averages_of_that_step(seeing: dict[str, str], tmp_path: Path, told: list[float]) -> None:
    told[:] = [0.1, 0.9, 0.2]
    run(recipe(seeing, judges=("objects",), keep=3), tmp_path)
    saved = next(c for c in state.complete(tmp_path) if c.step == 4).tensors("averages")
    kept = triptych.load(tmp_path / "best").generator.network.state_dict()
    name = next(name for name in kept if name.endswith("weight") and f"0.1/generator.{name}" in saved)
    assert torch.equal(kept[name], saved[f"0.1/generator.{name}"].bfloat16().float())


def test_a_distance_is_best_when_it_is_least(seeing: dict[str, str], tmp_path: Path) -> None:
    result = run(recipe(seeing, judge_every=1), tmp_path)
    values = {row["step"]: row["FD(small)"] for row in rows(tmp_path)}
    assert result.best_at["step"] == min(values, key=lambda step: values[step]) and result.best_at["measure"] == "FD(small)"


@pytest.mark.parametrize("at", ["write", "first", "second"])
def test_the_old_best_outlives_a_death_on_the_way(
    seeing: dict[str, str], tmp_path: Path, told: list[float], monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    from triptych.training import build

    told[:] = [0.3, 0.8]
    rename, of = os.rename, recipe(seeing, judges=("objects",))

    class Died(BaseException):
        pass

    def export(task: Any, recipe: Any, folder: Path, card: Any) -> None:
        build.export(task, recipe, folder, card)
        if at == "write" and card["steps"] == 4:
            raise Died

    def deadly(source: Any, target: Any) -> None:
        replacing = (tmp_path / "run/best").exists() or (tmp_path / "run/.best.old").exists()
        if replacing and Path(source).name == {"first": "best", "second": ".best.new"}.get(at):
            raise Died
        rename(source, target)

    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(os, "rename", deadly)
        run(of, tmp_path / "run", export=export)
    there = tmp_path / "run" / (".best.old" if at == "second" else "best")
    assert json.loads((there / "judged.json").read_text())["step"] == 2 and triptych.load(there).generate(["star"])
    told[:] = [0.1, 0.2]  # both worse than what was kept
    result = run(of, tmp_path / "run", resume=True)
    assert result.best_at == {"step": 2, "measure": "exact", "value": 0.3} and triptych.load(tmp_path / "run/best").generate(["star"])
    assert not list((tmp_path / "run").glob(".best*"))


def test_another_runs_best_is_not_this_ones(seeing: dict[str, str], tmp_path: Path, told: list[float]) -> None:
    told[:] = [0.99]
    with pytest.raises(RuntimeError, match="struck"):
        run(recipe(seeing, judges=("objects",), judge_every=1, save_every=6), tmp_path, report=Struck(3))
    told[:] = [0.2]
    assert run(recipe(seeing, judges=("objects",), judge_every=6, seed=1), tmp_path).best_at["value"] == 0.2


def test_of_two_that_are_as_good_the_first_stays(seeing: dict[str, str], tmp_path: Path, told: list[float]) -> None:
    lines = Lines()
    assert run(recipe(seeing, judges=("objects",), judge_every=3), tmp_path, report=lines).best_at["step"] == 3
    assert lines.lines[-1] == f"best judged: exact 0.5 at step 3, in {tmp_path / 'best'}; the last, step 6, is as good"


# --- expectations and mistakes --------------------------------------------------------------------------------------------


def test_expect_of_a_name_that_nothing_measures(seeing: dict[str, str], tmp_path: Path, told: list[float]) -> None:
    lines = Lines()
    wanted = {"exact": ">= 0.4", "loss": "<= 1e9", "exakt": ">= 0.1"}
    result = run(recipe(seeing, judges=("objects",), expect=wanted), tmp_path, report=lines, held_out=scenes())
    assert [one.reached for one in result.expected] == [True, True, False]
    assert (
        str(result.expected[2])
        == "exakt was not measured (did you mean 'exact'? there are: loss, x0_mse, v_mse, exact), expected >= 0.1: MISSED"
    )
    first = next(i for i, line in enumerate(lines.lines) if line.startswith("expect: nothing here measures 'exakt'; did you mean 'exact'?"))
    assert first < next(i for i, line in enumerate(lines.lines) if "judged:" in line), "said before the first step"
    assert strange({"counting": ">= 0", "loss_low": ">= 0"}, ["loss", "loss_low", "counting"]) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"judges": ("objcts",)}, "no judge 'objcts'; did you mean 'objects'"),
        ({"eyes": None}, r"'distribution' looks through the embedded 'triptych-eyes-v1', for eyes is not set: no model .*set eyes to"),
        ({"judges": ("objects",), "detector": "no/where"}, r"'objects' looks through detector = 'no/where': .*--set detector=FOLDER"),
        ({"judges": ("clip_score",), "eyes": "detector"}, "'clip_score' needs eyes that hear words, a CLIP"),
        ({"judges": ("objects",), "detector": "eyes"}, "does not name its classes"),
        ({"judge_pictures": 2}, "'distribution' cannot judge 2 pictures here: .*change judge_pictures"),
        ({"judges": ("memorisation",)}, "compares with all training pictures, 20000 at most"),
        ({"panel": "text_encoders", "family": Family(name="bilingual", size="tiny"), "neighbours": {}, "task_options": {}},
         "recipe 'tiny-test' trains text_encoders: leave judges empty"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry_run", [False, True])
def test_judges_that_cannot_work_are_found_before_training(
    seeing: dict[str, str], tmp_path: Path, changed: dict[str, Any], said: str, dry_run: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych.checkpoint.embedded", list)
    changed = {key: seeing.get(str(value), value) if key in seeing else value for key, value in changed.items()}
    with pytest.raises(ValueError, match=said):
        run(recipe(seeing, **changed), tmp_path / "run", dry_run=dry_run)
    assert not (tmp_path / "run/metrics.jsonl").exists() and not (tmp_path / "run/checkpoints").exists()


def test_data_without_rows_has_no_words(seeing: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Pixels has no `row`: leave judges empty"):
        run(recipe(seeing), tmp_path, held_out=toy.Pixels())


def test_memory_is_measured_against_all_that_was_learnt(seeing: dict[str, str], tmp_path: Path) -> None:
    few = triptych.data.build(plain().data)
    few.__class__ = type("Few", (type(few),), {"__len__": lambda self: 24})  # endless scenes, cut short
    result = train(recipe(seeing, judges=("memorisation",), steps=2), out=tmp_path, data=few, report=QUIET)
    assert 0 <= result.judged["copies"] <= 1 and result.best_at["measure"] == "copies"


def test_a_dry_run_judges_nothing(seeing: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "look", None)
    result = run(recipe(seeing), tmp_path / "run", dry_run=True)
    assert result.reason == "dry run" and not result.judged and result.best is None and not (tmp_path / "run").exists()


def test_a_recipe_with_judges_is_read_back(seeing: dict[str, str], tmp_path: Path) -> None:
    of = recipe(seeing, expect={"FD(small)": "<= 0.3"})
    (tmp_path / "r.yaml").write_text(to_yaml(of), encoding="utf-8")
    assert from_yaml(tmp_path / "r.yaml") == of


def test_curves_of_little_and_of_nothing() -> None:
    for history in (
        [],
        [{"step": 5, "a<b": math.nan}],
        [{"step": 5, "a<b": 0.0}],
        [{"step": 1, "x": 2.0, "x_low": 1.0, "x_high": math.inf}],
    ):
        ET.fromstring(curves(history, "R & D"))
    drawn = ET.fromstring(curves([{"step": 10 * i, "x": i, "x_low": i - 1.0, "x_high": i + 1.0} for i in range(1, 4)], "t"))
    polygon = drawn.find("{http://www.w3.org/2000/svg}polygon")
    assert polygon is not None and len(polygon.attrib["points"].split()) == 6
