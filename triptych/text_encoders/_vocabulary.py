"""The vocabularies of BERT, GPT and T5: the bilingual one, learnt here, or the one that a family was published with.

Both are a tokenizer.json. One that is learnt here begins with [PAD], [BOS], [EOS] and [MASK] (`_bpe.SPECIAL`), so the three families
read the same words by the same numbers, and a comparison of them is one of networks. A published one has special tokens by other names.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import _bpe

__all__ = ["Tokenizer", "Vocabulary"]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a family's tokenizers look like: the names of its special tokens as published, and how many ids its own one leaves free.

    start: None = prompts have no first token, in the learnt vocabulary neither.  mask: None = nothing is ever masked.
    spare: so many of the last ids are no words of the learnt vocabulary (T5's sentinels).
    """

    start: str | None
    end: str
    pad: str
    mask: str | None = None
    spare: int = 0

    FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt", "spiece.model")  # the first alone can be read

    def Tokenizer(self, files: Mapping[str, bytes]) -> Tokenizer:
        return Tokenizer(files, self)

    def learn(self, texts: Iterable[str], vocab: int) -> bytes:
        """The bilingual tokenizer of at most `vocab - spare` tokens."""
        return _bpe.learn(texts, vocab - self.spare)


class Tokenizer:
    """Texts to lists of token ids, from {"tokenizer.json": bytes}.

    No special token is ever read out of a text. ordinary_V: the ids that words have, int64. Raises ValueError for files that are no
    tokenizer, or not this family's.
    """

    def __init__(self, files: Mapping[str, bytes], published: Vocabulary) -> None:
        from tokenizers import Tokenizer as Rust

        if "tokenizer.json" not in files:
            found = ", ".join(name for name in published.FILES if name in files)
            way_out = "transformers.AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) writes one"
            raise ValueError(f"of {found} no tokenizer can be read, only of a tokenizer.json; {way_out}")
        self.json_bytes = bytes(files["tokenizer.json"])
        try:
            rust = Rust.from_str(self.json_bytes.decode("utf-8"))
        except Exception as error:  # the Rust side raises bare Exception
            raise ValueError(f"this is no tokenizer ({error}); expected a tokenizer.json") from None
        rust.no_truncation()
        rust.no_padding()
        rust.encode_special_tokens = True
        self._rust = rust
        self.learnt = [rust.id_to_token(i) for i in range(len(_bpe.SPECIAL))] == list(_bpe.SPECIAL)
        names = _learnt(published) if self.learnt else published
        self.start = None if names.start is None else self._must(names.start)
        self.end, self.pad = self._must(names.end), self._must(names.pad)
        self.mask = None if names.mask is None else self._must(names.mask)
        self._spare = published.spare if self.learnt else 0
        special = set(range(len(_bpe.SPECIAL))) if self.learnt else {i for i, t in rust.get_added_tokens_decoder().items() if t.special}
        self.ordinary_V: Tensor = torch.tensor(sorted(set(rust.get_vocab().values()) - special), device="cpu")
        model = json.loads(rust.to_str())["model"]
        self._commands = special - {model.get("unk_id"), self.id(model.get("unk_token") or "")}

    def _must(self, name: str) -> int:
        found = self._rust.token_to_id(name)
        if found is None:
            raise ValueError(f"this tokenizer has no {name}: it is another family's")
        return found

    def id(self, name: str) -> int | None:
        """The id of a token by its name."""
        return self._rust.token_to_id(name)

    def __len__(self) -> int:
        """Rows of an embedding that holds all of its ids, the spare ones too."""
        return 1 + max(self._rust.get_vocab().values()) + self._spare

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without the first and the last token; "" gives []."""
        return [[found.ids[at] for at in self._read(found)] for found in self._rust.encode_batch(list(texts), add_special_tokens=False)]

    def _read(self, found: Any) -> list[int]:
        """The places of all tokens that are words: a unigram model has special tokens among its pieces, and finds them in a text."""
        return [at for at, one in enumerate(found.ids) if one not in self._commands]

    def after(self, text: str, count: int) -> str:
        """The rest of a text behind its first `count` tokens, as it was written."""
        found = self._rust.encode(text, add_special_tokens=False)
        offsets = [found.offsets[at] for at in self._read(found)]
        return text[offsets[count][0] :] if count < len(offsets) else ""


def _learnt(published: Vocabulary) -> Vocabulary:
    pad, start, end, mask = _bpe.SPECIAL
    return Vocabulary(start=None if published.start is None else start, end=end, pad=pad, mask=None if published.mask is None else mask)
