"""GPT-2 (Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; GPT: 2018): each word is guessed from those before.

A prompt is [start] words [end]; a token hears itself and those before it, so the last one's state has heard all, and is the pooled one.
Beside CLIP's text tower (`clip.py`), which is this network with another activation, the difference is what it learns from: words alone.

Words are read by the bilingual vocabulary that is learnt here, or by a published tokenizer.json, in which one token, <|endoftext|>, opens
and ends a text, as it did in GPT-2's training.

Shape legend: B batch, L tokens, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..contracts import Condition, ConditionSpec
from ..layers.encoder import EncoderBlock
from ._prompts import PromptTooLong, Tokenized
from ._tasks import NextWord
from ._vocabulary import Vocabulary

__all__ = ["GPT", "Config", "NextWord", "PromptTooLong", "SIZES", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """vocab: rows of the embedding.  context_length: tokens of a prompt, the first and the last included.

    activation: "gelu_new" = GELU through tanh (arXiv 1606.08415, section 2), as in GPT-2; "gelu" = GELU itself. They differ by up to 5e-4.
    """

    vocab: int = 50257
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    context_length: int = 1024
    activation: Literal["gelu", "gelu_new"] = "gelu_new"
    eps: float = 1e-5


SIZES = {
    "tiny": Config(vocab=512, width=32, depth=1, num_heads=2, context_length=48),
    "scenes": Config(vocab=2048, width=112, depth=2, num_heads=4, context_length=48),
    "gpt2": Config(),  # 124 M parameters
    "gpt2-medium": Config(width=1024, depth=24, num_heads=16),
    "gpt2-large": Config(width=1280, depth=36, num_heads=20),
    "gpt2-xl": Config(width=1600, depth=48, num_heads=25),
}


class GPT(Tokenized, nn.Module):
    """Prompts in, token states and a pooled state out.

    assets: {"tokenizer.json": bytes}, learnt here or published. Without it the panel has no vocabulary until `learn_vocabulary(texts)`, and
    `encode` says so. Raises ValueError if the tokenizer holds more tokens than `config.vocab`, or if `width` does not split into heads.
    """

    bpe = Vocabulary(start="<|endoftext|>", end="<|endoftext|>", pad="<|endoftext|>")

    def __init__(self, config: Config, *, assets: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        if config.context_length < 3:
            raise ValueError(f"context_length {config.context_length} leaves no room for a word between [start] and [end]; take 3 or more")
        self.config = config
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.gives = ConditionSpec(vocab=config.vocab, width=width, context_length=config.context_length, pooled=width)
        self.embedding = nn.Embedding(config.vocab, width)
        self.position_LD = nn.Parameter(torch.empty(config.context_length, width))
        self.blocks = nn.ModuleList(EncoderBlock(width, config.num_heads, hidden, "gelu", config.eps, True) for _ in range(config.depth))
        if config.activation == "gelu_new":
            for block in self.blocks:
                block.mlp[1] = nn.GELU(approximate="tanh")  # type: ignore[index,operator]
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self._initialise()
        self.read_vocabulary(assets)

    def _initialise(self) -> None:
        nn.init.normal_(self.embedding.weight, std=0.02)
        nn.init.normal_(self.position_LD, std=0.01)
        for name, weight in self.blocks.named_parameters():
            if weight.ndim == 2:  # as published, but that a narrow network's matrices keep the size of what goes through them
                nn.init.normal_(weight, std=max(0.02, weight.shape[1] ** -0.5))
            elif name.endswith("bias"):
                nn.init.zeros_(weight)
            if name.endswith(("out.weight", "mlp.2.weight")):  # each of 2 * depth parts adds its share of one unit of variance
                with torch.no_grad():
                    weight.mul_((2 * self.config.depth) ** -0.5)

    def condition(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Condition:
        """The network alone: token ids in [0, V), True in mask_BL where a token is real; without a mask all of them are.

        Padding stands at the end, where no real token hears it; tokens_BLD is 0 there. Raises ValueError for more than `context_length`
        tokens.
        """
        rows, length = ids_BL.shape
        if length > self.config.context_length:
            raise ValueError(f"{length} tokens, where this text encoder reads {self.config.context_length}")
        x_BLD = self.embedding(ids_BL) + self.position_LD[:length]
        for block in self.blocks:
            x_BLD = block(x_BLD)
        x_BLD = self.norm(x_BLD)
        if mask_BL is None:
            return Condition(ids_BL=ids_BL, tokens_BLD=x_BLD, pooled_BD=x_BLD[:, -1])
        pooled_BD = x_BLD[torch.arange(rows, device=ids_BL.device), mask_BL.sum(dim=1) - 1]
        return Condition(ids_BL=ids_BL, tokens_BLD=x_BLD * mask_BL[..., None], mask_BL=mask_BL, pooled_BD=pooled_BD)


TASKS = {"next_word": NextWord}
