"""From nothing to a picture by the command line alone: train three tiny panels, draw, read back what the picture says, draw it again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from triptych.app import pictures


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_train_draw_and_draw_again(command, tmp_path: Path) -> None:
    told = json.loads(command("train", "tiny", "--out", "run", "--json").stdout)
    assert told["reason"] == "finished" and told["step"] == 200 and Path(told["model"]).name == "model"
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    held_out = [line["loss"] for line in lines if line["kind"] == "held_out"]
    assert held_out[-1] < 0.6 * held_out[0], "it has learnt"
    assert sorted(p.name for p in (tmp_path / "run" / "previews").iterdir())[-1] == "step-000200.png"
    places = ("text_encoder", "generator", "decoder")
    cards = {place: json.loads((tmp_path / "run" / "model" / place / "card.json").read_text()) for place in places}
    assert cards["generator"]["steps"] == 200 and cards["generator"]["neighbours"]["text_encoder"] == cards["text_encoder"]["fingerprint"]

    model = str(tmp_path / "run" / "model")
    command("generate", "a red circle", "--model", model, "--seed", "7", "--strip", "4", "-o", "x.png")
    record = pictures.read(tmp_path / "x.png")
    assert record is not None and (record["prompt"], record["seed"]) == ("a red circle", 7)
    assert record["panels"] == {place: card["fingerprint"] for place, card in cards.items()}
    with Image.open(tmp_path / "x.png") as image:
        assert image.text["parameters"].startswith("a red circle\nSteps: 20, Sampler: DPM++ 2M") and "Seed: 7" in image.text["parameters"]
        assert "trainedAlgorithmicMedia" in image.text["XML:com.adobe.xmp"]
        width, height = image.size
    first = pixels(tmp_path / "x.png")
    assert first.std() > 5
    with Image.open(tmp_path / "x-strip.png") as strip:
        assert strip.size == (5 * width, height), "evaluations 4, 8, 12, 16 and the picture itself"
    assert np.array_equal(pixels(tmp_path / "x-strip.png")[:, -width:], first)

    command("generate", "--from", "x.png", "--model", model, "-o", "y.png")
    assert np.array_equal(pixels(tmp_path / "y.png"), first), "the same pixels again"
    again = pictures.read(tmp_path / "y.png")
    assert again is not None and {**again, "model": ""} == {**record, "model": ""}
