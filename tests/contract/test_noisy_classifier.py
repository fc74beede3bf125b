"""The noisy classifier: what it says of pictures at any noise, its gradient, and how it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.contract import tiny
from triptych import catalog
from triptych.contracts import Batch, Condition, Prompt, Rng
from triptych.vision.noisy_classifier import SIZES, NoisyClassification, NoisyClassifier

TINY = SIZES["tiny"]


def classifier(**changed: object) -> NoisyClassifier:
    torch.manual_seed(0)
    return tiny.awake(NoisyClassifier(replace(TINY, **changed))).eval()  # type: ignore[arg-type, return-value]


def noised(rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    rng = Rng.of_seeds(range(rows))
    return rng.normal("x", (3, 16, 16)), 1000 * rng.uniform("clock")


@torch.no_grad()
def test_scores_are_log_probabilities() -> None:
    panel, (x, clock) = classifier(), noised()
    every_KB = torch.stack([panel(x, clock, Condition(label_B=torch.full((4,), k))) for k in range(10)])
    assert every_KB.shape == (10, 4)
    torch.testing.assert_close(every_KB.exp().sum(0), torch.ones(4))
    torch.testing.assert_close(every_KB.T, panel.classify(x, clock).log_softmax(1))
    assert (panel.classify(x, clock) - panel.classify(x)).abs().max() > 1e-3, "the time is not heard"


def test_its_gradient_leads_to_the_class() -> None:
    panel, (x, clock) = classifier(), noised()
    said, x = Condition(label_B=torch.tensor([0, 3, 9, 3])), x.requires_grad_()
    score = panel(x, clock, said)
    (up,) = torch.autograd.grad(score.sum(), x)
    assert up.isfinite().all() and (up.flatten(1).norm(dim=1) > 0).all()
    step = 0.01 * up / up.flatten(1).norm(dim=1)[:, None, None, None]
    with torch.no_grad():
        assert (panel(x + step, clock, said) > score).all()


@torch.no_grad()
def test_rows_are_independent() -> None:
    panel, (x, clock) = classifier(), noised()
    together = panel.classify(x, clock)
    for i in range(4):
        torch.testing.assert_close(panel.classify(x[i : i + 1], clock[i : i + 1]), together[i : i + 1], rtol=1e-4, atol=1e-5)


def labelled(rows: int = 8) -> Batch:
    shown = tiny.batch(rows)
    return replace(shown, prompts=tuple(Prompt(label=i % 4) for i in range(rows)))


@pytest.mark.parametrize("process", ["ddpm", "rectified_flow"])
def test_it_learns_what_it_is_shown(process: str) -> None:
    """By heart: the same eight pictures at the same times, through the process's own noise and clock."""
    torch.manual_seed(0)
    task = NoisyClassification(NoisyClassifier(TINY), process=process)
    shown, rng = labelled(), Rng.of_samples(0, range(8))
    optimizer = torch.optim.AdamW(task.trainable("main").values(), lr=5e-3)
    for step in range(60):
        losses = task.losses(shown, "main", step, rng)
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
    assert losses["loss"].item() < 0.4 and losses["right"].item() > 0.8
    held_out = task.validate(shown)
    assert held_out["loss"].shape == held_out["right"].shape == (8,)
    assert torch.equal(held_out["loss"], task.validate(shown)["loss"])


def test_noise_and_time_are_the_rows_own() -> None:
    task = NoisyClassification(classifier())
    shown = labelled()
    one, same, other = (task.losses(shown, "main", 0, Rng.of_samples(seed, shown.index))["loss"].item() for seed in (0, 0, 1))
    assert one == same != other
    seen: list[torch.Tensor] = []
    task.panel.classify = lambda x, clock: seen.append(clock) or torch.zeros(len(x), 10)
    task.losses(shown, "main", 0, Rng.of_samples(0, shown.index))
    task.validate(shown)
    assert all(torch.equal(clock, clock.round()) and clock.min() >= 0 and clock.max() <= 999 for clock in seen), "DDPM's steps are whole"
    assert len(seen) == 5 and all(250 * k - 1 <= clock.min() and clock.max() < 250 * (k + 1) for k, clock in enumerate(seen[1:]))


@torch.no_grad()
def test_a_decoder_beside_it_says_what_it_sees() -> None:
    decoder = catalog.build("decoders", "identity", {"size": 16, "mean": 0.5, "std": 0.6})
    beside, alone = (NoisyClassification(classifier(), neighbours=n) for n in ({"decoder": decoder}, None))
    shown = labelled()
    torch.testing.assert_close(beside.validate(shown)["loss"], alone.validate(shown)["loss"])
    with pytest.raises(ValueError, match=r"mean \(0.5, 0.5, 0.5\) and std \(0.6, 0.6, 0.6\) are not the classifier's, 0.0 and 1.0"):
        NoisyClassification(classifier(mean=0.0, std=1.0), neighbours={"decoder": decoder})
    with pytest.raises(ValueError, match=r"latents are \(3, 16, 16\), the classifier sees \(3, 32, 32\)"):
        NoisyClassification(classifier(image_size=32), neighbours={"decoder": decoder})


def test_refuses() -> None:
    x, clock = noised()
    with pytest.raises(ValueError, match=r"scores labels, and the condition says none.*'pooled_BD'"):
        classifier()(x, clock, Condition(pooled_BD=torch.zeros(4, 3)))
    with pytest.raises(ValueError, match=r"x_t is \(3, 8, 8\), this classifier sees \(3, 16, 16\)"):
        classifier().classify(x[..., :8, :8])
    with pytest.raises(ValueError, match="image_size 15 cannot be halved 1 times"):
        classifier(image_size=15)
    with pytest.raises(ValueError, match="heads of head_width = 7"):
        classifier(head_width=7)
    task = NoisyClassification(classifier())
    for wrong in (None, 10, -1):
        with pytest.raises(ValueError, match=rf"label {wrong}, the head has 10 classes"):
            task.losses(replace(labelled(1), prompts=(Prompt(label=wrong),)), "main", 0, Rng.of_samples(0, [0]))


@pytest.mark.parametrize("size, millions", [("ADM-64", 65.4), ("ADM-128", 42.6), ("ADM-256", 54.1), ("scenes", 0.1445)])
def test_published_sizes(size: str, millions: float) -> None:
    """Parameters: 65, 43 and 54 million in ADM's paper."""
    config = SIZES[size]
    with torch.device("meta"):
        panel = NoisyClassifier(config)
        assert panel.classify(torch.empty(2, 3, config.image_size, config.image_size)).shape == (2, config.num_classes)
    assert sum(parameter.numel() for parameter in panel.parameters()) / 1e6 == pytest.approx(millions, rel=2e-3)
