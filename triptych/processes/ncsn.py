"""Score matching with Langevin dynamics: learn which way data lie at L sizes of noise, and walk there, the noise shrinking.

    x = x0 + sigma_i eps,   loss = sigma_i^2 / 2 |s(x, sigma_i) + eps / sigma_i|^2,   sigma_1 > ... > sigma_L geometric

(Song & Ermon, Generative Modeling by Estimating Gradients of the Data Distribution, arXiv 1907.05600, eq. 5, 6, algorithm 1; the
recommendations of arXiv 2006.09011: sigma_1 as large as distances between data, s(x, sigma) = f(x) / sigma, a last step of pure
denoising.) The network says eps-hat = -sigma s. It is given x at the size of one, as EDM does (arXiv 2206.00364, c_in), and told
ln(sigma) / 4, where the papers gave it x as it is: large numbers that a small network only suffers from.

Time: level i is t = (L + 1 - i) / L: t = 1 is sigma_1, and t = 0 data. Shapes: z, x, noise [B, *shape], float32; t [B].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from triptych.contracts import Latents, Rng
from triptych.processes import drawing, solvers
from triptych.processes.drawing import THRESHOLDS, within
from triptych.processes.noise import spread, tabled
from triptych.processes.precondition import Preconditioned

__all__ = ["NCSN", "Config", "SIZES", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """levels: L.  sigma_max, sigma_min: sigma_1 and sigma_L, in units of the latents' deviation."""

    levels: int = 50
    sigma_max: float = 40.0
    sigma_min: float = 0.02

    def __post_init__(self) -> None:
        within("levels", self.levels, 2, 10_000)
        within("sigma_min", self.sigma_min, 1e-5, self.sigma_max)


SIZES = {
    "tiny": Config(levels=10, sigma_max=10.0),
    "scenes": Config(),
    "ncsn": Config(levels=10, sigma_max=1.0, sigma_min=0.01),
    "ncsnv2": Config(levels=232, sigma_max=50.0, sigma_min=0.01),
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a picture is drawn. Raises ValueError, with the allowed range.

    step / (2 sigma_min^2), times repeats, is how much of what is too much goes at a level: it must keep up with the noise's own fall,
    ln(sigma_i / sigma_{i+1}) (arXiv 2006.09011, technique 4), or pictures end as noise; half of sigma_min^2 does, in three repeats.
    """

    repeats: int = field(default=3, metadata={"range": (1, 1000), "whole": True, "help": "T: steps of Langevin dynamics at each noise"})
    step: float = field(default=2e-4, metadata={"range": (1e-9, 1.0), "help": "epsilon: a step's size, at the last noise, of the variance"})
    guidance: float = field(default=1.0, metadata={"range": (0.0, 50.0), "help": "how strongly the condition pulls; 1.0 = off"})
    interval: tuple[float, float] = field(default=(0.0, 1.0), metadata={"range": (0.0, 1.0), "help": "times t in which guidance acts"})
    threshold: Literal["none", "static", "dynamic"] = field(
        default="none", metadata={"one_of": THRESHOLDS, "help": "keep each guess of the picture in the range of pixels (pixel models only)"}
    )

    def __post_init__(self) -> None:
        drawing.check(self)


class NCSN(drawing.Denoising):
    """The process. It learns nothing of its own; `config` is all it is."""

    Sampling = Sampling
    says = "x0"  # as `around(network)` does

    def __init__(self, config: Config) -> None:
        c = self.config = config
        share = torch.linspace(0, 1, c.levels, dtype=torch.float64)
        self.sigma_L = c.sigma_min * (c.sigma_max / c.sigma_min) ** share  # rising, as t does
        self.schedule = tabled(torch.ones_like(self.sigma_L), self.sigma_L)

    # --- learning

    def clock(self, t: Tensor) -> Tensor:
        """ln(sigma) / 4; -inf at t = 0."""
        return self.schedule.sigma(t).log() / 4

    def time(self, clock: Tensor) -> Tensor:
        """The time t of a clock: of the nearest level, or 0 for a clock far below the last."""
        apart = (torch.exp(4 * clock).log()[..., None] - self.sigma_L.to(clock.device).log().to(clock.dtype)).abs()
        t = (apart.argmin(-1) + 1) / len(self.sigma_L)
        return torch.where(torch.exp(4 * clock) < self.sigma_L[0] / 2, torch.zeros_like(t), t).to(clock.dtype)

    def scalings(self, clock_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """D = x - sigma eps-hat: c_skip, c_out, c_in."""
        sigma = torch.exp(4 * clock_B)
        return torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt()

    def around(self, network: nn.Module) -> Preconditioned:
        """What says D: the network, preconditioned."""
        return Preconditioned(network, self.scalings)

    def rows(self, network: nn.Module, batch: Latents, u_B: Tensor, eps: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Per row: sigma^2 |s + eps / sigma|^2 = |eps-hat - eps|^2, the papers' loss but for its half."""
        x0, eps = batch.z.float(), eps.to(batch.z.device).float()
        levels = len(self.sigma_L)
        sigma_B = self.sigma_L[(u_B * levels).long().clamp(max=levels - 1)].float().to(x0.device)
        sigma = spread(sigma_B, x0)
        D = self.around(network)(x0 + sigma * eps, sigma_B.log() / 4, batch.cond)
        x0_mse = (D - x0).square().flatten(1).mean(1)
        return {"loss": x0_mse / sigma_B**2, "x0_mse": x0_mse.detach()}

    # --- drawing

    def table(self, how: Sampling, strength: float = 1.0) -> Tensor:
        """The rows of these settings, [K, 15]: all levels, or for a picture those from t = strength on.

        Raises ValueError for steps so large that the walk would not stay: from one to the next x - x0 is multiplied by 1 - step / 2
        sigma_min^2.
        """
        if not how.step < 4 * self.config.sigma_min**2:
            raise ValueError(f"step = {how.step!r}: must be below 4 sigma_min^2 = {4 * self.config.sigma_min**2:g}, or the walk runs away")
        levels = max(1, round(len(self.sigma_L) * strength))
        grid = torch.arange(levels, -1, -1, dtype=torch.float64) / len(self.sigma_L)
        return solvers.langevin(self.schedule, grid, how.repeats, how.step)

    def read(self, out: Tensor, x_t: Tensor, t_B: Tensor) -> tuple[Tensor, None]:
        """D, as `around(network)` says it."""
        return out, None
