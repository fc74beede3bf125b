"""The joints, proved: nine systems that share nothing else train, save, load and draw through one frame.

Each is the smallest honest one of its kind, made of outside families that enter by `triptych.register`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import triptych
from tests.joints import gpt, systems
from tests.joints.joining import begun, finished, stepped
from triptych import catalog, checkpoint, data
from triptych.contracts import Batch, Rng
from triptych.layers.pixels import average_down
from triptych.pipeline import Generator, TextToImage
from triptych.recipe import Family, Recipe
from triptych.training import train

PROMPTS = ["a red circle", "three green triangles left of a blue square", "一个蓝色的圆形", "a yellow star"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[systems.Workshop]:
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if base.name.startswith("popen-") else base) / "joints"  # one for all workers
    root.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "_outside", {})  # nobody else meets these families
        systems.register()
        yield systems.Workshop(root)


@pytest.fixture(scope="module", params=list(systems.SYSTEMS))
def system(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(shop: systems.Workshop, system: str) -> Path:
    return shop.model(system)


@pytest.fixture(scope="module")
def model(folder: Path) -> TextToImage:
    return triptych.load(folder)


def pictures(model: TextToImage, which: slice = slice(None), **said: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in model.generate(PROMPTS[which], seeds=[3, 1, 4, 1][which], **said)])


# --- trained ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in systems.SYSTEMS if name not in ("vae", "cascade")])  # a fixed prior; another's generator
def test_panel_2_learns(shop: systems.Workshop, name: str) -> None:
    """The held-out measure falls: nats, squared errors, or (WGAN) the distance of drawn and true values."""
    shop.model(name)
    first, *_, last = systems.measured(shop.root / name, "held_out", "loss")
    assert last < (0.9 if name == "ascent" else 0.75) * first, (first, last)


@pytest.mark.parametrize("name", systems.DECODERS)
def test_panel_3_learns(shop: systems.Workshop, name: str) -> None:
    decoder = checkpoint.load_panel(shop.decoder(name), "decoder")
    first, *_, last = systems.measured(shop.root / name, "held_out", "loss")
    assert last < 0.5 * first, (first, last)
    if name in ("joints_vae", "joints_vqgan", "joints_multiscale", "joints_cascade"):  # unCLIP draws a new picture of the same kind
        true = average_down(_held_out(), decoder.image_size)
        with torch.no_grad():
            drawn = decoder.decode(decoder.encode(true), rng=Rng.of_seeds(range(len(true))))
        assert (drawn - true).square().mean() < 0.95 * (true - true.mean(0)).square().mean(), "no better than the mean picture"


def _held_out() -> torch.Tensor:
    return data.build(systems.SCENES, split="held_out").examples(128).images_BCHW


def test_two_phases_and_the_adaptive_weight(shop: systems.Workshop) -> None:
    shop.decoder("joints_vqgan")
    lam = systems.measured(shop.root / "joints_vqgan", "train", "main.lambda")
    assert lam[:100] == [0.0] * 100 and all(0 < one <= 1e4 for one in lam[100:]) and len(lam) > 120
    assert len(systems.measured(shop.root / "joints_vqgan", "train", "discriminator.loss")) == len(lam)


def test_the_penalty_holds_the_critic(shop: systems.Workshop) -> None:
    shop.model("wgan_gp")
    assert systems.measured(shop.root / "wgan_gp", "train", "critic.penalty")[-1] < 0.3


def test_text_and_image_tokens_are_learnt(shop: systems.Workshop) -> None:
    shop.model("dalle")
    for part in ("text", "image"):
        first, *_, last = systems.measured(shop.root / "dalle", "held_out", part)
        assert last < 0.8 * first, (part, first, last)


class Recorder:
    """A task with one number to learn, that keeps the keys it was handed."""

    def __init__(self) -> None:
        self.modules, self.keys = nn.ModuleDict({"vision": nn.Linear(1, 1)}), []

    def panels(self) -> dict[str, nn.Module]:
        return dict(self.modules.items())

    def plan(self, step: int) -> tuple[str, ...]:
        return ("critic", "critic", "generator")

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        return dict(self.modules.named_parameters())

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, torch.Tensor]:
        self.keys.append((phase, rng.keys_B[0].item()))
        return {"loss": self.modules["vision"].weight.square().sum()}

    def after_step(self, phase: str, step: int) -> None: ...

    def preview(self, prompts: Any, batch: Batch) -> None: ...


def test_every_turn_of_a_phase_draws_anew(tmp_path: Path) -> None:
    recipe = Recipe(name="turns", panel="vision", family=Family(name="clip"), steps=2, batch=2, compile=False, precision="float32")
    task, batches = Recorder(), data.build(systems.SCENES)
    train(recipe, out=tmp_path, data=batches, task=task, export=lambda *_: None, report=systems.quiet())
    assert [phase for phase, _ in task.keys] == ["critic", "critic", "generator"] * 2
    assert len({key for phase, key in task.keys if phase == "critic"}) == 4


def test_phases_resume_to_the_bit(shop: systems.Workshop, tmp_path: Path) -> None:
    """Four steps of critic and generator at a stretch, and two and two: the same weights, averages and optimizers."""
    recipe = replace(shop.recipe("wgan_gp"), steps=4, save_every=2, batch=8)
    train(recipe, out=tmp_path / "whole", report=systems.quiet())
    shutil.copytree(tmp_path / "whole" / "checkpoints" / "step-000002", tmp_path / "halves" / "checkpoints" / "step-000002")
    train(recipe, out=tmp_path / "halves", resume=True, report=systems.quiet())
    for name in ("weights", "averages", "optimizer"):
        one, other = ((tmp_path / run / "checkpoints" / "step-000004" / f"{name}.safetensors").read_bytes() for run in ("whole", "halves"))
        assert one == other, name


# --- saved, loaded, drawn -----------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_draws_the_same(model: TextToImage, folder: Path, tmp_path: Path) -> None:
    model.save(tmp_path / "copy")
    for where in (folder, tmp_path / "copy"):
        assert np.array_equal(pictures(model), pictures(triptych.load(where)))


def test_a_seed_is_a_picture(model: TextToImage) -> None:
    assert np.array_equal(pictures(model), pictures(model))
    one, other = model.generate([PROMPTS[0]] * 2, seeds=[0, 1])
    assert np.asarray(one).std() > 0 and not np.array_equal(one, other)


def test_company_does_not_matter(model: TextToImage) -> None:
    alone = [pictures(model, slice(i, i + 1))[0] for i in range(4)]
    assert np.array_equal(pictures(model, exact=True), alone)
    away = np.abs(pictures(model).astype(int) - np.stack(alone).astype(int))
    assert (away <= 2).mean() >= 0.999


def test_rows_join_and_leave(model: TextToImage) -> None:
    """Row 2 joins when rows 0 and 1 have made a step, row 1 leaves after the next, and each is what it would be alone."""
    alone = [finished(model, begun(model, [PROMPTS[i]], [i])).x[0] for i in range(3)]
    running = stepped(model, begun(model, PROMPTS[:2], [0, 1]))
    joined = stepped(model, running.cat([begun(model, PROMPTS[2:3], [2])]))
    assert joined.index_B.tolist()[2] == 1
    left, rest = finished(model, joined.rows([1])), finished(model, joined.rows([0, 2]))
    for got, wanted in zip([rest.x[0], left.x[0], rest.x[1]], alone, strict=True):
        if got.is_floating_point():
            torch.testing.assert_close(got, wanted, atol=2e-3, rtol=0)
        else:
            assert torch.equal(got, wanted)
    assert torch.equal(stepped(model, rest).x, rest.x) and torch.equal(stepped(model, rest).index_B, rest.index_B)


def test_the_ascent_climbs(shop: systems.Workshop) -> None:
    model = triptych.load(shop.model("ascent"))
    state = begun(model, PROMPTS, [0, 1, 2, 3])
    clock = torch.zeros(4)
    with torch.no_grad():
        before, after = (model.generator.network(one.x, clock, one.cond) for one in (state, finished(model, state)))
    assert (after > before + 1).all()


def test_a_decoder_has_settings_of_its_own(shop: systems.Workshop) -> None:
    for name in ("unclip", "cascade"):
        model = triptych.load(shop.model(name))
        assert not np.array_equal(pictures(model, decoder={"steps": 1}), pictures(model, decoder={"steps": 5}))
        with pytest.raises(ValueError, match="no setting 'stepz'; did you mean 'steps'"):
            model.generate(PROMPTS[:1], decoder={"stepz": 1})
    keys = Rng.of_seeds([0])
    assert not torch.equal(keys.normal("start", (4,)), keys.child("decoder").normal("start", (4,)))  # panels 2 and 3 draw apart


def test_noise_may_be_given(shop: systems.Workshop) -> None:
    """A one-shot generator's noise has the shape that it asks for, the others' the latents'."""
    for name in ("wgan_gp", "vae", "rectified_flow", "unclip"):
        model = triptych.load(shop.model(name))
        shape = getattr(model.generator.network, "noise_shape", model.decoder.latent.shape)
        noise = Rng.of_seeds([7, 8]).normal("given", shape)
        one, other = model.generate(PROMPTS[:2], noise=noise, seeds=[0, 0])
        assert np.array_equal(one, model.generate(PROMPTS[:2], noise=noise, seeds=[5, 6])[0]) or name == "unclip"  # its decoder draws too
        assert not np.array_equal(one, other)


