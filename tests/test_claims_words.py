"""The pieces of the claims about text encoders, generators and latents: what is taught before, areas between curves, equal costs, rows."""

from __future__ import annotations

import dataclasses
from argparse import Namespace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

import triptych
from scripts.claims import chains, encoder_or_generator, latent_or_pixel, who_taught_the_words, words
from scripts.claims.encoder_or_generator import CELLS, ENCODERS, WIDTHS, Seen
from tests import claim_rows
from tests.claim_rows import fd, figure
from triptych import catalog, checkpoint
from triptych.decoders.identity import Config, Identity
from triptych.eyes import DETECTOR
from triptych.judges._moments import gaussian_of
from triptych.recipe import Data, Recipe, Source, to_mapping
from triptych.recipes import diffusion

SHAPES = Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=32)  # needs no font


@pytest.fixture
def args(tmp_path: Path) -> Namespace:
    return Namespace(steps=2, words=2, n=4, references=8, runs=tmp_path, seed=0, quick=True)


def tiny(recipe: Recipe, **changes: Any) -> Recipe:
    return dataclasses.replace(recipe, family=dataclasses.replace(recipe.family, size="tiny", config={}), **changes)


# --- text encoders ------------------------------------------------------------------------------------------------------------


def test_a_text_encoder_is_taught_once_and_stays_as_it_is_unless_it_learns(args: Namespace) -> None:
    report: dict[str, Any] = {"arms": {}}
    texts = Data(sources=(Source(name="texts", options={"emoji_share": 0.0}),), size=0)
    recipe = tiny(words.t5(), data=texts)
    model = words.taught("t5", recipe, args, report)
    told = report["encoders"]["t5"]
    assert words.taught("t5", recipe, args) == model and told["texts"] == 16 and 0 < told["inner"] < told["parameters"]
    with pytest.raises(ValueError, match="another recipe"):
        words.taught("t5", dataclasses.replace(recipe, task_options={"mask": 0.5}), args)

    new = words.unlearnt("new", recipe, model, args)
    first, learnt = (checkpoint.load_panel(one, words.PLACE) for one in (new, model))
    assert first.assets() == learnt.assets() and first.card["fingerprint"] != learnt.card["fingerprint"]
    weights = (new / words.PLACE / "model.safetensors").stat().st_mtime_ns
    assert words.unlearnt("new", recipe, model, args) == new
    assert (new / words.PLACE / "model.safetensors").stat().st_mtime_ns == weights
    with pytest.raises(ValueError, match="no text encoder"):
        words.unlearnt("other", recipe, args.runs, args)

    heard = chains.taught("frozen", tiny(words.listening(model), data=SHAPES), args, report)
    args.steps = 6  # at first the U-Net says nothing, whatever it hears: nothing comes back to the words
    joint = chains.taught("joint", tiny(words.listening(new, trained=True), data=SHAPES), args, report)
    assert heard.model.text_encoder.card["fingerprint"] == told["fingerprint"]
    assert joint.model.text_encoder.card["fingerprint"] not in (first.card["fingerprint"], told["fingerprint"])
    assert joint.model.text_encoder.assets() == first.assets()


def inner(recipe: Recipe) -> int:
    """Parameters of a recipe's text encoder, without the table of its words."""
    family = recipe.family if recipe.panel == "text_encoders" else recipe.neighbours[words.PLACE].family
    assert family is not None
    with torch.device("meta"):
        return words.sizes(catalog.build("text_encoders", family.name, dict(family.config), size=family.size))["inner"]


def test_text_encoders_are_of_one_size_or_grow_as_it_is_said() -> None:
    same = [inner(one()) for one in (words.t5, words.bert, words.gpt, words.clip)]
    assert max(same) < 1.05 * min(same)
    small, middle, large = (inner(words.t5(width)) for width in ENCODERS.values())
    assert middle == same[0] and large / middle == pytest.approx(4, rel=0.01) and middle / small == pytest.approx(4, rel=0.01)
    assert words.listening("emoji", 8).data == diffusion.ddpm().data and words.listening("emoji").family.config["width"] == 16
    same_but_width = dataclasses.replace(words.listening("emoji", 8), family=words.listening("emoji").family)
    assert to_mapping(same_but_width) == to_mapping(words.listening("emoji"))


