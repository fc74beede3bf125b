"""Preconditioning: what a network is given and what its words are worth, so that both have the size of one at every noise.

    D(x, clock) = c_skip x + c_out F(c_in x, clock)        (Karras et al., EDM, arXiv 2206.00364, eq. 7)

Shapes: x [B, ...]; the coefficients [B].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from triptych.contracts import Condition
from triptych.processes.noise import spread

__all__ = ["Preconditioned"]


class Preconditioned(nn.Module):
    """A denoiser that says x0, around a network F. scalings(clock_B) -> c_skip, c_out, c_in. Parameters and `prepare` are the network's."""

    role = "denoiser"

    def __init__(self, network: nn.Module, scalings: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> None:
        super().__init__()
        self.network, self.scalings = network, scalings

    def prepare(self, cond: Condition) -> Condition:
        return self.network.prepare(cond) if hasattr(self.network, "prepare") else cond  # type: ignore[operator]

    def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        """x [B, ...] -> x0 [B, ...] in at least float32."""
        c_skip, c_out, c_in = (spread(c, x) for c in self.scalings(clock_B))
        F = self.network(c_in * x, clock_B, cond)
        return c_skip * x + c_out * F.to(torch.promote_types(F.dtype, torch.float32))
