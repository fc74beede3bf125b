"""The pieces of the claims about guidance, layouts, memory and canvases: what is traded, boxes that meet, powers, windows, what is said."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.claims import chains, guided_layouts, larger_canvas, memory_of_tokens, two_guidances
from tests import claim_rows
from tests.claim_rows import fd, figure
from tests.contract import tiny
from triptych import catalog
from triptych.contracts import Prompt
from triptych.data.graph import Object, Scene
from triptych.eyes import DETECTOR, load_eyes
from triptych.judges._kernels import inside
from triptych.judges.objects import Seen
from triptych.pipeline import to_pil
from triptych.recipe import Data, Source
from triptych.recipes.diffusion import adm
from triptych.vision import noisy_classifier


def shapes(side: int) -> Data:
    """Scenes without emoji."""
    return Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=side)


# --- two kinds of guidance ------------------------------------------------------------------------------------------------------


def test_a_cloud_that_fell_in_loses_recall_and_keeps_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    real, same, far = torch.randn(400, 4, generator=generator), torch.randn(200, 4, generator=generator), torch.full((4,), 50.0)
    good, fallen = two_guidances.cloud(same, real), two_guidances.cloud(0.1 * same, real)
    assert fallen["precision"]["value"] == 1 and fallen["recall"]["high"] < good["recall"]["low"]
    assert good["precision"]["value"] > 0.8 and two_guidances.cloud(same + far, real)["precision"]["value"] == 0
    for one in (*good.values(), *fallen.values()):
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1 and one["low"] < one["high"]
    every = two_guidances.cloud(real, real)
    assert every["precision"]["value"] == every["recall"]["value"] == 1
    half = good["recall"]["high"] - good["recall"]["value"]
    again = [inside(real, torch.randn(200, 4, generator=generator), 3).double().mean() for _ in range(20)]
    assert np.std(again) < half < 8 * np.std(again), "the interval is of the size of chance"


def test_times_are_compared_round_by_round() -> None:
    found = two_guidances.ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert found["value"] == found["low"] == found["high"] == 2 and two_guidances.ratio([1.0], [0.0])["value"] > 0


def test_arms_differ_in_the_dropped_class_alone() -> None:
    plain, free = two_guidances.labelled(0.0), two_guidances.labelled(0.1)
    assert plain.dropout == 0 and free.dropout == 0.1 and dataclasses.replace(free, dropout=0.0) == plain
    assert plain.guide is None and "guide" not in plain.neighbours and plain.data == adm().data
    assert plain.family.config == {**adm().family.config, "learn_sigma": False}
    assert plain.process is not None and plain.process.config["target"] == "v"


def test_a_classifier_leads_where_it_has_a_scale() -> None:
    model = tiny.model(text_encoder="label", generator="unet", decoder="identity", process="ddpm")
    side, latent = model.decoder.image_size, model.decoder.latent
    seen = {"image_size": side, "mean": latent.mean[0], "std": latent.std[0]}
    critic = tiny.build("vision", "noisy_classifier", config=dataclasses.replace(noisy_classifier.SIZES["tiny"], **seen)).eval()
    prompts = [Prompt(label=i) for i in range(2)]

    def drawn(scale: float) -> list[bytes]:
        made = two_guidances.led(model, tiny.awake(critic), scale).generate(prompts, steps=4, guidance=1.0, threshold="static")
        return [one.tobytes() for one in made]

    off = [one.tobytes() for one in model.generate(prompts, steps=4, guidance=1.0, threshold="static")]
    assert drawn(0.0) == off != drawn(5.0)
    ways: dict[str, Any] = {"off": (model, {}), "led": (two_guidances.led(model, critic, 2.0), {}), "free": (model, {"guidance": 2.0})}
    cost = two_guidances.of_drawing(ways, Namespace(timed=2, rounds=2, draw=3), prompts)
    assert cost["led"]["seconds"] > 0 and cost["free"]["value"] > 0 and set(cost) == {"led", "free", "seconds"}


def test_what_is_traded_and_who_is_better() -> None:
    def one(precision: float, recall: float, distance: float = 5.0, exact: float = 0.5) -> dict[str, Any]:
        return {"precision": figure(precision), "recall": figure(recall), "FD": fd(distance), "exact": figure(exact)}

    off = one(0.5, 0.5)
    assert two_guidances.traded({"0": off, "1": one(0.51, 0.49), "2": one(0.7, 0.3)}) == (1, ["2"])
    assert two_guidances.traded({"0": off, "1": one(0.51, 0.3)})[0] == -1, "diversity is paid for nothing"
    assert two_guidances.traded({"0": off, "1": one(0.7, 0.5)})[0] == 0 == two_guidances.traded({"0": off, "1": off})[0]
    found = {"led": {"0": one(0, 0, 1.0), "1": one(0, 0, 6.0), "2": one(0, 0, 5.0)}, "free": {"1": one(0, 0), "3": one(0, 0, 4.0, 0.5)}}
    assert two_guidances.better(found, "FD", -1) == (1, {"led": "2", "free": "3"}), "no guidance is no choice"
    assert two_guidances.better(found, "exact", 1)[0] == 0
    assert two_guidances.better({"led": found["free"], "free": found["led"]}, "FD", -1)[0] == -1
    assert two_guidances.swept_scales(Namespace(led=(4.0, 2.0), free=(1.0, 3.0), draw=2, many=3)) == {"led": [0, 2, 4], "free": [1, 3]}
    for wrong in ({"led": (0.0,)}, {"free": (1.0,)}, {"many": 2}):
        with pytest.raises(ValueError, match="--"):
            two_guidances.swept_scales(Namespace(**{"led": (0.0, 1.0), "free": (1.0, 2.0), "draw": 2, "many": 3, **wrong}))


# --- layouts ----------------------------------------------------------------------------------------------------------------------


def scene(*kinds: tuple[str, str, float]) -> Prompt:
    """Things of 0.2 x 0.2 at a height of 0.5."""
    objects = tuple(Object(shape=shape, color=color, size="", cx=x, cy=0.5, r=0.1) for shape, color, x in kinds)
    boxes = torch.tensor([[0, one.cx, one.cy, 0.2, 0.2] for one in objects])
    return Prompt(truth=Scene(objects=objects), boxes_N5=boxes)


def seen(shape: str, color: str, x: float, y: float = 0.5) -> Seen:
    return Seen(shape=shape, color=color, cx=x, cy=y, w=0.2, h=0.2, score=0.9)


def test_boxes_meet_those_of_their_kind() -> None:
    asked = scene(("circle", "red", 0.3), ("circle", "red", 0.4), ("star", "blue", 0.8))
    assert guided_layouts.met([], asked) == [0, 0, 0]
    exact = [seen("star", "blue", 0.8), seen("circle", "red", 0.4), seen("circle", "red", 0.3)]
    assert guided_layouts.met(exact, asked) == pytest.approx([1, 1, 1], abs=1e-5)
    assert guided_layouts.met([seen("star", "red", 0.8), seen("circle", "blue", 0.3)], asked) == [0, 0, 0], "not its colour"
    assert guided_layouts.met([seen("star", "blue", 0.9)], asked) == pytest.approx([0, 0, 1 / 3], abs=1e-5)
    both = guided_layouts.met([seen("circle", "red", 0.3), seen("circle", "red", 0.2)], asked)
    assert both == pytest.approx([1, 0, 0], abs=1e-5), "the sum is largest, and each counts once: 1 + 0 > 1/3 + 1/3"
    assert sum(guided_layouts.met([seen("circle", "red", 0.35)], asked)) == pytest.approx(0.6, abs=1e-4)


def test_a_gain_is_told_as_a_share_of_what_was_missing() -> None:
    plain, half, real = (np.array([[2, 2 * iou, 2 * (iou > 0.5), 1]] * 40, dtype=float) for iou in (0.4, 0.6, 0.8))
    found = guided_layouts.gain(half, plain, real)
    assert found["IoU"] == pytest.approx({"value": 0.2, "low": 0.2, "high": 0.2})
    assert found["of missing"] == pytest.approx({"value": 0.5, "low": 0.5, "high": 0.5})
    assert guided_layouts.gain(half, real, real)["of missing"]["value"] == 0, "nothing is missing"
    told = guided_layouts.shares(half)
    assert [told[name]["value"] for name in guided_layouts.WHAT] == pytest.approx([0.6, 1.0, 0.5])


def test_real_pictures_have_their_things_in_their_boxes() -> None:
    images, prompts = chains.real_pictures(shapes(32), 8, 0, "held_out")
    found = guided_layouts.shares(guided_layouts.read(load_eyes(DETECTOR), images, prompts))
    assert found["IoU"]["value"] > 0.75 and found["found"]["value"] > 0.85 and found["besides"]["value"] < 0.2
    turned = guided_layouts.shares(guided_layouts.read(load_eyes(DETECTOR), images, prompts[1:] + prompts[:1]))
    assert turned["IoU"]["high"] < found["IoU"]["low"], "boxes of other pictures"


# --- memory -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [1.0, 2.0])
def test_a_power_does_not_see_what_does_not_grow(p: float) -> None:
    grows = {n: 5e6 + 3.0 * n**p for n in (64, 256, 1024, 4096)}
    assert memory_of_tokens.power(grows) == pytest.approx(p) and memory_of_tokens.slope(grows) < p
    assert memory_of_tokens.slope({n: 7.0 * n**p for n in grows}) == pytest.approx(p)
    told = memory_of_tokens.ranged([grows, {n: 2 * one for n, one in grows.items()}], memory_of_tokens.power)
    assert told["low"] <= told["value"] <= told["high"] and memory_of_tokens.shape({"power": told}) == (1 if p == 2 else -1)
    assert memory_of_tokens.power({64: 9.0, 256: 9.0, 1024: 9.0}) == 0


def test_a_peak_is_seen_that_is_gone_afterwards() -> None:
    """In a process of its own, as the script has it: one that has worked before keeps freed memory for the next tensor."""
    code = (
        "import torch; from scripts.claims.memory_of_tokens import peak_of; stays = peak_of(lambda: None);"
        "print(peak_of(lambda: torch.zeros(2**24).add_(1).sum().item()) - stays)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=claim_rows.ROOT)
    assert done.returncode == 0 and int(done.stdout) > 60 * 2**20, done.stderr


def test_networks_of_the_same_size_take_pictures_of_any() -> None:
    nets = {kind: memory_of_tokens.network(kind) for kind in memory_of_tokens.KINDS}
    sizes = [sum(p.numel() for p in net.parameters()) for net in nets.values()]
    assert max(sizes) < 1.05 * min(sizes)
    for net in nets.values():
        memory_of_tokens.passed(net, 64, "forward")
        assert all(p.grad is None for p in net.parameters())
        memory_of_tokens.passed(net, 16, "step")
        assert any(p.grad is not None for p in net.parameters())


# --- canvases ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [32, 64, 96])
def test_windows_share_the_picture_out(length: int) -> None:
    windows = list(larger_canvas.along(length, 32))
    assert windows[0][0] == 0 and windows[-1][0] == length - 32
    for point in np.linspace(0, length, 97):
        assert sum(low <= point < high for _, low, high in windows) == 1, point
        assert all(start <= point <= start + 32 for start, low, high in windows if low <= point < high)


def test_real_pictures_side_by_side_and_what_is_counted_there() -> None:
    images, prompts = chains.real_pictures(shapes(32), 5, 1, "held_out")
    canvases, which = larger_canvas.side_by_side(images, (2, 2), 0)
    assert canvases.shape == (5, 3, 64, 64) and which.shape == (5, 4) and all(sorted(place.tolist()) == list(range(5)) for place in which.T)
    assert torch.equal(canvases[3, :, 32:, :32], images[which[3, 2]]) and torch.equal(canvases[1, :, :32, 32:], images[which[1, 1]])
    same, alone = larger_canvas.side_by_side(images, (1, 1), 0)
    assert torch.equal(same, images[alone[:, 0]]) and torch.equal(larger_canvas.one_each(images, 32, 0), images)
    window = larger_canvas.one_each(torch.arange(64.0).expand(2, 1, 32, 64), 32, 0)
    assert window.shape == (2, 1, 32, 32) and torch.equal(window[0, 0, 0].diff(), torch.ones(31))
    assert window[0, 0, 0, 0] != window[1, 0, 0, 0]

    eyes = load_eyes(DETECTOR)
    judge = catalog.build("judges", "objects", size="default", eyes=eyes.sight(), **eyes.names())
    asked = np.array([len(prompt.truth.objects) for prompt in prompts])
    once, repeated = larger_canvas.things(judge, images, 32), larger_canvas.things(judge, canvases, 32)
    known = asked[which.numpy()].sum(1)
    assert abs(once.sum() - asked.sum()) <= 0.15 * asked.sum() and abs(repeated.sum() - known.sum()) <= 0.15 * known.sum()
    assert larger_canvas.each_asked(known, asked, 4)["value"] == pytest.approx(1)


@pytest.mark.parametrize(("decoder", "generator"), [("autoencoder_kl", "unet"), ("upscaler", "dit"), ("identity", "unet")])
def test_a_canvas_of_twice_the_width_is_drawn_once(decoder: str, generator: str, tmp_path: Path) -> None:
    model = tiny.model(decoder=decoder, generator=generator)
    args, prompts = Namespace(n=2, seed=0, draw=2), [Prompt(text="a red circle"), Prompt(text="a star")]
    side = larger_canvas.learnt(model).side
    wide, seconds = larger_canvas.drawn(model, tmp_path, args, prompts, (1, 2))
    assert wide.shape == (2, 3, side, 2 * side) and seconds > 0
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert torch.equal(larger_canvas.drawn(model, tmp_path, args, prompts, (1, 2))[0], wide) and len(files) == 1
    assert {path: path.stat().st_mtime_ns for path in files} == files
    small, _ = larger_canvas.drawn(model, tmp_path, args, prompts, (1, 1))
    how: dict[str, Any] = larger_canvas.learnt(model).decoder
    usual = model.generate(prompts, seeds=[0, 1], steps=2, size=(side, side) if not how else None, decoder=how)
    assert [one.tobytes() for one in to_pil(small)] == [one.tobytes() for one in usual], "the learnt size is what the model draws"


# --- rows -------------------------------------------------------------------------------------------------------------------------


def made_up(better: bool) -> dict[str, dict[str, Any]]:
    """Reports with the keys that rows read; `better`: the claims hold."""

    def drawn(precision: float, recall: float, distance: float, exact: float) -> dict[str, Any]:
        return {
            "precision": figure(precision), "recall": figure(recall), "FD": figure(distance), "exact": figure(exact), "seconds": 0.1
        }  # fmt: skip

    off, guided = drawn(0.6, 0.7, 9.0, 0.4), drawn(0.8, 0.4, 6.0, 0.7)
    guidance = {
        "floor": {}, "ceiling": figure(0.98), "led": {"0": off, "2": guided if better else drawn(0.5, 0.4, 12.0, 0.3)},
        "free": {"1": off, "3": drawn(0.9, 0.5, 4.0, 0.9) if better else drawn(0.6, 0.7, 13.0, 0.3)},
        "steps": {"25": drawn(0.8, 0.4, 6.0 if better else 9.0, 0.7), "100": guided},
        "training": figure(1.3 if better else 1.0, rounds=[1.0], seconds={"free": 0.1, "plain": 0.1}, steps=40),
        "drawing": {"led": figure(2.5), "free": figure(1.9), "seconds": 0.1},
    }  # fmt: skip
    part = figure(0.8 if better else 0.1)
    scale = {"IoU": figure(0.4), "found": figure(0.5), "besides": figure(0.3), "FD": fd(5.0), "seconds": 0.1}
    layouts = {
        "model": {"name": "layout", "fingerprints": {}, "parameters": 200_000, "pictures": 512_000, "minutes": 60.0}, "boxes": 1100,
        "floor": fd(1.0), "real": scale, "decides": "3",
        "scales": {"1": scale, "3": {**scale, "gain": {"IoU": figure(0.2), "of missing": part}}},
    }  # fmt: skip

    def grows(power: float) -> dict[str, Any]:
        return {"bytes": {"256": [1e6], "1024": [4e6], "4096": [16e6]}, "slope": figure(power), "power": figure(power)}

    memory = {
        kind: {"parameters": 430_000, **dict.fromkeys(memory_of_tokens.PHASES, grows(2.0 if kind == "DiT" and better else 1.0))}
        for kind in memory_of_tokens.KINDS
    }
    memory["DiT, written out"] |= dict.fromkeys(memory_of_tokens.PHASES, grows(1.9))

    def canvas(area: int, more: float) -> dict[str, Any]:
        return {
            "size": [64, 64 * area], "seconds": 0.5, "FD": figure(5.0 if better else 4.0 + area), "floor": figure(1.0),
            "things": figure(more), "of an area": figure(more / area), "of real": figure(0.97),
            **({"exact": figure(0.5)} if area != 2 else {}),
        }  # fmt: skip

    def of(name: str, more: int) -> dict[str, Any]:
        canvases = {str(area): canvas(area, 1.0 if better else float(area) ** more) for area in (1, 2, 4)}
        return {"name": name, "fingerprints": {}, "side": 64, "settings": {}, "parameters": 600_000, "canvases": canvases}

    found: dict[str, Any] = {
        "two_guidances": {
            "classifier": {"minutes": 4.0, "steps": 1250, "parameters": 60_000, "fingerprint": "x"}, "found": guidance,
        },
        "guided_layouts": {"draw": 50, "found": layouts},
        "memory_of_tokens": {"rounds": 3, "memory": memory},
        "larger_canvas": {"arms": {}, "found": {"unet": of("sd", 1), "dit": of("emoji", -1)}},
    }  # fmt: skip
    return {name: {**claim_rows.FRAME, **one} for name, one in found.items()}


def test_a_layout_model_that_was_trained_before_is_told_without_arms() -> None:
    rows = guided_layouts.row(made_up(True)["guided_layouts"] | {"arms": {}})
    assert "512,000 pictures" in rows["en"].verdict and "steps of 64" not in rows["en"].verdict


def test_a_little_help_is_not_great_and_harm_is_said() -> None:
    report = made_up(False)["guided_layouts"]
    assert "it helps, greatly does not hold" in guided_layouts.row(report)["en"].verdict
    report["found"]["scales"]["3"]["gain"]["IoU"] = figure(-0.2)
    assert "it harms" in guided_layouts.row(report)["en"].verdict


def test_things_may_be_repeated_or_lost() -> None:
    rows = larger_canvas.row(made_up(False)["larger_canvas"])
    assert "repeated: 4.0 times" in rows["en"].verdict and "lost: 0.2 times" in rows["en"].verdict
