"""The default's panel 1: a small bidirectional transformer over the words of two languages.

Trained by masked words as BERT is (Devlin et al., arXiv 1810.04805), with the parts that have proved themselves since: RMSNorm
in front of each part, rotary positions (arXiv 2104.09864), SwiGLU (arXiv 2002.05202), no biases, and one matrix that is both
the embedding and the masked-word head (arXiv 1608.05859), so that the head costs and saves nothing.

A prompt is [BOS] words [EOS]. The pooled state is the mean over all of these, not the state of [EOS]: masked words never train
[EOS], while the mean is a fair summary before a picture was ever seen, and lets the contrastive loss reach every token.

Shape legend: B batch, L tokens, D width, N heads, V vocabulary, M masked words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import Condition, ConditionSpec
from . import _bpe
from ._prompts import PromptTooLong, Tokenized
from ._tasks import Guesser, MaskedWords

__all__ = ["BilingualTransformer", "Config", "MaskedWords", "PromptTooLong", "SIZES", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """vocab: rows of the embedding, the most tokens that may be learnt.  context_length: tokens of a prompt, [BOS] and [EOS] included."""

    vocab: int = 3584
    width: int = 160
    depth: int = 3
    num_heads: int = 4
    mlp_ratio: float = 2.4  # of each of SwiGLU's two inner halves
    context_length: int = 48


SIZES = {
    "tiny": Config(vocab=512, width=32, depth=1, num_heads=2),
    "small": Config(vocab=2048, width=96, depth=2),
    "emoji": Config(),  # 1.44 M parameters: the default's share of 16 MB
    "large": Config(vocab=8192, width=384, depth=6, num_heads=6, context_length=96),
}


class Attention(nn.Module):
    """Every token looks at every real token."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x_BLD: Tensor, turn_LK: Tensor, mask_B11L: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x_BLD), "b l (three n k) -> three b n l k", three=3, n=self.num_heads)
        y = F.scaled_dot_product_attention(_rotate(q, turn_LK), _rotate(k, turn_LK), v, attn_mask=mask_B11L)
        return self.out(rearrange(y, "b n l k -> b l (n k)"))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, 2 * hidden, bias=False)
        self.out = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.out(F.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(config.width, eps=1e-6)
        self.attention = Attention(config.width, config.num_heads)
        self.norm2 = nn.RMSNorm(config.width, eps=1e-6)
        self.mlp = SwiGLU(config.width, _hidden(config))

    def forward(self, x_BLD: Tensor, turn_LK: Tensor, mask_B11L: Tensor) -> Tensor:
        x_BLD = x_BLD + self.attention(self.norm1(x_BLD), turn_LK, mask_B11L)
        return x_BLD + self.mlp(self.norm2(x_BLD))


class BilingualTransformer(Tokenized, Guesser, nn.Module):
    """Prompts in, token states and a pooled state out.

    assets: {"tokenizer.json": bytes}, as `assets()` returned them. Without it the panel has no vocabulary until
    `learn_vocabulary(texts)`, and `encode` says so. Raises ValueError if the tokenizer holds more tokens than `config.vocab`,
    or if `width` does not split into heads of even width.
    """

    bpe = _bpe

    def __init__(self, config: Config, *, assets: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        if config.width % (2 * config.num_heads):
            unit = 2 * config.num_heads
            raise ValueError(f"width {config.width} does not split into {config.num_heads} heads of even width; take a multiple of {unit}")
        if config.context_length < 3:
            raise ValueError(f"context_length {config.context_length} leaves no room for a word between [BOS] and [EOS]; take 3 or more")
        self.config = config
        self.gives = ConditionSpec(vocab=config.vocab, width=config.width, context_length=config.context_length, pooled=config.width)
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, eps=1e-6)
        self._initialise()
        self.read_vocabulary(assets)

    def _initialise(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02)
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and not name.startswith("embedding"):
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            if name.endswith("out.weight"):  # each of 2 * depth parts adds its share of one unit of variance
                with torch.no_grad():
                    weight.mul_((2 * self.config.depth) ** -0.5)

    def condition(self, ids_BL: Tensor, mask_BL: Tensor) -> Condition:
        """The network alone: token ids in [0, V), True in mask_BL where a token is real."""
        tokens_BLD = self._states(ids_BL, mask_BL)
        pooled_BD = tokens_BLD.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True)
        return Condition(ids_BL=ids_BL, tokens_BLD=tokens_BLD, mask_BL=mask_BL, pooled_BD=pooled_BD)

    def _states(self, ids_BL: Tensor, mask_BL: Tensor) -> Tensor:
        config = self.config
        x_BLD = self.embedding(ids_BL) * config.width**0.5  # std 0.02 suits the head, about 1/4 suits the residual stream
        turn_LK = _turns(ids_BL.shape[1], config.width // config.num_heads, ids_BL.device)
        mask_B11L = rearrange(mask_BL, "b l -> b 1 1 l")
        for block in self.blocks:
            x_BLD = block(x_BLD, turn_LK, mask_B11L)
        return self.norm(x_BLD) * mask_BL[..., None]


TASKS = {"masked_words": MaskedWords}


def _hidden(config: Config) -> int:
    return max(8, round(config.width * config.mlp_ratio / 8) * 8)


def _turns(length: int, head_width: int, device: torch.device) -> Tensor:
    """Rotary angles as cos and sin of [L, K/2], side by side in [L, K]."""
    speed_K = 1e-3 ** torch.linspace(0, 1, head_width // 2, device=device)  # prompts are short: a base of 1,000 is enough
    angle_LK = torch.arange(length, device=device, dtype=torch.float32)[:, None] * speed_K
    return torch.cat([angle_LK.cos(), angle_LK.sin()], dim=-1)


def _rotate(x_BNLK: Tensor, turn_LK: Tensor) -> Tensor:
    cos, sin = turn_LK.to(x_BNLK.dtype).chunk(2, dim=-1)
    a, b = x_BNLK.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
