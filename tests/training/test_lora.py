"""A generator that learns beside its weights: what it takes, what it leaves alone, what comes out, and that a kill changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training import toy
from tests.training.test_generator import Struck, recipe, scenes
from triptych import checkpoint
from triptych.contracts import Rng
from triptych.interop.lora_files import FILE
from triptych.layers import lora
from triptych.pipeline import TextToImage, load
from triptych.recipe import Family, Lora, Neighbour, Optimizer, from_mapping, override
from triptych.training import BadCheckpoint, GeneratorTask, Report, build_task, state, train
from triptych.training.run import Run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt a little."""
    out = tmp_path_factory.mktemp("base")
    train(recipe(trained=True, steps=20, batch=8, optimizer=Optimizer(lr=2e-3)), out=out, data=scenes(), report=Report(quiet=True))
    return out / "model"


def beside(base: Path, **changed: Any) -> Any:
    neighbours = {"text_encoder": Neighbour(model=str(base)), "decoder": Neighbour(model=str(base))}
    fields = {"neighbours": neighbours, "init": str(base), "lora": Lora(rank=2, alpha=3.0), "optimizer": Optimizer(lr=0.02), "ema": 0.1}
    return recipe(**{**fields, **changed})


def learnt(base: Path, out: Path, **changed: Any) -> Path:
    how = {"report": changed.pop("report", Report(quiet=True)), "resume": changed.pop("resume", False)}
    train(beside(base, **changed), out=out, data=scenes(), **how)
    return out


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learnt(base, tmp_path_factory.mktemp("runs") / "run", steps=20, save_every=4)


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    return load_file(model / "generator/model.safetensors")


# --- what it learns ---------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_base_stays(base: Path) -> None:
    """Of the same batch, noise and times, by A and B alone; every other weight to the bit as it was."""
    task = build_task(beside(base, dropout=0.0))
    assert isinstance(task, GeneratorTask)
    before = {name: t.clone() for name, t in task.network.state_dict().items()}
    how = beside(base, dropout=0.0, steps=20, optimizer=Optimizer(lr=0.02, warmup=0.0))
    run = Run(how, task, scenes(), None, "cpu", Report(quiet=True))
    batch = scenes().batch(0, 0, 16)
    with torch.no_grad():
        first = float(task.losses(batch, "main", 0, Rng.of_samples(0, batch.index))["loss"])
    for _ in range(20):
        run.update(batch)
    with torch.no_grad():
        last = float(task.losses(batch, "main", 0, Rng.of_samples(0, batch.index))["loss"])
    assert last < 0.97 * first, (first, last)
    changed = {name for name, t in task.network.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {name for name in before if name.endswith((".A", ".B"))}


def test_it_takes_what_a_and_b_take(base: Path, run: Path) -> None:
    """Gradients, optimizer, averages and checkpoints; and foretold so."""
    task = build_task(beside(base))
    small = sum(p.numel() for _, one in lora.inserted(task.panels()["generator"]) for p in (one.A, one.B))
    whole = sum(t.numel() for t in weights_of(base).values())
    assert small < whole / 5
    saved = state.newest(run)
    assert saved is not None
    numbers = {name: sum(t.numel() for t in saved.tensors(name).values()) for name in ("weights", "averages", "optimizer")}
    names = len(saved.tensors("weights"))
    assert numbers == {"weights": small, "averages": 2 * small, "optimizer": 2 * small + names}  # AdamW counts its steps, in each
    assert all(key.endswith((".A", ".B")) for key in saved.tensors("weights"))
    made = Run(beside(base), build_task(beside(base)), scenes(), None, "cpu", Report(quiet=True))
    assert made.checkpoint_bytes() == 4 * 5 * small and made._trainable("main").keys() == saved.tensors("weights").keys()
    made.update(made.batch(0))
    held = sum(t.numel() for part in made.phases["main"].parts for kept in part.state.values() for t in kept.values() if t.ndim)
    assert held == 2 * small


def test_its_start_is_a_function_of_the_recipe(base: Path) -> None:
    states = [build_task(beside(base, seed=seed)).modules.state_dict() for seed in (0, 0, 1)]
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())
    other = {name for name, t in states[0].items() if not torch.equal(t, states[2][name])}
    assert other and all(name.endswith(".A") for name in other)


