"""What most tasks have in common: one phase, in which all of their modules learn that may."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..contracts import Batch, Prompt

__all__ = ["OnePhase"]


class OnePhase:
    """A base of tasks (`contracts.Task`). It exports all modules, has nothing to do behind a step and nothing to show; a task of which
    that is not true says so itself. `losses` and `validate` are the task's own.
    """

    modules: nn.ModuleDict

    def panels(self) -> dict[str, nn.Module]:
        return dict(self.modules.items())

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.modules.named_parameters() if p.requires_grad}

    def after_step(self, phase: str, step: int) -> None:
        return None

    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        return None
