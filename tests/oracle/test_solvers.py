"""Our tables against diffusers' flow schedulers: the same grid, the same velocities, the same x after every evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from triptych.processes.noise import linear, uniform
from triptych.processes.solvers import SOLVERS, advance

diffusers = pytest.importorskip("diffusers")


def velocity(x: Tensor, t: float) -> Tensor:
    """Some smooth field; no solver may care which."""
    return torch.sin(2 * x) * (1 + t) - 0.3 * x + t


def compare(name: str, grid: Tensor, scheduler: Any, tolerance: float) -> None:
    table = SOLVERS[name](linear(), grid)
    assert len(table) == len(scheduler.timesteps)
    x = theirs = torch.randn(1, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    D_1, anchor, D_2 = torch.zeros_like(x), x, torch.zeros_like(x)
    for row, timestep in zip(table, scheduler.timesteps, strict=True):
        t = float(row[0])
        theirs = scheduler.step(velocity(theirs, t), timestep, theirs).prev_sample
        x, D_1, anchor, D_2 = advance(row[None], x, x - t * velocity(x, t), D_1, anchor, D_2)
        torch.testing.assert_close(x, theirs.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler(steps: int, shift: float) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=list(np.linspace(1, 1 / steps, steps)))
    grid = uniform(steps, shift)
    torch.testing.assert_close(grid, scheduler.sigmas.double(), atol=1e-6, rtol=0)
    compare("euler", grid, scheduler, 1e-5)


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_heun(steps: int) -> None:
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(steps)
    sigmas = scheduler.sigmas.double()  # each twice, but for the first and the last
    compare("heun", torch.cat([sigmas[:1], sigmas[1::2]]), scheduler, 1e-4)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_dpmpp_2m(steps: int, shift: float) -> None:
    scheduler = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", algorithm_type="dpmsolver++", solver_order=2,
        solver_type="midpoint", final_sigmas_type="zero", flow_shift=shift,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    compare("dpmpp_2m", scheduler.sigmas.double(), scheduler, 1e-4)