# --- what comes out ---------------------------------------------------------------------------------------------------------


def test_the_model_is_the_base_with_the_file(base: Path, run: Path) -> None:
    """RUN/model is whole; base + RUN/lora is the same to bf16's rounding, and before it exactly."""
    model = load(base)
    assert model.add_lora(run / "lora") == len(lora.additions(build_task(beside(base)).panels()["generator"]))
    mine, stored = model.generator.network.state_dict(), weights_of(run / "model")
    assert mine.keys() == stored.keys() and all(torch.equal(mine[name].bfloat16(), t) for name, t in stored.items())
    assert not all(torch.equal(t, weights_of(base)[name]) for name, t in stored.items())
    drawn = load(run / "model")
    assert isinstance(drawn, TextToImage) and drawn.generate(["a red circle"])[0].size == (8, 8)
    averages = state.newest(run).tensors("averages")  # type: ignore[union-attr]
    A = load_file(run / "lora" / FILE)["generator.blocks.0.attention.qkv.1.lora_A.weight"]
    assert torch.equal(A, averages["0.1/generator.blocks.0.attention.qkv.A"][2:4]), "keys are the second of three parts"


def test_its_cards(base: Path, run: Path) -> None:
    card = json.loads((run / "lora/card.json").read_text())
    assert card["base"] == {
        "name": "model", "fingerprint": checkpoint.panel_fingerprint(base, "generator"), "weights": card["base"]["weights"]
    }  # fmt: skip
    assert (card["rank"], card["alpha"], card["steps"], card["recipe"]["name"]) == (2, 3.0, 20, "tiny-test")
    whole, old = (json.loads((model / "generator/card.json").read_text()) for model in (run / "model", base))
    assert whole["parameters"] == old["parameters"] and whole["recipe"]["lora"]["rank"] == 2
    assert card["parameters"] == sum(t.numel() for t in load_file(run / "lora" / FILE).values())


# --- stopped ------------------------------------------------------------------------------------------------------------------


def test_a_stop_in_the_middle_changes_no_bit(base: Path, tmp_path: Path) -> None:
    learnt(base, tmp_path / "twin", steps=6)
    with pytest.raises(RuntimeError, match="struck"):
        learnt(base, tmp_path / "run", steps=6, report=Struck(quiet=True))
    learnt(base, tmp_path / "run", steps=6, resume=True)
    assert toy.differences(tmp_path / "twin", tmp_path / "run", 6) == []
    for name in ("model/generator/model.safetensors", f"lora/{FILE}"):
        assert (tmp_path / "twin" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


def test_another_base_is_refused(base: Path, tmp_path: Path) -> None:
    """The base is in no checkpoint: what stands under its name must be what stood there."""
    model = shutil.copytree(base, tmp_path / "base")
    learnt(model, tmp_path / "run", steps=2)
    other = load(model)
    with torch.no_grad():
        next(other.generator.network.parameters()).add_(0.1)
    shutil.rmtree(model)
    other.save(model)
    with pytest.raises(BadCheckpoint, match=r"trained beside weights that never learn \([0-9a-f]{16}\), and here they are"):
        learnt(model, tmp_path / "run", steps=2, resume=True)


class Half(toy.Toy):
    """A toy of which a layer is frozen, as any task may do; `aux` does not learn by gradients, and changes."""

    def __init__(self) -> None:
        super().__init__()
        self.modules["generator"].last.requires_grad_(False)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.modules["aux"] = torch.nn.Linear(3, 3).requires_grad_(False)

    @torch.no_grad()
    def after_step(self, phase: str, step: int) -> None:
        self.modules["aux"].weight.add_(1.0)

    def trainable(self, phase: str) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in super().trainable(phase).items() if not name.startswith("aux")}


