"""Score matching and annealed Langevin dynamics: the loss, and a walk whose every mean and variance is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.maths.exact import Knows, Mixture, labels, solve
from triptych.contracts import Condition, Latents, Rng, Start
from triptych.processes import sample
from triptych.processes.ncsn import NCSN, SIZES, Config, Sampling

D64 = torch.float64


def batch(count: int = 4, size: int = 40) -> Latents:
    """Rows of N(label, 1/4)."""
    said = labels(*range(1, count + 1))
    z = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7)) / 2 + torch.arange(1, count + 1).view(-1, 1, 1, 1)
    return Latents(z=z, cond=said, null=labels(*[0] * count))


def rng(count: int = 4) -> Rng:
    return Rng.of_samples(0, range(count))


def only(sigma: float) -> NCSN:
    """Two levels that are one."""
    return NCSN(Config(levels=2, sigma_max=sigma * (1 + 1e-9), sigma_min=sigma))


class Says(nn.Module):
    """A score that is not the truth; it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        self.seen.append((x, clock_B))
        return torch.sin(x)


@pytest.mark.parametrize("size", SIZES)
def test_levels(size: str) -> None:
    """Geometric, from sigma_max to sigma_min; t counts them from below, and the clock is ln(sigma) / 4 there and back."""
    process, c = NCSN(SIZES[size]), SIZES[size]
    t = torch.arange(1, c.levels + 1, dtype=D64) / c.levels
    sigma = process.schedule.sigma(t)
    torch.testing.assert_close(
        sigma[1:] / sigma[:-1], torch.full((c.levels - 1,), (c.sigma_max / c.sigma_min) ** (1 / (c.levels - 1))).double()
    )
    assert float(sigma[0]) == pytest.approx(c.sigma_min) and float(sigma[-1]) == pytest.approx(c.sigma_max)
    assert bool((process.schedule.alpha(t) == 1).all())
    torch.testing.assert_close(process.clock(t), sigma.log() / 4)
    torch.testing.assert_close(process.time(process.clock(t)), t)
    assert process.time(process.clock(torch.zeros(1))) == 0


@pytest.mark.parametrize("sigma", [0.02, 0.4, 8.0])
def test_loss(sigma: float) -> None:
    """sigma^2 |s + eps / sigma|^2 with s = -eps-hat / sigma, whatever is said; of the truth it is S / (S + sigma^2)."""
    process, network, data = only(sigma), Says(), batch()
    found = process.losses(network, data, "main", 0, rng())
    (given, clock_B), eps = network.seen[0], rng().normal("noise", data.z.shape[1:])
    torch.testing.assert_close(given, (data.z + sigma * eps) / math.sqrt(1 + sigma**2), atol=1e-5, rtol=1e-5)  # the size of one
    torch.testing.assert_close(clock_B, torch.full((4,), math.log(sigma) / 4))
    score = -torch.sin(given) / sigma
    torch.testing.assert_close(found["loss"], sigma**2 * (score + eps / sigma).square().mean(), atol=1e-4, rtol=1e-3)
    best = process.losses(Knows(process), data, "main", 0, rng())
    assert float(best["loss"]) == pytest.approx(0.25 / (0.25 + sigma**2), rel=0.05)
    assert float(best["x0_mse"]) == pytest.approx(sigma**2 * 0.25 / (0.25 + sigma**2), rel=0.05)
    assert [name for name, value in best.items() if value.requires_grad] == []


def test_all_levels_are_drawn_alike() -> None:
    n, process, network = 5000, NCSN(SIZES["tiny"]), Says()
    data = Latents(z=torch.zeros(n, 1), cond=labels(*[0] * n), null=labels(*[0] * n))
    process.losses(network, data, "main", 0, rng(n))
    at = (process.time(network.seen[0][1]) * 10).round().long()
    counts = at.bincount(minlength=11)[1:]
    assert counts.sum() == n and (counts - n / 10).abs().max() < 5 * math.sqrt(n * 0.09)


def test_validation_belongs_to_the_row() -> None:
    data, process = batch(), NCSN(Config())
    whole = process.validate(Says(), data, Rng.of_samples(0, [5, 6, 7, 8]))
    part = Latents(z=data.z[2:3], cond=data.cond.rows([2]), null=data.null.rows([2]))
    alone = process.validate(Says(), part, Rng.of_samples(0, [7]))
    for name in ("loss", "x0_mse"):
        assert whole[name].shape == (4,) and len(set(whole[name].tolist())) == 4
        torch.testing.assert_close(whole[name][2:3], alone[name])


