"""DDPM's derivations as tests: on Gaussians every marginal and posterior is linear algebra; and the likelihood that follows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.maths.exact import Knows, labels
from triptych.contracts import LatentSpace, Rng
from triptych.layers.pixels import pixel_space
from triptych.processes.ddpm import DDPM, Config, _bin_nll

D64 = torch.float64
SHORT = {"beta_start": 0.1, "beta_end": 0.6}  # chains of a few steps that end in noise
M = torch.tensor([0.7, -0.4], dtype=D64)
S = torch.tensor([[0.5, 0.3], [0.3, 0.4]], dtype=D64)


def chain(steps: int, **config: Any) -> DDPM:
    return DDPM(Config(num_timesteps=steps, **{**SHORT, **config}))


def rng(count: int = 4) -> Rng:
    return Rng.of_samples(0, range(count))


# --- the derivations --------------------------------------------------------------------------------------------------------


class Joint:
    """The Gaussian of (x_0, ... x_T), each in R^2, of a chain x_{next} = F x + g + N(0, C): mean and covariance by linear algebra."""

    def __init__(self, mean: Tensor, cov: Tensor) -> None:
        self.means, self.blocks = [mean], {(0, 0): cov}

    def extend(self, F: Tensor, g: Tensor, C: Tensor) -> None:
        n = len(self.means)
        self.means.append(F @ self.means[-1] + g)
        for i in range(n):
            self.blocks[i, n] = self.blocks[i, n - 1] @ F.T
            self.blocks[n, i] = self.blocks[i, n].T
        self.blocks[n, n] = F @ self.blocks[n - 1, n - 1] @ F.T + C

    def whole(self, backwards: bool = False) -> tuple[Tensor, Tensor]:
        """Mean [2 (T + 1)] and covariance, in the order of x_0, ... x_T."""
        order = list(range(len(self.means)))[:: -1 if backwards else 1]
        return torch.cat([self.means[i] for i in order]), torch.cat([torch.cat([self.blocks[i, j] for j in order], 1) for i in order])


def given(mean: Tensor, cov: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """Of the rest, when the first two numbers are x0."""
    gain = cov[2:, :2] @ torch.linalg.inv(cov[:2, :2])
    return mean[2:] + gain @ (x0 - mean[:2]), cov[2:, 2:] - gain @ cov[:2, 2:]


def divergence(m1: Tensor, C1: Tensor, m2: Tensor, C2: Tensor) -> Tensor:
    """KL(N(m1, C1) || N(m2, C2))."""
    inverse, off = torch.linalg.inv(C2), m2 - m1
    return 0.5 * (torch.trace(inverse @ C1) + off @ inverse @ off - len(m1) + torch.logdet(C2) - torch.logdet(C1))


def log_normal(x: Tensor, m: Tensor, C: Tensor) -> Tensor:
    return -0.5 * ((x - m) @ torch.linalg.inv(C) @ (x - m) + torch.logdet(C) + len(m) * math.log(2 * math.pi))


def believed(process: DDPM, k: int) -> tuple[Tensor, Tensor]:
    """D(x_k) = G x_k + h: the exact denoiser of N(M, S)."""
    t = torch.tensor(k / process.config.num_timesteps, dtype=D64)
    alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
    G = alpha * S @ torch.linalg.inv(alpha**2 * S + sigma**2 * torch.eye(2, dtype=D64))
    return G, M - alpha * G @ M


def variances(process: DDPM) -> Tensor:
    """Of p(x_{k-1} | x_k), k = 1 ... T; of the first step beta~ is 0, and the second's stands in."""
    _, _, small, large = process.chain
    small = torch.cat([small[1:2], small[1:]])
    return {"fixed_small": small, "fixed_large": large}.get(process.config.variance, small**0.7 * large**0.3)


def reverse(process: DDPM) -> tuple[Tensor, Tensor]:
    """p(x_0, ... x_T), from noise down."""
    T, eye, var = process.config.num_timesteps, torch.eye(2, dtype=D64), variances(process)
    joint = Joint(torch.zeros(2, dtype=D64), eye)
    for k in range(T, 0, -1):
        (G, h), of_x0, of_x = believed(process, k), process.chain[0][k - 1], process.chain[1][k - 1]
        joint.extend(of_x0 * G + of_x * eye, of_x0 * h, var[k - 1] * eye)
    return joint.whole(backwards=True)


