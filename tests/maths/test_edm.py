"""EDM against its paper: table 1's scalings, the loss, the noises of training, algorithms 1 and 2 written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.maths.exact import Knows, labels
from triptych.contracts import Condition, Latents, Rng, Start
from triptych.processes import sample
from triptych.processes.edm import EDM, SIZES, Config, Sampling

SHAPE, D64 = (3, 6, 5), torch.float64


class Silent(nn.Module):
    """F = 0: a network before it has learnt anything. It remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor]] = []

    def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        self.seen.append((x, clock_B))
        return torch.zeros_like(x)


def batch(count: int = 4, size: int = 40, S: float = 0.25, far: float = 1.0) -> Latents:
    """Rows of N(far * label, S)."""
    said = labels(*range(1, count + 1))
    z = math.sqrt(S) * torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))
    return Latents(z=z + far * torch.arange(1, count + 1).view(-1, 1, 1, 1), cond=said, null=labels(*[0] * count))


def always(sigma: float, **config: Any) -> EDM:
    """A process that is only ever trained at one noise."""
    return EDM(Config(mean=math.log(sigma), std=0.0, **config))


def rng(count: int = 4) -> Rng:
    return Rng.of_samples(0, range(count))


@pytest.mark.parametrize("s", [0.5, 1.0])
@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 9.0, 80.0])
def test_everything_has_the_size_of_one(sigma: float, s: float) -> None:
    """Inputs c_in x, and the targets (x0 - c_skip x) / c_out that are left to F; c_skip is the one that leaves F the least."""
    process, g = EDM(Config(sigma_data=s)), torch.Generator().manual_seed(0)
    x0, eps = s * torch.randn(50_000, generator=g, dtype=D64), torch.randn(50_000, generator=g, dtype=D64)
    x = x0 + sigma * eps
    c_skip, c_out, c_in = process.scalings(torch.tensor(math.log(sigma) / 4, dtype=D64))
    assert float((c_in * x).var()) == pytest.approx(1, abs=0.03)
    assert float(((x0 - c_skip * x) / c_out).var()) == pytest.approx(1, abs=0.03)
    assert float(c_skip) == pytest.approx(s**2 / (sigma**2 + s**2)) and float(c_out) == pytest.approx(sigma * s / math.hypot(sigma, s))
    for other in (0.99, 1.01):
        assert float(c_out**2) < (1 - other * c_skip) ** 2 * s**2 + (other * c_skip) ** 2 * sigma**2


@pytest.mark.parametrize("config", SIZES.values(), ids=SIZES.keys())
def test_the_loss_begins_at_one(config: Config) -> None:
    """At every noise, for data of the size that it was told."""
    process, silent, data = EDM(config), Silent(), batch(40, 16, config.sigma_data**2, far=0.0)
    found = process.losses(silent, data, "main", 0, rng(40))
    assert float(found["loss"]) == pytest.approx(1, abs=0.05)
    (x, clock_B) = silent.seen[0]
    assert float(x.var()) == pytest.approx(1, abs=0.05) and x.dtype == clock_B.dtype == torch.float32


@pytest.mark.parametrize("sigma", [0.02, 0.5, 4.0, 60.0])
def test_loss_of_the_truth(sigma: float) -> None:
    """Var(x0 | x) = S sigma^2 / (S + sigma^2), in units of c_out^2."""
    process = always(sigma, sigma_data=0.7)
    found = process.losses(Knows(process), batch(), "main", 0, rng())
    unknown, c_out = 0.25 * sigma**2 / (0.25 + sigma**2), 0.7 * sigma / math.hypot(0.7, sigma)
    assert float(found["x0_mse"]) == pytest.approx(unknown, rel=0.05)
    assert float(found["loss"]) == pytest.approx(unknown / c_out**2, rel=0.05)


def test_noises_of_training() -> None:
    """ln sigma is normal, within Kolmogorov's bound (p = 1e-4)."""
    n, process, silent = 4000, EDM(Config(mean=-0.4, std=1.3)), Silent()
    data = Latents(z=torch.zeros(n, 1), cond=labels(*[0] * n), null=labels(*[0] * n))
    process.losses(silent, data, "main", 0, rng(n))
    drawn = (4 * silent.seen[0][1].double()).sort().values
    assert (torch.special.ndtr((drawn + 0.4) / 1.3) - torch.arange(1, n + 1) / n).abs().max() < 2.2 / math.sqrt(n)


def test_validation_belongs_to_the_row() -> None:
    data, process = batch(), EDM(Config())
    whole = process.validate(Knows(process), data, Rng.of_samples(0, [5, 6, 7, 8]))
    part = Latents(z=data.z[2:3], cond=data.cond.rows([2]), null=data.null.rows([2]))
    alone = process.validate(Knows(process), part, Rng.of_samples(0, [7]))
    for name in ("loss", "x0_mse"):
        assert whole[name].shape == (4,) and len(set(whole[name].tolist())) == 4
        torch.testing.assert_close(whole[name][2:3], alone[name])


