"""Next-scale prediction (VAR, arXiv 2404.02905): each step draws all tokens of one scale, in parallel.

    guided = u + s_k (c - u),    s_k = 1 + (guidance - 1) k / (scales - 1)

Guidance rises from coarse to fine; VAR's own number is ours less one, since here 1 = off as everywhere.

B batch, C channels of the codebook, H W the last scale's grid, L tokens of all scales, l of one, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.joints.next_token import draw
from triptych.contracts import Condition, Latents, Rng, Start, State

__all__ = ["NextScale", "SIZES", "Config", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Nothing to choose."""


SIZES = {"tiny": Config()}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """guidance: at the last scale, 1 = off.  top_k: 0 = all."""

    guidance: float = 1.5
    temperature: float = 1.0
    top_k: int = 0


class NextScale:
    drives = "tokens"
    Sampling = Sampling
    abilities = frozenset({"negative"})

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self, network: nn.Module, teacher: nn.Module | None = None) -> nn.ModuleDict:
        return nn.ModuleDict()

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def after_step(self, network: Any, phase: str, step: int) -> None: ...

    def losses(self, network: Any, batch: Latents, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """Teacher forcing: every scale from the true scales before it, all in one pass."""
        sum_BCHW, inputs = self._nothing(network, len(batch.z)), []
        with torch.no_grad():
            for k, tokens in enumerate(batch.z.split(_counts(network), dim=1)):
                sum_BCHW, after = network.latent.codebook.accumulate(sum_BCHW, tokens, k)
                inputs.append(after.flatten(2))
        logits_BLV = network(torch.cat(inputs[:-1], dim=2), batch.cond).float()
        return {"loss": F.cross_entropy(logits_BLV.transpose(1, 2), batch.z)}

    def begin(self, network: Any, cond: Condition, null: Condition, how: Sampling, start: Start, rng: Rng) -> State:
        rows, counts, nothing = len(rng), _counts(network), self._nothing(network, len(rng))
        index = torch.zeros(rows, dtype=torch.int64)
        settings = {name: torch.full((rows,), getattr(how, name)) for name in ("guidance", "temperature", "top_k")}
        return State(
            x=torch.zeros(rows, *start.shape, dtype=torch.int64, device=nothing.device), index_B=index, total_B=index + len(counts),
            cond=cond, null=null, rng=rng,
            extra={"sum": nothing, "inputs": nothing.new_zeros(rows, nothing.shape[1], sum(counts[1:])), **settings},
        )  # fmt: skip

    def step(self, network: Any, state: State) -> State:
        """One evaluation for all rows, whichever scale each is at; then the codebook, for the rows of one scale together."""
        live_B = ~state.done_B
        if not live_B.all():
            return state.put(live_B, self.step(network, state.rows(live_B))) if live_B.any() else state
        extra, counts, rng = state.extra, _counts(network), state.rng
        both = network(torch.cat([extra["inputs"]] * 2), state.cond.cat([state.null])).float()
        c_BLV, u_BLV = both.chunk(2)
        x, sums, inputs = state.x.clone(), extra["sum"].clone(), extra["inputs"].clone()
        for k in state.index_B.unique().tolist():
            at, first = (state.index_B == k).nonzero().flatten(), sum(counts[:k])
            here = slice(first, first + counts[k])
            scale = 1 + (extra["guidance"][at] - 1) * k / max(len(counts) - 1, 1)
            logits_BlV = u_BLV[at, here] + scale.to(both)[:, None, None] * (c_BLV[at, here] - u_BLV[at, here])
            u = rng.rows(at).uniform("token", logits_BlV.shape[1:], k).to(both)
            each = (extra[name][at].repeat_interleave(counts[k]) for name in ("temperature", "top_k"))
            tokens = draw(logits_BlV.flatten(0, 1), u.flatten(0, 1), *each).view(len(at), -1)
            sum_BCHW, after = network.latent.codebook.accumulate(sums[at], tokens, k)
            x[at, here], sums[at] = tokens, sum_BCHW
            if k + 1 < len(counts):
                inputs[at, :, here.stop - counts[0] : here.stop - counts[0] + counts[k + 1]] = after.flatten(2)
        return replace(state, x=x, index_B=state.index_B + 1, extra={**extra, "sum": sums, "inputs": inputs})

    def preview(self, state: State) -> Tensor | None:
        return None

    @staticmethod
    def _nothing(network: Any, rows: int) -> Tensor:
        side = network.latent.scales[-1]
        return network.head.weight.new_zeros(rows, network.latent.codebook.width, side, side)


def _counts(network: Any) -> list[int]:
    return [side * side for side in network.latent.scales]
