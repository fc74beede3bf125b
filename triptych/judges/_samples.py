"""A part of a stream for all of it: a reservoir of rows, and the bootstrap. Both are functions of a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["Reservoir", "bootstrap_mean", "counts", "mean_of", "spread"]

Z = 1.959964  # of the normal distribution, for 95 %


class Reservoir:
    """`size` of all rows that came, each with equal chance (Vitter's algorithm R, 1985); all of them while there are no more.

    Which rows those are depends on the seed and on their order, not on the pieces in which they came.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.seen = size, 0
        self._random = torch.Generator().manual_seed(seed)
        self._kept: Tensor | None = None

    def add(self, rows_ND: Tensor) -> None:
        rows = rows_ND.detach().cpu()
        if not len(rows):
            return
        if self._kept is None:
            self._kept = rows.new_empty(self.size, *rows.shape[1:])
        fits = min(len(rows), max(0, self.size - self.seen))
        self._kept[self.seen : self.seen + fits] = rows[:fits]
        self.seen += fits
        for row in rows[fits:]:
            self.seen += 1
            place = int(torch.rand((), dtype=torch.float64, generator=self._random) * self.seen)
            if place < self.size:
                self._kept[place] = row

    def rows(self) -> Tensor:
        """[min(seen, size), ...]"""
        return torch.empty(0, 0) if self._kept is None else self._kept[: min(self.seen, self.size)]


def counts(n: int, resamples: int, seed: int) -> list[Tensor]:
    """How often each of n rows is drawn in each resample of n, with replacement: int64 [n], `resamples` times."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n) for _ in range(resamples)]


def bootstrap_mean(values: Tensor | Sequence[float], resamples: int = 200, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of a mean."""
    values = torch.as_tensor(values, dtype=torch.float64).flatten()
    means = torch.stack([(drawn.double() @ values) / len(values) for drawn in counts(len(values), resamples, seed)])
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def mean_of(name: str, values: Tensor | Sequence[float], resamples: int = 200, seed: int = 0) -> dict[str, float]:
    """{name: mean, name_low, name_high} as a result says it; no interval of fewer than two values, nothing at all of none."""
    values = torch.as_tensor(values, dtype=torch.float64).flatten()
    if not len(values):
        return {}
    out = {name: values.mean().item()}
    if len(values) > 1 and resamples > 1:
        out[f"{name}_low"], out[f"{name}_high"] = bootstrap_mean(values, resamples, seed)
    return out


def spread(statistic: Callable[[Tensor], float], n: int, resamples: int, seed: int) -> float:
    """Half a 95 % interval: 1.96 standard deviations of `statistic(counts_N)` over the resamples; nan without resamples.

    For statistics that repeated rows push to one side, such as a Fréchet distance: their spread can be used, their place cannot.
    """
    if n < 2 or resamples < 2:
        return float("nan")
    found = torch.tensor([statistic(drawn) for drawn in counts(n, resamples, seed)], dtype=torch.float64)
    return Z * found.std().item()
