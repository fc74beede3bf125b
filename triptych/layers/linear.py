"""x W^T + b, by the fastest of the libraries that torch carries; the same numbers but for the order of rounding.

For float32 torch asks MKL, which keeps AMD's processors to instructions of half the width. oneDNN, which torch asks for bf16, does
not: 2.1 times as fast on Zen 5 (105 and 220 GFLOP/s a core). It also applies GELU while the product is still in the cache: done
after it, the tanh costs as much as the product. A product of which one half gates the other (GEGLU) is two products for the same
reason: in bf16 a tenth to a half less time (on a core of a Xeon beside other work, 128 x 128 to 1,024: 134 and 121 us; 1,024 x 128 to
1,024: 963 and 794; 8,192 x 320 to 2,560: 64 and 27 ms). On Intel's processors, where MKL has all instructions, oneDNN is asked for weights
that were packed, and torch for the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

__all__ = ["INTEL", "Linear", "geglu", "learns", "pack", "product", "repack"]

_ONEDNN = torch.backends.mkldnn.is_available()
INTEL = "Intel" in str(getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name", ""))  # for them MKL uses all instructions


class Linear(nn.Linear):
    """nn.Linear, and after it, if asked, GELU in its tanh form.

    parts: rows of each product where several that read the same x stand one below the other, such as queries, keys and values; not
    said, all rows are one. Nothing is computed otherwise: who changes the weight, as a LoRA does, asks which rows belong together.
    gated: it will be asked for `geglu`, and is packed for that.
    """

    packed: _Packed | None = None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, parts: Sequence[int] = (), gated: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, bias, dtype=dtype)
        self.parts, self.gated = tuple(parts) or (out_features,), gated
        assert sum(self.parts) == out_features, f"parts of {self.parts} rows are not {out_features}"

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        weight, bias = self.weight, self.bias
        if not self._onednn(x):
            y = F.linear(x, weight, bias)
        elif learns(x, weight):
            y = _Differentiable.apply(x, weight, bias) if x.dtype is torch.float32 else F.linear(x, weight, bias)
        elif torch.compiler.is_compiling():
            return _traced(x, weight, bias, gelu)
        else:
            packed = self.packed
            read = weight if packed is None or self.gated else packed.of(weight)[0]
            return product(x, read, bias, "tanh" if gelu else "")
        return F.gelu(y, approximate="tanh") if gelu else y

    def geglu(self, x: Tensor) -> Tensor:
        """a GELU(b), where forward(x) = [a, b] (arXiv 2002.05202): [..., I] -> [..., O / 2]."""
        if learns(x, self.weight) or not self._onednn(x) or torch.compiler.is_compiling():
            return geglu(self(x))
        halves = self.weight.chunk(2) if self.packed is None else self.packed.of(self.weight)
        biases = (None, None) if self.bias is None else self.bias.chunk(2)
        return product(x, halves[0], biases[0]).mul_(product(x, halves[1], biases[1], "erf"))

    def _onednn(self, x: Tensor) -> bool:
        """Is it asked for x, and not torch? What autocast would make another precision of is torch's."""
        ours = _ONEDNN and x.is_cpu and x.dtype is self.weight.dtype and x.dtype in (torch.float32, torch.bfloat16)
        if not ours or (torch.is_autocast_enabled("cpu") and x.dtype is not torch.get_autocast_dtype("cpu")):
            return False
        return not INTEL or (self.packed is not None and not torch.compiler.is_compiling())


def learns(*tensors: Tensor) -> bool:
    """Does anybody ask for gradients of what is made of them?"""
    return torch.is_grad_enabled() and any(one.requires_grad for one in tensors)


def geglu(y: Tensor) -> Tensor:
    """a GELU(b) of y = [a, b]."""
    a, b = y.chunk(2, dim=-1)
    return a * F.gelu(b)


def pack(module: nn.Module, room: int = 2**28) -> None:
    """For a module that is done with learning: keep each Linear's weight once more, laid out as oneDNN reads it (7 % faster).

    room: bytes that the copies may take; layers that come after it is full are left as they are.
    A weight that changes later, by an optimizer, `load_state_dict` or `to`, is noticed and its copy not used any more.
    """
    for layer in module.modules():
        if isinstance(layer, Linear) and _ONEDNN and layer.weight.is_cpu and layer.weight.dtype in (torch.float32, torch.bfloat16):
            room -= layer.weight.nbytes
            if room >= 0:
                layer.packed = _Packed(layer)


def repack(layer: Linear) -> None:
    """For one that was packed, and whose weight has changed for good."""
    if layer.packed is not None:
        layer.packed = _Packed(layer)


class _Packed:
    """A layer's weight once more, or its two halves, as oneDNN reads them."""

    def __init__(self, layer: Linear) -> None:
        self.source, self.version = layer.weight.detach(), layer.weight._version  # held, so that its address stays its own
        self.copies = [torch.ops.mkldnn._reorder_linear_weight(one, 128) for one in self.source.chunk(2 if layer.gated else 1)]

    def of(self, weight: Tensor) -> Sequence[Tensor]:
        """Of what was packed; of another weight its own rows."""
        fresh = weight._version == self.version and weight.data_ptr() == self.source.data_ptr()
        return self.copies if fresh else weight.chunk(len(self.copies))

    def __deepcopy__(self, memo: dict) -> None:
        return None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: Literal["", "tanh", "erf"] = "") -> Tensor:
    """x [..., I] and weight [O, I] of one precision on a CPU -> [..., O], by oneDNN; no gradients. gelu: behind it, in which form."""
    after = {"": ("none", ""), "tanh": ("gelu", "tanh"), "erf": ("gelu", "none")}[gelu]
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after[0], [], after[1])


@torch.library.custom_op("triptych::linear", mutates_args=())
def _traced(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """The same as one step of a graph: torch's compiler uses oneDNN's product only for weights that never change."""
    return product(x, weight, bias, "tanh" if gelu else "")


@_traced.register_fake
def _shape(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])


@register_flop_formula(torch.ops.triptych.linear)
def _flop(x: Any, weight: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * torch.Size(x[:-1]).numel() * weight[0] * weight[1]


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _traced(x, weight, bias, False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias = ctx.needs_input_grad
        rows_RO, rows_RI = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
        return (
            _traced(grad, weight.t(), None, False) if need_x else None,
            _traced(rows_RO.t(), rows_RI.t(), None, False) if need_weight else None,
            rows_RO.sum(0) if need_bias else None,
        )