def test_only_the_loss_is_descended() -> None:
    network, process = nn.Conv2d(3, 3, 1), EDM(Config())
    found = process.losses(lambda x, clock, cond: network(x), batch(), "main", 0, rng())  # type: ignore[arg-type]
    assert [name for name, value in found.items() if value.requires_grad] == ["loss"]
    assert process.plan(0) == ("main",) and not list(process.prepare(network)) and process.after_step(network, "main", 0) is None


def test_noises_of_drawing() -> None:
    """sigma_i of eq. 5, then 0; t and the clock there and back."""
    process, n = EDM(Config()), 18
    ramp = torch.arange(n, dtype=D64) / (n - 1)
    sigmas = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    table = process.table(Sampling(sampler="euler", steps=n))
    torch.testing.assert_close(process.schedule.sigma(table[:, 0]), sigmas, rtol=1e-10, atol=0)
    torch.testing.assert_close(process.clock(table[:, 0]), sigmas.log() / 4)
    assert table[-1, 7] == 0
    t = torch.linspace(0, 1, 11)
    torch.testing.assert_close(process.time(process.clock(t)), t)


def by_the_paper(process: EDM, D: Any, x: Tensor, steps: int, churn: float, noises: list[Tensor]) -> Tensor:
    """Algorithm 2 (without churn: algorithm 1), S_noise = 1; the first step, from noise alone, is not churned."""
    ramp = torch.arange(steps, dtype=D64) / (steps - 1)
    ts = [*((80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7).tolist(), 0.0]
    for i, (t, t_next) in enumerate(itertools.pairwise(ts)):
        gamma = min(churn / steps, math.sqrt(2) - 1) if i else 0.0
        t_hat = t + gamma * t
        x_hat = x + math.sqrt(t_hat**2 - t**2) * noises[i]
        d = (x_hat - D(x_hat, t_hat)) / t_hat
        x = x_hat + (t_next - t_hat) * d
        if t_next:
            x = x_hat + (t_next - t_hat) * (d / 2 + (x - D(x, t_next)) / (2 * t_next))
    return x


@pytest.mark.parametrize(("steps", "churn"), [(2, 0.0), (7, 0.0), (5, 1.0), (8, 40.0)])
def test_the_papers_algorithms(steps: int, churn: float) -> None:
    """In float32 and with the noises of its own stream, against float64 by hand; a network that is no line."""
    process, how = EDM(Config(sigma_data=0.5)), Sampling(steps=steps, churn=churn)

    def F(x: Tensor, clock: Tensor) -> Tensor:
        return torch.sin(2 * x) + 0.3 * clock * torch.cos(x)

    def D(x: Tensor, sigma: float) -> Tensor:
        c_skip, c_out, c_in = process.scalings(torch.tensor(math.log(sigma) / 4, dtype=D64))
        return c_skip * x + c_out * F(c_in * x, torch.tensor(math.log(sigma) / 4))

    class Network(nn.Module):
        def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
            return F(x, clock_B.view(-1, 1, 1, 1))

    rng = Rng.of_seeds([4])
    noises = [torch.zeros(()), *(rng.normal("step", SHAPE, 2 * i - 1).double() for i in range(1, steps))]
    expected = by_the_paper(process, D, 80 * rng.normal("start", SHAPE).double(), steps, churn, noises)
    found = sample(process, Network(), labels(0), labels(0), how, Start(shape=SHAPE), rng)
    torch.testing.assert_close(found.double(), expected, atol=5e-3 if churn else 2e-3, rtol=0)
    assert process.table(how)[:, 5].count_nonzero() == (steps - 1 if churn else 0)


@pytest.mark.parametrize(("steps", "churn"), [(40, 0.0), (40, 5.0), (120, 30.0)])
def test_churn_keeps_the_distribution(steps: int, churn: float) -> None:
    process = EDM(Config())
    out = sample(
        process, Knows(process), labels(2), labels(0), Sampling(steps=steps, churn=churn), Start(shape=(3, 60, 60)), Rng.of_seeds([0])
    )
    assert float(out.mean()) == pytest.approx(2, abs=0.03) and float(out.var()) == pytest.approx(0.25, rel=0.05)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"churn": 1.0, "sampler": "euler"}, "churn = 1.0 is heun's; sampler = euler .*: set churn = 0"),
        ({"steps": 0}, r"steps = 0: must be in 1\.\.1000"),
        ({"sigma_min": 0.0}, r"sigma_min = 0.0: must be in 1e-05\.\.1.0"),
        ({"sampler": "ddim"}, "heun, euler, euler_a"),
    ],
)
def test_wrong_settings(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Sampling(**wrong)


def test_wrong_configuration() -> None:
    for name, value in {"sigma_data": 0.0, "sigma_max": 0.5, "rho": 0.0, "std": -1.0}.items():
        with pytest.raises(ValueError, match=f"{name} = {value}: must be in"):
            Config(**{name: value})
