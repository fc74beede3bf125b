"""Sets of objects: which prediction answers for which object, and what the pairs cost (DETR, arXiv 2005.12872, sections 3.1 and A.2).

A detector says Q things about a picture in no order; each of its N objects is given to exactly one of them, by the cheapest
assignment there is, and all the others should say "no object". Boxes are (centre x, centre y, width, height) in 0..1 of the picture.

Shape legend: B pictures, Q predictions, N objects (padded to the most that a picture has), K classes, P matched pairs, H W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["NOT_ASKED", "Costs", "Objects", "Pairs", "assign", "corners", "generalized_iou", "iou", "mask_losses", "match", "set_losses"]

NOT_ASKED = -100  # as an attribute's value: whatever is said of it costs nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Objects:
    """What there is in B pictures. Rows of real_BN that are False are padding.

    classes_BN: int64, 0..K-1.  boxes_BN4: cx, cy, w, h.  attributes: int64 [B, N], one a further head (colour...), or NOT_ASKED.
    masks_BNHW: float, 1 = the object covers the pixel; of any size, for `mask_losses` alone.
    """

    real_BN: Tensor
    classes_BN: Tensor
    boxes_BN4: Tensor
    attributes: tuple[Tensor, ...] = ()
    masks_BNHW: Tensor | None = None

    @property
    def count(self) -> float:
        """How many there are in the batch, at least 1: what sums over objects are divided by."""
        return max(1.0, float(self.real_BN.sum()))


@dataclass(frozen=True, kw_only=True)
class Costs:
    """How much probability, L1 distance and overlap weigh: in the matching, and L1 and overlap in the loss too (section A.4)."""

    classes: float = 1.0
    l1: float = 5.0
    giou: float = 2.0
    nothing: float = 0.1  # weight of "no object" in the cross entropy: most predictions are that


class Pairs(NamedTuple):
    """Prediction query_P of picture row_P answers for its object object_P. int64, by row, then by query."""

    row_P: Tensor
    query_P: Tensor
    object_P: Tensor


# --- boxes --------------------------------------------------------------------------------------------------------------


def corners(boxes_4: Tensor) -> Tensor:
    """(centre x, centre y, width, height) to (left, top, right, bottom); the last dimension is 4."""
    centre, half = boxes_4[..., :2], boxes_4[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def iou(a_4: Tensor, b_4: Tensor) -> Tensor:
    """Intersection over union of boxes in cx, cy, w, h; the dimensions before the last one are broadcast."""
    return _overlap(a_4, b_4)[0]


def generalized_iou(a_4: Tensor, b_4: Tensor) -> Tensor:
    """IoU less the share of the smallest box around both that neither covers: in -1..1, with a slope where they are apart.

    Rezatofighi et al., arXiv 1902.09630. Boxes in cx, cy, w, h; broadcast like `iou`.
    """
    ratio, union = _overlap(a_4, b_4)
    a, b = corners(a_4), corners(b_4)
    around = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    return ratio - (around - union) / around.clamp(min=1e-12)


def _overlap(a_4: Tensor, b_4: Tensor) -> tuple[Tensor, Tensor]:
    """(IoU, area of the union)."""
    a, b = corners(a_4), corners(b_4)
    shared = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = a_4[..., 2:].prod(-1) + b_4[..., 2:].prod(-1) - shared
    return shared / union.clamp(min=1e-12), union


# --- matching -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def match(logits_BQK: Tensor, boxes_BQ4: Tensor, objects: Objects, costs: Costs | None = None) -> Pairs:
    """The cheapest pairs: -probability of the right class, L1 of the boxes, -generalized IoU, weighed by `costs` (equation 1).

    The last of the K logits is "no object". A picture with more objects than predictions leaves the dearest objects alone.
    """
    costs = costs or Costs()
    right_BQN = logits_BQK.softmax(-1).gather(2, objects.classes_BN[:, None].expand(-1, logits_BQK.shape[1], -1))
    a, b = boxes_BQ4[:, :, None], objects.boxes_BN4[:, None]
    cost_BQN = -costs.classes * right_BQN + costs.l1 * (a - b).abs().sum(-1) - costs.giou * generalized_iou(a, b)
    cost_BQN = cost_BQN.nan_to_num(1e6, 1e6, 1e6).double().cpu()  # what is not finite is matched last, and reported by the loss
    found = []
    for row, (cost_QN, real_N) in enumerate(zip(cost_BQN, objects.real_BN.cpu(), strict=True)):
        queries, chosen = assign(cost_QN[:, real_N].numpy())
        found.append(np.stack([np.full_like(queries, row), queries, real_N.nonzero().flatten().numpy()[chosen]]))
    return Pairs(*torch.from_numpy(np.concatenate(found, axis=1)).to(logits_BQK.device))


def assign(cost_RC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The assignment of min(R, C) rows to columns with the least sum: (rows, columns), int64, by row. Finite costs only.

    Shortest augmenting paths (Jonker and Volgenant 1987, as set out by Crouse 2016): each new row either finds a free column or
    pushes others along the path on which the sum grows least; u and v are the prices that keep all reduced costs >= 0.
    """
    if cost_RC.shape[0] > cost_RC.shape[1]:
        columns, rows = assign(cost_RC.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    R, C = cost_RC.shape
    u_R, v_C = np.zeros(R), np.zeros(C)
    column_R, row_C = np.full(R, -1), np.full(C, -1)
    for new in range(R):
        length_C, before_C, done_C = np.full(C, np.inf), np.full(C, -1), np.zeros(C, dtype=bool)
        row, length, column = new, 0.0, -1
        while column < 0 or row_C[column] >= 0:
            row = new if column < 0 else row_C[column]
            step_C = length + cost_RC[row] - u_R[row] - v_C
            shorter_C = ~done_C & (step_C < length_C)
            length_C[shorter_C], before_C[shorter_C] = step_C[shorter_C], row
            column = int(np.where(done_C, np.inf, length_C).argmin())
            length = length_C[column]
            done_C[column] = True
        passed = np.flatnonzero(done_C & (row_C >= 0))
        u_R[new] += length
        u_R[row_C[passed]] += length - length_C[passed]
        v_C[passed] -= length - length_C[passed]
        while column >= 0:  # back along the path: every row on it takes the column that it was reached for
            row = before_C[column]
            row_C[column], column_R[row], column = row, column, column_R[row] if row != new else -1
    return np.arange(R), column_R


# --- losses -------------------------------------------------------------------------------------------------------------


def set_losses(
    logits_BQK: Tensor, boxes_BQ4: Tensor, attributes: Sequence[Tensor], objects: Objects, pairs: Pairs, costs: Costs | None = None
) -> dict[str, Tensor]:
    """Scalars, unweighted: "classes", "l1", "giou", and "attributes" where there are heads for them.

    attributes: logits [B, Q, A] a head, learnt from matched predictions alone.  Also "cardinality", which has no slope: by how
    many the count of things seen is wrong.
    """
    costs = costs or Costs()
    row, query, chosen = pairs
    nothing = logits_BQK.shape[-1] - 1
    wanted_BQ = torch.full(logits_BQK.shape[:2], nothing, device=logits_BQK.device)
    wanted_BQ[row, query] = objects.classes_BN[row, chosen]
    weight_K = torch.ones(nothing + 1, device=logits_BQK.device)
    weight_K[nothing] = costs.nothing
    mine_P4, theirs_P4 = boxes_BQ4[row, query], objects.boxes_BN4[row, chosen]
    seen_B = (logits_BQK.argmax(-1) != nothing).sum(1)
    out = {
        "classes": F.cross_entropy(logits_BQK.flatten(0, 1).float(), wanted_BQ.flatten(), weight_K),
        "l1": (mine_P4 - theirs_P4).abs().sum() / objects.count,
        "giou": (1 - generalized_iou(mine_P4, theirs_P4)).sum() / objects.count,
        "cardinality": (seen_B - objects.real_BN.sum(1)).abs().float().mean(),
    }
    if attributes:
        both = [(a_BQA[row, query].float(), b_BN[row, chosen]) for a_BQA, b_BN in zip(attributes, objects.attributes, strict=True)]
        wrong = [F.cross_entropy(said_PA, true_P, ignore_index=NOT_ASKED, reduction="sum") for said_PA, true_P in both]
        out["attributes"] = torch.stack(wrong).sum() / objects.count
    return out


def mask_losses(masks_BQhw: Tensor, objects: Objects, pairs: Pairs) -> dict[str, Tensor]:
    """Scalars, unweighted: "focal" (arXiv 1708.02002, alpha 0.25, gamma 2) and "dice" (arXiv 1606.04797) of the matched masks.

    masks_BQhw: logits; stretched to the objects' H W, bilinearly, as in the paper.
    """
    assert objects.masks_BNHW is not None, "objects without masks"
    row, query, chosen = pairs
    theirs_PX = objects.masks_BNHW[row, chosen].flatten(1).float()
    mine_PHW = F.interpolate(masks_BQhw[row, query][:, None], objects.masks_BNHW.shape[-2:], mode="bilinear", align_corners=False)
    logits_PX = mine_PHW.flatten(1)
    share_PX = logits_PX.sigmoid()
    wrong_PX = share_PX * (1 - theirs_PX) + (1 - share_PX) * theirs_PX  # 1 - p_t
    balance_PX = 0.25 * theirs_PX + 0.75 * (1 - theirs_PX)
    focal_PX = balance_PX * wrong_PX**2 * F.binary_cross_entropy_with_logits(logits_PX, theirs_PX, reduction="none")
    both_P, either_P = (share_PX * theirs_PX).sum(1), share_PX.sum(1) + theirs_PX.sum(1)
    dice_P = 1 - (2 * both_P + 1) / (either_P + 1)
    return {"focal": focal_PX.mean(1).sum() / objects.count, "dice": dice_P.sum() / objects.count}
