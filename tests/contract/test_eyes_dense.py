"""What the dense eyes promise beyond what every family does: published shapes, Swin's windows, MAE's pictures, DETR's objects."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.joints import vqgan
from triptych import catalog, checkpoint, data
from triptych.contracts import Batch, Prompt, Rng
from triptych.data.graph import CLASSES, COLORS, SHAPES, Object, Scene
from triptych.data.scenes import masks, render
from triptych.recipe import Data, Source
from triptych.vision.detr import DETR, Detect, ink
from triptych.vision.mae import MAE, MaskedPixels, MaskedTokens
from triptych.vision.swin import Swin


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def published(family: str, size: str) -> tuple[Any, float]:
    """The network without memory, and its parameters in millions."""
    with torch.device("meta"):
        network = catalog.build("vision", family, size=size).eval()
    return network, sum(p.numel() for p in network.parameters()) / 1e6


def pictures(count: int, side: int) -> Tensor:
    return torch.zeros(count, 3, side, side, device="meta")


def scenes(count: int, side: int, step: int = 0) -> Batch:
    """Drawn scenes, of shapes alone: no font is needed."""
    return data.build(Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=side)).batch(0, step, count)


# --- as published -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "encoder", "patches", "width", "numbers"),
    [("MAE-B/16", 85.65, 196, 768, 768), ("MAE-L/16", 303.1, 196, 1024, 768), ("MAE-H/14", 630.43, 256, 1280, 588)],
)
def test_mae_as_published(size: str, encoder: float, patches: int, width: int, numbers: int) -> None:
    mae, _ = published("mae", size)
    decoder = mae.decoder
    assert (mae.config.decoder_depth, mae.config.decoder_width, mae.config.decoder_heads) == (8, 512, 16)
    assert len(decoder.blocks) == 8 and all(block.num_heads == 16 for block in decoder.blocks)
    without = sum(p.numel() for p in mae.parameters()) - sum(p.numel() for p in decoder.parameters())
    assert without / 1e6 == pytest.approx(encoder, abs=0.01)  # ViT's 85.8, 303.3, 630.8 less the places, which are not learnt here
    x, noise = pictures(2, 224), torch.zeros(2, patches, device="meta")
    seen, rank = mae.encode(x, noise)
    assert seen.shape == (2, 1 + patches // 4, width) and rank.shape == (2, patches)
    said, hidden = mae.predict(x, noise)
    assert said.shape == (2, patches, numbers) and hidden.shape == (2, patches)
    assert mae.features(x).shape == (2, 1 + patches, width) and mae.pooled(x).shape == (2, width)


@pytest.mark.parametrize(
    ("size", "millions", "width"), [("Swin-T", 28.3, 96), ("Swin-S", 49.6, 96), ("Swin-B", 87.8, 128), ("Swin-L", 196.5, 192)]
)
def test_swin_as_published(size: str, millions: float, width: int) -> None:
    swin, counted = published("swin", size)
    assert counted == pytest.approx(millions, abs=0.06)
    maps = swin.pyramid(pictures(2, 224))
    assert [tuple(m.shape) for m in maps] == [(2, width * 2**i, 56 // 2**i, 56 // 2**i) for i in range(4)]
    assert swin.features(pictures(2, 224)).shape == (2, 49, 8 * width) and swin.classify(pictures(2, 224)).shape == (2, 1000)
    shifts = [block.shift for stage in swin.stages for block in stage]
    assert set(shifts[::2]) == {0} and set(shifts[1::2]) == {3}


@pytest.mark.parametrize(("size", "millions"), [("DETR-R50", 41.5), ("DETR-R101", 60.5)])
def test_detr_as_published(size: str, millions: float) -> None:
    detr, counted = published("detr", size)
    assert counted == pytest.approx(millions, abs=0.5)
    logits, boxes = detr.detect(torch.zeros(1, 3, 800, 1066, device="meta"))
    assert logits.shape == (1, 100, 91 + 1) and boxes.shape == (1, 100, 4)
    assert len(detr.encoder) == len(detr.decoder) == 6 and detr.encoder[0].mlp[0].weight.shape == (2048, 256)


def test_detr_with_masks_as_published() -> None:
    detr, _ = published("detr", "DETR-R50-panoptic")
    seen = detr(torch.zeros(1, 3, 800, 1056, device="meta"))
    assert seen.masks_BQhw.shape == (1, 100, 200, 264)


@pytest.mark.parametrize("name", ["mae", "swin", "detr"])
def test_saved_and_loaded(name: str, tmp_path: Path) -> None:
    made = catalog.build("vision", name, size="tiny").bfloat16().float().eval()  # files hold half precision
    checkpoint.save_panel(tmp_path / "vision", made, kind="vision", name=name, config=made.config, card={})
    read = checkpoint.load_panel(tmp_path, "vision").eval()
    x = torch.randn(2, 3, made.image_size, made.image_size)
    assert read.config == made.config and torch.equal(read.features(x), made.features(x)) and torch.equal(read.pooled(x), made.pooled(x))


# --- Swin ---------------------------------------------------------------------------------------------------------------


def reached(network: Swin, y: int, x: int, blocks: int) -> Tensor:
    """Which patches of the first stage hear of a change at patch (y, x) within so many blocks, bool [H, W]."""

    def shown(pixels: Tensor) -> Tensor:
        maps = network.patch_norm(network.patches(pixels).movedim(1, -1))
        return network.stages[0][:blocks](maps)

    pixels, patch = torch.randn(1, 3, 32, 32, dtype=torch.float64), network.config.patch_size
    changed = pixels.clone()
    changed[:, :, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch] += 1.0
    with torch.no_grad():
        return (shown(pixels) != shown(changed)).any(-1)[0]


@pytest.mark.parametrize(("y", "x"), [(0, 0), (15, 15), (0, 9), (7, 7)])
def test_windows_do_not_leak(y: int, x: int) -> None:
    """A plain block mixes one window. A shifted one mixes windows whose borders run through the first ones' middles; after the roll
    a window at the edge holds patches of opposite sides of the picture, and the mask keeps them apart."""
    network = Swin(catalog.configure("vision", "swin", "tiny", {"window": 4, "patch_size": 2, "depths": [2, 1]})).eval().double()
    for block in network.stages[0]:
        nn.init.normal_(block.qkv.weight, std=0.2)  # who is heard is heard well
    plain = reached(network, y, x, 1)
    ys, xs = plain.nonzero(as_tuple=True)
    assert plain.sum() == 16 and set(ys.tolist()) == set(range(y // 4 * 4, y // 4 * 4 + 4)) and set((xs // 4).tolist()) == {x // 4}

    def strip(at: int) -> set[int]:
        """Of shifted windows: 0..1, 2..5, 6..9, 10..13, 14..15."""
        return {n for n in range(16) if (n + 2) // 4 == (at + 2) // 4}

    window = (range(y // 4 * 4, y // 4 * 4 + 4), range(x // 4 * 4, x // 4 * 4 + 4))
    allowed_y, allowed_x = (set().union(*(strip(n) for n in side)) for side in window)
    both = reached(network, y, x, 2)
    expected = torch.tensor([[i in allowed_y and j in allowed_x for j in range(16)] for i in range(16)])
    assert torch.equal(both, expected)


def test_swin_pads_what_does_not_split() -> None:
    network = Swin(catalog.configure("vision", "swin", "tiny")).eval()
    with torch.no_grad():
        assert [tuple(m.shape[2:]) for m in network.pyramid(torch.randn(1, 3, 23, 41))] == [(12, 21), (6, 11)]


def test_stochastic_depth_drops_rows_in_training_alone() -> None:
    network = Swin(catalog.configure("vision", "swin", "tiny", {"drop_path": 0.9}))
    x = torch.randn(1, 3, 32, 32).expand(16, -1, -1, -1)
    with torch.no_grad():
        learning, resting = network.train().pooled(x), network.eval().pooled(x)
    assert len(learning.round(decimals=4).unique(dim=0)) > 1 and (resting - resting[0]).abs().max() < 1e-5


# --- MAE ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalise", [False, True])
def test_mae_as_pictures(normalise: bool) -> None:
    """Masked: hidden patches are 0, the others as they were. Rebuilt: the others as they were; a perfect decoder gives all back."""
    mae = MAE(catalog.configure("vision", "mae", "tiny", {"normalise": normalise})).eval()
    pixels, noise = torch.randn(3, 3, 16, 16), torch.rand(3, 16)
    masked, rebuilt = mae.rebuild(pixels, noise)
    hidden = mae.predict(pixels, noise)[1].view(3, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    assert hidden[:, 0, ::4, ::4].sum(dim=(1, 2)).tolist() == [12] * 3
    assert (masked * hidden == 0).all() and torch.equal(masked * ~hidden, pixels * ~hidden)
    assert torch.equal(rebuilt * ~hidden, pixels * ~hidden) and not torch.allclose(rebuilt, pixels)

    target, mean, std = mae._targets(pixels)
    mae.predict = lambda *_: ((target - mean) / std, hidden[:, 0, ::4, ::4].flatten(1))  # type: ignore[method-assign]
    assert torch.allclose(mae.rebuild(pixels, noise)[1], pixels, atol=1e-5)


def test_hidden_patches_are_not_seen() -> None:
    mae = MAE(catalog.configure("vision", "mae", "tiny")).eval()
    pixels, noise = torch.randn(2, 3, 16, 16), torch.rand(2, 16)
    with torch.no_grad():
        said, hidden = mae.predict(pixels, noise)
        where = hidden.view(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
        again = mae.predict(pixels + 5 * where, noise)[0]
    assert torch.equal(said, again)


def test_mae_learns_the_tokens_of_a_tokenizer() -> None:
    tokenizer = vqgan.VQGAN(vqgan.Config(image_size=8)).eval().requires_grad_(False)  # 4 x 4 tokens for 4 x 4 patches
    panel = MAE(catalog.configure("vision", "mae", "tiny"))
    task = MaskedTokens(panel, neighbours={"decoder": tokenizer})
    shown = scenes(4, 32)
    optimizer = torch.optim.AdamW(task.trainable("main").values(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = task.losses(shown, "main", 0, Rng.of_samples(0, shown.index))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.grad is not None and p.grad.any() for p in task.trainable("main").values())
    rows = task.validate(shown)
    assert rows["loss"].shape == rows["right"].shape == (4,) and 0 <= rows["right"].min() <= rows["right"].max() <= 1

    with pytest.raises(ValueError, match="8 x 8 tokens, the picture has 4 x 4 patches"):
        MaskedTokens(panel, neighbours={"decoder": vqgan.VQGAN(vqgan.Config(image_size=16))})
    with pytest.raises(ValueError, match="'image'"):
        MaskedTokens(panel, neighbours={"decoder": catalog.build("decoders", "identity", size="tiny")})
    with pytest.raises(ValueError, match="tokenizer"):
        MaskedTokens(panel, neighbours={})


def test_masks_depend_on_the_row_alone() -> None:
    task = MaskedPixels(MAE(catalog.configure("vision", "mae", "tiny")))
    shown = scenes(4, 16)
    alone = [task.validate(Batch(index=(i,), images_BCHW=shown.images_BCHW[k : k + 1]))["loss"] for k, i in enumerate(shown.index)]
    torch.testing.assert_close(torch.cat(alone), task.validate(shown)["loss"])
    assert task.preview([], shown).shape == (12, 3, 16, 16)


# --- DETR ---------------------------------------------------------------------------------------------------------------


def test_detr_speaks_of_scenes() -> None:
    """The size for data `scenes` knows its classes and colours, in its order; and is small."""
    config = catalog.configure("vision", "detr", "scenes")
    assert config.num_classes == len(CLASSES) and config.attributes == (("color", tuple(COLORS)),) and config.num_attributes == (11,)
    _, millions = published("detr", "scenes")
    assert 1.5 < millions < 2.5
    with pytest.raises(ValueError, match="3 labels for 48 classes"):
        DETR(dataclasses.replace(config, labels=("a", "b", "c")))


def test_detr_hears_what_there_is() -> None:
    task = Detect(DETR(catalog.configure("vision", "detr", "tiny")))
    things = (
        Object(shape="circle", color="red", size="small", cx=0.2, cy=0.3, r=0.1),
        Object(shape="cat", color=None, size="medium", cx=0.6, cy=0.5, r=0.2),
    )
    rows = torch.tensor([[0, 0.2, 0.3, 0.2, 0.2], [8, 0.6, 0.5, 0.4, 0.4]])
    said = task.objects([Prompt(truth=Scene(objects=things[:1]), boxes_N5=rows[:1]), Prompt(truth=Scene(objects=things), boxes_N5=rows)])
    assert said.real_BN.tolist() == [[True, False], [True, True]] and said.count == 3
    assert said.classes_BN.tolist() == [[0, 0], [0, 8]] and torch.equal(said.boxes_BN4[1], rows[:, 1:])
    assert said.attributes[0].tolist() == [[0, 0], [0, 10]]  # red is the first colour; a cat has none of the ten
    with pytest.raises(ValueError, match="boxes_N5"):
        task.objects([Prompt(text="a cat")])
    with pytest.raises(ValueError, match="class 48, the head has 48"):
        task.objects([Prompt(truth=Scene(objects=things[:1]), boxes_N5=torch.tensor([[48, 0.2, 0.3, 0.2, 0.2]]))])


def test_ink_is_colour_without_shape() -> None:
    """Every shape of one colour gives nearly the same six numbers, on white and on pale paper; other colours give others."""
    boxes, found = torch.tensor([[[0.5, 0.5, 0.4, 0.4]]]), {}
    for color in COLORS:
        for shape in SHAPES:
            thing = Object(shape=shape, color=color, size="medium", cx=0.5, cy=0.5, r=0.2)
            picture = torch.from_numpy(render(Scene(objects=(thing,)), 128)).permute(2, 0, 1)[None].float() / 127.5 - 1
            found[color, shape] = ink(picture, boxes)[0, 0]
    for (color, _), row in found.items():
        true = torch.tensor(COLORS[color][0]) / 127.5 - 1
        assert (row[:3] - true).abs().max() < 0.1 and row[3:].max() < 0.3
    bars = torch.full((1, 3, 64, 64), 0.6)  # a red and a blue half on gray paper: the mean is between, the deviation says that it is two
    bars[:, :, 16:48, 16:48] = -1.0
    bars[:, 0, 16:48, 16:32] = bars[:, 2, 16:48, 32:48] = 1.0
    both = ink(bars, torch.tensor([[[0.5, 0.5, 0.5, 0.5]]]))[0, 0]
    assert both[:3].tolist() == pytest.approx([0.0, -1.0, 0.0], abs=0.05) and both[3:].tolist() == pytest.approx([1.0, 0.0, 1.0], abs=0.05)


def test_pictures_in_other_colours_are_not_asked_for_theirs() -> None:
    panel = DETR(catalog.configure("vision", "detr", "tiny"))
    shown, rng = scenes(8, 64), Rng.of_seeds(range(8))
    asked, unasked = Detect(panel), Detect(panel, recolor=1.0)
    panel.eval()
    assert asked.losses(shown, "main", 0, rng)["attributes"] > 0
    told = unasked.losses(shown, "main", 0, rng)
    assert told["attributes"] == 0 and told["classes"] > 0
    told["loss"].backward()
    assert all(p.grad is None or not p.grad.any() for p in panel.attribute_heads.parameters())
    with pytest.raises(ValueError, match="boxes would stay"):
        Detect(panel, vary={"jitter": 0.1})


@pytest.mark.parametrize("queries", ["learnt", "anchored"])
def test_detr_learns_a_batch_by_heart(queries: str) -> None:
    """A few seconds on four scenes: loss falls, and every object is found, its class, colour and place."""
    shown = scenes(4, 64)
    task = Detect(DETR(catalog.configure("vision", "detr", "tiny", {"queries": queries, "image_size": 64})))
    optimizer, losses = torch.optim.AdamW(task.trainable("main").values(), lr=3e-3, weight_decay=0.0), []
    for step in range(120):
        loss = task.losses(shown, "main", step, Rng.of_samples(0, shown.index))["loss"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.modules.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    task.modules.eval()
    rows = task.validate(shown)
    assert losses[-1] < 0.2 * losses[0], losses[::10]
    assert rows["exact"].mean() >= 0.75 and rows["iou"].min() > 0.6, rows


def test_batch_norms_of_a_backbone_stay_frozen() -> None:
    config = catalog.configure("vision", "detr", "tiny", {"backbone": {"stem_width": 8, "widths": [16, 32], "depths": [1, 1]}})
    detr = DETR(config).train()
    norms = [layer for layer in detr.backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    assert norms and not any(layer.training for layer in norms) and detr.encoder[0].training
    before = [layer.running_mean.clone() for layer in norms]
    detr(torch.randn(2, 3, 32, 32))
    assert all(torch.equal(a, layer.running_mean) for a, layer in zip(before, norms, strict=True))
    learnt = Detect(detr).trainable("main").values()
    assert not {id(p) for layer in norms for p in layer.parameters()} & {id(p) for p in learnt}
    assert any(p is detr.backbone.stem.conv.weight for p in learnt)


def test_detr_learns_masks() -> None:
    config = catalog.configure("vision", "detr", "tiny", {"masks": True, "num_heads": 8, "image_size": 64})
    with pytest.raises(ValueError, match="masks=function"):
        Detect(DETR(config))
    task, shown = Detect(DETR(config), masks=masks), scenes(2, 64)
    losses = task.losses(shown, "main", 0, Rng.of_samples(0, shown.index))
    losses["loss"].backward()
    assert {"focal", "dice"} <= losses.keys()
    assert all(p.grad is not None and p.grad.any() for p in task.panel.mask_head.parameters())


def test_padding_says_nothing() -> None:
    """A picture beside a larger one, padded: what stands in the padding changes nothing."""
    detr = DETR(catalog.configure("vision", "detr", "tiny")).eval()
    pixels, real = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    real[:, :40, :48] = True
    quiet = pixels * real[:, None]
    with torch.no_grad():
        maps, _, _, kept = detr._encode(quiet, real)
        seen = detr(quiet, real)
        memory = torch.where(kept[:, None], detr._encode(quiet, real)[2], torch.randn(1, 32, *maps[-1].shape[2:]))
        states = detr._decode(memory, kept)
    assert not kept.all() and torch.allclose(states[-1][1], seen.boxes_BQ4, atol=1e-6)
