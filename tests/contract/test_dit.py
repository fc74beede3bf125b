"""DiT's own: words that are none, what it refuses, and its parts. What it shares with others is in test_denoisers.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.contract.denoisers import TINY, WORDS, network, noisy, said
from triptych.contracts import Condition, LatentSpace
from triptych.generators.dit import Config, DiT
from triptych.layers.attention import attend, rotate
from triptych.layers.embed import patchify, rope_2d, sincos_2d, timestep_embedding, unpatchify


@torch.no_grad()
def test_no_words_at_all_is_no_trouble() -> None:
    made, (x, clock), cond = network("modern"), noisy(), said("modern")
    silent = replace(cond, mask_BL=torch.zeros(3, 6, dtype=torch.bool))
    assert made(x, clock, silent).isfinite().all()
    no_tokens = replace(cond, tokens_BLD=torch.empty(3, 0, 24), mask_BL=torch.ones(3, 0, dtype=torch.bool))
    torch.testing.assert_close(made(x, clock, no_tokens), made(x, clock, silent), rtol=1e-5, atol=1e-5)


def test_refuses() -> None:
    image = LatentSpace(kind="image", shape=(3, 16, 16))
    with pytest.raises(ValueError, match="kind 'grid'"):
        DiT(TINY, latent=LatentSpace(kind="grid", shape=(16, 16)), condition=WORDS)
    with pytest.raises(ValueError, match="15 x 16 cannot be cut into patches of 4"):
        DiT(TINY, latent=LatentSpace(kind="image", shape=(3, 15, 16)), condition=WORDS)
    with pytest.raises(ValueError, match=r"width 32 is no multiple of 4 . num_heads = 20"):
        DiT(Config(width=32, num_heads=5), latent=image, condition=WORDS)
    with pytest.raises(ValueError, match=r"hear tokens_BLD.*speaks on .'pooled_BD'"):
        network("modern")(*noisy(), Condition(pooled_BD=torch.zeros(3, 16)))


# --- the parts ----------------------------------------------------------------------------------------------------------


def test_patches_come_back() -> None:
    x = torch.randn(2, 3, 8, 12)
    channel_fastest = patchify(x, 4).unflatten(-1, (3, 16)).transpose(-1, -2).flatten(-2)
    assert torch.equal(unpatchify(channel_fastest, 4, (2, 3)), x)
    weight = torch.randn(5, 3, 4, 4)
    convolved = F.conv2d(x, weight, stride=4).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(x, 4) @ weight.flatten(1).T, convolved, rtol=1e-5, atol=1e-5)


def test_time_is_cosine_then_sine() -> None:
    out = timestep_embedding(torch.tensor([0.0, 1.0, 1000.0]), width=8)
    assert out[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    angles = torch.tensor([10_000 ** (-k / 4) for k in range(4)])
    torch.testing.assert_close(out[1], torch.cat([angles.cos(), angles.sin()]))


def test_rotary_scores_depend_on_distance_alone() -> None:
    """<R_a q, R_b k> for one and the same q and k: equal wherever the step from a to b is."""
    rope = rope_2d(16, (4, 5), (4, 5), torch.device("cpu"))
    q, k = torch.randn(2, 16)
    scores = (rotate(q.expand(20, 16), rope) @ rotate(k.expand(20, 16), rope).T).view(4, 5, 4, 5)
    torch.testing.assert_close(scores[0, 1, 2, 0], scores[1, 4, 3, 3])
    assert abs(scores[0, 0, 0, 1] - scores[0, 0, 1, 0]) > 1e-4  # rows are not columns


def test_another_grid_is_stretched_over_the_trained_one() -> None:
    coarse, fine = (sincos_2d(8, grid, (4, 4), torch.device("cpu")) for grid in ((4, 4), (8, 8)))
    torch.testing.assert_close(fine.view(8, 8, 8)[::2, ::2], coarse.view(4, 4, 8))


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_short_attention_in_bf16_is_attention(masked: bool, learns: bool) -> None:
    q, k, v = (torch.randn(2, 4, n, 16, dtype=torch.bfloat16, requires_grad=learns) for n in (5, 9, 9))
    mask = (torch.arange(9) < torch.tensor([[3], [9]]))[:, None, None] if masked else None
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask)
    assert ((attend(q, k, v, mask) - exact).norm() / exact.norm()).item() < 0.01
