"""LoRA's arithmetic: where it begins, what it adds, part for part, and who learns."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.layers import conv, linear, lora
from triptych.layers.conv import Conv
from triptych.layers.linear import Linear
from triptych.layers.lora import ATTENTION, Addition, LoRA, Part

I, PARTS = 12, (5, 3, 8)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Small(nn.Module):
    """A fused product, a plain one with GELU, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv = Linear(I, sum(PARTS), parts=PARTS)
        self.up = Linear(sum(PARTS), 20)
        self.conv = Conv(20, 6, 3, padding=1)

    def forward(self, x_BLI: Tensor) -> Tensor:
        return self.conv(self.up(self.qkv(x_BLI), gelu=True).transpose(1, 2).unflatten(2, (3, -1)))


def awake(network: nn.Module) -> nn.Module:
    for i, (_, one) in enumerate(lora.inserted(network)):
        one.B.data = 0.3 * drawn(*one.B.shape, seed=i)
    return network


@pytest.mark.parametrize("autocast", [False, True])
@torch.no_grad()
def test_it_begins_as_it_was_to_the_bit(autocast: bool) -> None:
    network, x = Small(), drawn(2, 12, I)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        before = network(x)
        assert lora.insert(network, 2) == ["qkv"]
        assert torch.equal(network(x), before)
        lora.fold(network)
        lora.insert(network, 2, targets=("up",))  # whose GELU is no longer done inside of the product, where nobody learns
        assert (network(x) - before).abs().max() <= (0.01 if autocast else 1e-6)


def test_a_is_drawn_as_kaimings_uniform() -> None:
    torch.manual_seed(0)
    A = LoRA(Linear(100, 300, parts=(100,) * 3), 50, 50.0).A
    assert A.shape == (150, 100) and 0.098 < A.abs().max() <= 0.1 and A.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("gelu", [False, True])
@torch.no_grad()
def test_what_is_added_part_for_part(gelu: bool) -> None:
    """(W + (alpha / r) [B_q A_q; B_k A_k; B_v A_v]) x, in float64."""
    layer = Linear(I, sum(PARTS), parts=PARTS)
    one = LoRA(layer, 2, 3.0)
    one.B.copy_(drawn(*one.B.shape))
    found, x = one.additions("here"), drawn(4, I, seed=1)
    assert [a.part for a in found] == [Part("here", i, 3) for i in range(3)]
    assert [(tuple(a.A.shape), tuple(a.B.shape)) for a in found] == [((2, I), (rows, 2)) for rows in PARTS]
    whole = torch.cat([3 / 2 * a.B.double() @ a.A.double() for a in found])
    true = F.linear(x.double(), layer.weight.double() + whole, layer.bias.double())
    true = F.gelu(true, approximate="tanh") if gelu else true
    assert (one(x, gelu).double() - true).abs().max() < 1e-6 * true.abs().max()
    assert (one.folded().double() - layer.weight.double() - whole).abs().max() < 1e-6


@torch.no_grad()
def test_folding_is_the_same_network() -> None:
    network, x = Small(), drawn(2, 12, I)
    lora.insert(network, 3, 5.0, ("qkv", "up"))
    awake(network)
    apart, state, found = network(x), lora.plain(network), lora.additions(network)
    found = [Addition(a.part, a.A.clone(), a.B.clone(), a.alpha) for a in found]
    assert lora.fold(network) == 2 and type(network.qkv) is Linear and type(network.up) is Linear
    assert (network(x) - apart).abs().max() <= 1e-6 * apart.abs().max()
    assert state.keys() == network.state_dict().keys() and all(torch.equal(state[name], t) for name, t in network.state_dict().items())
    added = Small()
    assert lora.add(added, found) == 4  # products: three and one
    assert all(torch.equal(a, b) for a, b in zip(added.state_dict().values(), network.state_dict().values(), strict=True))


def test_only_a_and_b_learn_and_both_do() -> None:
    network, x = Small(), drawn(2, 12, I)
    lora.insert(network, 2, targets=("qkv", "up"))
    network(x).square().sum().backward()
    grads = {name: p.grad for name, p in network.named_parameters()}
    assert {name for name, p in network.named_parameters() if p.requires_grad} == {"qkv.A", "qkv.B", "up.A", "up.B"}
    assert all((grad is not None) == name.endswith((".A", ".B")) for name, grad in grads.items())
    assert not grads["qkv.A"].any() and grads["qkv.B"].any(), "B is zero: nothing comes to A yet"  # type: ignore[union-attr]
    awake(network)(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for name, p in network.named_parameters() if name.endswith((".A", ".B")))