def test_a_negative_prompt_is_heard_or_refused(model: TextToImage) -> None:
    if "negative" in model.generator.process.abilities:
        model.generate(PROMPTS[:2], negative="a red circle")
    else:
        with pytest.raises(ValueError, match=type(model.generator.process).__name__):
            model.generate(PROMPTS[:2], negative="a red circle")


# --- refused ------------------------------------------------------------------------------------------------------------


def test_a_process_refuses_a_network_of_another_role(model: TextToImage, shop: systems.Workshop) -> None:
    network = model.generator.network
    wrong = catalog.build("processes", "rectified_flow" if network.role == "critic" else "joints_ascent", size="tiny")
    with pytest.raises(ValueError, match=rf"{type(wrong).__name__}.*{wrong.drives}.*{type(network).__name__}.*{network.role}"):
        Generator(network, wrong)


def test_a_decoder_of_another_space_is_refused(model: TextToImage, shop: systems.Workshop) -> None:
    other = checkpoint.load_panel(shop.decoder("joints_vae" if model.decoder.latent.kind == "scales" else "joints_multiscale"), "decoder")
    with pytest.raises(ValueError, match=rf"{model.fingerprints['generator']}.*{other.card['fingerprint']}"):
        TextToImage(model.text_encoder, model.generator, other)


