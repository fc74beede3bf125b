"""A causal transformer over text tokens and then image tokens (DALL-E, Ramesh et al., arXiv 2102.12092), with a cache.

One vocabulary: the text encoder's ids, then the codebook's, then a padding token for each place of the text.
B batch, L new tokens, K tokens kept, D width, N heads, d = D / N, Z depth, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.layers.blocks import MLP

__all__ = ["GPT", "SIZES", "Config"]


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 48
    depth: int = 2
    num_heads: int = 2


SIZES = {"tiny": Config()}


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out, self.mlp = nn.Linear(width, 3 * width), nn.Linear(width, width), MLP(width, 4 * width)

    def forward(self, x_BLD: Tensor, kept_BK2D: Tensor, at_BL: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the new tokens take their places among those kept; a token hears none after its own place."""
        q, kv = self.qkv(self.norm1(x_BLD)).split([x_BLD.shape[2], 2 * x_BLD.shape[2]], dim=2)
        kept = kept_BK2D.to(kv.dtype).scatter(1, at_BL[..., None].expand_as(kv), kv)
        q, k, v = (rearrange(part, "b l (n d) -> b n l d", n=self.num_heads) for part in (q, *kept.chunk(2, dim=2)))
        heard = F.scaled_dot_product_attention(q, k, v, at_BL[:, None, :, None] >= torch.arange(k.shape[2], device=k.device))
        x_BLD = x_BLD + self.out(rearrange(heard, "b n l d -> b l (n d)"))
        return x_BLD + self.mlp(self.norm2(x_BLD)), kept


class GPT(nn.Module):
    """forward(ids [B, L], cond, cache) -> logits [B, L, V]. With a cache the ids go on from the `at_B` tokens that it holds.

    The words are among the ids: `cond` is not heard otherwise. Raises ValueError for latents that are no grid of tokens, or a
    text encoder without ids.
    """

    role = "tokens"

    def __init__(self, config: Config, *, latent: LatentSpace, condition: ConditionSpec) -> None:
        super().__init__()
        if latent.kind != "grid":
            raise ValueError(f"GPT draws latents of kind 'grid', this decoder's are {latent.kind!r}; take one with a codebook")
        if not condition.vocab:
            raise ValueError("GPT reads a text encoder's ids, and this one gives none (vocab = 0); take one that does")
        self.config, self.latent, self.condition = config, latent, condition
        self.length = condition.context_length + math.prod(latent.shape)
        vocab = condition.vocab + latent.vocab + condition.context_length
        self.token, self.place = nn.Embedding(vocab, config.width), nn.Embedding(self.length, config.width)
        self.blocks = nn.ModuleList(Block(config.width, config.num_heads) for _ in range(config.depth))
        self.norm, self.head = nn.LayerNorm(config.width), nn.Linear(config.width, vocab)
        for table in (self.token, self.place):
            nn.init.normal_(table.weight, std=0.1)

    def empty_cache(self, rows: int) -> dict[str, Tensor]:
        weight, c = self.head.weight, self.config
        return {"kept": weight.new_zeros(rows, self.length, c.depth, 2 * c.width), "at_B": torch.zeros(rows, dtype=torch.int64)}

    def forward(self, inputs: Tensor, cond: Condition, cache: dict[str, Tensor] | None = None) -> Tensor:
        c, (rows, count) = self.config, inputs.shape
        if cache is None:
            kept, at_B = inputs.new_zeros(rows, count, c.depth, 2 * c.width), torch.zeros(rows, dtype=torch.int64)
        else:
            kept, at_B = cache["kept"], cache["at_B"]
        at_BL = at_B.to(inputs.device)[:, None] + torch.arange(count, device=inputs.device)
        x, layers = self.token(inputs) + self.place(at_BL), []
        for z, block in enumerate(self.blocks):
            x, layer = block(x, kept[:, :, z], at_BL)
            layers.append(layer)
        if cache is not None:
            cache.update(kept=torch.stack(layers, dim=2), at_B=at_B + count)
        return self.head(self.norm(x))
