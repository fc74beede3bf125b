"""How far drawn pictures are from real ones as clouds of features: Fréchet distance, KID, precision, recall, Inception Score.

One look at each picture serves all of them. A score is named by the eyes it was seen through, `FD(triptych-eyes-v1)`; plain `FID`
(and `KID`, `IS`) is said only by eyes that hold the original Inception weights. Sources: arXiv 1706.08500 (Fréchet), 1801.01401 (KID),
1904.06991 (precision, recall), 1606.03498 (Inception Score, here over all pictures at once, without the paper's ten parts).

What is kept: moments of ALL pictures in float64, and a seeded reservoir of at most `reservoir` features. KID, precision and recall
are computed on the reservoir, whose size stands in the result. Intervals are 95 %, of the drawn pictures with the references held:
    Fréchet distance   value +- 1.96 deviations over bootstrap resamples of the reservoir, narrowed by sqrt(reservoir / n) where n is more
    KID                value +- the same of the bootstrap of each picture's first-order share
    Inception Score    value +- the same of the bootstrap of the reservoir's probabilities, narrowed likewise
    precision, recall  Wilson, each as a share of the pictures it asks about

Shape legend: B batch, C channels, H W grid, N pictures, D width of the features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..contracts import Prompt
from ._kernels import inception_score, inside, kid
from ._moments import Gaussian, Moments, frechet, gaussian_of
from ._samples import Reservoir, spread
from .nearest import wilson

__all__ = ["Distribution", "Cloud", "Config", "SIZES"]

SCORES = ("FD", "KID", "PR", "IS")


@dataclass(frozen=True, kw_only=True)
class Config:
    """scores: of "FD", "KID", "PR" (precision and recall), "IS".  reservoir: the most features kept of each side.
    kid_subsets, kid_size: of KID.  neighbours: k of precision and recall.
    resamples: of the bootstrap; each costs another Fréchet distance; 0 = no intervals of FD, KID and IS."""

    scores: tuple[str, ...] = SCORES
    reservoir: int = 10_000
    kid_subsets: int = 100
    kid_size: int = 1000
    neighbours: int = 3
    resamples: int = 20
    seed: int = 0


SIZES = {"tiny": Config(reservoir=64, kid_subsets=3, kid_size=16, resamples=5), "10k": Config()}


class Cloud:
    """What is kept of the features of one side: moments of all, and the reservoir. `save` and `load` keep it in a file."""

    def __init__(self, eyes: str, size: int, seed: int) -> None:
        self.eyes, self.kept = eyes, Reservoir(size, seed)
        self.moments: Moments | None = None

    @property
    def n(self) -> int:
        return self.kept.seen

    def add(self, features_BD: Tensor) -> None:
        """Raises ValueError for features that are not finite or of another width than before."""
        if not torch.isfinite(features_BD).all():
            raise ValueError(f"{self.eyes} gave features that are not finite; look at the pictures, or compute in float32")
        if self.moments is None:
            self.moments = Moments(features_BD.shape[1])
        if features_BD.shape[1] != len(self.moments.mean_D):
            raise ValueError(f"features of width {features_BD.shape[1]} after others of width {len(self.moments.mean_D)}")
        self.moments.add(features_BD)
        self.kept.add(features_BD.float())

    def gaussian(self) -> Gaussian:
        """From the rows themselves while they are all here and fewer than their width: their covariance would be singular."""
        if self.moments is None:
            raise ValueError("no pictures were added")
        rows = self.kept.rows()
        return gaussian_of(rows) if self.n == len(rows) <= rows.shape[1] else self.moments.gaussian()

    def save(self, path: str | Path) -> None:
        """Statistics as safetensors: at most one covariance and the reservoir."""
        from safetensors.torch import save_file

        if self.moments is None:
            raise ValueError("no pictures were added: there is nothing to save")
        tensors = {**self.moments.state(), "rows": self.kept.rows().clone()}
        save_file(tensors, str(path), metadata={"kind": "triptych features", "eyes": self.eyes})

    @classmethod
    def load(cls, path: str | Path, eyes: str, size: int, seed: int) -> Cloud:
        """Raises ValueError for a file that holds something else, or features of other eyes."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as file:
                said = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no dict)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path} cannot be read as safetensors: {error}") from None
        if said.get("kind") != "triptych features" or tensors.keys() != {"n", "mean", "scatter", "rows"}:
            raise ValueError(f"{path} holds no statistics of features; `Cloud.save` writes such a file")
        if said.get("eyes") != eyes:
            raise ValueError(f"{path} was seen through {said.get('eyes')!r}, not through {eyes!r}: distances are of one pair of eyes")
        made = cls(eyes, size, seed)
        made.kept.add(tensors["rows"])
        made.moments, made.kept.seen = Moments.of(tensors), int(tensors["n"])
        return made