def walked(process: NCSN, how: Sampling, m: float, S: float) -> tuple[float, float]:
    """Mean and variance at the end of algorithm 1 and a last denoising, of data N(m, S): the recursion by hand."""
    mean, var = 0.0, float(process.sigma_L[-1]) ** 2
    for sigma in process.sigma_L.flip(0).tolist():
        a = how.step * (sigma / process.config.sigma_min) ** 2
        keep = 1 - a / 2 / (S + sigma**2)  # score = (m - x) / (S + sigma^2)
        for _ in range(how.repeats):
            mean, var = m + keep * (mean - m), keep**2 * var + a
    gain = S / (S + process.config.sigma_min**2)
    return m + gain * (mean - m), gain**2 * var


@pytest.mark.parametrize(("repeats", "step"), [(3, 2.5e-5), (1, 4e-4), (20, 1e-4)])
def test_the_walk_of_a_gaussian(repeats: int, step: float) -> None:
    """Every picture's mean and variance are those of the recursion, to five standard errors."""
    process, how = NCSN(Config(levels=20, sigma_max=10.0)), Sampling(repeats=repeats, step=step)
    out = sample(process, Knows(process), labels(2), labels(0), how, Start(shape=(3, 80, 80)), Rng.of_seeds([0]))
    mean, var = walked(process, how, 2.0, 0.25)
    assert len(process.table(how)) == 20 * repeats + 1
    assert abs(float(out.mean()) - mean) < 5 * math.sqrt(var / out.numel())
    assert abs(float(out.var()) / var - 1) < 5 * math.sqrt(2 / out.numel())


def test_the_walk_reaches_the_gaussian() -> None:
    """The default keeps up with its levels, too small steps do not; and the smaller each of many, the nearer."""
    process = NCSN(SIZES["scenes"])
    mean, var = walked(process, Sampling(), 2.0, 0.25)
    assert abs(mean - 2) < 1e-3 and abs(var / 0.25 - 1) < 0.3
    assert walked(process, Sampling(step=2.5e-5), 2.0, 0.25)[1] > 10
    process = NCSN(Config(levels=30, sigma_max=10.0))
    biases = [abs(walked(process, Sampling(repeats=round(2e-2 / step), step=step), 2.0, 0.25)[1] / 0.25 - 1) for step in (8e-4, 2e-4, 5e-5)]
    assert biases[0] > biases[1] > biases[2] and biases[2] < 0.01, biases


def test_the_walk_finds_both_hills() -> None:
    """A mixture's mean, variance and share below zero: annealing crosses the valley while the noise is large."""
    process = NCSN(Config(levels=40, sigma_max=10.0))
    data = Mixture(p=(0.3, 0.7), m=(-1.0, 0.8), S=(0.04, 0.1), schedule=process.schedule)
    n = 10_000
    x = process.config.sigma_max * torch.randn(1, n, dtype=D64, generator=torch.Generator().manual_seed(1))
    drawn = solve(process.table(Sampling(repeats=5, step=2e-4)), data, x)
    true = data.draw(torch.Generator().manual_seed(2), n)
    assert abs(float(drawn.mean()) - data.mean) < 0.05
    assert abs(float(drawn.var()) / data.variance - 1) < 0.1
    assert abs(float((drawn < 0).double().mean() - (true < 0).double().mean())) < 0.03


@pytest.mark.parametrize(
    ("config", "how", "says"),
    [
        ({"levels": 1}, {}, r"levels = 1: must be in 2\.\."),
        ({"sigma_min": 50.0}, {}, r"sigma_min = 50.0: must be in 1e-05\.\.40.0"),
        ({}, {"repeats": 0}, r"repeats = 0: must be in 1\.\.1000"),
        ({}, {"step": 2e-3}, "step = 0.002: must be below 4 sigma_min\\^2 = 0.0016"),
    ],
)
def test_wrong_settings(config: dict[str, Any], how: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        NCSN(Config(**config)).table(Sampling(**how))


def test_the_largest_step_stays() -> None:
    process = NCSN(Config(levels=5, sigma_max=10.0))
    how = Sampling(step=1.59e-3, repeats=200)
    out = sample(process, Knows(process), labels(1), labels(0), how, Start(shape=(3, 8, 8)), Rng.of_seeds([0]))
    assert out.isfinite().all() and out.abs().max() < 100
