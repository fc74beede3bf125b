"""What every text encoder does with prompts before it reads them: words to token ids, by a vocabulary that is learnt once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..contracts import Condition, Prompt, Rng

__all__ = ["PromptTooLong", "Tokenized", "texts_of", "valid"]


class PromptTooLong(UserWarning):
    """A prompt did not fit; the warning names what was not read."""


class Tokenized:
    """A text encoder's way from prompts to `condition(ids_BL, mask_BL)`; mixed into a panel with `config.vocab`, `config.context_length`
    and `embedding`.

    bpe: what knows its tokenizer, a module or an object: `Tokenizer(files)` with start (None = none), end and pad ids, `learn(texts,
    vocab)`, and FILES that it may be read from. Without them the panel has no vocabulary until `learn_vocabulary`, and `encode` says so.
    """

    bpe: Any
    reads = frozenset({"text"})  # of a Prompt's fields
    config: Any
    embedding: Any
    condition: Callable[..., Condition]
    parameters: Callable[[], Iterable[Tensor]]
    _silence: tuple[Any, Condition] | None = None  # what the empty prompt said last, and for which weights

    def read_vocabulary(self, files: Mapping[str, bytes] | None) -> None:
        """Called once, by the panel's __init__. Raises ValueError if the tokenizer holds more tokens than the embedding has rows."""
        self.tokenizer: Any = None
        if files and any(name in files for name in self.bpe.FILES):
            tokenizer, rows = self.bpe.Tokenizer(files), self.config.vocab
            if len(tokenizer) > rows:
                many = len(tokenizer)
                raise ValueError(f"the tokenizer has {many} tokens, the embedding {rows} rows; set vocab to {many} or more")
            self.tokenizer = tokenizer

    @property
    def has_vocabulary(self) -> bool:
        return self.tokenizer is not None

    def learn_vocabulary(self, texts: Iterable[str]) -> None:
        """Learn the tokens from texts. Raises ValueError if there is a vocabulary: its ids have a meaning."""
        if self.has_vocabulary:
            raise ValueError("this text encoder has a vocabulary, and its weights know words by it; build a new encoder for another")
        self.read_vocabulary({"tokenizer.json": self.bpe.learn(map(valid, texts), self.config.vocab)})

    def assets(self) -> dict[str, bytes]:
        """The files that belong beside the weights."""
        return {} if self.tokenizer is None else {"tokenizer.json": self.tokenizer.json_bytes}

    def encode(
        self, prompts: Sequence[Prompt | str], *, encode_image: Callable[[Tensor], Tensor] | None = None, rng: Rng | None = None
    ) -> Condition:
        """B prompts to ids_BL, tokens_BLD (final-normed, 0 at padding), mask_BL and pooled_BD; L is the longest prompt's.

        Only `Prompt.text` is read. A row is the same whatever rows are beside it (to rounding). Warns PromptTooLong, naming the
        part, where a prompt is cut. Raises ValueError where there is no vocabulary or no prompt.
        """
        ids_BL, mask_BL = self.ids(prompts)
        return self.condition(ids_BL, mask_BL)

    def null(self, prompts: Sequence[Prompt | str]) -> Condition:
        """The empty prompt, start and end alone, once for each of the prompts. Outside of learning it is computed once, and kept while no
        weight changes."""
        device = self.embedding.weight.device
        if torch.is_grad_enabled():
            one = self.condition(*self.ids([""]))
        else:
            weights = [(id(p), p.data_ptr(), p._version) for p in self.parameters()]
            kind = device.type
            now = (weights, self.tokenizer, torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind))
            if self._silence is None or self._silence[0] != now:
                self._silence = now, self.condition(*self.ids([""]))
            one = self._silence[1]
        return one.rows(torch.zeros(len(prompts), dtype=torch.long, device=device))

    @property
    def _room(self) -> int:
        """Tokens of a prompt, between those of its start and end."""
        return self.config.context_length - (1 if self.tokenizer.start is None else 2)

    def cut(self, texts: Sequence[str]) -> list[bool]:
        """Which of them are longer than what is read."""
        return [len(row) > self._room for row in self.tokenizer.encode([valid(text) for text in texts])] if texts else []

    def ids(self, prompts: Sequence[Prompt | str]) -> tuple[Tensor, Tensor]:
        """ids_BL, padded at the end, and mask_BL, True at real tokens, on this panel's device; warnings and errors as in `encode`."""
        words = self.tokenizer
        if words is None:
            raise ValueError("this text encoder has no vocabulary yet; call learn_vocabulary(texts), or load a trained one")
        first, texts, room = [] if words.start is None else [words.start], texts_of(prompts), self._room
        rows = words.encode(texts)
        for text, row in zip(texts, rows, strict=True):
            if len(row) > room:
                said = f"a prompt of {len(row)} tokens, where this text encoder reads {room}; not read: {words.after(text, room)!r}"
                warnings.warn(said, PromptTooLong, stacklevel=3)  # in the name of whoever called `encode` or `ids`
        rows = [[*first, *row[:room], words.end] for row in rows]
        longest, device = max(map(len, rows)), self.embedding.weight.device
        ids_BL = torch.tensor([row + [words.pad] * (longest - len(row)) for row in rows]).to(device)
        lengths_B = torch.tensor([len(row) for row in rows]).to(device)
        return ids_BL, torch.arange(longest, device=device) < lengths_B[:, None]


def texts_of(prompts: Sequence[Prompt | str]) -> list[str]:
    """The words of each prompt; surrogate pairs joined, lone surrogates as U+FFFD. Raises ValueError if there is no prompt."""
    if not len(prompts):
        raise ValueError('0 prompts; give at least one, "" if nothing is to be said')
    texts = [prompt if isinstance(prompt, str) else prompt.text for prompt in prompts]
    return [valid(text) for text in texts]


def valid(text: str) -> str:
    """Surrogate pairs joined, lone surrogates replaced by U+FFFD: what tokenizers written in Rust can hold."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
