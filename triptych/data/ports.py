"""What is said to a generator other than by words: after a row is made, ports fill the other fields of its prompt.

    Data(sources=..., ports=(Source(name="label"), Source(name="low_resolution", options={"factor": 4})))

    label            Prompt.label      the class of the scene's first object
    boxes            Prompt.boxes_N5   the scene's boxes, with classes that tell colours apart too
    semantic_map     Prompt.image_CHW  who covers which pixel, painted in `text_encoders.picture.palette`
    low_resolution   Prompt.image_CHW  the picture made small and spoilt
    hole             Prompt.image_CHW, mask_1HW   the picture itself, and a part of it that is to be drawn anew

Each is a pure function of the row, the seed and the sample's number. What a port says is never part of `Row.key`, which names the
picture's content: latents may be kept by it, and what panel 1 says of a prompt with more than words is kept by nobody.

Shape legend: C channels, H W of the picture, N objects.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..catalog import nearest
from ..contracts import Prompt, Rng
from ..layers.pixels import average_down
from ..recipe import Source
from ..text_encoders.picture import palette
from . import scenes
from .graph import CLASSES, COLORS, CUTOUTS, SHAPES, Object, Scene
from .index import Port, Row

__all__ = ["OF", "PORTS", "build", "class_names", "class_of"]

OF = ("shape", "color shape")


def build(spec: Sequence[Source], size: int) -> list[tuple[str, Port]]:
    """(name, port) of each that the recipe's `data.ports` names, in order. Raises ValueError for unknown names and options."""
    made = []
    for i, one in enumerate(spec):
        if one.name not in PORTS:
            raise ValueError(f"data.ports.{i}.name: no port {one.name!r}; {nearest(one.name, list(PORTS))}")
        if one.weight != 1:
            raise ValueError(f"data.ports.{i}.weight = {one.weight}: every port speaks of every row; leave the weight out")
        known = [name for name in inspect.signature(PORTS[one.name]).parameters if name != "size"]
        for option in one.options:
            if option not in known:
                raise ValueError(f"data.ports.{i}.options: {one.name} has no option {option!r}; {nearest(option, known) if known else ''}")
        made.append((one.name, PORTS[one.name](size=size, **one.options)))
    return made


# --- what a scene's graph says --------------------------------------------------------------------------------------------


def class_names(of: str = "shape", *, cutouts: bool = True) -> tuple[str, ...]:
    """Names of the classes as panels keep them in `labels`, English and Chinese with "|" between: "red circle|红色圆形|...".

    of: "shape" numbers as graph.CLASSES do; "color shape" has every colour of every shape, then the cut-outs.
    """
    _one_of("of", of, OF)
    drawn = [f"{shape}|{zh}" for shape, (_, zh) in SHAPES.items()]
    if of == "color shape":
        drawn = [
            "|".join([f"{color} {shape}", *(f"{color_zh}{between}{zh}" for between in ("", "的", "小", "大"))])
            for color, (_, color_zh) in COLORS.items()
            for shape, (_, zh) in SHAPES.items()
        ]
    return (*drawn, *(f"{name}|{said[2]}" for name, said in CUTOUTS.items() if cutouts))


def class_of(thing: Object, of: str = "shape") -> int:
    """The place of an object's class in `class_names(of)`."""
    if of == "shape":
        return CLASSES.index(thing.shape)
    if thing.color is None:
        return len(COLORS) * len(SHAPES) + list(CUTOUTS).index(thing.shape)
    return list(COLORS).index(thing.color) * len(SHAPES) + list(SHAPES).index(thing.shape)


def _graph(row: Row, port: str) -> Scene:
    if not isinstance(row.prompt.truth, Scene):
        raise ValueError(f"data port {port!r} reads the graph of a scene, and {row.key} has none: give it data 'scenes' alone")
    return row.prompt.truth


class Label:
    """of: what the classes tell apart, "shape" or "color shape"; see `class_names`."""

    def __init__(self, *, size: int = 0, of: str = "shape") -> None:
        self.of = _one_of("of", of, OF)

    def __call__(self, row: Row, rng: Rng) -> Prompt:
        return replace(row.prompt, label=class_of(_graph(row, "label").objects[0], self.of))


class Boxes:
    """of: as in `label`."""

    def __init__(self, *, size: int = 0, of: str = "color shape") -> None:
        self.of = _one_of("of", of, OF)

    def __call__(self, row: Row, rng: Rng) -> Prompt:
        scene = _graph(row, "boxes")
        boxes_N5 = scenes.boxes(scene) if row.prompt.boxes_N5 is None else row.prompt.boxes_N5.clone()
        boxes_N5[:, 0] = torch.tensor([class_of(thing, self.of) for thing in scene.objects], dtype=boxes_N5.dtype)
        return replace(row.prompt, boxes_N5=boxes_N5)


