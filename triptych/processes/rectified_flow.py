"""Rectified flow: a straight line from data to noise, and a network that knows which way it runs.

    x_t = (1 - t) x0 + t eps,    v = dx_t/dt = eps - x0,    D = E[x0 | x_t] = x_t - t E[v | x_t]

Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747. Times are drawn logit-normally and may be shifted (SD3,
arXiv 2403.03206). The network says v, or it says x0 and is still judged by the velocity (JiT, "Back to Basics: Let Denoising
Generative Models Denoise", arXiv 2511.13720), which on few wide patches learns where v does not: noise fills the whole space
of a patch, pictures a thin sheet of it. The direction term is LightningDiT's (arXiv 2501.01423).

Shapes: z, x, noise [B, *shape], float32; t [B] in [0, 1]; the network's clock is 1000 t.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.contracts import Latents, Rng
from triptych.processes import drawing, noise
from triptych.processes.drawing import one_of as _one_of
from triptych.processes.drawing import within as _within
from triptych.processes.solvers import SOLVERS

__all__ = ["RectifiedFlow", "Config", "SIZES", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """target: what the network says.  loss: the space in which it is judged; x0 error = t x velocity error.

    mean, std: of logit(t) in training; mean > 0 leans towards noise.  uniform: the share of times drawn uniformly instead,
    so that no time is rare.  shift: SD3's, of training times (more than 1 for larger pictures).
    direction: weight of 1 - cos(v-hat, v) over channels, 0 = off.
    t_min: 1 / t in the velocity of an x0 target is held at 1 / t_min.
    """

    target: Literal["v", "x0"] = "x0"
    loss: Literal["v", "x0"] = "v"
    mean: float = 0.0
    std: float = 1.0
    uniform: float = 0.1
    shift: float = 1.0
    direction: float = 0.0
    t_min: float = 0.05

    def __post_init__(self) -> None:
        _one_of("target", self.target, ("v", "x0"))
        _one_of("loss", self.loss, ("v", "x0"))
        _within("std", self.std, 0.0, 10.0)
        _within("uniform", self.uniform, 0.0, 1.0)
        _within("shift", self.shift, 0.01, 100.0)
        _within("direction", self.direction, 0.0, 100.0)
        _within("t_min", self.t_min, 1e-4, 1.0)


SIZES = {"tiny": Config(), "sd3": Config(target="v", uniform=0.0), "jit": Config(mean=0.8, std=0.8, uniform=0.0)}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a picture is drawn. Each field's metadata holds its range and one line of help, for CLI, API and page.

    Raises ValueError, with the allowed range.
    """

    steps: int = field(
        default=20, metadata={"range": (1, 1000), "whole": True, "help": "steps from noise to picture (heun evaluates twice a step)"}
    )
    guidance: float = field(default=3.0, metadata={"range": (0.0, 50.0), "help": "how strongly the words pull; 1.0 = off"})
    sampler: Literal["dpmpp_2m", "euler", "heun"] = field(
        default="dpmpp_2m", metadata={"one_of": tuple(SOLVERS), "help": "the solver of the ODE"}
    )
    shift: float = field(default=1.0, metadata={"range": (0.01, 100.0), "help": "more than 1 spends more steps on the noisy times"})
    interval: tuple[float, float] = field(default=(0.0, 1.0), metadata={"range": (0.0, 1.0), "help": "times t in which guidance acts"})

    def __post_init__(self) -> None:
        drawing.check(self)


class RectifiedFlow(drawing.Denoising):
    """The process. It learns nothing of its own; `config` is all it is."""

    Sampling = Sampling
    quantiles = (2,)

    def __init__(self, config: Config) -> None:
        self.config = config
        self.schedule = noise.linear()

    # --- learning

    def clock(self, t: Tensor) -> Tensor:
        """Time in the network's unit: 1000 t."""
        return 1000 * t

    def time(self, clock: Tensor) -> Tensor:
        """The time t of a clock."""
        return clock / 1000

    def times(self, u_B2: Tensor) -> Tensor:
        """Training times [B] from uniform numbers: the first chooses the part of the mixture, the second is the quantile."""
        which, u = u_B2.unbind(-1)
        normal = torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
        t = torch.where(which < self.config.uniform, u, torch.sigmoid(self.config.mean + self.config.std * normal))
        return noise.shifted(t, self.config.shift)

    def rows(self, network: nn.Module, batch: Latents, u_B: Tensor, eps: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Losses of each row: loss, x0_mse, v_mse (and direction); u_B [B, 2] as of `times`."""
        return self._losses(network, batch, self.times(u_B), eps)

    def _losses(self, network: nn.Module, batch: Latents, t_B: Tensor, eps: Tensor) -> dict[str, Tensor]:
        """Per row. Errors of x0 and v are one another's multiple, |v-hat - v| = |x0-hat - x0| / t: one is measured, both are known."""
        x0, eps, t_B = batch.z.float(), eps.to(batch.z.device).float(), t_B.to(batch.z.device)
        x_t = self.corrupt(x0, t_B, eps)
        out = network(x_t, self.clock(t_B), batch.cond).float()
        by_x0 = self.config.target == "x0"
        wanted = x0 if by_x0 else self.schedule.velocity(x0, t_B, eps)
        error_B = (out - wanted).square().flatten(1).mean(1)
        held_B = t_B.clamp_min(self.config.t_min)  # JiT: 1 / t is bounded, in prediction and truth alike
        x0_mse = error_B if by_x0 else error_B * t_B.square()
        v_mse = error_B / held_B.square() if by_x0 else error_B
        rows = {"loss": v_mse if self.config.loss == "v" else x0_mse, "x0_mse": x0_mse.detach(), "v_mse": v_mse.detach()}
        if self.config.direction:
            held = noise.spread(held_B, x_t)
            v_hat, v = ((x_t - out) / held, (x_t - x0) / held) if by_x0 else (out, wanted)
            away = (1 - F.cosine_similarity(v_hat, v, dim=1)).flatten(1).mean(1)
            rows |= {"loss": rows["loss"] + self.config.direction * away, "direction": away.detach()}
        return rows

    # --- drawing

    def table(self, how: Sampling, strength: float = 1.0) -> Tensor:
        """The rows of these settings, [K, 15]: from t = strength to 0 in that share of the steps."""
        grid = noise.uniform(max(1, round(how.steps * strength)), how.shift, strength)
        return SOLVERS[how.sampler](self.schedule, grid)

    def read(self, out: Tensor, x_t: Tensor, t_B: Tensor) -> tuple[Tensor, None]:
        """D from what the network says."""
        return self.schedule.convert(out, x_t, t_B, source=self.config.target, to="x0"), None
