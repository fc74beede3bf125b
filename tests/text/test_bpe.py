"""The tokenizer: nothing is unknown, nothing crosses a script, and the same words are the same tokens."""

from __future__ import annotations

import pytest

from tests.text.words import TEXTS
from triptych.text_encoders._bpe import BOS, EOS, MASK, PAD, SPECIAL, Tokenizer, learn


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer({"tokenizer.json": learn(TEXTS, 640)})


def test_special_tokens_stand_first(tokenizer):
    assert (PAD, BOS, EOS, MASK) == (0, 1, 2, 3)
    assert [tokenizer._rust.id_to_token(i) for i in range(4)] == list(SPECIAL)
    assert len(tokenizer) <= 640


def test_a_text_cannot_say_a_special_token_or_a_byte(tokenizer):
    for text in (*SPECIAL, "[mask]", "<0x41>", "<0x00>"):
        (ids,) = tokenizer.encode([text])
        assert len(ids) >= 3 and min(ids) >= len(SPECIAL)


def test_frequent_words_of_both_languages_are_one_token(tokenizer):
    assert tokenizer.tokens("red apple") == ["red", "apple"]
    assert tokenizer.tokens("红色的猫") == ["红色", "的", "猫"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ＲＥＤ　Ａｐｐｌｅ", "red apple"),
        ("Red  APPLE ", "red apple"),
        ("cafe\u0301", "caf\u00e9"),
        ("\u2764\ufe0f", "\u2764"),
        ("１２", "12"),
    ],
)
def test_the_same_words_are_the_same_tokens(tokenizer, one, other):
    assert tokenizer.encode([one]) == tokenizer.encode([other])


def test_white_space_separates_and_says_nothing(tokenizer):
    assert tokenizer.tokens("红色 的\n猫") == tokenizer.tokens("红色的猫")


def test_no_token_crosses_a_script_or_is_a_long_phrase():
    from unicodedata import name

    vocabulary = Tokenizer({"tokenizer.json": learn([f"{text}{text[0]}apple红色12" for text in TEXTS] * 3, 900)})._rust.get_vocab()
    for token in vocabulary:
        if token in SPECIAL or token.startswith("<0x"):
            continue
        scripts = {name(character, "?").split()[0] for character in token}
        assert len(scripts) == 1, token
        if scripts == {"CJK"}:
            assert len(token) <= 2 and not (len(token) > 1 and set(token) & set("的了和在与个")), token
        if not token.isalpha():
            assert len(token) == 1, token  # digits and signs stand alone


@pytest.mark.parametrize(
    "text",
    [
        "", " \t\n\u3000", "\x00", "a\x00b", "\ud800", "\udc00\ud800", "\ud83d\ude00", "🧑‍🚀", "👩🏽‍❤️‍💋‍👨🏿", "🏴󠁧󠁢󠁥󠁮󠁧󠁿",
        "\u202ertl\u202c", "שלום", "नमस्ते", "ไทย", "한국어", "カタカナ",
        "𠜎𠜱", "\U0010ffff\ufffe", "ﷺ" * 3, "e" + "\u0301" * 40, "\x7f\x80\x9f", "İıſ", "½²㎏",
    ],
)  # fmt: skip
def test_any_unicode_has_tokens(tokenizer, text):
    (ids,) = tokenizer.encode([text])
    assert all(len(SPECIAL) <= i < len(tokenizer) for i in ids)
    assert bool(ids) == bool(text.strip())
    assert tokenizer.encode(["x", text, "y"])[1] == ids


def test_every_byte_that_text_can_hold_has_a_token(tokenizer):
    for code in [*range(0x20), *range(0x7F, 0x300), *range(0xFFF0, 0x10000), 0x10000, 0x3FFFF, 0x40000, 0xFFFFF, 0x100000, 0x10FFFF]:
        assert bool(tokenizer.encode([chr(code)])[0]) != chr(code).isspace() or code in (0x1C, 0x1D, 0x1E, 0x1F), hex(code)


def test_lone_surrogates_are_replaced_and_pairs_joined(tokenizer):
    assert tokenizer.encode(["\ud800"]) == tokenizer.encode(["\ufffd"])
    assert tokenizer.encode(["\ud83d\ude00"]) == tokenizer.encode(["\U0001f600"])


def test_learning_depends_on_the_set_of_texts_alone():
    assert learn(TEXTS, 500) == learn([*reversed(TEXTS), *TEXTS], 500)


def test_learning_from_one_language_or_from_nothing_works():
    for texts in (["red apple", "green apple"], ["红苹果", "青苹果"], []):
        assert Tokenizer({"tokenizer.json": learn(texts, 512)}).encode(["red 红"])[0]


def test_json_round_trip(tokenizer):
    again = Tokenizer({"tokenizer.json": tokenizer.json_bytes})
    assert again.encode(TEXTS) == tokenizer.encode(TEXTS) and again.json_bytes == tokenizer.json_bytes


def test_what_is_behind_the_first_tokens(tokenizer):
    assert tokenizer.after("Red APPLE, 红苹果!", 3) == "红苹果!"
    assert tokenizer.after("red", 1) == ""


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=r"take \d+ or more"):
        learn(TEXTS, 100)
    with pytest.raises(ValueError, match="no tokenizer"):
        Tokenizer({"tokenizer.json": b"{}"})
    with pytest.raises(ValueError, match="no tokenizer"):
        Tokenizer({"tokenizer.json": b"\xff\xfe"})
