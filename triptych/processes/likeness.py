"""Likeness to a picture, as a critic: of pixels, of features, or of style. Its gradient guides (`guidance.CriticGuidance`).

    score(x) = -|phi(x) - phi(reference)|^2,  the mean over all numbers

    pixels      phi is the picture itself, perhaps blurred: what lies where, in which colour
    features    phi are the states of eyes, [L, D]: what there is, roughly where
    gram        phi = F^T F / (L D) of those states: what occurs together, wherever it is: style (Gatys et al., arXiv 1508.06576)

Shape legend: B batch, C channels, H W grid, L places, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.contracts import Condition

__all__ = ["LIKENESSES", "Likeness"]

LIKENESSES = ("pixels", "features", "gram")


class Likeness(nn.Module):
    """How like the reference each picture is: at most 0.

    reference: [1 or B, C, H, W], as the critic will see pictures.
    features: pictures to states [B, L, D]; needed for "features" and "gram".  blur: pixels are averaged over squares of this side.
    Raises ValueError for another name, and where features are needed and not given.
    """

    role = "critic"
    wanted: Tensor

    def __init__(
        self,
        reference: Tensor,
        by: Literal["pixels", "features", "gram"],
        features: Callable[[Tensor], Tensor] | None = None,
        blur: int = 1,
    ) -> None:
        super().__init__()
        if by not in LIKENESSES:
            raise ValueError(f"no likeness by {by!r}; there are: {', '.join(LIKENESSES)}")
        if by != "pixels" and features is None:
            raise ValueError(f"likeness by {by} is seen through eyes; give some, or choose pixels")
        self.by, self.features, self.blur = by, features, blur
        with torch.no_grad():
            self.register_buffer("wanted", self._phi(reference))

    def _phi(self, x: Tensor) -> Tensor:
        if self.by == "pixels":
            return F.avg_pool2d(x, self.blur) if self.blur > 1 else x
        assert self.features is not None
        states_BLD = self.features(x)
        if self.by == "features":
            return states_BLD
        return states_BLD.transpose(1, 2) @ states_BLD / (states_BLD.shape[1] * states_BLD.shape[2])

    def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        """x [B, C, H, W] -> score_B."""
        return -(self._phi(x) - self.wanted).square().flatten(1).mean(1)
