"""The command line: light, helpful, with one line and a stable code for every mistake."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych.app import errors
from triptych.app.cli import main

VERBS = [
    ["generate"], ["train"], ["list"], ["show"], ["doctor"], ["data"], ["data", "build"], ["data", "show"], ["data", "check"], ["classify"],
    ["search"], ["score"], ["detect"], ["probe"], ["judge"], ["compare"],
]  # fmt: skip


def test_the_command_line_is_light() -> None:
    code = "import sys, triptych.app.cli as c; c.main(['--help']); c.main(['show', '--nope']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_help_is_worth_reading(run: Callable, verb: list[str]) -> None:
    for flag in ("--help", "-h"):
        ran = run(*verb, flag)
        assert ran.code == 0 and not ran.err
        assert "Usage: triptych " + " ".join(verb) in ran.out
        assert verb == ["data"] or ("--json" in ran.out and f"\n  triptych {' '.join(verb)}" in ran.out)  # an example of its use


def test_without_arguments_there_is_help(run: Callable) -> None:
    for argv in ([], ["data"]):
        ran = run(*argv)
        assert ran.code == 0 and ran.out.startswith("Usage: triptych")


def test_version(run: Callable) -> None:
    from triptych import __version__

    assert run("--version").out == f"triptych {__version__}\n"


@pytest.mark.parametrize(
    "argv, said",
    [
        (["generat"], "No such command 'generat'"),
        (["generate", "x", "--stepps", "3"], "--steps"),
        (["generate", "x", "--steps", "many"], "--steps"),
        (["generate"], "give a prompt"),
        (["generate", "x", "--seed"], "--seed"),
        (["generate", "x", "-n", "0"], "-n 0"),
        (["generate", "x", "--seed", "-2"], "seed -2"),
        (["generate", "x", "--size", "big"], "128x128"),
        (["generate", "x", "-o", "a.gif"], ".gif"),
        (["generate", "x", "--strip", "0"], "--strip 0"),
        (["generate", "x", "--model", "emojj"], "emojj"),
        (["generate", "--prompts", "no.txt"], "no.txt"),
        (["generate", "--from", "no.png"], "no.png"),
        (["generate", "a\udcff"], "Unicode"),
        (["train"], "RECIPE"),
        (["train", "tinny"], "'tiny'"),
        (["train", "tiny", "--set", "stepps=3"], "'steps'"),
        (["train", "tiny", "--set", "steps=0"], "steps"),
        (["train", "no.yaml"], "no.yaml"),
        (["train", "tiny", "--resume"], "--out"),
        (["train", "tiny", "--data", "emojy"], "'emoji'"),
        (["show"], "NAME"),
        (["show", "ditt"], "'dit'"),
        (["show", "dit", "--trace"], "--trace"),
        (["data", "check", "nowhere"], "nowhere"),
        (["data", "show", "scenes", "-n", "0"], "-n"),
        (["data", "show", "scenes:-1"], "weight"),
        (["data", "what"], "what"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(run: Callable, here: Path, argv: list[str], said: str) -> None:
    ran = run(*argv)
    assert ran.code == 2 and not ran.out
    lines = [line for line in ran.err.splitlines() if not line.startswith("seed ")]
    assert len(lines) == 1 and lines[0].startswith("triptych: ") and said in lines[0] and "fault" not in lines[0]
    ran = run(*argv, "--json")
    assert ran.json["error"]["code"] == "usage" and ran.json["error"]["exit_code"] == 2 and said in ran.json["error"]["message"]
    assert not list(here.glob("*.png"))


def test_bad_data_is_code_3(run: Callable, here: Path) -> None:
    (here / "a.png").write_bytes(b"no picture")
    assert run("generate", "--from", "a.png").code == 3
    (here / "mine").mkdir()
    for argv in (["data", "check", "mine"], ["data", "build", "mine"], ["data", "show", "mine"]):
        ran = run(*argv)
        assert ran.code == 3 and "mine" in ran.err and len(ran.err.splitlines()) == 1


def test_bad_checkpoints_are_code_4(run: Callable, here: Path) -> None:
    (here / "m" / "text_encoder").mkdir(parents=True)
    assert run("generate", "x", "--model", "m").code == 4
    assert run("show", "m").code == 4
    (here / "m" / "text_encoder" / "config.json").write_text('{"family": "bilingual", "config": {"no_such_field": 1}}')
    assert run("generate", "x", "--model", "m").code == 4


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.Failure("locked", "x"), "locked"),
        (MemoryError(), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (OSError(errno.ENOSPC, "No space left", "/a"), "disk_full"),
        (PermissionError(errno.EACCES, "denied", "/a"), "usage"),
        (KeyboardInterrupt(), "interrupted"),
        (ValueError("a\nb"), "usage"),
        (TypeError("ours"), "internal"),
        (RuntimeError("ours"), "internal"),
    ],
)
def test_every_exception_has_a_code_and_one_line(error: BaseException, code: str) -> None:
    found = errors.report(error)["error"]
    assert found["code"] == code and found["exit_code"] == errors.EXIT[code] and "\n" not in str(found["message"]) and found["message"]


def test_exceptions_of_training_have_their_codes() -> None:
    from triptych import training

    named = {training.BadCheckpoint: 4, training.DiskFull: 6, training.Diverged: 7, training.Locked: 8}
    for kind, code in named.items():
        assert errors.report(kind("x"))["error"]["exit_code"] == code
        with pytest.raises(kind), errors.blame("bad_data"):
            raise kind("x")


WORD = st.sampled_from(
    [
        "generate",
        "show",
        "data",
        "check",
        "train",
        "list",
        "--json",
        "--help",
        "-o",
        "--seed",
        "-1",
        "--model",
        "m",
        "--",
        "--set",
        "a=b",
        "--debug",
        "--size",
        "9x9",
        "--from",
        "-",
        "",
        "--strip",
        "no/such",
        "x.png",
    ]
) | st.text(max_size=8)


@given(argv=st.lists(WORD, max_size=6))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_command_line_gives_a_traceback(
    argv: list[str], here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych.app.generate.DEFAULT_MODEL", "not here")  # else the right ones among them would draw
    capsys.readouterr()
    code = main([a for a in argv if a not in ("--debug", "doctor", "tiny", "scenes", "emoji")])
    err = capsys.readouterr().err
    assert code in {0, *errors.EXIT.values()} - {1} and "Traceback" not in err


def test_debug_prints_the_traceback(run: Callable) -> None:
    assert "Traceback" in run("show", "nothing", "--debug").err and "Traceback" not in run("show", "nothing").err


def test_list_names_everything(run: Callable) -> None:
    from triptych import catalog, recipes

    value = run("list", "--json").json
    assert list(value["recipes"]) == recipes.names() and value["families"].keys() == set(catalog.KINDS)
    assert "dit" in value["families"]["generators"] and value["samplers"]["rectified_flow"]
    text = run("list").out
    assert all(name in text for kind in catalog.KINDS for name in catalog.names(kind))


def test_every_recipe_is_shown_as_yaml_that_train_reads(run: Callable, here: Path) -> None:
    from triptych import recipe, recipes
    from triptych.app.train import find_recipe

    for name in recipes.names():
        (here / "r.yaml").write_text(run("show", f"recipes/{name}").out, encoding="utf-8")
        assert recipe.to_mapping(find_recipe("r.yaml")) == recipe.to_mapping(recipes.get(name))


def test_every_family_is_shown_with_its_sizes(run: Callable) -> None:
    from triptych import catalog

    for kind in catalog.KINDS:
        for name in catalog.names(kind):
            ran = run("show", f"{kind}/{name}", "--json")
            assert ran.code == 0 and "tiny" in ran.json["sizes"] and ran.json["about"]
    assert run("show", "generators/dit", "--json").json["sizes"]["tiny"]["parameters"] > 10_000


def test_doctor(run: Callable, here: Path) -> None:
    ran = run("doctor", "--json")
    assert (
        ran.code == 0 and {"python", "torch", "device", "disk", "write", "font", "cldr", "weights", "compiler"} <= ran.json["checks"].keys()
    )
    assert ran.json["checks"]["python"]["ok"] and ran.json["checks"]["write"]["ok"] and not list(here.iterdir())
    assert "torch" in run("doctor").out


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "triptych.app.cli", "list"], stdout=writer, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writer)
    assert done.returncode == 0 and not done.stderr


def test_json_stays_json_in_a_poor_terminal(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "triptych.app.cli", "generate", "火箭", "--model", "没有", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, cwd=tmp_path)
    assert done.returncode == 2 and "没有" in json.loads(done.stdout)["error"]["message"]
