"""The pieces of the claims that train something: their pictures, their tasks, what is told of places, and equal minutes."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.claims import detr_positions, minutes, panoptic, pretraining, vit_or_cnn, words_or_labels
from triptych import catalog
from triptych.contracts import Batch, ConditionSpec, Prompt, Rng
from triptych.data import artwork, scenes
from triptych.data.index import draws
from triptych.recipe import Family, Recipe
from triptych.vision import detr, mae


@pytest.mark.debian
@pytest.mark.skipif(not Path(artwork.FONT).exists(), reason="needs fonts-noto-color-emoji")
def test_a_larger_set_holds_the_smaller_one_and_things_stay_in_the_picture() -> None:
    images, labels, away = vit_or_cnn.pictures(12, 0, "x")
    fewer, same, _ = vit_or_cnn.pictures(5, 0, "x")
    assert torch.equal(images[:5], fewer) and torch.equal(labels[:5], same) and images.shape == (12, 3, 32, 32)
    for i in range(12):
        scene = vit_or_cnn.thing(draws(0, "x", i))
        assert scene.objects[0].shape == scenes.CLASSES[labels[i]]
        there = torch.from_numpy(scenes.masks(scene, 32))
        for by in vit_or_cnn.SHIFTS:
            gone = vit_or_cnn.moved(there[None].byte(), away[i : i + 1], by)[0, 0]
            x, y = (int(value) * by for value in away[i])
            rows, columns = gone.nonzero().unbind(1)
            assert rows.min() - y >= 0 and columns.min() - x >= 0 and rows.max() - y < 32 and columns.max() - x < 32, "it came round"
            assert torch.equal(gone.roll((-y, -x), (0, 1)).bool(), there[0])


def test_networks_cost_the_same() -> None:
    cost = {kind: vit_or_cnn.flop(*network) for kind, network in vit_or_cnn.networks().items()}
    assert set(cost) == set(vit_or_cnn.KINDS) and max(cost.values()) < 1.1 * min(cost.values())


def test_panoptic_tallies_are_the_judges() -> None:
    rng = torch.Generator().manual_seed(0)
    said, there = [], []
    for _ in range(6):
        at, size = torch.rand(2, 3, 2, generator=rng) * 0.2 + torch.tensor([0.2, 0.5, 0.8])[None, :, None] - 0.1, torch.full((3, 2), 0.2)
        boxes = [panoptic.filled(torch.cat([one, size], 1), 32) for one in at]
        apart = [one & (one.cumsum(0) == 1) for one in boxes]
        said.append(panoptic.told(boxes[0] if len(said) % 2 else apart[1], torch.tensor([0, 1, 2])))
        there.append(panoptic.told(apart[1], torch.tensor([0, 1, 2])))
    found = panoptic.qualities(said, there, 10, 0)  # asks the judge, too
    assert 0 < found["things"]["PQ"]["value"] < 1 and found["things"]["PQ"]["low"] <= found["things"]["PQ"]["high"]
    perfect = panoptic.qualities(there, there, 3, 0)
    assert all(one["value"] == pytest.approx(1) for part in perfect.values() for one in part.values())
    assert panoptic.filled(torch.tensor([[0.5, 0.25, 0.5, 0.25]]), 8)[0].nonzero().amin(0).tolist() == [1, 2]  # row 1..2, column 2..5


def test_only_the_mask_head_learns_and_as_in_detect() -> None:
    """The losses are those of the whole task, on fewer queries; what the detector says does not change."""
    torch.manual_seed(0)
    detector = detr.DETR(dataclasses.replace(detr.SIZES["tiny"], num_heads=8))
    panel = panoptic.with_head(detector, 0)
    prompts = tuple(Prompt(truth=scene, boxes_N5=scenes.boxes(scene)) for scene in (scenes.random_scene(draws(0, i)) for i in range(3)))
    images = torch.from_numpy(np.stack([scenes.render(p.truth, 32) for p in prompts])).permute(0, 3, 1, 2).float() / 127.5 - 1
    batch = Batch(index=(0, 1, 2), images_BCHW=images, prompts=prompts)
    rng = Rng.of_seeds([0, 1, 2])
    few, whole = (kind(panel, masks=scenes.masks).losses(batch, "main", 0, rng) for kind in (panoptic.MatchedMasks, detr.Detect))
    for name in ("focal", "dice"):
        torch.testing.assert_close(few[name], whole[name])
    few["loss"].backward()
    assert {name.partition(".")[0] for name, p in panel.named_parameters() if p.grad is not None} == {"mask_head"}
    assert torch.equal(panel.detect(images)[1], detector.detect(images)[1])
    read = panoptic.read(panel(images), 32)
    assert len(read["masks"]) == 3 and all(one.classes[-1] == panoptic.GROUND for way in read.values() for one in way)


def test_labels_of_pairs_and_of_their_parts() -> None:
    batch = words_or_labels.Shown().batch(0, 0, 8)
    assert words_or_labels.HELD.sum() == 12
    for prompt in batch.prompts:
        color, shape = words_or_labels.PAIRS[prompt.label or 0]
        assert color in prompt.text and shape in prompt.text and not words_or_labels.HELD[prompt.label or 0]
    assert words_or_labels.asked(1, 0).shape == (80, 3, 64, 64)
    size = {"image_size": 64, "patch_size": 16, "width": 32, "depth": 1}
    tower = catalog.build("vision", "clip", size, condition=ConditionSpec(pooled=8))
    for two_heads, width in ((False, 80), (True, 18)):
        task = words_or_labels.Labels(copy.deepcopy(tower), two_heads)
        task.losses(batch, "main", 0, Rng.of_samples(0, batch.index))["loss"].backward()
        assert task.head.out_features == width and all(p.grad is not None for p in task.trainable("main").values())
        with torch.no_grad():
            task.head.weight.zero_()
            task.head.bias.zero_()
            task.head.bias[[3, 10 + 2] if two_heads else [8 * 3 + 2]] = 1
        assert set(task.says(torch.zeros(2, 3, 64, 64)).tolist()) == {8 * 3 + 2}
    right = words_or_labels.measure(lambda x: torch.arange(len(x)) // 2, torch.zeros(160, 3, 1, 1), 2)
    assert right["unseen"]["pair"]["value"] == right["shown"]["shape"]["value"] == 1 and right["unseen"]["as_shown"] == 0


def test_unicode_groups_are_read_and_ideas_kept_apart() -> None:
    text = "# [x] ; no ; no\n[a-cx{1\ufe0f\u20e3}] ;\tLetters\t;\tlow\n[\u270a\ufe0f] ; Hands ; fist\n"
    found = pretraining.parsed(text)
    assert {c: found.get(c) for c in "abcx1\u270a-"} == {**dict.fromkeys("abcx", "Letters"), "1": None, "\u270a": "Hands", "-": None}
    assert found["\U0001f1e8"] == "Flags"
    labels, ideas = [i % 2 for i in range(400)], [str(i // 6) for i in range(400)]
    learnt, asked = pretraining.parted(labels, ideas, 0)
    assert sorted(learnt + asked) == list(range(400)) and len(asked) >= 2 * pretraining.ASKED
    for label in (0, 1):  # within a class no idea is on both sides
        apart = [{ideas[i] for i in some if labels[i] == label} for some in (learnt, asked)]
        assert apart[0] and not apart[0] & apart[1]


def test_fine_tuning_leaves_what_it_began_from() -> None:
    torch.manual_seed(0)
    encoder = mae.MAE(mae.SIZES["tiny"])
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    label = torch.arange(2).repeat(8)
    images = (2.0 * label - 1)[:, None, None, None] * torch.ones(16, 3, 16, 16) * 0.8
    said = pretraining.tuned(encoder, images, label, images, 60, 0)
    assert torch.equal(said, label)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_places_are_told_as_each_arm_says() -> None:
    """Without places it does not matter where things stand in the map; at the input alone the decoder's keys have none."""

    def heard(arm: str) -> tuple[Any, list[torch.Tensor]]:
        torch.manual_seed(0)
        panel = catalog.build("vision", "detr", dict(detr_positions.SMALL), size="scenes")
        detr_positions.told(panel, arm)
        keys: list[torch.Tensor] = []
        for layer in (panel.encoder[1].attention, panel.decoder[1].cross):
            layer.register_forward_hook(lambda module, args, out: keys.extend([args[1] - args[2]]))  # keys without values: places
        with torch.no_grad():
            panel(torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 2 - 1)
        return panel, keys

    two, one = heard("2-D")[1], heard("1-D")[1]
    sines = detr.sines(detr.shares(torch.ones(1, 8, 8, dtype=torch.bool), 0.5), 64, 20.0).flatten(1, 2)
    for place in two:
        torch.testing.assert_close(place, sines, atol=1e-5, rtol=0)
    assert all(place.shape == (1, 64, 64) and len(place[0].round(decimals=3).unique(dim=0)) == 64 for place in one)
    for arm in ("values", "input only", "none"):
        assert all(not place.any() for place in heard(arm)[1]), arm

    def shifted(arm: str) -> bool:
        """Does the encoder say the same of a map whose places are exchanged?"""
        panel, _ = heard(arm)
        maps = torch.randn(1, 64, 8, 8, generator=torch.Generator().manual_seed(2))
        panel.project, panel.backbone.pyramid = torch.nn.Identity(), lambda pixels: [pixels]
        with torch.no_grad():
            there, back = (panel._encode(some, None)[2] for some in (maps, maps.roll((2, 3), (2, 3))))
        return torch.allclose(there.roll((2, 3), (2, 3)), back, atol=1e-5)

    assert [arm for arm in detr_positions.ARMS if shifted(arm)] == ["none"]


