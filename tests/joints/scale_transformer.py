"""VAR's transformer (arXiv 2404.02905): all tokens of a scale at once, from the sum of the scales before it.

B batch, C channels of the codebook, D width, L tokens of all scales, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.layers.attention import SelfAttention
from triptych.layers.blocks import MLP, RMSNorm

__all__ = ["ScaleTransformer", "SIZES", "Config"]


@dataclass(frozen=True, kw_only=True)
class Config:
    width: int = 48
    depth: int = 2
    num_heads: int = 2


SIZES = {"tiny": Config()}


class Block(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = RMSNorm(width), SelfAttention(width, num_heads, qk_norm=True, bias=False)
        self.norm2, self.mlp = RMSNorm(width), MLP(width, 4 * width)

    def forward(self, x_BLD: Tensor, mask_LL: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attention(self.norm1(x_BLD), mask_B11K=mask_LL)
        return x_BLD + self.mlp(self.norm2(x_BLD))


class ScaleTransformer(nn.Module):
    """forward(inputs [B, C, L - l0], cond) -> logits [B, L, V]; the first scale's l0 inputs are the pooled words.

    inputs: what the codebook accumulated, at each later scale's side. A token hears its own scale and those before.
    Raises ValueError for latents that are no scales, or a text encoder without a pooled state.
    """

    role = "tokens"

    def __init__(self, config: Config, *, latent: LatentSpace, condition: ConditionSpec) -> None:
        super().__init__()
        if latent.kind != "scales" or latent.codebook is None:
            raise ValueError(f"ScaleTransformer draws latents of kind 'scales', this decoder's are {latent.kind!r}; take a multi-scale one")
        if not condition.pooled:
            raise ValueError("ScaleTransformer hears a pooled state, and this text encoder gives none (pooled = 0); take one that does")
        self.config, self.latent, self.condition = config, latent, condition
        counts = [side * side for side in latent.scales]
        level_L = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        self.register_buffer("level_L", level_L, persistent=False)
        self.words, self.inputs = nn.Linear(condition.pooled, config.width), nn.Linear(latent.codebook.width, config.width)
        self.place = nn.Parameter(torch.randn(sum(counts), config.width) * 0.02)
        self.blocks = nn.ModuleList(Block(config.width, config.num_heads) for _ in range(config.depth))
        self.norm, self.head = RMSNorm(config.width), nn.Linear(config.width, latent.vocab)

    def forward(self, inputs: Tensor, cond: Condition, cache: None = None) -> Tensor:
        first_B1D = self.words(cond.pooled_BD)[:, None]
        x_BLD = torch.cat([first_B1D.expand(-1, self.latent.scales[0] ** 2, -1), self.inputs(inputs.transpose(1, 2))], dim=1)
        x_BLD = x_BLD + first_B1D + self.place
        mask_LL = self.level_L[:, None] >= self.level_L[None, :]
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_LL)
        return self.head(self.norm(x_BLD))