class Distribution:
    """eyes: `.name`, `.features(images_BCHW)` -> [B, D]; with `.probabilities(images_BCHW)` -> [B, K] there is an Inception Score (and with
    `.features_and_probabilities(images_BCHW)` -> both, in one look); with `.is_inception` true the names are FID, KID and IS.
    statistics: a file that `references.save(path)` wrote, for references that are not shown again.

    Raises ValueError for unknown scores, or statistics of other eyes.
    """

    def __init__(self, config: Config, *, eyes: Any, statistics: str | Path | None = None, **decided: Any) -> None:
        if unknown := set(config.scores) - set(SCORES):
            raise ValueError(f"no score {sorted(unknown)[0]!r}; there are: {', '.join(SCORES)}")
        self.config, self.eyes = config, eyes
        self.drawn = Cloud(eyes.name, config.reservoir, config.seed)
        self.references = Cloud(eyes.name, config.reservoir, config.seed + 1)
        if statistics is not None:
            self.references = Cloud.load(statistics, eyes.name, config.reservoir, config.seed + 1)
        self.classifies = "IS" in config.scores and getattr(eyes, "classifies", hasattr(eyes, "probabilities"))
        self._plogp, self._p_K, self._said = 0.0, torch.zeros(()), Reservoir(config.reservoir, config.seed)

    @torch.no_grad()
    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt] = (), references: Tensor | None = None) -> None:
        """Drawn pictures in [-1, 1], and any number of real ones. Either may be an empty batch."""
        if references is not None and len(references):
            self.references.add(self.eyes.features(references))
        if not len(images_BCHW):
            return
        p_BK = None
        if self.classifies and hasattr(self.eyes, "features_and_probabilities"):
            features_BD, p_BK = self.eyes.features_and_probabilities(images_BCHW)
        else:
            features_BD = self.eyes.features(images_BCHW)
            p_BK = self.eyes.probabilities(images_BCHW) if self.classifies else None
        self.drawn.add(features_BD)
        if p_BK is not None:
            p_BK = p_BK.detach().cpu().double()
            self._plogp += torch.special.xlogy(p_BK, p_BK).sum().item()
            self._p_K = self._p_K + p_BK.sum(0)
            self._said.add(p_BK.float())

    def result(self) -> dict[str, float]:
        """Each score with `_low` and `_high`, `n`, `n_references`, and `reservoir`, `reservoir_references`: the features that KID,
        precision and recall saw. Raises ValueError where a side has too few pictures."""
        c, drawn, real = self.config, self.drawn, self.references
        inception = bool(getattr(self.eyes, "is_inception", False))
        tail = "" if inception else f"({self.eyes.name})"
        x, y = drawn.kept.rows(), real.kept.rows()
        out: dict[str, float] = {"n": drawn.n, "n_references": real.n, "reservoir": len(x), "reservoir_references": len(y)}
        narrower = (len(x) / max(1, drawn.n)) ** 0.5
        if real.n and "FD" in c.scores:
            there = real.gaussian()
            value = frechet(drawn.gaussian(), there)
            half = narrower * spread(lambda times: frechet(gaussian_of(x, times), there), len(x), c.resamples, c.seed)
            out |= _around("FID" if inception else f"FD{tail}", value, half)
        if real.n and "KID" in c.scores:
            value, shares = kid(x, y, subsets=c.kid_subsets, size=c.kid_size, seed=c.seed)
            half = spread(lambda times: (times.double() @ shares).item() / len(shares), len(shares), 10 * c.resamples, c.seed)
            out |= _around(f"KID{tail}", value, half, lowest=-float("inf"))  # without bias it may be negative
        if real.n and "PR" in c.scores:
            for name, points, cloud in (("precision", x, y), ("recall", y, x)):
                found = inside(points, cloud, c.neighbours)
                low, high = wilson(int(found.sum()), len(found))
                out |= {f"{name}{tail}": found.double().mean().item(), f"{name}{tail}_low": low, f"{name}{tail}_high": high}
        if self.classifies and drawn.n:
            value = inception_score(torch.tensor(self._plogp, dtype=torch.float64), self._p_K, drawn.n).item()
            out |= _around(f"IS{tail}", value, narrower * self._spread_of_classes(), lowest=1.0)
        if not real.n and len(out) == 4:
            raise ValueError("distances need real pictures: give `references` to add, or `statistics` of them, a file")
        return out

    def _spread_of_classes(self) -> float:
        p_NK = self._said.rows().double()
        plogp_N = torch.special.xlogy(p_NK, p_NK).sum(1)

        def score(times: Tensor) -> float:
            return inception_score(times.double() @ plogp_N, times.double() @ p_NK, len(p_NK)).item()

        return spread(score, len(p_NK), 10 * self.config.resamples, self.config.seed)


def _around(name: str, value: float, half: float, lowest: float = 0.0) -> dict[str, float]:
    if math.isnan(half):  # one picture, or no resamples: nothing is known, and JSON has no word for that
        return {name: value}
    return {name: value, f"{name}_low": max(lowest, value - half), f"{name}_high": value + half}
