"""`triptych train --all`: an order that holds, what is finished is not trained again, and a group that was struck goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from triptych import recipes
from triptych.app.train_all import Told, in_order, table, train_all
from triptych.recipe import Family, Neighbour, Recipe

ROOT = Path(__file__).resolve().parents[2]


def small(name: str, *stands_on: str, **changed: Any) -> Recipe:
    """A few steps of the tiny recipe; `stands_on`: recipes whose text encoder, then decoder, it takes."""
    base = recipes.get("tiny")
    neighbours = {place: Neighbour(model=other) for place, other in zip(("text_encoder", "decoder"), stands_on, strict=False)}
    quick = {"steps": 4, "batch": 32, "save_every": 2, "validate_every": 10_000, "preview_every": 10_000, "preview_prompts": ()}
    given = {"name": name, "neighbours": {**base.neighbours, **neighbours}, "task_options": {"vocabulary_texts": 200}}
    return replace(base, **{**given, **quick, **changed})


def said(told: list[Told]) -> dict[str, str]:
    return {one.name: one.state for one in told}


def test_each_comes_after_those_that_it_stands_on() -> None:
    wanted = [small("c", "b", "a"), small("x"), small("b", "a"), small("a")]
    assert [one.name for one in in_order(wanted)] == ["a", "b", "c", "x"]
    assert [one.name for one in in_order([small("emoji", "emoji"), small("b")])] == ["emoji", "b"]  # its own name: the embedded model
    with pytest.raises(ValueError, match="a -> b -> a"):
        in_order([small("a", "b"), small("b", "a")])
    with pytest.raises(ValueError, match="two recipes are called 'a'"):
        in_order([small("a"), small("a")])


def test_every_group_has_an_order() -> None:
    names = []
    for group, members in recipes.groups().items():
        ordered = in_order(recipes.group(group))
        assert sorted(one.name for one in ordered) == sorted(members), "a run's folder is called as its recipe is"
        names += members
    assert sorted(names) == recipes.names()
    with pytest.raises(ValueError, match="did you mean 'emoji'"):
        recipes.group("emojy")


def test_a_group_is_trained_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = [small("second", "first"), small("first"), small("wrong", data=replace(small("x").data, size=8)), small("third", "wrong")]
    told = train_all(wanted, tmp_path, quiet=True)
    assert said(told) == {"first": "finished", "second": "finished", "wrong": "failed", "third": "waits"}
    first, _, wrong, third = told
    assert first.step == 4 and first.pictures == 128 and first.minutes is not None and "loss" in first.measures
    assert "scene of side 8" in wrong.why and wrong.code == "bad_data" and third.why == "for wrong"
    cards = {name: json.loads((tmp_path / name / "model" / "generator" / "card.json").read_text()) for name in ("first", "second")}
    assert cards["second"]["recipe"]["neighbours"]["text_encoder"]["model"] == str(tmp_path / "first" / "model")
    heard = json.loads((tmp_path / "first" / "model" / "text_encoder" / "card.json").read_text())["fingerprint"]
    assert cards["second"]["neighbours"]["text_encoder"] == heard == cards["first"]["neighbours"]["text_encoder"]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    err = capsys.readouterr().err
    assert "1 of 4, first: 4 steps of 32" in err and "3 of 4, wrong: failed" in err
    told = train_all([wanted[0], wanted[1], small("wrong"), wanted[3]], tmp_path, quiet=True)
    assert said(told) == {"first": "was finished", "second": "was finished", "wrong": "finished", "third": "finished"}
    assert all(path.stat().st_mtime_ns == then for path, then in times.items()), "what was finished is not touched"
    assert "1 of 4, first: was finished, 0." in capsys.readouterr().err
    lines = table(told).splitlines()
    assert len(lines) == 5 and lines[1].split()[:3] == ["first", "was", "finished"] and "loss" in lines[1]


def test_trained_in_a_group_or_alone_is_the_same(tmp_path: Path) -> None:
    train_all([small("a", seed=5), small("b")], tmp_path / "both", quiet=True)
    train_all([small("b")], tmp_path / "alone", quiet=True)
    files = [folder / "b" / "model" / "generator" / "model.safetensors" for folder in (tmp_path / "both", tmp_path / "alone")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_another_recipes_run_is_not_taken_for_finished(tmp_path: Path) -> None:
    train_all([small("a")], tmp_path, quiet=True)
    (told,) = train_all([small("a", seed=7)], tmp_path, quiet=True)
    assert told.state == "failed" and told.code == "bad_checkpoint" and "seed was 0, is 7" in told.why
    for folder in (tmp_path / "a" / "checkpoints").iterdir():  # the model alone, its checkpoints thrown away
        for file in folder.iterdir():
            file.unlink()
    assert said(train_all([small("a")], tmp_path, quiet=True)) == {"a": "was finished"}
    (told,) = train_all([small("a", seed=7)], tmp_path, quiet=True)
    assert told.state == "failed" and "its checkpoints are gone" in told.why


def test_a_plan(tmp_path: Path) -> None:
    told = train_all([small("b", "a"), small("a")], tmp_path, dry_run=True, quiet=True)
    assert said(told) == {"a": "planned", "b": "planned"} and not list(tmp_path.iterdir())
    assert told[0].minutes and told[1].minutes is None and told[1].why.startswith("stands on a")
    train_all([small("a")], tmp_path, quiet=True)
    told = train_all([small("b", "a"), small("a")], tmp_path, dry_run=True, quiet=True)
    assert said(told) == {"a": "was finished", "b": "planned"} and told[0].minutes == 0 and told[1].minutes
    lines = table(told).splitlines()
    assert lines[2].split()[:4] == ["b", "planned", "4", "128"]


GROUP = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.app.test_train_all import small
from triptych import recipes
from triptych.recipe import Data, Source
data = {{"data": Data(sources=(Source(name="folder", options={{"path": "pictures"}}),), size=16), "batch": 4}}  # too few to hold some out
recipes.group = lambda name: [
    small("first", **data), small("long", "first", steps=150, save_every=10, **data), small("last", "long", **data),
]
from triptych.app.cli import main
sys.exit(main(["train", "--all", "mine", "--out", "runs", *sys.argv[1:]]))
"""


