"""What drawing promises with every process, every generator that it drives, and every panel beside them."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.contract import tiny
from triptych import catalog
from triptych.contracts import Condition, Rng, Start, State
from triptych.pipeline import TextToImage
from triptych.processes import sample

DRAWINGS = tiny.drawings()
PAIRS = [tiny.Drawing(process, generator) for process, generator in tiny.pairs()]
SEEDS = list(range(10, 18))
PLACE = {"text_encoders": "text_encoder", "generators": "generator", "decoders": "decoder", "processes": "process"}


def pixels(images: Sequence[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def nearly_equal(a: np.ndarray, b: np.ndarray) -> bool:
    """At most 2/255 apart on 99.9 % of pixels."""
    return a.shape == b.shape and float((np.abs(a - b).max(axis=-1) <= 2).mean()) >= 0.999


def able(drawing: tiny.Drawing, ability: str) -> bool:
    return ability in catalog.family("processes", drawing.process).abilities  # type: ignore[attr-defined]


def that_can(ability: str) -> Any:
    return pytest.mark.parametrize("drawing", [d for d in PAIRS if able(d, ability)], ids=str)


# --- a row and its batch ------------------------------------------------------------------------------------------------


def check_company(model: TextToImage, **sampling: Any) -> None:
    """A row alone, and in a batch of 8 whose prompts have other lengths and languages."""
    together = pixels(model.generate(tiny.PROMPTS, seeds=SEEDS, **sampling))
    turns: list[int] = []
    exact = pixels(model.generate(tiny.PROMPTS, seeds=SEEDS, exact=True, on_step=lambda done, total, _: turns.append(done), **sampling))
    assert turns.count(1) == len(SEEDS), "exact: each picture is drawn alone, since equal bits in a batch would be luck"
    assert together.std(axis=(1, 2, 3)).min() > 2, "a blank picture proves nothing"
    assert nearly_equal(together, exact)
    alone = [pixels(model.generate([tiny.PROMPTS[i]], seeds=[SEEDS[i]], exact=True, **sampling))[0] for i in (0, 3, 7)]
    assert all(np.array_equal(exact[i], row) for i, row in zip((0, 3, 7), alone, strict=True)), "exact is exact"
    assert len({row.tobytes() for row in exact}) == len(exact)


@pytest.mark.parametrize("drawing", DRAWINGS, ids=str)
def test_a_picture_does_not_depend_on_its_batch(drawing: tiny.Drawing) -> None:
    check_company(drawing.model(), **drawing.sampling)


@pytest.mark.parametrize(("kind", "name"), tiny.families("text_encoders", "decoders"))
def test_no_panel_lets_rows_meet(kind: str, name: str) -> None:
    check_company(tiny.model(**{PLACE[kind]: name}))


@pytest.mark.parametrize("drawing", DRAWINGS, ids=str)
def test_sampling_is_seeded(drawing: tiny.Drawing) -> None:
    model, said = drawing.model(), [tiny.PROMPTS[0]] * 2
    z = model.latents(said, seeds=[3, 4], **drawing.sampling)
    assert z.shape == (2, *model.decoder.latent.shape) and z.isfinite().all()
    assert torch.equal(z, model.latents(said, seeds=[3, 4], **drawing.sampling))
    assert not torch.allclose(z[0], z[1], atol=1e-2)
    assert not torch.allclose(z, model.latents([tiny.PROMPTS[1]] * 2, seeds=[3, 4], **drawing.sampling), atol=1e-4), "words are not heard"


# --- rows of one running batch ------------------------------------------------------------------------------------------


class Asked:
    """Rows as `pipeline` begins them: each prompt with its seed, and settings of its own."""

    def __init__(self, model: TextToImage) -> None:
        self.model, self.network, self.process = model, model.generator.network, model.generator.process

    def said(self, row: int) -> tuple[Condition, Condition]:
        with torch.no_grad():
            return self.model.text_encoder.encode([tiny.PROMPTS[row]]), self.model.text_encoder.null([tiny.PROMPTS[row]])

    def begin(self, row: int, start: Start | None = None, **sampling: Any) -> State:
        cond, null = self.said(row)
        start = start or Start(shape=self.model.decoder.latent.shape)
        return self.process.begin(self.network, cond, null, self.model.settings(**sampling), start, Rng.of_seeds([SEEDS[row]]))

    def draw(self, row: int, start: Start | None = None, **sampling: Any) -> Tensor:
        cond, null = self.said(row)
        start = start or Start(shape=self.model.decoder.latent.shape)
        return sample(self.process, self.network, cond, null, self.model.settings(**sampling), start, Rng.of_seeds([SEEDS[row]]))

    def step(self, state: State, times: int = 1) -> State:
        with torch.no_grad():
            for _ in range(times):
                state = self.process.step(self.network, state)
        return state

    def finish(self, state: State) -> State:
        while not state.done_B.all():
            state = self.step(state)
        return state


@pytest.mark.parametrize("drawing", PAIRS, ids=str)
def test_rows_join_and_leave(drawing: tiny.Drawing) -> None:
    """Rows at steps of their own, with other settings and prompts of other lengths, end where they end alone."""
    asked = Asked(drawing.model())
    settings = list(itertools.islice(itertools.cycle(tiny.choices(asked.process.Sampling)), 4))
    if counted := next((name for name in ("steps", "repeats") if name in tiny.few(asked.process)), None):
        settings = [{**one, counted: steps} for one, steps in zip(settings, (3, 7, 5, 2), strict=True)]
    batch = asked.step(asked.begin(0, **settings[0]))
    batch = asked.step(batch.cat([asked.step(asked.begin(1, **settings[1])), asked.begin(2, **settings[2])]))
    gone, stayed = asked.finish(batch.rows([1])), batch.rows(torch.tensor([2, 0]))
    rest = asked.finish(stayed.cat([asked.begin(3, **settings[3])]))
    for row, x in ((1, gone.x[:1]), (2, rest.x[:1]), (0, rest.x[1:2]), (3, rest.x[2:])):
        alone = asked.draw(row, **settings[row])
        torch.testing.assert_close(x, alone, atol=1e-3, rtol=1e-3, msg=lambda said, row=row: f"row {row}: {said}")


@pytest.mark.parametrize("drawing", PAIRS, ids=str)
def test_done_rows_do_not_change(drawing: tiny.Drawing) -> None:
    asked = Asked(drawing.model())
    end = asked.finish(asked.begin(0))
    again = asked.step(end)
    assert torch.equal(again.x, end.x) and torch.equal(again.index_B, end.index_B) and bool((end.index_B == end.total_B).all())


@pytest.mark.parametrize("drawing", PAIRS, ids=str)
def test_progress_and_preview(drawing: tiny.Drawing) -> None:
    model, seen = drawing.model(), []

    def on_step(done: int, total: int, preview: Any) -> None:
        seen.append((done, total, preview()))

    images = model.generate(tiny.PROMPTS[:2], seeds=[0, 1], on_step=on_step)
    assert [done for done, _, _ in seen] == list(range(1, len(seen) + 1)) and all(total == len(seen) for _, total, _ in seen)
    assert all(frame.size == image.size for _, _, frames in seen for frame, image in zip(frames, images, strict=True))
    assert np.array_equal(pixels(seen[-1][2]), pixels(images)), "the last preview is the picture"


# --- what is asked beside words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawing", PAIRS, ids=str)
def test_noise_given(drawing: tiny.Drawing) -> None:
    model = drawing.model()
    shape = getattr(model.generator.network, "noise_shape", model.decoder.latent.shape)
    if model.decoder.latent.kind not in ("image", "vector") and not hasattr(model.generator.network, "noise_shape"):
        pytest.xfail("tokens do not start from noise")
    noise, said = Rng.of_seeds([0, 1]).normal("given", shape), [tiny.PROMPTS[0]] * 2
    one = pixels(model.generate(said, seeds=[5, 5], noise=noise))
    assert np.array_equal(one, pixels(model.generate(said, seeds=[5, 5], noise=noise)))
    assert not nearly_equal(one[0], one[1]) and nearly_equal(one[::-1], pixels(model.generate(said, seeds=[5, 5], noise=noise.flip(0))))
    with pytest.raises(ValueError, match="2 prompts, but 3 rows of noise"):
        model.generate(said, noise=torch.cat([noise, noise[:1]]))
    if model.decoder.latent.kind == "image" and not hasattr(model.generator.network, "noise_shape"):
        wide = Rng.of_seeds([0]).normal("given", (shape[0], 2 * shape[1], shape[2]))
        side = model.decoder.image_size
        assert model.generate(said[:1], noise=wide)[0].size == (side, 2 * side), "noise fixes the size"


@pytest.mark.parametrize("drawing", PAIRS, ids=str)
def test_negative_prompts(drawing: tiny.Drawing) -> None:
    model, said = drawing.model(), tiny.PROMPTS[:3]
    if not able(drawing, "negative"):
        with pytest.raises(ValueError, match="negative"):
            model.generate(said, negative="a blue square")
        return
    plain, against = pixels(model.generate(said)), pixels(model.generate(said, negative="a blue square"))
    assert not nearly_equal(plain, against)
    assert np.array_equal(against, pixels(model.generate(said, negative=["a blue square"] * 3)))
    alone = pixels(model.generate([said[1]], seeds=[1], negative="a blue square", exact=True))
    assert nearly_equal(against[1:2], alone)
    with pytest.raises(ValueError, match="3 prompts, but 2 negative"):
        model.generate(said, negative=["a", "b"])


def start_image(model: TextToImage) -> Tensor:
    with torch.no_grad():
        return model.decoder.encode(tiny.batch(1).images_BCHW)


@that_can("start image")
def test_start_image(drawing: tiny.Drawing) -> None:
    """Drawing starts the nearer to the picture that was given, and takes the fewer steps, the weaker its strength."""
    asked, distance, steps = Asked(drawing.model()), [], []
    shape, z0 = asked.model.decoder.latent.shape, start_image(asked.model)
    for strength in (0.05, 0.5, 1.0):
        state = asked.begin(0, start=Start(shape=shape, z0=z0, strength=strength))
        distance.append((state.x - z0).norm().item())
        steps.append(int(state.total_B))
        end = asked.finish(state).x
        assert end.shape == z0.shape and end.isfinite().all()
    assert distance[0] < 0.8 * distance[1] < distance[2] and steps[0] <= steps[1] <= steps[2] and steps[0] < steps[2]
    half = [asked.draw(0, start=Start(shape=shape, z0=z, strength=0.5)) for z in (z0, -z0)]
    assert not torch.allclose(*half, atol=1e-2), "the picture is not heard"


@that_can("mask")
def test_mask(drawing: tiny.Drawing) -> None:
    """What the mask keeps is kept to the bit; what it opens is drawn, and depends on the seed."""
    asked = Asked(drawing.model())
    z0 = start_image(asked.model)
    mask = torch.ones(1, 1, *z0.shape[2:])
    mask[..., : z0.shape[-1] // 2] = 0
    start = Start(shape=asked.model.decoder.latent.shape, z0=z0, mask=mask)
    z = asked.draw(0, start=start)
    kept = (mask == 0).expand_as(z0)
    assert torch.equal(z[kept], z0[kept]) and not torch.allclose(z[~kept], z0[~kept], atol=1e-2)
    noisy = dataclasses.replace(start, noise=Rng.of_seeds([99]).normal("given", z0.shape[1:]))
    assert not torch.allclose(asked.draw(0, start=noisy)[~kept], z[~kept], atol=1e-2)


# --- settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drawing", PAIRS, ids=str)
def test_settings_are_checked(drawing: tiny.Drawing) -> None:
    """Each of a process's settings says its range; beyond it, and for a setting that is not there, the way out is named."""
    model = drawing.model()
    with pytest.raises(ValueError, match=r"stepz.*there are"):
        model.generate(["a"], stepz=3)
    for one in dataclasses.fields(model.generator.process.Sampling):
        if "range" in one.metadata:
            low, high = one.metadata["range"]
            for beyond in (low - 1, high + 1):
                value = (beyond, beyond) if isinstance(one.default, tuple) else beyond
                with pytest.raises(ValueError, match=one.name):
                    model.settings(**{one.name: value})
    for prompts, seeds in ((2, [1]), (1, [1, 2])):
        with pytest.raises(ValueError, match=f"{prompts} prompts, but {len(seeds)} seeds"):
            model.generate(tiny.PROMPTS[:prompts], seeds=seeds)
