"""Scores of two clouds of features that are at hand: KID, improved precision and recall; and the Inception Score of probabilities.

Shape legend: N drawn pictures, M references, D width of the features, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["inception_score", "inside", "kid"]

ROWS = 1024  # of a matrix of distances that are held at a time


def kid(drawn_ND: Tensor, real_MD: Tensor, *, subsets: int, size: int, seed: int) -> tuple[float, Tensor]:
    """Kernel distance, MMD² with k(x, y) = (x.y / D + 1)³, without bias: the mean over seeded subsets of `size` rows of each side.

    Bińkowski et al., arXiv 1801.01401. Also each seen picture's share in it to first order, 2 (mean k with the drawn - mean k with the
    real), whose bootstrap tells how sure the value is. Raises ValueError for fewer than two rows.
    """
    size = min(size, len(drawn_ND), len(real_MD))
    if size < 2:
        raise ValueError(f"KID needs two pictures or more on each side, here are {len(drawn_ND)} and {len(real_MD)}")
    if size == len(drawn_ND) == len(real_MD):
        subsets = 1  # they would all be the same
    generator = torch.Generator().manual_seed(seed)
    shares, seen, total = torch.zeros(len(drawn_ND), dtype=torch.float64), torch.zeros(len(drawn_ND), dtype=torch.float64), 0.0
    for _ in range(subsets):
        some, others = (torch.randperm(n, generator=generator)[:size] for n in (len(drawn_ND), len(real_MD)))
        x, y = drawn_ND[some], real_MD[others]
        within, across = _alone(x), _kernel(x, y).mean(1)
        total += (within.mean() + _alone(y).mean() - 2 * across.mean()).item()
        shares[some] += 2 * (within - across)
        seen[some] += 1
    return total / subsets, (shares / seen)[seen > 0]


def _kernel(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    return (x_ND @ y_MD.T / x_ND.shape[1] + 1).double().pow_(3)  # sums of a million numbers are taken in float64


def _alone(x_ND: Tensor) -> Tensor:
    """Each row's mean kernel with the others: [N], float64."""
    every = _kernel(x_ND, x_ND)
    return (every.sum(1) - every.diagonal()) / (len(x_ND) - 1)


def inside(points_ND: Tensor, cloud_MD: Tensor, k: int) -> Tensor:
    """Whether each point lies within the reach of a row of the cloud, its k-th nearest other row: bool [N].

    Kynkäänniemi et al., arXiv 1904.06991: precision asks it of drawn pictures and the real cloud, recall the other way round.
    Raises ValueError for a cloud of k rows or fewer.
    """
    if len(cloud_MD) <= k:
        raise ValueError(f"the {k}-th nearest neighbour needs more than {k} pictures, here are {len(cloud_MD)}")
    middle = cloud_MD.mean(0)  # near 0 differences of large numbers lose less
    points_ND, cloud_MD = points_ND - middle, cloud_MD - middle
    reach = []
    for first in range(0, len(cloud_MD), ROWS):
        far = _squared(cloud_MD[first : first + ROWS], cloud_MD)
        rows = torch.arange(len(far))
        far[rows, rows + first] = float("inf")  # oneself, whatever rounding says
        reach.append(far.kthvalue(k, dim=1).values)
    reach_M = torch.cat(reach)
    return torch.cat([(_squared(part, cloud_MD) <= reach_M).any(1) for part in points_ND.split(ROWS)])


def _squared(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    return torch.addmm(x_ND.square().sum(1, keepdim=True) + y_MD.square().sum(1), x_ND, y_MD.T, alpha=-2).clamp_min_(0)


def inception_score(sum_plogp: Tensor, sum_p_K: Tensor, n: Tensor | float) -> Tensor:
    """exp of the mean KL(p(y|x) | p(y)) = exp(mean of sum p log p - sum of mean p log mean p) (Salimans et al., arXiv 1606.03498)."""
    mean_K = sum_p_K / n
    return torch.exp(sum_plogp / n - torch.special.xlogy(mean_K, mean_K).sum(-1))
