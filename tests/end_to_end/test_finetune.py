"""A thing that nobody drew before, learnt from twenty pictures: drawn when asked for by its name, and a red apple is still an apple."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest

from scripts import finetune
from triptych import load
from triptych.app.cli import main


def fine_tuned(folder: Path, *, lora: int | None, settings: list[str], prior: int) -> Path:
    finetune.write(folder / "robots")
    (folder / "prior.txt").write_text("\n".join(finetune.PRIOR), encoding="utf-8")
    command = ["train", "own", "--data", str(folder / "robots"), "--trigger", finetune.TRIGGER, "--out", str(folder / "run")]
    command += ["--prior", f"@{folder / 'prior.txt'}", "--prior-pictures", str(prior), *(["--lora", str(lora)] if lora else [])]
    assert main([*command, *(part for one in settings for part in ("--set", one))]) == 0
    return folder / "run" / "model"


def test_a_new_thing_is_learnt_and_an_apple_kept(tmp_path: Path) -> None:
    """By number, through the eyes; docs/results/finetune.md has longer trainings, larger N, and the pictures."""
    settings = ["steps=60", "batch=16", "compile=false", "preview_prompts=[]", "ema=0.2", "sampling.steps=10"]
    model = fine_tuned(tmp_path, lora=8, settings=settings, prior=24)
    asked = finetune.Asked(Namespace(n=16, quick=True))
    before, after = asked(load("emoji")), asked(load(model))
    assert before["thing"]["value"] == 0 and after["thing"]["value"] >= 0.5, (before, after)
    assert after["FD"] < 0.9 * before["FD"] and after["apple"]["value"] > before["apple"]["value"] - 4, (before, after)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, 8])
def test_it_is_learnt_in_three_hundred_steps(tmp_path: Path, lora: int | None) -> None:
    """As docs/results/finetune.md has it, but for what another machine's rounding may change."""
    model = fine_tuned(tmp_path, lora=lora, settings=["steps=300"], prior=180)
    asked = finetune.Asked(Namespace(n=40, quick=False))
    before, after = asked(load("emoji")), asked(load(model))
    assert after["thing"]["value"] >= 0.9 and after["FD"] < 0.6 * before["FD"], (before, after)
    assert after["apple"]["value"] > before["apple"]["value"] - 3 and after["kept"] < 15, (before, after)
