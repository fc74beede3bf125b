"""CLIP's tokenizer (arXiv 2103.00020, section 2.4): byte-pair encoding of lower-cased text, over bytes, words marked at their end.

Text is NFC-normalised, white space is one space, and a regular expression cuts words, single digits and runs of signs. Each byte
is a printable character (GPT-2's table), the last one of a word carries "</w>", and merges never cross a cut. So every text has
tokens: 2 x 256 of them are bytes, the rest are merges, and the last two open and close a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["END", "FILES", "START", "Tokenizer", "learn"]

START, END = "<|startoftext|>", "<|endoftext|>"
FILES = ("tokenizer.json", "vocab.json", "merges.txt")  # the first alone, or the other two

_SUFFIX = "</w>"
_CUT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class Tokenizer:
    """Texts to lists of token ids, from files by name: "tokenizer.json", or "vocab.json" and "merges.txt".

    No special token is ever read out of a text. Raises ValueError for files that are no CLIP tokenizer.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        from tokenizers import Tokenizer as Rust

        try:
            rust = Rust.from_str(files["tokenizer.json"].decode("utf-8")) if "tokenizer.json" in files else _from_pair(files)
        except Exception as error:  # the Rust side raises bare Exception
            raise ValueError(f"this is no tokenizer ({error}); expected CLIP's tokenizer.json, or its vocab.json and merges.txt") from None
        start, end = rust.token_to_id(START), rust.token_to_id(END)
        if start is None or end is None:
            raise ValueError(f"this tokenizer has no {START} or no {END}; expected CLIP's")
        self.start, self.end, self.pad = start, end, end
        rust.no_truncation()
        rust.no_padding()
        rust.encode_special_tokens = True
        self._rust = rust
        self.json_bytes = files["tokenizer.json"] if "tokenizer.json" in files else rust.to_str().encode("utf-8")

    def __len__(self) -> int:
        """Rows of an embedding that holds all of its ids."""
        return 1 + max(self._rust.get_vocab().values())

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without the first and the last token; "" gives []."""
        return [found.ids for found in self._rust.encode_batch(list(texts), add_special_tokens=False)]

    def after(self, text: str, count: int) -> str:
        """The rest of a text behind its first `count` tokens, as it was written."""
        offsets = self._rust.encode(text, add_special_tokens=False).offsets
        return text[offsets[count][0] :] if count < len(offsets) else ""


def learn(texts: Iterable[str], vocab: int) -> bytes:
    """Learn at most `vocab` tokens; a tokenizer.json. Each different text counts once.

    Raises ValueError where `vocab` leaves nothing to learn.
    """
    from tokenizers import pre_tokenizers, trainers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    fixed = [*letters, *(letter + _SUFFIX for letter in letters)]
    room = vocab - len(fixed) - 2
    if room < 1:
        raise ValueError(f"a vocabulary of {vocab} is too small: bytes and special tokens are {len(fixed) + 2}; take more")
    rust = _built({}, [])
    rules: dict[str, Any] = {"end_of_word_suffix": _SUFFIX, "initial_alphabet": letters, "min_frequency": 2, "show_progress": False}
    rust.train_from_iterator(sorted(set(texts)), trainers.BpeTrainer(vocab_size=vocab, **rules))
    merges = [(a, b) for a, b in json.loads(rust.to_str())["model"]["merges"]][:room]
    tokens = dict.fromkeys([*fixed, *(a + b for a, b in merges), START, END])
    return _built({token: i for i, token in enumerate(tokens)}, merges).to_str().encode("utf-8")


def _from_pair(files: Mapping[str, bytes]) -> Any:
    vocabulary = json.loads(files["vocab.json"])
    lines = [line for line in files["merges.txt"].decode("utf-8").split("\n") if line.strip() and not line.startswith("#version")]
    pairs = [tuple(line.split()) for line in lines]
    return _built(vocabulary, pairs)


def _built(vocabulary: dict[str, int], merges: list[Any]) -> Any:
    from tokenizers import Regex, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Rust

    rust = Rust(models.BPE(vocabulary, merges, end_of_word_suffix=_SUFFIX, unk_token=END if vocabulary else None))
    rust.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    cut = pre_tokenizers.Split(Regex(_CUT), behavior="removed", invert=True)
    rust.pre_tokenizer = pre_tokenizers.Sequence([cut, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    return rust
