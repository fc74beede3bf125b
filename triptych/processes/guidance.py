"""Guidance: a denoiser around a denoiser, with the denoiser's own signature.

    out = u + s (c - u),   c = network(x | cond),   u = network(x | null),   s = 1: off

(Ho & Salimans, Classifier-Free Diffusion Guidance, arXiv 2207.12598, in the form where s = 1 is the plain model.) x0, eps and
v are affine in one another at a given x_t, so it is the same rule for every target. Guidance at the noisiest times costs
variety and at the cleanest does nothing: it can be kept to an interval of times (Kynkäänniemi et al., arXiv 2404.07724), and
outside of it the second branch is not evaluated.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from triptych.contracts import Condition

__all__ = ["ClassifierFree"]


class ClassifierFree(nn.Module):
    """`network`, guided. One batched pass: all rows with their condition, and below them the guided rows with their null.

    null: what the unconditional branch hears, or a negative prompt: B rows, with the ports of the condition.
    scale_B: float, 1 = off.
    interval_B2: guidance acts where interval[0] <= clock <= interval[1]: times in the clock's unit, `process.clock(t)`.

    scale_B, interval_B2 and the clock may lie on the CPU while x is elsewhere: then nothing waits for the device.
    """

    role = "denoiser"

    def __init__(self, network: nn.Module, null: Condition, scale_B: Tensor, interval_B2: Tensor) -> None:
        super().__init__()
        self.network, self.null, self.scale_B, self.interval_B2 = network, null, scale_B, interval_B2

    def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        """x [B, ...] -> [B, ...] in at least float32: the difference of two branches is small and is multiplied."""
        low, high = self.interval_B2.unbind(1)
        guided_B = (self.scale_B != 1) & (low <= clock_B) & (clock_B <= high)
        clock, count = clock_B.to(x.device), len(x)
        if not guided_B.any():
            return _wide(self.network(x, clock, cond))
        if guided_B.all():
            both = self.network(torch.cat([x, x]), torch.cat([clock, clock]), cond.cat([self.null]))
            c, u = _wide(both).split(count)
            return u + self._scale(guided_B, x) * (c - u)
        which = guided_B.nonzero().flatten()
        both = self.network(
            torch.cat([x, x[which]]), torch.cat([clock, clock[which]]), cond.cat([self.null.rows(which)])
        )  # fmt: skip
        c, u = _wide(both).split([count, len(which)])
        return c.index_copy(0, which.to(x.device), u + self._scale(which, x) * (c[which] - u))

    def _scale(self, which: Tensor, x: Tensor) -> Tensor:
        return self.scale_B[which].to(x.device).view(-1, *[1] * (x.ndim - 1))


def _wide(out: Tensor) -> Tensor:
    return out.to(torch.promote_types(out.dtype, torch.float32))
