"""The network of the FID, by definition: shapes, count, names, pooling, and the resize of TensorFlow 1, with random weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from triptych.vision import inception
from triptych.vision.inception import SIZES, Config, Inception, digest, resize, save_original

# The stages of arXiv 1512.00567, table 1, and the blocks between them, at 299: name -> (channels, side).
STAGES = {
    "Conv2d_1a_3x3": (32, 149), "Conv2d_2a_3x3": (32, 147), "Conv2d_2b_3x3": (64, 147), "Conv2d_3b_1x1": (80, 73),
    "Conv2d_4a_3x3": (192, 71), "Mixed_5b": (256, 35), "Mixed_5c": (288, 35), "Mixed_5d": (288, 35), "Mixed_6a": (768, 17),
    "Mixed_6b": (768, 17), "Mixed_6c": (768, 17), "Mixed_6d": (768, 17), "Mixed_6e": (768, 17),
    "Mixed_7a": (1280, 8), "Mixed_7b": (2048, 8), "Mixed_7c": (2048, 8),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny() -> Inception:
    torch.manual_seed(0)
    made = Inception(SIZES["tiny"])
    for part in made.modules():
        if isinstance(part, torch.nn.BatchNorm2d):  # as trained: nothing at its start
            torch.nn.init.uniform_(part.weight, 0.5, 1.5)
            torch.nn.init.normal_(part.bias, std=0.1)
            part.running_mean.normal_(std=0.1)
            part.running_var.uniform_(0.5, 1.5)
    return made.eval()


def test_published_shapes_and_parameters() -> None:
    with torch.device("meta"):
        network, shapes = Inception(Config()), {}
        for name in STAGES:
            network.get_submodule(name).register_forward_hook(lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
        pixels = torch.empty(2, 3, 299, 299)
        assert network.pooled(pixels).shape == (2, 2048) and network.classify(pixels).shape == (2, 1008)
        assert network.features(pixels).shape == (2, 64, 2048)
        imagenet = Inception(SIZES["ImageNet"])
    assert shapes == {name: (channels, side, side) for name, (channels, side) in STAGES.items()}
    count = sum(p.numel() for p in imagenet.parameters())
    assert count == 23_834_568  # of Inception v3 without its auxiliary head, 1,000 classes
    assert sum(p.numel() for p in network.parameters()) == count + 8 * 2049


def test_names_are_those_of_the_public_file() -> None:
    with torch.device("meta"):
        names = set(Inception(Config()).state_dict())
    tensors = {name for name in names if not name.endswith("num_batches_tracked")}
    assert len(tensors) == 94 * 5 + 2  # convolution, and four of its batch norm; the head
    assert {
        "Conv2d_1a_3x3.conv.weight", "Mixed_5b.branch5x5_2.bn.running_mean", "Mixed_6c.branch7x7dbl_5.conv.weight",
        "Mixed_7a.branch7x7x3_4.bn.weight", "Mixed_7c.branch3x3dbl_3b.conv.weight", "Mixed_7b.branch_pool.bn.bias", "fc.weight", "fc.bias",
    } <= tensors  # fmt: skip


def test_a_block_by_definition(tiny: Inception) -> None:
    """Mixed_6b, branch by branch with plain functions; and what the other kinds do at their joints."""
    block = tiny.get_submodule("Mixed_6b")
    x = torch.rand(2, 768 // 16, 5, 5)

    def conv(name: str, x: Tensor, padding: tuple[int, int]) -> Tensor:
        part = block.get_submodule(name)
        y = torch.nn.functional.conv2d(x, part.conv.weight, padding=padding)
        norm = part.bn
        scale = norm.weight / (norm.running_var + 0.001).sqrt()
        return (y * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]).relu()

    seven = conv("branch7x7_3", conv("branch7x7_2", conv("branch7x7_1", x, (0, 0)), (0, 3)), (3, 0))
    double = x
    for i, padding in enumerate([(0, 0), (3, 0), (0, 3), (3, 0), (0, 3)], 1):
        double = conv(f"branch7x7dbl_{i}", double, padding)
    means = torch.stack(
        [torch.stack([x[:, :, max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].mean((2, 3)) for j in range(5)], -1) for i in range(5)], -2
    )  # of the pixels that are there: no padding is counted
    expected = torch.cat([conv("branch1x1", x, (0, 0)), seven, double, conv("branch_pool", means, (0, 0))], 1)
    torch.testing.assert_close(block(x), expected, rtol=1e-4, atol=1e-5)


def test_twins_differ_in_their_pooling(tiny: Inception) -> None:
    """The last block takes the maximum, the one before it the mean."""
    for name, pool in (("Mixed_7b", torch.mean), ("Mixed_7c", torch.amax)):
        block = tiny.get_submodule(name)
        x, around = torch.rand(1, block.get_submodule("branch_pool").conv.in_channels, 3, 3), [slice(0, 2), slice(0, 3), slice(1, 3)]
        pooled = torch.stack([torch.stack([pool(x[:, :, i, j], (2, 3)) for j in around], -1) for i in around], -2)
        torch.testing.assert_close(block(x)[:, -192 // 16 :], block.get_submodule("branch_pool")(pooled))


def brute_resize(x_HW: np.ndarray, side: int) -> np.ndarray:
    """tf.image.resize_bilinear of TensorFlow 1, align_corners=False, pixel by pixel."""
    high, wide = x_HW.shape
    out = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            y, x = i * high / side, j * wide / side
            top, left = int(np.floor(y)), int(np.floor(x))
            bottom, right = min(top + 1, high - 1), min(left + 1, wide - 1)
            dy, dx = y - top, x - left
            upper = x_HW[top, left] * (1 - dx) + x_HW[top, right] * dx
            out[i, j] = upper * (1 - dy) + (x_HW[bottom, left] * (1 - dx) + x_HW[bottom, right] * dx) * dy
    return out


@pytest.mark.parametrize("size", [(5, 7), (32, 32), (11, 40), (23, 23), (1, 3)])
def test_resize_against_brute_force(size: tuple[int, int]) -> None:
    x = torch.rand(1, 2, *size, dtype=torch.float64)
    mine = resize(x, 23)
    for channel in range(2):
        np.testing.assert_allclose(mine[0, channel].numpy(), brute_resize(x[0, channel].numpy(), 23), atol=1e-5)
    if size == (23, 23):
        assert mine is x
    else:
        half_pixel = torch.nn.functional.interpolate(x, size=23, mode="bilinear")
        assert (mine - half_pixel).abs().max() > 0.05, "today's rule is another one"


def test_pixels_are_bytes_around_128(tiny: Inception) -> None:
    levels = torch.tensor([-1.0, 1.0, 0.0, 2 * 200 / 255 - 1 + 0.001])
    assert (tiny.preprocess(levels.view(1, 1, 2, 2)).flatten() * 128 + 128).tolist() == [0, 255, 128, 200]
    images = torch.rand(1, 3, 8, 8) * 2 - 1
    by_mean = ((((images + 1) * 127.5).round() / 255) - tiny.mean[0]) / tiny.std[0]
    torch.testing.assert_close(tiny.preprocess(images), by_mean)


@torch.no_grad()
def test_fused_and_alone_give_the_same(tiny: Inception) -> None:
    import copy

    pixels = tiny.preprocess(torch.rand(3, 3, 40, 60) * 2 - 1)
    pooled = tiny.pooled(pixels)
    assert pooled.shape == (3, tiny.width) and pooled.std() > 0.01
    torch.testing.assert_close(tiny.pooled(pixels[1:2]), pooled[1:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(tiny).fuse().pooled(pixels), pooled, rtol=1e-4, atol=1e-5)
    again, p_BK = tiny.features_and_probabilities(pixels)
    torch.testing.assert_close(again, pooled)
    torch.testing.assert_close(p_BK, (tiny.classify(pixels) - tiny.fc.bias).softmax(1))
    assert torch.equal(tiny.probabilities(pixels), p_BK)


def test_whose_weights_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recognised are the tensors of the published file, and no others. The file stands in for the published one here."""
    monkeypatch.setattr(inception, "Config", lambda num_classes: inception.SIZES["tiny"])
    torch.manual_seed(1)
    tensors, path = Inception(SIZES["tiny"]).state_dict(), tmp_path / "weights.safetensors"
    published = hashlib.sha256(b"the file").hexdigest()
    with pytest.raises(ValueError, match="6726825d"):
        save_original(path, tensors, published)
    monkeypatch.setattr(inception, "PUBLISHED", published)
    save_original(path, tensors, published)
    made = Inception.from_file(path)
    assert made.original and not any(p.requires_grad for p in made.parameters())
    assert digest(made.state_dict()) == digest(tensors) == digest(dict(reversed(tensors.items())))
    save_file(tensors, path)
    assert not Inception.from_file(path).original, "the same tensors, of nobody knows what file"
    changed = {**tensors, "fc.bias": tensors["fc.bias"] + 1e-6}
    save_file(changed, path, metadata={"source_sha256": published, "content_sha256": digest(tensors)})
    assert not Inception.from_file(path).original
    save_file({**tensors, "fc.weight": tensors["fc.weight"][:, 1:].contiguous()}, path)
    with pytest.raises(ValueError, match=r"'fc.weight' is \[10, 127\] there, \[10, 128\]"):
        Inception.from_file(path)
    path.write_bytes(b"\x80\x02pickle")
    with pytest.raises(ValueError, match="safetensors"):
        Inception.from_file(path)


def test_refusals() -> None:
    for config, words in ((Config(side=74), "below 75"), (Config(shrink=3), "divide 16")):
        with pytest.raises(ValueError, match=words):
            Inception(config)
    with pytest.raises(ValueError, match="no head"):
        Inception(Config(num_classes=0, shrink=16, side=75)).classify(torch.zeros(1, 3, 75, 75))


def test_the_public_file_is_taken_by_its_hash_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scripts import inception_weights

    torch.manual_seed(0)
    source, target = tmp_path / "weights.pth", tmp_path / "inception.safetensors"
    network = Inception(Config())
    torch.save({name: t for name, t in network.state_dict().items() if not name.endswith("num_batches_tracked")}, source)
    with pytest.raises(SystemExit, match="SHA-256"):
        inception_weights.main(str(source), str(target))
    assert not target.exists()
    found = hashlib.sha256(source.read_bytes()).hexdigest()
    for module in (inception_weights, inception):
        monkeypatch.setattr(module, "PUBLISHED", found)
    inception_weights.main(str(source), str(target))
    made = Inception.from_file(target)
    assert made.original and torch.equal(made.fc.weight, network.fc.weight)  # type: ignore[union-attr]
