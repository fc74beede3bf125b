"""What every reading of every denoiser keeps to: shapes, gradients, independence of rows, one preparation a request, learning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save

from tests.contract.denoisers import READINGS, network, noisy, said

each_reading = pytest.mark.parametrize("reading", READINGS)
hearing_words = pytest.mark.parametrize("reading", [name for name, (_, said) in READINGS.items() if said.width])


@each_reading
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (32, 4)])
def test_shapes(reading: str, size: tuple[int, int]) -> None:
    x, clock = noisy(size=size)
    out = network(reading)(x, clock, said(reading, size=size))
    assert out.shape == (3, 6 if READINGS[reading][0].learn_sigma else 3, *size)
    assert out.dtype == torch.float32 and out.isfinite().all() and out.std() > 0.01


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
def test_every_port_is_heard(reading: str) -> None:
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    out = made(x, clock, cond)
    assert (made(x, clock + 100, cond) - out).abs().max() > 1e-3
    for name, port in cond.ports().items():
        other = ~port if port.dtype == torch.bool else port.flip(0) + (port.dtype != torch.int64)
        assert (made(x, clock, replace(cond, **{name: other})) - out).abs().max() > 1e-4, name


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
    assert (made(x, clock, replace(cond, mask_BL=None)) - made(x, clock, cond)).abs().max() > 1e-3


@hearing_words
@torch.no_grad()
def test_prepared_once_is_the_same(reading: str) -> None:
    made: Any = network(reading)
    (x, clock), cond = noisy(), said(reading)
    prepared, expected = made.prepare(cond), made(x, clock, cond)
    assert prepared.prepared_BLX is not None and prepared.prepared_BLX.shape[:2] == (3, 6)
    torch.testing.assert_close(made(x, clock, prepared), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(made(x, clock, replace(prepared, tokens_BLD=None)), expected, rtol=0, atol=1e-6)
    silent = replace(cond, mask_BL=torch.zeros(3, 6, dtype=torch.bool))
    assert made(x, clock, silent).isfinite().all()


@pytest.mark.parametrize("reading", ["modern", "paper", "pixart", "tiny", "ADM, class", "GLIDE"])
def test_overfits_one_batch(reading: str) -> None:
    made, (x, clock), cond = network(reading, awake=False), noisy(), said(reading)
    target = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(made.parameters(), lr=5e-3)
    for _ in range(200):
        loss = (made(x, clock, cond)[:, :3] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * target.square().mean().item()


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


@pytest.mark.parametrize("reading", ["modern", "tiny", "GLIDE"])
@torch.no_grad()
def test_compiles_as_one_graph(reading: str) -> None:
    """Traced whole, tables of place as constants; the code generator itself belongs to torch and to the trainer's tests."""
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    traced = torch.compile(made, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(traced(x, clock, cond), made(x, clock, cond), rtol=1e-4, atol=1e-4)
