"""Judges of pictures with words, with training pictures, with originals: closed forms, brute force, and torchmetrics."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.contracts import Prompt
from triptych.judges import clip_score, diversity, linear_probe, memorisation, reconstruction, retrieval
from triptych.judges.linear_probe import logistic, ridge
from triptych.judges.memorisation import Memorisation
from triptych.judges.reconstruction import Reconstruction, psnr, ssim


class Eyes:
    """Sees a picture's first values as its features, and a prompt's label as a direction."""

    name = "first"

    def __init__(self, width: int = 6) -> None:
        self.width = width

    def features(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.flatten(1)[:, : self.width].float()

    def image(self, images_BCHW: Tensor) -> Tensor:
        return F.normalize(self.features(images_BCHW), dim=1)

    def text(self, prompts: Sequence[Prompt]) -> Tensor:
        return torch.stack([F.one_hot(torch.tensor(int(p.text)), self.width).float() for p in prompts])


def pictures(rows: Tensor) -> Tensor:
    """[B, D] as pictures that the eyes see so."""
    out = torch.zeros(len(rows), 3, 2, 2)
    out.view(len(rows), -1)[:, : rows.shape[1]] = rows
    return out


def noise(n: int, width: int, seed: int) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


# --- words ----------------------------------------------------------------------------------------------------------------


def test_clip_score_is_a_hundred_cosines_and_never_negative() -> None:
    judge = clip_score.ClipScore(clip_score.Config(), eyes=Eyes())
    rows = torch.tensor([[1.0, 0, 0, 0, 0, 0], [3, 4, 0, 0, 0, 0], [0, -1, 0, 0, 0, 0]])
    judge.add(pictures(rows), [Prompt(text="0"), Prompt(text="1"), Prompt(text="1")], pictures(rows.flip(0)))
    found = judge.result()
    assert judge.scores == pytest.approx([100, 80, 0], rel=1e-6)
    assert found["n"] == 3 and found["clip_score(first)"] == pytest.approx(60, rel=1e-6)
    assert 0 <= found["clip_score(first)_low"] <= 60 <= found["clip_score(first)_high"] <= 100
    assert found["clip_score(first)_real"] == pytest.approx((0 + 80 + 0) / 3, rel=1e-6)
    assert found["clip_score(first)_shuffled"] == pytest.approx((0 + 0 + 60 + 0) / 4, rel=1e-6)  # two prompts, one said twice
    with pytest.raises(ValueError, match="2 prompts"):
        judge.add(pictures(rows), [Prompt(text="0")] * 2)


def test_retrieval_against_brute_force() -> None:
    rows, said = noise(40, 6, 0), [i % 6 for i in range(40)]
    rows += 0.8 * F.one_hot(torch.tensor(said), 6)
    judge, eyes = retrieval.Retrieval(retrieval.Config(top=(1, 2)), eyes=Eyes()), Eyes()
    for part in range(0, 40, 7):
        judge.add(pictures(rows[part : part + 7]), [Prompt(text=str(c)) for c in said[part : part + 7]])
    found = judge.result()
    cosines = (eyes.image(pictures(rows)) @ torch.eye(6)).numpy()
    for top in (1, 2):
        by_picture = np.mean([c in np.argsort(-row)[:top] for row, c in zip(cosines, said, strict=True)])
        by_prompt = np.mean([any(said[i] == c for i in np.argsort(-cosines[:, c])[:top]) for c in range(6)])
        assert found[f"image_to_text_{top}(first)"] == pytest.approx(by_picture)
        assert found[f"text_to_image_{top}(first)"] == pytest.approx(by_prompt)
        assert found[f"chance_{top}"] == pytest.approx(top / 6)
    assert 0.2 < found["image_to_text_1(first)"] < 1 and found["n"] == 40 and found["prompts"] == 6
    assert found["image_to_text_1(first)_low"] < found["image_to_text_1(first)"] < found["image_to_text_1(first)_high"]


def test_eyes_that_see_nothing_find_nothing() -> None:
    judge = retrieval.Retrieval(retrieval.Config(top=(1,)), eyes=Eyes())
    judge.add(pictures(torch.ones(6, 6)), [Prompt(text=str(i)) for i in range(6)])
    found = judge.result()
    assert found["image_to_text_1(first)"] == found["text_to_image_1(first)"] == 0, "ties do not count as found"
    with pytest.raises(ValueError, match="without words"):
        judge.add(pictures(torch.ones(1, 6)), [Prompt(label=3)])


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_diversity_against_all_pairs(distance: str) -> None:
    rows, said = noise(30, 6, 1) + 1, [str(i % 4) for i in range(29)] + ["alone"]
    judge = diversity.Diversity(diversity.Config(distance=distance), eyes=Eyes())  # type: ignore[arg-type]
    for part in range(0, 30, 8):
        judge.add(pictures(rows[part : part + 8]), [Prompt(text=c) for c in said[part : part + 8]])
    found = judge.result()

    def apart(pairs: list[tuple[int, int]]) -> float:
        if distance == "cosine":
            return float(np.mean([1 - F.cosine_similarity(rows[i], rows[j], dim=0) for i, j in pairs]))
        return float(np.sqrt(np.mean([(rows[i] - rows[j]).square().sum() for i, j in pairs])))

    every = list(itertools.combinations(range(30), 2))
    within = [apart([(i, j) for i, j in every if said[i] == said[j] == c]) for c in "0123"]
    assert found["diversity(first)"] == pytest.approx(np.mean(within), rel=1e-5)
    assert found["diversity(first)_between"] == pytest.approx(apart([(i, j) for i, j in every if said[i] != said[j]]), rel=1e-5)
    assert found["n"] == 30 and found["prompts"] == 4


def test_one_picture_again_and_again_has_no_diversity() -> None:
    judge = diversity.Diversity(diversity.Config(), eyes=Eyes())
    judge.add(pictures(noise(1, 6, 2).expand(5, 6)), [Prompt(text="x")] * 5)
    found = judge.result()
    assert found["diversity(first)"] == pytest.approx(0, abs=1e-12) and "diversity(first)_between" not in found
    judge = diversity.Diversity(diversity.Config(), eyes=Eyes())
    judge.add(pictures(noise(2, 6, 2)), [Prompt(text="x"), Prompt(text="y")])
    with pytest.raises(ValueError, match="two pictures or more of one"):
        judge.result()


# --- training pictures ----------------------------------------------------------------------------------------------------


def test_memorisation_finds_copies_and_shows_them() -> None:
    training = noise(200, 6, 3)
    training[150] = training[7]  # the same picture twice must not hide a copy of it
    drawn = torch.cat([training[[7, 42]] + 0.01 * noise(2, 6, 4), noise(30, 6, 5)])
    judge = Memorisation(memorisation.Config(keep=3, ratio=0.2), eyes=Eyes())
    for part in training.split(64):
        judge.learn(pictures(part))
    prompts = [Prompt(text=str(i)) for i in range(32)]
    judge.add(pictures(drawn[:20]), prompts[:20], pictures(noise(40, 6, 6)))
    judge.add(pictures(drawn[20:]), prompts[20:])
    found, far = judge.result(), torch.cdist(drawn.double(), training.double())
    distinct = far.clone()
    distinct[:, 150] = torch.inf
    two = distinct.topk(2, largest=False).values
    assert judge.distances == pytest.approx(two[:, 0].tolist(), rel=1e-4)
    assert judge.ratios == pytest.approx((two[:, 0] / two[:, 1]).tolist(), rel=1e-3)
    assert {pair.prompt.text for pair in judge.pairs()[:2]} == {"0", "1"} and len(judge.pairs()) == 3
    assert {pair.nearest for pair in judge.pairs()[:2]} in ({7, 42}, {150, 42})
    assert torch.equal(judge.pairs()[0].image_CHW, pictures(drawn)[int(judge.pairs()[0].prompt.text)])
    assert found["copies"] == pytest.approx(2 / 32) and found["copies_real"] == 0
    assert found["n"] == 32 and found["n_training"] == 200 and found["copies_low"] < 2 / 32 < found["copies_high"]


def test_memorisation_needs_two_training_pictures() -> None:
    judge = Memorisation(memorisation.Config(), eyes=Eyes())
    with pytest.raises(ValueError, match="two training pictures"):
        judge.add(pictures(noise(1, 6, 0)), [Prompt()])
    judge = Memorisation(memorisation.Config(), eyes=Eyes(), training_TD=torch.ones(3, 6))
    with pytest.raises(ValueError, match="all 3 training pictures are the same"):
        judge.add(pictures(noise(1, 6, 0)), [Prompt()])


# --- reconstruction -------------------------------------------------------------------------------------------------------


def degraded(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    real = F.interpolate(torch.rand(3, 3, 6, 6, generator=g) * 2 - 1, size=(29, 24), mode="bicubic").clamp(-1, 1)
    return (real + torch.tensor([0.02, 0.1, 0.4])[:, None, None, None] * torch.randn(real.shape, generator=g)).clamp(-1, 1), real


def test_psnr_and_ssim_against_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.image")
    drawn, real = degraded(0)
    _, everywhere = functional.structural_similarity_index_measure(
        drawn.double(), real.double(), data_range=2.0, reduction="none", return_full_image=True
    )
    theirs = everywhere[..., 5:-5, 5:-5].flatten(1).mean(1)  # they count reflections beyond the border too; the paper does not
    torch.testing.assert_close(ssim(drawn, real), theirs, rtol=1e-6, atol=1e-8)
    theirs = functional.peak_signal_noise_ratio(drawn.double(), real.double(), data_range=2.0, dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(psnr(drawn, real), theirs, rtol=1e-6, atol=1e-8)


def test_ssim_by_definition() -> None:
    """One window, weighted moments written out."""
    x, y = torch.rand(1, 1, 11, 11), torch.rand(1, 1, 11, 11)
    at = np.arange(11) - 5.0
    weight = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weight /= weight.sum()
    a, b = x[0, 0].double().numpy(), y[0, 0].double().numpy()
    ma, mb = (weight * a).sum(), (weight * b).sum()
    va, vb, cov = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum(), (weight * (a - ma) * (b - mb)).sum()
    c1, c2 = 0.02**2, 0.06**2
    truth = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    assert ssim(x, y).item() == pytest.approx(truth, rel=1e-9)
    assert ssim(x, x).item() == pytest.approx(1) and psnr(x, x).item() == 100
    assert psnr(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).item() == pytest.approx(10 * math.log10(4))
    with pytest.raises(ValueError, match="window of 11"):
        ssim(x[..., :10], y[..., :10])


def test_reconstruction_counts_codes() -> None:
    drawn, real = degraded(1)
    judge = Reconstruction(reconstruction.Config(), eyes=Eyes(), vocab=8)
    judge.add(drawn[:2], [], real[:2], tokens=torch.tensor([[0, 1], [2, 3]]))
    judge.add(drawn[2:], [], real[2:], tokens=torch.tensor([[0, 1, 2, 3]]))
    found = judge.result()
    assert found["codebook_usage"] == 0.5 and found["perplexity"] == pytest.approx(4) and found["tokens"] == 8
    assert found["n"] == 3 and found["psnr_low"] <= found["psnr"] <= found["psnr_high"]
    far = (Eyes().features(drawn) - Eyes().features(real)).norm(dim=1).mean().item()
    assert found["feature_distance(first)"] == pytest.approx(far, rel=1e-5)
    with pytest.raises(ValueError, match="vocabulary of 8"):
        judge.add(drawn, [], real, tokens=torch.tensor([8]))
    with pytest.raises(ValueError, match="references of the same shape"):
        judge.add(drawn, [], real[:1])


# --- the linear probe -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 5), (5, 40)])
def test_ridge_is_where_its_gradient_is_zero(shape: tuple[int, int]) -> None:
    x, y = noise(*shape, 7).double(), noise(shape[0], 3, 8).double()
    w, b = (t.requires_grad_() for t in ridge(x, y, 0.3))
    ((x @ w + b - y).square().sum(1).mean() + 0.3 * w.square().sum()).backward()
    assert max(w.grad.abs().max(), b.grad.abs().max()) < 1e-10  # type: ignore[union-attr]


def test_logistic_is_where_its_gradient_is_zero() -> None:
    x, label = noise(60, 5, 9).double(), torch.arange(60) % 3
    w, b = (t.requires_grad_() for t in logistic(x, label, 3, 0.05))
    (F.cross_entropy(x @ w + b, label) + 0.05 * w.square().sum() / 2).backward()
    assert max(w.grad.abs().max(), b.grad.abs().max()) < 1e-5  # type: ignore[union-attr]


@pytest.mark.parametrize("method", ["ridge", "logistic"])
def test_probe_reads_what_is_there_and_no_more(method: str) -> None:
    labels = torch.arange(120) % 3 + 10
    rows = noise(120, 6, 10)
    rows[torch.arange(120), labels - 10] += 3
    prompts = [Prompt(label=int(label)) for label in labels]
    config = linear_probe.Config(method=method)  # type: ignore[arg-type]

    def accuracy(rows: Tensor, learnt: int = 0) -> dict[str, float]:
        judge = linear_probe.LinearProbe(config, eyes=Eyes())
        if learnt:
            judge.learn(pictures(rows[:learnt]), prompts[:learnt])
        judge.add(pictures(rows[learnt:]), prompts[learnt:])
        return judge.result()

    found = accuracy(rows)
    assert found["accuracy(first)"] > 0.85 and found["n"] == 120 and found["n_learnt"] == 96 and found["classes"] == 3
    assert accuracy(rows, 80)["accuracy(first)"] > 0.85 and accuracy(rows, 80)["n"] == 40
    blind = accuracy(noise(120, 6, 11))
    assert blind["accuracy(first)_low"] < 1 / 3 < blind["accuracy(first)_high"] and blind["majority"] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="0 labels"):
        linear_probe.LinearProbe(config, eyes=Eyes()).add(pictures(rows[:1]), [Prompt(text="x")])
