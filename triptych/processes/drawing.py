"""What every process of a denoiser does alike: learning at random times, and drawing by a table of steps, from noise to the last row.

A process is a `Denoising` that says what it does in its own way:

    schedule, clock(t_B), time(clock_B)     its noise, and time in the network's unit
    rows(network, batch, u_B, eps, rng)     -> the losses of each row, [B], at the quantiles u of the training's times
    table(how, strength)                    -> which rows its settings mean (`solvers`), and amplitude(how, table), where it starts
    read(out, x_t, t_B)                     -> D, and where the variance is learnt its share in 0..1, else None
    around(network)                         -> the denoiser that is asked, where there is more than the network (preconditioning)

The rows of a State keep, in `extra`: table [B, K, 15], scale, threshold [B] and interval [B, 2] (on the CPU, with index and total:
what is done next is decided without waiting for a device); x-shaped D_1, D_2, anchor, noise, z0; mask [B, 1, ...].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, Latents, LatentSpace, Rng, Start, State
from triptych.processes import noise
from triptych.processes.guidance import guided, innermost, thresholded
from triptych.processes.solvers import advance

__all__ = ["THRESHOLDS", "Denoising", "averaged", "check", "one_of", "within"]

THRESHOLDS = ("none", "static", "dynamic")
PERCENTILE = 0.995  # of Imagen's dynamic thresholding (arXiv 2205.11487, section 2.3)


def within(name: str, value: Any, low: float, high: float) -> None:
    """Raises ValueError for a value out of low..high, and for nan."""
    if not low <= value <= high:
        raise ValueError(f"{name} = {value!r}: must be in {low}..{high}")


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raises ValueError for another value than those."""
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(allowed)}")


def check(how: Any) -> None:
    """A Sampling against the ranges and choices that its fields' metadata hold. Raises ValueError, with what is allowed."""
    for one in fields(how):
        value = getattr(how, one.name)
        if "one_of" in one.metadata:
            one_of(one.name, value, one.metadata["one_of"])
        if one.metadata.get("whole") and value != int(value):
            low, high = one.metadata["range"]
            raise ValueError(f"{one.name} = {value!r}: must be a whole number in {low}..{high}")
        for number in value if isinstance(value, tuple) else (value,):
            if "range" in one.metadata:
                within(one.name, number, *one.metadata["range"])
    if len(how.interval) != 2 or how.interval[0] > how.interval[1]:
        raise ValueError(f"interval = {how.interval!r}: must be two times, low then high, in 0.0..1.0")