def test_gradients_are_those_of_the_whole_weight() -> None:
    """dL/dB = (alpha / r) dL/dW A^T, dL/dA = (alpha / r) B^T dL/dW, part for part."""
    layer, x = Linear(I, sum(PARTS), parts=PARTS), drawn(6, I)
    one, grad = LoRA(layer, 2, 3.0), drawn(6, sum(PARTS), seed=2)
    one.B.data = drawn(*one.B.shape, seed=3)
    one(x).backward(grad)
    by_W = grad.double().t() @ x.double()
    parts = zip(by_W.split(PARTS), one.A.detach().double().split(2), one.B.detach().double().split(PARTS), strict=True)
    by_A, by_B = zip(*((1.5 * B.t() @ W, 1.5 * W @ A.t()) for W, A, B in parts), strict=True)
    assert one.A.grad is not None and one.B.grad is not None
    assert (one.A.grad.double() - torch.cat(by_A)).abs().max() < 1e-4
    assert (one.B.grad.double() - torch.cat(by_B)).abs().max() < 1e-4


@torch.no_grad()
def test_several_in_turn_with_weights_and_away_again() -> None:
    network = Small()
    before = network.qkv.weight.clone()
    one, two = (Addition(Part("qkv", 1, 3), drawn(2, I, seed=s), drawn(3, 2, seed=s + 1), 4.0) for s in (1, 5))
    assert lora.add(network, [one], 0.8) == lora.add(network, [two], -0.3) == 1
    true = before.double()
    true[5:8] += 2 * (0.8 * one.B.double() @ one.A.double() - 0.3 * two.B.double() @ two.A.double())
    assert (network.qkv.weight.double() - true).abs().max() < 1e-5
    assert torch.equal(network.qkv.weight[:5], before[:5]) and torch.equal(network.qkv.weight[8:], before[8:]), "its own rows alone"
    lora.add(network, [one], -0.8)
    lora.add(network, [two], 0.3)
    assert (network.qkv.weight - before).abs().max() < 1e-5


@torch.no_grad()
def test_convolutions() -> None:
    """A window is the first matrix's; a 1 x 1 convolution of a file is a product here."""
    network, x = Small(), drawn(2, 12, I)
    A, B = drawn(2, 20, 3, 3), drawn(6, 2, 1, 1, seed=1)
    before = network.conv.weight.double()
    lora.add(network, [Addition(Part("conv"), A, B, 1.0), Addition(Part("up"), drawn(2, 16, 1, 1), drawn(20, 2, 1, 1), 2.0)])
    true = before + 0.5 * torch.einsum("or,rihw->oihw", B[:, :, 0, 0].double(), A.double())
    assert (network.conv.weight.double() - true).abs().max() < 1e-5
    inner = F.conv2d(F.conv2d(drawn(1, 20, 5, 5, seed=4), A, padding=1), B)
    both = F.conv2d(drawn(1, 20, 5, 5, seed=4), (network.conv.weight - before.float()) * 2, padding=1)
    assert (inner - both).abs().max() < 1e-4 and torch.isfinite(network(x)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_was_packed_is_packed_anew(dtype: torch.dtype) -> None:
    """No old weight is computed with, and the new ones are as fast as the old."""
    network, x = Small().to(dtype).requires_grad_(False), drawn(2, 12, I).to(dtype)
    linear.pack(network)
    conv.pack(network)
    network(x)
    found = [Addition(Part("qkv", i, 3), drawn(2, I, seed=i), drawn(rows, 2, seed=i), 2.0) for i, rows in enumerate(PARTS)]
    lora.add(network, [*found, Addition(Part("conv"), drawn(2, 20, 3, 3), drawn(6, 2, 1, 1), 2.0)])
    plain = Small().to(dtype).requires_grad_(False)
    plain.load_state_dict(network.state_dict())
    close = 1e-5 if dtype is torch.float32 else 0.02
    assert (network(x) - plain(x)).float().norm() <= close * plain(x).float().norm()
    assert network.qkv.packed is None or network.qkv.packed.of(network.qkv.weight) is network.qkv.packed.copies
    assert network.conv.packing and network.qkv.weight.dtype == dtype


def test_what_cannot_be_inserted_is_said() -> None:
    for rank, alpha, targets, said in (
        (0, None, ATTENTION, "rank 0 adds nothing"),
        (4, None, ATTENTION, "a LoRA of rank 4 is more than qkv, 12 numbers to 3 + 5 + 8 can have: take 3 or less"),
        (2, 0.0, ATTENTION, "alpha 0: must be more than 0"), (2, float("nan"), ATTENTION, "alpha nan"),
        (2, None, ("qvk",), "no product of Small is called 'qvk'; did you mean 'qkv'"),
    ):  # fmt: skip
        network = Small()
        with pytest.raises(ValueError) as error:
            lora.insert(network, rank, alpha, targets)
        assert said in str(error.value) and "\n" not in str(error.value)
        assert type(network.qkv) is Linear and all(p.requires_grad for p in network.parameters()), "nothing was changed"
    with pytest.raises(ValueError, match="Sequential has no attention with qkv or query"):
        lora.insert(nn.Sequential(Linear(3, 3)), 1)
