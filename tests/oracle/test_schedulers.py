"""Our processes' tables against diffusers' schedulers, step by step: the same words of a network, the same noise, the same x.

What stands in diffusers' memory as x / alpha (Euler and its kin) is multiplied by alpha before it is compared. Ours is counted in
float64, theirs in float32; the distance is relative, over all numbers.

Where the two differ, and why:

* DDIM on linspace, and on trailing steps whose number does not divide T: diffusers steps to t - T // n, which is not where it looks
  next. Ours steps to where it looks next. Where n divides T trailing steps are both.
* The chain's last step, where it is not from the first noise: with fixed_large and learned_range diffusers adds noise to what is already
  clean. Ours adds none.
* DDIM's inversion with other words than eps: diffusers reads x0 from v at the noise that it comes from, ours at the noise of which
  the network was asked.
* EDM begins in diffusers with sqrt(sigma_max^2 + 1), here with the paper's sigma_max.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.maths.exact import labels
from triptych.contracts import LatentSpace, Rng, Start
from triptych.processes import noise
from triptych.processes.ddpm import DDPM, SIZES, Config, Sampling
from triptych.processes.edm import EDM
from triptych.processes.edm import Config as EDMConfig
from triptych.processes.edm import Sampling as EDMSampling
from triptych.processes.guidance import thresholded
from triptych.processes.solvers import advance, ddim_inversion

diffusers = pytest.importorskip("diffusers")

SHAPE = (1, 3, 4, 6)
TOLERANCE = 1e-5
ALONE = 1e-4  # a single step from the very first noise: 1 - alpha-bar = 0.0001 has three digits left in float32
TARGETS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
STEPS = [1, 2, 5, 10, 20]


def said(x: Tensor, clock: float, channels: int = 3) -> Tensor:
    """Some smooth words about x; no solver may care which. In float64, so that both sides hear the same."""
    x = x.double()
    out = 0.6 * torch.sin(2 * x) * (1 + clock / 2000) - 0.3 * x + 0.1
    return out if channels == 3 else torch.cat([out, torch.cos(3 * x)], dim=1)


def fresh(count: int, seed: int = 1) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(SHAPE, generator=g) for _ in range(count)]


def close(ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> None:
    off = float((ours - theirs.double()).norm() / theirs.double().norm())
    assert off <= tolerance, off


def walk(process: Any, table: Tensor, x: Tensor, noises: list[Tensor], speak: Callable[[Tensor, float], Tensor] = said) -> Iterator[Tensor]:
    """x after each row."""
    D_1, anchor, D_2 = torch.zeros_like(x), x, torch.zeros_like(x)
    for row, one in zip(table, noises, strict=True):
        t_B = row[:1]
        D, share = process.read(speak(x, float(process.clock(t_B))), x, t_B)
        x, D_1, anchor, D_2 = advance(row[None], x, D, D_1, anchor, D_2, one.double(), share)
        yield x


def compare(
    process: DDPM, how: Sampling, scheduler: Any, channels: int = 3, upto: int | None = None, tolerance: float = TOLERANCE, **step: Any
) -> None:
    """All steps of both. `step`: of the scheduler's step(); variance_noise=True hands each step's noise over, a generator draws it."""
    scheduler.set_timesteps(how.steps)
    table = process.table(how)
    torch.testing.assert_close(process.clock(table[:, 0]), scheduler.timesteps.double(), atol=1e-4, rtol=0)
    noises = fresh(len(table))
    x, theirs = fresh(1, seed=0)[0].double(), fresh(1, seed=0)[0]
    by_sigma = how.sampler in ("euler", "euler_a", "heun")
    alphas = process.schedule.alpha(table[:, [0, 7]])
    theirs = theirs / alphas[0, 0].float() if by_sigma else theirs
    hand = step.pop("variance_noise", False)
    found = walk(process, table, x, noises, lambda x, clock: said(x, clock, channels))
    for i, (x, timestep) in enumerate(zip(found, scheduler.timesteps, strict=True)):
        if i == upto:
            return
        heard = said(scheduler.scale_model_input(theirs, timestep), float(timestep), channels).float()
        given = {"variance_noise": noises[i]} if hand else {}
        theirs = scheduler.step(heard, timestep, theirs, **given, **step).prev_sample
        close(x, theirs * alphas[i, 1].float() if by_sigma else theirs, tolerance)


def ready(target: str = "eps", **config: Any) -> DDPM:
    return DDPM(Config(target=target, **config))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    diffusers.logging.set_verbosity_error()


# --- noise ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), [("linear", "linear"), ("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")])
def test_betas(ours: str, theirs: str, zero: bool) -> None:
    """The same betas, alpha-bar, noised pictures and v; with zero terminal SNR the last alpha is exactly 0."""
    scheduler = diffusers.DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=theirs, rescale_betas_zero_snr=zero)
    process = ready("v", beta_schedule=ours, beta_start=0.00085, beta_end=0.012, zero_terminal_snr=zero)
    if not zero:
        betas = noise.betas(ours, 1000, 0.00085, 0.012)
        torch.testing.assert_close(betas.float(), scheduler.betas, atol=1e-7, rtol=1e-5)
    k = torch.arange(1, 1001, dtype=torch.float64) / 1000
    torch.testing.assert_close(process.schedule.alpha(k) ** 2, scheduler.alphas_cumprod.double(), atol=1e-6, rtol=1e-4)
    assert float(process.schedule.alpha(k)[-1]) == 0 or not zero
    x0, eps = torch.randn(2, 1000, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    steps = torch.arange(1000)
    torch.testing.assert_close(process.corrupt(x0, k, eps), scheduler.add_noise(x0, eps, steps), atol=5e-5, rtol=1e-4)
    torch.testing.assert_close(process.schedule.velocity(x0, k, eps), scheduler.get_velocity(x0, eps, steps), atol=5e-5, rtol=1e-4)
    assert process.clock(k).tolist() == steps.tolist() and process.clock(k.float()).tolist() == steps.tolist()


# --- the chain --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [*STEPS, 7])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
def test_ddpm(variance: str, spacing: str, steps: int) -> None:
    scheduler = diffusers.DDPMScheduler(variance_type=variance, timestep_spacing=spacing, clip_sample=False)
    process = ready(variance=variance)
    # diffusers draws nothing at t = 0; else as many numbers as ours, from the same generator
    upto = steps - 1 if spacing == "trailing" and variance != "fixed_small" else None
    compare(
        process, Sampling(sampler="ddpm", steps=steps, spacing=spacing), scheduler,  # type: ignore[arg-type]
        channels=6 if variance == "learned_range" else 3, upto=upto, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("ours", "theirs"), [("scaled_linear", "scaled_linear"), ("cosine", "squaredcos_cap_v2")])
def test_ddpm_targets_and_betas(target: str, ours: str, theirs: str) -> None:
    scheduler = diffusers.DDPMScheduler(
        variance_type="fixed_large", prediction_type=TARGETS[target], beta_schedule=theirs, beta_start=0.00085, beta_end=0.012,
        clip_sample=False,
    )  # fmt: skip
    process = ready(target, beta_schedule=ours, beta_start=0.00085, beta_end=0.012)
    compare(process, Sampling(sampler="ddpm", steps=10, spacing="leading"), scheduler, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("timestep", [1, 40, 500, 999])
def test_learned_variance(timestep: int) -> None:
    """Improved DDPM's eq. 15 for all that a network may say in -1..1, at single steps of the chain."""
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range")
    process, words = ready(variance="learned_range"), torch.linspace(-1, 1, 9).view(1, 1, 3, 3)
    _, share = process.read(torch.cat([words, words], dim=1), words, torch.tensor([(timestep + 1) / 1000]))
    rows = process.table(Sampling(sampler="ddpm", steps=1000))
    row = rows[rows[:, 0] == (timestep + 1) / 1000].float()
    blank = torch.zeros_like(words)
    x, *_ = advance(row, blank, blank, blank, blank, None, torch.ones_like(words), share)
    theirs = scheduler._get_variance(timestep, predicted_variance=words)  # the logarithm
    torch.testing.assert_close(2 * x.log(), theirs, atol=2e-5, rtol=2e-5)


