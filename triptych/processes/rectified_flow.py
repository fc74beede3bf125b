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

from triptych.contracts import Condition, Latents, Rng, Start, State
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


class RectifiedFlow:
    """The process. It learns nothing of its own; `config` is all it is."""

    drives = "denoiser"
    Sampling = Sampling
    abilities = frozenset({"negative", "start image", "mask", "preview"})

    def __init__(self, config: Config) -> None:
        self.config = config
        self.schedule = noise.linear()

    # --- learning

    def prepare(self, network: nn.Module, teacher: nn.Module | None = None) -> nn.ModuleDict:
        return nn.ModuleDict()

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def after_step(self, network: nn.Module, phase: str, step: int) -> None:
        return None

    def clock(self, t: Tensor) -> Tensor:
        """Time in the network's unit: 1000 t."""
        return 1000 * t

    def time(self, clock: Tensor) -> Tensor:
        """The time t of a clock."""
        return clock / 1000

    def corrupt(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = (1 - t) x0 + t eps; t [B]."""
        return self.schedule.corrupt(x0, t, eps)

    def times(self, u_B2: Tensor) -> Tensor:
        """Training times [B] from uniform numbers: the first chooses the part of the mixture, the second is the quantile."""
        which, u = u_B2.unbind(-1)
        normal = torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
        t = torch.where(which < self.config.uniform, u, torch.sigmoid(self.config.mean + self.config.std * normal))
        return noise.shifted(t, self.config.shift)

    def losses(self, network: nn.Module, batch: Latents, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """loss, and for the log x0_mse, v_mse (and direction). `batch.cond` is heard as it is: dropout happened before."""
        eps = rng.normal("noise", batch.z.shape[1:]) if batch.noise is None else batch.noise
        rows = self._losses(network, batch, self.times(rng.uniform("t", (2,))), eps)
        means = {name: value.mean() for name, value in rows.items()}
        return {name: mean if name == "loss" else mean.detach() for name, mean in means.items()}

    @torch.no_grad()
    def validate(self, network: nn.Module, batch: Latents, rng: Rng, draws: int = 4) -> dict[str, Tensor]:
        """The expected losses of each row, [B]: `draws` noises and times that depend on the row's key alone, so that two
        evaluations differ by the network only; the times are stratified over the training distribution's quantiles."""
        every: list[dict[str, Tensor]] = []
        for k in range(draws):
            u = rng.uniform("validate t", (2,), step=k)
            u = torch.stack([u[:, 0], (k + u[:, 1]) / draws], dim=1)
            eps = rng.normal("validate noise", batch.z.shape[1:], step=k) if batch.noise is None else batch.noise
            every.append(self._losses(network, batch, self.times(u), eps))
        return {name: torch.stack([one[name] for one in every]).mean(0) for name in every[0]}

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

    def begin(self, network: nn.Module, cond: Condition, null: Condition, how: Sampling, start: Start, rng: Rng) -> State:
        """B rows at the start of the same settings; rows of different settings meet by `State.cat`.

        img2img starts at time `strength` from z0 with that much noise, and takes that share of the steps. Raises ValueError
        for a start whose tensors do not fit one another.
        """
        _within("strength", start.strength, 0.001, 1.0)
        grid = noise.uniform(max(1, round(how.steps * start.strength)), how.shift, start.strength)
        return drawing.begin(self, network, cond, null, how, start, rng, SOLVERS[how.sampler](self.schedule, grid))

    def read(self, out: Tensor, x_t: Tensor, t_B: Tensor) -> tuple[Tensor, None]:
        """D from what the network says."""
        return self.schedule.convert(out, x_t, t_B, source=self.config.target, to="x0"), None

    def step(self, network: nn.Module, state: State) -> State:
        """One evaluation of the network for all rows that are not done."""
        return drawing.step(self, network, state)

    def preview(self, state: State) -> Tensor:
        """The x0 that each row believed in last; the result itself where it is done."""
        return drawing.preview(state)
