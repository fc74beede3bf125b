"""Objects: are the things that were asked for there, as many, of the colour, at the place? GenEval's idea with ground truth.

Prompts carry the scene they describe (`truth`), a detector reads the pictures, and what it reads is compared (Ghosh et al.,
arXiv 2310.11513). A prompt counts for every task that it poses; each task wants the whole scene right in its respect:

    one object         one thing was asked: it is there, and nothing else        colours            and it has its colour
    two objects        two kinds of things, one of each, and nothing else        attribute binding  and each has its own colour
    counting           as many of each kind as were asked (two or more)          position           and one stands where it was said

`exact` is all of it at once, over all prompts, and by language. The scale ends where the detector errs: `_ceiling` is the same number for
real pictures of the same prompts, given as references; `read` tells how often there every kind, colour and place was read right.
Sizes ("small", "large") are not judged.

Shape legend: B batch, C channels, H W grid, Q queries, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..contracts import Prompt
from .nearest import wilson

__all__ = ["Objects", "Config", "SIZES", "Seen"]

POSED = ("one object", "two objects", "counting", "colours", "position", "attribute binding")
Kind = tuple[str, str | None]


@dataclass(frozen=True, kw_only=True)
class Config:
    """threshold: the least probability of a detection.  overlap: intersection over union from which the weaker of two goes.
    margin: share of the picture by which one thing must stand left of (above...) another.
    place: how far from its true centre a thing of a real picture may be read."""

    threshold: float = 0.5
    overlap: float = 0.5
    margin: float = 0.02
    place: float = 0.05


SIZES = {"tiny": Config(), "default": Config()}


@dataclass(frozen=True, kw_only=True)
class Seen:
    """One detection: what it is, its colour (None: it has none that is named), its box in 0..1, how sure."""

    shape: str
    color: str | None
    cx: float
    cy: float
    w: float
    h: float
    score: float

    @property
    def kind(self) -> Kind:
        return self.shape, self.color


class Objects:
    """eyes: `.name`, `.detect(images_BCHW)` -> (logits_BQC, boxes_BQ4: centre x, y, width, height in 0..1), the last class is "nothing".

    classes: what each class is, in order: (shape, colour), colour None for things without; or plain names, and then the colour is
    told by the eyes, `.colors(images_BCHW)` -> (logits, boxes, colours_BQC), colours as `colors` names them and last "none"; or it is
    read from the pixels of the box by `palette`: colour name -> RGB in 0..255 (things that are in `colourless` have none).
    Prompts carry `truth`: `.objects`, each with `shape, color, cx, cy`; `.relation`: "left", "right", "above", "below", of objects[0] seen
    from objects[1], or None.
    """

    def __init__(
        self, config: Config, *, eyes: Any, classes: Sequence[str | Kind], colors: Sequence[str] = (),
        palette: Mapping[str, Sequence[int]] | None = None, colourless: Sequence[str] = (), **decided: Any,
    ) -> None:  # fmt: skip
        self.config, self.eyes, self.colourless = config, eyes, frozenset(colourless)
        self.classes: list[Kind] = [(c, None) if isinstance(c, str) else (c[0], c[1]) for c in classes]
        self.colors = tuple(colors)
        self.reads_pixels = all(isinstance(c, str) for c in classes) and not self.colors
        if self.reads_pixels and not palette:
            raise ValueError("these classes say no colours: give the palette, colour name -> RGB, by which pixels are read")
        self.palette = dict(palette or {})
        self.verdicts: list[dict[str, bool]] = []
        self.real: list[dict[str, bool]] = []

    # -- reading ---------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def read(self, images_BCHW: Tensor) -> list[list[Seen]]:
        """What the detector sees in each picture, surest first.

        Raises ValueError if its classes are not those that were named.
        """
        logits_BQC, boxes_BQ4, *told = (t.float().cpu() for t in (self.eyes.colors if self.colors else self.eyes.detect)(images_BCHW))
        color_BQ = told[0].argmax(-1) if told else torch.full(logits_BQC.shape[:2], -1)
        if logits_BQC.shape[-1] != len(self.classes) + 1:
            raise ValueError(f"{self.eyes.name} knows {logits_BQC.shape[-1] - 1} classes, {len(self.classes)} were named")
        found = []
        for image, p_QC, boxes_Q4, color_Q in zip(images_BCHW, logits_BQC.softmax(-1), boxes_BQ4, color_BQ.tolist(), strict=True):
            score_Q, class_Q = p_QC.max(-1)
            sure = (class_Q < len(self.classes)) & (score_Q >= self.config.threshold)
            order = [q for q in score_Q.argsort(descending=True).tolist() if sure[q]]
            seen = [self._seen(image, int(class_Q[q]), color_Q[q], boxes_Q4[q], score_Q[q].item()) for q in order]
            found.append(self._distinct(seen))
        return found

    def _seen(self, image_CHW: Tensor, number: int, told: int, box_4: Tensor, score: float) -> Seen:
        shape, color = self.classes[number]
        if self.colors:
            color = self.colors[told] if told < len(self.colors) else None
        cx, cy, w, h = box_4.tolist()
        if self.reads_pixels and shape not in self.colourless:
            color = _color(image_CHW, (cx, cy, w, h), self.palette)
        return Seen(shape=shape, color=color, cx=cx, cy=cy, w=w, h=h, score=score)

    def _distinct(self, surest_first: list[Seen]) -> list[Seen]:
        kept: list[Seen] = []
        for one in surest_first:
            if all(_shared(one, other) < self.config.overlap for other in kept):
                kept.append(one)
        return kept

    # -- judging ---------------------------------------------------------------------------------------------------------

    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt], references: Tensor | None = None) -> None:
        """references: real pictures of the same prompts, drawn from their truth.

        Raises ValueError if prompts have no truth, or counts do not meet.
        """
        for prompt in prompts:
            if not getattr(prompt.truth, "objects", None):
                raise ValueError(f"prompt {prompt.text!r} carries no scene as truth: this judge asks prompts of the scenes' grammar")
        for pictures, verdicts in ((images_BCHW, self.verdicts), (references, self.real)):
            if pictures is None:
                continue
            if len(pictures) != len(prompts):
                raise ValueError(f"{len(pictures)} pictures, but {len(prompts)} prompts: give one a picture")
            for seen, prompt in zip(self.read(pictures), prompts, strict=True):
                verdict = self.judge(seen, prompt.truth)
                language = "zh" if any("一" <= c <= "鿿" for c in prompt.text) else "en"
                verdicts.append({**verdict, f"exact {language}": verdict["exact"], "read": self._read_right(seen, prompt.truth)})

    def judge(self, seen: Sequence[Seen], scene: Any) -> dict[str, bool]:
        """task -> right, for the tasks that this scene poses, and "exact"."""
        kinds: list[Kind] = [(thing.shape, thing.color) for thing in scene.objects]
        asked, there = Counter(kinds), Counter(one.kind for one in seen)
        shapes = Counter(shape for shape, _ in kinds) == Counter(one.shape for one in seen)
        colours, single = asked == there, max(asked.values()) == 1
        placed = shapes and (scene.relation is None or self._stands(seen, kinds[:2], scene.relation))
        out = {"exact": colours and placed}
        if len(kinds) == 1:
            out["one object"] = shapes
        elif single and len(kinds) == 2 and kinds[0][0] != kinds[1][0]:
            out["two objects"] = shapes
        if not single:
            out["counting"] = shapes
        if len(asked) == 1 and kinds[0][1] is not None:
            out["colours"] = colours
        if scene.relation is not None:
            out["position"] = placed
        if len({color for _, color in asked}) > 1:
            out["attribute binding"] = colours
        return out

    def _stands(self, seen: Sequence[Seen], kinds: Sequence[Kind], relation: str) -> bool:
        """Are there a thing of the first kind and one of the second in this relation? Shapes tell them apart, or else colours."""
        by_color = kinds[0][0] == kinds[1][0]
        first, second = ([one for one in seen if (one.kind == kind if by_color else one.shape == kind[0])] for kind in kinds)
        axis, sign = {"left": ("cx", -1), "right": ("cx", 1), "above": ("cy", -1), "below": ("cy", 1)}[relation]
        return any(sign * (getattr(a, axis) - getattr(b, axis)) > self.config.margin for a in first for b in second)

    def _read_right(self, seen: Sequence[Seen], scene: Any) -> bool:
        """Every thing of a real picture found with its kind, colour and place, and nothing besides."""
        left = list(seen)
        for thing in scene.objects:
            near = [
                one for one in left
                if one.kind == (thing.shape, thing.color) and max(abs(one.cx - thing.cx), abs(one.cy - thing.cy)) <= self.config.place
            ]  # fmt: skip
            if not near:
                return False
            left.remove(near[0])
        return not left

    def each(self) -> dict[str, list[float]]:
        """exact: 1 or 0 a picture."""
        return {"exact": [float(verdict["exact"]) for verdict in self.verdicts]}

    def result(self) -> dict[str, float]:
        """Each task (with `_low`, `_high`, `_n`), exact, `exact en`, `exact zh`; mean: of the tasks that were posed; each again as
        `_ceiling` of the real pictures, and there `read`; n."""
        out: dict[str, float] = {"n": len(self.verdicts), "n_real": len(self.real)}
        for verdicts, tail, more in ((self.verdicts, "", ()), (self.real, "_ceiling", ("read",))):
            posed = []
            for task in (*POSED, "exact", "exact en", "exact zh", *more):
                of_task = [verdict[task] for verdict in verdicts if task in verdict]
                if not of_task:
                    continue
                low, high = wilson(sum(of_task), len(of_task))
                share, name = sum(of_task) / len(of_task), f"{task}{tail}"
                out |= {name: share, f"{name}_low": low, f"{name}_high": high, f"{name}_n": len(of_task)}
                posed += [share] if task in POSED else []
            if posed:
                out[f"mean{tail}"] = sum(posed) / len(posed)
        return out


def _shared(a: Seen, b: Seen) -> float:
    """Intersection over union of two boxes."""
    across = min(a.cx + a.w / 2, b.cx + b.w / 2) - max(a.cx - a.w / 2, b.cx - b.w / 2)
    down = min(a.cy + a.h / 2, b.cy + b.h / 2) - max(a.cy - a.h / 2, b.cy - b.h / 2)
    both = max(0.0, across) * max(0.0, down)
    return both / max(1e-12, a.w * a.h + b.w * b.h - both)


def _color(image_CHW: Tensor, box: tuple[float, float, float, float], palette: Mapping[str, Sequence[int]]) -> str | None:
    """The named colour to which most pixels of the box are nearest, the paler corners' colour (the background) left out."""
    height, width = image_CHW.shape[1:]
    cx, cy, w, h = box
    x0, x1 = max(0, int((cx - w / 2) * width)), min(width, max(int((cx - w / 2) * width) + 1, round((cx + w / 2) * width)))
    y0, y1 = max(0, int((cy - h / 2) * height)), min(height, max(int((cy - h / 2) * height) + 1, round((cy + h / 2) * height)))
    pixels = ((image_CHW[:, y0:y1, x0:x1].float().cpu() + 1) * 127.5).flatten(1).T
    if not len(pixels):
        return None
    names = list(palette)
    edge = torch.cat([image_CHW[:, 0], image_CHW[:, -1], image_CHW[:, :, 0], image_CHW[:, :, -1]], dim=1)
    background = (edge.float().cpu() + 1).mul(127.5).median(dim=1).values[None]
    known = torch.cat([torch.tensor([list(palette[name]) for name in names], dtype=torch.float32), background])
    votes = torch.bincount(torch.cdist(pixels, known).argmin(1), minlength=len(known))[: len(names)]
    return names[int(votes.argmax())] if votes.any() else None
