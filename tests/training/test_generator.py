"""Real tiny panels on drawn scenes: from a recipe to a model's folder, and the task of every generator."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import triptych
from tests.training.toy import differences
from triptych import data
from triptych.contracts import Batch, Rng
from triptych.recipe import Data, Family, Neighbour, Recipe, Source
from triptych.training import GeneratorTask, Report, build_task, train


def recipe(*, trained: bool = False, **changed: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "tiny-test", "panel": "generators", "family": Family(name="dit", size="tiny"), "process": Family(name="rectified_flow"),
        "neighbours": {
            "text_encoder": Neighbour(family=Family(name="bilingual", size="tiny"), trained=trained),
            "decoder": Neighbour(family=Family(name="identity", size="tiny")),
        },
        "data": Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=16), "task_options": {"vocabulary_texts": 300},
        "steps": 6, "batch": 4, "compile": False, "save_every": 2, "validate_every": 100, "preview_every": 100,
        "preview_prompts": ("a red circle", "三个绿色的三角形"), "sampling": {"steps": 2, "guidance": 2.0},
    }  # fmt: skip
    return Recipe(**{**fields, **changed})


@cache
def scenes() -> Any:
    return data.build(recipe().data)


def ready(**changed: Any) -> GeneratorTask:
    task = build_task(recipe(**changed))
    assert isinstance(task, GeneratorTask)
    task.prepare_data(scenes())
    return task


class Struck(Report):
    """Dies after step 5, before anything is written of it."""

    def step(self, step: int, loss: float) -> float:
        if step == 5:
            raise RuntimeError("struck")
        return super().step(step, loss)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "trained"
    assert train(recipe(trained=True), out=out, report=Report(quiet=True)).reason == "finished"
    return out


def test_a_recipe_becomes_a_model_that_draws(trained: Path) -> None:
    model = triptych.load(trained / "model")
    images = model.generate(["a red circle"], seeds=[0])
    assert images[0].size == (8, 8)
    assert model.sampling == {"steps": 2, "guidance": 2.0}
    card = model.generator.network.card
    assert card["neighbours"]["text_encoder"] == model.fingerprints["text_encoder"] and card["recipe"]["name"] == "tiny-test"
    assert card["held_out"]["loss"] > 0


def test_a_stop_in_the_middle_changes_no_bit(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="struck"):
        train(recipe(trained=True), out=tmp_path, report=Struck(quiet=True))
    train(recipe(trained=True), out=tmp_path, resume=True, report=Report(quiet=True))
    assert differences(trained, tmp_path, 6) == []
    for place in ("generator", "text_encoder"):
        files = [run / "model" / place / "model.safetensors" for run in (trained, tmp_path)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_training_is_a_function_of_its_recipe() -> None:
    torch.manual_seed(1)
    one = build_task(recipe()).modules.state_dict()
    torch.manual_seed(2)
    two, three = build_task(recipe()).modules.state_dict(), build_task(recipe(seed=5)).modules.state_dict()
    assert all(one[k].equal(two[k]) for k in one) and not all(one[k].equal(three[k]) for k in one)


def test_init_starts_from_a_model_and_takes_its_tokenizer_along(trained: Path) -> None:
    model = trained / "model"
    neighbours = {"text_encoder": Neighbour(model=str(model)), "decoder": Neighbour(model=str(model))}
    task = build_task(recipe(neighbours=neighbours), init=model)
    stored = load_file(model / "generator/model.safetensors")
    own = task.panels()["generator"].state_dict()
    assert all(own[k].equal(t.float()) for k, t in stored.items())
    assert all(p.requires_grad for p in task.modules.parameters())
    assert not any(p.requires_grad for p in task.text_encoder.parameters())  # type: ignore[attr-defined]
    alone = recipe(panel="text_encoders", family=Family(name="bilingual", size="tiny"), neighbours={}, task_options={})
    assert build_task(alone, init=model).panels()["text_encoder"].has_vocabulary


def test_a_resume_keeps_the_tokenizer_that_init_brought(trained: Path, tmp_path: Path) -> None:
    alone = recipe(panel="text_encoders", family=Family(name="bilingual", size="tiny"), neighbours={}, task_options={}, save_every=1)
    with pytest.raises(RuntimeError, match="struck"):
        train(alone, out=tmp_path, init=trained / "model", report=Struck(quiet=True))
    train(alone, out=tmp_path, resume=True, report=Report(quiet=True))
    files = [folder / "text_encoder/tokenizer.json" for folder in (trained / "model", tmp_path / "model")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_init_of_another_shape_names_the_tensor(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"tensor '.*' is \[.*\], the configuration wants \[.*\]|lacks tensor|has a tensor"):
        neighbours = {"text_encoder": Neighbour(model=str(trained / "model")), "decoder": Neighbour(model=str(trained / "model"))}
        build_task(recipe(neighbours=neighbours, family=Family(name="dit", size="tiny", config={"width": 64})), init=trained / "model")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"process": None}, "names no process; set process.name"),
        ({"neighbours": {}}, "set neighbours.text_encoder.model or neighbours.text_encoder.family"),
        ({"neighbours": {"text_encoder": Neighbour()}}, "give either a model or a family"),
        ({"task": "painting"}, "dit has no task 'painting'"),
    ],
)
def test_recipes_that_cannot_be_built_say_why(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build_task(recipe(**changed))


def test_the_condition_is_dropped_row_by_row_as_often_as_asked() -> None:
    batch, heard = scenes().batch(0, 0, 4), []

    class Listening(torch.nn.Module):
        role = "denoiser"

        def forward(self, x_t: torch.Tensor, clock_B: torch.Tensor, cond: Any) -> torch.Tensor:
            heard.append(cond)
            return x_t

    task = ready(dropout=0.5)
    task.network = Listening()
    for step in range(60):
        task.losses(batch, "main", step, Rng.of_samples(0, range(4 * step, 4 * step + 4)))
    words_B = torch.cat([cond.mask_BL.sum(1) for cond in heard])
    dropped = (words_B == 2).float().mean()  # [BOS] [EOS]
    assert 0.38 < dropped < 0.62
    for cond in heard:  # all ports of a row fall silent together, and lengths are few
        assert cond.ids_BL.shape[1] in (16, 32, 48) and cond.tokens_BLD.shape[:2] == cond.mask_BL.shape
        assert ((cond.ids_BL != 0).sum(1) == cond.mask_BL.sum(1)).all()


def test_only_a_trained_text_encoder_gets_gradients() -> None:
    for trains in (False, True):
        task = ready(trained=trains)
        task.losses(scenes().batch(0, 0, 4), "main", 0, Rng.of_samples(0, range(4)))["loss"].backward()
        grads = [p.grad is not None for p in task.text_encoder.parameters()]  # type: ignore[attr-defined]
        assert all(grads) if trains else not any(grads)
        assert ("text_encoder" in task.modules) is trains
        assert set(task.trainable("main")) == {name for name, _ in task.modules.named_parameters()}


def test_kept_rows_are_the_same_whatever_came_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, again = ready(task_options={"cache": 8, "vocabulary_texts": 300}), ready(task_options={"cache": 8, "vocabulary_texts": 300})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    first, second = scenes().batch(0, 0, 4), scenes().batch(0, 1, 4)
    mixed = Batch(
        index=(0, 1, 2, 3), images_BCHW=torch.cat([first.images_BCHW[:2], second.images_BCHW[:2]]),
        prompts=first.prompts[:2] + second.prompts[:2], keys=first.keys[:2] + second.keys[:2],
    )  # fmt: skip
    rng = Rng.of_samples(0, range(4))
    kept._frozen(first, rng)
    kept._frozen(second, rng)
    one = kept._frozen(mixed, rng)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    two = again._frozen(mixed, rng)
    assert one.z.equal(two.z) and one.cond.tokens_BLD.equal(two.cond.tokens_BLD)  # type: ignore[union-attr]
    plain = ready()._frozen(mixed, rng)
    torch.testing.assert_close(one.cond.tokens_BLD, plain.cond.tokens_BLD)
    names = {file.name.split("-")[0] for file in (tmp_path / "one" / "triptych").glob("*.sqlite")}
    assert names == {"latents", "texts"} and not list((tmp_path / "two").glob("*.npy"))


def test_held_out_losses_are_a_row_each_and_never_change() -> None:
    task, batch = ready(), scenes().examples(6)
    one, two = task.validate(batch), task.validate(batch)
    assert one["loss"].shape == (6,) and one["loss"].equal(two["loss"])


def test_a_damaged_panel_is_no_start(trained: Path, tmp_path: Path) -> None:
    import shutil

    model = shutil.copytree(trained / "model", tmp_path / "model")
    tensors = load_file(model / "generator/model.safetensors")
    save_file({k: v + 1 for k, v in tensors.items()}, model / "generator/model.safetensors")
    with pytest.raises(ValueError, match="damaged or was edited"):
        build_task(recipe(), init=model)