def test_steps_are_fitted_to_minutes(tmp_path: Path) -> None:
    """A few steps of each arm in turn; what takes twice the time gets half the steps."""
    tried: list[tuple[float, int]] = []

    def arm(seconds: float) -> Callable[[int, Path], minutes.Clock]:
        def run(steps: int, folder: Path) -> minutes.Clock:
            tried.append((seconds, steps))
            clock = minutes.Clock("x")
            clock.worked = [0.0, 100.0, *(100 + seconds * (i + 1) for i in range(steps))]  # the first warms up
            return clock

        return run

    found = minutes.fit(1, {"slow": arm(2.0), "fast": arm(1.0)}, few=3, rounds=2)
    assert found == {"slow": 30, "fast": 60} and tried == [(2.0, 3), (1.0, 3)] * 2
    recipe = Recipe(name="x", panel="vision", family=Family(name="vit", size="tiny"), batch=2, ema=0.0, compile=False)
    labels = vit_or_cnn.Labelled(torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.arange(4))
    assert sorted(labels.batch(0, 0, 4).keys) == list("0123") and bool((vit_or_cnn.as_float(labels.images_NCHW) == -1).all())
    result, clock = minutes.trained(minutes.of_steps(recipe, 3), tmp_path / "run", "x", data=labels)
    assert result.step == 3 and len(clock.at) == 4 and clock.minutes > 0 and clock.seconds_a_step > 0
    assert minutes.told(3, [3.04, 5.0])[0].endswith("(taken: 3.0-5.0)") and "3 分钟" in minutes.told(3, [3.0])[1]
