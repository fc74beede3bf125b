"""The small parts of transformer blocks: norms, feed-forward networks, modulation. D width, L tokens, B batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.layers.linear import Linear

__all__ = ["MLP", "RMSNorm", "SwiGLU", "modulate"]


class RMSNorm(nn.Module):
    """x / rms(x) over the last dimension (arXiv 1910.07467), times a learnt scale unless `scale` is False."""

    def __init__(self, width: int, scale: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.shape, self.eps = (width,), eps
        self.weight = nn.Parameter(torch.ones(width)) if scale else None

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.shape, None if self.weight is None else self.weight.to(x.dtype), self.eps)


class MLP(nn.Module):
    """Linear, GELU (its tanh form), Linear."""

    def __init__(self, width: int, hidden: int, out: int | None = None, bias: bool = True) -> None:
        super().__init__()
        self.up = Linear(width, hidden, bias=bias)
        self.down = Linear(hidden, out or width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x, gelu=True))


class SwiGLU(nn.Module):
    """down(silu(a) * b), (a, b) = up(x) in one product (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.up = Linear(width, 2 * hidden, bias=bias)
        self.down = Linear(hidden, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(a) * b)


def modulate(x_BLD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """x (1 + scale) + shift, in float32 if either side is."""
    return torch.addcmul(shift_B1D, x_BLD, 1 + scale_B1D)
