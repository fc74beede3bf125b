"""The pieces of the claims about chains of noise: arms that go on, pictures that are kept, moments, ways between noises, what is said."""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.claims import (
    chains,
    cosine_or_linear,
    ddim,
    how_many_steps,
    noise_at_once,
    one_shot,
    what_to_predict,
    which_variance,
)
from tests import claim_rows
from tests.claim_rows import fd, figure
from tests.contract import tiny
from triptych.contracts import Rng
from triptych.data import artwork
from triptych.processes import ddpm, noise, solvers
from triptych.recipe import Recipe
from triptych.recipes import diffusion


def small(**process: Any) -> Recipe:
    """The recipe `ddpm` with a network that learns nothing, in no time."""
    made = chains.changed(diffusion.ddpm(), process={"num_timesteps": 20, **process})
    return dataclasses.replace(made, family=dataclasses.replace(made.family, size="tiny"))


@pytest.fixture
def args(tmp_path: Path) -> Namespace:
    return Namespace(steps=2, n=3, references=6, runs=tmp_path, seed=0, quick=True)


# --- arms and their pictures --------------------------------------------------------------------------------------------------


def test_an_arm_is_trained_once_and_its_pictures_are_drawn_once(args: Namespace) -> None:
    report: dict[str, Any] = {"arms": {}}
    arm = chains.taught("few", small(), args, report)
    weights = next(arm.folder.glob("model/generator/*.safetensors"))
    trained = {path: path.stat().st_mtime_ns for path in arm.folder.glob("checkpoints/**/*")}
    again = chains.taught("few", small(), args, report)
    assert again.told["fingerprint"] == arm.told["fingerprint"] and report["arms"]["few"]["pictures"] == 2 * 8 == arm.told["pictures"]
    assert {path: path.stat().st_mtime_ns for path in arm.folder.glob("checkpoints/**/*")} == trained and weights.is_file()
    with pytest.raises(ValueError, match="another recipe"):
        chains.taught("few", small(target="v"), args)

    pictures, seconds = chains.drawn(arm.model, arm.folder, args, sampler="ddim", steps=2)
    files = {path: path.stat().st_mtime_ns for path in (arm.folder / "drawn").rglob("*.safetensors")}
    same, cost = chains.drawn(arm.model, arm.folder, args, sampler="ddim", steps=2)
    assert pictures.shape == (3, 3, 32, 32) and torch.equal(pictures, same) and 0 < seconds == cost and len(files) == 1
    assert {path: path.stat().st_mtime_ns for path in files} == files
    for other in ({"steps": 3}, {"steps": 2, "eta": 1.0}, {"steps": 2, "threshold": "none"}):
        chains.drawn(arm.model, arm.folder, args, **{"sampler": "ddim", **other})
    chains.drawn(chains.drawn_by(arm.model, variance="fixed_small"), arm.folder, args, sampler="ddim", steps=2)
    assert len(list((arm.folder / "drawn").iterdir())) == 5


def test_pictures_that_are_compared_are_of_another_order() -> None:
    spec = diffusion.ddpm().data
    learnt = chains.data.build(spec).batch(0, 0, 4).images_BCHW
    real, prompts = chains.real_pictures(spec, 4, 0)
    assert learnt is not None and real.shape == learnt.shape and not torch.equal(real, learnt) and len(prompts) == 4
    assert torch.equal(real, chains.real_pictures(spec, 4, 0)[0]) and not torch.equal(real, chains.real_pictures(spec, 4, 1)[0])


def test_a_distance_has_a_floor_and_noise_is_far_above_it(args: Namespace) -> None:
    args.n, args.references = 12, 24
    ruler = chains.Ruler(tiny.eyes(), diffusion.ddpm().data, args)
    far = ruler(torch.rand(12, 3, 32, 32) * 2 - 1)
    assert far["low"] <= far["value"] <= far["high"] and chains.apart(ruler.floor, far) == -1 and chains.apart(far, ruler.floor) == 1
    assert chains.apart(far, far) == 0