def test_rightness_of_each_picture_is_that_of_the_claims() -> None:
    detector = triptych.load(DETECTOR)
    pictures, prompts = chains.real_pictures(SHAPES, 6, 0)
    pictures[3:] = 1.0  # white: nothing that was asked
    right = chains.right(detector, pictures, prompts)
    assert right.tolist()[3:] == [0, 0, 0] and right.sum() > 0 and chains.share(right) == chains.exact(detector, pictures, prompts)


# --- curves -------------------------------------------------------------------------------------------------------------------


def test_the_area_that_a_curve_has_reached() -> None:
    reached, corner = encoder_or_generator.reached, (0.0, 10.0)
    points = [(10.0, 5.0), (20.0, 8.0)]
    assert reached(points, corner) == reached(points[::-1], corner) == 10 * 2 + 10 * 5
    assert reached([*points, (5.0, 6.0), (20.0, 9.0), (-3.0, 1.0)], corner) == 70, "none of these is better than those that are there"
    assert reached([*points, (15.0, 5.0)], corner) == 5 * 2 + 15 * 5
    assert reached([(10.0, 12.0)], corner) == 0 == reached([corner], corner) and reached([(-1.0, 1.0)], corner) == 0
    assert reached([(5.0, 5.0)], (5.0, 5.0)) == 0


def test_effects_are_told_apart() -> None:
    of = {(encoder, width): 100.0 * i + width for i, encoder in enumerate(ENCODERS) for width in WIDTHS}
    assert encoder_or_generator.effects(of) == {"encoder": 200, "generator": 16, "difference": 184}


@pytest.mark.parametrize("matters", ["encoder", "generator", "nothing"])
def test_what_matters_is_found(matters: str) -> None:
    rng = torch.Generator().manual_seed(0)
    features_ND, real_ND = (torch.randn(n, 4, generator=rng) for n in (40, 200))
    score_N, chance_N = (torch.rand(40, generator=rng).double().numpy() for _ in range(2))
    seen = {}
    for encoder, width in CELLS:
        rank = {"encoder": list(ENCODERS).index(encoder), "generator": WIDTHS.index(width), "nothing": 0}[matters]
        right_N = (chance_N < 0.2 + 0.3 * rank).astype(float)
        seen[encoder, width] = {
            guidance: Seen(features_ND + (2 - rank + guidance) / 4, score_N + 5 * rank + guidance, right_N) for guidance in (1.0, 4.0)
        }
    found = encoder_or_generator.bootstrapped(seen, gaussian_of(real_ND), 10, 0)
    for one in found.values():
        value = {name: one[name]["value"] for name in encoder_or_generator.EFFECTS}
        if matters == "nothing":  # the same pictures everywhere: drawn again they are the same everywhere, too
            assert all(edge == 0 for effect in one.values() for edge in effect.values())
            continue
        still = "generator" if matters == "encoder" else "encoder"
        assert one[matters]["low"] > 0 and one[still] == {"value": 0, "low": 0, "high": 0}
        assert value["difference"] == pytest.approx(value["encoder"] - value["generator"])
    said = {"encoder": "holds", "generator": "does not hold, the generator's size matters more", "nothing": "not decided"}
    assert encoder_or_generator.head(found["area"])[0] == encoder_or_generator.head(found["exact"])[0] == said[matters]
    assert found["exact"]["encoder"]["value"] == pytest.approx(
        0.0 if matters != "encoder" else (chance_N < 0.8).mean() - (chance_N < 0.2).mean()
    )


def test_whom_a_frozen_text_encoder_beats() -> None:
    head, one, other = who_taught_the_words.head, *who_taught_the_words.CAPTIONS
    assert head({one: 1, other: 1})[0] == "holds" and head({one: 0, other: 0})[0] == "not decided"
    assert head({one: 1, other: 0}) == (f"holds against {one}, not decided against {other}", f"对 {one} 成立，对 {other} 未能分出")
    assert head({one: 1, other: -1})[0] == f"does not hold, {other} better"
    yes, no = np.ones(20), np.zeros(20)
    assert who_taught_the_words.less(yes, no) == {"value": 1, "low": 1, "high": 1}
    half = np.arange(20) % 2
    apart = who_taught_the_words.less(half, 1 - half)
    assert apart["value"] == 0 and apart["low"] < 0 < apart["high"]


