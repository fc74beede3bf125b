"""Prompts from what a person gave: words, a class, boxes, a picture, a mask; and from words alone what a model needs beside them.

    given = Given.of(label=None, boxes="circle 0.1,0.2,0.4,0.5", image=None, mask=None)
    prompts, made = asked(model, ["a red circle"], seeds=[0], given=given)

What a model's text encoder reads it says itself, by an attribute `reads`: a frozenset of Prompt's fields, of "text", "label", "boxes",
"image", "mask"; without it, text alone; empty, nothing at all (an unconditional model). One that reads labels has `label_of(prompt)`,
one that reads pictures a `config.kind`: "low_resolution", "semantic" (a map in its `colors`) or "masked".

What is not given is made from the words: boxes and a map from the scene that they describe (`data.read_scene`), a small or a holed
picture from that scene drawn, or, where the words are no scene, from what the default model draws. `made` says so, a line a prompt.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..contracts import Prompt, Rng
from .errors import blame

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ..data.graph import Scene
    from ..data.index import Row
    from ..pipeline import TextToImage

__all__ = ["Given", "Unreadable", "asked", "fingerprint_of", "reads"]

Box = tuple[str, float, float, float, float]  # class, centre x, centre y, width, height
SMALLER = 4  # a low-resolution picture has a quarter of the side, as LDM's super-resolution has (arXiv 2112.10752)
_MOST_BOXES = 1000
_EXAMPLES = ("0.1,0.2,0.4,0.5", "0.5,0.5,0.9,0.9")


class Unreadable(ValueError):
    """Words from which what a model needs cannot be made. The message names the option that gives it."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a person gave beside words. label: a number or a name.  mask: white = draw anew.  names: of the pictures' files."""

    label: str | None = None
    boxes: tuple[Box, ...] | None = None
    image: Image.Image | None = None
    mask: Image.Image | None = None
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, *, label: str | None = None, boxes: str | None = None, image: str | None = None, mask: str | None = None) -> Given:
        """As typed. Raises ValueError or Failure for boxes that cannot be read, and pictures that are broken or not there."""
        from ..data.picture import opened

        def picture(path: str | None) -> Image.Image | None:
            if path is None:
                return None
            if Path(path).is_dir():
                raise ValueError(f"{path} is a folder; give a picture")
            with blame("bad_data", path):
                return opened(path)

        names = tuple(Path(path).name for path in (image, mask) if path is not None)
        return cls(label=label, boxes=None if boxes is None else _boxes(boxes), image=picture(image), mask=picture(mask), names=names)

    @property
    def fields(self) -> frozenset[str]:
        """Those of Prompt's fields that are given."""
        return frozenset(name for name in ("label", "boxes", "image", "mask") if getattr(self, name) is not None)

    def record(self) -> dict[str, Any]:
        """For a picture's record: all of it, but of pictures only what tells them apart."""
        told = {"label": self.label, "boxes": self.boxes and [list(box) for box in self.boxes]}
        pictures = {name: picture and fingerprint_of(picture) for name, picture in (("image", self.image), ("mask", self.mask))}
        return {name: value for name, value in {**told, **pictures, "names": list(self.names)}.items() if value}

    def completed(self, old: Mapping[str, Any], path: str) -> Given:
        """With what an old picture's record says; pictures must be given again. Raises ValueError for one that is missing or another."""
        label, boxes = old.get("label"), old.get("boxes")
        if not isinstance(label, (str, type(None))) or not isinstance(boxes, (list, type(None))):
            raise ValueError(f"{path}: field 'given' of the record holds no label and boxes")
        for name in ("image", "mask"):
            mine, said = getattr(self, name), old.get(name)
            if said and (mine is None or fingerprint_of(mine) != said):
                what = "was not given" if mine is None else f"is another ({fingerprint_of(mine)})"
                files = ", ".join(map(str, old.get("names", ())))
                raise ValueError(f"{path} was drawn from the {name} {said} ({files}), which {what}; give it: --{name} FILE")
        boxes = None if boxes is None else tuple(_box(box, f"{path}: field 'given'") for box in boxes[:_MOST_BOXES])
        return replace(self, label=self.label or label, boxes=self.boxes or boxes)


