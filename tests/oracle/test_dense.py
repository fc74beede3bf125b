"""MAE, Swin and DETR against transformers: the same random weights, read from the folder that it writes, the same output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from triptych import catalog
from triptych.interop import transformers_dense as dense
from triptych.layers.matching import Objects, assign, generalized_iou, mask_losses, match, set_losses
from triptych.vision.detr import Detect, Seen

transformers = pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def randomised(theirs: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights in all that is learnt, large enough that every branch is heard; statistics of batch norms too."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda like: torch.randn(like.shape, generator=generator)  # noqa: E731
    for name, p in theirs.named_parameters():
        if p.requires_grad or "backbone" in name:
            fan = p[0].numel() if p.ndim > 1 else 1
            gain = float("norm" in name and name.endswith("weight"))
            spread = 1.0 if "query" in name and "embed" in name else 1.5 * fan**-0.5
            p.data = spread * draw(p) if p.ndim > 1 else gain + 0.3 * draw(p)
            if "q_proj" in name:
                p.data *= 2  # who looks where must differ from token to token
            if "input_projection" in name or "adapter" in name:
                p.data *= 0.01  # a random backbone without live norms shouts down the sines, the queries and their maps
    for name, b in theirs.named_buffers():
        if "norm" in name and b.is_floating_point():
            b.copy_(0.5 + draw(b).abs() if name.endswith(("var", "weight")) else 0.3 * draw(b))
    return theirs.eval()


def ours(theirs: nn.Module, folder: Path, read: Callable) -> Any:
    """Through the files: what is written is what is read."""
    theirs.save_pretrained(folder)  # type: ignore[operator]
    family, config, tensors = read(json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"))
    mine = catalog.build("vision", family, config)
    mine.load_state_dict(tensors)
    again = read(json.loads((folder / "config.json").read_text()), theirs.state_dict())  # and under the names it computes with
    assert all(torch.equal(tensors[name], tensor) for name, tensor in again[2].items()) and again[2].keys() == tensors.keys()
    return mine.eval()


def relative_error(mine: Tensor, yours: Tensor, least: float = 0.1) -> float:
    assert mine.shape == yours.shape and yours.std() > least
    return ((mine - yours).norm() / yours.norm()).item()


# --- MAE ----------------------------------------------------------------------------------------------------------------

MAES = {  # side, patch, width, depth, heads, decoder width, depth, heads, mask
    "a third hidden, 25 patches": (20, 4, 24, 3, 2, 16, 2, 4, 0.3),
    "three quarters, patch 7": (42, 7, 36, 2, 3, 20, 1, 5, 0.75),
    "patch 2, wider decoder": (12, 2, 16, 1, 4, 32, 3, 2, 0.9),
}


MAE_NAMES = (
    "image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "decoder_hidden_size",
    "decoder_num_hidden_layers", "decoder_num_attention_heads", "mask_ratio",
)  # fmt: skip


def mae_config(*numbers: float, **more: Any) -> Any:
    return transformers.ViTMAEConfig(
        **dict(zip(MAE_NAMES, numbers, strict=True)), intermediate_size=3 * int(numbers[2]) + 1, decoder_intermediate_size=37, **more
    )


def placed(theirs: nn.Module) -> nn.Module:
    """Their sines where they belong: a model of theirs that is built new has zeros there; a published file has the sines."""
    from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

    for name, parameter in theirs.named_parameters():
        if name.endswith(("position_embeddings", "decoder_pos_embed")):
            side = int((parameter.shape[1] - 1) ** 0.5)
            rows_first = build_2d_sinusoidal_position_embedding(side, side, parameter.shape[2], cls_token=True)
            parameter.data = rows_first.roll(parameter.shape[2] // 2, dims=1)[None]  # as in the published files
    return theirs


@pytest.mark.parametrize("numbers", MAES.values(), ids=MAES)
@pytest.mark.parametrize("normalise", [False, True])
def test_mae(numbers: tuple, normalise: bool, tmp_path: Path) -> None:
    theirs = placed(randomised(transformers.ViTMAEForPreTraining(mae_config(*numbers, norm_pix_loss=normalise))))
    mine = ours(theirs, tmp_path, dense.vit_mae_from_transformers)
    pixels, noise = torch.randn(3, 3, numbers[0], numbers[0]), torch.rand(3, (numbers[0] // numbers[1]) ** 2)
    with torch.no_grad():
        yours = theirs(pixels, noise=noise)
        said, hidden = mine.predict(pixels, noise)
        assert torch.equal(hidden, yours.mask.bool()) and torch.equal(mine.encode(pixels, noise)[1], yours.ids_restore)
        assert relative_error(said, yours.logits) <= 1e-5
        assert mine.loss_B(pixels, noise).mean().item() == pytest.approx(yours.loss.item(), rel=1e-5)
        mine_seen, yours_seen = mine.encode(pixels, noise)[0], theirs.vit(pixels, noise=noise).last_hidden_state
    assert relative_error(mine_seen, yours_seen) <= 1e-5


def test_mae_without_its_decoder(tmp_path: Path) -> None:
    theirs = randomised(transformers.ViTMAEModel(mae_config(*MAES["three quarters, patch 7"])))
    theirs.embeddings.position_embeddings.data.normal_()  # whatever stands in the file is used
    mine = ours(theirs, tmp_path, dense.vit_mae_from_transformers)
    theirs.config.mask_ratio = 0.0
    pixels, in_order = torch.randn(2, 3, 42, 42), torch.arange(36.0).expand(2, -1)
    with torch.no_grad():
        assert relative_error(mine.features(pixels), theirs(pixels, noise=in_order).last_hidden_state) <= 1e-5
    with pytest.raises(ValueError, match="no decoder"):
        mine.rebuild(pixels, in_order)


def test_the_sines_of_mae_are_theirs(tmp_path: Path) -> None:
    theirs = placed(transformers.ViTMAEForPreTraining(mae_config(*MAES["patch 2, wider decoder"])))
    read = ours(theirs, tmp_path, dense.vit_mae_from_transformers)
    made = catalog.build("vision", "mae", read.config)
    torch.testing.assert_close(made.place_LD, read.place_LD, atol=1e-6, rtol=0)
    torch.testing.assert_close(made.decoder.place_LD, read.decoder.place_LD, atol=1e-6, rtol=0)


# --- Swin ---------------------------------------------------------------------------------------------------------------

SWINS = {  # side, patch, width, depths, heads, window, bias of q k v; then the shown height and width
    "as published, small": (56, 4, 12, (2, 2), (3, 4), 7, True, 56, 56),
    "odd window, odd grids": (60, 2, 8, (2, 3, 2), (1, 2, 4), 5, False, 60, 60),
    "a last grid of one window": (32, 2, 8, (1, 2, 2), (2, 2, 4), 4, True, 32, 32),
    "sides that split into nothing": (40, 3, 12, (3, 2), (2, 3), 4, True, 41, 61),
    "even window, tall": (48, 4, 16, (2, 1), (4, 2), 6, True, 76, 50),
}


def swin_config(side: int, patch: int, width: int, depths: tuple, heads: tuple, window: int, bias: bool) -> Any:
    return transformers.SwinConfig(
        image_size=side, patch_size=patch, embed_dim=width, depths=depths, num_heads=heads, window_size=window, qkv_bias=bias,
        mlp_ratio=2.5, num_labels=7,
    )  # fmt: skip


@pytest.mark.parametrize("numbers", SWINS.values(), ids=SWINS)
def test_swin(numbers: tuple, tmp_path: Path) -> None:
    *settings, height, width = numbers
    theirs = randomised(transformers.SwinModel(swin_config(*settings)))
    mine = ours(theirs, tmp_path, dense.swin_from_transformers)
    pixels = torch.randn(2, 3, height, width)
    with torch.no_grad():
        yours = theirs(pixels)
        stages = theirs(pixels, output_hidden_states=True, output_hidden_states_before_downsampling=True).reshaped_hidden_states[1:]
        assert relative_error(mine.features(pixels), yours.last_hidden_state) <= 1e-5
        assert relative_error(mine.pooled(pixels), yours.pooler_output) <= 1e-5
        maps = mine.pyramid(pixels)
    assert len(maps) == len(stages) == len(settings[3])
    assert all(relative_error(a, b) <= 1e-5 for a, b in zip(maps, stages, strict=True))


def test_swin_that_classifies(tmp_path: Path) -> None:
    theirs = randomised(transformers.SwinForImageClassification(swin_config(*SWINS["odd window, odd grids"][:7])))
    mine = ours(theirs, tmp_path, dense.swin_from_transformers)
    pixels = torch.randn(3, 3, 60, 60)
    with torch.no_grad():
        assert relative_error(mine.classify(pixels), theirs(pixels).logits) <= 1e-5


# --- DETR ---------------------------------------------------------------------------------------------------------------

DETRS = {  # width, hidden, heads, encoder and decoder layers, queries; then the ResNet's block, widths, depths, 1 x 1 strides
    "bottlenecks, 4 heads": (32, 48, 4, 2, 3, 7, "bottleneck", [16, 24, 32, 40], [1, 2, 1, 1], False),
    "basic blocks, 1 encoder layer": (24, 20, 2, 1, 2, 5, "basic", [8, 8, 16, 24], [1, 1, 2, 1], False),
    "version 1, 8 heads": (40, 64, 8, 3, 1, 9, "bottleneck", [16, 16, 32, 48], [2, 1, 1, 1], True),
}


def detr_config(numbers: tuple, **more: Any) -> Any:
    width, hidden, heads, encoder, decoder, queries, block, widths, depths, early = numbers
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=widths, depths=depths, layer_type=block, downsample_in_bottleneck=early,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    return transformers.DetrConfig(
        use_timm_backbone=False, backbone_config=backbone, d_model=width, encoder_layers=encoder, decoder_layers=decoder,
        encoder_attention_heads=heads, decoder_attention_heads=heads, encoder_ffn_dim=hidden, decoder_ffn_dim=hidden,
        num_queries=queries, num_labels=6, **more,
    )  # fmt: skip


def padded_pictures() -> tuple[Tensor, Tensor]:
    """Two pictures of odd sizes, the second padded at the right and below."""
    pixels, real = torch.randn(2, 3, 97, 130), torch.ones(2, 97, 130, dtype=torch.bool)
    real[1, 64:], real[1, :, 101:] = False, False
    return pixels * real[:, None], real


@pytest.mark.parametrize("numbers", DETRS.values(), ids=DETRS)
@pytest.mark.parametrize("padded", [False, True])
def test_detr(numbers: tuple, padded: bool, tmp_path: Path) -> None:
    theirs = randomised(transformers.DetrForObjectDetection(detr_config(numbers)))
    mine = ours(theirs, tmp_path, dense.detr_from_transformers)
    pixels, real = padded_pictures()
    with torch.no_grad():
        yours = theirs(pixels, pixel_mask=real.long() if padded else None, output_hidden_states=True)
        said = mine(pixels, real if padded else None, every_layer=True)
        assert relative_error(said.logits_BQK, yours.logits) <= 1e-5
        assert relative_error(said.boxes_BQ4, yours.pred_boxes, least=0.05) <= 1e-5
        if not padded:
            assert relative_error(mine.features(pixels), yours.last_hidden_state) <= 1e-5
            assert relative_error(mine.pooled(pixels), yours.encoder_last_hidden_state.mean(1)) <= 1e-5
            logits, boxes = mine.detect(pixels)
            assert torch.equal(logits, said.logits_BQK) and torch.equal(boxes, said.boxes_BQ4)
        # The paper's auxiliary outputs: every layer's state through the shared norm and heads. (Their `auxiliary_loss` feeds the
        # normalised states back into the decoder, which the paper's code does not do; see interop/transformers_dense.py.)
        states = [theirs.model.decoder.layernorm(x) for x in yours.decoder_hidden_states[-numbers[4] : -1]]
        assert len(states) == len(said.earlier) == numbers[4] - 1
        for state, early in zip(states, said.earlier, strict=True):
            assert relative_error(early.logits_BQK, theirs.class_labels_classifier(state)) <= 1e-5
            assert relative_error(early.boxes_BQ4, theirs.bbox_predictor(state).sigmoid(), least=0.05) <= 1e-5


@pytest.mark.parametrize(("name", "width"), list(zip(DETRS, (32, 16, 64), strict=True)))
def test_detr_with_masks(name: str, width: int, tmp_path: Path) -> None:
    numbers = (width, DETRS[name][1], 8, *DETRS[name][3:])
    theirs = randomised(transformers.DetrForSegmentation(detr_config(numbers)))
    theirs.mask_head.conv1.conv.weight.data[:, width:] *= 30  # attention over many places and heads is small everywhere
    mine = ours(theirs, tmp_path, dense.detr_from_transformers)
    pixels, real = padded_pictures()
    with torch.no_grad():
        yours, said = theirs(pixels, pixel_mask=real.long()), mine(pixels, real)
    assert relative_error(said.masks_BQhw, yours.pred_masks) <= 1e-5
    mine_apart, yours_apart = (m - m.mean(dim=1, keepdim=True) for m in (said.masks_BQhw, yours.pred_masks))
    assert relative_error(mine_apart, yours_apart, least=0.005) <= 1e-3  # and what sets the queries apart
    assert relative_error(said.logits_BQK, yours.logits) <= 1e-5


def test_detr_under_the_names_of_timm(tmp_path: Path) -> None:
    """The published files keep timm's names in the backbone, and describe it by name alone."""
    numbers = (16, 16, 2, 1, 1, 3, "bottleneck", [256, 512, 1024, 2048], [3, 4, 6, 3], False)
    config = detr_config(numbers)
    config.backbone_config.embedding_size = 64
    theirs = transformers.DetrForObjectDetection(config)
    theirs.save_pretrained(tmp_path)
    tensors, described = load_file(tmp_path / "model.safetensors"), json.loads((tmp_path / "config.json").read_text())
    wanted = dense.detr_from_transformers(described, tensors)
    names = {"embedder.embedder.convolution": "conv1", "embedder.embedder.normalization": "bn1"}
    names |= {f"encoder.stages.{i}.layers.": f"layer{i + 1}." for i in range(4)}
    names |= {f".layer.{i}.convolution": f".conv{i + 1}" for i in range(3)} | {f".layer.{i}.normalization": f".bn{i + 1}" for i in range(3)}
    names |= {"shortcut.convolution": "downsample.0", "shortcut.normalization": "downsample.1"}
    as_published = {}
    for name, tensor in tensors.items():
        for old, new in names.items():
            name = name.replace(old, new) if ".backbone." in name else name
        as_published[name] = tensor
    assert "model.backbone.conv_encoder.model.layer2.0.downsample.1.running_var" in as_published
    del described["backbone_config"]
    family, config, read = dense.detr_from_transformers(described | {"use_timm_backbone": True, "backbone": "resnet50"}, as_published)
    assert (family, config) == wanted[:2] and read.keys() == wanted[2].keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in wanted[2].items())


