"""The object judge with a detector that reads the truth, and with the ways in which pictures go wrong."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.contracts import Prompt
from triptych.data import graph, scenes
from triptych.data.graph import Object, Scene
from triptych.data.index import draws
from triptych.judges.objects import Config, Objects, Seen

PAIRS = [(shape, color) for shape in graph.SHAPES for color in graph.COLORS] + [(name, None) for name in graph.CUTOUTS]
PALETTE = {name: rgb for name, (rgb, _) in graph.COLORS.items()}


def thing(shape: str, color: str | None, cx: float = 0.3, cy: float = 0.5, r: float = 0.12) -> Object:
    return Object(shape=shape, color=color, size="medium", cx=cx, cy=cy, r=r)


class Reads:
    """A detector that is told what is in each picture."""

    name = "told"

    def __init__(self, classes: Sequence[Any], told: Sequence[Sequence[Object]], doubled: bool = False) -> None:
        self.classes, self.told, self.doubled = list(classes), list(told), doubled

    def detect(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        queries = 12
        logits = torch.zeros(len(images_BCHW), queries, len(self.classes) + 1)
        logits[..., -1] = 8.0
        boxes = torch.full((len(images_BCHW), queries, 4), 0.5)
        for i in range(len(images_BCHW)):
            for q, one in enumerate(self.told.pop(0)):
                key = (one.shape, one.color) if isinstance(self.classes[0], tuple) else one.shape
                for slot in (q, q + 6) if self.doubled else (q,):
                    logits[i, slot, self.classes.index(key)] = 12.0 if slot == q else 11.0
                    boxes[i, slot] = torch.tensor([one.cx, one.cy, 2 * one.r, 2 * one.r]) + (0.01 if slot != q else 0)
        return logits, boxes


def verdict(asked: Scene, there: Sequence[Object]) -> dict[str, bool]:
    judge = Objects(Config(), eyes=Reads(PAIRS, [there]), classes=PAIRS)
    judge.add(torch.zeros(1, 3, 32, 32), [Prompt(text="x", truth=asked)])
    return {task: right for task, right in judge.verdicts[0].items() if task not in ("read", "exact en")}


RED, BLUE = thing("circle", "red", 0.2), thing("square", "blue", 0.8)
BESIDE = Scene(objects=(RED, BLUE), relation="left")


@pytest.mark.parametrize(
    ("asked", "there", "right", "wrong"),
    [
        (Scene(objects=(RED,)), [RED], {"exact", "one object", "colours"}, set()),
        (Scene(objects=(RED,)), [thing("circle", "blue")], {"one object"}, {"exact", "colours"}),
        (Scene(objects=(RED,)), [RED, BLUE], set(), {"exact", "one object", "colours"}),
        (Scene(objects=(RED,)), [], set(), {"exact", "one object", "colours"}),
        (Scene(objects=(thing("cat", None),)), [thing("cat", None)], {"exact", "one object"}, set()),
        (BESIDE, [BLUE, RED], {"exact", "two objects", "position", "attribute binding"}, set()),
        (BESIDE, [RED], set(), {"exact", "two objects", "position", "attribute binding"}),
        (  # colours exchanged: the things and their places are right
            BESIDE, [thing("circle", "blue", 0.2), thing("square", "red", 0.8)],
            {"two objects", "position"}, {"exact", "attribute binding"},
        ),
        (  # places exchanged
            BESIDE, [thing("circle", "red", 0.8), thing("square", "blue", 0.2)],
            {"two objects", "attribute binding"}, {"exact", "position"},
        ),
        (  # of one shape: their colours tell them apart
            Scene(objects=(RED, thing("circle", "blue", 0.8)), relation="left"),
            [thing("circle", "blue", 0.2), thing("circle", "red", 0.8)],
            {"attribute binding"}, {"exact", "position"},
        ),
        (
            Scene(objects=tuple(thing("star", "red", x) for x in (0.2, 0.5, 0.8))), [thing("star", "red", x) for x in (0.2, 0.8)],
            set(), {"exact", "counting", "colours"},
        ),
        (
            Scene(objects=tuple(thing("star", "red", x) for x in (0.2, 0.8))),
            [thing("star", "red", 0.2), thing("star", "pink", 0.8)],
            {"counting"}, {"exact", "colours"},
        ),
    ],
)  # fmt: skip
def test_tasks(asked: Scene, there: Sequence[Object], right: set[str], wrong: set[str]) -> None:
    assert verdict(asked, there) == {**dict.fromkeys(right, True), **dict.fromkeys(wrong, False)}


@pytest.mark.parametrize("relation", graph.RELATIONS)
def test_each_relation_holds_in_scenes_that_were_drawn_for_it(relation: str) -> None:
    rng, seen = draws(0, "test"), 0
    while seen < 10:
        scene = graph.random_scene(rng, form="relation")
        if scene.relation != relation:
            continue
        seen += 1
        assert verdict(scene, scene.objects)["position"]
        turned = [dataclasses.replace(one, cx=1 - one.cx, cy=1 - one.cy) for one in scene.objects]
        assert not verdict(scene, turned)["position"]


def world(n: int) -> list[Prompt]:
    rng = draws(1, "test")
    made = [graph.random_scene(rng) for _ in range(n)]
    return [Prompt(text=scenes.captions(scene, "zh" if i % 2 else "en")[0], truth=scene) for i, scene in enumerate(made)]


def test_scores_ceilings_and_languages() -> None:
    prompts = world(60)
    true = [prompt.truth.objects for prompt in prompts]
    spoiled = [objects[1:] if i < 15 else objects for i, objects in enumerate(true)]  # the first fifteen lack an object
    judge = Objects(Config(), eyes=Reads(PAIRS, [*spoiled[:40], *true[:40], *spoiled[40:], *true[40:]], doubled=True), classes=PAIRS)
    for rows in (slice(0, 40), slice(40, 60)):
        blank = torch.zeros(len(prompts[rows]), 3, 32, 32)
        judge.add(blank, prompts[rows], blank)
    found = judge.result()
    assert found["n"] == found["n_real"] == 60
    assert found["exact"] == pytest.approx(45 / 60) and found["exact_low"] < 0.75 < found["exact_high"]
    assert found["exact_ceiling"] == found["read_ceiling"] == found["mean_ceiling"] == 1
    assert found["exact en_n"] == found["exact zh_n"] == 30
    assert (found["exact en"] + found["exact zh"]) / 2 == pytest.approx(0.75)
    tasks = ["one object", "two objects", "counting", "colours", "position", "attribute binding"]
    assert found["mean"] == pytest.approx(sum(found[task] for task in tasks) / 6) and all(found[f"{task}_n"] > 3 for task in tasks)


def test_colours_are_read_from_pixels_where_the_detector_says_none() -> None:
    prompts = [p for p in world(150) if all(one.color is not None for one in p.truth.objects)]
    pictures = torch.stack([torch.as_tensor(scenes.render(p.truth, 64).copy()) for p in prompts]).permute(0, 3, 1, 2) / 127.5 - 1
    judge = Objects(Config(), eyes=Reads(list(graph.CLASSES), [p.truth.objects for p in prompts]), classes=graph.CLASSES, palette=PALETTE)
    judge.add(pictures, prompts)
    assert judge.result()["exact"] >= 0.99
    wrong = Objects(Config(), eyes=Reads(list(graph.CLASSES), [p.truth.objects for p in prompts]), classes=graph.CLASSES, palette=PALETTE)
    wrong.add(pictures[:, [1, 2, 0]], prompts)  # other colours, same shapes
    assert wrong.result()["exact"] < 0.25 and wrong.result()["counting"] == 1


def test_weak_and_doubled_detections_do_not_count() -> None:
    judge = Objects(Config(), eyes=Reads(PAIRS, [[RED, BLUE]], doubled=True), classes=PAIRS)
    (seen,) = judge.read(torch.zeros(1, 3, 32, 32))
    assert {one.kind for one in seen} == {("circle", "red"), ("square", "blue")} and len(seen) == 2 and isinstance(seen[0], Seen)
    judge = Objects(Config(threshold=0.999), eyes=Reads(PAIRS, [[RED]]), classes=PAIRS)
    assert judge.read(torch.zeros(1, 3, 32, 32)) == [[]]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="palette"):
        Objects(Config(), eyes=Reads(list(graph.CLASSES), []), classes=graph.CLASSES)
    judge = Objects(Config(), eyes=Reads(PAIRS, [[RED]]), classes=PAIRS[:-1])
    with pytest.raises(ValueError, match="120 classes, 119 were named"):
        judge.read(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="no scene as truth"):
        judge.add(torch.zeros(1, 3, 32, 32), [Prompt(text="a red circle")])


def test_colours_that_the_eyes_tell() -> None:
    names = [*graph.SHAPES, *graph.CUTOUTS]
    colors = tuple(graph.COLORS)

    class Tells(Reads):
        def colors(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            there = list(self.told[: len(images_BCHW)])
            logits, boxes = self.detect(images_BCHW)
            said = torch.zeros(*logits.shape[:2], len(colors) + 1)
            for i, objects in enumerate(there):
                for q, one in enumerate(objects):
                    said[i, q, len(colors) if one.color is None else colors.index(one.color)] = 5.0
            return logits, boxes, said

    cat = thing("cat", None, 0.8)
    judge = Objects(Config(), eyes=Tells(names, [[RED, cat], [thing("circle", "blue", 0.2), cat]]), classes=names, colors=colors)
    asked = Prompt(text="x", truth=Scene(objects=(RED, cat), relation="left"))
    judge.add(torch.zeros(2, 3, 32, 32), [asked, asked])
    assert judge.each() == {"exact": [1.0, 0.0]}
