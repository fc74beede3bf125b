"""T5's encoder (Raffel et al., arXiv 1910.10683): a bidirectional transformer that Imagen, SD3 and FLUX listen to.

A prompt is words [end]; every token hears every other. What is particular to it: where a token stands is said by a number that is added
to the attention's logits, one for each head and each class of distances ("bucket"), learnt once for all layers; queries are not divided by
the root of the head's width, the initialisation does that; RMSNorm (arXiv 1910.07467) without bias in front of each part, and no biases at
all. Version 1.1 gates its hidden units (arXiv 2002.05202). The pooled state, of which T5 knows nothing, is the mean over all real tokens.

It learns by span corruption (section 3.1.4): spans of words are cut out, a sentinel stands in for each, and a decoder says what they were:

    thank you <X> me to your party <Y> week [end]    ->    <X> for inviting <Y> last [end]

The decoder belongs to the task: it is trained with the encoder, and not exported.

Words are read by the bilingual vocabulary that is learnt here, without its [BOS], sentinel k being id vocab - 1 - k, where T5 has its own
too; or by a published tokenizer.json, where it is <extra_id_k>. No prompt can say one.

Shape legend: B batch, L tokens, T tokens of the answer, D width, N heads, K a head's width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import Batch, Condition, ConditionSpec, Prompt, Rng
from ._prompts import PromptTooLong, Tokenized
from ._tasks import FromTexts
from ._vocabulary import Vocabulary

__all__ = ["T5Encoder", "Config", "PromptTooLong", "RelativeBias", "SIZES", "SpanCorruption", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """vocab: rows of the embedding, the sentinels included.  head_width: K; the heads together need not be as wide as the network.

    activation: "relu", or "gated_gelu" (version 1.1): one half of the hidden units, through GELU, times the other.
    buckets, max_distance: classes of distances, and the distance from which on all are one class.
    context_length: tokens of a prompt, the last included. The network knows no limit; 512 is what T5 was trained with.
    """

    vocab: int = 32128
    width: int = 768
    head_width: int = 64
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    activation: Literal["relu", "gated_gelu"] = "relu"
    buckets: int = 32
    max_distance: int = 128
    context_length: int = 512
    sentinels: int = 100
    eps: float = 1e-6


SIZES = {
    "tiny": Config(vocab=512, width=32, head_width=16, depth=1, num_heads=2, mlp_ratio=2.0, context_length=48, sentinels=8),
    "scenes": Config(vocab=2048, width=112, head_width=28, depth=2, num_heads=4, context_length=48, sentinels=8),
    # The paper's, section 3.7.
    "small": Config(width=512, depth=6, num_heads=8),
    "base": Config(),
    "large": Config(width=1024, depth=24, num_heads=16),
    "3b": Config(width=1024, head_width=128, depth=24, num_heads=32, mlp_ratio=16.0),
    "11b": Config(width=1024, head_width=128, depth=24, num_heads=128, mlp_ratio=64.0),
    # Version 1.1: gated, and a width for the heads that is the network's again.
    "v1.1-small": Config(width=512, depth=8, num_heads=6, mlp_ratio=2.0, activation="gated_gelu"),
    "v1.1-base": Config(mlp_ratio=8 / 3, activation="gated_gelu"),
    "v1.1-large": Config(width=1024, depth=24, num_heads=16, mlp_ratio=2.75, activation="gated_gelu"),
    "xl": Config(width=2048, depth=24, num_heads=32, mlp_ratio=2.5, activation="gated_gelu"),
    "xxl": Config(width=4096, depth=24, num_heads=64, mlp_ratio=2.5, activation="gated_gelu"),  # Imagen's, 4.8 B with its embedding
}


class RelativeBias(nn.Module):
    """What a head adds to its logits for a key at a distance from the query (section 2.1): bias_NLL.

    Half of the buckets are for keys behind the query; a causal one has all of them for keys before it. Half of those are one distance
    each, the others grow with its logarithm up to max_distance, beyond which all share the last.
    """

    def __init__(self, config: Config, *, causal: bool = False) -> None:
        super().__init__()
        self.config, self.causal = config, causal
        self.weight = nn.Parameter(torch.empty(config.buckets, config.num_heads))

    def forward(self, length: int) -> Tensor:
        place_L = torch.arange(length, device=self.weight.device)
        return rearrange(self.weight[self.bucket(place_L[None, :] - place_L[:, None])], "q k n -> n q k")

    def bucket(self, distance: Tensor) -> Tensor:
        """Key's place minus query's, int64, to the number of its bucket."""
        buckets = self.config.buckets if self.causal else self.config.buckets // 2
        first = torch.zeros_like(distance) if self.causal else (distance > 0) * buckets
        far = (-distance).clamp(min=0) if self.causal else distance.abs()
        exact = buckets // 2
        share = (far.clamp(min=1) / exact).log() / math.log(self.config.max_distance / exact)
        spread = (exact + (share * (buckets - exact)).long()).clamp(max=buckets - 1)
        return first + torch.where(far < exact, far, spread)


class Attention(nn.Module):
    """x_BLD hears heard_BLD; the logits are q . k + bias, unscaled."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.num_heads, inner = config.num_heads, config.num_heads * config.head_width
        self.q = nn.Linear(config.width, inner, bias=False)
        self.kv = nn.Linear(config.width, 2 * inner, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)

    def forward(self, x_BLD: Tensor, heard_BLD: Tensor, bias: Tensor | None) -> Tensor:
        q = rearrange(self.q(x_BLD), "b l (n k) -> b n l k", n=self.num_heads)
        k, v = rearrange(self.kv(heard_BLD), "b l (two n k) -> two b n l k", two=2, n=self.num_heads)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.out(rearrange(y, "b n l k -> b l (n k)"))