def reads(model: TextToImage) -> frozenset[str]:
    """What the model's text encoder reads, of Prompt's fields."""
    return frozenset(getattr(model.text_encoder, "reads", ("text",)))


def asked(
    model: TextToImage, said: Sequence[str | Prompt], seeds: Sequence[int], given: Given | None = None
) -> tuple[list[Prompt], list[str]]:
    """(a prompt for each of the words or prompts with all that the model reads, for each a line on what was made: "" = nothing).

    Raises ValueError for what is given and not read, and for labels and boxes that the model does not know; Unreadable for words
    that describe no scene, where a scene is needed.
    """
    given, heard = given or Given(), reads(model)
    if surplus := sorted(given.fields - heard):
        options = ", ".join(f"--{name}" for name in surplus)
        raise ValueError(f"{options}: {model.name or 'this model'} does not read that; it reads {', '.join(sorted(heard)) or 'nothing'}")
    if heard == {"text"}:
        return [Prompt.of(one) for one in said], [""] * len(said)
    pairs = [_asked(model, heard, Prompt.of(one), seed, given) for one, seed in zip(said, seeds, strict=True)]
    return [prompt for prompt, _ in pairs], [line for _, line in pairs]


def _asked(model: TextToImage, heard: frozenset[str], prompt: Prompt, seed: int, given: Given) -> tuple[Prompt, str]:
    if not heard:
        return prompt, "unconditional: " + ("its guide alone hears the words" if model.guide.get("eyes") else "hears no words")
    encoder, notes = model.text_encoder, []
    if "label" in heard and prompt.label is None:
        label = _label(encoder, given.label, prompt, seed)
        prompt = prompt if label is None else replace(prompt, label=label)
        if given.label is None:
            notes.append("no class in the words" if label is None else f"class {_name_of(encoder, label)}")
    if "boxes" in heard and given.boxes is not None:
        prompt = replace(prompt, boxes_N5=_numbers(encoder, given.boxes))
    elif "boxes" in heard and (prompt.boxes_N5 is None or prompt.truth is not None):  # a scene numbers classes as this model does not
        prompt, line = _boxes_of(encoder, prompt, seed)
        notes.append(line)
    if "image" in heard and prompt.image_CHW is None:
        prompt, line = _pictured(model, prompt, seed, given)
        notes += [line] if line else []
    return prompt, "; ".join(notes)


# --- classes and boxes ------------------------------------------------------------------------------------------------------


def _of(encoder: Any) -> str | None:
    """What the encoder's classes tell apart where they are the scenes', as `ports.class_of` takes it; None for classes of another world."""
    from ..data.ports import OF, class_names

    labels = _labels(encoder)
    return next((of for of in OF for cutouts in (True, False) if labels and labels == class_names(of, cutouts=cutouts)), None)


def _labels(encoder: Any) -> tuple[str, ...]:
    """The classes' names as the encoder keeps them, without a map's background."""
    labels = tuple(getattr(encoder.config, "labels", ()))
    return labels[1:] if getattr(encoder.config, "kind", None) == "semantic" else labels


def _names(encoder: Any) -> list[tuple[str, ...]]:
    return [tuple(part.strip() for part in names.split("|")) for names in _labels(encoder)]


def _number(encoder: Any, said: str, what: str) -> int:
    """A class by number or name. Raises ValueError."""
    from ..catalog import nearest

    count = encoder.num_labels
    if said.strip().isdecimal():
        if int(said) >= count:
            raise ValueError(f"{what} {said.strip()}: the classes are 0..{count - 1}")
        return int(said)
    names = _names(encoder)
    found = next((i for i, every in enumerate(names) if said.strip().lower() in (name.lower() for name in every)), None)
    if found is None:
        there = nearest(said, [every[0] for every in names]) if names else f"the classes have no names: say a number in 0..{count - 1}"
        raise ValueError(f"{what} {said.strip()!r} is no class; {there}")
    return found


def _label(encoder: Any, given: str | None, prompt: Prompt, seed: int) -> int | None:
    """What is given, else the class that the words name, else that of the first thing in the scene they describe; None: nothing fits."""
    if given is not None:
        return _number(encoder, given, "--label")
    from ..data.ports import class_of

    found, count, of = encoder.label_of(prompt), encoder.num_labels, _of(encoder)
    scene = _scene(prompt, seed) if found == count and of else None
    found = class_of(scene.objects[0], of) if scene is not None and of else found
    return found if found < count else None


