"""200 prompts in 11 categories, English and Chinese, for people who compare two systems: DrawBench's protocol, with words of our own.

The protocol and the categories are those of Imagen (Saharia et al. 2022, arXiv:2205.11487, section 3 and appendix C); none of its prompts
is here. `drawbench.json` beside this file holds {"id", "category", "en", "zh"}, 18 or 19 to a category:

    colors        a colour where it does not belong, or several that must not change places
    counting      one to twelve of something, also none, also two kinds at once
    conflicting   what the world does not allow
    dall-e        things made of, shaped as, or dressed as other things
    description   a thing told without its name
    gary marcus   who does what to whom, parts and wholes, what is absent: traps for a reader of single words
    misspellings  wrong letters; in Chinese, wrong characters of the same sound or shape
    positional    left, right, above, below, in front, behind, between
    rare words    words that few captions hold
    reddit        what people ask for when they play
    text          words to be written in the picture
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

__all__ = ["CATEGORIES", "LANGUAGES", "Entry", "prompts"]

CATEGORIES = (
    "colors", "counting", "conflicting", "dall-e", "description", "gary marcus", "misspellings", "positional", "rare words", "reddit",
    "text",
)  # fmt: skip
LANGUAGES = ("en", "zh")


class Entry(NamedTuple):
    """One prompt. id: the same in both languages, as "colors-07"."""

    id: str
    category: str
    text: str


def prompts(language: str = "en", category: str | None = None) -> list[Entry]:
    """All 200, or those of one category, always in the same order. Raises ValueError for another language or category."""
    if language not in LANGUAGES:
        raise ValueError(f"drawbench language {language!r}: there are {', '.join(LANGUAGES)}")
    if category is not None and category not in CATEGORIES:
        from ..catalog import nearest

        raise ValueError(f"drawbench has no category {category!r}; {nearest(category, CATEGORIES)}")
    return [Entry(row["id"], row["category"], row[language]) for row in _rows() if category in (None, row["category"])]


@cache
def _rows() -> tuple[dict[str, str], ...]:
    import json

    return tuple(json.loads(Path(__file__).with_name("drawbench.json").read_text(encoding="utf-8")))
