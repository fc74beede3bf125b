"""Texts alone, for a text encoder's pre-training: emoji names, keywords and templates, and sentences of scenes never drawn.

Both languages. Nothing of a held-out idea, combination or composition is said: the words come from the training split of the emoji,
and from graphs that hold no held-out composition. The held-out split says the held-out ones.
"""

from __future__ import annotations

from typing import Any

from ..contracts import Prompt
from .emoji import EmojiSource
from .index import Row, deal, shares, stable_hash
from .scenes import ScenesSource

__all__ = ["TextsSource"]


class TextsSource:
    """emoji_share: of the draws; the rest are scene sentences. single_share, english: as in `emoji`.  font, cldr: where its files are.

    With emoji_share 0 neither font nor CLDR is needed.
    """

    name = "texts"

    def __init__(
        self, *, size: int = 0, split: str = "train", emoji_share: float = 0.6, single_share: float = 0.67, english: float = 0.5,
        font: str | None = None, cldr: str | None = None,
    ) -> None:  # fmt: skip
        if not 0 <= emoji_share <= 1:
            raise ValueError(f"texts emoji_share {emoji_share} is a share, in 0..1")
        self._sources: list[EmojiSource | ScenesSource] = []
        weights = []
        if emoji_share > 0:
            self._sources.append(EmojiSource(size=0, split=split, font=font, cldr=cldr, single_share=single_share, english=english))
            weights.append(emoji_share)
        if emoji_share < 1:
            self._sources.append(ScenesSource(size=0, split=split, cutouts=emoji_share > 0, english=english, font=font))
            weights.append(1 - emoji_share)
        self._cards = shares(weights, 100)
        self.count = sum(source.count for source in self._sources)

    def words(self, seed: int, position: int) -> str:
        which, turn = deal(seed, position, self._cards)
        return self._sources[which].words(stable_hash(seed, "texts", which), turn)

    def row(self, seed: int, position: int) -> Row:
        text = self.words(seed, position)
        return Row(None, Prompt(text=text), f"texts:{stable_hash(text):x}")

    def describe(self) -> dict[str, Any]:
        return {source.name: {k: v for k, v in source.describe().items() if k != "pictures"} for source in self._sources}
