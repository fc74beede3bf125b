"""The artwork, its words, and that nothing held out is ever shown."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from triptych import data
from triptych.data import emoji as E
from triptych.data.artwork import FONT
from triptych.recipe import Data, Source

missing = [path for path in (FONT, E.CLDR) if not Path(path).exists()]
pytestmark = [
    pytest.mark.debian,
    pytest.mark.skipif(bool(missing), reason=f"{missing}: sudo apt-get install fonts-noto-color-emoji unicode-cldr-core"),
]


def spec(size: int = 32, **options) -> Data:
    return Data(sources=(Source(name="emoji", options=options),), size=size)


def test_counts():
    emoji = E.load_emoji()
    assert len(emoji) == 3635
    assert sum(e.single for e in emoji) == 1636
    assert len({e.key for e in emoji}) == len({e.name_en for e in emoji}) == len({e.name_zh for e in emoji}) == 3635
    named = {e.name_en: e for e in emoji}
    assert named["red apple"].name_zh == "红苹果" and named["smiling cat with heart-eyes"].name_zh == "花痴的猫"
    assert named["flag: Norway"].single and not named["woman astronaut"].single
    assert named["man cook: dark skin tone"].gender == "man" and named["man cook: dark skin tone"].tone == "\U0001f3ff"


def test_held_out_shares():
    emoji = E.load_emoji()
    ideas = {e.idea: e.group for e in emoji}
    held = sum(group == "held_out_idea" for group in ideas.values())
    assert 0.035 < held / len(ideas) < 0.065
    assert 60 < sum(e.group == "held_out_combination" for e in emoji) < 120


def test_no_sibling_and_no_picture_leaks():
    emoji, pixels = E.load_emoji(), E.pictures(128)
    groups = defaultdict(set)
    for e in emoji:
        groups[e.idea].add(e.group)
    assert all(group == {"held_out_idea"} or "held_out_idea" not in group for group in groups.values())
    shown = {pixels[i].tobytes() for i, e in enumerate(emoji) if e.group == "train"}
    assert not [e.name_en for i, e in enumerate(emoji) if e.group != "train" and pixels[i].tobytes() in shown]


@pytest.mark.parametrize(("a", "b"), [
    ("man astronaut", "woman astronaut: dark skin tone"), ("person running", "woman running: light skin tone"),
    ("couple with heart", "couple with heart: woman, man"), ("men holding hands", "people holding hands: light skin tone, dark skin tone"),
    ("flag: Norway", "flag: Bouvet Island"), ("waving hand", "waving hand: medium skin tone"),
])  # fmt: skip
def test_siblings_are_one_idea(a, b):
    named = {e.name_en: e for e in E.load_emoji()}
    assert named[a].idea == named[b].idea


def test_combinations_have_their_parts_in_training():
    emoji = E.load_emoji()
    seen_gender = {(e.idea, e.gender) for e in emoji if e.group == "train" and e.tone}
    seen_tone = {(e.idea, e.tone) for e in emoji if e.group == "train"}
    triples = {(e.idea, e.gender, e.tone) for e in emoji if e.group == "train"}
    for e in emoji:
        if e.group == "held_out_combination":
            assert (e.idea, e.gender) in seen_gender and (e.idea, e.tone) in seen_tone and (e.idea, e.gender, e.tone) not in triples


def test_training_never_says_or_shows_what_is_held_out():
    emoji = E.load_emoji()
    secret_keys = {f"emoji:{e.key}" for e in emoji if e.group != "train"}
    secret_names = {name.casefold() for e in emoji if e.group != "train" for name in (e.name_en, e.name_zh)}
    assert not [k for e in emoji if e.group == "train" for k in (*e.keywords_en, *e.keywords_zh) if k.casefold() in secret_names]
    train = data.build(spec(0))
    keys = set()
    for step in range(30):
        batch = train.batch(1, step, 400)
        keys.update(batch.keys)
        for prompt in batch.prompts:
            said = {part.casefold() for part in prompt.text.replace("，", ", ").split(", ")}
            assert not said & secret_names, prompt.text
    assert not keys & secret_keys
    assert len(keys) > 3300
    assert set(data.build(spec(0), split="held_out").examples(267).keys) == secret_keys


def test_pictures_are_averages_of_the_large_ones_over_white():
    large, small = E.pictures(128), E.pictures(32)
    assert large.shape == (3635, 128, 128, 3) and small.shape == (3635, 32, 32, 3) and small.dtype == np.uint8
    for i in (0, 1000, 3000):
        mean = large[i].reshape(32, 4, 32, 4, 3).astype(float).mean(axis=(1, 3))
        assert np.abs(mean - small[i]).max() <= 0.5
    assert (large[:, 0, 0] == 255).all(axis=1).mean() > 0.9
    with pytest.raises(ValueError, match=r"side 256.*128"):
        E.pictures(256)


def test_batch_is_random_access():
    dataset = data.build(spec())
    whole = dataset.batch(3, 0, 24)
    alone = data.build(spec()).batch(3, 5, 4)
    assert alone.index == (20, 21, 22, 23)
    assert [p.text for p in alone.prompts] == [p.text for p in whole.prompts[20:]] and alone.keys == whole.keys[20:]
    assert torch.equal(alone.images_BCHW, whole.images_BCHW[20:])
    assert whole.images_BCHW.dtype == torch.float32 and whole.images_BCHW.min() >= -1 and whole.images_BCHW.max() == 1


def test_no_picture_is_ever_flipped():
    dataset, pixels = data.build(spec()), E.pictures(32)
    row_of = {f"emoji:{e.key}": i for i, e in enumerate(E.load_emoji())}
    for step in range(5):
        batch = dataset.batch(0, step, 32)
        for key, image in zip(batch.keys, batch.images_BCHW, strict=True):
            assert (((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy() == pixels[row_of[key]]).all()


def test_captions_speak_both_languages_and_mostly_names():
    emoji = {f"emoji:{e.key}": e for e in E.load_emoji()}
    batch = data.build(spec(0)).batch(2, 0, 4000)
    pairs = [(emoji[key], prompt.text) for key, prompt in zip(batch.keys, batch.prompts, strict=True)]
    names = Counter("en" if text == e.name_en else "zh" if text == e.name_zh else "" for e, text in pairs)
    assert 0.25 < names["en"] / 4000 < 0.35 and 0.2 < names["zh"] / 4000 < 0.3
    assert 0.64 < sum(emoji[k].single for k in batch.keys) / 4000 < 0.70
    assert not any("  " in p.text or not p.text or "{" in p.text for p in batch.prompts)
    only = data.build(spec(0, languages=["zh"], captions="names", single_share=1.0)).batch(0, 0, 50)
    assert all(p.text == emoji[k].name_zh and emoji[k].single for k, p in zip(only.keys, only.prompts, strict=True))


def test_one_group_of_the_held_out():
    for group in ("held_out_idea", "held_out_combination"):
        source = data.build(spec(0, group=group), split="held_out").sources[0]
        assert source.describe()[group] == source.count == sum(e.group == group for e in E.load_emoji())


def test_missing_files_are_named_with_package_and_option(tmp_path):
    with pytest.raises(ValueError, match=r"no\.ttf.*fonts-noto-color-emoji.*'font'"):
        data.build(spec(font=str(tmp_path / "no.ttf")))
    with pytest.raises(ValueError, match=r"unicode-cldr-core.*'cldr'"):
        data.build(spec(cldr=str(tmp_path)))
    bad = tmp_path / "bad.ttf"
    bad.write_bytes(b"no font at all")
    with pytest.raises(ValueError, match=r"bad\.ttf is not a font"):
        E.load_emoji(font=str(bad))


def test_damaged_cache_is_made_again(tmp_path, monkeypatch):
    from triptych.data.artwork import drawn

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = np.array(drawn(["\U0001f680", "\U0001f34e"], 64, FONT))
    files = sorted((tmp_path / "triptych").glob("*.npy"))
    assert len(files) == 2 and not list((tmp_path / "triptych").glob("*.part"))
    for file in files:
        file.write_bytes(file.read_bytes()[:1000])
    assert (drawn(["\U0001f680", "\U0001f34e"], 64, FONT) == first).all()
