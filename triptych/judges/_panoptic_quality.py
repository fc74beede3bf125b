"""Panoptic quality: does every thing have its outline, if each pixel belongs to one alone? (Kirillov et al., arXiv 1801.00868)

Shape legend: H W grid, X = H W pixels, D masks predicted, G masks there, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["panoptic_quality"]


def panoptic_quality(
    pred_masks: Sequence[Tensor], pred_classes: Sequence[Tensor], true_masks: Sequence[Tensor], true_classes: Sequence[Tensor]
) -> dict[str, float]:
    """PQ = sum of the matched masks' IoU / (TP + FP / 2 + FN / 2); SQ: their mean IoU; RQ: PQ / SQ. Of each class; then the classes' means.

    One entry a picture: masks bool [D, H, W] and [G, H, W], classes int [D] and [G]. Predictions stand surest first: the earlier one
    keeps a pixel that two want, and what keeps none is nothing. Masks of one class with IoU > 0.5 match: neither can have a second such.
    n_classes: that occur, in truth or prediction; without any there is nothing else.  Raises ValueError if true masks overlap.
    """
    tallies: dict[int, Tensor] = {}  # class -> sum of IoU, TP, masks predicted, masks there
    for said_DHW, class_D, there_GHW, class_G in zip(pred_masks, pred_classes, true_masks, true_classes, strict=True):
        said_DX, there_GX = said_DHW.cpu().bool().flatten(1), there_GHW.cpu().bool().flatten(1)
        if (there_GX.sum(0) > 1).any():
            raise ValueError("true masks overlap: in a panoptic picture a pixel belongs to one thing alone; give it to the one in front")
        said_DX = said_DX & (said_DX.cumsum(0) == 1)
        both_DG = said_DX.double() @ there_GX.double().T
        iou_DG = both_DG / (said_DX.sum(1)[:, None] + there_GX.sum(1) - both_DG).clamp(min=1)
        match_DG = (iou_DG > 0.5) & (class_D.cpu()[:, None] == class_G.cpu())
        for place, masks_MX, classes in ((2, said_DX, class_D), (3, there_GX, class_G)):
            for number in classes.cpu()[masks_MX.any(1)].tolist():
                tallies.setdefault(number, torch.zeros(4, dtype=torch.float64))[place] += 1
        for d, g in match_DG.nonzero().tolist():
            tallies[int(class_D[d])] += torch.tensor([iou_DG[d, g].item(), 1, 0, 0], dtype=torch.float64)
    if not tallies:
        return {"n_classes": 0}
    overlap_K, right_K, said_K, there_K = torch.stack(list(tallies.values()), dim=1)
    half_K = (said_K + there_K) / 2  # = TP + FP / 2 + FN / 2
    quality = {"PQ": overlap_K / half_K, "SQ": overlap_K / right_K.clamp(min=1), "RQ": right_K / half_K}
    return {**{name: value_K.mean().item() for name, value_K in quality.items()}, "n_classes": len(tallies)}
