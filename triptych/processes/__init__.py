"""Processes: how panel 2 learns (data -> loss) and how it draws (noise -> sample). One file a paradigm.

`sample` draws for all of them: begin, then step until every row is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, Process, Rng, Start, State

__all__ = ["sample"]


def sample(
    process: Process, network: nn.Module, cond: Condition, null: Condition, how: Any, start: Start, rng: Rng,
    on_step: Callable[[State, Process], None] | None = None,
) -> Tensor:  # fmt: skip
    """Latents [B, *start.shape] for B conditions; row i is a pure function of its condition, its settings and `rng`'s key i.

    cond, null: B rows each (null is a negative prompt's condition where there is one).
    how: the process's `Sampling`.
    on_step: called after every evaluation, for progress, strips and previews (`process.preview(state)`).
    """
    with torch.no_grad():
        state = process.begin(network, cond, null, how, start, rng)
        while not bool(state.done_B.all()):
            state = process.step(network, state)
            if on_step is not None:
                on_step(state, process)
    return state.x
