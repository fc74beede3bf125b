"""The judges without learned eyes: right on what is right, wrong on what is wrong, and honest about how sure they are."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest

from triptych.contracts import Prompt
from triptych.data import scenes
from triptych.judges.nearest import Config, NearestPicture, copier, thumbnails, wilson
from triptych.judges.scene_reader import Config as ReaderConfig
from triptych.judges.scene_reader import SceneReader

PALETTE = {name: rgb for name, (rgb, _) in scenes.COLORS.items()}


def drawn(prompts: list[Prompt], side: int) -> torch.Tensor:
    pictures = [torch.as_tensor(scenes.render(prompt.truth, side).copy()) for prompt in prompts]
    return torch.stack(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def test_thumbnails_are_plain_averages() -> None:
    image = torch.full((1, 3, 32, 32), -1.0)
    image[:, :, :16] = 1.0
    small = thumbnails(image).view(3, 16, 16)
    assert torch.equal(small[0, :8], torch.full((8, 16), 255.0, dtype=torch.float64)) and small[0, 8:].abs().max() == 0


def test_rank_counts_distinct_pictures_that_are_nearer() -> None:
    levels = torch.tensor([-1.0, -0.5, -0.5, 0.0, 1.0])  # two candidates are the same picture
    judge = NearestPicture(Config(side=4, top=(1, 2)), candidates_NCHW=levels[:, None, None, None].expand(-1, 3, 8, 8))
    images = torch.tensor([-0.45, -0.45, 0.9])[:, None, None, None].expand(-1, 3, 8, 8)
    judge.add(images, [Prompt()] * 3, torch.tensor([2, 3, 0]))
    assert judge.ranks == [0, 1, 3]
    found = judge.result()
    assert found["n"] == 3 and found["top1"] == pytest.approx(1 / 3) and found["top2"] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="references"):
        judge.add(images, [Prompt()] * 3)


@pytest.mark.parametrize(("right", "total"), [(80, 100), (0, 7), (7, 7), (1, 300)])
def test_wilson_against_scipy(right: int, total: int) -> None:
    theirs = binomtest(right, total).proportion_ci(method="wilson")
    assert wilson(right, total) == pytest.approx((theirs.low, theirs.high), abs=1e-4)  # they take 1.959964 for 1.96


def test_nothing_seen_is_nothing_known() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_copier_finds_the_caption_with_most_shared_words() -> None:
    captions = ["woman firefighter: dark skin tone", "man firefighter: dark skin tone", "red apple", "红苹果"]
    assert copier("man firefighter: light skin tone", captions) == 1
    assert copier("青苹果", captions) == 3


@pytest.mark.parametrize("side", [32, 128])
@pytest.mark.parametrize("held_out", [False, True])
def test_the_reader_reads_real_scenes(side: int, held_out: bool) -> None:
    prompts = scenes.two_object_prompts(60, held_out=held_out, seed=1)
    reader = SceneReader(ReaderConfig(), palette=PALETTE)
    reader.add(drawn(prompts, side), prompts)
    assert reader.result()["right"] >= 0.97


def test_the_reader_sees_a_wrong_order_a_wrong_colour_and_nothing() -> None:
    prompts = scenes.two_object_prompts(40, held_out=False, seed=2)
    pictures = drawn(prompts, 128)

    def read(images: torch.Tensor) -> dict[str, float]:
        reader = SceneReader(ReaderConfig(), palette=PALETTE)
        reader.add(images, prompts)
        return reader.result()

    turned = read(pictures.flip(-1, -2))  # left and right, above and below, change places
    assert turned["colours"] >= 0.97 and turned["right"] == 0
    assert read(pictures.roll(1, 0))["right"] <= 0.1  # other prompts' pictures
    assert read(torch.ones_like(pictures))["colours"] == 0
