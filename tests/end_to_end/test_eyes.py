"""The embedded eyes: what their cards promise, on fewer pictures; and `triptych judge emoji --report out/` to the opened page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import triptych
from scripts.measure_eyes import held_out_scenes
from triptych import checkpoint
from triptych.contracts import Prompt
from triptych.data import emoji as artwork
from triptych.data import scenes
from triptych.data.index import as_images
from triptych.eyes import DETECTOR, EYES, Eyes
from triptych.judges.detection import Config, Detection
from triptych.judges.retrieval import SIZES, Retrieval

needs_artwork = pytest.mark.skipif(not Path(artwork.FONT).exists(), reason="Debian's fonts-noto-color-emoji is not here")


@pytest.fixture(scope="module")
def eyes() -> Eyes:
    return triptych.load(EYES)


def test_they_are_embedded_and_tell_where_they_come_from() -> None:
    for name in (EYES, DETECTOR):
        card = json.loads((checkpoint.WEIGHTS / name / "vision" / "card.json").read_text(encoding="utf-8"))
        assert {"data", "recipe", "hours", "results", "limits"} <= card.keys(), name
        assert triptych.load(name).fingerprint == card["fingerprint"]


@needs_artwork
@pytest.mark.parametrize("language", ["en", "zh"])
def test_combinations_that_were_never_seen_are_found(eyes: Eyes, language: str) -> None:
    """Of 40 held-out combinations the right picture is among the nearest five for 60 % at least; chance is 12 %."""
    emoji, pictures = artwork.load_emoji(), artwork.pictures(128)
    held = [i for i, e in enumerate(emoji) if e.group == "held_out_combination"][::2]
    judge = Retrieval(SIZES["default"], eyes=eyes.sight())
    judge.add(as_images(pictures[held]), [Prompt(text=emoji[i].name(language)) for i in held])
    found = judge.result()
    assert found["n"] == 40 and min(found[f"{way}_5({EYES})"] for way in ("text_to_image", "image_to_text")) >= 0.6


@needs_artwork
def test_held_out_scenes_are_read() -> None:
    """Class, colour and place of every object, in at least 90 % of held-out scenes of one to three objects (here of 60)."""
    detector, prompts = triptych.load(DETECTOR), held_out_scenes(60, 3, seed=5)
    judge = Detection(Config(resamples=10), eyes=detector.sight(), **detector.names())
    judge.add(as_images([scenes.render(p.truth, 128) for p in prompts]), prompts)
    found = judge.result()
    assert found["exact"] >= 0.9 and found["AP50"] >= 0.9, found


def test_judge_writes_a_report_that_opens(command: Callable, browser: Any, tmp_path: Path) -> None:
    done = command("judge", "emoji", "--n", "16", "--guidance", "1,3", "--steps", "4", "--report", "out/", "--json")
    told = json.loads(done.stdout)
    assert [one["label"] for one in told["models"]] == ["emoji, guidance 1", "emoji, guidance 3"]
    assert told["eyes"].keys() == {EYES, DETECTOR}
    page = browser.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("request", lambda request: None if request.url.startswith(("file:", "data:")) else wrong.append(request.url))
    page.goto((tmp_path / "out" / "report.html").as_uri())
    rows = page.locator("#scores tbody tr")
    assert rows.count() == 2
    head = page.get_by_role("button", name="exact").first
    head.click()
    scores = {one["label"]: one["scores"]["exact"]["value"] for one in told["models"]}
    best = max(scores.values())
    assert any(label in rows.first.inner_text() for label, value in scores.items() if value == best)
    page.locator("#side img").first.click()
    assert page.locator("dialog#large").is_visible() and page.locator("#prompt").inner_text() in {p["text"] for p in told["prompts"]}
    page.close()
    assert not wrong