def forward(process: DDPM, x0: Tensor) -> tuple[Tensor, Tensor]:
    """q(x_1, ... x_T | x0), by the betas themselves."""
    c, eye = process.config, torch.eye(2, dtype=D64)
    joint = Joint(x0, torch.zeros(2, 2, dtype=D64))
    for beta in torch.linspace(c.beta_start, c.beta_end, c.num_timesteps, dtype=D64):
        joint.extend((1 - beta).sqrt() * eye, torch.zeros(2, dtype=D64), beta * eye)
    mean, cov = joint.whole()
    return mean[2:], cov[2:, 2:]


def bound(process: DDPM, x0: Tensor) -> Tensor:
    """-ELBO in nats: the sum of the process's own terms, their expectation over x_k by Gauss-Hermite, exact for quadratics."""
    nodes, weights = (torch.tensor(v, dtype=D64) for v in ([-math.sqrt(3), 0.0, math.sqrt(3)], [1 / 6, 2 / 3, 1 / 6]))
    eps, share = torch.cartesian_prod(nodes, nodes), torch.full((9, 2), 0.3, dtype=D64)
    weight, one = (weights[:, None] * weights).flatten(), torch.ones((), dtype=D64)
    total = torch.zeros((), dtype=D64)
    for k in range(1, process.config.num_timesteps + 1):
        t_B = torch.full((9,), k / process.config.num_timesteps, dtype=D64)
        (G, h), x = believed(process, k), process.corrupt(x0.expand(9, 2), t_B, eps)
        total = total + 2 * math.log(2) * (weight * process.vlb_term(x0.expand(9, 2), x, x @ G.T + h, t_B, share, None)).sum()
    eye, var = torch.eye(2, dtype=D64), process.schedule.sigma(one) ** 2
    return total + divergence(process.schedule.alpha(one) * x0, var * eye, torch.zeros(2, dtype=D64), eye)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("steps", [3, 4, 6])
def test_log_p_is_elbo_plus_kl(steps: int, variance: str) -> None:
    """log p(x0) = ELBO + KL(q(x_1..T | x0) || p(x_1..T | x0)): three numbers by three ways."""
    process = chain(steps, variance=variance)
    p_mean, p_cov = reverse(process)
    for x0 in (M, torch.tensor([-1.3, 2.0], dtype=D64)):
        log_p = log_normal(x0, p_mean[:2], p_cov[:2, :2])
        gap = divergence(*forward(process, x0), *given(p_mean, p_cov, x0))
        elbo = -bound(process, x0)
        assert gap > 0.01 and abs(float(log_p - elbo - gap)) < 1e-10, (log_p, elbo, gap)


