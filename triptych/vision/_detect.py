"""Detection: the task of DETR (arXiv 2005.12872), from boxes, and from the scene graph what else is to be said of an object.

It asks of the panel: `image_size`, `config.num_classes`, `config.attributes` as (name, values) each, `config.masks`, and that
`panel(pixels_BCHW, every_layer=...)` gives logits_BQK, boxes_BQ4, attributes, masks_BQhw, `earlier` and `row(i)`, as `detr.Seen` does.

Shape legend: B batch, Q queries, N objects, K classes and "no object", P matched pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..contracts import Batch, Prompt, Rng
from ..layers.matching import NOT_ASKED, Costs, Objects, iou, mask_losses, match, set_losses
from ..layers.one_phase import OnePhase
from ..layers.pixels import average_down, recolored, varied

if TYPE_CHECKING:
    from .detr import DETR, Seen

__all__ = ["Detect"]


class Detect(OnePhase):
    """The paper's task: learn from `Prompt.boxes_N5` (class and box), and from `Prompt.truth` what attributes an object has.

    truth.objects[i].NAME is the value of attribute NAME of box i; a value that the head does not know is "none of them".
    nothing: weight of "no object" in the cross entropy; more than the paper's where there are few queries, against doubles.
    masks: a function (truth, side) -> bool [N, side, side], for a panel with a mask head.
    vary: how pictures are varied in training, arguments of `layers.pixels.varied`; not "jitter", for boxes would not move along.
    recolor: share of the pictures that are shown in other colours, and not asked for attributes: so that what a thing is does not come
    to depend on the colours in which it was shown, and things are known in colours that they never had.
    Pictures are shown in [-1, 1], averaged down to `image_size`: a network trained here has mean and deviation 0.5.
    """

    def __init__(
        self, panel: DETR, *, neighbours: Mapping[str, Any] | None = None, nothing: float = 0.1, masks: Callable | None = None,
        vary: Mapping[str, Any] | None = None, recolor: float = 0.0,
    ) -> None:  # fmt: skip
        if panel.config.masks and masks is None:
            raise ValueError("a panel with a mask head learns from masks: pass masks=function(truth, side), or set config.masks = False")
        self.vary, self.recolor = dict(vary or {}), recolor
        if self.vary.get("jitter"):
            raise ValueError("detection cannot vary pictures by jitter: the boxes would stay where they were")
        self.panel, self.masks, self.costs = panel, masks, Costs(nothing=nothing)
        self.weights = {"classes": 1.0, "l1": self.costs.l1, "giou": self.costs.giou, "attributes": 1.0, "focal": 1.0, "dice": 1.0}
        self.modules = nn.ModuleDict({"vision": panel})

    def objects(self, prompts: Sequence[Prompt], device: torch.device | None = None) -> Objects:
        """What there is, padded to the most that a picture has. Raises ValueError for a prompt without boxes."""
        config, counts = self.panel.config, [0 if p.boxes_N5 is None else len(p.boxes_N5) for p in prompts]
        if any(p.boxes_N5 is None for p in prompts):
            raise ValueError("detection learns from boxes, and this data has none (Prompt.boxes_N5); data `scenes` has them")
        shape = (len(prompts), max(counts))
        boxes, real = torch.zeros(*shape, 5), torch.arange(shape[1]) < torch.tensor(counts)[:, None]
        values = [torch.zeros(shape, dtype=torch.int64) for _ in config.attributes]
        for i, prompt in enumerate(prompts):
            boxes[i, : counts[i]] = torch.as_tensor(prompt.boxes_N5)
            for (name, known), value_BN in zip(config.attributes, values, strict=True):
                for j, thing in enumerate(prompt.truth.objects):
                    said = getattr(thing, name)
                    value_BN[i, j] = known.index(said) if said in known else len(known)
        if real.any() and boxes[..., 0].max() >= config.num_classes:
            raise ValueError(f"a box has class {int(boxes[..., 0].max())}, the head has {config.num_classes}; set num_classes higher")
        masks = None
        if self.masks is not None:
            side = self.panel.image_size
            masks = torch.zeros(*shape, side, side)
            for i, prompt in enumerate(prompts):
                masks[i, : counts[i]] = torch.as_tensor(self.masks(prompt.truth, side)).float()
        return Objects(
            real_BN=real.to(device), classes_BN=boxes[..., 0].long().to(device), boxes_BN4=boxes[..., 1:].to(device),
            attributes=tuple(v.to(device) for v in values), masks_BNHW=None if masks is None else masks.to(device),
        )  # fmt: skip

    def _losses(self, seen: Seen, objects: Objects) -> dict[str, Tensor]:
        """The "loss" over all layers, and its parts as the last layer has them."""
        total, out = torch.zeros((), device=seen.boxes_BQ4.device), {}
        for said in (*seen.earlier, seen):
            pairs = match(said.logits_BQK, said.boxes_BQ4, objects, self.costs)
            out = set_losses(said.logits_BQK, said.boxes_BQ4, said.attributes, objects, pairs, self.costs)
            if said.masks_BQhw is not None:
                out |= mask_losses(said.masks_BQhw, objects, pairs)
            total = total + sum(self.weights.get(name, 0.0) * value for name, value in out.items())
        return {"loss": total, **{name: value.detach() for name, value in out.items()}}

    def _shown(self, batch: Batch) -> Tensor:
        if batch.images_BCHW is None:
            raise ValueError("detection needs pictures; this data has texts alone (data.size = 0?)")
        return average_down(batch.images_BCHW, self.panel.image_size)

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        pixels = self._shown(batch)
        objects = self.objects(batch.prompts, pixels.device)
        if self.recolor:
            pixels, which_B = recolored(pixels, rng, self.recolor)
            unasked = tuple(value_BN.masked_fill(which_B[:, None], NOT_ASKED) for value_BN in objects.attributes)
            objects = replace(objects, attributes=unasked)
        return self._losses(self.panel(varied(pixels, rng, **self.vary), every_layer=True), objects)

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """[B] each: loss of the last layer; iou, the mean over its objects; exact, whether nothing is missed, doubled or invented,
        and class, attributes and place (IoU of at least a half) of every object are right."""
        everything, rows = self.panel(self._shown(batch)), []
        for i, prompt in enumerate(batch.prompts):
            seen = everything.row(i)
            objects = self.objects([prompt], seen.boxes_BQ4.device)
            row, query, chosen = match(seen.logits_BQK, seen.boxes_BQ4, objects, self.costs)
            guess_Q, nothing = seen.logits_BQK.argmax(-1)[0], seen.logits_BQK.shape[-1] - 1
            overlap_P = iou(seen.boxes_BQ4[row, query], objects.boxes_BN4[row, chosen])
            right = (guess_Q[query] == objects.classes_BN[0, chosen]) & (overlap_P >= 0.5)
            for logits, value_BN in zip(seen.attributes, objects.attributes, strict=True):
                right = right & (logits.argmax(-1)[0, query] == value_BN[0, chosen])
            exact = right.all() & ((guess_Q != nothing).sum() == objects.real_BN.sum())
            rows.append(torch.stack([self._losses(seen, objects)["loss"], overlap_P.mean(), exact.float()]))
        return dict(zip(("loss", "iou", "exact"), torch.stack(rows, dim=1), strict=True))
