"""The text encoder of LDM's text-to-image (Rombach et al., arXiv 2112.10752, appendix E.2.1): a transformer with the tokens of BERT.

Norms stand before the parts, every token hears every other, and all heads together need not be as wide as the network: 8 of 64 in
1,280. It was trained with its generator, every prompt filled up to 77 tokens and the padding heard; `pad` says whether it is so here.
Nothing was ever trained on one state for all words: the pooled one, of [CLS], is there for networks that want one.

Shape legend: B batch, L tokens, D width, N heads, K channels of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import Condition, ConditionSpec
from ._prompts import PromptTooLong, Tokenized
from ._vocabulary import Vocabulary

__all__ = ["LDMBert", "Config", "PromptTooLong", "SIZES"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """vocab: rows of the embedding.  context_length: tokens of a prompt, the first and the last included.

    pad: "mask" = rows are as long as the longest, and nobody hears the padding.  "pad" = every prompt is filled up to `context_length`
    with [PAD], and all of it is heard, as LDM was trained.
    """

    vocab: int = 30522
    width: int = 1280
    depth: int = 32
    num_heads: int = 8
    head_width: int = 64
    mlp_ratio: float = 4.0
    context_length: int = 77
    eps: float = 1e-5
    pad: Literal["mask", "pad"] = "mask"


SIZES = {
    "tiny": Config(vocab=512, width=32, depth=1, num_heads=2, head_width=8, context_length=48),
    "LDM-txt2img": Config(pad="pad"),
}


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); queries, keys and values without bias."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, inner, hidden = config.width, config.num_heads * config.head_width, round(config.width * config.mlp_ratio)
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(width, eps=config.eps)
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width)
        self.norm2 = nn.LayerNorm(width, eps=config.eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BLD: Tensor, mask_B11L: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x_BLD)), "b l (three n k) -> three b n l k", three=3, n=self.num_heads)
        heard = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B11L)
        x_BLD = x_BLD + self.out(rearrange(heard, "b n l k -> b l (n k)"))
        return x_BLD + self.mlp(self.norm2(x_BLD))


class LDMBert(Tokenized, nn.Module):
    """Prompts in, token states and a pooled state out.

    assets: {"tokenizer.json": bytes}, learnt here or published. Without it the panel has no vocabulary until `learn_vocabulary(texts)`, and
    `encode` says so. Raises ValueError if the tokenizer holds more tokens than `config.vocab`.
    """

    bpe = Vocabulary(start="[CLS]", end="[SEP]", pad="[PAD]", mask="[MASK]")

    def __init__(self, config: Config, *, assets: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        if config.context_length < 3:
            raise ValueError(f"context_length {config.context_length} leaves no room for a word between [CLS] and [SEP]; take 3 or more")
        self.config = config
        self.gives = ConditionSpec(vocab=config.vocab, width=config.width, context_length=config.context_length, pooled=config.width)
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.position_LD = nn.Parameter(torch.empty(config.context_length, config.width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=max(0.02, weight.shape[1] ** -0.5) if name.startswith("blocks") else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
        self.read_vocabulary(assets)

    def condition(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Condition:
        """The network alone: token ids in [0, V), True in mask_BL where a token is real; without a mask all of them are.

        tokens_BLD is 0 at padding that is masked. Raises ValueError for more than `context_length` tokens.
        """
        length, whole = ids_BL.shape[1], self.config.context_length
        if length > whole:
            raise ValueError(f"{length} tokens, where this text encoder reads {whole}")
        if self.config.pad == "pad":
            padding = 0 if self.tokenizer is None else self.tokenizer.pad
            ids_BL = ids_BL if mask_BL is None else ids_BL.masked_fill(~mask_BL, padding)
            ids_BL, mask_BL, length = F.pad(ids_BL, (0, whole - length), value=padding), None, whole
        x_BLD = self.embedding(ids_BL) + self.position_LD[:length]
        mask_B11L = None if mask_BL is None else rearrange(mask_BL, "b l -> b 1 1 l")
        for block in self.blocks:
            x_BLD = block(x_BLD, mask_B11L)
        x_BLD = self.norm(x_BLD)
        pooled_BD = x_BLD[:, 0]
        if mask_BL is not None:
            x_BLD = x_BLD * mask_BL[..., None]
        return Condition(ids_BL=ids_BL, tokens_BLD=x_BLD, mask_BL=mask_BL, pooled_BD=pooled_BD)