@pytest.mark.parametrize("steps", [3, 6])
def test_the_forward_chain_is_its_jump(steps: int) -> None:
    """q(x_k | x0) of the schedule, against the chain of single steps."""
    process = chain(steps)
    mean, cov = forward(process, M)
    for k in range(1, steps + 1):
        t, part = torch.tensor(k / steps, dtype=D64), slice(2 * k - 2, 2 * k)
        torch.testing.assert_close(mean[part], process.schedule.alpha(t) * M, atol=1e-12, rtol=0)
        torch.testing.assert_close(cov[part, part], process.schedule.sigma(t) ** 2 * torch.eye(2, dtype=D64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("steps", [4, 6])
def test_posterior_is_bayes(steps: int, zero: bool) -> None:
    """q(x_{k-1} | x_k, x0) ~ q(x_k | x_{k-1}) q(x_{k-1} | x0), on a fine grid of x_{k-1}."""
    process = chain(steps, zero_terminal_snr=zero, target="v")
    alpha = process.schedule.alpha(torch.arange(steps + 1, dtype=D64) / steps)
    x0, x_k, grid = 0.6, -0.9, torch.linspace(-9, 9, 40001, dtype=D64)
    for k in range(2, steps + 1):
        ratio2 = (alpha[k] / alpha[k - 1]) ** 2
        log_q = -((x_k - ratio2.sqrt() * grid) ** 2) / (2 * (1 - ratio2))
        log_q = log_q - (grid - alpha[k - 1] * x0) ** 2 / (2 * (1 - alpha[k - 1] ** 2))
        weight = torch.softmax(log_q, 0)
        mean = (weight * grid).sum()
        variance = (weight * (grid - mean) ** 2).sum()
        of_x0, of_x, small, large = (part[k - 1] for part in process.chain)
        torch.testing.assert_close(of_x0 * x0 + of_x * x_k, mean, atol=1e-10, rtol=0)
        torch.testing.assert_close(small, variance, atol=1e-10, rtol=0)
        torch.testing.assert_close(large, 1 - ratio2, atol=1e-12, rtol=0)
    assert process.chain[2][0] == 0  # before the first step there is only x0


# --- likelihood -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["eps", "v"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_likelihood_is_its_sum(variance: str, target: str) -> None:
    """`log_likelihood` in bits a number, against the hand-made sum of divergences between normals."""
    process, S1, m, n = chain(5, variance=variance, target=target), 0.25, 1.0, 60_000
    network = Knows(process, S1, share=-0.4 if variance == "learned_range" else None)
    z = m + 0.5 * torch.randn(4, 1, 100, n // 400, generator=torch.Generator().manual_seed(0))
    found = process.log_likelihood(network, z, labels(1, 1, 1, 1), rng())
    alpha, sigma = (f(torch.arange(6, dtype=D64) / 5) for f in (process.schedule.alpha, process.schedule.sigma))
    of_x0, _, small, _ = process.chain
    for k in range(1, 6):
        var, unknown = variances(process)[k - 1], S1 * sigma[k] ** 2 / (alpha[k] ** 2 * S1 + sigma[k] ** 2)  # E (x0 - D)^2
        if k == 1:
            truth = 0.5 * (math.log(2 * math.pi) + var.log() + unknown / var)
        else:
            truth = 0.5 * (var.log() - small[k - 1].log() + (small[k - 1] + of_x0[k - 1] ** 2 * unknown) / var - 1)
        assert float(found["terms"][:, k - 1].mean()) == pytest.approx(float(truth) / math.log(2), abs=0.02)
    prior = 0.5 * (alpha[5] ** 2 * (m**2 + S1) + sigma[5] ** 2 - 1 - 2 * sigma[5].log())
    assert float(found["prior"].mean()) == pytest.approx(float(prior) / math.log(2), abs=0.01)
    torch.testing.assert_close(found["bits"], found["prior"] + found["terms"].sum(1))
    assert found["terms"].shape == (4, 5) and found["bits"].shape == (4,)


def test_likelihood_of_the_truth() -> None:
    """With many small steps the bound closes in on the true -log p of the data, from above."""
    z, gaps = 1 + 0.5 * torch.randn(2, 1, 100, 100, generator=torch.Generator().manual_seed(0)), []
    truth = float((0.5 * math.log(2 * math.pi * 0.25) + (z - 1).square().mean() / (2 * 0.25)) / math.log(2))
    for config in (Config(num_timesteps=20, beta_start=0.01, beta_end=0.6), Config(num_timesteps=200, rescale=True)):
        process = DDPM(config)
        gaps.append(float(process.log_likelihood(Knows(process), z, labels(1, 1), rng(2))["bits"].mean()) - truth)
    assert 0 < gaps[1] < gaps[0] / 2 < 0.05, gaps


@pytest.mark.parametrize("std", [1.0, 0.5])
@pytest.mark.parametrize("spread", [1e-3, 0.02, 0.5])
def test_bins_of_pixels(spread: float, std: float) -> None:
    """256 bins of all values a pixel can have: their masses sum to one, wherever the mean is."""
    space = pixel_space(1, 1, 0.2, std)
    pixels = space.standardise((torch.arange(256, dtype=D64) * 2 / 255 - 1).view(256, 1, 1, 1))
    for mean in (-1.5, -0.99, 0.0, 0.41, 1.0):
        nll = _bin_nll(pixels, torch.full_like(pixels, mean), torch.full_like(pixels, 2 * math.log(spread)), space)
        assert float(torch.exp(-nll).sum()) == pytest.approx(1, abs=1e-8)
    inner = pixels[100:101]
    density = _bin_nll(inner, inner, torch.full_like(inner, 2 * math.log(0.5)), None)
    mass = _bin_nll(inner, inner, torch.full_like(inner, 2 * math.log(0.5)), space)
    assert float(mass - density) == pytest.approx(-math.log(2 / 255 / std), abs=1e-4)  # a bin is 2/255 wide


def test_pixels_are_counted_as_pixels() -> None:
    """A network that says which latents it draws is judged by them."""
    process = chain(4)
    network, z = Knows(process), torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    continuous = process.log_likelihood(network, z, labels(0, 0), rng(2))["terms"][:, 0]
    network.latent = pixel_space(4)  # type: ignore[assignment]
    assert (process.log_likelihood(network, z, labels(0, 0), rng(2))["terms"][:, 0] - continuous > 5).all()  # 256 values, not lengths
    network.latent = LatentSpace(kind="image", shape=(3, 4, 4), fingerprint="latents")  # type: ignore[assignment]
    assert torch.equal(process.log_likelihood(network, z, labels(0, 0), rng(2))["terms"][:, 0], continuous)