def _name_of(encoder: Any, label: int) -> str:
    names = _names(encoder)
    return f"{label} ({names[label][0]})" if label < len(names) else str(label)


def _numbers(encoder: Any, boxes: Sequence[Box]) -> Tensor:
    import torch

    return torch.tensor([[_number(encoder, box[0], "--boxes"), *box[1:]] for box in boxes], dtype=torch.float32).view(-1, 5)


def _boxes_of(encoder: Any, prompt: Prompt, seed: int) -> tuple[Prompt, str]:
    from ..data.ports import Boxes

    row, of = _row(prompt, seed), _of(encoder)
    if row is None or of is None:
        why = "describes no scene that boxes could be made from" if of else "names none of this model's classes, which are not the scenes'"
        first, second = (f"{names[0]} {box}" for names, box in zip(_names(encoder)[:2] or [("0",), ("1",)], _EXAMPLES, strict=False))
        raise Unreadable(f'{prompt.text!r} {why}; give them: --boxes "{first}; {second}"')
    boxes_N5 = Boxes(of=of)(row, Rng.of_seeds([seed])).boxes_N5
    count = 0 if boxes_N5 is None else len(boxes_N5)
    return replace(prompt, boxes_N5=boxes_N5), f"{count} box{'es' * (count != 1)} made from the words"


def _boxes(text: str) -> tuple[Box, ...]:
    """ "circle 0.1,0.2,0.4,0.5; heart ...": a class, then left, top, right, bottom in 0..1 of the picture. Or a JSON file: a list of
    {"label", "box": {"x", "y", "width", "height"}}, the middle and the sides, as `triptych detect --json` prints them."""
    if text.endswith(".json") or Path(text).is_file():
        return _boxes_in(Path(text))
    boxes = []
    for part in (part.strip() for part in text.split(";")):
        if not part:
            continue
        name, _, corners = part.rpartition(" ")
        try:
            left, top, right, bottom = (float(number) for number in corners.split(","))
        except ValueError:
            said = f"--boxes {part!r} is no class with left,top,right,bottom"
            raise ValueError(f"{said}, as in 'circle 0.1,0.2,0.4,0.5'; without spaces between the numbers") from None
        boxes.append(_box([name, (left + right) / 2, (top + bottom) / 2, right - left, bottom - top], f"--boxes {part!r}"))
    return tuple(boxes)


def _boxes_in(path: Path) -> tuple[Box, ...]:
    with blame("bad_data", str(path)):
        if path.stat().st_size > 2**20:
            raise ValueError(f"{path.stat().st_size} bytes; boxes have at most {2**20}")
        try:
            said = json.loads(path.read_text(encoding="utf-8-sig"))
            rows = said["objects"] if isinstance(said, dict) else said
            found = [[str(row["label"]), *(row["box"][side] for side in ("x", "y", "width", "height"))] for row in rows]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
            raise ValueError(f'no list of {{"label", "box": {{"x", "y", "width", "height"}}}} ({type(error).__name__}: {error})') from None
        return tuple(_box(row, f"box {i}") for i, row in enumerate(found))


def _box(row: Any, where: str) -> Box:
    """Checked: a name, and a box that has an area and lies in the picture."""
    if not isinstance(row, (list, tuple)) or len(row) != 5 or not isinstance(row[0], str):
        raise ValueError(f"{where}: {str(row)[:60]} is no class with four numbers")
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) or not math.isfinite(n) for n in row[1:]):
        raise ValueError(f"{where}: {str(row)[:60]} is no class with four numbers")
    x, y, w, h = (float(n) for n in row[1:])
    edges = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if not (w > 0 and h > 0 and min(edges) >= -1e-4 and max(edges) <= 1 + 1e-4):
        spelled = ",".join(f"{edge:g}" for edge in edges)
        raise ValueError(
            f"{where}: left,top,right,bottom are {spelled}; shares of the picture in 0..1, left before right, top before bottom"
        )
    return row[0], x, y, w, h


# --- pictures ---------------------------------------------------------------------------------------------------------------


