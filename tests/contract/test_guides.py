"""A model's own guide: a classifier of noised pictures, or eyes that it names, which pull without being asked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import triptych
from tests.contract import tiny
from triptych import catalog, checkpoint
from triptych.contracts import Condition
from triptych.pipeline import Generator, TextToImage

SAID = ["a red circle", "方块", "no such thing"]


def classified(scale: float = 3.0) -> TextToImage:
    """Class-conditional, and guided by a classifier of the same sixteen pixels."""
    torch.manual_seed(0)
    names = {"labels": ("circle|圆形", "square|方块", "star|星形")}
    words = catalog.build("text_encoders", "label", names)
    decoder = catalog.build("decoders", "identity", {"size": 16})
    network = tiny.awake(catalog.build("generators", "unet", size="tiny", latent=decoder.latent, condition=words.gives))
    critic = tiny.awake(catalog.build("vision", "noisy_classifier", {"num_classes": 3}, size="tiny"))
    generator = Generator(network.eval(), catalog.build("processes", "ddpm"), critic.eval())
    return TextToImage(words, generator, decoder, name="classified", sampling={"steps": 4}, guide={"scale": scale})


def pixels(model: TextToImage, **how: object) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in model.generate(SAID, seeds=[0, 1, 2], **how)])  # type: ignore[arg-type]


def test_a_classifier_guides_unasked_and_is_kept(tmp_path: Path) -> None:
    model = classified()
    guided, free = pixels(model), pixels(model, guide_scale=0)
    assert np.abs(guided[:2] - free[:2]).max() > 2
    assert np.array_equal(guided[2], free[2]), "of no class nothing is known, so nothing pulls"
    model.save(tmp_path / "model")
    assert checkpoint.has_panel(tmp_path / "model", "guide")
    again = triptych.load(tmp_path / "model")
    assert again.guide == {"scale": 3.0} and type(again.generator.guide) is type(model.generator.guide)
    assert np.array_equal(pixels(again, guide_scale=0), pixels(triptych.load(tmp_path / "model"), guide_scale=0))
    assert np.abs(pixels(again)[:2] - pixels(again, guide_scale=0)[:2]).max() > 2


def test_the_gradient_climbs_its_own_score() -> None:
    model = classified()
    critic, x = model.generator.guide, torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    assert critic is not None
    cond, clock_B = Condition(label_B=torch.tensor([1, 3])), torch.tensor([100.0, 100.0])
    x.requires_grad_()
    critic(x, clock_B, cond).sum().backward()
    assert x.grad is not None and x.grad[0].abs().max() > 0 and not x.grad[1].any()
    moved = x.detach() + 1e-2 * x.grad / x.grad.norm()
    assert critic(moved, clock_B, cond)[0] > critic(x, clock_B, cond)[0]


@pytest.mark.parametrize(
    ("guide", "says"),
    [({"scale": "much"}, "says no scale"), ({"scale": 1.0, "eyes": "../elsewhere"}, "only embedded eyes"), ([1], "says no scale")],
)
def test_a_file_that_names_a_wrong_guide(tmp_path: Path, guide: object, says: str) -> None:
    classified().save(tmp_path / "model")
    path = tmp_path / "model" / "triptych.json"
    described = checkpoint.load_model_file(tmp_path / "model") | {"guide": guide}
    checkpoint.write_atomically(path, checkpoint._json(described))
    with pytest.raises(ValueError, match=says):
        triptych.load(tmp_path / "model")


def test_a_scale_without_a_guide() -> None:
    model = classified()
    bare = TextToImage(model.text_encoder, Generator(model.generator.network, model.generator.process), model.decoder)
    with pytest.raises(ValueError, match="no guide"):
        bare.generate(SAID[:1], guide_scale=1.0, steps=2)
