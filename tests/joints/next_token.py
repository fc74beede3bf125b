"""Next-token prediction over a text prefix and a grid of image tokens (DALL-E, arXiv 2102.12092; VQGAN's second stage).

    loss = (text_weight * text + image_weight * image) / (text_weight + image_weight)

B batch, L tokens, P places of the text, H W grid, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.contracts import Condition, Latents, Rng, Start, State

__all__ = ["NextToken", "SIZES", "Config", "Sampling", "draw"]


@dataclass(frozen=True, kw_only=True)
class Config:
    text_weight: float = 1.0
    image_weight: float = 7.0


SIZES = {"tiny": Config(), "vqgan": Config(text_weight=0.0, image_weight=1.0)}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """temperature: of the softmax.  top_k: only the likeliest are drawn from, 0 = all."""

    temperature: float = 1.0
    top_k: int = 0


class NextToken:
    drives = "tokens"
    Sampling = Sampling
    abilities = frozenset({"preview"})

    def __init__(self, config: Config) -> None:
        self.config = config

    def prepare(self, network: nn.Module, teacher: nn.Module | None = None) -> nn.ModuleDict:
        return nn.ModuleDict()

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def after_step(self, network: Any, phase: str, step: int) -> None: ...

    def losses(self, network: Any, batch: Latents, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        prefix_BP, real_BP = self._prefix(network, batch.cond)
        ids_BL = torch.cat([prefix_BP, batch.z.flatten(1) + network.condition.vocab], dim=1)
        nats_BL = F.cross_entropy(network(ids_BL[:, :-1], batch.cond).float().transpose(1, 2), ids_BL[:, 1:], reduction="none")
        text_BP, image_BL = nats_BL.split([prefix_BP.shape[1] - 1, batch.z[0].numel()], dim=1)
        real_BP, image, c = real_BP[:, 1:], image_BL.mean(), self.config
        text = (text_BP * real_BP).sum() / real_BP.sum().clamp(min=1)
        loss = (c.text_weight * text + c.image_weight * image) / (c.text_weight + c.image_weight)
        return {"loss": loss, "text": text.detach(), "image": image.detach()}

    def begin(self, network: Any, cond: Condition, null: Condition, how: Sampling, start: Start, rng: Rng) -> State:
        """The words are read here, all but the last: each step then reads one token in every row, wherever the row is."""
        rows, prefix_BP = len(rng), self._prefix(network, cond)[0]
        cache = network.empty_cache(rows)
        network(prefix_BP[:, :-1], cond, cache)
        index = torch.zeros(rows, dtype=torch.int64)
        x = torch.zeros(rows, *start.shape, dtype=torch.int64, device=prefix_BP.device)
        settings = {"temperature": torch.full((rows,), how.temperature), "top_k": torch.full((rows,), how.top_k)}
        return State(
            x=x, index_B=index, total_B=index + x[0].numel(), cond=cond, null=null, rng=rng,
            extra={**cache, **settings, "last": prefix_BP[:, -1:]},
        )  # fmt: skip

    def step(self, network: Any, state: State) -> State:
        live_B = ~state.done_B
        if not live_B.all():
            return state.put(live_B, self.step(network, state.rows(live_B))) if live_B.any() else state
        cache, first = {name: state.extra[name] for name in ("kept", "at_B")}, network.condition.vocab
        logits_BV = network(state.extra["last"], state.cond, cache)[:, -1, first : first + network.latent.vocab].float()
        u_BV = state.rng.uniform("token", logits_BV.shape[1:], state.index_B.tolist())
        new_B1 = draw(logits_BV, u_BV.to(logits_BV), state.extra["temperature"], state.extra["top_k"])[:, None]
        x = state.x.flatten(1).scatter(1, state.index_B[:, None].to(new_B1.device), new_B1).view_as(state.x)
        return replace(state, x=x, index_B=state.index_B + 1, extra={**state.extra, **cache, "last": new_B1 + first})

    def preview(self, state: State) -> Tensor:
        return state.x

    @staticmethod
    def _prefix(network: Any, cond: Condition) -> tuple[Tensor, Tensor]:
        """ids [B, P] of all places of the text, an empty place with its own padding token; and which places hold a word."""
        places, ids_BL = network.condition.context_length, cond.ids_BL
        real_BL = torch.ones_like(ids_BL, dtype=torch.bool) if cond.mask_BL is None else cond.mask_BL
        ids_BP, real_BP = (F.pad(port, (0, places - ids_BL.shape[1])) for port in (ids_BL, real_BL))
        padding_P = network.condition.vocab + network.latent.vocab + torch.arange(places, device=ids_BL.device)
        return torch.where(real_BP, ids_BP, padding_P), real_BP


def draw(logits_BV: Tensor, u_BV: Tensor, temperature_B: Tensor, top_k_B: Tensor) -> Tensor:
    """One token a row, [B], by Gumbel's maximum: `u` is uniform in [0, 1)."""
    kth_B = torch.where(top_k_B > 0, top_k_B, logits_BV.shape[1]).clamp(max=logits_BV.shape[1]) - 1
    least_B1 = logits_BV.sort(dim=1, descending=True).values.gather(1, kth_B[:, None].to(logits_BV.device))
    scaled_BV = logits_BV.masked_fill(logits_BV < least_B1, -torch.inf) / temperature_B[:, None].to(logits_BV)
    return (scaled_BV - torch.log(-torch.log(u_BV))).argmax(dim=1)