def test_whatever_never_learns_is_in_no_checkpoint(tmp_path: Path) -> None:
    """Of any task's panels; what changes without a gradient beside them is kept, and comes back."""
    toy.run(tmp_path / "a", Half(), steps=20)
    with pytest.raises(RuntimeError, match="struck"):
        toy.run(tmp_path / "b", Half(), steps=20, report=Struck(quiet=True), save_every=3)
    toy.run(tmp_path / "b", Half(), steps=20, resume=True)
    assert toy.differences(tmp_path / "a", tmp_path / "b", 20) == []
    kept = state.newest(tmp_path / "a").tensors("weights")  # type: ignore[union-attr]
    assert "aux.weight" in kept and "generator.norm.running_mean" in kept
    assert not any("generator.last" in name for name in kept) and "generator.first.weight" in kept


def test_checkpoints_from_before_still_go_on(tmp_path: Path) -> None:
    """They hold the frozen weights too; where these are the same they are passed over, else refused."""
    task = Half()
    toy.run(tmp_path, task, steps=5)
    found = state.newest(tmp_path)
    assert found is not None
    frozen = {f"generator.last.{part}": getattr(Half().modules["generator"].last, part).detach() for part in ("weight", "bias")}
    files = {name: found.tensors(name) for name in ("weights", "averages", "optimizer")}
    facts = {key: value for key, value in found.facts.items() if key != "frozen"}

    def written(shift: float) -> None:
        shutil.rmtree(tmp_path / "checkpoints")
        state.write(tmp_path, 5, files | {"weights": files["weights"] | {n: t + shift for n, t in frozen.items()}}, facts, keep=2)

    written(0.0)
    assert toy.run(tmp_path, Half(), steps=5, resume=True).step == 5
    written(0.1)
    with pytest.raises(BadCheckpoint, match=r"'generator\.last\.\w+' never learns, and here it is another"):
        toy.run(tmp_path, Half(), steps=5, resume=True)


# --- refused ----------------------------------------------------------------------------------------------------------------


def test_recipes_that_cannot_be_built_say_why(base: Path) -> None:
    cases: list[tuple[Any, str]] = [
        (beside(base, init=None), "lora: a LoRA adds to a model that has learnt; give --init MODEL"),
        (beside(base, lora=Lora(rank=99)), "lora: a LoRA of rank 99 is more than"),
        (beside(base, lora=Lora(rank=2, targets=("qkw",))), "lora: no product of DiT is called 'qkw'; did you mean 'qkv'"),
        (beside(base, neighbours={**beside(base).neighbours, "text_encoder": Neighbour(model=str(base), trained=True)}),
         "neighbours.text_encoder.trained = true"),
        (beside(base, panel="text_encoders", family=Family(name="bilingual", size="tiny"), neighbours={}, task_options={}),
         "lora: a LoRA is trained beside a generator"),
    ]  # fmt: skip
    for asked, said in cases:
        with pytest.raises(ValueError) as error:
            build_task(asked)
        assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "value"), [("rank", 0), ("rank", "many"), ("alpha", 0), ("alpha", float("nan")), ("targets", 3), ("rang", 3)]
)
def test_the_schema(field: str, value: Any) -> None:
    given = {"name": "x", "panel": "generators", "family": {"name": "dit"}, "lora": {"rank": 4, field: value}}
    with pytest.raises(ValueError, match=rf"lora\.{field}"):
        from_mapping(given)


def test_set_makes_one() -> None:
    assert override(recipe(), ["lora.rank=8"]).lora == Lora(rank=8)
    assert override(recipe(), ["lora.rank=8", "lora.targets=[qkv, mlp.up]", "lora.alpha=4"]).lora == Lora(
        rank=8, alpha=4.0, targets=("qkv", "mlp.up")
    )
