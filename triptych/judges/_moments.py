"""The mathematics of the Fréchet distance: streamed moments, and the distance of two Gaussians by symmetric routes only.

    d² = |m_a - m_b|² + tr A + tr B - 2 tr (A B)^½                (Dowson and Landau, 1982; as FID: Heusel et al., arXiv 1706.08500)

A B is not symmetric, but tr (A B)^½ is the sum of the singular values of F G^T for any factors A = F^T F, B = G^T G. So it is found

    from Cholesky's A = L L^T as the sum of the roots of the eigenvalues of L^T B L, where a bound shows that the roots are exact enough;
    else from singular values of the product of two factors: rows of few pictures are such a factor, and nothing is squared.

Shape legend: N rows, D width of the features, R rows of a factor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Gaussian", "Moments", "frechet", "gaussian_of", "root_trace"]

BLOCK = 512  # columns of a block where half a product is enough
CHUNK = 512  # rows gathered before they are merged: a product with few rows would only move memory
EPS = torch.finfo(torch.float64).eps
TOLERANCE = 1e-8  # of the two traces: the largest bound of error that the fast route may have


@dataclass(frozen=True, kw_only=True)
class Gaussian:
    """float64. Either covariance_DD, or factor_RD with factor^T factor = covariance, where the rows are no more than the columns."""

    mean_D: Tensor
    covariance_DD: Tensor | None = None
    factor_RD: Tensor | None = None

    def trace(self) -> float:
        if self.factor_RD is not None:
            return self.factor_RD.square().sum().item()
        assert self.covariance_DD is not None
        return self.covariance_DD.diagonal().sum().item()

    def variances(self) -> Tensor:
        """[D]: the covariance's diagonal."""
        if self.factor_RD is not None:
            return self.factor_RD.square().sum(0)
        assert self.covariance_DD is not None
        return self.covariance_DD.diagonal()

    def columns(self, keep: Tensor) -> Gaussian:
        """The same over some of the features."""
        factor, covariance = self.factor_RD, self.covariance_DD
        return Gaussian(
            mean_D=self.mean_D[keep], factor_RD=None if factor is None else factor[:, keep],
            covariance_DD=None if covariance is None else covariance[keep][:, keep],
        )  # fmt: skip

    def factor(self) -> Tensor:
        """[R, D]: the one given; else Cholesky's; else, of a singular covariance, the symmetric root without its null space."""
        if self.factor_RD is not None:
            return self.factor_RD
        assert self.covariance_DD is not None
        lower, failed = torch.linalg.cholesky_ex(self.covariance_DD)
        if not failed:
            return lower.T
        values, vectors = torch.linalg.eigh(self.covariance_DD)
        real = values > len(values) * EPS * values[-1].clamp_min(0)
        return vectors[:, real].T * values[real].sqrt()[:, None]


class Moments:
    """Count, mean and scatter of rows that come in pieces of any size, in float64 (Chan, Golub and LeVeque, 1979)."""

    def __init__(self, width: int) -> None:
        self.n = 0
        self.mean_D = torch.zeros(width, dtype=torch.float64)
        self._scatter_DD = torch.zeros(width, width, dtype=torch.float64)  # blocks on and below the diagonal; the rest is its mirror
        self._waiting: list[Tensor] = []

    def add(self, rows_ND: Tensor) -> None:
        if len(rows_ND):
            self._waiting.append(rows_ND.detach().cpu().double())
        if sum(map(len, self._waiting)) >= CHUNK:
            self._merge()

    def _merge(self) -> None:
        if not self._waiting:
            return
        for rows in torch.cat(self._waiting).split(4 * CHUNK):
            mean = rows.mean(0)
            _gram_(self._scatter_DD, rows - mean)
            apart, before, self.n = mean - self.mean_D, self.n, self.n + len(rows)
            _gram_(self._scatter_DD, (apart * (before * len(rows) / self.n) ** 0.5)[None])
            self.mean_D = self.mean_D + apart * (len(rows) / self.n)
        self._waiting = []

    def scatter(self) -> Tensor:
        """[D, D], both halves."""
        self._merge()
        return _mirrored(self._scatter_DD)

    def gaussian(self) -> Gaussian:
        """With the unbiased covariance, over N - 1. Raises ValueError for fewer than two rows."""
        self._merge()
        if self.n < 2:
            raise ValueError(f"a covariance needs two pictures or more, here are {self.n}")
        return Gaussian(mean_D=self.mean_D, covariance_DD=self.scatter() / (self.n - 1))

    def state(self) -> dict[str, Tensor]:
        return {"scatter": self.scatter(), "n": torch.tensor(self.n), "mean": self.mean_D}

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> Moments:
        made = cls(len(state["mean"]))
        made.n, made.mean_D, made._scatter_DD = int(state["n"]), state["mean"].double(), state["scatter"].double()
        return made


