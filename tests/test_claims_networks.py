"""The pieces of the claims about U-Nets: who hears what, how alike arms are, where things stand, what is said of figures."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

import triptych
from scripts.claims import asked, bigger_and_better_unets, chains, skip_connections, two_text_paths, why_attention
from tests import claim_rows
from tests.claim_rows import fd, figure
from triptych import catalog
from triptych.contracts import Condition, ConditionSpec, LatentSpace, Prompt, Rng
from triptych.data.graph import Object, Scene, is_held_out
from triptych.eyes import DETECTOR, Eyes
from triptych.generators.unet import SIZES, UNet
from triptych.judges.objects import Seen
from triptych.layers.unet import SpatialAttention
from triptych.pipeline import Generator, TextToImage
from triptych.recipes.diffusion import ddpm, pixel_text

PIXELS = LatentSpace(kind="image", shape=(3, 32, 32))
WORDS = ConditionSpec(width=160, context_length=48, pooled=160)  # as the embedded `emoji` speaks


@pytest.fixture(scope="module")
def detector() -> Eyes:
    return triptych.load(DETECTOR)


def prompt(*things: tuple[str, str | None, float, float]) -> Prompt:
    """(shape, colour, centre x, y) of each."""
    objects = tuple(Object(shape=shape, color=color, size="medium", cx=x, cy=y, r=0.1) for shape, color, x, y in things)
    return Prompt(text="", truth=Scene(objects=objects), boxes_N5=torch.tensor([[0, x, y, 0.2, 0.2] for *_, x, y in things]))


def seen(*things: tuple[str, str | None, float, float]) -> list[Seen]:
    return [Seen(shape=shape, color=color, cx=x, cy=y, w=0.2, h=0.2, score=1.0) for shape, color, x, y in things]


def built(unet: dict[str, Any], condition: ConditionSpec) -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet(dataclasses.replace(SIZES["scenes"], **unet), latent=PIXELS, condition=condition)


def size(unet: dict[str, Any], condition: ConditionSpec) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in built(unet, condition).parameters())


# --- what is asked ------------------------------------------------------------------------------------------------------------


def test_things_that_are_alike_by_hand() -> None:
    red, blue, ring = ("circle", "red", 0.2, 0.2), ("circle", "blue", 0.8, 0.2), ("ring", "red", 0.5, 0.5)
    for there, wanted, share in (
        ((red, ring), (ring, red), 1), ((blue,), (red,), 0), ((red,), (red, ring), 1 / 2), ((red, ring, blue), (red,), 1 / 3),
        ((), (red,), 0), ((red, red), (red, red, red), 2 / 3), ((red, red, red), (red, blue), 1 / 4),
    ):  # fmt: skip
        assert asked.alike(seen(*there), prompt(*wanted)) == pytest.approx(share)


def test_what_is_asked_was_never_shown() -> None:
    images, prompts = asked.held_out(ddpm().data, 12, 0)
    shown = chains.real_pictures(ddpm().data, 12, 0)[1]
    assert images.shape == (12, 3, 32, 32) and all(is_held_out(one.truth) for one in prompts)
    assert not any(is_held_out(one.truth) for one in shown)
    again, other = (asked.held_out(ddpm().data, 12, seed)[1] for seed in (0, 1))
    assert [one.text for one in again] == [one.text for one in prompts] != [one.text for one in other]


def test_the_detector_knows_real_scenes_and_nothing_in_noise(detector: Eyes) -> None:
    images, prompts = asked.held_out(ddpm().data, 12, 0)
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    real, none = (asked.judged(detector, one, prompts) for one in (images, noise))
    assert real["exact"]["value"] > 0.5 and real["things"]["value"] > 0.8 and none["exact"]["value"] == 0 == none["things"]["value"]
    for what in ("exact", "things"):
        assert chains.apart(real[what], none[what]) == 1
    near, far = (skip_connections.told(skip_connections.places(asked.read(detector, one), prompts), 50) for one in (images, noise))
    assert near["off"]["value"] < 4 and near["missed"]["value"] < 0.2 and near["off"]["n"] > 12
    assert far["missed"]["value"] == 1 and far["off"] == {"value": skip_connections.FAR, "low": 0, "high": skip_connections.FAR, "n": 0}


def test_one_verdict_over_several_settings() -> None:
    for sides, en, zh in (
        ((1, 1), "holds", "成立"), ((1, 0), "holds at t = a", "t = a 时成立"), ((0, 0), "not decided", "未能分出"),
        ((1, -1), "does not hold at t = b", "t = b 时不成立"), ((), "not decided", "未能分出"),
    ):  # fmt: skip
        assert asked.said_of(dict(zip("ab", sides, strict=False)), ("t =", "t =")) == (en, zh)


# --- who hears what -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way, hears, attentions",
    [("silent", (), 0), ("summary", ("pooled_BD",), 0), ("self", ("pooled_BD",), 4), ("words", ("tokens_BLD", "pooled_BD"), 4),
     ("words-alone", ("tokens_BLD",), 4)],
)  # fmt: skip
@torch.no_grad()
def test_each_way_hears_what_it_says(way: str, hears: Sequence[str], attentions: int) -> None:
    made, draw = built(why_attention.WAYS[way].unet, WORDS), torch.Generator().manual_seed(1)
    for parameter in made.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=draw)
    x, clock = torch.randn(2, 3, 16, 16, generator=draw), torch.tensor([100.0, 700.0])
    ports = {"tokens_BLD": torch.randn(2, 5, 160, generator=draw), "pooled_BD": torch.randn(2, 160, generator=draw)}
    out = made(x, clock, Condition(mask_BL=torch.ones(2, 5, dtype=torch.bool), **ports))
    for port, value in ports.items():
        other = made(x, clock, Condition(mask_BL=torch.ones(2, 5, dtype=torch.bool), **{**ports, port: value.flip(0)}))
        assert ((other - out).abs().max() > 1e-4) == (port in hears), port
    assert sum(isinstance(one, SpatialAttention) for one in made.modules()) == attentions


def test_ways_differ_in_nothing_else_and_are_as_large() -> None:
    counts = {way: size(why_attention.WAYS[way].unet, WORDS) for way in why_attention.WAYS}
    assert max(counts.values()) <= 1.04 * min(counts.values()) and min(counts, key=lambda way: counts[way]) == "words"
    base = chains.changed(pixel_text(), process=chains.CLEAR, data=ddpm().data)
    assert why_attention.heard("words") == base and base.dropout == 0.1 and base.neighbours["text_encoder"].model == "emoji"
    for way in why_attention.WAYS:
        assert dataclasses.replace(why_attention.heard(way), family=base.family) == base
    assert {way for pair in why_attention.RUNGS for way in pair} == set(why_attention.WAYS) - {"words-alone"}
    assert {way for pair in two_text_paths.NEEDED for way in pair} == set(two_text_paths.PATHS) <= set(why_attention.WAYS)


def test_better_unets_differ_in_one_thing() -> None:
    arms = bigger_and_better_unets.arms((8, 16, 32))
    counts = {name: size(unet, ConditionSpec()) for name, unet in arms.items()}
    assert arms["ddpm"] == {} and counts["heads-1"] == counts["heads-4"] == counts["ddpm"] == 205_027 and "width-16" not in arms
    assert counts["width-8"] < 0.3 * counts["ddpm"] < 0.3 * counts["width-32"] / 3.5
    grouped = {name: built(unet, ConditionSpec()).norm for name, unet in arms.items() if name in ("width-8", "ddpm")}
    assert {norm.weight.numel() // norm.num_groups for norm in grouped.values()} == {2}  # channels a group
    heads = {name: {one.num_heads for one in built(arms[name], ConditionSpec()).modules() if isinstance(one, SpatialAttention)} for name in
             ("heads-1", "ddpm", "heads-4", "width-8")}  # fmt: skip
    assert heads == {"heads-1": {1}, "ddpm": {2}, "heads-4": {4}, "width-8": {1}}
    for widths, pairs in (
        ((8, 32), [("ddpm", "width-8"), ("width-32", "ddpm")]), ((32,), [("width-32", "ddpm")]), ((16,), []),
        ((24, 32), [("width-24", "ddpm"), ("width-32", "width-24")]),
    ):  # fmt: skip
        gains = bigger_and_better_unets.gains(widths)
        assert [pair for pair in gains if pair not in bigger_and_better_unets.GAINS] == pairs
        assert {name for pair in gains for name in pair} == set(bigger_and_better_unets.arms(widths))


# --- where things stand -----------------------------------------------------------------------------------------------------------


def test_places_by_hand() -> None:
    wanted = [prompt(("ring", "red", 0.2, 0.2), ("ring", "blue", 0.8, 0.2), ("star", "red", 0.5, 0.9)), prompt(("star", "red", 0.5, 0.5))]
    there = [seen(("ring", "green", 0.23, 0.24), ("heart", "red", 0.5, 0.9)), seen(("star", None, 0.5, 0.5))]
    off_NK = skip_connections.places(there, wanted)
    torch.testing.assert_close(torch.from_numpy(off_NK[0, :2]), torch.tensor([5.0, 100 * math.hypot(0.57, 0.04)], dtype=torch.float64))
    assert off_NK[0, 2] == math.inf and off_NK[1, 0] == 0 and np.isnan(off_NK[1, 1:]).all()
    told = skip_connections.told(off_NK, 100)
    assert told["missed"]["value"] == 1 / 4 and told["missed"]["n"] == 4 and told["off"]["n"] == 3
    assert told["off"]["value"] == pytest.approx(off_NK[np.isfinite(off_NK)].mean())
    assert told["off"]["low"] <= told["off"]["value"] <= told["off"]["high"]


def test_farther_is_of_things_that_both_show() -> None:
    near = np.array([[1.0, np.inf, np.nan], [2.0, 3.0, np.nan]] * 10)
    far = np.array([[5.0, 40.0, np.nan], [6.0, np.inf, np.nan]] * 10)
    found = skip_connections.farther(near, far, 100)
    assert found == {"value": 4, "low": 4, "high": 4, "n": 20}  # the thing that one alone shows at 40 is no proof
    assert skip_connections.farther(far, near, 100)["high"] == -4
    four = skip_connections.farther(near[:4], far[:4], 100)  # however well they agree, they decide nothing
    assert four["value"] == 4 and four["n"] == 4 and four["low"] < 0 < four["high"]
    nothing = skip_connections.farther(near, np.full_like(near, np.inf), 100)
    assert nothing["n"] == 0 and nothing["low"] < 0 < nothing["high"] and all(map(math.isfinite, nothing.values()))


def test_a_network_that_says_no_noise_guesses_what_it_is_shown() -> None:
    """Untrained, its noise is 0, and the guess x_t / alpha; every picture has noise of its own, whatever stands beside it."""
    words, pixels = catalog.build("text_encoders", "label", size="unconditional"), catalog.build("decoders", "identity", size="32")
    process = catalog.build("processes", "ddpm", size="ddpm")
    network = catalog.build("generators", "unet", size="tiny", latent=pixels.latent, condition=words.gives).eval()
    model = TextToImage(words, Generator(network, process), pixels)
    images = torch.rand(51, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    close, rough = (skip_connections.guesses(model, images, t, 7) for t in (0.001, 0.3))
    assert (close - images).abs().max() < 0.06 < (rough - images).abs().mean() and rough.abs().max() <= 1
    z, eps = pixels.encode(images[50:]), Rng.of_seeds([57]).normal("noise", (3, 32, 32))
    t = torch.tensor([0.3])
    expected = pixels.decode(process.corrupt(z, t, eps) / process.schedule.alpha(t), Condition()).clamp(-1, 1)
    torch.testing.assert_close(rough[50:], expected.float(), rtol=1e-4, atol=1e-4)


# --- rows ---------------------------------------------------------------------------------------------------------------------


def made_up(better: bool) -> dict[str, dict[str, Any]]:
    """Reports with the keys that rows read; `better`: the claims hold."""
    low = 1.0 if better else 3.0
    ways = list(why_attention.WAYS)
    order = {"silent": 0.0, "summary": 0.2, "words-alone": 0.3, "self": 0.4, "words": 0.6}
    accuracies = {way: dict.fromkeys(why_attention.MEASURES, figure(order[way] if better else 0.3)) for way in ways}
    words = {"ceiling": {what: figure(0.95) for what in why_attention.MEASURES}}
    unets = bigger_and_better_unets.arms((8, 32))
    better_fd = {"width-8": 9.0, "heads-1": 7.0, "ddpm": 5.0, "heads-4": 4.0, "adagn": 3.0, "attention-8-16": 3.0, "width-32": 1.0}
    times = {
        name: {t: {"off": figure(off, n=900), "missed": figure(off / 10, n=1000)} for t in ("0.1", "0.5")}
        for name, off in {"ddpm": low, "no-skips": 3.0}.items()
    }
    gap = figure(2.0 if better else 0.0, n=800)
    found: dict[str, Any] = {
        "skip_connections": {"found": {
            "floor": fd(0.5), "real": {"off": figure(0.5, n=990), "missed": figure(0.01, n=1000)},
            "arms": {name: {"FD": fd(low if name == "ddpm" else 3.0), "times": times[name]} for name in times},
            "farther": {"0.1": gap, "0.5": gap},
        }},
        "why_attention": {"found": {**words, "ways": {way: accuracies[way] for way in ways[:-1]}}},
        "two_text_paths": {"found": {**words, "ways": {way: accuracies[way] for way in two_text_paths.PATHS}}},
        "bigger_and_better_unets": {"found": {
            "floor": fd(0.5), "widths": [8, 32], "FD": {name: fd(better_fd[name] if better else 5.0) for name in unets},
        }},
    }  # fmt: skip
    trained = {name: {"minutes": 8.0, "pictures": 160_000, "parameters": 205_027} for name in
               (*(f"v-{one}" for one in (*unets, "no-skips")), *(f"text-{way}" for way in ways))}  # fmt: skip
    return {name: {**claim_rows.FRAME, "draw": 50, "arms": trained, **one} for name, one in found.items()}


def test_what_is_said_follows_from_each_figure() -> None:
    """One figure turned round turns round what is said of it, and of it alone."""
    report = made_up(True)["why_attention"]
    report["found"]["ways"]["words"]["exact"] = figure(0.1)
    verdict = why_attention.row(report)["en"].verdict
    assert "attention to the words helps: does not hold / holds" in verdict and "among positions helps: holds / holds" in verdict

    report = made_up(True)["two_text_paths"]
    assert "of one alone, time only is the better one" in two_text_paths.row(report)["en"].verdict
    report["found"]["ways"]["words-alone"] = report["found"]["ways"]["self"]
    assert "of one alone" not in two_text_paths.row(report)["en"].verdict

    report = made_up(True)["skip_connections"]
    report["found"]["farther"]["0.5"] = figure(0.0, n=3)
    rows = skip_connections.row(report)
    assert "nearer their place: holds at t = 0.1; fewer are missed: holds;" in rows["en"].verdict and "t = 0.1 时成立" in rows["zh"].verdict

    report = made_up(True)["bigger_and_better_unets"]
    report["found"]["FD"]["width-32"] = fd(8.0)
    verdict = bigger_and_better_unets.row(report)["en"].verdict
    assert "width 32 is better than 16: does not hold" in verdict and "width 16 is better than 8: holds" in verdict