# --- DETR's matcher and losses ------------------------------------------------------------------------------------------


def scenes(counts: tuple[int, ...], classes: int, side: int) -> tuple[Objects, list[dict[str, Tensor]]]:
    """The same objects in our words and in theirs."""
    most = max(counts)
    real = torch.arange(most) < torch.tensor(counts)[:, None]
    boxes = torch.cat([0.3 + 0.4 * torch.rand(len(counts), most, 2), 0.1 + 0.4 * torch.rand(len(counts), most, 2)], dim=-1)
    number, masks = torch.randint(classes, (len(counts), most)), (torch.rand(len(counts), most, side, side) > 0.6).float()
    objects = Objects(real_BN=real, classes_BN=number, boxes_BN4=boxes, masks_BNHW=masks)
    theirs = [{"class_labels": number[i, :n], "boxes": boxes[i, :n], "masks": masks[i, :n]} for i, n in enumerate(counts)]
    return objects, theirs


def said_of(pictures: int, queries: int, classes: int) -> tuple[Tensor, Tensor]:
    boxes = torch.cat([torch.rand(pictures, queries, 2), 0.05 + 0.5 * torch.rand(pictures, queries, 2)], dim=-1)
    return 2 * torch.randn(pictures, queries, classes + 1), boxes


@pytest.mark.parametrize(("counts", "queries"), [((2, 0, 4), 9), ((7, 3), 5), ((1,), 1), ((5, 5, 1, 2), 30)])
def test_matcher_and_losses(counts: tuple[int, ...], queries: int) -> None:
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    classes, side = 6, 24
    objects, targets = scenes(counts, classes, side)
    logits, boxes = said_of(len(counts), queries, classes)
    masks = torch.randn(len(counts), queries, 10, 10)
    outputs = {"logits": logits, "pred_boxes": boxes, "pred_masks": masks}
    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    pairs = match(logits, boxes, objects)
    rows = [(i, int(q), int(n)) for i, (query, chosen) in enumerate(matcher(outputs, targets)) for q, n in zip(query, chosen, strict=True)]
    assert list(zip(*(part.tolist() for part in pairs), strict=True)) == rows

    yours = ImageLoss(matcher, classes, 0.1, ["labels", "boxes", "cardinality", "masks"])(outputs, targets)
    mine = set_losses(logits, boxes, (), objects, pairs) | mask_losses(masks, objects, pairs)
    names = {"classes": "loss_ce", "l1": "loss_bbox", "giou": "loss_giou", "cardinality": "cardinality_error"}
    for ours_, theirs_ in (names | {"focal": "loss_mask", "dice": "loss_dice"}).items():
        assert mine[ours_].item() == pytest.approx(yours[theirs_].item(), rel=1e-5), ours_