# --- DDIM -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(spacing: str, eta: float, steps: int) -> None:
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, clip_sample=False)
    how = Sampling(sampler="ddim", eta=eta, steps=steps, spacing=spacing)  # type: ignore[arg-type]
    compare(ready(), how, scheduler, eta=eta, variance_noise=True)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("steps", [1, 7, 20, 50])
def test_ddim_of_stable_diffusion(steps: int, eta: float, target: str) -> None:
    """Steps from 1 on, and the first noise instead of clean data at the end."""
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False, clip_sample=False,
        prediction_type=TARGETS[target],
    )  # fmt: skip
    sd = SIZES["sd"]
    process = ready(
        target, beta_schedule=sd.beta_schedule, beta_start=sd.beta_start, beta_end=sd.beta_end, offset=sd.offset, last=sd.last,
        variance=sd.variance,
    )  # fmt: skip
    how = Sampling(sampler="ddim", eta=eta, steps=steps, spacing="leading")
    assert process.table(how)[-1, 7] == 0.001
    compare(process, how, scheduler, eta=eta, variance_noise=True, tolerance=ALONE if steps == 1 else TOLERANCE)


@pytest.mark.parametrize("target", ["v", "x0"])
@pytest.mark.parametrize("steps", STEPS)
def test_zero_terminal_snr(steps: int, target: str) -> None:
    scheduler = diffusers.DDIMScheduler(
        prediction_type=TARGETS[target], timestep_spacing="trailing", rescale_betas_zero_snr=True, clip_sample=False
    )
    process = ready(target, zero_terminal_snr=True)
    assert process.table(Sampling(steps=steps))[0, 0] == 1
    compare(process, Sampling(steps=steps), scheduler)


