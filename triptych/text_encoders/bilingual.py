"""The default's panel 1: a small bidirectional transformer over the words of two languages.

Trained by masked words as BERT is (Devlin et al., arXiv 1810.04805), with the parts that have proved themselves since: RMSNorm
in front of each part, rotary positions (arXiv 2104.09864), SwiGLU (arXiv 2002.05202), no biases, and one matrix that is both
the embedding and the masked-word head (arXiv 1608.05859), so that the head costs and saves nothing.

A prompt is [BOS] words [EOS]. The pooled state is the mean over all of these, not the state of [EOS]: masked words never train
[EOS], while the mean is a fair summary before a picture was ever seen, and lets the contrastive loss reach every token.

Shape legend: B batch, L tokens, D width, N heads, V vocabulary, M masked words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import Batch, Condition, ConditionSpec, Prompt, Rng
from ..layers.one_phase import OnePhase
from . import _bpe
from ._prompts import PromptTooLong, Tokenized

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


class BilingualTransformer(Tokenized, nn.Module):
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

    # --- masked words ---

    def masked_words(self, prompts: Sequence[Prompt | str], rng: Rng, fraction: float = 0.15) -> dict[str, Tensor]:
        """Hide words and guess them: BERT's loss. Each row hides `fraction` of its words, and one at least.

        Of the hidden words 80 % become [MASK], 10 % another token, 10 % stay. Draws come from the row's own stream.
        Returns row_B (which row each masked word is of: [M]), loss_M and right_M. Prompts without words have none.
        """
        ids_BL, mask_BL = self.ids(prompts)
        length = ids_BL.shape[1]
        which_BL, how_BL, other_BL = rng.uniform("masked words", (3, self.config.context_length))[..., :length].to(ids_BL.device).unbind(1)
        word_BL = mask_BL & (ids_BL > _bpe.MASK)
        which_BL = which_BL.masked_fill(~word_BL, 2.0)
        hidden_BL = word_BL & ((which_BL < fraction) | (which_BL == which_BL.amin(dim=1, keepdim=True)))
        first, last = len(_bpe.SPECIAL), len(self.tokenizer)  # type: ignore[arg-type]
        random_BL = (first + other_BL * (last - first)).long()
        said_BL = torch.where(how_BL < 0.8, torch.full_like(ids_BL, _bpe.MASK), torch.where(how_BL < 0.9, random_BL, ids_BL))
        tokens_BLD = self._states(torch.where(hidden_BL, said_BL, ids_BL), mask_BL)
        row_M, at_M = hidden_BL.nonzero(as_tuple=True)
        logits_MV = F.linear(tokens_BLD[row_M, at_M], self.embedding.weight).float()
        target_M = ids_BL[row_M, at_M]
        return {
            "row_M": row_M,
            "loss_M": F.cross_entropy(logits_MV, target_M, reduction="none"),
            "right_M": logits_MV.argmax(dim=1) == target_M,
        }


class MaskedWords(OnePhase):
    """The task: panel 1 learns from texts alone. `mask`: the share of words hidden.

    vocabulary_texts: how many texts the vocabulary is learnt from, where the panel has none.
    """

    def __init__(
        self,
        panel: BilingualTransformer,
        *,
        neighbours: Mapping[str, Any] | None = None,
        mask: float = 0.15,
        vocabulary_texts: int = 100_000,
    ) -> None:
        if not 0 < mask < 1:
            raise ValueError(f"mask {mask} is no share of words; take one between 0 and 1, as 0.15")
        self.modules = nn.ModuleDict({"text_encoder": panel})
        self.panel, self.mask, self.vocabulary_texts = panel, mask, vocabulary_texts

    def prepare_data(self, dataset: Any) -> None:
        """Called once, before training."""
        if not self.panel.has_vocabulary:
            self.panel.learn_vocabulary(dataset.texts(self.vocabulary_texts))

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """loss: the mean over the batch's masked words; right: the share guessed."""
        found = self.panel.masked_words(batch.prompts, rng, self.mask)
        if not len(found["loss_M"]):  # nothing but empty prompts
            zero = self.panel.embedding.weight.sum() * 0
            return {"loss": zero, "right": zero.detach()}
        return {"loss": found["loss_M"].mean(), "right": found["right_M"].float().mean()}

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """loss and right, [B]: the row's means over words whose masking never changes; 0 for a row without words."""
        found = self.panel.masked_words(batch.prompts, Rng.of_samples(0, batch.index), self.mask)
        rows = len(batch.prompts)
        count = torch.bincount(found["row_M"], minlength=rows).clamp(min=1)
        return {
            "loss": torch.bincount(found["row_M"], found["loss_M"], minlength=rows).float() / count,
            "right": torch.bincount(found["row_M"], found["right_M"].float(), minlength=rows).float() / count,
        }


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
