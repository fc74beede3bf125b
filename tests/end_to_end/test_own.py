"""The recipe `own`: a person's 200 pictures in a style of their own, learnt from where the embedded model stands."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import triptych
from tests.end_to_end.own_style import COLOURS, PAPER, SHAPES, captions, write_folder
from triptych import data
from triptych.app.train import find_recipe
from triptych.judges.nearest import thumbnails
from triptych.pipeline import TextToImage
from triptych.training import Report, train

STEPS, BATCH = 70, 16  # under a minute on one thread; the recipe itself makes 400 steps of 32
UNSEEN = [f"a {colour} {shape}" for colour, shape in zip(COLOURS, SHAPES, strict=True)]


def shown(images: list[Image.Image]) -> Tensor:
    """Thumbnails, as the judges see them."""
    return thumbnails(torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1)


def test_a_style_of_ones_own_is_learnt(emoji: TextToImage, tmp_path: Path) -> None:
    """Drawn pictures are nearer to the person's set than the default's are: for seen captions and for pairs never shown."""
    seen = [caption for caption in captions() if caption not in UNSEEN]
    write_folder(tmp_path / "mine", 200, seen)
    settings = [f"steps={STEPS}", f"batch={BATCH}", "compile=false", f"save_every={STEPS}"]
    recipe = find_recipe("own", data=str(tmp_path / "mine"), settings=settings)
    result = train(recipe, out=tmp_path / "run", data=data.build(recipe.data), report=Report(quiet=True), device="cpu")
    assert result.reason == "finished" and result.step == STEPS and not result.skipped

    mine = triptych.load(result.model)
    card = json.loads((tmp_path / "run" / "model" / "generator" / "card.json").read_text())
    assert card["recipe"]["init"] == "emoji" and card["neighbours"]["text_encoder"] == emoji.fingerprints["text_encoder"]
    assert mine.fingerprints["decoder"] == emoji.fingerprints["decoder"]
    assert mine.fingerprints["generator"] != emoji.fingerprints["generator"]

    said = [*UNSEEN, *seen[:: len(seen) // 22][:22]]
    theirs = shown([Image.open(path) for path in sorted((tmp_path / "mine").glob("*.png"))])
    models = {"mine": mine, "default": emoji}
    drawn = {name: shown(model.generate(said, steps=6, size=(32, 32), batch_size=30)) for name, model in models.items()}
    near = {name: torch.cdist(one, theirs).min(dim=1).values for name, one in drawn.items()}
    assert len(said) == 30 and near["mine"].mean() < 0.8 * near["default"].mean(), {name: one.mean().item() for name, one in near.items()}
    assert (near["mine"] < near["default"])[: len(UNSEEN)].float().mean() >= 0.75, "pairs never shown are drawn in the style too"
    assert (near["mine"] < near["default"]).float().mean() >= 0.9
    corner = {name: one.view(30, 3, 16, 16)[:, :, 0, 0].mean(dim=0) for name, one in drawn.items()}
    paper = torch.tensor(PAPER, dtype=torch.float64)
    assert (corner["mine"] - paper).norm() < 0.6 * (corner["default"] - paper).norm(), "and on the person's paper"