@pytest.mark.parametrize("rescaled", [False, True])
def test_settings_of_the_arms_are_those_of_processes(rescaled: bool) -> None:
    """Each arm differs from the recipe in what is claimed, and can be built."""
    base = diffusion.ddpm()
    for one in (*how_many_steps.arms(rescaled).values(), *(settings for _, settings in cosine_or_linear.SCHEDULES.values())):
        made = chains.changed(base, process=one)
        assert made.process is not None and dataclasses.replace(made, process=base.process) == base
        ddpm.DDPM(ddpm.Config(**made.process.config))
    assert len(how_many_steps.arms(rescaled)) == (5 if rescaled else 3) and how_many_steps.arms(rescaled)["ddpm"] == {}
    targets = {ddpm.Config(**what_to_predict.labelled(one).process.config).target for one in what_to_predict.TARGETS}  # type: ignore
    assert targets == set(ddpm.TARGETS) and set(which_variance.VARIANCES) == set(ddpm.VARIANCES)


# --- noise ----------------------------------------------------------------------------------------------------------------------


def test_a_chain_with_other_betas_would_be_seen() -> None:
    found = noise_at_once.same(2000, 0)
    assert max(found["largest"].values()) < found["bound"] and found["comparisons"] == 160
    betas, generator = noise.betas("linear", 300, 1e-4, 0.02), torch.Generator().manual_seed(0)
    x = noise_at_once.stepped(2 * betas, torch.tensor([1.0]), 2000, (300,), generator)[300]
    bar = float(torch.cumprod(1 - betas, 0)[-1])
    assert noise_at_once.deviations(x, torch.tensor([[math.sqrt(bar)]]), math.sqrt(1 - bar)).abs().max() > found["bound"]