@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_where_diffusers_looks_elsewhere(spacing: str) -> None:
    """The visited steps are the same also there; what a step leads to is not, and ours is consistent."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(7)
    process, how = ready(), Sampling(steps=7, spacing=spacing)  # type: ignore[arg-type]
    assert process.timesteps(how).tolist() == scheduler.timesteps.tolist()
    table = process.table(how)
    assert torch.equal(table[1:, 0], table[:-1, 7])
    assert not torch.equal(scheduler.timesteps[1:], scheduler.timesteps[:-1] - 1000 // 7)


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim_inversion(spacing: str, steps: int) -> None:
    scheduler = diffusers.DDIMInverseScheduler(timestep_spacing=spacing, clip_sample=False)
    scheduler.set_timesteps(steps)
    process, how = ready(), Sampling(steps=steps, spacing=spacing)  # type: ignore[arg-type]
    grid = torch.cat([(process.timesteps(how) + 1) / 1000, torch.zeros(1, dtype=torch.float64)])
    table, theirs = ddim_inversion(process.schedule, grid), fresh(1, seed=0)[0]
    assert process.clock(table[:, 0]).tolist() == scheduler.timesteps.tolist()
    ours = list(walk(process, table, theirs.double(), fresh(steps)))
    for x, timestep in zip(ours, scheduler.timesteps, strict=True):
        theirs = scheduler.step(said(theirs, float(timestep)).float(), timestep, theirs).prev_sample
        close(x, theirs)

    class Speaks(nn.Module):
        def forward(self, x: Tensor, clock_B: Tensor, cond: Any) -> Tensor:
            return said(x, float(clock_B[0])).float()

    close(process.invert(Speaks(), fresh(1, seed=0)[0], labels(0), how).double(), theirs)


# --- by sigma ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", ["euler", "euler_a", "heun"])
def test_by_sigma(sampler: str, spacing: str, steps: int) -> None:
    """Linspace lands between the steps of training, where sigma / alpha is told by a straight line."""
    kind = {"euler": "EulerDiscreteScheduler", "euler_a": "EulerAncestralDiscreteScheduler", "heun": "HeunDiscreteScheduler"}[sampler]
    scheduler = getattr(diffusers, kind)(beta_start=0.0001, beta_end=0.02, timestep_spacing=spacing)
    generator: dict[str, Any] = {"generator": torch.Generator().manual_seed(1)} if sampler == "euler_a" else {}
    process, how = ready(), Sampling(sampler=sampler, steps=steps, spacing=spacing)  # type: ignore[arg-type]
    tolerance = ALONE if (spacing, steps) == ("linspace", 1) else TOLERANCE
    compare(process, how, scheduler, tolerance=tolerance, **generator)
    eps = Rng.of_seeds([3]).normal("start", SHAPE[1:])
    state = process.begin(nn.Identity(), labels(0), labels(0), how, Start(shape=SHAPE[1:]), Rng.of_seeds([3]))
    alpha = process.schedule.alpha(process.table(how)[0, 0]).float()
    close(state.x.double(), eps * scheduler.init_noise_sigma * alpha, 5 * tolerance)


@pytest.mark.parametrize(("sampler", "target"), [("euler", "x0"), ("euler", "v"), ("euler_a", "v"), ("heun", "x0"), ("heun", "v")])
def test_by_sigma_targets(sampler: str, target: str) -> None:
    kind = {"euler": "EulerDiscreteScheduler", "euler_a": "EulerAncestralDiscreteScheduler", "heun": "HeunDiscreteScheduler"}[sampler]
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = getattr(diffusers, kind)(**betas, prediction_type=TARGETS[target], steps_offset=1, timestep_spacing="leading")
    generator: dict[str, Any] = {"generator": torch.Generator().manual_seed(1)} if sampler == "euler_a" else {}
    how = Sampling(sampler=sampler, steps=12, spacing="leading")  # type: ignore[arg-type]
    compare(ready(target, **betas, offset=1, last="first"), how, scheduler, **generator)


# --- multistep --------------------------------------------------------------------------------------------------------------


def multistep(sampler: str, **config: Any) -> Any:
    if sampler == "unipc":
        return diffusers.UniPCMultistepScheduler(solver_order=2, solver_type="bh2", **config)
    kind = {"dpmpp_2m": "dpmsolver++", "dpmpp_2m_sde": "sde-dpmsolver++"}[sampler]
    return diffusers.DPMSolverMultistepScheduler(algorithm_type=kind, solver_order=2, solver_type="midpoint", **config)


@pytest.mark.parametrize("steps", [*STEPS, 3, 7])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_multistep(sampler: str, spacing: str, steps: int) -> None:
    scheduler = multistep(sampler, timestep_spacing=spacing)
    how = Sampling(sampler=sampler, steps=steps, spacing=spacing)  # type: ignore[arg-type]
    compare(ready(), how, scheduler, **({"variance_noise": True} if sampler == "dpmpp_2m_sde" else {}))


@pytest.mark.parametrize("target", ["x0", "v"])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "dpmpp_2m_sde", "unipc"])
def test_multistep_targets(sampler: str, target: str) -> None:
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = multistep(sampler, **betas, prediction_type=TARGETS[target], steps_offset=1, timestep_spacing="leading")
    how = Sampling(sampler=sampler, steps=12, spacing="leading")  # type: ignore[arg-type]
    given = {"variance_noise": True} if sampler == "dpmpp_2m_sde" else {}
    compare(ready(target, **betas, offset=1, last="first"), how, scheduler, **given)


# --- EDM --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 5, 10, 20])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "dpmpp_2m_sde"])
def test_edm(sampler: str, steps: int) -> None:
    """The paper's noises and preconditioning; theirs divides x by nothing else."""
    process, how = EDM(EDMConfig(sigma_data=0.5)), EDMSampling(sampler=sampler, steps=steps)  # type: ignore[arg-type]
    if sampler == "euler":
        scheduler: Any = diffusers.EDMEulerScheduler()
    else:
        kind = {"dpmpp_2m": "dpmsolver++", "dpmpp_2m_sde": "sde-dpmsolver++"}[sampler]
        scheduler = diffusers.EDMDPMSolverMultistepScheduler(algorithm_type=kind, solver_order=2)
    scheduler.set_timesteps(steps)
    table = process.table(how)
    torch.testing.assert_close(process.schedule.sigma(table[:, 0]), scheduler.sigmas[:-1].double(), atol=0, rtol=1e-5)
    torch.testing.assert_close(process.clock(table[:, 0]), scheduler.timesteps.double(), atol=1e-5, rtol=1e-5)

    def speak(x: Tensor, clock: float) -> Tensor:
        c_skip, c_out, c_in = process.scalings(torch.tensor(clock, dtype=torch.float64))
        return c_skip * x + c_out * said(c_in * x, clock)

    theirs, drawn = 80 * fresh(1, seed=0)[0], torch.Generator().manual_seed(1)
    given = {"generator": drawn} if sampler == "dpmpp_2m_sde" else {}
    for x, timestep in zip(walk(process, table, theirs.double(), fresh(steps), speak), scheduler.timesteps, strict=True):
        heard = said(scheduler.scale_model_input(theirs, timestep), float(timestep)).float()
        theirs = scheduler.step(heard, timestep, theirs, **given).prev_sample
        close(x, theirs, 2e-5 if steps == 2 else TOLERANCE)  # theirs takes 80 from 80 at once, in float32


# --- thresholding -----------------------------------------------------------------------------------------------------------


def test_dynamic_thresholding() -> None:
    """diffusers' own default for the largest s is 1, which is plain clipping: both are shown."""
    x0, pixels = 3 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)), LatentSpace(kind="image", shape=(3, 8, 8))
    x0[0] *= 0.1  # a row that is within the range already
    for largest, percentile in ((100.0, 0.995), (1.0, 1.0)):
        scheduler = diffusers.DDPMScheduler(thresholding=True, sample_max_value=largest)
        torch.testing.assert_close(thresholded(x0, pixels, torch.full((4,), percentile)), scheduler._threshold_sample(x0))