def gaussian_of(rows_ND: Tensor, counts_N: Tensor | None = None) -> Gaussian:
    """Of rows that are all at hand, each counted as often as counts_N says (a bootstrap's resample): no covariance where rows are few.

    Raises ValueError for fewer than two rows.
    """
    weights = torch.ones(len(rows_ND), dtype=torch.float64) if counts_N is None else counts_N.double()
    n = weights.sum()
    if n < 2:
        raise ValueError(f"a covariance needs two pictures or more, here are {int(n)}")
    present = weights > 0
    rows, weights = rows_ND[present].double(), weights[present]
    mean = weights @ rows / n
    factor = (rows - mean).mul_((weights / (n - 1)).sqrt()[:, None])
    if len(factor) <= factor.shape[1]:
        return Gaussian(mean_D=mean, factor_RD=factor)
    covariance = torch.zeros(factor.shape[1], factor.shape[1], dtype=torch.float64)
    _gram_(covariance, factor)
    return Gaussian(mean_D=mean, covariance_DD=_mirrored(covariance))


def frechet(a: Gaussian, b: Gaussian) -> float:
    """The squared distance that is called FID, never below 0 (of equal Gaussians it is 0 to rounding, on either side)."""
    return max(0.0, (a.mean_D - b.mean_D).square().sum().item() + a.trace() + b.trace() - 2 * root_trace(a, b))


def root_trace(a: Gaussian, b: Gaussian) -> float:
    """tr (A B)^½."""
    alive = (a.variances() > 0) & (b.variances() > 0)  # a feature that never moves in one of them adds nothing, and would break Cholesky
    if not alive.any():
        return 0.0
    if not alive.all():
        a, b = a.columns(alive), b.columns(alive)
    if a.factor_RD is None and b.factor_RD is None:
        fast = _by_eigenvalues(a, b)
        if fast is not None:
            return fast
    return torch.linalg.svdvals(a.factor() @ b.factor().T).sum().item()


def _by_eigenvalues(a: Gaussian, b: Gaussian) -> float | None:
    """From L^T B L, or None where A is singular or the error may be too large.

    An eigenvalue w is wrong by a few EPS of the largest, call it e; its root by e / (2 w^½), and by e^½ at most.
    """
    assert a.covariance_DD is not None and b.covariance_DD is not None
    lower, failed = torch.linalg.cholesky_ex(a.covariance_DD)
    if failed:
        return None
    values = torch.linalg.eigvalsh(_between(lower, b.covariance_DD)).clamp_min(0)
    wrong, roots = 4 * EPS * values[-1], values.sqrt()
    bound = torch.minimum(wrong / (2 * roots), wrong.sqrt()).sum()
    return roots.sum().item() if bound <= TOLERANCE * (a.trace() + b.trace()) else None


def _between(lower_DD: Tensor, covariance_DD: Tensor) -> Tensor:
    """L^T B L on and below the diagonal, in blocks: L's zeros are not multiplied, the mirrored half is not computed (15/32 of the work)."""
    product, out = torch.empty_like(lower_DD), torch.empty_like(lower_DD)
    blocks = [slice(i, min(i + BLOCK, len(lower_DD))) for i in range(0, len(lower_DD), BLOCK)]
    for at in blocks:
        torch.mm(covariance_DD[:, at.start :], lower_DD[at.start :, at], out=product[:, at])
    for at in blocks:
        torch.mm(lower_DD[at.start :, at].T, product[at.start :, : at.stop], out=out[at, : at.stop])
    return out


def _gram_(sum_DD: Tensor, rows_ND: Tensor) -> None:
    """Add rows^T rows to the blocks on and below the diagonal."""
    for i in range(0, len(sum_DD), BLOCK):
        at = slice(i, i + BLOCK)
        sum_DD[at, : at.stop].addmm_(rows_ND[:, at].T, rows_ND[:, : at.stop])


def _mirrored(lower_DD: Tensor) -> Tensor:
    low = lower_DD.tril()
    return low + low.tril(-1).T
