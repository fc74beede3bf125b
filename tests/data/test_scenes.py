"""What a scene says is what it shows, and what is held out is neither said nor shown."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from triptych import data
from triptych.data import graph as G
from triptych.data import scenes as S
from triptych.data.index import draws
from triptych.recipe import Data, Source


def spec(size: int = 32, **options) -> Data:
    return Data(sources=(Source(name="scenes", options={"cutouts": False, **options}),), size=size)


def thing(color: str | None, shape: str, cx: float = 0.5, cy: float = 0.5, size: str = "medium") -> S.Object:
    return S.Object(shape=shape, color=color, size=size, cx=cx, cy=cy, r=6 / 32)


def test_truth_is_in_the_picture():
    rng = draws("truth")
    for _ in range(200):
        scene = S.random_scene(rng)
        picture, masks = S.render(scene, 64).astype(int), S.masks(scene, 64)
        assert masks.sum(axis=0).max() == 1  # no overlap
        for item, mask in zip(scene.objects, masks, strict=True):
            wanted = np.array(S.COLORS[item.color][0])
            assert np.abs(np.median(picture[mask], axis=0) - wanted).max() <= 2
            if item.shape != "ring":
                assert np.abs(picture[int(item.cy * 64), int(item.cx * 64)] - wanted).max() <= 2
        assert np.median(picture[~masks.any(axis=0)]) == 255
        if scene.relation:
            a, b = scene.objects
            further = {"left": b.cx - a.cx, "right": a.cx - b.cx, "above": b.cy - a.cy, "below": a.cy - b.cy}[scene.relation]
            assert further >= a.r + b.r


def test_boxes_are_tight():
    rng = draws("boxes")
    for _ in range(50):
        scene = S.random_scene(rng)
        for row, mask, item in zip(S.boxes(scene), S.masks(scene, 256), scene.objects, strict=True):
            ys, xs = np.nonzero(mask)
            found = np.array([(xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2, np.ptp(xs) + 1, np.ptp(ys) + 1]) / 256
            assert S.CLASSES[int(row[0])] == item.shape
            assert np.abs(found - row[1:].numpy()).max() < 2.5 / 256


def test_large_picture_is_the_small_one_with_more_detail():
    rng = draws("sides")
    for _ in range(40):
        scene = S.random_scene(rng)
        large, small = S.render(scene, 256).astype(float), S.render(scene, 32).astype(float)
        assert np.abs(large.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3)) - small).mean() < 1.5
    for side in (32, 48, 64, 100, 512):
        assert S.render(scene, side).shape == (side, side, 3)


def test_twenty_thousand_training_scenes_hold_nothing_held_out():
    source = data.build(spec(0)).sources[0]
    pairs, seen_pairs, seen_numbers, relations = G.held_out_pairs(), set(), set(), set()
    held_numbers = {(shape, n) for shape in S.SHAPES for n in (2, 3, 4) if G._number_held_out(shape, n)}
    for position in range(20_000):
        scene = source.scene(11, position)
        assert not S.is_held_out(scene)
        seen_pairs |= {(item.color, item.shape) for item in scene.objects}
        seen_numbers |= {(item.shape, n) for item, n in scene.groups() if n > 1}
        if scene.relation:
            a, b = scene.objects
            relations.add((a.color, a.shape, scene.relation, b.color, b.shape))
    assert len(pairs) == 12 and not seen_pairs & pairs and len(seen_pairs) == 68
    assert held_numbers and not seen_numbers & held_numbers and len(seen_numbers) == 24 - len(held_numbers)
    assert {c for c, _ in seen_pairs} == set(S.COLORS) and {s for _, s in seen_pairs} == set(S.SHAPES)
    held = [p.truth for p in S.two_object_prompts(200, held_out=True)]
    assert not {(s.objects[0].color, s.objects[0].shape, s.relation, s.objects[1].color, s.objects[1].shape) for s in held} & relations


def test_the_other_way_round_is_the_same_relation():
    rng = draws("mirror")
    for _ in range(300):
        scene = S.random_scene(rng, form="relation")
        a, b = scene.objects
        mirrored = S.Scene(objects=(b, a), relation=G.OPPOSITE[scene.relation])
        assert not S.is_held_out(mirrored)


def test_named_examples_are_shown_in_training():
    assert not S.is_held_out(S.Scene(objects=(thing("blue", "circle"), thing("red", "square")), relation="left"))
    assert not S.is_held_out(S.Scene(objects=tuple(thing("green", "triangle", cx) for cx in (0.2, 0.5, 0.8))))


def test_held_out_split_holds_only_held_out():
    source = data.build(spec(0), split="held_out").sources[0]
    assert all(S.is_held_out(source.scene(0, i)) for i in range(300))


def test_with_all_compositions_nothing_is_held_out_and_the_splits_are_other_draws():
    train, held = (data.build(spec(0, all_compositions=True, form="one"), split=split).sources[0] for split in ("train", "held_out"))
    kinds = [{(s.objects[0].color, s.objects[0].shape) for s in map(lambda i, of=of: of.scene(0, i), range(2000))} for of in (train, held)]
    assert kinds[0] == kinds[1] == {(color, shape) for color in S.COLORS for shape in S.SHAPES} and kinds[0] > G.held_out_pairs()
    assert all(train.scene(0, i) != held.scene(0, i) for i in range(100))


def test_phrases():
    a, b = thing("blue", "circle", 0.2), thing("red", "square", 0.8)
    scene = S.Scene(objects=(a, b), relation="left")
    english, chinese = S.captions(scene, "en"), S.captions(scene, "zh")
    assert {"a blue circle left of a red square", "a red square with a blue circle to its left"} <= set(english)
    assert "红色方块左边有一个蓝色圆形" in chinese
    assert len(set(english)) == len(english) >= 5 and len(set(chinese)) == len(chinese) >= 5
    three = S.Scene(objects=tuple(thing("green", "triangle", cx) for cx in (0.2, 0.5, 0.8)))
    assert "three green triangles" in S.captions(three, "en") and "三个绿色的三角形" in S.captions(three, "zh")
    assert S.captions(S.Scene(objects=(thing("orange", "star", size="large"),)), "en")[0] == "a large orange star"
    pale = S.Scene(objects=(thing("orange", "star"),), background="pale blue")
    assert S.captions(pale, "en")[0] == "an orange star on a pale blue background"


def test_batch_is_random_access_and_speaks_both_languages():
    dataset = data.build(spec())
    whole, alone = dataset.batch(3, 0, 60), data.build(spec()).batch(3, 2, 20)
    assert alone.keys == whole.keys[40:] and [p.text for p in alone.prompts] == [p.text for p in whole.prompts[40:]]
    assert torch.equal(alone.images_BCHW, whole.images_BCHW[40:])
    assert 15 < sum(p.text.isascii() for p in whole.prompts) < 50
    assert all(p.truth is not None and p.boxes_N5.shape == (len(p.truth.objects), 5) for p in whole.prompts)
    assert all(p.text in S.captions(p.truth, "en") + S.captions(p.truth, "zh") for p in whole.prompts)
    assert dataset.texts(60, seed=3) == [p.text for p in whole.prompts]
    shown = torch.from_numpy(np.stack([S.render(p.truth, 32) for p in whole.prompts])).permute(0, 3, 1, 2)
    assert torch.equal(((whole.images_BCHW + 1) * 127.5).round().byte(), shown)  # never flipped, never cropped


def test_two_object_prompts():
    for held_out in (False, True):
        prompts = S.two_object_prompts(50, held_out)
        assert [p.text for p in prompts] == [p.text for p in S.two_object_prompts(50, held_out)]
        for prompt in prompts:
            a, b = prompt.truth.objects
            assert a.color != b.color and a.shape != b.shape and prompt.truth.relation in S.RELATIONS
            assert S.is_held_out(prompt.truth) == held_out


def test_cutouts_are_of_the_training_split_and_left_out_with_a_note(tmp_path, capsys):
    from pathlib import Path

    from triptych.data.artwork import FONT
    from triptych.data.emoji import load_emoji

    dataset = data.build(spec(cutouts=True, font=str(tmp_path / "none.ttf")))
    assert "fonts-noto-color-emoji" in capsys.readouterr().err
    assert all(item.color for p in dataset.batch(0, 0, 100).prompts for item in p.truth.objects)
    if not Path(FONT).exists():
        pytest.skip("needs fonts-noto-color-emoji and unicode-cldr-core: sudo apt-get install them")
    assert len(S.CUTOUTS) == 40
    emoji = {e.sequence: e for e in load_emoji()}
    secret = {name for e in emoji.values() if e.group != "train" for name in (e.name_en, e.name_zh)}
    for name, (sequence, _, chinese, _) in S.CUTOUTS.items():
        assert emoji[sequence].group == "train" and not {name, chinese} & secret
    prompts = data.build(spec(cutouts=True)).batch(0, 0, 200).prompts
    pairs = {f"{c} {s}" for c in S.COLORS for s in S.SHAPES} & secret
    assert not pairs and any(item.color is None for p in prompts for item in p.truth.objects)