class SemanticMap:
    """Class 0 is the background, class 1 + k the k-th of `class_names(of)`.  font: of cut-outs, as in `scenes`."""

    def __init__(self, *, size: int, of: str = "shape", font: str | None = None) -> None:
        self.size, self.of, self.font = _pictured("semantic_map", size), _one_of("of", of, OF), font
        self.colors = palette(1 + len(class_names(of))).numpy()

    def __call__(self, row: Row, rng: Rng) -> Prompt:
        scene = _graph(row, "semantic_map")
        classes_HW = np.zeros((self.size, self.size), dtype=np.int64)
        for thing, mask in zip(scene.objects, scenes.masks(scene, self.size, self.font), strict=True):
            classes_HW[mask] = 1 + class_of(thing, self.of)
        return replace(row.prompt, image_CHW=_image(self.colors[classes_HW]))


# --- what is left of a picture --------------------------------------------------------------------------------------------


class LowResolution:
    """The picture at 1 / factor of its side.

    degradation: how it was made so small.
        "area"    averaged; nothing else.
        "noise"   and then noisy: normal noise of deviation up to `noise`, in the units of [-1, 1].
        "blur"    blurred first, by a Gaussian of up to `blur` pixels.
        "bsr"     as BSRGAN (arXiv 2103.14006) has it: two blurs, one of them longer than wide, a change of size, noise and JPEG in
                  random order, then the small size, and JPEG again.
    quality: the lowest of JPEG's, of 100.
    """

    def __init__(
        self, *, size: int, factor: int = 4, degradation: str = "area", noise: float = 0.1, blur: float = 2.0, quality: int = 40
    ) -> None:
        self.size = _pictured("low_resolution", size)
        if factor < 2 or size % factor:
            raise ValueError(f"low_resolution factor {factor}: 2 or more, and a divisor of the pictures' side {size}")
        if not 0 <= noise <= 2 or not 0 <= blur <= 16 or not 1 <= quality <= 100:
            raise ValueError(f"low_resolution noise {noise}, blur {blur}, quality {quality}: they are in 0..2, 0..16 and 1..100")
        self.small, self.noise, self.blur, self.quality = size // factor, noise, blur, quality
        self.degradation = _one_of("degradation", degradation, ("area", "noise", "blur", "bsr"))

    def __call__(self, row: Row, rng: Rng) -> Prompt:
        image = _whole(row, "low_resolution")
        if self.degradation == "bsr":
            return replace(row.prompt, image_CHW=self._bsr(image, rng))
        if self.degradation == "blur":
            sigma = self.blur * _u(rng, "blur")
            image = _blurred(image, sigma, sigma, 0.0)
        small = average_down(image[None], self.small)[0]
        if self.degradation == "noise":
            small = self._noisy(small, rng, "noise")
        return replace(row.prompt, image_CHW=small)

    def _bsr(self, image: Tensor, rng: Rng) -> Tensor:
        u = rng.uniform("bsr", (10,))[0].tolist()

        def resized(picture: Tensor) -> Tensor:  # somewhere between the large side and the small one
            return _resized(picture, round(self.small * (self.size / self.small) ** u[0]), u[1])

        def blurred(picture: Tensor, along: float, across: float, angle: float) -> Tensor:  # deviations are of the large picture
            pixels = self.blur * picture.shape[-1] / self.size
            return _blurred(picture, pixels * along, pixels * across, angle)

        steps = [
            lambda picture: blurred(picture, u[2], u[2], 0.0),
            lambda picture: blurred(picture, u[3], u[4], np.pi * u[5]),
            resized,
            lambda picture: self._noisy(picture, rng, "bsr noise"),
            lambda picture: self._jpeg(picture, u[6]),
        ]
        for k in rng.uniform("bsr order", (len(steps),))[0].argsort().tolist():
            image = steps[k](image)
        return self._jpeg(_resized(image, self.small, u[7]), u[8])

    def _noisy(self, image: Tensor, rng: Rng, stream: str) -> Tensor:
        return (image + self.noise * _u(rng, f"{stream} level") * rng.normal(stream, image.shape)[0]).clamp(-1, 1)

    def _jpeg(self, image: Tensor, u: float) -> Tensor:
        from PIL import Image

        file = io.BytesIO()
        Image.fromarray(_pixels(image)).save(file, "JPEG", quality=round(self.quality + (100 - self.quality) * u))
        return _image(np.asarray(Image.open(file).convert("RGB")))


def _resized(image_CHW: Tensor, side: int, u: float) -> Tensor:
    """By a filter that u chooses."""
    from PIL import Image

    filters = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
    return _image(np.asarray(Image.fromarray(_pixels(image_CHW)).resize((side, side), filters[int(u * len(filters))])))


def _blurred(image_CHW: Tensor, along: float, across: float, angle: float) -> Tensor:
    """By a Gaussian of these deviations in pixels, turned by the angle; its edge pixels go on outside."""
    if max(along, across) < 0.1:
        return image_CHW
    reach = int(np.ceil(3 * max(along, across)))
    y, x = torch.meshgrid(*[torch.arange(-reach, reach + 1, dtype=torch.float32)] * 2, indexing="ij")
    a, b = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    kernel = torch.exp(-0.5 * ((a / max(along, 0.1)) ** 2 + (b / max(across, 0.1)) ** 2))
    wide = F.pad(image_CHW[None], (reach,) * 4, mode="replicate")
    return F.conv2d(wide, (kernel / kernel.sum()).expand(3, 1, -1, -1), groups=3)[0].clamp(-1, 1)


