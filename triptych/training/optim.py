"""Optimizers and their schedule: AdamW for everything, or Muon for the matrices inside the network and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from triptych import recipe as spec

__all__ = ["Optimizers", "hidden_matrices", "rate"]


def rate(step: int, steps: int, optimizer: spec.Optimizer) -> float:
    """The learning rate of step 0 <= step < steps, as a share of its peak: linear warm-up, flat, linear decay to (almost) 0.

    Never 0 itself: the first and the last step count as well.
    """
    up, down = optimizer.warmup * steps, optimizer.decay * steps
    return min(1.0, (step + 1) / up if up >= 1 else 1.0, (steps - step) / down if down >= 1 else 1.0)


def hidden_matrices(module: nn.Module) -> set[Tensor]:
    """Weights of linear layers within a stack (`nn.ModuleList`): what Muon is for. First and last layers and tables are not."""
    stacks = [m for m in module.modules() if isinstance(m, nn.ModuleList)]
    return {layer.weight for stack in stacks for layer in stack.modules() if isinstance(layer, nn.Linear)}


class Optimizers:
    """The optimizers of ONE phase, stepped together.

    parameters: by name. matrices: those of them that Muon takes, if the recipe asks for it (arXiv:2502.16982: its update is
    scaled to AdamW's root mean square, so one learning rate and one weight decay serve both).
    Nothing of one dimension or none decays: gains, biases.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], how: spec.Optimizer, matrices: Iterable[Tensor] = ()) -> None:
        self.parameters, self.how = dict(parameters), how
        self._names: dict[Tensor, str] = {p: name for name, p in self.parameters.items()}
        turned = set(matrices) & set(self._names) if how.name == "muon" else set()
        rest = [p for p in self._names if p not in turned]
        groups = [
            {"params": [p for p in rest if p.ndim >= 2], "weight_decay": how.weight_decay},
            {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.parts: list[torch.optim.Optimizer] = []
        if rest:
            self.parts.append(torch.optim.AdamW([g for g in groups if g["params"]], lr=how.lr, betas=how.betas, fused=True))
        if turned:
            ordered = [p for p in self._names if p in turned]
            self.parts.append(torch.optim.Muon(ordered, lr=how.lr, weight_decay=how.weight_decay, adjust_lr_fn="match_rms_adamw"))

    def clip(self) -> Tensor:
        """The gradient's norm, as a scalar; gradients longer than `clip` are shortened to it (0 = left alone)."""
        with_grad = [p for p in self._names if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in with_grad if p.grad is not None], foreach=True)
        if self.how.clip > 0:
            torch.nn.utils.clip_grads_with_norm_(with_grad, self.how.clip, norm, foreach=True)
        return norm

    def step(self, share: float) -> None:
        """One update at `share` of the peak learning rate."""
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.how.lr * share
            part.step()

    def state(self) -> dict[str, Tensor]:
        """What the optimizers remember, by `PARAMETER/KEY`: tensors only, since all else follows from recipe and step."""
        out = {}
        for part in self.parts:
            for p, kept in part.state.items():
                for key, value in kept.items():
                    assert isinstance(value, Tensor), f"{key} of {type(part).__name__} is no tensor"
                    out[f"{self._names[p]}/{key}"] = value
        return out

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError if the state speaks of parameters that are not here."""
        owner = {p: part for part in self.parts for group in part.param_groups for p in group["params"]}
        for name, value in state.items():
            parameter, _, key = name.rpartition("/")
            if parameter not in self.parameters:
                raise ValueError(f"the optimizer's state speaks of {parameter}, which is not trained in this phase")
            p = self.parameters[parameter]
            owner[p].state[p][key] = value.to(p.device).clone()
