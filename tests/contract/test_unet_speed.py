"""The U-Net's exact speed-ups give what the plain way gives: branches that share what is common, weights as the library reads them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests.contract.denoisers import READINGS, network, noisy, said
from triptych.contracts import Condition
from triptych.generators.unet import Config, UNet
from triptych.layers.conv import Conv, Enlarge, pack
from triptych.processes.guidance import ClassifierFree

each_reading = pytest.mark.parametrize("reading", [name for name, (config, _) in READINGS.items() if isinstance(config, Config)])
onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch carries no oneDNN")


def null(cond: Condition) -> Condition:
    """Something else on every port."""
    return cond._map(lambda port: port.flip(0).roll(1, -1))


def both(made: UNet, cond: Condition) -> Condition:
    return made.prepare(cond.cat([null(cond)]))


def packed(made: nn.Module) -> list[Conv]:
    return [layer for layer in made.modules() if isinstance(layer, Conv) and layer.weight.is_mkldnn]


# --- branches -----------------------------------------------------------------------------------------------------------


@each_reading
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_one_row_told_two_things_is_two_rows(reading: str, batch: int) -> None:
    made, (x, clock), cond = network(reading), noisy(batch), said(reading, batch)
    if not cond.ports():
        assert made(x, clock, cond).shape[0] == batch
        return
    heard = both(made, cond)
    torch.testing.assert_close(made(x, clock, heard), made(x.repeat(2, 1, 1, 1), clock.repeat(2), heard), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("reading", ["ADM, class", "GLIDE", "LDM, unequal depths"])
@torch.no_grad()
def test_what_both_share_is_computed_once(reading: str) -> None:
    made, cond = network(reading).to("meta"), said(reading).to("meta")  # where every product is counted
    (x, clock), flop = (one.to("meta") for one in noisy()), []
    heard = both(made, cond)
    for rows in (1, 2):
        with FlopCounterMode(display=False) as counter:
            made(x.repeat(rows, 1, 1, 1), clock.repeat(rows), heard)
        flop.append(counter.get_flop_counts()["Global"])
    conv, saved = torch.ops.aten.convolution, {op: flop[1][op] - flop[0][op] for op in flop[1]}
    stem = 2 * 3 * 16 * 16 * 9 * 3 * 8  # three rows less: the stem, and the first block up to where it is told something
    assert saved[conv] >= stem + 2 * 3 * 16 * 16 * 9 * 8 * 8
    if reading.startswith("LDM"):  # all that level 0's first transformer does before it asks the words
        block = stem + 2 * (2 * 3 * 16 * 16 * 9 * 8 * 8)
        assert saved[conv] == block and sum(saved.values()) > 1.5 * block


@pytest.mark.parametrize("reading", ["GLIDE", "LDM, unequal depths"])
@torch.no_grad()
def test_guidance_gives_the_network_one_row_of_each(reading: str) -> None:
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    seen: list[int] = []
    hook = made.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    scale, interval = torch.full((3,), 3.0), torch.tensor([[0.0, 1000.0]] * 3)
    out = ClassifierFree(made, null(cond), scale, interval)(x, clock, cond)
    some = ClassifierFree(made, null(cond), torch.tensor([3.0, 1.0, 3.0]), interval)(x, clock, cond)
    hook.remove()
    c, u = made(x, clock, cond)[:, :3], made(x, clock, null(cond))[:, :3]
    torch.testing.assert_close(out[:, :3], u + 3 * (c - u), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(some[1, :3], c[1], rtol=1e-5, atol=1e-5)
    assert seen == [3, 5]


@torch.no_grad()
def test_guidance_without_conditions_is_the_network() -> None:
    made, (x, clock), nothing = network("DDPM"), noisy(), Condition()
    out = ClassifierFree(made, nothing, torch.full((3,), 3.0), torch.tensor([[0.0, 1000.0]] * 3))(x, clock, nothing)
    torch.testing.assert_close(out, made(x, clock, nothing), rtol=1e-5, atol=1e-5)


# --- packed weights -----------------------------------------------------------------------------------------------------


@onednn
@each_reading
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_packed_computes_the_same(reading: str, dtype: torch.dtype) -> None:
    made, cond = network(reading).to(dtype).requires_grad_(False), said(reading)
    plain, before = made(*noisy(), cond), copy.deepcopy(made.state_dict())
    large = said(reading, size=(32, 32))
    plain_large = made(*noisy(size=(32, 32)), large)
    pack(made)
    near = 1e-5 if dtype is torch.float32 else 0.05
    for _ in range(2):
        torch.testing.assert_close(made(*noisy(), cond), plain, rtol=near, atol=near)
        torch.testing.assert_close(made(*noisy(size=(32, 32)), large), plain_large, rtol=near, atol=near)
    assert len(packed(made)) > 5
    after = made.state_dict()
    assert all(torch.equal(after[name], value) and not after[name].is_mkldnn for name, value in before.items())
    assert packed(made)  # asking for its weights undoes nothing


@onednn
@pytest.mark.parametrize("channels, side", [(64, 4), (4, 8)])  # fewer positions than channels, and more: the weights' sums
@torch.no_grad()
def test_packed_enlarging(channels: int, side: int) -> None:
    made, x = Enlarge(channels).requires_grad_(False), torch.randn(2, channels, side, side)
    plain = made(x, (2 * side, 2 * side - 1))
    pack(made)
    for _ in range(2):
        torch.testing.assert_close(made(x, (2 * side, 2 * side - 1)), plain, rtol=1e-5, atol=1e-5)
    made.load_state_dict({name: 2 * value for name, value in made.state_dict().items()})
    pack(made)
    torch.testing.assert_close(made(x, (2 * side, 2 * side - 1)), 2 * plain, rtol=1e-5, atol=1e-5)


@onednn
@torch.no_grad()
def test_sums_of_a_weight_that_changes_in_place_are_made_anew() -> None:
    made, x = Enlarge(4).requires_grad_(False), torch.randn(2, 4, 8, 8)
    assert made.conv.bias is not None
    pack(made)
    once = made(x, (16, 16))
    made.conv.weight.mul_(2)
    made.conv.bias.mul_(2)
    torch.testing.assert_close(made(x, (16, 16)), 2 * once, rtol=1e-5, atol=1e-5)


@onednn
def test_packing_is_undone_by_whatever_needs_the_weights() -> None:
    reading = "LDM, unequal depths"
    made, (x, clock), cond = network(reading), noisy(), said(reading)

    def ready() -> UNet:
        pack(made)
        with torch.no_grad():
            made(x, clock, cond)
        assert packed(made)
        return made

    expected = made(x, clock, cond)
    state = copy.deepcopy(made.state_dict())
    ready()(x, clock, cond).square().mean().backward()  # learning
    assert not packed(made) and all(p.grad is not None for p in made.parameters())
    torch.testing.assert_close(copy.deepcopy(ready())(x, clock, cond), expected, rtol=1e-5, atol=1e-5)
    assert ready().to(torch.float64).head.weight.dtype is torch.float64 and not packed(made)
    made.to(torch.float32)
    ready().load_state_dict(state)
    assert not packed(made) and all(torch.equal(value, state[name]) for name, value in made.state_dict().items())
    ready()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made(x, clock, cond)
    assert not packed(made)
    ready().compile(backend="eager", dynamic=False)
    assert not packed(made)
    pack(made)
    with torch.no_grad():
        torch.testing.assert_close(made(x, clock, cond), expected, rtol=1e-5, atol=1e-5)


@onednn
@torch.no_grad()
def test_packed_bf16_serves_autocast() -> None:
    """Weights in bf16 alone are computed with in bf16, whether or not that is asked for once more."""
    made, (x, clock), cond = network("GLIDE").to(torch.bfloat16).requires_grad_(False), noisy(), said("GLIDE")
    pack(made)
    plain = made(x, clock, cond)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(made(x, clock, cond), plain, rtol=0.05, atol=0.05)
    assert packed(made)