# --- latents and pixels ---------------------------------------------------------------------------------------------------------


def test_the_two_systems_differ_in_their_space_alone() -> None:
    pixel, latent = latent_or_pixel.recipes().values()
    assert pixel.neighbours[words.PLACE] == latent.neighbours[words.PLACE] and pixel.data.size == 64
    free = {"family": pixel.family, "neighbours": pixel.neighbours, "sampling": pixel.sampling}
    assert dataclasses.replace(latent, **free) == pixel
    heard = checkpoint.load_panel("emoji", words.PLACE).gives
    decoders = Identity(Config(size=64)), checkpoint.load_panel("kl", "decoder")
    many = []
    for recipe, decoder in zip((pixel, latent), decoders, strict=True):
        shape = decoder.encode(torch.zeros(1, 3, 64, 64)).shape[1:]
        assert tuple(shape) == ((3, 64, 64) if recipe is pixel else (4, 16, 16))
        with torch.device("meta"):
            config = dict(recipe.family.config)
            net = catalog.build("generators", "unet", config, size=recipe.family.size, latent=decoder.latent, condition=heard)
        many.append(sum(p.numel() for p in net.parameters()))
    assert max(many) < 1.05 * min(many)
    images, _ = chains.real_pictures(latent_or_pixel.SPEC, 3, 0)
    exact, coded = (latent_or_pixel.rebuilt(decoder, images) for decoder in decoders)
    assert torch.allclose(exact, images, atol=1e-6) and 1e-6 < (coded - images).square().mean() < 0.02


def test_steps_that_fit_are_measured_once(args: Namespace) -> None:
    args.minutes = (0.004, 0.001)
    arm = tiny(words.listening("emoji"), data=SHAPES)
    found = latent_or_pixel.fitting(args, {"pixel": arm})
    assert list(found["pixel"]) == [0.001, 0.004] and found["pixel"][0.004] >= max(2, 2 * found["pixel"][0.001] - 4)
    assert latent_or_pixel.fitting(args, {"pixel": None}) == found  # type: ignore[dict-item]
    cost = latent_or_pixel._cost(to_mapping(dataclasses.replace(arm, batch=2)), 1)
    twice = latent_or_pixel._cost(to_mapping(dataclasses.replace(arm, batch=4)), 1)
    assert cost["flop"] and twice["flop"] and 1.5 < twice["flop"] / cost["flop"] < 2.2  # the null's words are one row


def test_when_a_distance_is_reached_and_what_is_cheaper() -> None:
    pixel = {"2": {"FD": fd(20.0), "exact": figure(0.2)}, "12": {"FD": fd(10.0), "exact": figure(0.5)}}
    latent = {"2": {"FD": fd(15.0), "exact": figure(0.3)}, "12": {"FD": fd(10.01), "exact": figure(0.5)}}
    assert latent_or_pixel.reached(latent, pixel) == 12 and latent_or_pixel.as_good(latent, pixel)[0].startswith("holds")
    assert latent_or_pixel.reached({"2": {"FD": fd(9.0)}}, pixel) == 2 and latent_or_pixel.reached({"2": {"FD": fd(11.0)}}, pixel) is None
    worse = {**latent, "12": {"FD": fd(10.0), "exact": figure(0.4)}}
    assert latent_or_pixel.as_good(worse, pixel) == ("does not hold, worse by objects", "不成立，物体更差")
    cheaper = latent_or_pixel.cheaper
    assert cheaper(True, (True, True))[0] == cheaper(True, (None, True))[0] == "holds"
    assert cheaper(False, (False, False))[0] == "does not hold"
    assert cheaper(True, (False, True)) == ("holds in part, but not in memory", "部分成立，内存除外")


# --- rows -----------------------------------------------------------------------------------------------------------------------


