"""The loop as a whole, on the toy."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training import toy
from triptych.contracts import Task
from triptych.recipe import Optimizer, Recipe, from_mapping
from triptych.training import BadCheckpoint, state


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_both_optimizers_train_and_resume_to_the_bit(tmp_path: Path, name: str) -> None:
    how = Optimizer(name=name, lr=3e-3, weight_decay=0.01)  # type: ignore[arg-type]
    toy.run(tmp_path / "twin", optimizer=how)
    lines = toy.metrics(tmp_path / "twin")
    held_out = [line["loss"] for line in lines if line["kind"] == "held_out"]
    assert len(held_out) == 4 and held_out[-1] < 0.2 * held_out[0]
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 61))

    class Dies(toy.Toy):
        def after_step(self, phase: str, step: int) -> None:
            if step == 37:
                raise RuntimeError("struck")

    with pytest.raises(RuntimeError, match="struck"):
        toy.run(tmp_path / "run", Dies(), optimizer=how)
    toy.run(tmp_path / "run", optimizer=how, resume=True)
    assert toy.differences(tmp_path / "twin", tmp_path / "run", 60) == []


def test_what_is_exported_are_the_averages(tmp_path: Path) -> None:
    exported: dict[str, torch.Tensor] = {}
    cards = []

    def keep(task: Task, recipe: Recipe, folder: Path, card: dict) -> None:
        exported.update({name: t.clone() for name, t in task.modules.state_dict().items()})
        cards.append(card)

    task = toy.Toy()
    result = toy.run(tmp_path, task, steps=12, ema=0.1, export=keep)
    assert result.model == tmp_path / "model" and cards[0]["steps"] == 12 and cards[0]["examples"] == 96
    saved = state.newest(tmp_path)
    assert saved is not None
    averages = saved.tensors("averages")
    assert {name.split("/")[0] for name in averages} == {"0.1", "0.05"}
    name = "generator.first.weight"
    assert exported[name].equal(averages[f"0.1/{name}"])
    last = saved.tensors("weights")[name]
    assert task.modules.state_dict()[name].equal(last) and not exported[name].equal(last)


def test_the_run_folder(tmp_path: Path) -> None:
    toy.run(tmp_path, steps=10, preview_every=5, preview_prompts=("a", "b"))
    assert (tmp_path / "recipe.yaml").read_text().startswith("name: toy")
    names = sorted(p.name for p in (tmp_path / "previews").iterdir())
    assert names == ["step-000000.png", "step-000005.png", "step-000010.png"]
    assert Image.open(tmp_path / "previews" / names[0]).size == (8 * 8, 8)
    assert [p.name for p in sorted((tmp_path / "checkpoints").iterdir())] == ["step-000005", "step-000010"]


def test_a_used_folder_wants_resume_and_the_same_recipe(tmp_path: Path) -> None:
    toy.run(tmp_path, steps=5)
    with pytest.raises(ValueError, match="reached step 5; go on with --resume"):
        toy.run(tmp_path, steps=5)
    changed = Optimizer(lr=1e-4, weight_decay=0.01)
    with pytest.raises(BadCheckpoint, match=r"optimizer\.lr was 0\.003, is 0\.0001, seed was 0, is 1"):
        toy.run(tmp_path, steps=5, optimizer=changed, seed=1, resume=True)
    assert toy.run(tmp_path, steps=5, save_every=3, keep=9, resume=True).reason == "finished"


def test_while_the_rate_is_flat_the_end_is_still_open(tmp_path: Path) -> None:
    """The same run as one that was planned so from the start, where warm-up is over in both."""
    flat = Optimizer(lr=3e-3, warmup=0.0, decay=0.25)
    toy.run(tmp_path / "planned", steps=40, optimizer=flat)

    class Dies(toy.Toy):
        def after_step(self, phase: str, step: int) -> None:
            if step == 27:
                raise RuntimeError("struck")

    with pytest.raises(RuntimeError, match="struck"):
        toy.run(tmp_path / "run", Dies(), steps=80, optimizer=flat)
    reached = state.newest(tmp_path / "run")
    assert reached is not None and 0 < reached.step <= 27
    toy.run(tmp_path / "run", steps=40, optimizer=flat, resume=True)
    assert toy.differences(tmp_path / "planned", tmp_path / "run", 40) == []
    with pytest.raises(BadCheckpoint, match="steps was 40, is 80"):  # now the rate has fallen
        toy.run(tmp_path / "run", steps=80, optimizer=flat, resume=True)


def test_resume_of_nothing_starts(tmp_path: Path) -> None:
    report = toy.Lines()
    toy.run(tmp_path, steps=2, resume=True, report=report)
    assert any("starting from the beginning" in line for line in report.lines)


def test_an_other_module_is_refused_by_tensor(tmp_path: Path) -> None:
    toy.run(tmp_path, steps=5)
    other = toy.Toy()
    other.modules["judge"] = torch.nn.Linear(192, 2)
    with pytest.raises(BadCheckpoint, match=r"'judge\.weight' is \[1, 192\], here it is \[2, 192\]"):
        toy.run(tmp_path, other, steps=5, resume=True)


def test_dry_run_measures_and_writes_nothing(tmp_path: Path) -> None:
    report = toy.Lines()
    found = toy.run(tmp_path / "run", dry_run=True, report=report).estimate
    parameters = sum(p.numel() for p in toy.Toy().modules.parameters())
    assert found["parameters"] == found["trained"] == parameters
    matrices = 192 * 96 + 2 * 96 * 96 + 96 * 192
    assert found["flop_per_step"] >= 2 * 8 * matrices * 3 * 0.8  # forward once, backward twice; the first layer needs no input gradient
    assert found["pictures_per_s"] > 0 and found["hours"] > 0 and found["memory_bytes"] > 2**20
    assert len(report.lines) == 6 and not (tmp_path / "run").exists()
    toy.run(tmp_path / "run", steps=5)
    real = sum(state.newest(tmp_path / "run").sizes.values())  # type: ignore[union-attr]
    assert found["checkpoint_bytes"] == pytest.approx(real, rel=0.05)


def test_a_broken_compiler_is_said_once_and_costs_only_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("/bin/false",))
    monkeypatch.setattr("torch._inductor.config.fx_graph_cache", False)
    torch._dynamo.reset()
    report = toy.Lines()
    toy.run(tmp_path / "compiled", steps=5, compile=True, report=report)
    assert sum("going on without it" in line for line in report.lines) == 1
    toy.run(tmp_path / "plain", steps=5)
    losses = [[line["loss"] for line in toy.metrics(tmp_path / name)] for name in ("compiled", "plain")]
    assert losses[0] == pytest.approx(losses[1])


def test_weights_stay_float32_when_the_computation_is_bf16(tmp_path: Path) -> None:
    task = toy.Toy()
    toy.run(tmp_path, task, steps=5, precision="bf16")
    assert {p.dtype for p in task.modules.parameters()} == {torch.float32}
    saved = state.newest(tmp_path)
    assert saved is not None
    for name in ("weights", "averages", "optimizer"):
        assert {t.dtype for t in saved.tensors(name).values()} <= {torch.float32, torch.int64}


def test_a_recipe_says_what_it_expects_and_the_run_whether_it_came(tmp_path: Path) -> None:
    cards: list[dict] = []
    report = toy.Lines()
    wanted = {"loss": "<= 1e3", "largest": ">= 0.5"}
    result = toy.run(tmp_path / "a", steps=10, expect=wanted, report=report, export=lambda task, recipe, folder, card: cards.append(card))
    assert [(e.measure, e.reached) for e in result.expected] == [("loss", True), ("largest", False)]  # never measured: never reached
    assert [line for line in report.lines if "expected" in line] == [str(e) for e in result.expected] == cards[0]["expected"]
    missed = toy.run(tmp_path / "b", steps=10, expect={"loss": ">= 1e3"})
    assert not missed.expected[0].reached and missed.expected[0].found == missed.validation["loss"]
    with pytest.raises(ValueError, match="expect"):
        from_mapping({"name": "x", "panel": "generators", "family": {"name": "dit"}, "expect": {"loss": 0.3}})
