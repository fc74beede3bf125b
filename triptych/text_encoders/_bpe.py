"""The bilingual tokenizer: byte-pair encoding (Sennrich et al., arXiv 1508.07909) that never crosses a script.

Text is NFKC-normalised and lower-cased, so full-width letters are half-width ones, and cut into runs of one script; white
space only separates. Merges are learnt inside a run. Each script learns from its own runs, which is the same as learning from
all of them at once, but lets each have its own rule:

    Han     every frequent character is a token, words of at most two characters merge, and particles stand alone: longer
            merges would swallow phrases ("red circle") whole, and a combination never seen could not share them.
    others  merges as long as the vocabulary lasts, so common English words are one token.

A character outside the alphabet becomes its UTF-8 bytes: every Unicode text has tokens, and no text has an unknown one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from ._prompts import valid

__all__ = ["BOS", "EOS", "FILES", "MASK", "PAD", "SPECIAL", "Tokenizer", "learn"]

FILES = ("tokenizer.json",)

PAD, BOS, EOS, MASK = range(4)
SPECIAL = ("[PAD]", "[BOS]", "[EOS]", "[MASK]")

_PRINTABLE = [chr(code) for code in range(0x21, 0x7F)]  # always in the alphabet
# What UTF-8 can hold beside printable ASCII and the space: control characters, continuations, lead bytes.
_BYTES = [byte for byte in range(0xF5) if not 0x20 <= byte < 0x7F and byte not in (0xC0, 0xC1)]
_PARTICLES = "的了和在与个"
_RUNS = rf"[{_PARTICLES}]|(?:(?![{_PARTICLES}])\p{{Han}})+|[\p{{Hiragana}}\p{{Katakana}}]+|\p{{Latin}}+|\p{{N}}|[^\p{{L}}\p{{M}}\p{{N}}]"
_HAN_SHARE = 0.5  # of the learnt vocabulary; English words are longer and fewer characters make them, Han is the other way round


class Tokenizer:
    """Texts to lists of token ids, from {"tokenizer.json": what `learn` returned}.

    No special token is ever read out of a text: "[MASK]" in a prompt is six letters and signs. ordinary_V: the ids that words have, int64.
    Raises ValueError if the JSON is not ours.
    """

    start, end, pad, mask = BOS, EOS, PAD, MASK

    def __init__(self, files: Mapping[str, bytes]) -> None:
        from tokenizers import Tokenizer as Rust

        json_bytes = files["tokenizer.json"]
        expected = "expected the tokenizer.json that a text encoder was saved with"
        try:
            self._rust = Rust.from_str(json_bytes.decode("utf-8"))
        except Exception as error:  # the Rust side raises bare Exception
            raise ValueError(f"this is no tokenizer ({error}); {expected}") from None
        if [self._rust.id_to_token(i) for i in range(len(SPECIAL))] != list(SPECIAL):
            raise ValueError(f"this tokenizer does not begin with {', '.join(SPECIAL)}; {expected}")
        self.json_bytes = bytes(json_bytes)
        self.ordinary_V = torch.arange(len(SPECIAL), len(self), device="cpu")

    def __len__(self) -> int:
        return self._rust.get_vocab_size()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without [BOS] and [EOS]; "" gives []. Lone surrogates are read as U+FFFD."""
        return [found.ids for found in self._rust.encode_batch([valid(text) for text in texts], add_special_tokens=False)]

    def tokens(self, text: str) -> list[str]:
        """What `encode` sees, readable: `["red", "apple"]`; a byte is `"<0xE9>"`."""
        return self._rust.encode(valid(text), add_special_tokens=False).tokens

    def after(self, text: str, count: int) -> str:
        """The rest of a text behind its first `count` tokens, as it was written."""
        text = valid(text)
        offsets = self._rust.encode(text, add_special_tokens=False).offsets
        return text[offsets[count][0] :] if count < len(offsets) else ""


def learn(texts: Iterable[str], vocab: int) -> bytes:
    """Learn at most `vocab` tokens from texts of any languages; the tokenizer's JSON, UTF-8.

    Each different text counts once, so that a template that is drawn often does not outvote the names. Deterministic in the
    set of texts. Raises ValueError where `vocab` leaves nothing to learn.
    """
    fixed = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in _BYTES), *_PRINTABLE]
    room = vocab - len(fixed)
    if room < 1:
        least = len(fixed)
        raise ValueError(f"a vocabulary of {vocab} is too small: special tokens, bytes and ASCII are {least}; take {2 * least} or more")
    normalizer, cut = _normalizer(), _cut()
    runs: Counter[str] = Counter()
    for text in sorted(set(map(valid, texts))):
        runs.update(run for run, _ in cut.pre_tokenize_str(normalizer.normalize_str(text)))
    han = {run: n for run, n in runs.items() if _is_han(run)}
    other = {run: n for run, n in runs.items() if run not in han}
    han_tokens, han_merges = _merges(han, int(room * _HAN_SHARE), longest=2)
    other_tokens, other_merges = _merges(other, room - len(han_tokens), known=_PRINTABLE)
    if len(other_tokens) + len(han_tokens) < room:  # one language alone may have the other's share
        han_tokens, han_merges = _merges(han, room - len(other_tokens), longest=2)
    vocabulary = {token: i for i, token in enumerate([*fixed, *other_tokens, *han_tokens])}
    return _json(vocabulary, [*other_merges, *han_merges], normalizer, cut)


def _merges(runs: dict[str, int], room: int, *, longest: int | None = None, known: Sequence[str] = ()) -> tuple[list[str], list[list[str]]]:
    """New tokens (characters that occur more than once, the most frequent first, at most 7/8 of the room; then merges), and merges."""
    from tokenizers import Tokenizer as Rust
    from tokenizers import models, trainers

    characters: Counter[str] = Counter()
    for run, n in runs.items():
        for character in run:
            characters[character] += n
    new = sorted((c for c, n in characters.items() if n > 1 and c not in known), key=lambda c: (-characters[c], c))[: room * 7 // 8]
    alphabet = sorted({*new, *known})
    spellable = sorted((run, n) for run, n in runs.items() if len(run) > 1 and set(run) <= set(alphabet))
    size = room - len(new) + len(alphabet)
    rules = {"min_frequency": 2, "max_token_length": longest, "show_progress": False}
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, **rules)
    rust = Rust(models.BPE())
    rust.train_from_iterator((run for run, n in spellable for _ in range(n)), trainer)
    merges = json.loads(rust.to_str())["model"]["merges"]
    return [*new, *dict.fromkeys(a + b for a, b in merges)], [list(pair) for pair in merges]


def _normalizer() -> Any:
    from tokenizers import normalizers

    # U+FE0F only asks for the coloured form of a sign: it says nothing about the picture.
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("\ufe0f", "")])


def _cut() -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.Split(Regex(_RUNS), "isolated")])


def _json(vocabulary: dict[str, int], merges: list[list[str]], normalizer: Any, cut: Any) -> bytes:
    from tokenizers import Tokenizer as Rust
    from tokenizers import models

    rust = Rust(models.BPE(vocab=vocabulary, merges=[(a, b) for a, b in merges], byte_fallback=True))
    rust.normalizer, rust.pre_tokenizer = normalizer, cut
    return rust.to_str().encode("utf-8")


def _is_han(run: str) -> bool:
    first = ord(run[0])
    return 0x3400 <= first <= 0x9FFF or 0xF900 <= first <= 0xFAFF or 0x20000 <= first <= 0x3FFFF
