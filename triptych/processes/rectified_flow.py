"""Rectified flow: a straight line from data to noise, and a network that knows which way it runs.

    x_t = (1 - t) x0 + t eps,    v = dx_t/dt = eps - x0,    D = E[x0 | x_t] = x_t - t E[v | x_t]

Liu et al., arXiv 2209.03003; Lipman et al., arXiv 2210.02747. Times are drawn logit-normally and may be shifted (SD3,
arXiv 2403.03206). The network says v, or it says x0 and is still judged by the velocity (JiT, "Back to Basics: Let Denoising
Generative Models Denoise", arXiv 2511.13720), which on few wide patches learns where v does not: noise fills the whole space
of a patch, pictures a thin sheet of it. The direction term is LightningDiT's (arXiv 2501.01423).

Shapes: z, x, noise [B, *shape], float32; t [B] in [0, 1]; the network's clock is 1000 t.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.contracts import Condition, Latents, Rng, Start, State
from triptych.processes import noise
from triptych.processes.guidance import guided
from triptych.processes.solvers import SOLVERS, advance

__all__ = ["RectifiedFlow", "Config", "SIZES", "Sampling"]


def _within(name: str, value: Any, low: float, high: float) -> None:
    if not low <= value <= high:  # also false for nan
        raise ValueError(f"{name} = {value!r}: must be in {low}..{high}")


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")


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

    steps: int = field(default=20, metadata={"range": (1, 1000), "help": "steps from noise to picture (heun evaluates twice a step)"})
    guidance: float = field(default=3.0, metadata={"range": (0.0, 50.0), "help": "how strongly the words pull; 1.0 = off"})
    sampler: Literal["dpmpp_2m", "euler", "heun"] = field(default="dpmpp_2m", metadata={"help": "the solver of the ODE"})
    shift: float = field(default=1.0, metadata={"range": (0.01, 100.0), "help": "more than 1 spends more steps on the noisy times"})
    interval: tuple[float, float] = field(default=(0.0, 1.0), metadata={"range": (0.0, 1.0), "help": "times t in which guidance acts"})

    def __post_init__(self) -> None:
        if self.steps != int(self.steps):
            raise ValueError(f"steps = {self.steps!r}: must be a whole number in 1..1000")
        _one_of("sampler", self.sampler, tuple(SOLVERS))
        for one in fields(self):
            value = getattr(self, one.name)
            for number in value if isinstance(value, tuple) else (value,):
                if "range" in one.metadata:
                    _within(one.name, number, *one.metadata["range"])
        if len(self.interval) != 2 or self.interval[0] > self.interval[1]:
            raise ValueError(f"interval = {self.interval!r}: must be two times, low then high, in 0.0..1.0")


class RectifiedFlow:
    """The process. It learns nothing of its own; `config` is all it is.

    The rows of a State keep, in `extra`: table [B, K, 8], scale [B], interval [B, 2] (on the CPU, with index and total: what
    is done next is decided without waiting for a device); x-shaped D_prev, anchor, noise, z0; mask [B, 1, ...].
    """

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
        size, device = (len(rng), *start.shape), next((p.device for p in network.parameters()), torch.device("cpu"))
        _within("strength", start.strength, 0.001, 1.0)
        if start.z0 is None and (start.strength < 1 or start.mask is not None):
            raise ValueError("strength below 1 and a mask both speak of a start image: give z0 as well")
        eps = rng.normal("start", start.shape) if start.noise is None else _fitting("noise", start.noise, size)
        z0 = torch.zeros(size) if start.z0 is None else _fitting("z0", start.z0, size)
        mask_size = (size[0], 1, *size[2:])
        mask = torch.ones(mask_size) if start.mask is None else _fitting("mask", start.mask, mask_size)
        eps, z0, mask = (one.to(device, torch.float32) for one in (eps, z0, mask))

        steps = max(1, round(how.steps * start.strength))
        table = SOLVERS[how.sampler](self.schedule, noise.uniform(steps, how.shift, start.strength)).float()
        x = eps if start.strength == 1 else self.corrupt(z0, torch.full(size[:1], start.strength), eps)
        listen = getattr(network, "prepare", None) or (lambda said: said)
        return State(
            x=x, index_B=torch.zeros(size[0], dtype=torch.int64), total_B=torch.full(size[:1], len(table), dtype=torch.int64),
            cond=listen(cond), null=listen(null), rng=rng,
            extra={
                "table": table.expand(size[0], -1, -1), "scale": torch.full(size[:1], float(how.guidance)),
                "interval": torch.tensor(how.interval, dtype=torch.float32).expand(size[0], -1),
                "D_prev": torch.zeros_like(x), "anchor": x, "noise": eps, "z0": z0, "mask": mask,
            },
        )  # fmt: skip

    def step(self, network: nn.Module, state: State) -> State:
        """One evaluation of the network for all rows that are not done."""
        live_B = ~state.done_B
        if not live_B.all():
            return state.put(live_B, self.step(network, state.rows(live_B))) if live_B.any() else state
        extra, x = state.extra, state.x
        rows_B8 = extra["table"][torch.arange(len(x)), state.index_B]
        t_B, s_B, t_next_B = rows_B8[:, 0], rows_B8[:, 5], rows_B8[:, 7]
        denoiser = guided(network, state.null, extra["scale"], self.clock(extra["interval"]))
        out = denoiser(x, self.clock(t_B), state.cond).to(x.dtype)
        D = self.schedule.convert(out, x, t_B, source=self.config.target, to="x0")
        fresh = state.rng.normal("step", x.shape[1:], state.index_B.tolist()).to(x.device) if s_B.any() else None
        x, D_prev, anchor = advance(rows_B8, x, D, extra["D_prev"], extra["anchor"], fresh)
        x = torch.lerp(self.corrupt(extra["z0"], t_next_B, extra["noise"]), x, extra["mask"])  # lerp is exact at 0 and 1
        return replace(state, x=x, index_B=state.index_B + 1, extra=extra | {"D_prev": D_prev, "anchor": anchor})

    def preview(self, state: State) -> Tensor:
        """The x0 that each row believed in last; the result itself where it is done."""
        guess = torch.lerp(state.extra["z0"], state.extra["D_prev"], state.extra["mask"])
        return torch.where(noise.spread(state.done_B, guess) > 0, state.x, guess)


def _fitting(name: str, tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != size:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; here it must be {size}")
    return tensor
