"""What every reading of DiT keeps to: shapes, gradients, independence of rows, one preparation a request, learning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save

from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.generators.dit import SIZES, Config, DiT
from triptych.layers.attention import attend, rotate
from triptych.layers.embed import patchify, rope_2d, sincos_2d, timestep_embedding, unpatchify

TINY = SIZES["tiny"]
PAPER = replace(SIZES["DiT-S/2"], width=32, depth=2, num_heads=2)
PIXART = replace(SIZES["PixArt-XL/2"], width=32, depth=2, num_heads=2)
WORDS = ConditionSpec(width=24, context_length=8, pooled=16)
READINGS = {
    "modern": (TINY, WORDS),
    "modern, rope alone, class": (replace(TINY, position="rope"), ConditionSpec(num_labels=5)),
    "modern, adaLN-Zero": (replace(TINY, modulation="block", position="sincos"), WORDS),
    "paper": (PAPER, ConditionSpec(num_labels=5)),
    "pixart": (PIXART, ConditionSpec(width=24, context_length=8)),
}
each_reading = pytest.mark.parametrize("reading", READINGS)
hearing_words = pytest.mark.parametrize("reading", [name for name, (_, said) in READINGS.items() if said.width])


def network(reading: str, awake: bool = True) -> DiT:
    """`awake`: gates and last layer, which start at zero, are moved, so that every part is heard."""
    config, condition = READINGS[reading]
    torch.manual_seed(0)
    made = DiT(config, latent=LatentSpace(kind="image", shape=(3, 16, 16)), condition=condition)
    if awake:
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def said(reading: str, batch: int = 3, length: int = 6) -> Condition:
    spec = READINGS[reading][1]
    generator = torch.Generator().manual_seed(1)
    if not spec.width:
        return Condition(label_B=torch.arange(batch) % (spec.num_labels + 1))
    mask = torch.arange(length) < 1 + torch.arange(batch)[:, None] % length
    pooled = torch.randn(batch, spec.pooled, generator=generator) if spec.pooled else None
    return Condition(tokens_BLD=torch.randn(batch, length, spec.width, generator=generator), mask_BL=mask, pooled_BD=pooled)


def noisy(batch: int = 3, size: tuple[int, int] = (16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(batch, 3, *size, generator=generator), 1000 * torch.rand(batch, generator=generator)


@each_reading
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (32, 4)])
def test_shapes(reading: str, size: tuple[int, int]) -> None:
    x, clock = noisy(size=size)
    out = network(reading)(x, clock, said(reading))
    assert out.shape == (3, 6 if READINGS[reading][0].learn_sigma else 3, *size)
    assert out.dtype == torch.float32 and out.isfinite().all()


@each_reading
def test_starts_silent(reading: str) -> None:
    assert not network(reading, awake=False)(*noisy(), said(reading)).any()


@each_reading
def test_every_parameter_gets_a_gradient(reading: str) -> None:
    made = network(reading)
    made(*noisy(), said(reading)).square().sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()] == []


@each_reading
@torch.no_grad()
def test_rows_are_independent(reading: str) -> None:
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    together = made(x, clock, cond)
    for row in range(3):
        alone = made(x[row : row + 1], clock[row : row + 1], cond.rows(slice(row, row + 1)))
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-5, atol=1e-5)


@hearing_words
@torch.no_grad()
def test_padding_is_not_heard(reading: str) -> None:
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    assert cond.tokens_BLD is not None and cond.mask_BL is not None
    noise = torch.where(cond.mask_BL[..., None], cond.tokens_BLD, 1e3)
    longer = replace(cond, tokens_BLD=F.pad(noise, (0, 0, 0, 4), value=9.0), mask_BL=F.pad(cond.mask_BL, (0, 4)))
    torch.testing.assert_close(made(x, clock, longer), made(x, clock, cond), rtol=1e-5, atol=1e-5)
    assert (made(x, clock, replace(cond, mask_BL=None)) - made(x, clock, cond)).abs().max() > 1e-2


@hearing_words
@torch.no_grad()
def test_prepared_once_is_the_same(reading: str) -> None:
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    prepared = made.prepare(cond)
    config, _ = READINGS[reading]
    assert prepared.prepared_BLX is not None and prepared.prepared_BLX.shape == (3, 6, config.depth * 2 * config.width)
    expected = made(x, clock, cond)
    torch.testing.assert_close(made(x, clock, prepared), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(made(x, clock, replace(prepared, tokens_BLD=None)), expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_no_words_at_all_is_no_trouble() -> None:
    made, (x, clock), cond = network("modern"), noisy(), said("modern")
    silent = replace(cond, mask_BL=torch.zeros(3, 6, dtype=torch.bool))
    assert made(x, clock, silent).isfinite().all()
    no_tokens = replace(cond, tokens_BLD=torch.empty(3, 0, 24), mask_BL=torch.ones(3, 0, dtype=torch.bool))
    torch.testing.assert_close(made(x, clock, no_tokens), made(x, clock, silent), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reading", ["modern", "paper", "pixart"])
def test_overfits_one_batch(reading: str) -> None:
    made, (x, clock), cond = network(reading, awake=False), noisy(), said(reading)
    target = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(150):
        loss = (made(x, clock, cond)[:, :3] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05 * target.square().mean().item()


@each_reading
@torch.no_grad()
def test_saved_and_loaded_is_bit_equal(reading: str) -> None:
    made = network(reading)
    with torch.device("meta"):
        again = network(reading, awake=False)
    again.load_state_dict(load(save(made.state_dict())), assign=True)
    assert torch.equal(again(*noisy(), said(reading)), made(*noisy(), said(reading)))


@each_reading
def test_bf16(reading: str) -> None:
    """Autocast leaves parameters and gradients in float32; weights in bf16 alone work too."""
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    exact = made(x, clock, cond)
    with torch.autocast("cpu", torch.bfloat16):
        out = made(x, clock, cond)
    out.square().mean().backward()
    assert {p.grad.dtype for p in made.parameters() if p.grad is not None} == {torch.float32}
    with torch.no_grad():
        low = made.to(torch.bfloat16)(x, clock, cond)
    for rough in (out, low):
        assert rough.dtype == torch.float32
        assert ((rough - exact).norm() / exact.norm()).item() < 0.05


@torch.no_grad()
def test_compiles_as_one_graph() -> None:
    """Traced whole, tables of place as constants; the code generator itself belongs to torch and to the trainer's tests."""
    made, (x, clock), cond = network("modern"), noisy(), said("modern")
    traced = torch.compile(made, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(traced(x, clock, cond), made(x, clock, cond), rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("masked", [False, True])
def test_short_attention_in_bf16_is_attention(masked: bool) -> None:
    q, k, v = (torch.randn(2, 4, n, 16, dtype=torch.bfloat16) for n in (5, 9, 9))
    mask = (torch.arange(9) < torch.tensor([[3], [9]]))[:, None, None] if masked else None
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), mask)
    assert ((attend(q, k, v, mask) - exact).norm() / exact.norm()).item() < 0.01
