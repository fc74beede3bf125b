"""Panels that hear other things than words: class numbers, boxes, pictures; each beside a real network, trained and drawn with."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.contract.tiny import PROMPTS, awake
from triptych import catalog, checkpoint, data
from triptych.contracts import Condition, ConditionSpec, Prompt, Rng
from triptych.data.ports import class_names
from triptych.pipeline import Generator, TextToImage
from triptych.processes.guidance import ClassifierFree
from triptych.recipe import Data, Source
from triptych.text_encoders import label, layout, picture
from triptych.text_encoders.label import ClassLabel
from triptych.text_encoders.layout import LayoutTransformer, TooManyBoxes
from triptych.text_encoders.picture import PicturePort, palette
from triptych.training import GeneratorTask

FAMILIES = {"label": label, "layout": layout, "picture": picture}
PORTS = {"label": Source(name="label"), "layout": Source(name="boxes", options={"of": "shape"})}
PICTURE_PORTS = {"low_resolution": Source(name="low_resolution"), "semantic": Source(name="semantic_map"), "masked": Source(name="hole")}


def kinds() -> list[tuple[str, Any]]:
    """Each family, each way of a picture, and the panel that says nothing, all for latents of 8 x 8."""
    pictures = [("picture", picture.Config(kind=kind, size=8)) for kind in PICTURE_PORTS]  # type: ignore[arg-type]
    return [("label", label.SIZES["tiny"]), ("label", label.Config()), ("layout", layout.SIZES["tiny"]), *pictures]


def batch(name: str, config: Any, rows: int = 4) -> Any:
    port = PICTURE_PORTS[config.kind] if name == "picture" else PORTS[name]
    return data.build(Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=32, ports=(port,))).batch(0, 0, rows)


def joined(name: str, config: Any, generator: str = "unet") -> tuple[Any, Any, nn.Module]:
    torch.manual_seed(0)
    panel = catalog.build("text_encoders", name, config)
    decoder = catalog.build("decoders", "identity", size="tiny")
    return panel, decoder, awake(catalog.build("generators", generator, size="tiny", latent=decoder.latent, condition=panel.gives))


@pytest.mark.parametrize(("name", "config"), kinds(), ids=str)
def test_a_panel_learns_with_the_generator_and_its_pictures_follow_it(name: str, config: Any) -> None:
    panel, decoder, network = joined(name, config)
    process = catalog.build("processes", "rectified_flow", size="tiny")
    task = GeneratorTask(
        network, neighbours={"text_encoder": panel, "decoder": decoder, "process": process}, dropout=0.3, train_text_encoder=True, cache=4
    )
    shown = batch(name, config)
    optimizer = torch.optim.AdamW(task.trainable("main").values(), lr=5e-3)
    first, reached = None, set()
    for _ in range(25):
        loss = task.losses(shown, "main", 0, Rng.of_samples(0, shown.index))["loss"]
        optimizer.zero_grad()
        loss.backward()
        reached |= {name for name, p in panel.named_parameters() if p.grad is not None and p.grad.any()}
        optimizer.step()
        first = first or loss.item()
    assert loss.item() < 0.8 * first and reached == {name for name, _ in panel.named_parameters()}
    assert task.validate(shown)["loss"].shape == (4,)
    preview = task.preview([Prompt(text="a red circle")], shown)
    assert preview is not None and preview.isfinite().all()

    panel.eval(), network.eval()
    model = TextToImage(panel, Generator(network, process), decoder)
    drawn = [model.latents(shown.prompts, seeds=[0] * 4, steps=3, guidance=scale) for scale in (1.0, 2.0)]
    others = model.latents([*shown.prompts[1:], shown.prompts[0]], seeds=[0] * 4, steps=3, guidance=2.0)
    silent = not panel.gives.num_labels and name == "label"
    assert torch.equal(drawn[1], others) if silent else not torch.allclose(drawn[1], others, atol=1e-4)
    torch.testing.assert_close(drawn[1].roll(-1, 0), others)
    if silent:
        torch.testing.assert_close(drawn[0], drawn[1], atol=1e-5, rtol=1e-5)
    assert len(model.generate(shown.prompts, steps=2, guidance=2.0, exact=True)) == 4


@pytest.mark.parametrize(("name", "config"), kinds(), ids=str)
def test_what_is_said_fits_what_is_promised(name: str, config: Any) -> None:
    panel, decoder, _ = joined(name, config)
    panel.eval()
    shown = batch(name, config, 6)
    with torch.no_grad():
        bare, null = panel.encode([Prompt(text=p.text) for p in PROMPTS]), panel.null(PROMPTS)
        together = panel.encode(shown.prompts, encode_image=decoder.encode, rng=Rng.of_seeds(range(6)))
        turned = panel.encode(shown.prompts[::-1], encode_image=decoder.encode, rng=Rng.of_seeds(range(6)[::-1]))
    promised = {"label_B": panel.gives.num_labels, "tokens_BLD": panel.gives.width, "concat_BCHW": panel.gives.concat}
    wanted = {port for port, size in promised.items() if size}
    for said, rows in ((bare, len(PROMPTS)), (null, len(PROMPTS)), (together, 6)):
        ports = said.ports()
        assert ports.keys() - {"mask_BL"} == wanted and all(len(port) == rows and port.isfinite().all() for port in ports.values())
        if said.concat_BCHW is not None:
            assert said.concat_BCHW.shape[1:] == (panel.gives.concat, 8, 8)
        if said.tokens_BLD is not None:
            assert said.tokens_BLD.shape[1] <= panel.gives.context_length and said.mask_BL.any(1).all()
            assert not said.tokens_BLD[~said.mask_BL].any()
    if name != "label":  # without what they read they say nothing, whatever the words are
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(bare.ports().values(), null.ports().values(), strict=True))
    for i in range(6):
        with torch.no_grad():
            alone = panel.encode(shown.prompts[i : i + 1], encode_image=decoder.encode, rng=Rng.of_seeds([i]))
        for port, value in alone.ports().items():
            length = value.shape[1] if port in ("tokens_BLD", "mask_BL") else None
            for rows, k in ((together, i), (turned, 5 - i)):
                torch.testing.assert_close(getattr(rows, port)[k, :length] if length else getattr(rows, port)[k], value[0])


@pytest.mark.parametrize(("name", "config"), kinds(), ids=str)
def test_saved_and_loaded(name: str, config: Any, tmp_path: Path) -> None:
    panel, decoder, _ = joined(name, config)
    checkpoint.save_panel(
        tmp_path / "model" / "text_encoder", panel, kind="text_encoders", name=name, config=config, card={}, dtype=torch.float32
    )
    again = checkpoint.load_panel(tmp_path / "model", "text_encoder")
    assert again.config == config and again.gives == panel.gives
    prompts = batch(name, config).prompts
    for one, two in zip(*[p.eval().encode(prompts, encode_image=decoder.encode).ports().values() for p in (panel, again)], strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, module in FAMILIES.items() for size in module.SIZES])
def test_every_size_is_built_without_memory(name: str, size: str) -> None:
    with torch.device("meta"):
        panel = catalog.build("text_encoders", name, size=size)
    assert all(tensor.is_meta for tensor in [*panel.parameters(), *panel.buffers()])
    assert isinstance(panel.gives, ConditionSpec) and dataclasses.asdict(panel.config)


# --- class numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "wanted"),
    [
        (Prompt(label=5), "ring"), ("three red circles", "circle"), ("A Heart-shaped thing", "heart"), ("一个红色的三角形", "triangle"),
        ("a cat left of an owl", "cat"), ("owls and cats", "owl"), ("猫头鹰", "owl"), ("two crosses", "cross"), ("a category", None),
        ("starring", None), ("", None), (Prompt(text="a circle", label=7), "ring"), ("soccer balls and a key", "soccer ball"),
    ],
)  # fmt: skip
def test_a_name_in_the_words_is_a_class(said: Prompt | str, wanted: str | None) -> None:
    panel = ClassLabel(label.Config(labels=class_names()))
    if isinstance(said, Prompt):
        assert panel.label_of(said) == said.label
        return
    place = {names.split("|")[0]: k for k, names in enumerate(class_names())}
    found = panel.label_of(said)
    assert found == (48 if wanted is None else place[wanted])


def test_names_of_the_scenes_are_found_in_their_captions() -> None:
    shown = data.build(
        Data(
            sources=(Source(name="scenes", options={"cutouts": False, "form": "one"}),), size=0,
            ports=(Source(name="label", options={"of": "color shape"}),),
        )
    ).batch(0, 0, 300)  # fmt: skip
    panel = ClassLabel(label.Config(labels=class_names("color shape")))
    assert [panel.label_of(p.text) for p in shown.prompts] == [p.label for p in shown.prompts]
    assert panel.null(shown.prompts[:2]).label_B.tolist() == [120, 120]


def test_labels_that_are_no_class_are_named() -> None:
    panel = catalog.build("text_encoders", "label", size="cifar10")
    assert panel.gives == ConditionSpec(num_labels=10) and panel.encode(["a cat", Prompt(label=10)]).label_B.tolist() == [3, 10]
    for wrong in (11, -1):
        with pytest.raises(ValueError, match=rf"label {wrong}: there are 0..9, and 10 for no class"):
            panel.encode([Prompt(label=wrong)])
    with pytest.raises(ValueError, match="holds an empty name"):
        ClassLabel(label.Config(labels=("cat|",)))
    with pytest.raises(ValueError, match="num_labels 1 and 2 names"):
        ClassLabel(label.Config(labels=("cat", "dog"), num_labels=1))


def test_an_empty_condition_passes_everywhere() -> None:
    """An unconditional network has no parameters for a condition, and nothing that counts rows asks a port."""
    panel, decoder, network = joined("label", label.Config(), "dit")
    assert panel.gives == ConditionSpec() and not any("label" in name for name, _ in network.named_parameters())
    empty = panel.encode(PROMPTS)
    for said in (empty, empty.rows([0]), empty.cat([empty, empty]), empty.drop({}, empty), empty.to("cpu", torch.bfloat16)):
        assert said.ports() == {} and isinstance(said, Condition)
    x, clock = torch.randn(3, *decoder.latent.shape), torch.full((3,), 500.0)
    guided = ClassifierFree(network, empty, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[0.0, 1000.0]] * 3))
    with torch.no_grad():
        torch.testing.assert_close(guided(x, clock, empty), network(x, clock, empty), atol=1e-5, rtol=1e-5)
    model = TextToImage(panel, Generator(network, catalog.build("processes", "rectified_flow")), decoder)
    assert len(model.generate(["", "anything"], steps=2, guidance=1.0, negative="noise")) == 2


# --- boxes ----------------------------------------------------------------------------------------------------------------


def test_the_published_transformer_has_its_shapes() -> None:
    """16 layers of width 512 with eight heads: per layer 4 D^2 + D for attention, 8 D^2 + 5 D for the rest, 4 D for norms."""
    with torch.device("meta"):
        panel = catalog.build("text_encoders", "layout", size="LDM")
    D, layers = 512, 16
    assert panel.gives == ConditionSpec(width=512, context_length=92)
    assert sum(p.numel() for p in panel.parameters()) == layers * (12 * D**2 + 10 * D) + (8192 + 92 + 2) * D == 54_656_000
    assert panel.grid == 87
    scenes = LayoutTransformer(layout.SIZES["scenes"])
    assert sum(p.numel() for p in scenes.parameters()) == 157_696 and scenes.gives.context_length == 26


def test_a_box_is_three_words() -> None:
    panel = LayoutTransformer(layout.Config(num_labels=10, vocab=10 + 5 * 5 + 1))  # corners on quarters
    boxes = torch.tensor([[3, 0.5, 0.5, 0.5, 0.5], [9, 0.625, 0.5, 0.75, 1.0]])
    assert panel.ids(None) == panel.ids(boxes[:0]) == [10, 10 + 24]
    assert panel.ids(boxes) == [10, 34, 9, 10 + 1, 34, 3, 10 + 5 + 1, 10 + 15 + 3]  # the larger first
    assert panel.ids(boxes) == panel.ids(boxes.flip(0))
    exact = LayoutTransformer(layout.SIZES["scenes"])
    square = torch.tensor([[1, 0.25, 0.4375, 0.375, 0.375]])  # 12 of 32 wide, at (2, 8)
    assert exact.ids(square)[2:] == [1, 48 + 8 * 33 + 2, 48 + 20 * 33 + 14]


def test_boxes_are_shuffled_in_training_alone_and_by_the_rng_alone() -> None:
    panel = LayoutTransformer(layout.SIZES["tiny"])
    boxes = torch.tensor([[k, 0.2 + 0.1 * k, 0.5, 0.1 + 0.05 * k, 0.3] for k in range(4)])
    prompt = Prompt(boxes_N5=boxes)
    eyes = [panel.eval().encode([prompt], rng=Rng.of_seeds([seed])).tokens_BLD for seed in range(5)]
    assert all(torch.equal(eyes[0], other) for other in eyes)
    seen = [panel.train().encode([prompt], rng=Rng.of_seeds([seed])).tokens_BLD for seed in range(12)]
    assert torch.equal(seen[3], panel.encode([prompt], rng=Rng.of_seeds([3])).tokens_BLD)
    assert len({tuple(one.flatten().tolist()) for one in seen}) > 6
    company = panel.encode([Prompt(boxes_N5=boxes[:1]), prompt], rng=Rng.of_seeds([9, 3])).tokens_BLD[1]
    torch.testing.assert_close(company, seen[3][0])


@pytest.mark.parametrize(
    ("box", "said"),
    [
        ([0, 0.5, 0.5, 1.2, 0.5], "leaves the picture"), ([0, 0.1, 0.5, 0.5, 0.5], "leaves the picture"),
        ([0, float("nan"), 0.5, 0.5, 0.5], "leaves the picture"), ([0, 0.5, 0.5, -0.1, 0.5], "leaves the picture"),
        ([48, 0.5, 0.5, 0.5, 0.5], "class 48"), ([-1, 0.5, 0.5, 0.5, 0.5], "class -1"), ([1.5, 0.5, 0.5, 0.5, 0.5], "class 1.5"),
        ([0, 0.5, 0.5, 0.5], r"the shape \[1, 4\]"),
    ],
)  # fmt: skip
def test_boxes_that_mean_nothing_are_named(box: list[float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LayoutTransformer(layout.SIZES["tiny"]).encode([Prompt(boxes_N5=torch.tensor([box]))])


def test_too_many_boxes_and_too_few_words() -> None:
    panel = LayoutTransformer(layout.SIZES["tiny"]).eval()
    boxes = torch.tensor([[k, 0.5, 0.5, 0.1 * (k + 1), 0.1] for k in range(6)])
    with pytest.warns(TooManyBoxes, match="6 boxes, where 4 are read"):
        assert panel.ids(boxes)[2::3] == [5, 4, 3, 2]
    with pytest.raises(ValueError, match="vocab 50 holds 48 classes and no corners; take 53 or more"):
        LayoutTransformer(layout.Config(vocab=50))
    LayoutTransformer(layout.Config(vocab=53))


# --- pictures -------------------------------------------------------------------------------------------------------------


def test_a_small_picture_is_enlarged_and_a_large_one_averaged() -> None:
    panel = PicturePort(picture.Config(size=16))
    images = [torch.rand(3, n, n) * 2 - 1 for n in (8, 16, 32)]
    said = panel.encode([Prompt(image_CHW=image) for image in images] + ["nothing"]).concat_BCHW
    bicubic = F.interpolate(images[0][None], scale_factor=2, mode="bicubic").clamp(-1, 1)
    assert torch.equal(said[0], bicubic[0]) and torch.equal(said[1], images[1]) and not said[3].any()
    torch.testing.assert_close(said[2], F.avg_pool2d(images[2], 2))
    noisy = PicturePort(picture.Config(size=16, noise=0.5))
    spread = noisy.encode([Prompt(image_CHW=images[1])] * 8, rng=Rng.of_seeds(range(8))).concat_BCHW - images[1]
    assert 0.45 < spread.std() < 0.55 and torch.equal(
        noisy.encode([Prompt(), Prompt(image_CHW=images[1])], rng=Rng.of_seeds([7, 3])).concat_BCHW[1] - images[1], spread[3]
    )
    with pytest.raises(ValueError, match="no rng was given"):
        noisy.encode([Prompt(image_CHW=images[1])])


def test_a_map_is_the_share_of_each_class_mixed() -> None:
    panel = PicturePort(picture.Config(kind="semantic", size=4, num_classes=49, channels=5))
    classes = torch.randint(0, 49, (16, 16), generator=torch.Generator().manual_seed(0))
    painted = palette(49)[classes].permute(2, 0, 1).float()
    for blur in (0, 12):  # a little off the palette's colours
        noisy = (painted + blur * (torch.rand(painted.shape) - 0.5)).clamp(0, 255)
        said = panel.encode([Prompt(image_CHW=noisy / 127.5 - 1)]).concat_BCHW[0]
        shares = F.avg_pool2d(F.one_hot(classes, 49).permute(2, 0, 1).float(), 4)
        torch.testing.assert_close(said, torch.einsum("cv,vhw->chw", panel.mix.weight[:, :, 0, 0], shares))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(panel.classes(noisy / 127.5 - 1).argmax(0), classes)
    with pytest.raises(ValueError, match="cannot be averaged down to 4 x 4"):
        panel.encode([Prompt(image_CHW=torch.zeros(3, 2, 2))])


def test_a_hole_is_grey_before_it_is_encoded() -> None:
    seen = []

    def encode(images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return F.avg_pool2d(images, 4)

    panel = PicturePort(picture.Config(kind="masked", size=4))
    image, mask = torch.rand(3, 16, 16), torch.zeros(1, 16, 16)
    mask[:, 4:10, :8] = 1
    prompt = Prompt(image_CHW=image, mask_1HW=mask)
    said = panel.encode([Prompt(), prompt, replace(prompt, mask_1HW=1 - mask)], encode_image=encode).concat_BCHW
    assert len(seen) == 1 and seen[0].shape == (2, 3, 16, 16)  # pictures of one size together
    assert not seen[0][0][:, 4:10, :8].any() and torch.equal(seen[0].sum(0), image)
    assert said.shape == (3, 4, 4, 4) and not said[0].any()
    assert said[1, 3].tolist() == [[0, 0, 0, 0], [1, 1, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 0]]
    for wrong, message in (
        (replace(prompt, mask_1HW=None), "no mask beside a picture of 16 x 16"),
        (replace(prompt, mask_1HW=mask[:, :8]), r"a mask of \[1, 8, 16\] beside"),
        (replace(prompt, image_CHW=image[0]), r"image_CHW of the shape \[16, 16\]"),
    ):
        with pytest.raises(ValueError, match=message):
            panel.encode([wrong], encode_image=encode)
    with pytest.raises(ValueError, match="as the decoder encodes it"):
        panel.encode([prompt])
    with pytest.raises(ValueError, match=r"the decoder encodes to \[3, 4, 4\], this panel was built for \[4, 4, 4\]"):
        PicturePort(picture.Config(kind="masked", size=4, channels=4)).encode([prompt], encode_image=encode)
    with pytest.raises(ValueError, match="only a low-resolution picture has it"):
        PicturePort(picture.Config(kind="masked", noise=0.1))


def test_published_inputs_of_the_networks() -> None:
    """LDM's U-Nets take 3 + 3 channels for super-resolution and maps, 3 + 4 for inpainting; its map is mixed by 182 x 3 weights."""
    sizes = {size: catalog.build("text_encoders", "picture", size=size) for size in picture.SIZES if size.startswith("LDM")}
    assert [sizes[f"LDM {what}"].gives.concat for what in ("super-resolution", "semantic", "inpainting")] == [3, 3, 4]
    assert sum(p.numel() for p in sizes["LDM semantic"].parameters()) == 182 * 3
