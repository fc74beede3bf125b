"""Supervised classification: the task that ViT, ResNet and their kin were published with, written once for all of them.

It asks of the panel: `config.num_classes`, `image_size`, and `classify(pixels_BCHW) -> logits_BK`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import Batch, Prompt, Rng
from ..layers.one_phase import OnePhase
from ..layers.pixels import average_down

__all__ = ["Classification"]


class Classification(OnePhase):
    """Cross entropy on each picture's class: `Prompt.label`, or the place of `Prompt.text` in `classes`, where there is no label.

    Pictures are shown in [-1, 1], averaged down to the panel's `image_size`; so a network trained here has mean and deviation 0.5.
    smoothing: share of the target that is spread over all classes (arXiv 1512.00567).
    Raises ValueError for a panel without a head, or more classes than its head has.
    """

    def __init__(
        self, panel: nn.Module, *, neighbours: Mapping[str, Any] | None = None, classes: Sequence[str] = (), smoothing: float = 0.0
    ) -> None:
        self.panel: Any = panel
        self.num_classes: int = self.panel.config.num_classes
        if not self.num_classes:
            raise ValueError("this network has no head (num_classes = 0); set family.config.num_classes to the number of classes")
        if len(classes) > self.num_classes:
            raise ValueError(f"{len(classes)} classes are named, the head has {self.num_classes}; set num_classes to {len(classes)}")
        self.number = {name: i for i, name in enumerate(classes)}
        self.smoothing = smoothing
        self.modules = nn.ModuleDict({"vision": panel})

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """logits_BK and label_B."""
        if batch.images_BCHW is None:
            raise ValueError("classification needs pictures; this data has texts alone (data.size = 0?)")
        labels = [self._class_of(prompt) for prompt in batch.prompts]
        logits_BK = self.panel.classify(average_down(batch.images_BCHW, self.panel.image_size)).float()
        return logits_BK, torch.tensor(labels, device=logits_BK.device)

    def _class_of(self, prompt: Prompt) -> int:
        found = self.number.get(prompt.text) if prompt.label is None else prompt.label
        if found is None:
            raise ValueError(f"a picture of {prompt.text!r} has no label, and that is none of the task's {len(self.number)} `classes`")
        if not 0 <= found < self.num_classes:
            wanted = f"set num_classes to {found + 1} or more" if found > 0 else "classes count from 0"
            raise ValueError(f"a picture has label {found}, the head has {self.num_classes} classes; {wanted}")
        return found

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """loss, and the share whose first guess is right."""
        logits_BK, label_B = self._logits(batch)
        loss = F.cross_entropy(logits_BK, label_B, label_smoothing=self.smoothing)
        return {"loss": loss, "right": (logits_BK.argmax(1) == label_B).float().mean()}

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """[B] each: loss, and whether the first guess is right, and one of the first five."""
        logits_BK, label_B = self._logits(batch)
        guesses_BK = logits_BK.topk(min(5, self.num_classes), dim=1).indices == label_B[:, None]
        return {
            "loss": F.cross_entropy(logits_BK, label_B, reduction="none"),
            "right": guesses_BK[:, 0].float(),
            "right_5": guesses_BK.any(dim=1).float(),
        }
