"""Texts alone say nothing held out; a sheet can be drawn of anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from triptych import data
from triptych.data import emoji as E
from triptych.data.artwork import FONT
from triptych.data.graph import held_out_pairs
from triptych.recipe import Data, Source

scenes_only = Data(sources=(Source(name="texts", options={"emoji_share": 0.0}),), size=0)
needs_files = pytest.mark.skipif(
    not (Path(FONT).exists() and Path(E.CLDR).exists()), reason="sudo apt-get install fonts-noto-color-emoji unicode-cldr-core"
)


def test_scene_sentences_need_no_files():
    batch = data.build(scenes_only).batch(0, 3, 200)
    assert batch.images_BCHW is None and len(batch.prompts) == 200
    for color, shape in held_out_pairs():
        assert not [p.text for p in batch.prompts if f"{color} {shape}" in p.text]
    assert len(data.build(scenes_only).texts(500)) == 500


@pytest.mark.debian
@needs_files
def test_nothing_held_out_is_said():
    dataset = data.build(Data(sources=(Source(name="texts"),), size=0))
    secret = {name for e in E.load_emoji() if e.group != "train" for name in (e.name_en, e.name_zh)}
    texts = dataset.texts(6000)
    assert not secret & set(texts)
    parts = {part for text in texts for part in text.replace("，", ", ").split(", ")}
    assert not parts & secret
    assert 0.3 < sum(text.isascii() for text in texts) / 6000 < 0.7
    assert dataset.batch(0, 2, 10).prompts[0].text == texts[20]
    assert secret & set(data.build(Data(sources=(Source(name="texts"),), size=0), split="held_out").texts(600))


def test_sheet():
    for spec in (scenes_only, Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=32)):
        batch = data.build(spec).batch(0, 0, 10)
        sheet = data.contact_sheet(batch, columns=4)
        assert sheet.width > 4 * 128 and sheet.getcolors(maxcolors=1 << 20) and len(sheet.getcolors(maxcolors=1 << 20)) > 5
