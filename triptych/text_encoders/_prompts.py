"""What every text encoder does with prompts before it reads them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from ..contracts import Prompt

__all__ = ["PromptTooLong", "texts_of", "valid", "warn_unread"]


class PromptTooLong(UserWarning):
    """A prompt did not fit; the warning names what was not read."""


def texts_of(prompts: Sequence[Prompt | str]) -> list[str]:
    """The words of each prompt; surrogate pairs joined, lone surrogates as U+FFFD. Raises ValueError if there is no prompt."""
    if not len(prompts):
        raise ValueError('0 prompts; give at least one, "" if nothing is to be said')
    texts = [prompt if isinstance(prompt, str) else prompt.text for prompt in prompts]
    return [valid(text) for text in texts]


def valid(text: str) -> str:
    """Surrogate pairs joined, lone surrogates replaced by U+FFFD: what tokenizers written in Rust can hold."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def warn_unread(tokens: int, room: int, unread: str) -> None:
    """Warns PromptTooLong, in the name of whoever called the text encoder's `encode` or `ids`."""
    said = f"a prompt of {tokens} tokens, where this text encoder reads {room}; not read: {unread!r}"
    warnings.warn(said, PromptTooLong, stacklevel=4)
