"""CLIP's text tower (Radford et al., arXiv 2103.00020, section 2.4): a causal transformer that Stable Diffusion listens to as well.

A prompt is [start] words [end]; a token hears itself and those before it, so the state of [end] has heard all, and is the pooled
one. The mask was left causal "to preserve the ability to add language modeling": that is the task with which the tower can be
trained alone. With pictures it is trained as the neighbour of `vision/clip.py`.

Shape legend: B batch, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import Condition, ConditionSpec
from ..layers.encoder import Activation, EncoderBlock
from . import _clip_bpe
from ._prompts import PromptTooLong, Tokenized
from ._tasks import NextWord

__all__ = ["CLIPText", "Config", "NextWord", "PromptTooLong", "SIZES", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """vocab: rows of the embedding.  context_length: tokens of a prompt, the first and the last included.

    end: the token whose first place is pooled. None = the highest id of the row: so OpenAI's code finds [end], which is its last
    token, and so does transformers where eos_token_id is 2, a mistake in its older configurations.
    pad: "mask" = rows are as long as the longest, and nobody hears the padding. Stable Diffusion was trained otherwise: every prompt is
    filled up to `context_length` and all of it is heard. "end" = so, with [end] (SD 1), or a token's number (SD 2: 0).
    """

    vocab: int = 49408
    width: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0
    context_length: int = 77
    activation: Activation = "quick_gelu"
    eps: float = 1e-5
    end: int | None = None
    pad: Literal["mask", "end"] | int = "mask"


SIZES = {
    "tiny": Config(vocab=640, width=32, depth=1, num_heads=2),
    "small": Config(vocab=4096, width=192, depth=4, num_heads=4),
    "ViT-B/32": Config(),  # ViT-B/16 and RN50 have the same
    "ViT-L/14": Config(width=768, num_heads=12),
}


class CLIPText(Tokenized, nn.Module):
    """Prompts in, token states and a pooled state out.

    assets: "tokenizer.json", or "vocab.json" and "merges.txt". Without them the panel has no vocabulary until
    `learn_vocabulary(texts)`, and `encode` says so. Raises ValueError if the tokenizer holds more tokens than `config.vocab`.
    """

    bpe = _clip_bpe

    def __init__(self, config: Config, *, assets: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        if config.context_length < 3:
            raise ValueError(f"context_length {config.context_length} leaves no room for a word between [start] and [end]; take 3 or more")
        self.config = config
        self.gives = ConditionSpec(vocab=config.vocab, width=config.width, context_length=config.context_length, pooled=config.width)
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.position_LD = nn.Parameter(torch.randn(config.context_length, config.width) * 0.01)
        hidden = round(config.width * config.mlp_ratio)
        self.blocks = nn.ModuleList(
            EncoderBlock(config.width, config.num_heads, hidden, config.activation, config.eps, causal=True) for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self._initialise()
        self.read_vocabulary(assets)

    def _initialise(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02)
        for name, weight in self.blocks.named_parameters():
            if weight.ndim == 2:
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            if name.endswith(("out.weight", "mlp.2.weight")):  # each of 2 * depth parts adds its share of one unit of variance
                with torch.no_grad():
                    weight.mul_((2 * self.config.depth) ** -0.5)

    def condition(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Condition:
        """The network alone: token ids in [0, V), True in mask_BL where a token is real; without a mask all of them are.

        Padding stands at the end, where no real token hears it. Raises ValueError for more than `context_length` tokens.
        """
        length = ids_BL.shape[1]
        if length > self.config.context_length:
            raise ValueError(f"{length} tokens, where this text encoder reads {self.config.context_length}")
        if self.config.pad != "mask":
            ids_BL, mask_BL, length = self._filled(ids_BL, mask_BL), None, self.config.context_length
        x_BLD = self.embedding(ids_BL) + self.position_LD[:length]
        for block in self.blocks:
            x_BLD = block(x_BLD)
        x_BLD = self.norm(x_BLD)
        end_BL = ids_BL if self.config.end is None else (ids_BL == self.config.end).int()
        pooled_BD = x_BLD[torch.arange(len(ids_BL), device=ids_BL.device), end_BL.argmax(dim=1)]
        if mask_BL is not None:
            x_BLD = x_BLD * mask_BL[..., None]
        return Condition(ids_BL=ids_BL, tokens_BLD=x_BLD, mask_BL=mask_BL, pooled_BD=pooled_BD)

    def _filled(self, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Rows of `context_length` tokens, with the configuration's own padding."""
        pad = self.config.pad
        if isinstance(pad, str):
            pad = self.config.vocab - 1 if self.tokenizer is None else self.tokenizer.end
        if mask_BL is not None:
            ids_BL = ids_BL.masked_fill(~mask_BL, pad)
        return F.pad(ids_BL, (0, self.config.context_length - ids_BL.shape[1]), value=pad)


TASKS = {"next_word": NextWord}