def test_what_is_left_at_the_end() -> None:
    images = torch.rand(30, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    ends = {T: noise_at_once.terminal(ddpm.DDPM(ddpm.Config(num_timesteps=T)), images, 0) for T in (50, 300, 1000)}
    assert ends[300]["alpha_bar"] == pytest.approx(0.048, abs=5e-4) and ends[1000]["alpha_bar"] < 1e-4
    assert ends[50]["matched"]["value"] == 1 and ends[1000]["matched"]["value"] < 0.3 and ends[50]["chance"] == 1 / 30
    assert ends[50]["KL"]["value"] > ends[300]["KL"]["value"] > ends[1000]["KL"]["value"] > 0
    straight = ddpm.DDPM(ddpm.Config(**one_shot.STRAIGHT))  # the network of the one-shot claim hears nothing but noise
    assert float(straight.schedule.alpha(torch.ones(1, dtype=torch.float64))) == 0
    assert straight.timesteps(ddpm.Sampling(steps=1)).tolist() == [1]


def test_steps_that_do_as_much() -> None:
    linear, cosine = (cosine_or_linear.drops(ddpm.Config(beta_schedule=one)) for one in ("linear", "cosine"))
    assert cosine["bar"] < linear["bar"] and cosine["spent"] < linear["spent"] and linear["log_snr"][0] > linear["log_snr"][-1]


def test_a_blurred_mean_is_told() -> None:
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(60, 3, 8, 8, generator=generator) * 2 - 1
    mean, other = real.mean(0).expand(40, -1, -1, -1), torch.rand(40, 3, 8, 8, generator=generator) * 2 - 1
    dead, alive = (one_shot.blurred(one, real, 20) for one in (mean, other))
    assert dead["variance"]["value"] < 1e-9 and dead["from_mean"]["value"] < 1e-6 and dead["edges"]["value"] < 0.1
    assert alive["variance"]["value"] == pytest.approx(1, abs=0.1) and alive["edges"]["value"] == pytest.approx(1, abs=0.1)


# --- DDIM ---------------------------------------------------------------------------------------------------------------------


def test_eta_one_is_the_chain_with_the_small_variance() -> None:
    process = ddpm.DDPM(ddpm.Config(num_timesteps=100))
    grid = torch.linspace(1, 0, 11, dtype=torch.float64)
    torch.testing.assert_close(solvers.ddim(process.schedule, grid, 1.0), solvers.ancestral(process.schedule, grid, "fixed_small"))


def test_the_great_circle_keeps_the_length_of_noise() -> None:
    a, b = (Rng.of_seeds([seed, seed + 1]).normal("start", (3, 32, 32)) for seed in (0, 10))
    assert torch.allclose(ddim.slerp(a, b, 0.0), a, atol=1e-5) and torch.allclose(ddim.slerp(a, b, 1.0), b, atol=1e-5)
    assert ddim.slerp(a, b, 0.5).std() == pytest.approx(1, abs=0.05) and torch.lerp(a, b, 0.5).std() < 0.8
    straight = torch.linspace(0, 1, 9)[None, :, None] * torch.ones(4, 1, 5)
    assert ddim.length(straight)["value"] == pytest.approx(1)
    there_and_back = torch.tensor([0.0, 2.0, 1.0])[None, :, None].repeat(4, 1, 5)
    assert ddim.length(there_and_back)["value"] == pytest.approx(3)


def test_ways_and_inversion_of_a_small_model(args: Namespace) -> None:
    arm = chains.taught("few", small(), args)
    with torch.no_grad():
        found = ddim.between(arm.model, tiny.eyes().sight(), 2, 2, 0)
        assert {"eta = 0", "eta = 1", "fade"} <= set(found) and all(found[way]["value"] >= 0.999 for way in (*ddim.WAYS, "fade"))
        back = ddim.backwards(arm.model, torch.rand(2, 3, 32, 32) * 2 - 1, (2, 20))
    assert back["n"] == 2 and back["steps"]["20"]["value"] > back["steps"]["2"]["value"]
    told = which_variance.bits(arm.model, torch.zeros(2, 3, 32, 32), 0)
    assert told["low"] <= told["value"] <= told["high"] and 0 < told["last"] < told["value"]


# --- rows ---------------------------------------------------------------------------------------------------------------------


def made_up(better: bool) -> dict[str, dict[str, Any]]:
    """Reports with the keys that rows read; `better`: the claims hold."""

    def end(kl: float) -> dict[str, Any]:
        return {"alpha_bar": 0.05, "KL": figure(kl, kl - 0.001, kl + 0.001), "matched": figure(kl, chance=0.001), "chance": 0.001}

    kl = {50: 0.6, 300: 0.3, 1000: 0.0}
    falling = {50: 9.0, 300: 6.0, 1000: 3.0}
    lengths = {T: {"T": T, "rescaled": False, "end": end(kl[T]), "chain": fd(falling[T]), "few": fd(9.0)} for T in kl}
    flat = {T: {**one, "chain": fd(3)} for T, one in lengths.items()}
    low = 1.0 if better else 5.0
    targets = {
        name: {"FD": fd(low if name == "eps" else 3.0), "exact": figure(0.9 if better and name == "eps" else 0.5)}
        for name in what_to_predict.TARGETS
    }
    variances = {
        name: {"bits": figure(3.0 if name == "learned_range" and better else 4.0, n=16), "FD": {"10": fd(each[0]), "1000": fd(each[1])}}
        for name, each in {"fixed_small": (9.0, 3.0), "fixed_large": (12.0, 3.0), "learned_range": (low, 3.0)}.items()
    }
    if not better:
        variances["learned_range"]["FD"] = {"10": fd(9.0), "1000": fd(1.0)}
    whole = {"variance": figure(0.9), "edges": figure(0.9), "from_mean": figure(0.4), "FD": fd(3.0), "steps": 50}
    straight = {"variance": figure(0.01), "edges": figure(0.1), "from_mean": figure(0.1), "FD": fd(90.0), "steps": 1} if better else whole
    uneven = {"log_snr_inside": 0.6, "log_snr_all": 1.9, "bar": 0.9, "spent": 0.3}
    schedules = {
        "linear": {"drops": uneven, "FD": {"10": fd(5.0), "50": fd(5.0)}},
        "cosine": {"drops": {key: v / 2 for key, v in uneven.items()} if better else uneven, "FD": {"10": fd(low), "50": fd(low)}},
    }
    fast = {str(steps): fd(3.0 if better else 8.0) for steps in (10, 50)}
    back = {"10": figure(15.0), "200": figure(40.0 if better else 20.0)}
    ends = dict.fromkeys(noise_at_once.CHAINS, end(0.3)) | {"T = 1000": end(0.0 if better else 0.3)}
    worst = dict.fromkeys(("chain", "at once", "between"), 2.5 if better else 9.0)
    found: dict[str, Any] = {
        "noise_at_once": {
            "same": {"samples": 100_000, "largest": worst, "bound": 3.6, "comparisons": 160}, "left": {"n": 1000, "chains": ends},
        },
        "how_many_steps": {"found": {"floor": fd(1.0), "chains": {str(T): one for T, one in (lengths if better else flat).items()}}},
        "what_to_predict": {
            "draw": 50, "whole": 1000, "chained": 100, "found": {
                "floor": fd(1.0), "ceiling": figure(0.99),
                "targets": {name: dict.fromkeys(what_to_predict.WAYS, one) for name, one in targets.items()},
            },
        },
        "which_variance": {"found": {"floor": fd(1.0), "counts": [10, 1000], "variances": variances}},
        "one_shot": {"found": {"straight": straight, "chain": whole, "first": whole, "real": whole}},
        "cosine_or_linear": {"found": {"floor": fd(1.0), "counts": [10, 50], "schedules": schedules}},
        "ddim": {"found": {
            "floor": fd(1.0), "speed": {"eta = 0": fast, "eta = 1": {"10": fd(9.0), "1000": fd(3.0)}},
            "between": {"pairs": 16, "eta = 0": figure(2.0), "eta = 1": figure(5.0 if better else 2.0), "fade": figure(3.0)},
            "backwards": {"n": 32, "steps": back},
        }},
    }  # fmt: skip
    return {name: {**claim_rows.FRAME, **one} for name, one in found.items()}


def test_a_model_that_was_trained_before_is_told_without_arms() -> None:
    rows = ddim.row(made_up(True)["ddim"] | {"arms": {}})
    assert "steps of" not in rows["en"].verdict and "500 drawn scenes" in rows["en"].verdict and "100 times fewer" in rows["en"].verdict


def test_the_noise_must_be_alone_in_front() -> None:
    made = made_up(True)["what_to_predict"]["found"]["targets"]
    targets = {name: one["chain"] for name, one in made.items()}
    assert what_to_predict.first(targets, "FD", -1) == ("eps", True) and what_to_predict.first(targets, "exact", 1) == ("eps", True)
    targets["v"] = targets["eps"]
    assert not what_to_predict.first(targets, "FD", -1)[1]


@pytest.mark.debian
@pytest.mark.skipif(not Path(artwork.FONT).exists(), reason="needs fonts-noto-color-emoji")
def test_pictures_with_a_class_show_one_thing() -> None:
    _, prompts = chains.real_pictures(what_to_predict.labelled("eps").data, 20, 0)
    assert all(len(p.truth.objects) == 1 and p.label is not None and 0 <= p.label < 80 for p in prompts)


def test_what_arms_predict_is_said_where_it_is_v_for_all() -> None:
    report = made_up(True)["how_many_steps"]
    assert "predicting" not in chains.told(report)[0]
    report = {**report, "arms": {name: {**one, "target": "v"} for name, one in report["arms"].items()}}
    assert "each, predicting v, one seed" in chains.told(report)[0] and "，预测 v，" in chains.told(report)[1]
    first = next(iter(report["arms"]))
    assert chains.predicted({**report, "arms": {**report["arms"], first: {**report["arms"][first], "target": "eps"}}}) == ("", "")