def made_up(better: bool) -> dict[str, dict[str, Any]]:
    """Reports with the keys that rows read; `better`: the claims hold."""
    floor = {"floor": fd(1.0), "ceiling": figure(0.99)}
    taught = {name: {"minutes": minutes, "inner": 300_000, "parameters": 530_000} for name, minutes in (("t5-112", 2.0), ("bert", 3.0))}

    def grid(low: float, high: float) -> dict[str, Any]:
        first, second = (high, low) if better else (low, high)
        return {"encoder": figure(first), "generator": figure(second), "difference": figure(first - second)}

    def cell(encoder: str, width: int) -> dict[str, Any]:
        guided = {f"{g:g}": {"FD": fd(20.0 - g), "score": 25.0 + g, "exact": figure(0.4), "seconds": 0.1} for g in (1.0, 4.0)}
        return {"inner": 75_000 * 4 ** list(ENCODERS).index(encoder), "parameters": 5000 * width, "guidances": guided}

    def arm(exact: float, distance: float) -> dict[str, Any]:
        return {"FD": fd(distance), "exact": figure(exact), "seconds": 0.1, "minutes": 10.0, "inner": 300_000, "parameters": 530_000}

    def system(distances: tuple[float, float], cheap: bool) -> dict[str, Any]:
        minutes = {
            m: {"FD": fd(distance), "exact": figure(0.5), "seconds": 0.1 if cheap else 0.4, "steps": 500, "pictures": 32_000, "taken": 3.0}
            for m, distance in zip(("2", "12"), distances, strict=True)
        }
        return {"memory": 2**28 if cheap else 2**30, "flop": 10**10, "parameters": 250_000, "minutes": minutes}

    texts, captions = (0.8, 0.3) if better else (0.3, 0.8)
    others = ("joint T5", "CLIP", "BERT", "GPT")
    found: dict[str, Any] = {
        "encoder_or_generator": {
            "words": 600, "draw": 20, "encoders": taught,
            "found": {
                **floor, "arms": {f"{encoder}, {width}": cell(encoder, width) for encoder, width in CELLS},
                "effects": {"area": grid(0.5, 9.0), "exact": grid(0.05, 0.4)},
            },
        },
        "who_taught_the_words": {
            "words": 600, "draw": 50, "encoders": taught,
            "found": {
                **floor, "clip": "taught here",
                "arms": {"T5": arm(texts, 10 - texts), **{name: arm(captions, 10 - captions) for name in others}},
                "more": {name: figure(texts - captions) for name in others},
            },
        },
        "latent_or_pixel": {
            "draw": 25,
            "found": {
                **floor, "autoencoder": {"FD": fd(2.0), "exact": figure(0.98), "minutes": 14.2, "parameters": 430_000, "pictures": 56_000},
                "systems": {"pixel": system((20.0, 10.0), not better), "latent": system((9.0, 8.0) if better else (30.0, 20.0), better)},
            },
        },
    }  # fmt: skip
    return {name: {**claim_rows.FRAME, **one} for name, one in found.items()}


def test_a_row_without_memory_and_one_that_is_never_reached() -> None:
    report = made_up(False)["latent_or_pixel"]
    report["found"]["systems"]["latent"]["memory"] = None
    rows = latent_or_pixel.row(report)
    assert "memory of a training step ?" in rows["en"].verdict and "at no time" in rows["en"].verdict and "始终高于" in rows["zh"].verdict
    assert "from 2 minutes on" in latent_or_pixel.row(made_up(True)["latent_or_pixel"])["en"].verdict


def test_curves_of_all_arms_within_their_frames() -> None:
    drawn = ElementTree.fromstring(encoder_or_generator.curves(made_up(True)["encoder_or_generator"]["found"]))
    svg = "{http://www.w3.org/2000/svg}"
    assert len(drawn.findall(f"{svg}polyline")) == len(CELLS)
    told = drawn.findall(f"{svg}circle")
    assert len(told) == 2 * len(CELLS)
    assert all(0 < float(one.get("cx", 0)) < 840 and 0 < float(one.get("cy", 0)) < 306 for one in told)
    assert (told[0].findtext(f"{svg}title") or "") == "small text encoder, guidance 1: CLIP score 26.0, FD 19.0"
