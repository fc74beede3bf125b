from __future__ import annotations

import numpy as np
import pytest
import torch

from triptych.layers.fingerprint import fingerprint_tensors
from triptych.layers.pixels import average_down, pixel_space


@pytest.mark.parametrize(("old", "new"), [((12, 12), 4), ((9, 6), (3, 6)), ((34, 34), 8), ((7, 5), (3, 4)), ((10, 10), 10)])
def test_average_down_is_the_mean_of_the_covered_area(old, new):
    height, width = (new, new) if isinstance(new, int) else new
    image = torch.rand(2, 3, *old, generator=torch.Generator().manual_seed(0)) * 2 - 1
    fine = np.kron(image.double().numpy(), np.ones((height, width)))  # every pixel cut so finely that the new grid falls on edges
    expected = fine.reshape(2, 3, height, old[0], width, old[1]).mean(axis=(3, 5))
    np.testing.assert_allclose(average_down(image, new).numpy(), expected, atol=1e-6)


def test_average_down_keeps_white_white_and_dtype():
    image = torch.ones(1, 3, 136, 136, dtype=torch.float64)
    small = average_down(image, 32)
    assert small.dtype == torch.float64
    torch.testing.assert_close(small, torch.ones(1, 3, 32, 32, dtype=torch.float64))


@pytest.mark.parametrize("new", [16, (4, 9), (9, 4)])
def test_average_down_refuses_to_enlarge(new):
    height, width = (new, new) if isinstance(new, int) else new
    with pytest.raises(ValueError, match=f"8 x 8.*{height} x {width}"):
        average_down(torch.zeros(1, 3, 8, 8), new)


def test_pixel_space():
    space = pixel_space(32, 3, 0.5, 0.6)
    assert (space.kind, space.shape, space.fingerprint) == ("image", (3, 32, 32), "pixels-3x32x32-0.5-0.6")
    image = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(space.standardise(image), (image - 0.5) / 0.6)
    torch.testing.assert_close(space.restore(space.standardise(image)), image)
    assert pixel_space(32, 3, 0.4, 0.6).fingerprint != space.fingerprint


def test_fingerprint_tells_content_from_layout():
    tensors = {"b": torch.randn(4, 3, 2, 2), "a": torch.arange(3)}
    print_ = fingerprint_tensors(tensors)
    assert len(print_) == 16 and int(print_, 16) >= 0
    assert fingerprint_tensors({"a": tensors["a"], "b": tensors["b"].to(memory_format=torch.channels_last)}) == print_
    others = (
        {**tensors, "a": torch.tensor([0, 1, 3])},
        {**tensors, "a": torch.arange(3, dtype=torch.int32)},
        {**tensors, "b": tensors["b"].reshape(4, 12)},
        {"b": tensors["b"], "c": tensors["a"]},
    )
    assert len({print_, fingerprint_tensors(tensors, "more"), *(fingerprint_tensors(other) for other in others)}) == 6
    assert fingerprint_tensors({"h": torch.ones(3, dtype=torch.bfloat16), "s": torch.tensor(1.0)}) != print_
