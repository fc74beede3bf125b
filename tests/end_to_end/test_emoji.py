"""The embedded model: it is there, it speaks two languages, and what Python is promised in the README holds with it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import triptych
from triptych import checkpoint
from triptych.contracts import Decoder, Denoiser, Process, Rng, TextEncoder
from triptych.pipeline import TextToImage

SAID = [
    "red apple", "火箭", "smiling cat with heart-eyes", "a blue circle left of a red square", "三个绿色的三角形", "fire engine", "熊猫脸",
    "flag: Japan",
]  # fmt: skip
SMALL = (32, 32)
ROOT = Path(__file__).resolve().parents[2]


def pixels(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


# --- drawing ------------------------------------------------------------------------------------------------------------


def test_it_draws_in_english_and_chinese(emoji: TextToImage) -> None:
    images = emoji.generate(["red apple", "红苹果", "rocket", "火箭"], seeds=[0] * 4, steps=10)
    assert [image.size for image in images] == [(128, 128)] * 4 and {image.mode for image in images} == {"RGB"}
    shown = pixels(images)
    assert shown.std(axis=(1, 2, 3)).min() > 15, "something is drawn"
    assert np.median(shown[:, [0, 0, -1, -1], [0, -1, 0, -1]]) > 230, "on white, as what it learnt from"
    assert all(np.abs(shown[i] - shown[j]).mean() > 1 for i in range(4) for j in range(i)), "each from its own words"


def test_words_reach_the_picture_in_both_languages(emoji: TextToImage) -> None:
    """The same seeds, two colours: where red is asked, there is more red, whatever the language."""
    means = []
    for texts in (["a red circle", "红色的圆形"], ["a blue circle", "蓝色的圆形"]):
        images = emoji.generate([text for text in texts for _ in range(4)], seeds=list(range(4)) * 2, steps=8, size=SMALL)
        means.append(pixels(images).reshape(2, -1, 3).mean(1))
    red, blue = means
    for language in range(2):
        assert (red - blue)[language][0] > 5 > -5 > (red - blue)[language][2], (red, blue)


def test_a_picture_does_not_depend_on_its_batch(emoji: TextToImage) -> None:
    seeds = list(range(8))
    together, exact = (pixels(emoji.generate(SAID, seeds=seeds, steps=8, exact=exact)) for exact in (False, True))
    assert (np.abs(together - exact).max(axis=-1) <= 2).mean() >= 0.999
    assert np.array_equal(exact[4], pixels(emoji.generate([SAID[4]], seeds=[4], steps=8, exact=True))[0])
    assert np.array_equal(exact[1:3], pixels(emoji.generate(SAID[1:3], seeds=[1, 2], steps=8, exact=True)))


@pytest.mark.parametrize("side", [32, 128, 256])
def test_the_decoder_draws_three_sizes(emoji: TextToImage, side: int) -> None:
    image = emoji.generate(["red apple"], seeds=[0], steps=4, size=(side, side))[0]
    assert image.size == (side, side)
    small = pixels(emoji.generate(["red apple"], seeds=[0], steps=4, size=SMALL))[0]
    assert np.abs(pixels([image.resize(SMALL, Image.Resampling.BOX)])[0] - small).mean() < 12, "the same picture, larger"


def test_a_size_that_it_does_not_draw(emoji: TextToImage) -> None:
    for size in ((100, 100), (128, 256)):
        with pytest.raises(ValueError, match="128"):
            emoji.generate(["red apple"], steps=1, size=size)


def test_noise_fixes_the_size(emoji: TextToImage) -> None:
    shape = emoji.decoder.latent.shape
    noise = Rng.of_seeds([0]).normal("given", (shape[0], shape[1], 2 * shape[2]))
    assert emoji.generate(["two red apples"], noise=noise, steps=2)[0].size == (256, 128)
    same = [pixels(emoji.generate(["red apple"], noise=noise[..., : shape[2]], seeds=[s], steps=2)) for s in (0, 1)]
    assert np.array_equal(*same), "nothing is left for the seed to say"


# --- from Python --------------------------------------------------------------------------------------------------------


def test_the_readme_in_python(emoji: TextToImage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The block of Python in the README runs as it stands."""
    block = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert [image.size for image in names["images"]] == [(128, 128)] * 2 and names["z"].shape == (1, *emoji.decoder.latent.shape)
    with Image.open(tmp_path / "apple.png") as image:
        assert image.size == (128, 128)


def test_generate_takes_noise_negatives_and_samplers(emoji: TextToImage) -> None:
    assert "emoji" in checkpoint.embedded() and isinstance(emoji, triptych.TextToImage) and emoji.name == "emoji"
    seen: list[tuple[int, int]] = []
    noise = torch.randn(1, *emoji.decoder.latent.shape, generator=torch.Generator().manual_seed(0))
    settings: dict[str, Any] = {"sampler": "euler", "steps": 3, "on_step": lambda done, total, _: seen.append((done, total))}
    drawn = emoji.generate(["rocket"], noise=noise, negative=["blue"], **settings)
    assert seen == [(1, 3), (2, 3), (3, 3)] and drawn[0].size == (128, 128)


def test_the_panels_by_hand(emoji: TextToImage) -> None:
    """Three panels that can be called one by one; together they draw what `generate` draws."""
    assert isinstance(emoji.text_encoder, TextEncoder) and isinstance(emoji.decoder, Decoder)
    assert isinstance(emoji.generator.network, Denoiser)
    prompts = [triptych.Prompt(text="red apple"), triptych.Prompt(text="火箭")]
    cond, null = emoji.text_encoder.encode(prompts), emoji.text_encoder.null(prompts)
    assert cond.tokens_BLD is not None and cond.tokens_BLD.shape[::2] == (2, emoji.text_encoder.gives.width)

    process: Process = emoji.generator.process
    x = Rng.of_seeds([0, 1]).normal("start", emoji.decoder.latent.shape)
    with torch.no_grad():
        out = emoji.generator.network(x, process.clock(torch.ones(2)), cond)  # type: ignore[attr-defined]
        first = emoji.generator.network(x, process.clock(torch.ones(2)), null)  # type: ignore[attr-defined]
    assert out.shape == x.shape and not torch.allclose(out, first, atol=1e-2)

    z = emoji.latents(prompts, seeds=[0, 1], steps=4)
    with torch.no_grad():
        image = emoji.decoder.decode(z)
        back = emoji.decoder.encode(image)
    assert image.shape == (2, 3, 128, 128) and image.abs().max() <= 1 and back.shape == z.shape
    assert (back - z.clamp(back.min(), back.max())).abs().mean() < 0.15, "a picture made larger and small again is itself"
    by_pipeline = pixels(emoji.generate(prompts, seeds=[0, 1], steps=4))
    by_hand = ((image + 1) * 127.5).round().permute(0, 2, 3, 1).numpy()
    assert np.abs(by_pipeline - by_hand).max() <= 1


def test_a_mistake_names_the_way_out(emoji: TextToImage) -> None:
    with pytest.raises(ValueError, match="did you mean 'emoji'"):
        triptych.load("emojis")
    with pytest.raises(ValueError, match="did you mean 'guidance'"):
        emoji.generate(["red apple"], guidence=3)


def test_importing_is_light() -> None:
    said = "import sys, triptych; assert not {'torch', 'PIL'} & {*sys.modules}; triptych.load; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", said], check=True, timeout=120, cwd=ROOT)