def _pictured(model: TextToImage, prompt: Prompt, seed: int, given: Given) -> tuple[Prompt, str]:
    """The picture that the encoder reads, and a line on what was made of it."""
    encoder: Any = model.text_encoder
    side = min(model.size)
    kind = getattr(encoder.config, "kind", "low_resolution")
    if kind == "semantic":
        if given.image is not None:
            return replace(prompt, image_CHW=_tensor(given.image, side, smooth=False)), ""
        return replace(prompt, image_CHW=_map(encoder, prompt, seed, side)), "a map made from the words"
    picture, line = (given.image, "") if given.image is not None else _drawn(prompt, seed)
    if kind == "low_resolution":
        small = max(1, side // SMALLER)
        size = small if line else min(small, *picture.size)
        line += f", reduced to {size} x {size}" if line else ""
        if not line and min(picture.size) > small:
            line = f"a picture of {picture.width} x {picture.height}, reduced to {size} x {size}"
        return replace(prompt, image_CHW=_tensor(picture, size)), line
    if given.mask is not None:
        mask = (_tensor(given.mask, side, smooth=False).mean(0, keepdim=True) > 0).float()
    else:
        mask = _hole(side)
        line = ", ".join(filter(None, [line, f"a hole of {side // 2} x {side // 2} in the middle of {side} x {side}"]))
    return replace(prompt, image_CHW=_tensor(picture, side), mask_1HW=mask), line


def _hole(side: int) -> Tensor:
    """[1, side, side], 1 in the middle half of each side."""
    import torch

    mask, first = torch.zeros(1, side, side), side // 4
    mask[:, first : first + side // 2, first : first + side // 2] = 1
    return mask


def _map(encoder: Any, prompt: Prompt, seed: int, side: int) -> Tensor | None:
    """The scene's masks, painted in the encoder's colours: class 0 is the background. [3, side, side] in [-1, 1]."""
    from ..data.ports import SemanticMap

    row, of = _row(prompt, seed), _of(encoder)
    if row is None or of is None:
        raise Unreadable(f"{prompt.text!r} describes no scene that a map could be made from; give it: --image MAP.png, in its colours")
    return SemanticMap(size=side, of=of)(row, Rng.of_seeds([seed])).image_CHW


def _row(prompt: Prompt, seed: int) -> Row | None:
    """The scene of the words as a row of data, for the ports; no box of another numbering goes with it."""
    from ..data.index import Row

    scene = _scene(prompt, seed)
    return None if scene is None else Row(None, Prompt(text=prompt.text, truth=scene), f"words:{prompt.text}")


def _drawn(prompt: Prompt, seed: int, side: int = 128) -> tuple[Image.Image, str]:
    """The words as a picture: their scene, else the default model's."""
    from PIL import Image

    from ..data import scenes

    scene = _scene(prompt, seed)
    if scene is not None:
        return Image.fromarray(scenes.render(scene, side)), "the words' scene drawn"
    from .models import DEFAULT_MODEL

    return _by_default(prompt.text, seed), f"drawn by {DEFAULT_MODEL} from the words"


@lru_cache(maxsize=64)
def _by_default(text: str, seed: int) -> Image.Image:
    return _default().generate([text], seeds=[seed])[0].convert("RGB")


@lru_cache(maxsize=1)
def _default() -> TextToImage:
    from .models import DEFAULT_MODEL, load_model

    return load_model(DEFAULT_MODEL, "cpu")


def _scene(prompt: Prompt, seed: int) -> Scene | None:
    """The scene graph that a judge's prompt comes with, else what the words describe."""
    from ..data.graph import Scene
    from ..data.read_scene import scene_of

    return prompt.truth if isinstance(prompt.truth, Scene) else scene_of(prompt.text, seed)


def _tensor(picture: Image.Image, side: int, *, smooth: bool = True) -> Tensor:
    """[3, side, side] in [-1, 1], cropped to a square; not smooth: no colour that was not there."""
    from PIL import Image, ImageOps

    from ..eyes import as_tensor

    down, up = (Image.Resampling.BOX, Image.Resampling.BICUBIC) if smooth else (Image.Resampling.NEAREST, Image.Resampling.NEAREST)
    how = down if side <= min(picture.size) else up
    return as_tensor(ImageOps.fit(picture, (side, side), method=how))[0]


def fingerprint_of(picture: Image.Image) -> str:
    """What tells a picture's pixels from any other's."""
    return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).hexdigest()[:16]
