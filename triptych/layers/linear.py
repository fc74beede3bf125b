"""x W^T + b, by the fastest of the libraries that torch carries; the same numbers but for the order of rounding.

For float32 torch asks MKL, which keeps AMD's processors to instructions of half the width. oneDNN, which torch asks for bf16, does
not: 2.1 times as fast on Zen 5 (105 and 220 GFLOP/s a core). It also applies GELU while the product is still in the cache: done
after it, the tanh costs as much as the product.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

__all__ = ["Linear", "pack", "product", "repack"]

_ONEDNN = torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """nn.Linear, and after it, if asked, GELU in its tanh form.

    parts: rows of each product where several that read the same x stand one below the other, such as queries, keys and values; not
    said, all rows are one. Nothing is computed otherwise: who changes the weight, as a LoRA does, asks which rows belong together.
    """

    packed: _Packed | None = None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, *, parts: Sequence[int] = (), dtype: torch.dtype | None = None
    ) -> None:  # fmt: skip
        super().__init__(in_features, out_features, bias, dtype=dtype)
        self.parts = tuple(parts) or (out_features,)
        assert sum(self.parts) == out_features, f"parts of {self.parts} rows are not {out_features}"

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        weight, bias = self.weight, self.bias
        ours = _ONEDNN and x.is_cpu and x.dtype is weight.dtype and x.dtype in (torch.float32, torch.bfloat16)
        if not ours or torch.is_autocast_enabled("cpu"):  # there F.linear is right
            y = F.linear(x, weight, bias)
        elif torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
            y = _Differentiable.apply(x, weight, bias) if x.dtype is torch.float32 else F.linear(x, weight, bias)
        elif torch.compiler.is_compiling():
            return _traced(x, weight, bias, gelu)
        else:
            packed = self.packed
            return product(x, weight if packed is None else packed.of(weight), bias, gelu)
        return F.gelu(y, approximate="tanh") if gelu else y


def pack(module: nn.Module, room: int = 2**28) -> None:
    """For a module that is done with learning: keep each Linear's weight once more, laid out as oneDNN reads it (7 % faster).

    room: bytes that the copies may take; layers that come after it is full are left as they are.
    A weight that changes later, by an optimizer, `load_state_dict` or `to`, is noticed and its copy not used any more.
    """
    for layer in module.modules():
        if isinstance(layer, Linear) and _ONEDNN and layer.weight.is_cpu and layer.weight.dtype in (torch.float32, torch.bfloat16):
            room -= layer.weight.nbytes
            if room >= 0:
                layer.packed = _Packed(layer.weight)


def repack(layer: Linear) -> None:
    """For one that was packed, and whose weight has changed for good."""
    if layer.packed is not None:
        layer.packed = _Packed(layer.weight)


class _Packed:
    def __init__(self, weight: Tensor) -> None:
        self.source, self.version = weight.detach(), weight._version  # held, so that its address stays its own
        self.copy = torch.ops.mkldnn._reorder_linear_weight(self.source, 128)

    def of(self, weight: Tensor) -> Tensor:
        return self.copy if weight._version == self.version and weight.data_ptr() == self.source.data_ptr() else weight

    def __deepcopy__(self, memo: dict) -> None:
        return None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """x [..., I] and weight [O, I] of one precision on a CPU -> [..., O], by oneDNN; no gradients."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "tanh" if gelu else "")


@torch.library.custom_op("triptych::linear", mutates_args=())
def _traced(x: Tensor, weight: Tensor, bias: Tensor | None, gelu: bool) -> Tensor:
    """The same as one step of a graph: torch's compiler uses oneDNN's product only for weights that never change."""
    return product(x, weight, bias, gelu)


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
