"""CLIP at our scale: unit vectors, several right answers, and 8 pairs that find each other."""

from __future__ import annotations

import math

import pytest
import torch

from tests.text.words import TEXTS
from triptych import catalog
from triptych.contracts import Batch, ConditionSpec, Critic, Prompt, Rng
from triptych.vision.clip import CLIP, SIZES, Config, Contrastive, _found_B, _loss_B


def words():
    text = catalog.build("text_encoders", "bilingual", size="tiny")
    text.learn_vocabulary(TEXTS)
    return text


def pair():
    torch.manual_seed(0)
    text = words()
    return catalog.build("vision", "clip", size="tiny", condition=text.gives), text


def pairs(texts=TEXTS[:8]) -> Batch:
    images = torch.rand(len(texts), 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    prompts = tuple(Prompt(text=text) for text in texts)
    return Batch(index=tuple(range(len(texts))), images_BCHW=images, prompts=prompts, keys=tuple(map(str, range(len(texts)))))


@torch.no_grad()
def test_it_is_a_critic_that_scores_by_cosine():
    clip, text = pair()
    batch = pairs()
    cond = text.encode(batch.prompts)
    score_B = clip(batch.images_BCHW, torch.zeros(8), cond)
    assert isinstance(clip, Critic) and clip.role == "critic" and score_B.shape == (8,) and score_B.abs().max() <= 1 + 1e-6
    image_BE = clip.encode_image(batch.images_BCHW)
    assert image_BE.shape == (8, clip.config.embed)
    cosine_B = torch.nn.functional.cosine_similarity(image_BE, clip.encode_text(cond))
    torch.testing.assert_close(score_B, cosine_B)
    torch.testing.assert_close(clip(batch.images_BCHW[2:3], None, cond.rows([2]))[0], score_B[2], atol=1e-5, rtol=0)


def test_a_critic_leads_to_its_picture():
    clip, text = pair()
    x = torch.zeros(1, 3, 16, 16, requires_grad=True)
    clip(x, None, text.encode(["red apple"])).sum().backward()
    assert x.grad.isfinite().all() and x.grad.any()


@torch.no_grad()
def test_larger_pictures_are_averaged_down():
    clip, _ = pair()
    small = pairs().images_BCHW
    large = small.repeat_interleave(3, -1).repeat_interleave(3, -2)
    torch.testing.assert_close(clip.encode_image(large), clip.encode_image(small), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="24 x 24; this CLIP looks at 16 x 16"):
        clip.encode_image(torch.zeros(1, 3, 24, 24))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="pooled = 0"):
        CLIP(SIZES["tiny"], condition=ConditionSpec(width=8))
    with pytest.raises(ValueError, match="no multiple of patch_size 5"):
        CLIP(Config(patch_size=5), condition=ConditionSpec(pooled=8))
    clip, text = pair()
    with pytest.raises(ValueError, match="text_encoder"):
        Contrastive(clip, neighbours={})
    texts_alone = Batch(index=(0,), prompts=(Prompt(text="red"),))
    with pytest.raises(ValueError, match="needs pairs"):
        Contrastive(clip, neighbours={"text_encoder": text}).losses(texts_alone, "main", 0, Rng.of_seeds([0]))


def test_the_loss_is_the_papers_where_every_answer_is_one():
    logits_BB = torch.randn(6, 6, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(6)
    expected = (torch.nn.functional.cross_entropy(logits_BB, labels) + torch.nn.functional.cross_entropy(logits_BB.T, labels)) / 2
    torch.testing.assert_close(_loss_B(logits_BB, torch.eye(6, dtype=torch.bool)).mean(), expected)


def test_the_same_picture_or_the_same_words_are_no_wrong_answers():
    same_BB = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    sure = torch.where(same_BB, 20.0, -20.0)
    expected = torch.tensor([math.log(2), math.log(2), 0.0])  # two right answers share the target: log 2 is the least there is
    torch.testing.assert_close(_loss_B(sure, same_BB), expected, atol=1e-5, rtol=0)
    assert _found_B(sure, same_BB, 1).tolist() == [1, 1, 1]
    clip, text = pair()
    batch = pairs(["red apple", "红苹果", "red apple", "猫脸"])
    twins = Batch(index=batch.index, images_BCHW=batch.images_BCHW, prompts=batch.prompts, keys=("a", "a", "b", "c"))
    _, same_BB = Contrastive(clip, neighbours={"text_encoder": text})._compared(twins)
    assert same_BB.long().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]]


def test_eight_pairs_find_each_other():
    clip, text = pair()
    task = catalog.find("vision", "clip").TASKS["contrastive"](clip, neighbours={"text_encoder": text})
    batch = pairs()
    assert set(task.modules) == set(task.panels()) == {"vision", "text_encoder"} and task.plan(3) == ("main",)
    first = task.validate(batch)
    assert first.keys() == {"loss", "image_to_text_1", "image_to_text_5", "text_to_image_1", "text_to_image_5"}
    assert all(value.shape == (8,) for value in first.values())
    optimizer = torch.optim.AdamW(task.trainable("main").values(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        losses = task.losses(batch, "main", step, Rng.of_samples(0, range(step * 8, step * 8 + 8)))
        losses["loss"].backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.any() for p in task.trainable("main").values())
        optimizer.step()
        task.after_step("main", step)
    assert losses["masked"] > 0 and losses["loss"] > losses["contrastive"]
    last = task.validate(batch)
    assert last["loss"].mean() < 0.2 * first["loss"].mean()
    for name in ("image_to_text_1", "text_to_image_1", "image_to_text_5", "text_to_image_5"):
        assert last[name].mean() == 1.0


def test_a_frozen_text_encoder_stays_as_it_is():
    clip, text = pair()
    task = Contrastive(clip, neighbours={"text_encoder": text.requires_grad_(False)})
    assert list(task.modules) == ["vision"] and all(name.startswith("vision.") for name in task.trainable("main"))
    losses = task.losses(pairs(), "main", 0, Rng.of_seeds(range(8)))
    losses["loss"].backward()
    assert "masked" not in losses and all(p.grad is None for p in text.parameters())


def test_the_temperature_stays_in_reach():
    clip, text = pair()
    torch.testing.assert_close(clip.scale().item(), 1 / 0.07)
    task = Contrastive(clip, neighbours={"text_encoder": text})
    with torch.no_grad():
        clip.logit_scale.fill_(9.0)
    task.after_step("main", 0)
    assert clip.scale().item() == pytest.approx(100.0)
