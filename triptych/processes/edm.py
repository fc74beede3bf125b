"""EDM: noise of any size added to data, and a network whose inputs, outputs and training weights all have the size of one.

    x = x0 + sigma eps,   D(x, sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4),   loss = lambda(sigma) |D - x0|^2

    c_skip = s^2 / (sigma^2 + s^2),   c_out = sigma s / sqrt(sigma^2 + s^2),   c_in = 1 / sqrt(sigma^2 + s^2),   lambda = 1 / c_out^2

(Karras et al., Elucidating the Design Space of Diffusion-Based Generative Models, arXiv 2206.00364, table 1; s = sigma_data, which is
1 here, for latents are standardised.) Noise is drawn log-normally in training. Drawing goes from sigma_max to sigma_min by steps that
are equal in sigma^(1 / rho), and then to 0: Heun's method (algorithm 1), with churn its stochastic form (algorithm 2).

Time: sigma(t) = sigma_max t^rho, so that t = 0 is data and t = 1 noise alone. Shapes: z, x, noise [B, *shape], float32; t [B].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from triptych.contracts import Latents, Rng
from triptych.processes import drawing, solvers
from triptych.processes.drawing import THRESHOLDS, within
from triptych.processes.noise import Schedule, spread
from triptych.processes.precondition import Preconditioned

__all__ = ["EDM", "Config", "SIZES", "Sampling"]

SAMPLERS = ("heun", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc")


@dataclass(frozen=True, kw_only=True)
class Config:
    """mean, std: of ln sigma in training.  sigma_data: of the latents.  sigma_max, rho: how t counts sigma."""

    mean: float = -1.2
    std: float = 1.2
    sigma_data: float = 1.0
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        within("std", self.std, 0.0, 10.0)
        within("sigma_data", self.sigma_data, 1e-3, 100.0)
        within("sigma_max", self.sigma_max, 1.0, 1e4)
        within("rho", self.rho, 1.0, 100.0)


SIZES = {"tiny": Config(), "edm": Config(sigma_data=0.5), "words": Config(mean=0.4, std=1.6)}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a picture is drawn. Raises ValueError, with the allowed range."""

    steps: int = field(
        default=18, metadata={"range": (1, 1000), "whole": True, "help": "steps from noise to picture (heun asks twice a step)"}
    )
    guidance: float = field(default=1.0, metadata={"range": (0.0, 50.0), "help": "how strongly the condition pulls; 1.0 = off"})
    sampler: Literal["heun", "euler", "euler_a", "dpmpp_2m", "dpmpp_2m_sde", "unipc"] = field(
        default="heun", metadata={"one_of": SAMPLERS, "help": "the solver of the ODE; euler_a and dpmpp_2m_sde add noise"}
    )
    churn: float = field(default=0.0, metadata={"range": (0.0, 1000.0), "help": "S_churn: fresh noise, of heun alone; 0 = off"})
    sigma_min: float = field(default=0.002, metadata={"range": (1e-5, 1.0), "help": "the last noise before none"})
    interval: tuple[float, float] = field(default=(0.0, 1.0), metadata={"range": (0.0, 1.0), "help": "times t in which guidance acts"})
    threshold: Literal["none", "static", "dynamic"] = field(
        default="none", metadata={"one_of": THRESHOLDS, "help": "keep each guess of the picture in the range of pixels (pixel models only)"}
    )

    def __post_init__(self) -> None:
        drawing.check(self)
        if self.churn and self.sampler != "heun":
            raise ValueError(f"churn = {self.churn} is heun's; sampler = {self.sampler} has noise of its own or none: set churn = 0")


class EDM(drawing.Denoising):
    """The process. It learns nothing of its own; `config` is all it is."""

    Sampling = Sampling
    says = "x0"  # as `around(network)` does

    def __init__(self, config: Config) -> None:
        c = self.config = config
        self.schedule = Schedule(
            alpha=torch.ones_like, sigma=lambda t: c.sigma_max * t**c.rho, dalpha=torch.zeros_like, dsigma=torch.ones_like
        )

    # --- learning

    def clock(self, t: Tensor) -> Tensor:
        """c_noise = ln(sigma) / 4; -inf at t = 0."""
        return self.schedule.sigma(t).log() / 4

    def time(self, clock: Tensor) -> Tensor:
        """The time t of a clock."""
        return self._time_of(torch.exp(4 * clock))

    def _time_of(self, sigma: Tensor) -> Tensor:
        return (sigma / self.config.sigma_max) ** (1 / self.config.rho)

    def scalings(self, clock_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in."""
        sigma, s = torch.exp(4 * clock_B), self.config.sigma_data
        total = sigma**2 + s**2
        return s**2 / total, sigma * s * total.rsqrt(), total.rsqrt()

    def around(self, network: nn.Module) -> Preconditioned:
        """What says D: the network, preconditioned."""
        return Preconditioned(network, self.scalings)

    def rows(self, network: nn.Module, batch: Latents, u_B: Tensor, eps: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Per row, at the quantiles u of the training's noise."""
        c, x0 = self.config, batch.z.float()
        sigma_B = torch.exp(c.mean + c.std * torch.special.ndtri(u_B.clamp(1e-6, 1 - 1e-6))).to(x0.device)
        x = x0 + spread(sigma_B, x0) * eps.to(x0.device).float()
        clock_B = sigma_B.log() / 4
        D = self.around(network)(x, clock_B, batch.cond)
        x0_mse = (D - x0).square().flatten(1).mean(1)
        _, c_out, _ = self.scalings(clock_B)
        return {"loss": x0_mse / c_out**2, "x0_mse": x0_mse.detach()}

    # --- drawing

    def table(self, how: Sampling, strength: float = 1.0) -> Tensor:
        """The rows of these settings, [K, 15]: from sigma_max, or for a picture from the noise of t = strength, to sigma_min, and to 0."""
        last = float(self._time_of(torch.tensor(how.sigma_min, dtype=torch.float64)))
        steps = max(1, round(how.steps * strength)) if strength > last else 1
        kept = torch.linspace(strength, last, steps, dtype=torch.float64) if steps > 1 else torch.tensor([strength]).double()
        grid = torch.cat([kept, torch.zeros(1, dtype=torch.float64)])
        if how.sampler == "euler":
            return solvers.ddim(self.schedule, grid)
        if how.sampler != "heun":
            return getattr(solvers, how.sampler)(self.schedule, grid)
        if not how.churn:
            return solvers.heun_edm(self.schedule, grid)
        gamma = torch.full((steps,), min(how.churn / steps, 2**0.5 - 1), dtype=torch.float64)
        gamma[0] = 0.0  # more noise than noise alone is no other thing
        return solvers.heun_edm(self.schedule, grid, self._time_of(self.schedule.sigma(kept) * (1 + gamma)))

    def read(self, out: Tensor, x_t: Tensor, t_B: Tensor) -> tuple[Tensor, None]:
        """D, as `around(network)` says it."""
        return out, None
