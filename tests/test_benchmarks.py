"""The benchmark's pieces at a tiny size: both sides compute the same, and every table is written. Nothing is timed for its own sake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers (the test extra) is the peer")

from benchmarks import race_unets, report, unets
from benchmarks.machine import facts
from benchmarks.run import lanes_of, measure
from benchmarks.setting import Setting
from benchmarks.time_to_quality import Peer
from triptych import data
from triptych.recipe import Data, Family, Neighbour, Recipe, Source

TINY = Setting(width=32, depth=2, heads=2, side=8, patch=2, labels=5, text_width=16, words=6, steps=3, batch=2)


@pytest.mark.parametrize("part", ["sampling", "training"])
def test_both_sides_compute_the_same_and_are_told(tmp_path: Path, part: str) -> None:
    said: list[str] = []
    found = measure(part, TINY, threads=1, rounds=2, budget=0.001, models=("paper", "cross", "modern"), compiled=False, say=said.append)
    lanes = [lane for race in found["races"] for lane in race["lanes"]]
    assert len(lanes) == sum(map(len, lanes_of(part, ("paper", "cross", "modern"), compiled=False)))
    assert all(lane["flop"] > 0 and lane["median_s"] > 0 for lane in lanes)
    if part == "sampling":  # `measure` raises where float32 differs; bf16 is near, and no twin
        told = {name: value for race in found["races"] for name, value in race["agreement"].items() if "bf16" in name}
        assert told and all(value > 0 for value in told.values())

    report.write(tmp_path, {"machine": facts(), part: found})
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert page.count("**ours float32**") == len(found["races"])
    assert json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))[part]["threads"] == 1


def test_equal_work_is_counted_equally() -> None:
    """Both sides of a race are asked for the same job at the same precision: nobody is compared with somebody else's lane."""
    for race in lanes_of("sampling", ("paper", "cross"), compiled=True):
        ours = {(lane.job, lane.precision, lane.compiled, lane.pictures) for lane in race if lane.side == "ours"}
        theirs = {(lane.job, lane.precision, lane.compiled, lane.pictures) for lane in race if lane.side == "diffusers"}
        assert ours == theirs and len({(lane.model, lane.job, lane.pictures) for lane in race}) == 1


# --- U-Nets -----------------------------------------------------------------------------------------------------------------


def test_unets_of_both_sides_are_raced(tmp_path: Path) -> None:
    for part in race_unets.PARTS:
        races = list(race_unets.lanes_of(part, ["unet-tiny"], compiled=False))
        found = measure(part, TINY, threads=1, rounds=2, budget=0.001, models=["unet-tiny"], say=lambda _: None, races=races)
        lanes = [lane for race in found["races"] for lane in race["lanes"]]
        assert len(lanes) == sum(map(len, races)) and all((lane["flop"] > 0) == (part != "loading") for lane in lanes)
        report.write(tmp_path, {"machine": facts(), part: found}, "benchmarks_unet", race_unets.page)
    page = (tmp_path / "benchmarks_unet.md").read_text(encoding="utf-8")
    assert page.count("**ours float32**") == 4 and "diffusers bf16 channels-last" in page  # one picture and eight, loading, training
    assert {"steps", "loading", "training"} <= json.loads((tmp_path / "benchmarks_unet.json").read_text(encoding="utf-8")).keys()


def test_lanes_of_unets_are_equal_work() -> None:
    for part in race_unets.PARTS:
        for race in race_unets.lanes_of(part, ["unet-64", "sd-1.5"], compiled=True):
            sides = [{(one.precision, one.compiled, one.pictures) for one in race if one.side == side} for side in ("ours", "diffusers")]
            assert sides[0] == sides[1] and len({(one.model, one.job) for one in race}) == 1


def test_what_is_counted_of_unets() -> None:
    """The figures that `unets` states, and the reasons for what is done and what is not."""
    found = unets.counted()
    assert {name: round(100 * one["prefix"], 1) for name, one in found.items()} == {
        "SD-1.5": 2.7, "pixel-text": 3.6, "ldm": 2.4, "sd": 1.1, "sd, no pooled vector": 4.9,
    }  # fmt: skip
    assert all(one["time"] < 0.01 for one in found.values())


def test_the_peers_loop_learns_stops_and_goes_on(tmp_path: Path) -> None:
    """Interrupted and resumed it is where it would have been; our U-Net with its weights draws what it drew."""
    recipe = Recipe(
        name="tiny", panel="generators", process=Family(name="ddpm"), batch=2, dropout=0.5, compile=False, sampling={"steps": 2},
        family=Family(name="unet", size="tiny", config={"width": 8, "norm_groups": 4}),
        neighbours={"text_encoder": Neighbour(model="emoji"), "decoder": Neighbour(family=Family(name="identity", size="32"))},
        data=Data(sources=(Source(name="scenes"),), size=32),
    )  # fmt: skip
    dataset, peer = data.build(recipe.data), Peer(recipe, tmp_path)
    before = [p.clone() for p in peer.loop.unet.parameters()]
    while peer.step < 2:
        peer.learn(peer.seconds + 1e-9, dataset)
    peer.save()
    again = Peer(recipe, tmp_path)
    assert (again.step, again.seconds) == (2, peer.seconds)
    for one in (again, peer):
        torch.manual_seed(3)
        one.learn(one.seconds + 1e-9, dataset)
    assert again.step == peer.step == 3
    for a, b, was in zip(again.loop.unet.parameters(), peer.loop.unet.parameters(), before, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, was)
    model = again.model(averaged=False)
    said = model.text_encoder.encode(["a red circle"])  # type: ignore[list-item]
    x, clock = torch.randn(1, *model.decoder.latent.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([500])
    with torch.no_grad():
        ours, theirs = model.generator.network(x, clock, said), again.loop.unet.eval()(x, clock, said.tokens_BLD, return_dict=False)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert len(model.generate(["a red circle"])) == 1
