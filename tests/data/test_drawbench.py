"""The people's prompts: how many, in what, and that each language speaks for itself."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from triptych.data.drawbench import CATEGORIES, prompts

HAN = re.compile(r"[\u4e00-\u9fff]")


def test_two_hundred_in_eleven_categories():
    entries = prompts()
    assert len(entries) == 200 and len(CATEGORIES) == 11
    counts = Counter(entry.category for entry in entries)
    assert tuple(counts) == CATEGORIES and set(counts.values()) == {18, 19}
    assert all(entry.id.startswith(entry.category.replace(" ", "-")) for entry in entries)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_prompt_is_there_once_and_tidy(language):
    texts = [entry.text for entry in prompts(language)]
    assert len({text.casefold() for text in texts}) == 200
    assert all(text == " ".join(text.split()) and 2 < len(text) < 120 and text[-1] not in ".。 " for text in texts)


def test_the_languages_are_two():
    english, chinese = prompts("en"), prompts("zh")
    assert [(e.id, e.category) for e in english] == [(e.id, e.category) for e in chinese]
    assert not {e.text for e in english} & {e.text for e in chinese}
    assert not [e.text for e in english if HAN.search(e.text)]
    assert not [e.text for e in chinese if len(HAN.findall(e.text)) < 3]


def test_words_to_be_written_are_quoted_in_both_languages():
    for english, chinese in zip(prompts("en", "text"), prompts("zh", "text"), strict=True):
        quoted = '"' in english.text or re.search(r"number \d|word north", english.text)
        assert quoted and re.search(r"[“《]|数字\d", chinese.text), english.id


def test_one_category_and_wrong_names():
    assert [entry.id for entry in prompts("zh", "rare words")] == [f"rare-words-{n:02}" for n in range(1, 19)]
    with pytest.raises(ValueError, match="no category 'color'; did you mean 'colors'"):
        prompts("en", "color")
    with pytest.raises(ValueError, match="language 'fr': there are en, zh"):
        prompts("fr")