class Denoising:
    """A base of such processes, as `layers.one_phase` is of tasks: one phase, nothing learnt beside the network, nothing to do behind
    a step. One that differs says so itself."""

    drives = "denoiser"
    abilities = frozenset({"negative", "start image", "mask", "preview"})
    quantiles: tuple[int, ...] = ()  # the shape of the uniform numbers u of which a row's time is made; the last is the quantile
    schedule: noise.Schedule

    # --- what a process says itself

    def rows(self, network: nn.Module, batch: Latents, u_B: Tensor, eps: Tensor, rng: Rng) -> dict[str, Tensor]:
        raise NotImplementedError

    def clock(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    def read(self, out: Tensor, x: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor | None]:
        raise NotImplementedError

    def table(self, how: Any, strength: float = 1.0) -> Tensor:
        raise NotImplementedError

    def amplitude(self, how: Any, table: Tensor) -> float | None:
        """Of the pure noise at the start; None: what the schedule has at t = 1."""
        return None

    # --- learning

    def prepare(self, network: nn.Module, teacher: nn.Module | None = None) -> nn.ModuleDict:
        return nn.ModuleDict()

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def after_step(self, network: nn.Module, phase: str, step: int) -> None:
        return None

    def corrupt(self, x0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        """x_t = alpha(t) x0 + sigma(t) eps; t [B]."""
        return self.schedule.corrupt(x0, t, eps)

    def losses(self, network: nn.Module, batch: Latents, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """loss, and others for the log. `batch.cond` is heard as it is: dropout happened before."""
        eps = rng.normal("noise", batch.z.shape[1:]) if batch.noise is None else batch.noise
        return averaged(self.rows(network, batch, rng.uniform("t", self.quantiles), eps, rng))

    @torch.no_grad()
    def validate(self, network: nn.Module, batch: Latents, rng: Rng, draws: int = 4) -> dict[str, Tensor]:
        """The expected losses of each row, [B]: `draws` noises and times that depend on the row's key alone, so that two
        evaluations differ by the network only; the times are stratified over the training distribution's quantiles."""
        every: list[dict[str, Tensor]] = []
        for i in range(draws):
            u = rng.uniform("validate t", self.quantiles, step=i)
            if self.quantiles:
                u[:, -1] = (i + u[:, -1]) / draws
            else:
                u = (i + u) / draws
            eps = rng.normal("validate noise", batch.z.shape[1:], step=i) if batch.noise is None else batch.noise
            every.append(self.rows(network, batch, u, eps, rng))
        return {name: torch.stack([one[name] for one in every]).mean(0) for name in every[0]}

    # --- drawing

    def begin(self, network: nn.Module, cond: Condition, null: Condition, how: Any, start: Start, rng: Rng) -> State:
        """B rows at the start of the same settings; rows of different settings meet by `State.cat`.

        img2img starts at time `strength` from z0 with that much noise, and takes that share of the steps. Raises ValueError
        for a start whose tensors do not fit one another.
        """
        within("strength", start.strength, 0.001, 1.0)
        if start.z0 is None and (start.strength < 1 or start.mask is not None):
            raise ValueError("strength below 1 and a mask both speak of a start image: give z0 as well")
        size, device = (len(rng), *start.shape), next((p.device for p in network.parameters()), torch.device("cpu"))
        eps = rng.normal("start", start.shape) if start.noise is None else _fitting("noise", start.noise, size)
        z0 = torch.zeros(size) if start.z0 is None else _fitting("z0", start.z0, size)
        mask_size = (size[0], 1, *size[2:])
        mask = torch.ones(mask_size) if start.mask is None else _fitting("mask", start.mask, mask_size)
        eps, z0, mask = (one.to(device, torch.float32) for one in (eps, z0, mask))

        table = self.table(how, start.strength)
        amplitude, table = self.amplitude(how, table), table.float()
        if start.strength == 1:
            first = float(self.schedule.sigma(torch.ones((), dtype=torch.float64))) if amplitude is None else amplitude
            x = first * eps if first != 1 else eps
        else:
            x = self.corrupt(z0, table[0, 0].expand(size[0]), eps)
        listen = getattr(network, "prepare", None) or (lambda said: said)
        threshold = {"none": 0.0, "static": 1.0, "dynamic": PERCENTILE}[getattr(how, "threshold", "none")]
        return State(
            x=x, index_B=torch.zeros(size[0], dtype=torch.int64), total_B=torch.full(size[:1], len(table), dtype=torch.int64),
            cond=listen(cond), null=listen(null), rng=rng,
            extra={
                "table": table.expand(size[0], -1, -1), "scale": torch.full(size[:1], float(how.guidance)),
                "threshold": torch.full(size[:1], threshold),
                "interval": torch.tensor(how.interval, dtype=torch.float32).expand(size[0], -1),
                "D_1": torch.zeros_like(x), "D_2": torch.zeros_like(x), "anchor": x, "noise": eps, "z0": z0, "mask": mask,
            },
        )  # fmt: skip

    def step(self, network: nn.Module, state: State) -> State:
        """One evaluation of the network for all rows that are not done."""
        live_B = ~state.done_B
        if not live_B.all():
            return state.put(live_B, self.step(network, state.rows(live_B))) if live_B.any() else state
        extra, x = state.extra, state.x
        rows_BK = extra["table"][torch.arange(len(x)), state.index_B]
        t_B, s_B, t_next_B = rows_BK[:, 0], rows_BK[:, 5], rows_BK[:, 7]
        denoiser = guided(network, state.null, extra["scale"], self.clock(extra["interval"]), getattr(self, "around", None))
        out = denoiser(x, self.clock(t_B), state.cond).to(x.dtype)
        D, share = self.read(out, x, t_B)
        if extra["threshold"].any():
            D = thresholded(D, _latent(network), extra["threshold"])
        fresh = state.rng.normal("step", x.shape[1:], state.index_B.tolist()).to(x.device) if s_B.any() else None
        x, D_1, anchor, D_2 = advance(rows_BK, x, D, extra["D_1"], extra["anchor"], extra["D_2"], fresh, share)
        if not bool((extra["mask"] == 1).all()):
            x = torch.lerp(self.corrupt(extra["z0"], t_next_B, extra["noise"]), x, extra["mask"])  # lerp is exact at 0 and 1
        return replace(state, x=x, index_B=state.index_B + 1, extra=extra | {"D_1": D_1, "D_2": D_2, "anchor": anchor})

    def preview(self, state: State) -> Tensor:
        """The x0 that each row believed in last; the result itself where it is done."""
        guess = torch.lerp(state.extra["z0"], state.extra["D_1"], state.extra["mask"])
        return torch.where(noise.spread(state.done_B, guess) > 0, state.x, guess)


def averaged(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    """Means over rows: the loss with its gradient, the rest without."""
    return {name: value.mean() if name == "loss" else value.mean().detach() for name, value in rows.items()}


def _latent(network: nn.Module) -> LatentSpace:
    latent = getattr(innermost(network), "latent", None)
    if latent is None or latent.kind != "image":
        raise ValueError("thresholding keeps pictures in their range, and this network draws none; leave threshold = none")
    return latent


def _fitting(name: str, tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(tensor.shape) != size:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; here it must be {size}")
    return tensor