class Hole:
    """Rectangles, or strokes as LaMa's (arXiv 2109.07161): broken lines with round ends, thin or thick.

    share: of the area that is taken away, (least, most); each hole's is drawn between them.
    rectangles: how often the hole is made of rectangles.  thick: how often, of the rest, strokes are thick.
    """

    def __init__(self, *, size: int, share: Sequence[float] = (0.1, 0.5), rectangles: float = 0.3, thick: float = 0.5) -> None:
        self.size = _pictured("hole", size)
        if len(share) != 2 or not 0 < share[0] <= share[1] <= 1 or share[1] - share[0] < 0.04:
            raise ValueError(f"hole share {tuple(share)}: the least and the most of the area, 0.04 apart or more, in 0..1")
        if not 0 <= rectangles <= 1 or not 0 <= thick <= 1:
            raise ValueError(f"hole rectangles {rectangles} and thick {thick} are shares, in 0..1")
        self.share, self.rectangles, self.thick = (float(share[0]), float(share[1])), rectangles, thick

    def __call__(self, row: Row, rng: Rng) -> Prompt:
        mask_1HW = torch.from_numpy(self.mask(rng)[None].astype(np.float32))
        return replace(row.prompt, image_CHW=_whole(row, "hole"), mask_1HW=mask_1HW)

    def mask(self, rng: Rng) -> np.ndarray:
        """bool [size, size], True = to be drawn. Parts are added until the wanted share is reached; none that leads beyond the most."""
        least, most = self.share
        which, thick, wanted = rng.uniform("hole", (3,))[0].tolist()
        wanted = least + (most - least) * wanted
        hole, refused = np.zeros((self.size, self.size), dtype=bool), 0
        for k in range(1000):
            draws = rng.uniform("part", (16,), step=k)[0].tolist()
            shrunk = 1 / (1 + refused / 5)  # parts grow smaller, so that one fits at last
            part = self._rectangle(draws, shrunk) if which < self.rectangles else self._stroke(draws, shrunk, thick < self.thick)
            if (hole | part).mean() > most:
                refused += 1
                continue
            hole |= part
            if hole.mean() >= wanted:
                break
        return hole

    def _rectangle(self, u: list[float], shrunk: float) -> np.ndarray:
        side = [max(1, round(self.size * shrunk * (0.15 + 0.5 * v))) for v in u[:2]]
        y, x = (int(v * (self.size - d + 1)) for v, d in zip(u[2:4], side, strict=True))
        part = np.zeros((self.size, self.size), dtype=bool)
        part[y : y + side[0], x : x + side[1]] = True
        return part

    def _stroke(self, u: list[float], shrunk: float, thick: bool) -> np.ndarray:
        from PIL import Image, ImageDraw

        n = self.size
        image = Image.new("L", (n, n), 0)
        draw = ImageDraw.Draw(image)
        width = max(1.0, n * shrunk * ((0.12 + 0.18 * u[0]) if thick else (0.02 + 0.05 * u[0])))
        x, y, angle = n * u[1], n * u[2], 2 * np.pi * u[3]
        for k in range(1 + int(4 * u[4])):
            angle += np.pi * (u[5 + 2 * k] - 0.5)
            far = n * shrunk * (0.1 + 0.4 * u[6 + 2 * k])
            to = min(max(x + far * np.cos(angle), 0), n - 1), min(max(y + far * np.sin(angle), 0), n - 1)
            draw.line((x, y, *to), fill=255, width=round(width))
            for cx, cy in ((x, y), to):
                draw.ellipse((cx - width / 2, cy - width / 2, cx + width / 2, cy + width / 2), fill=255)
            x, y = to
        return np.asarray(image) > 127


PORTS: dict[str, Any] = {"label": Label, "boxes": Boxes, "semantic_map": SemanticMap, "low_resolution": LowResolution, "hole": Hole}


# --- pixels ---------------------------------------------------------------------------------------------------------------


def _image(pixels_HWC: np.ndarray) -> Tensor:
    """uint8 [H, W, 3] to float32 [3, H, W] in [-1, 1]."""
    return torch.from_numpy(np.array(pixels_HWC)).permute(2, 0, 1).float() / 127.5 - 1


def _pixels(image_CHW: Tensor) -> np.ndarray:
    return ((image_CHW.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()


def _u(rng: Rng, stream: str) -> float:
    return float(rng.uniform(stream)[0])


def _whole(row: Row, port: str) -> Tensor:
    if row.picture is None:
        raise ValueError(f"data port {port!r} shows a part of a picture, and {row.key} has none")
    return _image(row.picture)


def _pictured(port: str, size: int) -> int:
    if not size:
        raise ValueError(f"data port {port!r} speaks in pictures, and data.size is 0: set data.size, or leave the port out")
    return size


def _one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}; {nearest(value, list(allowed))}")
    return value
