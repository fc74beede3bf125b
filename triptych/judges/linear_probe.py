"""Linear probe: how much of a label can be read off frozen features by one linear layer?

Features are standardised by their training part. "ridge": least squares to one-hot targets (closed form); "logistic": softmax regression
(L-BFGS, to the optimum: the problem is convex). Pictures are either learnt from (`learn`) or asked about (`add`); where nothing was
learnt from, the added ones take turns in `folds` parts, each asked of a probe that learnt from the others.

Shape legend: B batch, C channels, H W grid, N pictures, D width of the features, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ..contracts import Prompt
from .nearest import wilson

__all__ = ["LinearProbe", "Config", "SIZES", "logistic", "ridge"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """penalty: of the squared weights, beside the MEAN loss over pictures, so that it does not depend on their number."""

    method: Literal["ridge", "logistic"] = "logistic"
    penalty: float = 1e-3
    folds: int = 5
    seed: int = 0


SIZES = {"tiny": Config(method="ridge", folds=2), "ridge": Config(method="ridge", penalty=1e-2), "logistic": Config()}


def ridge(x_ND: Tensor, target_NK: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """(W_DK, b_K) that minimise mean |x W + b - target|² + penalty |W|²."""
    middle, mean_K = x_ND.mean(0), target_NK.mean(0)
    x, n = x_ND - middle, len(x_ND)
    if n < x.shape[1]:  # the same solution through the smaller matrix
        w_DK = x.T @ torch.linalg.solve(x @ x.T + n * penalty * torch.eye(n, dtype=x.dtype), target_NK - mean_K)
    else:
        w_DK = torch.linalg.solve(x.T @ x + n * penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ (target_NK - mean_K))
    return w_DK, mean_K - middle @ w_DK


def logistic(x_ND: Tensor, label_N: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """(W_DK, b_K) that minimise the mean cross-entropy + penalty |W|² / 2."""
    w_DK = torch.zeros(x_ND.shape[1], classes, dtype=x_ND.dtype, requires_grad=True)
    b_K = torch.zeros(classes, dtype=x_ND.dtype, requires_grad=True)
    descent = torch.optim.LBFGS([w_DK, b_K], max_iter=500, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        descent.zero_grad()
        value = F.cross_entropy(x_ND @ w_DK + b_K, label_N) + penalty * w_DK.square().sum() / 2
        value.backward()
        return value

    with torch.enable_grad():
        descent.step(loss)  # type: ignore[arg-type]
    return w_DK.detach(), b_K.detach()


class LinearProbe:
    """eyes: `.name`, `.features(images_BCHW)` -> [B, D]. The label is `prompt.label`."""

    def __init__(self, config: Config, *, eyes: Any, **decided: Any) -> None:
        if config.folds < 2:
            raise ValueError(f"folds {config.folds}: a probe cannot be asked about what it learnt from; take 2 or more")
        self.config, self.eyes = config, eyes
        self._learnt: list[tuple[Tensor, Tensor]] = []
        self._asked: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def _seen(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        labels = [prompt.label for prompt in prompts if prompt.label is not None]
        if not len(labels) == len(prompts) == len(images_BCHW):
            raise ValueError(f"{len(images_BCHW)} pictures, {len(prompts)} prompts, {len(labels)} labels: a probe needs one of each")
        return self.eyes.features(images_BCHW).detach().cpu().double(), torch.tensor(labels)

    def learn(self, images_BCHW: Tensor, prompts: Sequence[Prompt]) -> None:
        """Pictures to learn from."""
        self._learnt.append(self._seen(images_BCHW, prompts))

    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt], references: Tensor | None = None) -> None:
        """Pictures to be asked about."""
        self._asked.append(self._seen(images_BCHW, prompts))

    def _right(self, x_ND: Tensor, label_N: Tensor, x_MD: Tensor, label_M: Tensor) -> int:
        middle, size = x_ND.mean(0), x_ND.std(0, correction=0).clamp_min(1e-8)
        x_ND, x_MD = (x_ND - middle) / size, (x_MD - middle) / size
        known, place_N = label_N.unique(return_inverse=True)
        if self.config.method == "ridge":
            w_DK, b_K = ridge(x_ND, F.one_hot(place_N, len(known)).double(), self.config.penalty)
        else:
            w_DK, b_K = logistic(x_ND, place_N, len(known), self.config.penalty)
        return int((known[(x_MD @ w_DK + b_K).argmax(1)] == label_M).sum())

    def result(self) -> dict[str, float]:
        """accuracy(eyes) with a Wilson interval; majority: of always naming the commonest label; classes; n asked, `n_learnt`.

        Raises ValueError where there is nothing to learn from, or to ask about.
        """
        if not self._asked:
            raise ValueError("no pictures to ask about were added")
        x_MD, label_M = (torch.cat(parts) for parts in zip(*self._asked, strict=True))
        if self._learnt:
            x_ND, label_N = (torch.cat(parts) for parts in zip(*self._learnt, strict=True))
            right, learnt = self._right(x_ND, label_N, x_MD, label_M), len(x_ND)
        else:
            if len(x_MD) < self.config.folds:
                raise ValueError(f"{len(x_MD)} pictures do not fill {self.config.folds} folds: add more, or give some to learn()")
            fold_M = torch.randperm(len(x_MD), generator=torch.Generator().manual_seed(self.config.seed)) % self.config.folds
            asked = [fold_M == fold for fold in range(self.config.folds)]
            right = sum(self._right(x_MD[~some], label_M[~some], x_MD[some], label_M[some]) for some in asked)
            learnt = len(x_MD) - len(x_MD) // self.config.folds
        low, high = wilson(right, len(x_MD))
        name = f"accuracy({self.eyes.name})"
        commonest = label_M.unique(return_counts=True)[1]
        return {
            "n": len(x_MD), "n_learnt": learnt, "classes": len(commonest), "majority": int(commonest.max()) / len(x_MD),
            name: right / len(x_MD), f"{name}_low": low, f"{name}_high": high,
        }  # fmt: skip
