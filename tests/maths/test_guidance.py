"""Guidance: the formula, off at 1.0, and not one evaluation more than the rows that need it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.maths.exact import Toy, labels
from triptych.contracts import Condition, LatentSpace
from triptych.layers.pixels import pixel_space
from triptych.processes.guidance import ClassifierFree, thresholded


def guided(scale: list[float], interval: tuple[float, float] = (0.0, 1000.0)) -> tuple[Toy, ClassifierFree]:
    network = Toy()
    null = labels(*[0] * len(scale))
    return network, ClassifierFree(network, null, torch.tensor(scale), torch.tensor([interval] * len(scale)))


@pytest.fixture
def asked() -> tuple[Tensor, Tensor, Condition]:
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([100.0, 400.0, 600.0, 900.0]), labels(1, 2, 3, 4)


def branches(asked: tuple[Tensor, Tensor, Condition]) -> tuple[Tensor, Tensor]:
    x, clock, cond = asked
    return Toy()(x, clock, cond), Toy()(x, clock, labels(0, 0, 0, 0))


def test_formula(asked: tuple[Tensor, Tensor, Condition]) -> None:
    c, u = branches(asked)
    network, wrapper = guided([0.0, 2.0, 3.0, 7.5])
    out = wrapper(*asked)
    assert torch.equal(out, u + torch.tensor([0.0, 2.0, 3.0, 7.5]).view(-1, 1, 1, 1) * (c - u))
    assert network.rows == [8]


def test_off_is_the_network_itself(asked: tuple[Tensor, Tensor, Condition]) -> None:
    network, wrapper = guided([1.0] * 4)
    assert torch.equal(wrapper(*asked), branches(asked)[0])
    assert network.rows == [4]


def test_only_rows_that_need_it(asked: tuple[Tensor, Tensor, Condition]) -> None:
    c, u = branches(asked)
    network, wrapper = guided([3.0, 1.0, 3.0, 1.0])
    out = wrapper(*asked)
    assert network.rows == [6]
    for i, scale in enumerate((3.0, 1.0, 3.0, 1.0)):
        assert torch.equal(out[i], c[i] if scale == 1 else u[i] + scale * (c[i] - u[i]))


def test_interval(asked: tuple[Tensor, Tensor, Condition]) -> None:
    c, u = branches(asked)
    network, wrapper = guided([3.0] * 4, interval=(400.0, 600.0))  # both ends belong to it
    out = wrapper(*asked)
    assert network.rows == [6]
    torch.testing.assert_close(out[[1, 2]], (u + 3 * (c - u))[[1, 2]])
    assert torch.equal(out[[0, 3]], c[[0, 3]])
    network, wrapper = guided([3.0] * 4, interval=(1.0, 99.0))
    assert torch.equal(wrapper(*asked), c) and network.rows == [4]


def test_combines_in_float32(asked: tuple[Tensor, Tensor, Condition]) -> None:
    class Half(Toy):
        def forward(self, x_t: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
            return super().forward(x_t, clock_B, cond).bfloat16()

    c, u = (branch.bfloat16().float() for branch in branches(asked))
    for scale in (1.0, 3.0):
        out = ClassifierFree(Half(), labels(0, 0, 0, 0), torch.full((4,), scale), torch.tensor([[0.0, 1000.0]] * 4))(*asked)
        assert out.dtype == torch.float32 and torch.equal(out, u + 3 * (c - u) if scale == 3 else c)


def test_same_rule_in_every_target(asked: tuple[Tensor, Tensor, Condition]) -> None:
    """Guiding x0 and guiding v is one thing: each is affine in the other with the same constants in both branches."""
    x, clock, cond = asked
    scale, interval, null = torch.full((4,), 3.0), torch.tensor([[0.0, 1000.0]] * 4), labels(0, 0, 0, 0)
    x0 = ClassifierFree(Toy("x0"), null, scale, interval)(x, clock, cond)
    v = ClassifierFree(Toy("v"), null, scale, interval)(x, clock, cond)
    torch.testing.assert_close(x - (clock / 1000).view(-1, 1, 1, 1) * v, x0, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scale", [[3.0] * 4, [3.0, 1.0, 0.0, 2.0], [1.0] * 4])
def test_what_is_said_of_the_variance_is_the_conditions(asked: tuple[Tensor, Tensor, Condition], scale: list[float]) -> None:
    """Channels beyond those of x are not guided, whichever rows are."""

    class Learned(Toy):
        def forward(self, x_t: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
            assert cond.label_B is not None
            return torch.cat([super().forward(x_t, clock_B, cond), cond.label_B.view(-1, 1, 1, 1) * torch.ones_like(x_t)], dim=1)

    c, u = branches(asked)
    out = ClassifierFree(Learned(), labels(0, 0, 0, 0), torch.tensor(scale), torch.tensor([[0.0, 1000.0]] * 4))(*asked)
    assert out.shape == (4, 6, 5, 5)
    torch.testing.assert_close(out[:, :3], u + torch.tensor(scale).view(-1, 1, 1, 1) * (c - u))
    assert torch.equal(out[:, 3:], torch.tensor([1.0, 2.0, 3.0, 4.0]).view(-1, 1, 1, 1).expand(-1, 3, 5, 5))


# --- thresholds -------------------------------------------------------------------------------------------------------------


def test_static_threshold_clips() -> None:
    """Pixels, not latents: the range is [-1, 1] of what the latents stand for."""
    space = pixel_space(5, 3, 0.2, 0.5)
    pixels = 2 * torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    out = thresholded(space.standardise(pixels), space, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(space.restore(out)[0], pixels[0].clamp(-1, 1))
    assert torch.equal(out[1], space.standardise(pixels)[1])  # a row that asked for none


def test_dynamic_threshold_divides() -> None:
    """s = that percentile of |x0|, at least 1; clipped to [-s, s] and divided by s (arXiv 2205.11487, section 2.3)."""
    space = LatentSpace(kind="image", shape=(1, 10, 10))
    x0 = torch.linspace(-4, 4, 100).view(1, 1, 10, 10).repeat(2, 1, 1, 1)
    x0[1] /= 8  # nowhere beyond 1/2
    out = thresholded(x0, space, torch.tensor([0.9, 0.9]))
    s = float(x0[0].abs().flatten().sort().values[[89, 90]] @ torch.tensor([0.9, 0.1]))  # rank 0.9 * 99 = 89.1
    torch.testing.assert_close(out[0], x0[0].clamp(-s, s) / s)
    assert s > 3 and out[0].abs().max() == 1 and torch.equal(out[1], x0[1])
