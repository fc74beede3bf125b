from __future__ import annotations

import numpy as np
import pytest
import torch

from triptych.contracts import Rng
from triptych.layers.fingerprint import fingerprint_tensors
from triptych.layers.pixels import average_down, pixel_space, recolored, varied


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


def test_varied_pictures_depend_on_their_own_key() -> None:
    image = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    how = {"jitter": 0.2, "halvings": 2, "noise": 0.1}
    rng = Rng.of_seeds(range(6))
    every = varied(image, rng, **how)
    assert every.shape == image.shape and every.abs().max() <= 1
    assert torch.equal(every, varied(image, rng, **how))
    torch.testing.assert_close(every[2:3], varied(image[2:3], rng.rows([2]), **how))
    assert torch.equal(varied(image, rng), image)


def test_varied_keeps_what_is_shown() -> None:
    """A disc in the middle stays within the moves that were allowed; half of the pictures keep their sharpness."""
    n, side = 200, 64
    at = torch.arange(side) - side / 2 + 0.5
    disc = (at[:, None] ** 2 + at[None] ** 2 < 16**2).float() * -2 + 1
    rng = Rng.of_seeds(range(n))
    moved = varied(disc.expand(n, 3, side, side), rng, jitter=0.1)
    dark = (1 - moved[:, 0]) / 2
    area, x = dark.sum((1, 2)), (dark * at).sum((1, 2)) / dark.sum((1, 2))
    assert x.abs().max() <= 0.1 / 2 * side * 1.15 and x.std() > 1
    assert area.min() > disc.lt(0).sum() / 1.1**2 / 1.05 and area.max() < disc.lt(0).sum() * 1.1**2 * 1.05
    noise = rng.normal("picture", (3, side, side))
    sharp = varied(noise, rng, halvings=1).flatten(1).std(1)
    assert 0.35 < (sharp > 0.9).float().mean() < 0.65


def test_recolored_pictures_keep_white_and_what_was_equal() -> None:
    picture = torch.ones(64, 3, 8, 8)
    picture[:, :, 2:5, 2:5] = torch.tensor([0.2, -1.0, 0.5])[:, None, None]
    picture[:, :, 6:, 6:] = -1.0
    again, which = recolored(picture, Rng.of_seeds(range(64)), 0.5)
    assert 20 < which.sum() < 44 and torch.equal(again[~which], picture[~which])
    assert torch.allclose(again[:, :, 0, 0], torch.ones(64, 3), atol=1e-6)
    assert torch.equal(again[:, :, 2, 2], again[:, :, 4, 4])
    black = again[which][:, :, 7, 7]
    assert black.std(dim=1).mean() > 0.1 and again[which].abs().max() <= 1
