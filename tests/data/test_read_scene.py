"""What a scene says can be read back, in every phrasing; and what is read is placed as it says."""

from __future__ import annotations

from collections import Counter

import pytest

from triptych.data import graph as G
from triptych.data.index import draws
from triptych.data.phrases import captions
from triptych.data.read_scene import Said, Thing, read, scene_of


def meaning(scene: G.Scene) -> tuple:
    """Groups, relation ("a right of b" is "b left of a") and background."""
    relation = None
    if scene.relation:
        (a, b), how = scene.objects, scene.relation
        if how in ("right", "below"):
            a, how, b = b, G.OPPOSITE[how], a
        relation = (a.kind, how, b.kind)
    return Counter(thing.kind for thing in scene.objects), relation, scene.background


def test_every_phrasing_of_two_thousand_scenes_is_read_back() -> None:
    rng, seen = draws("read back"), Counter()
    for i in range(2000):
        scene = G.random_scene(rng, i % 4 == 0, cutouts=tuple(G.CUTOUTS), backgrounds=0.4)
        for language in ("en", "zh"):
            for k, text in enumerate(captions(scene, language)):
                found = scene_of(text, i)
                assert found is not None and meaning(found) == meaning(scene), text
                seen[language, scene.relation, len(scene.groups()) > 1, len(scene.objects) > 1, k] += 1
    # per language: 4 phrasings of one thing, 4 of a number, 3 or 4 lists; 7 or 6 of each relation in English, 7 in Chinese
    assert len(seen) == (4 + 4 + 3 + 2 * 7 + 2 * 6) + (4 + 4 + 4 + 4 * 7)


def test_what_is_read_is_placed_as_a_scene_is() -> None:
    rng = draws("placed")
    for i in range(300):
        wanted = G.random_scene(rng, cutouts=tuple(G.CUTOUTS))
        scene = scene_of(captions(wanted, "en")[i % 3], i)
        assert scene is not None
        for thing in scene.objects:
            low, high = G.SIZES[thing.size]
            assert low <= 2 * thing.r * G.GRID <= high
            assert thing.r < thing.cx < 1 - thing.r and thing.r < thing.cy < 1 - thing.r
        for k, a in enumerate(scene.objects):
            assert all(max(abs(a.cx - b.cx), abs(a.cy - b.cy)) > a.r + b.r for b in scene.objects[:k]), "they overlap"
        if scene.relation:
            assert G._stands(*scene.objects) == scene.relation


def test_one_seed_one_scene() -> None:
    assert scene_of("a circle and a cat", 3) == scene_of("a circle and a cat", 3)
    assert len({scene_of("a circle", seed) for seed in range(20)}) > 10  # other places, other colours


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A Big red circle OVER the grey box", Said(
            things=(Thing(shape="circle", color="red", size="large"), Thing(shape="square", color="gray")), relation="above")),
        ("on the left a cat, on the right a dog", Said(
            things=(Thing(shape="cat", color=None), Thing(shape="dog", color=None)), relation="left")),
        ("above a red ring there is a blue star", Said(
            things=(Thing(shape="star", color="blue"), Thing(shape="ring", color="red")), relation="above")),
        ("在猫的左边有一只狗", Said(things=(Thing(shape="dog", color=None), Thing(shape="cat", color=None)), relation="left")),
        ("一只猫头鹰和两头大象", Said(things=(Thing(shape="owl", color=None), Thing(shape="elephant", color=None, count=2)))),
        ("红色的圆", Said(things=(Thing(shape="circle", color="red"),))),
        ("5 orange stars on a Pale Blue background", Said(things=(Thing(shape="star", color="orange", count=5),), background="pale blue")),
        ("a red apple beside a category", Said(things=(Thing(shape="apple", color=None),))),
        ("two cats left of a dog", Said(things=(Thing(shape="cat", color=None, count=2), Thing(shape="dog", color=None)))),
    ],
)  # fmt: skip
def test_freer_words_are_read_too(text: str, said: Said) -> None:
    assert read(text) == said


@pytest.mark.parametrize("text", ["", "democracy", "red", "红色", "on a white background", "左边", "42"])
def test_nothing_of_this_world(text: str) -> None:
    assert scene_of(text) is None


def test_what_has_no_room_is_made_smaller_or_refused() -> None:
    scene = scene_of("a large red circle left of a large blue circle")
    assert scene is not None and scene.relation == "left" and {thing.size for thing in scene.objects} == {"large"}
    nine = scene_of("nine large stars")
    assert nine is not None and len(nine.objects) == 9
    with pytest.raises(ValueError, match="500 things"):
        scene_of("500 stars")
