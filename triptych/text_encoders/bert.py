"""BERT (Devlin et al., arXiv 1810.04805): a bidirectional transformer that learns by guessing hidden words.

A prompt is [CLS] words [SEP], every token hears every other, and the norms stand behind the sums, as in the first transformer
(arXiv 1706.03762). The pooled state is that of [CLS]; where a published model brings the layer with tanh that it learnt beside its second
task (which sentence follows another), it goes through that. Masked words alone train no [CLS] but as something to look at: where the pooled
state matters it wants a task that reads it, pictures say.

Words are read by the bilingual vocabulary that is learnt here, [BOS] and [EOS] in the places of [CLS] and [SEP], or by a published
tokenizer.json. [MASK] is id 3 of the one, [MASK] of the other; no prompt can say it.

Shape legend: B batch, L tokens, D width, N heads, K = D / N, V vocabulary, M masked words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import Condition, ConditionSpec
from ._prompts import PromptTooLong, Tokenized
from ._tasks import Guesser, MaskedWords
from ._vocabulary import Vocabulary

__all__ = ["BERT", "Config", "MaskedWords", "PromptTooLong", "SIZES", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """vocab: rows of the embedding.  context_length: tokens of a prompt, the first and the last included.

    segments: rows of the embedding that tells a pair's sentences apart; a prompt is all of the first. 0 = none.
    pooler: a layer with tanh between the state of [CLS] and the pooled one. No task here trains it.
    """

    vocab: int = 30522
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    context_length: int = 512
    segments: int = 2
    pooler: bool = True
    eps: float = 1e-12


SIZES = {
    "tiny": Config(vocab=512, width=32, depth=1, num_heads=2, context_length=48, segments=0, pooler=False),
    "scenes": Config(vocab=2048, width=112, depth=2, num_heads=4, context_length=48, segments=0, pooler=False),
    "base": Config(),  # table 1 of the paper: 110 M parameters
    "large": Config(width=1024, depth=24, num_heads=16),  # 340 M, as the paper rounds
}


class Block(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x))."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width, eps=config.eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.norm2 = nn.LayerNorm(width, eps=config.eps)

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.qkv(x_BLD), "b l (three n k) -> three b n l k", three=3, n=self.num_heads)
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11L)
        x_BLD = self.norm1(x_BLD + self.out(rearrange(heard, "b n l k -> b l (n k)")))
        return self.norm2(x_BLD + self.mlp(x_BLD))


class BERT(Tokenized, Guesser, nn.Module):
    """Prompts in, token states and a pooled state out.

    assets: {"tokenizer.json": bytes}, learnt here or published. Without it the panel has no vocabulary until `learn_vocabulary(texts)`, and
    `encode` says so. Raises ValueError if the tokenizer holds more tokens than `config.vocab`, or if `width` does not split into heads.
    """

    bpe = Vocabulary(start="[CLS]", end="[SEP]", pad="[PAD]", mask="[MASK]")

    def __init__(self, config: Config, *, assets: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        width, heads = config.width, config.num_heads
        if width % heads:
            raise ValueError(f"width {width} does not split into {heads} heads; take a multiple of {heads}")
        if config.context_length < 3:
            raise ValueError(f"context_length {config.context_length} leaves no room for a word between [CLS] and [SEP]; take 3 or more")
        self.config = config
        self.gives = ConditionSpec(vocab=config.vocab, width=width, context_length=config.context_length, pooled=width)
        self.embedding = nn.Embedding(config.vocab, width)
        self.position_LD = nn.Parameter(torch.empty(config.context_length, width))
        self.segment_SD = nn.Parameter(torch.empty(config.segments, width)) if config.segments else None
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.pooler = nn.Linear(width, width) if config.pooler else None
        for name, weight in self.named_parameters():
            if weight.ndim == 2:  # everything as published, but that a narrow network's matrices keep the size of what goes through them
                matrix = name.startswith(("blocks", "pooler"))
                nn.init.normal_(weight, std=max(0.02, weight.shape[1] ** -0.5) if matrix else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
        self.read_vocabulary(assets)

    def condition(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Condition:
        """The network alone: token ids in [0, V), True in mask_BL where a token is real; without a mask all of them are.

        tokens_BLD is 0 at padding. Raises ValueError for more than `context_length` tokens.
        """
        tokens_BLD = self._states(ids_BL, mask_BL)
        pooled_BD = tokens_BLD[:, 0] if self.pooler is None else self.pooler(tokens_BLD[:, 0]).tanh()
        return Condition(ids_BL=ids_BL, tokens_BLD=tokens_BLD, mask_BL=mask_BL, pooled_BD=pooled_BD)

    def _states(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        length = ids_BL.shape[1]
        if length > self.config.context_length:
            raise ValueError(f"{length} tokens, where this text encoder reads {self.config.context_length}")
        x_BLD = self.embedding(ids_BL) + self.position_LD[:length]
        if self.segment_SD is not None:
            x_BLD = x_BLD + self.segment_SD[0]
        x_BLD = self.norm(x_BLD)
        mask_B11L = None if mask_BL is None else rearrange(mask_BL, "b l -> b 1 1 l")
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_B11L)
        return x_BLD if mask_BL is None else x_BLD * mask_BL[..., None]

    def masked_words_head(self) -> nn.Module:
        return Head(self.config)


class Head(nn.Module):
    """What stands between a masked word's state and the embedding that names it: a layer, GELU, a norm; and a bias for each word."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.inner = nn.Linear(config.width, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self.bias_V = nn.Parameter(torch.zeros(config.vocab))

    def forward(self, x_MD: Tensor, embedding_VD: Tensor) -> Tensor:
        return F.linear(self.norm(F.gelu(self.inner(x_MD))), embedding_VD, self.bias_V)


TASKS = {"masked_words": MaskedWords}