def test_the_whole_loss_of_detr() -> None:
    """With its auxiliary part: every layer is matched anew, and weighs as much."""
    from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

    objects, targets = scenes((2, 4, 1), 6, 4)
    layers = [said_of(3, 8, 6) for _ in range(3)]
    config = detr_config(DETRS["bottlenecks, 4 heads"], auxiliary_loss=True)
    logits, boxes = (torch.stack(parts) for parts in zip(*layers, strict=True))
    yours, _, _ = ForObjectDetectionLoss(logits[-1], targets, "cpu", boxes[-1], config, logits, boxes)
    task = Detect(catalog.build("vision", "detr", size="tiny"))
    seen = [Seen(logits_BQK=a, boxes_BQ4=b) for a, b in layers]
    mine = task._losses(Seen(logits_BQK=logits[-1], boxes_BQ4=boxes[-1], earlier=tuple(seen[:-1])), objects)
    assert mine["loss"].item() == pytest.approx(yours.item(), rel=1e-5)


def test_assignment_is_scipys() -> None:
    scipy = pytest.importorskip("scipy.optimize")
    generator = torch.Generator().manual_seed(0)
    for rows, columns in [(3, 25), (25, 3), (8, 8), (1, 5), (0, 4), (4, 0), (40, 100), *[(n, 9 - n) for n in range(1, 9)]] * 3:
        cost = torch.randn(rows, columns, generator=generator, dtype=torch.float64).numpy()
        (a, b), (c, d) = assign(cost), scipy.linear_sum_assignment(cost)
        assert a.tolist() == c.tolist() and b.tolist() == d.tolist()
        tied = cost.round()
        (a, b), (c, d) = assign(tied), scipy.linear_sum_assignment(tied)
        assert sorted(set(a)) == a.tolist() and len(set(b)) == len(b) == len(d) and tied[a, b].sum() == tied[c, d].sum()


def test_generalized_iou() -> None:
    from transformers.loss.loss_for_object_detection import center_to_corners_format, generalized_box_iou

    (_, a), (_, b) = said_of(1, 30, 1), said_of(1, 20, 1)
    yours = generalized_box_iou(center_to_corners_format(a[0]), center_to_corners_format(b[0]))
    torch.testing.assert_close(generalized_iou(a[0, :, None], b[0]), yours, atol=1e-6, rtol=1e-5)