class MLP(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        hidden = round(config.width * config.mlp_ratio)
        self.gated = config.activation == "gated_gelu"
        self.inner = nn.Linear(config.width, hidden * (1 + self.gated), bias=False)
        self.out = nn.Linear(hidden, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.out(self.inner(x).relu())
        gate, value = self.inner(x).chunk(2, dim=-1)
        return self.out(F.gelu(gate, approximate="tanh") * value)


class Block(nn.Module):
    """x + attention(norm(x)), in a decoder + attention to the encoder's states, + mlp(norm(x))."""

    def __init__(self, config: Config, *, crossing: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = _norm(config), Attention(config)
        self.norm_cross, self.cross = (_norm(config), Attention(config)) if crossing else (None, None)
        self.norm2, self.mlp = _norm(config), MLP(config)

    def forward(self, x_BLD: Tensor, bias: Tensor, heard_BLD: Tensor | None = None, mask_B11L: Tensor | None = None) -> Tensor:
        normed = self.norm1(x_BLD)
        x_BLD = x_BLD + self.attention(normed, normed, bias)
        if self.cross is not None and self.norm_cross is not None:
            assert heard_BLD is not None
            x_BLD = x_BLD + self.cross(self.norm_cross(x_BLD), heard_BLD, mask_B11L)
        return x_BLD + self.mlp(self.norm2(x_BLD))


class T5Encoder(Tokenized, nn.Module):
    """Prompts in, token states and a pooled state out.

    assets: {"tokenizer.json": bytes}, learnt here or published. Without it the panel has no vocabulary until `learn_vocabulary(texts)`, and
    `encode` says so. Raises ValueError if the tokenizer and the sentinels are more than `config.vocab`, or for too few buckets.
    """

    def __init__(self, config: Config, *, assets: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        if config.buckets < 4 or config.max_distance <= config.buckets // 2:
            said = f"{config.buckets} buckets up to distance {config.max_distance}"
            raise ValueError(f"{said}: take 4 buckets or more, and a distance of more than half of them")
        if config.context_length < 2:
            raise ValueError(f"context_length {config.context_length} leaves no room for a word before [end]; take 2 or more")
        self.config = config
        self.bpe = Vocabulary(start=None, end="</s>", pad="<pad>", spare=config.sentinels)
        self.gives = ConditionSpec(vocab=config.vocab, width=config.width, context_length=config.context_length, pooled=config.width)
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.bias = RelativeBias(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = _norm(config)
        nn.init.normal_(self.embedding.weight)
        _initialise(self, config)
        self.read_vocabulary(assets)

    def sentinels(self) -> list[int]:
        """The ids that stand for what was cut out, the first span's first."""
        first = self.tokenizer.id("<extra_id_0>")
        return [(self.config.vocab - 1 if first is None else first) - k for k in range(self.config.sentinels)]

    def condition(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Condition:
        """The network alone: token ids in [0, V), True in mask_BL where a token is real; without a mask all of them are.

        tokens_BLD is 0 at padding. Raises ValueError for more than `context_length` tokens.
        """
        length = ids_BL.shape[1]
        if length > self.config.context_length:
            raise ValueError(f"{length} tokens, where this text encoder reads {self.config.context_length}")
        x_BLD, bias = self.embedding(ids_BL), self.bias(length)[None]
        if mask_BL is not None:
            bias = bias.masked_fill(~rearrange(mask_BL, "b l -> b 1 1 l"), -torch.inf)
        for block in self.blocks:
            x_BLD = block(x_BLD, bias)
        x_BLD = self.norm(x_BLD)
        if mask_BL is None:
            return Condition(ids_BL=ids_BL, tokens_BLD=x_BLD, pooled_BD=x_BLD.mean(dim=1))
        x_BLD = x_BLD * mask_BL[..., None]
        pooled_BD = x_BLD.sum(dim=1) / mask_BL.sum(dim=1, keepdim=True)
        return Condition(ids_BL=ids_BL, tokens_BLD=x_BLD, mask_BL=mask_BL, pooled_BD=pooled_BD)


# --- span corruption ----------------------------------------------------------------------------------------------------


class SpanDecoder(nn.Module):
    """T5's decoder: causal, it hears the encoder's states; ids of the answer so far to the states that guess the next."""

    def __init__(self, config: Config, depth: int) -> None:
        super().__init__()
        self.bias = RelativeBias(config, causal=True)
        self.blocks = nn.ModuleList(Block(config, crossing=True) for _ in range(depth))
        self.norm = _norm(config)
        _initialise(self, config)

    def forward(self, x_BTD: Tensor, heard_BLD: Tensor, mask_BL: Tensor) -> Tensor:
        length = x_BTD.shape[1]
        later_TT = torch.ones(length, length, dtype=torch.bool, device=x_BTD.device).triu(1)
        bias, mask_B11L = self.bias(length)[None].masked_fill(later_TT, -torch.inf), rearrange(mask_BL, "b l -> b 1 1 l")
        for block in self.blocks:
            x_BTD = block(x_BTD, bias, heard_BLD, mask_B11L)
        return self.norm(x_BTD)


class SpanCorruption(FromTexts):
    """The task: panel 1 learns from texts alone. It has a decoder of its own, of `decoder_depth` layers, which is not exported.

    mask: the share of words cut out.  span: how many together, on average.
    vocabulary_texts: how many texts the vocabulary is learnt from, where the panel has none.
    Raises ValueError for a share, a length or a depth that is none.
    """

    def __init__(
        self, panel: T5Encoder, *, neighbours: Mapping[str, Any] | None = None, mask: float = 0.15, span: float = 3.0,
        decoder_depth: int = 1, vocabulary_texts: int = 100_000,
    ) -> None:  # fmt: skip
        if not (0 < mask < 1 and span >= 1 and decoder_depth >= 1 and panel.config.sentinels >= 1):
            said = f"mask {mask}, span {span}, decoder_depth {decoder_depth}, {panel.config.sentinels} sentinels"
            raise ValueError(f"{said}: mask is a share of words between 0 and 1, as 0.15, the others are 1 or more")
        super().__init__(panel, vocabulary_texts)
        self.mask, self.span = mask, span
        self.decoder = self.modules["span_decoder"] = SpanDecoder(panel.config, decoder_depth)

    def corrupted(self, prompts: Sequence[Prompt | str], rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """said_BL (what is left, padded), its mask_BL, and answer_BT, -100 behind its end; all of it where nothing was to be cut out.

        Draws come from the row's own stream.
        """
        ids_BL, mask_BL = self.panel.ids(prompts)
        words, sentinels = self.panel.tokenizer, self.panel.sentinels()
        draws_B2L = rng.uniform("spans", (2, self.panel.config.context_length)).tolist()
        said, answers = [], []
        for ids, length, (lengths, places) in zip(ids_BL.tolist(), mask_BL.sum(dim=1).tolist(), draws_B2L, strict=True):
            left, cut = _cut(ids[: length - 1], lengths, places, sentinels, self.mask, self.span)
            said.append([*left, words.end])
            answers.append([*cut, words.end] if cut else [])
        length_B = torch.tensor([len(row) for row in said])
        said_BL, answer_BT = _table(said, words.pad), _table(answers, -100)
        mask_BL = torch.arange(said_BL.shape[1]) < length_B[:, None]
        return said_BL.to(ids_BL.device), mask_BL.to(ids_BL.device), answer_BT.to(ids_BL.device)

    def _guessed(self, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        said_BL, mask_BL, answer_BT = self.corrupted(batch.prompts, rng)
        heard_BLD, table_VD = self.panel.condition(said_BL, mask_BL).tokens_BLD, self.panel.embedding.weight
        there_BT = answer_BT >= 0
        before_BT = F.pad(answer_BT[:, :-1].where(there_BT[:, :-1], self.panel.tokenizer.pad), (1, 0), value=self.panel.tokenizer.pad)
        x_BTD = self.decoder(F.embedding(before_BT, table_VD), heard_BLD, mask_BL)
        logits_BTV = F.linear(x_BTD * table_VD.shape[1] ** -0.5, table_VD).float()  # the embedding has unit variance
        not_words = torch.tensor([*self.panel.sentinels(), self.panel.tokenizer.end], device=answer_BT.device)
        word_BT = there_BT & ~torch.isin(answer_BT, not_words)
        return {
            "loss_BT": F.cross_entropy(logits_BTV.transpose(1, 2), answer_BT, reduction="none"),  # 0 at -100
            "there_BT": there_BT, "right_BT": (logits_BTV.argmax(-1) == answer_BT) & word_BT, "word_BT": word_BT,
        }  # fmt: skip

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """loss: the mean over the answers' tokens, sentinels and [end] among them; right: the share of words that was guessed, each from
        the encoder's states and the right words before it."""
        found = {name: value.sum() for name, value in self._guessed(batch, rng).items()}
        return {"loss": found["loss_BT"] / found["there_BT"].clamp(min=1), "right": found["right_BT"] / found["word_BT"].clamp(min=1)}

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """loss and right, [B]: the row's means, over spans that never change; 0 for a row without words."""
        found = {name: value.sum(dim=1) for name, value in self._guessed(batch, Rng.of_samples(0, batch.index)).items()}
        return {"loss": found["loss_BT"] / found["there_BT"].clamp(min=1), "right": found["right_BT"] / found["word_BT"].clamp(min=1)}


TASKS = {"span_corruption": SpanCorruption}


def _cut(
    words: list[int], lengths: list[float], places: list[float], sentinels: list[int], share: float, span: float
) -> tuple[list[int], list[int]]:
    """What is left of a row's words, and the answer; `lengths` and `places` are uniform draws, as many as words or more.

    How many words go, and in how many spans, are not drawn; every way to divide and to place them is as likely as another. No two spans
    touch. (T5's code lets none stand first: in a prompt, shorter by far than its 512 tokens, the first word would never be guessed.)
    """
    if not words:
        return [], []
    hidden = min(max(round(share * len(words)), 1), len(words))
    left = len(words) - hidden
    spans = min(max(round(hidden / span), 1), left + 1, len(sentinels))
    ends = [*(cut + 1 for cut in _smallest(lengths[: hidden - 1], spans - 1)), hidden]
    said, answer, at, begun = [], [], 0, 0
    for sentinel, before, end in zip(sentinels, _smallest(places[: left + 1], spans), ends, strict=False):  # before: words left before it
        start, stop = before + begun, before + end
        said += [*words[at:start], sentinel]
        answer += [sentinel, *words[start:stop]]
        at, begun = stop, end
    return said + words[at:], answer


def _smallest(draws: list[float], count: int) -> list[int]:
    """The places of the smallest draws, in order: a fair choice of `count` among them."""
    return sorted(sorted(range(len(draws)), key=draws.__getitem__)[:count])


def _table(rows: list[list[int]], fill: int) -> Tensor:
    longest = max([1, *map(len, rows)])
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])


def _norm(config: Config) -> nn.RMSNorm:
    return nn.RMSNorm(config.width, eps=config.eps)


def _initialise(module: nn.Module, config: Config) -> None:
    """Unit variance in, unit variance out, and queries smaller by the root of the head's width, for nothing else divides by it."""
    for name, weight in module.named_parameters():
        if weight.ndim == 2 and not name.startswith("embedding"):
            fan_in = config.width if name.endswith("bias.weight") else weight.shape[1]
            nn.init.normal_(weight, std=(fan_in * config.head_width) ** -0.5 if name.endswith("q.weight") else fan_in**-0.5)