@pytest.mark.parametrize("name", [s.generator for s in systems.SYSTEMS.values() if s.generator not in ("dit", "joints_gpt")])
def test_a_generator_refuses_latents_of_another_kind(shop: systems.Workshop, name: str) -> None:
    spaces = {k: catalog.build("decoders", k, size="tiny").latent for k in ("identity", "joints_vqgan", "joints_multiscale", "joints_vae")}
    condition = checkpoint.load_panel(shop.words(), "text_encoder").gives
    refused = []
    for latent in spaces.values():
        try:
            catalog.build("generators", name, size="tiny", latent=latent, condition=condition)
        except ValueError as error:
            assert repr(latent.kind) in str(error) and catalog.family("generators", name).__name__ in str(error)
            refused.append(latent.kind)
    assert 2 <= len(refused) <= 3


# --- the door -----------------------------------------------------------------------------------------------------------


def test_a_folder_cannot_bring_its_family_along(folder: Path, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody registered them, outside families are an error that names the first one missing."""
    used = [systems.SYSTEMS[system].decoder, systems.SYSTEMS[system].generator, systems.SYSTEMS[system].process]
    monkeypatch.setattr(catalog, "_outside", {})
    if any(name.startswith("joints_") for name in used):
        with pytest.raises(ValueError, match="|".join(f"'{name}'" for name in used if name.startswith("joints_"))):
            triptych.load(folder)
    else:
        triptych.load(folder)


@pytest.mark.parametrize("name", ["os.system", "tests.joints.vae", "../../evil", "joints_nothing"])
def test_a_folder_cannot_name_code(shop: systems.Workshop, name: str, tmp_path: Path) -> None:
    for place, field in (("decoder", "family"), ("generator", "family"), ("generator", "process")):
        folder = tmp_path / f"{place}-{field}"
        shutil.copytree(shop.model("vae"), folder)
        path = folder / place / "config.json"
        described = json.loads(path.read_text())
        described[field] = {"family": name, "config": {}} if field == "process" else name
        path.write_text(json.dumps(described))
        with pytest.raises(ValueError, match="damaged or was edited" if field == "process" else name.replace(".", r"\.")):
            triptych.load(folder)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        catalog.build("processes", name)


def test_the_door_is_narrow(shop: systems.Workshop) -> None:
    lacking = ModuleType("lacking")
    lacking.Config, lacking.__all__ = object, ["Thing"]
    refused = [("generators", "dit", gpt, "own"), ("generators", "mine", lacking, "SIZES"), ("generator", "mine", gpt, "generators")]
    for kind, name, module, said in refused:
        with pytest.raises(ValueError, match=said):
            triptych.register(kind, name, module)
