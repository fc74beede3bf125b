"""Detection: does a detector find the things of a picture, where they are, and does it say of each what is true?

Average precision is COCO's (Lin et al., arXiv 1405.0312; pycocotools' rules, without crowds and without ranges of area). In each picture
the detections of a class, surest first, take the free object of that class which they overlap most, if by at least t; then those of all
pictures stand in one row, surest first, and

    precision(recall) = right / all so far, the best at this recall or a higher one,        AP_t = its mean over recall 0, 0.01, ..., 1

AP is the mean over t = 0.50, 0.55, ..., 0.95 and over the classes that occur; AP50 and AP75 have one t; AR is the mean of the last recall.
As DETR does it, every query gives its best real class with that class's probability, and nothing is too unsure to count here.

People ask more than a curve: `exact` is the share of pictures in which everything was read right and nothing invented.

Shape legend: B batch, C channels, H W grid, N pictures, D detections, G objects that there are, T thresholds of IoU, K classes; a query's
logits are of the classes and of "nothing", the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..contracts import Prompt
from ..layers.matching import assign, iou
from ._panoptic_quality import panoptic_quality
from ._samples import Z, counts
from .nearest import wilson

__all__ = ["Detection", "Config", "SIZES", "panoptic_quality"]

IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # detections of one class in one picture
PLACE = 0.5  # intersection over union from which a thing is where it should be


@dataclass(frozen=True, kw_only=True)
class Config:
    """threshold: the least probability of what counts as said, for `exact`; average precision has none.

    overlap_nms: of two detections of one class that share more than this (IoU), the weaker goes before anything is counted; None: both
    stay, for a detector that learns sets should not say things twice.  resamples: of the bootstrap over pictures; below 2: no intervals.
    """

    threshold: float = 0.5
    overlap_nms: float | None = None
    resamples: int = 200
    seed: int = 0


SIZES = {"tiny": Config(resamples=20), "default": Config(), "nms": Config(overlap_nms=0.5)}


class _Said(NamedTuple):
    """Of one picture, surest first. color_D: all 0 if nobody tells colours."""

    class_D: np.ndarray
    color_D: np.ndarray
    box_D4: np.ndarray
    score_D: np.ndarray


class _Picture(NamedTuple):
    """What is kept of one. hit_TD: which detections found an object.  The lists are of its matched objects."""

    class_D: np.ndarray
    score_D: np.ndarray
    hit_TD: np.ndarray
    class_G: np.ndarray
    exact: bool
    class_right: list[bool]
    color_right: dict[str, list[bool]]
    distance: list[float]
    iou: list[float]


class _Row(NamedTuple):
    """One class. picture_D: where its detections were made, surest first.  at_M: the places in this row of those that found an object at
    any threshold, hit_TM: at which.  objects_N: how many each picture has."""

    picture_D: np.ndarray
    at_M: np.ndarray
    hit_TM: np.ndarray
    objects_N: np.ndarray


class Detection:
    """eyes: `.name`, `.detect(images_BCHW)` -> (logits [B, Q, classes + 1], boxes [B, Q, 4]: centre x, y, width, height in 0..1).

    classes: names of the classes, as `Prompt.boxes_N5` numbers them; () if they have none.
    colors: of eyes that tell colours, `.colors(images_BCHW)` -> (logits, boxes, colours [B, Q, len(colors) + 1], the last "none").
    Prompts carry `boxes_N5`, and where colours are told `truth.objects[i].color`, of box i; a colour that is not named is "none".
    """

    def __init__(self, config: Config, *, eyes: Any, classes: Sequence[str] = (), colors: Sequence[str] = (), **decided: Any) -> None:
        self.config, self.eyes, self.classes, self.colors = config, eyes, tuple(classes), tuple(colors)
        self._pictures: list[_Picture] = []

    # -- reading -----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt], references: Tensor | None = None) -> None:
        """Raises ValueError if counts do not meet, a prompt says no boxes, or a class is none of the detector's."""
        if len(prompts) != len(images_BCHW):
            raise ValueError(f"{len(images_BCHW)} pictures, but {len(prompts)} prompts: give one a picture")
        logits_BQK, boxes_BQ4, *told = (t.double().cpu() for t in (self.eyes.colors if self.colors else self.eyes.detect)(images_BCHW))
        many = logits_BQK.shape[-1] - 1
        if self.classes and many != len(self.classes):
            raise ValueError(f"{self.eyes.name} knows {many} classes, {len(self.classes)} were named")
        if told and told[0].shape[-1] != len(self.colors) + 1:
            raise ValueError(f"{self.eyes.name} knows {told[0].shape[-1] - 1} colours, {len(self.colors)} were named")
        if not (logits_BQK.isfinite().all() and boxes_BQ4.isfinite().all()):
            raise ValueError(f"{self.eyes.name} gives numbers that are not finite, which cannot be ranked: look at how its training ended")
        score_BQ, class_BQ = logits_BQK.softmax(-1)[..., :-1].max(-1)
        color_BQ = told[0].argmax(-1) if told else torch.zeros_like(class_BQ)
        for row in zip(prompts, class_BQ, color_BQ, boxes_BQ4, score_BQ, strict=True):
            class_G, color_G, box_G4 = self._truth(row[0], many)
            self._pictures.append(self._judge(self._distinct(*(t.numpy() for t in row[1:])), class_G, color_G, box_G4))

    def _truth(self, prompt: Prompt, many: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(class_G, color_G, box_G4)"""
        if prompt.boxes_N5 is None:
            raise ValueError(f"prompt {prompt.text!r} says no boxes (Prompt.boxes_N5), and this judge asks for them: take data `scenes`")
        box_G5 = np.asarray(prompt.boxes_N5, dtype=np.float64).reshape(-1, 5)
        class_G, color_G = box_G5[:, 0].astype(int), np.zeros(len(box_G5), dtype=int)
        if len(class_G) and not 0 <= class_G.min() <= class_G.max() < many:
            raise ValueError(f"boxes have classes {class_G.min()}..{class_G.max()}, but {self.eyes.name} knows 0..{many - 1}")
        if self.colors:
            things = getattr(prompt.truth, "objects", ())
            if len(things) != len(box_G5):
                raise ValueError(f"prompt {prompt.text!r}: {len(box_G5)} boxes, but colours of {len(things)} objects (truth.objects)")
            color_G[:] = [self.colors.index(one.color) if one.color in self.colors else len(self.colors) for one in things]
        return class_G, color_G, box_G5[:, 1:]

    def _distinct(self, class_D: np.ndarray, color_D: np.ndarray, box_D4: np.ndarray, score_D: np.ndarray) -> _Said:
        """Surest first (the earlier query, of equals), without doubles, and at most MOST of a class."""
        order_D = np.argsort(-score_D, kind="stable")
        limit, overlap_DD = self.config.overlap_nms, _overlaps(box_D4, box_D4)
        kept: list[int] = []
        for d in order_D:
            same = [k for k in kept if class_D[k] == class_D[d]]
            if len(same) < MOST and (limit is None or not (overlap_DD[d, same] > limit).any()):
                kept.append(int(d))
        return _Said(class_D[kept], color_D[kept], box_D4[kept], score_D[kept])

    def _judge(self, said: _Said, class_G: np.ndarray, color_G: np.ndarray, box_G4: np.ndarray) -> _Picture:
        overlap_DG = _overlaps(said.box_D4, box_G4)
        hit_TD = np.zeros((len(IOUS), len(said.class_D)), dtype=bool)
        for number in np.unique(class_G):
            mine_D, theirs_G = said.class_D == number, class_G == number
            hit_TD[:, mine_D] = _taken(overlap_DG[mine_D][:, theirs_G])

        there_DG = overlap_DG >= PLACE
        g_M = np.flatnonzero(there_DG.any(0))  # the matched objects, and of each the surest detection that overlaps it
        d_M = there_DG.argmax(0)[g_M] if len(g_M) else g_M
        named_M, color_right_M = color_G[g_M] < len(self.colors), said.color_D[d_M] == color_G[g_M]
        sure_D = said.score_D >= self.config.threshold
        right_DG = there_DG & (said.class_D[:, None] == class_G) & (said.color_D[:, None] == color_G)
        return _Picture(
            class_D=said.class_D, score_D=said.score_D, hit_TD=hit_TD, class_G=class_G, exact=_one_to_one(right_DG[sure_D]),
            class_right=(said.class_D[d_M] == class_G[g_M]).tolist(),
            color_right={"color": color_right_M[named_M].tolist(), "no color": color_right_M[~named_M].tolist()} if self.colors else {},
            distance=np.hypot(*(said.box_D4[d_M, :2] - box_G4[g_M, :2]).T).tolist(), iou=overlap_DG[d_M, g_M].tolist(),
        )  # fmt: skip

    # -- judging -----------------------------------------------------------------------------------------------------------

    def each(self) -> dict[str, list[float]]:
        """exact: 1 or 0 a picture."""
        return {"exact": [float(picture.exact) for picture in self._pictures]}

    def result(self) -> dict[str, float]:
        """AP, AP50, AP75, AR; of the objects that were matched (surest detection with IoU >= 0.5, however sure; their share is `matched`)
        the shares whose class and color were told, and of those without colour, that there is none: class, color, "no color"; their mean
        distance of centres as a share of the picture, place, and mean iou; exact, and exact_1, exact_2... by the number of objects.

        Each with `_low`, `_high`: shares by Wilson, with their `_n`; means by 1.96 standard deviations over `resamples` draws of pictures
        with replacement. What there is nothing of is left out.
        n pictures, n_objects, n_classes that occur, resamples.  Raises ValueError if nothing was added.
        """
        if not self._pictures:
            raise ValueError("no pictures were added")
        rows, n = self._rows(), len(self._pictures)
        placed_3N = np.array([[len(p.iou), sum(p.distance), sum(p.iou)] for p in self._pictures]).T
        resampled = [_means(rows, placed_3N, drawn_N.numpy()) for drawn_N in counts(n, self.config.resamples, self.config.seed)]
        out: dict[str, float] = {"n": n, "n_objects": sum(len(p.class_G) for p in self._pictures), "n_classes": len(rows)}
        out["resamples"] = self.config.resamples
        for name, value in _means(rows, placed_3N, np.ones(n)).items():
            if np.isfinite(value):
                out[name] = value
                values_R = [means[name] for means in resampled if np.isfinite(means[name])]
                if n > 1 and len(values_R) > 1:  # their spread, not their place: pictures drawn twice push AP upwards
                    half = Z * float(np.std(values_R, ddof=1))
                    out[f"{name}_low"], out[f"{name}_high"] = max(0.0, value - half), min(1.0, value + half)
        for name, right in self._shares().items():
            if right:
                low, high = wilson(sum(right), len(right))
                out |= {name: sum(right) / len(right), f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(right)}
        return out

    def by_class(self) -> dict[str, float]:
        """AP of each class that occurs, the lowest first."""
        rows, all_N = self._rows(), np.ones(len(self._pictures))
        found = {self.classes[k] if self.classes else str(k): float(_curve(row, all_N)[0].mean()) for k, row in rows.items()}
        return dict(sorted(found.items(), key=lambda item: item[1]))

    def _rows(self) -> dict[int, _Row]:
        """class -> its row, for classes that occur."""
        pictures = self._pictures
        class_D, score_D = (np.concatenate([getattr(p, name) for p in pictures]) for name in ("class_D", "score_D"))
        hit_TD = np.concatenate([p.hit_TD for p in pictures], axis=1)
        picture_D = np.repeat(np.arange(len(pictures)), [len(p.class_D) for p in pictures])
        order_D = np.argsort(-score_D, kind="stable")
        out = {}
        for number in np.unique(np.concatenate([p.class_G for p in pictures])):
            mine_D = order_D[class_D[order_D] == number]
            at_M = np.flatnonzero(hit_TD[:, mine_D].any(0))
            objects_N = np.array([(p.class_G == number).sum() for p in pictures])
            out[int(number)] = _Row(picture_D[mine_D], at_M, hit_TD[:, mine_D[at_M]], objects_N)
        return out

    def _shares(self) -> dict[str, list[bool]]:
        pictures = self._pictures
        numbers = sorted({len(p.class_G) for p in pictures})
        return {
            "matched": [i < len(p.iou) for p in pictures for i in range(len(p.class_G))],
            "class": [right for p in pictures for right in p.class_right],
            **{name: [right for p in pictures for right in p.color_right.get(name, ())] for name in ("color", "no color")},
            "exact": [p.exact for p in pictures],
            **{f"exact_{number}": [p.exact for p in pictures if len(p.class_G) == number] for number in numbers},
        }


def _overlaps(a_D4: np.ndarray, b_G4: np.ndarray) -> np.ndarray:
    """[D, G]"""
    return iou(torch.from_numpy(a_D4)[:, None], torch.from_numpy(b_G4)[None]).numpy()


def _taken(overlap_DG: np.ndarray) -> np.ndarray:
    """Which detections, surest first, take an object, bool [T, D]: each the free one that it overlaps most (the last, of equals)."""
    D, G = overlap_DG.shape
    free_TG, hit_TD, T = np.ones((len(IOUS), G), dtype=bool), np.zeros((len(IOUS), D), dtype=bool), np.arange(len(IOUS))
    for d, overlap_G in enumerate(overlap_DG):
        open_TG = np.where(free_TG & (overlap_G >= IOUS[:, None]), overlap_G, -1.0)
        best_T = G - 1 - open_TG[:, ::-1].argmax(1)
        hit_TD[:, d] = open_TG[T, best_T] >= 0
        free_TG[T, best_T] &= ~hit_TD[:, d]
    return hit_TD


def _one_to_one(right_DG: np.ndarray) -> bool:
    """Can every detection be given an object of its own for which it is right, and none is left?"""
    if right_DG.shape[0] != right_DG.shape[1]:
        return False
    return bool(right_DG[assign((~right_DG).astype(float))].all())


def _curve(row: _Row, weight_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(average precision, last recall), float64 [T] each, where picture i came weight_N[i] times.

    Only where something was found need precision be known: it falls until then. Weights do what repeated rows would: in a run of equal
    detections precision is best at the end, or before it begins.
    """
    weight_D, total = weight_N[row.picture_D], weight_N @ row.objects_N
    right_TM = np.cumsum(row.hit_TM * weight_D[row.at_M], axis=1)
    precision_TM = right_TM / np.maximum(np.cumsum(weight_D)[row.at_M], 1)
    best_TM = np.maximum.accumulate(precision_TM[:, ::-1], axis=1)[:, ::-1]
    best_TM = np.pad(best_TM, ((0, 0), (0, 1)))  # at a recall that is never reached: 0
    places_TR = [np.searchsorted(recall_M, RECALLS) for recall_M in right_TM / total]
    average_T = np.array([best_M[place_R].mean() for best_M, place_R in zip(best_TM, places_TR, strict=True)])
    return average_T, (row.hit_TM @ weight_D[row.at_M]) / total


def _means(rows: dict[int, _Row], placed_3N: np.ndarray, weight_N: np.ndarray) -> dict[str, float]:
    """Where picture i came weight_N[i] times. placed: how many were matched, their distances, their IoU.  nan: nothing to average."""
    curves = [_curve(row, weight_N) for row in rows.values() if weight_N @ row.objects_N]
    precision_KT, recall_KT = (np.array([curve[i] for curve in curves]).reshape(-1, len(IOUS)) for i in (0, 1))
    parts = {"AP": precision_KT, "AP50": precision_KT[:, 0], "AP75": precision_KT[:, 5], "AR": recall_KT}
    matched, *totals = placed_3N @ weight_N
    out = {name: float(values.mean()) if values.size else float("nan") for name, values in parts.items()}
    return out | {name: float(total / matched) if matched else float("nan") for name, total in zip(("place", "iou"), totals, strict=True)}
