"""`layers.linear.Linear` against torch's own product in float64: values, gradients, and when a packed weight may be used."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from triptych.layers import linear
from triptych.layers.linear import Linear, pack, product
from triptych.layers.lora import LoRA


@pytest.fixture(autouse=True, params=[False, True], ids=["not Intel's", "Intel's"])
def processor(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways, whatever this one is."""
    monkeypatch.setattr(linear, "INTEL", request.param)
    return request.param


def exact(layer: nn.Linear, x: Tensor, gelu: bool) -> Tensor:
    y = F.linear(x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double())
    return F.gelu(y, approximate="tanh") if gelu else y


def error(mine: Tensor, true: Tensor) -> float:
    return ((mine.double() - true).norm() / true.norm()).item()


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (2, 1), (3, 5), (2, 3, 7)], ids=str)
@pytest.mark.parametrize(
    "dtype, close", [(torch.float32, 1e-6), (torch.bfloat16, 8e-3), (torch.float64, 1e-12), (torch.float16, 1e-3)],
    ids=["float32", "bf16", "float64", "float16"],
)  # fmt: skip
def test_values(dtype: torch.dtype, close: float, shape: tuple[int, ...], bias: bool, gelu: bool) -> None:
    layer, x = Linear(24, 17, bias=bias, dtype=dtype), torch.randn(*shape, 24, dtype=dtype)
    true = exact(layer, x, gelu)
    learning = layer(x, gelu)
    with torch.no_grad():
        plain = layer(x, gelu)
        pack(layer)
        packed = layer(x, gelu)
    for y in (learning, plain, packed):
        assert y.shape == true.shape and y.dtype == dtype
        assert error(y, true) < close
    assert learning.requires_grad and not plain.requires_grad


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype, close", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2), (torch.float64, 1e-12)], ids=str)
def test_one_half_gates_the_other(dtype: torch.dtype, close: float, bias: bool) -> None:
    """Learning, plain, packed, packed of a weight that has changed since, and inside a LoRA that adds nothing."""
    layer, x = Linear(24, 36, bias=bias, gated=True, dtype=dtype), torch.randn(2, 5, 24, dtype=dtype)

    def true() -> Tensor:
        a, b = exact(layer, x, False).chunk(2, dim=-1)
        return a * F.gelu(b)

    learning = layer.geglu(x)
    assert learning.requires_grad and error(learning.detach(), true()) < close
    with torch.no_grad():
        assert error(layer.geglu(x), true()) < close
        pack(layer)
        assert error(layer.geglu(x), true()) < close and error(layer(x), exact(layer, x, False)) < close
        layer.weight.mul_(2)
        assert error(layer.geglu(x), true()) < close
        assert error(LoRA(layer, 2, 2.0).to(dtype).geglu(x), true()) < close


@pytest.mark.parametrize("gelu", [False, True])
def test_gradients(gelu: bool) -> None:
    layer = Linear(24, 17)
    x = torch.randn(2, 5, 24).transpose(0, 1).requires_grad_()
    grad = torch.randn(5, 2, 17)
    layer(x, gelu).backward(grad)
    mine = [x.grad, layer.weight.grad, layer.bias.grad]
    true = torch.autograd.grad(exact(layer, x, gelu), [x, layer.weight, layer.bias], grad.double())
    for a, b in zip(mine, true, strict=True):
        assert a is not None and error(a, b.double()) < 1e-6


def test_what_needs_no_gradient_gets_none() -> None:
    layer, x = Linear(8, 4).requires_grad_(False), torch.randn(3, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None
    layer.requires_grad_(True)
    layer(x.detach()).sum().backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None


def test_autocast_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = Linear(8, 4), torch.randn(3, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        pack(layer)
        assert layer(x).dtype == torch.bfloat16
        layer.to(torch.bfloat16)
        pack(layer)
        asked: list[Tensor] = []
        monkeypatch.setattr(linear, "product", lambda x, weight, *more: asked.append(weight) or product(x, weight, *more))
        assert error(layer(x.bfloat16()), exact(layer, x.bfloat16(), False)) < 8e-3
        assert layer.packed is not None and [id(one) for one in asked] == [id(layer.packed.copies[0])], "bf16 itself is packed there too"


@torch.no_grad()
def test_a_changed_weight_is_noticed() -> None:
    layer, x = Linear(24, 17).requires_grad_(False), torch.randn(6, 24)
    ways = {
        "in place": lambda: layer.weight.mul_(2),
        "loaded": lambda: layer.load_state_dict(Linear(24, 17).state_dict()),
        "replaced": lambda: setattr(layer.weight, "data", torch.randn(17, 24)),
        "there and back": lambda: layer.to(torch.bfloat16).to(torch.float32),
        "optimizer": lambda: torch.optim.SGD([layer.weight], lr=1.0).step(),
    }
    for way, change in ways.items():
        pack(layer)
        assert layer.packed is not None and layer.packed.of(layer.weight) is layer.packed.copies
        if way == "optimizer":
            layer.weight.grad = torch.randn(17, 24)
        change()
        assert error(layer(x), exact(layer, x, False)) < 1e-6, way


@torch.no_grad()
def test_copies_are_not_packed_and_keep_their_names() -> None:
    layer = Linear(24, 17)
    pack(layer)
    again = copy.deepcopy(layer)
    assert again.packed is None and list(layer.state_dict()) == ["weight", "bias"]
    again.weight.add_(1)
    x = torch.randn(6, 24)
    assert error(again(x), exact(again, x, False)) < 1e-6 and error(layer(x), exact(layer, x, False)) < 1e-6


def test_traced_whole_and_counted() -> None:
    layer, x = Linear(24, 17), torch.randn(6, 24, requires_grad=True)
    traced = torch.compile(layer, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(traced(x, True), layer(x, True))
    with torch.no_grad():
        torch.testing.assert_close(traced(x), layer(x))
    with FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 6 * 24 * 17