def start(here: Path, *more: str) -> subprocess.Popen[str]:
    (here / "group.py").write_text(GROUP.format(root=str(ROOT)))
    (here / "pictures").mkdir(exist_ok=True)
    for i, color in enumerate(("red", "green", "blue")):
        Image.new("RGB", (16, 16), color).save(here / "pictures" / f"{i}.png")
        (here / "pictures" / f"{i}.txt").write_text(f"a {color} square")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "group.py", *more], cwd=here, env=env, text=True, **pipes)


def struck(child: subprocess.Popen[str], here: Path, number: signal.Signals) -> tuple[str, str]:
    """The signal comes when the long one has a checkpoint that was not there before."""

    def last() -> int:
        return max((int(path.name[5:]) for path in (here / "runs" / "long" / "checkpoints").glob("step-??????")), default=0)

    deadline, before = time.monotonic() + 200, last()
    while last() == before:
        assert time.monotonic() < deadline and child.poll() is None
        time.sleep(0.02)
    child.send_signal(number)
    return child.communicate(timeout=120)


def test_killed_struck_and_gone_on(tmp_path: Path) -> None:
    """kill -9 in the second of three, then Ctrl+C in it, then to the end: the same bits as if nothing had been."""
    struck(start(tmp_path), tmp_path, signal.SIGKILL)
    killed = start(tmp_path, "--json")
    out, err = struck(killed, tmp_path, signal.SIGINT)
    assert killed.returncode == 130, err
    told = {one["name"]: one for one in json.loads(out)["runs"]}
    assert {name: one["state"] for name, one in told.items()} == {"first": "was finished", "long": "interrupted", "last": "not begun"}
    assert 0 < told["long"]["step"] < 150 and "resumed at step" in err and "go on: triptych train --all mine --out runs" in err
    ended = start(tmp_path)
    out, err = ended.communicate(timeout=300)
    assert ended.returncode == 0, err
    assert [line.split()[0] for line in out.splitlines()[:4]] == ["name", "first", "long", "last"] and "3 recipes" in out
    undisturbed = tmp_path / "twin"
    undisturbed.mkdir()
    twin = start(undisturbed)
    assert twin.communicate(timeout=300) and twin.returncode == 0
    for name in ("first", "long", "last"):
        files = [home / "runs" / name / "model" / "generator" / "model.safetensors" for home in (tmp_path, undisturbed)]
        assert files[0].read_bytes() == files[1].read_bytes(), name


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--all", "nothing"], "no group of recipes 'nothing'"),
        (["--all", "emoji", "tiny"], "leave RECIPE tiny out"),
        (["--all", "emoji", "--resume"], "leave --resume out"),
        (["--all", "emoji", "--init", "emoji"], "leave --init out"),
        (["--all", "emoji", "--set", "stepps=3"], "'steps'"),
        ([], "RECIPE"),
    ],
)
def test_mistakes(run: Callable, argv: list[str], said: str) -> None:
    ran = run("train", *argv)
    assert ran.code == 2 and said in ran.err and len(ran.err.splitlines()) == 1


def test_a_failure_has_the_exit_code(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = small("wrong", family=Family(name="dit", size="huge"))
    monkeypatch.setattr(recipes, "group", lambda name: [wrong, small("right")])
    ran = run("train", "--all", "mine", "--json")
    assert ran.code == 2 and [one["state"] for one in ran.json["runs"]] == ["failed", "finished"] and "go on: " in ran.err
    assert Path("runs/mine/right/model/triptych.json").exists()
