"""Likeness to a picture: what it measures, its gradients against closed forms, and that it guides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.maths.exact import Toy, labels
from triptych.contracts import Condition, Rng, Start
from triptych.processes import sample
from triptych.processes.guidance import CriticGuidance, Guide
from triptych.processes.likeness import LIKENESSES, Likeness
from triptych.processes.noise import linear
from triptych.processes.rectified_flow import Config, RectifiedFlow, Sampling

SHAPE, HEARD, ZERO = (3, 4, 6), Condition(), torch.zeros(2)


def eyes(x: Tensor) -> Tensor:
    """[B, C, H, W] -> states [B, L, D]: every place alone, and not a line."""
    weight = torch.linspace(-1, 1, 15, dtype=x.dtype).view(3, 5)
    return torch.tanh(x.flatten(2).transpose(1, 2) @ weight) + 0.1


def pictures(count: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def likeness(by: Any, reference: Tensor, **more: Any) -> Likeness:
    return Likeness(reference, by, features=None if by == "pixels" else eyes, **more)


def gradient(critic: Likeness, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    return torch.autograd.grad(critic(x, ZERO, HEARD).sum(), x)[0]


@pytest.mark.parametrize("by", LIKENESSES)
def test_a_picture_is_most_like_itself(by: str) -> None:
    reference, x = pictures(1), pictures(2, seed=1)
    critic = likeness(by, reference)
    assert critic.role == "critic" and not list(critic.parameters()) and not critic.wanted.requires_grad
    assert float(critic(reference, ZERO, HEARD)) == 0
    scores = critic(x, ZERO, HEARD)
    assert scores.shape == (2,) and (scores < 0).all()
    torch.testing.assert_close(scores[1:], critic(x[1:], ZERO, HEARD))  # each row for itself
    near = critic(torch.lerp(x, reference, 0.99), ZERO, HEARD)
    assert (near < 0).all() and (near > scores).all()  # nearer is better
    own = likeness(by, x)  # and a reference a row
    torch.testing.assert_close(own(x, ZERO, HEARD), torch.zeros(2, dtype=torch.float64))
    assert (own(x.flip(0), ZERO, HEARD) < 0).all()


def test_gradient_by_pixels() -> None:
    """-2 (x - reference) / N."""
    reference, x = pictures(1), pictures(2, seed=1)
    torch.testing.assert_close(gradient(likeness("pixels", reference), x), -2 * (x - reference) / 72)


def test_gradient_by_blurred_pixels() -> None:
    """Of the squares' means, each told to its four pixels; what is below them is not asked for."""
    reference, x = pictures(1), pictures(2, seed=1)
    critic = likeness("pixels", reference, blur=2)
    expected = F.interpolate(-2 * (F.avg_pool2d(x, 2) - F.avg_pool2d(reference, 2)) / 18, scale_factor=2) / 4
    torch.testing.assert_close(gradient(critic, x), expected)
    checked = reference + torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).repeat(2, 3)
    assert float(critic(checked, ZERO, HEARD)) == pytest.approx(0, abs=1e-30)


def test_gradient_by_features() -> None:
    """-2 J^T (phi - phi_0) / N, by the Jacobian of what the eyes see."""
    reference, x = pictures(1), pictures(1, seed=1)
    J = torch.autograd.functional.jacobian(lambda p: eyes(p).flatten(), x).flatten(1)
    off = (eyes(x) - eyes(reference)).flatten()
    torch.testing.assert_close(gradient(likeness("features", reference), x).flatten(), -2 * J.T @ off / len(off))


def test_gradient_by_gram() -> None:
    """With F [L, D] and G = F^T F / (L D): -4 F (G - G_0) / (L D^3) by F, and from there to the pixels."""
    reference, x = pictures(1), pictures(1, seed=1)
    states, wanted = eyes(x)[0], eyes(reference)[0]
    L, D = states.shape
    apart = (states.T @ states - wanted.T @ wanted) / (L * D)
    J = torch.autograd.functional.jacobian(lambda p: eyes(p).flatten(), x).flatten(1)
    expected = J.T @ (-4 * states @ apart / (L * D**3)).flatten()
    torch.testing.assert_close(gradient(likeness("gram", reference), x).flatten(), expected)


def test_style_has_no_place() -> None:
    """The same things elsewhere are the same to the Gram matrix, and to nothing else."""
    reference = pictures(1)
    moved = reference.flatten(2)[..., torch.randperm(24, generator=torch.Generator().manual_seed(0))].view_as(reference)
    assert float(likeness("gram", reference)(moved, ZERO, HEARD)) == pytest.approx(0, abs=1e-25)
    for by in ("pixels", "features"):
        assert float(likeness(by, reference)(moved, ZERO, HEARD)) < -0.01


@pytest.mark.parametrize("by", LIKENESSES)
def test_it_guides(by: str) -> None:
    """What is drawn with it is more like the reference than what is drawn without."""
    reference, scores = pictures(1).float(), []
    critic = likeness(by, reference)
    for scale in (0.0, 3000.0 if by == "gram" else 40.0):
        guide = Guide(
            critic=critic, heard=labels(0, 0), scale=scale, schedule=linear(), target="x0", time=lambda c: c / 1000, variance=0.25
        )
        process, rng = RectifiedFlow(Config(target="x0")), Rng.of_seeds([0, 1])
        drawn = sample(process, CriticGuidance(Toy(), guide), labels(0, 0), labels(0, 0), Sampling(guidance=1.0), Start(shape=SHAPE), rng)
        scores.append(critic(drawn, ZERO, HEARD))
    assert (scores[1] > 0.9 * scores[0]).all(), scores


def test_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="no likeness by 'colour'; there are: pixels, features, gram"):
        likeness("colour", pictures(1))
    for by in ("features", "gram"):
        with pytest.raises(ValueError, match=f"likeness by {by} is seen through eyes"):
            Likeness(pictures(1), by)  # type: ignore[arg-type]
