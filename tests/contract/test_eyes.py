"""Eyes as a person meets them: a folder in, pixels as the network was trained on, names that can be trusted, errors that help."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import triptych
from tests.contract import tiny
from triptych.eyes import Eyes, Pixels, as_tensor


@pytest.mark.parametrize("name", tiny.names("vision"))
def test_a_folder_gives_the_same_eyes(tmp_path: Path, name: str) -> None:
    words = tiny.build("text_encoders", "bilingual")
    panel = tiny.awake(tiny.build("vision", name, condition=words.gives)).eval()
    side = getattr(panel, "image_size", 0)
    given = {} if hasattr(panel, "preprocess") else {"pixels": Pixels(height=side, width=side, mean=(0.4, 0.5, 0.6))}
    Eyes(panel, words.eval(), name="mine", labels=("a", "b"), **given).save(tmp_path / "a")
    eyes = triptych.load(tmp_path / "a")
    assert isinstance(eyes, Eyes) and eyes.name == "mine" and eyes.labels == ("a", "b") and eyes.fingerprint
    assert not given or eyes.pixels == given["pixels"]
    eyes.save(tmp_path / "b")
    again, pictures = triptych.load(tmp_path / "b"), tiny.batch(2).images_BCHW
    assert eyes.fingerprint == again.fingerprint
    assert torch.equal(eyes.features(eyes.preprocess(pictures)), again.features(again.preprocess(pictures)))


def test_pixels() -> None:
    """Against Pillow, to a byte's rounding; the middle is cut out; nothing is cut where the shape is kept."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    plain = {"mean": (0.0,) * 3, "std": (1.0,) * 3}

    def pillow(width: int, height: int, how: Image.Resampling) -> torch.Tensor:
        return (as_tensor(image.resize((width, height), how)) + 1) / 2

    for name, how in (("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)):
        found = Pixels(height=16, width=20, filter=name, **plain)(as_tensor(image))  # type: ignore[arg-type]
        assert (found - pillow(20, 16, how)).abs().max() < 1.5 / 255
        cut = Pixels(height=16, width=16, fit="crop", shorter=20, filter=name, **plain)(as_tensor(image))  # type: ignore[arg-type]
        assert (cut - pillow(30, 20, how)[..., 2:18, 7:23]).abs().max() < 1.5 / 255
    assert Pixels(height=20, width=20, fit="shorter", shorter=20, **plain)(as_tensor(image)).shape[-2:] == (20, 30)
    assert Pixels(height=20, width=20, fit="shorter", shorter=20, longer=24, **plain)(as_tensor(image)).shape[-2:] == (16, 24)
    assert Pixels(height=20, width=20, fit="shorter", shorter=20, longer=24, **plain)(torch.zeros(1, 3, 2, 200)).shape[-2:] == (1, 24)
    shifted = Pixels(height=40, width=60, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))(as_tensor(image))
    assert torch.allclose(shifted[0, 2, 5, 7], ((as_tensor(image)[0, 2, 5, 7] + 1) / 2 - 0.3) / 2)


def test_transparent_pictures_stand_on_white() -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    assert as_tensor(image).tolist() == [[[[1.0, -1.0]]] * 3]


def test_what_eyes_cannot_do_is_said(tmp_path: Path) -> None:
    eyes = Eyes(tiny.build("vision", "vit", condition=tiny.build("text_encoders", "bilingual").gives).eval(), name="plain")
    with pytest.raises(ValueError, match=r"plain \(ViT\) cannot encode image"):
        eyes.encode_image(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="hears no words"):
        eyes.encode_text(["a cat"])
    (tmp_path / "config.json").write_text('{"model_type": "vitt"}')
    with pytest.raises(ValueError, match="vit"):
        triptych.load(tmp_path)
