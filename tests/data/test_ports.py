"""What ports say of a row is a pure function of it, and true."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from triptych import data
from triptych.contracts import Rng
from triptych.data import graph as G
from triptych.data import scenes as S
from triptych.data.ports import PORTS, Hole, class_names, class_of
from triptych.recipe import Data, Recipe, Source, from_mapping, override, to_mapping
from triptych.text_encoders.picture import Config, PicturePort, palette


def spec(*ports: Source, size: int = 32, **options) -> Data:
    return Data(sources=(Source(name="scenes", options={"cutouts": False, **options}),), size=size, ports=ports)


def port(name: str, **options) -> Source:
    return Source(name=name, options=options)


DEGRADATIONS = ("area", "noise", "blur", "bsr")
EVERY = [port(name) for name in PORTS] + [port("low_resolution", degradation=how) for how in DEGRADATIONS]


@pytest.mark.parametrize("one", EVERY, ids=lambda one: f"{one.name}-{one.options.get('degradation', '')}")
def test_a_port_is_a_function_of_row_seed_and_number(one: Source) -> None:
    whole, again = data.build(spec(one)), data.build(spec(one))
    batch = whole.batch(5, 1, 6)
    plain, other = data.build(spec()).batch(5, 1, 6), whole.batch(6, 1, 6)
    assert torch.equal(batch.images_BCHW, plain.images_BCHW) and batch.keys == plain.keys  # the picture is the same, and so is its name
    changed = set()
    for i, (said, bare) in enumerate(zip(batch.prompts, plain.prompts, strict=True)):
        alone = again.row(5, 6 + i).prompt
        assert said.text == bare.text and said.truth == bare.truth
        for field in ("label", "boxes_N5", "image_CHW", "mask_1HW"):
            here, there, before = getattr(said, field), getattr(alone, field), getattr(bare, field)
            assert here == there if not isinstance(here, torch.Tensor) else torch.equal(here, there), field
            if isinstance(here, torch.Tensor):
                assert here.dtype == torch.float32
            if here is not before and not (isinstance(here, torch.Tensor) and before is not None and torch.equal(here, before)):
                changed.add(field)
    assert changed == {"label": {"label"}, "boxes": {"boxes_N5"}, "hole": {"image_CHW", "mask_1HW"}}.get(one.name, {"image_CHW"})
    assert len(other.prompts) == 6
    held = data.build(spec(one), split="held_out").examples(4)
    assert all(G.is_held_out(prompt.truth) for prompt in held.prompts) and len({p.text for p in held.prompts}) > 1
    assert data.contact_sheet(batch, 3).size[0] > 100
    assert data.describe(spec(one))["ports"] == [{"name": one.name, "options": dict(one.options)}]


def test_classes_are_those_of_the_truth() -> None:
    batch = data.build(spec(port("label"), form="one")).batch(0, 0, 40)
    assert all(len(p.truth.objects) == 1 and S.CLASSES[p.label] == p.truth.objects[0].shape for p in batch.prompts)
    both = data.build(spec(port("label", of="color shape"), port("boxes"))).batch(0, 0, 40)
    names = class_names("color shape")
    for prompt in both.prompts:
        first, *_ = prompt.truth.objects
        assert names[prompt.label].split("|")[0] == f"{first.color} {first.shape}"
        assert [names[int(k)].split("|")[0] for k in prompt.boxes_N5[:, 0]] == [f"{t.color} {t.shape}" for t in prompt.truth.objects]
        assert torch.equal(prompt.boxes_N5[:, 1:], S.boxes(prompt.truth)[:, 1:])
    assert len(class_names()) == 48 and class_names()[8] == "cat|猫" and len(class_names(cutouts=False)) == 8
    cat = S.Object(shape="cat", color=None, size="medium", cx=0.5, cy=0.5, r=0.2)
    assert class_of(cat) == 8 and names[class_of(cat, "color shape")] == "cat|猫" and len(names) == 120


@pytest.mark.parametrize("form", ["one", "number", "relation", "list"])
def test_scenes_of_one_form(form: str) -> None:
    for prompt in data.build(spec(form=form)).batch(0, 0, 30).prompts:
        groups, scene = prompt.truth.groups(), prompt.truth
        found = "relation" if scene.relation else "list" if len(groups) > 1 else "number" if groups[0][1] > 1 else "one"
        assert found == form
    with pytest.raises(ValueError, match="did you mean 'one'"):
        data.build(spec(form="ones"))


@pytest.mark.parametrize("of", ["shape", "color shape"])
def test_a_map_is_read_as_it_was_painted(of: str) -> None:
    batch = data.build(spec(port("semantic_map", of=of), size=64)).batch(0, 0, 12)
    reader = PicturePort(Config(kind="semantic", num_classes=1 + len(class_names(of)), size=16))
    for prompt in batch.prompts:
        classes = reader.classes(prompt.image_CHW).argmax(0).numpy()
        wanted = np.zeros((64, 64), dtype=int)
        for thing, mask in zip(prompt.truth.objects, S.masks(prompt.truth, 64), strict=True):
            wanted[mask] = 1 + class_of(thing, of)
        assert (classes == wanted).all() and wanted.any()
    colors = palette(256).int()
    assert len({tuple(c) for c in colors.tolist()}) == 256 and colors[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]


def test_small_pictures_are_the_large_ones_spoilt() -> None:
    large = data.build(spec(size=64)).batch(0, 0, 24).images_BCHW
    exact = torch.nn.functional.avg_pool2d(large, 4)
    error = {}
    for how in DEGRADATIONS:
        batch = data.build(spec(port("low_resolution", degradation=how), size=64)).batch(0, 0, 24)
        small = torch.stack([prompt.image_CHW for prompt in batch.prompts])
        assert small.shape == (24, 3, 16, 16) and small.abs().max() <= 1
        error[how] = (small - exact).abs().mean().item()
    assert error["area"] == 0 and 0 < error["blur"] < error["bsr"] < 0.3 and 0 < error["noise"] < 0.1


@pytest.mark.parametrize(
    "options", [{"rectangles": 1.0}, {"rectangles": 0.0, "thick": 0.0}, {"rectangles": 0.0, "thick": 1.0}, {"share": (0.05, 0.1)}]
)
@pytest.mark.parametrize("size", [16, 64])
def test_holes_have_the_share_that_was_asked(size: int, options: dict) -> None:
    hole = Hole(size=size, **options)
    shares = [hole.mask(Rng.of_seeds([seed])).mean() for seed in range(60)]
    least, most = hole.share
    assert least <= min(shares) and max(shares) <= most and np.ptp(shares) > 0.5 * (most - least)


def test_a_hole_keeps_the_picture() -> None:
    batch = data.build(spec(port("hole"))).batch(0, 0, 4)
    for image, prompt in zip(batch.images_BCHW, batch.prompts, strict=True):
        assert torch.equal(prompt.image_CHW, image) and set(prompt.mask_1HW.unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (port("labels"), "did you mean 'label'"),
        (port("label", off="shape"), "did you mean 'of'"),
        (port("label", of="shapes"), "did you mean 'shape'"),
        (port("low_resolution", factor=5), "a divisor of the pictures' side 32"),
        (port("low_resolution", degradation="bst"), "did you mean 'bsr'"),
        (port("low_resolution", noise=3), "they are in"),
        (port("hole", share=(0.5, 0.1)), "the least and the most"),
        (Source(name="hole", weight=2), "leave the weight out"),
    ],
)
def test_wrong_ports_are_named(one: Source, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        data.build(spec(one))


def test_ports_that_have_nothing_to_read() -> None:
    for name in ("semantic_map", "low_resolution", "hole"):
        with pytest.raises(ValueError, match=r"data\.size is 0"):
            data.build(spec(port(name), size=0))
    assert data.build(spec(port("label"), size=0)).batch(0, 0, 2).prompts[0].label is not None
    texts = Data(sources=(Source(name="texts", options={"emoji_share": 0.0}),), size=0, ports=(port("label"),))
    with pytest.raises(ValueError, match="reads the graph of a scene"):
        data.build(texts).row(0, 0)


def test_a_recipe_says_its_ports() -> None:
    made = from_mapping({"name": "x", "panel": "generators", "family": {"name": "dit"}, "data": {"ports": [{"name": "label"}]}})
    assert made.data.ports == (Source(name="label"),) and from_mapping(to_mapping(made)) == made
    changed = override(made, ["data.ports.0.options.of=color shape"])
    assert isinstance(changed, Recipe) and changed.data.ports[0].options == {"of": "color shape"}
    with pytest.raises(ValueError, match="did you mean 'options'"):
        from_mapping({**to_mapping(made), "data": {"ports": [{"name": "label", "option": {}}]}})
