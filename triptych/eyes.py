"""Eyes: a vision system, the words it hears, and the pixels it was made for. What judges look through.

    eyes = load_eyes(FOLDER)                    # ours (vision/, perhaps text_encoder/), or one that transformers saved
    pixels = eyes.preprocess(images)            # [-1, 1] or PIL pictures -> what the network was trained on
    eyes.encode_image(pixels) @ eyes.encode_text(["a red apple"]).T

A judge asks through `eyes.sight()`, which takes pictures as they are and gives one vector, or unit vectors, a picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from . import catalog, checkpoint
from .contracts import Prompt, TextEncoder
from .layers.fingerprint import fingerprint_tensors

__all__ = ["DETECTOR", "EYES", "Eyes", "Pixels", "Sight", "as_tensor", "is_eyes", "load_eyes"]

EYES, DETECTOR = "triptych-eyes-v1", "triptych-detector-v1"  # those that are embedded: a CLIP, and a DETR of scenes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pixels:
    """What a network was trained on, and how a picture becomes it.

    height, width: of what it sees, in pixels.  fit: "stretch" to them; "crop" = the shorter side to `shorter`, then the middle;
    "shorter" = the shorter side to `shorter`, the longer at most `longer`, nothing cut off.
    mean, std: of each channel, of values in 0..1.  filter: of the enlarging or averaging.
    """

    height: int
    width: int
    fit: Literal["stretch", "crop", "shorter"] = "stretch"
    shorter: int = 0
    longer: int = 0
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    filter: Literal["bicubic", "bilinear", "nearest"] = "bicubic"

    def __call__(self, images_BCHW: Tensor) -> Tensor:
        """[-1, 1] pictures B3HW of any one size -> pixel values of the network."""
        height, width = images_BCHW.shape[-2:]
        size = (self.height, self.width)
        if self.fit != "stretch":
            scale = self.shorter / min(height, width)
            if self.fit == "shorter" and self.longer:
                scale = min(scale, self.longer / max(height, width))
            size = (max(1, round(height * scale)), max(1, round(width * scale)))  # of a very thin picture something is left
        x = (images_BCHW.float() + 1) / 2
        if size != (height, width):
            smooth = {"antialias": True, "align_corners": False} if self.filter != "nearest" else {}
            x = F.interpolate(x, size=size, mode=self.filter, **smooth).clamp(0, 1)
        if self.fit == "crop":
            top, left = (size[0] - self.height) // 2, (size[1] - self.width) // 2
            x = x[..., top : top + self.height, left : left + self.width]
        shape = (1, 3, 1, 1)
        return (x - x.new_tensor(self.mean).view(shape)) / x.new_tensor(self.std).view(shape)


class Eyes:
    """A vision system between pictures and what is made of them.

    vision: features(pixels) and, where it can, encode_image, encode_text(cond), detect, classify.
    text_encoder: panel 1 of eyes that hear words.  labels: the classes' names, where somebody gave them.
    Raises ValueError where neither `pixels` nor the vision system says what size it looks at.
    """

    def __init__(
        self, vision: nn.Module, text_encoder: TextEncoder | None = None, *, pixels: Pixels | None = None, name: str = "",
        labels: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.vision, self.text_encoder = vision, text_encoder
        self.pixels: Callable[[Tensor], Tensor] = pixels or getattr(vision, "preprocess", None) or _own(vision)
        self.name, self.labels = name or type(vision).__name__, tuple(labels)

    @property
    def fingerprint(self) -> str:
        """Of the weights; "" for eyes that were never saved."""
        return getattr(self.vision, "card", {}).get("fingerprint", "")

    @property
    def device(self) -> torch.device:
        return next(self.vision.parameters()).device

    def to(self, device: str | torch.device) -> Eyes:
        for panel in (self.vision, self.text_encoder):
            if isinstance(panel, nn.Module):
                panel.to(device)
        return self

    # -- on pixel values as the network was trained on them ----------------------------------------------------------------

    def preprocess(self, images: Tensor | Sequence[Image.Image]) -> Tensor:
        """Pictures, PIL or B3HW in [-1, 1], to pixel values. PIL pictures may differ in size, unless the fit keeps their shape."""
        if isinstance(images, Tensor):
            return self.pixels(images.to(self.device))
        rows = [self.pixels(as_tensor(image)) for image in images]
        if len({row.shape for row in rows}) > 1:
            raise ValueError("pictures of several shapes do not make one batch, for these eyes keep a picture's shape; give one at a time")
        return torch.cat(rows).to(self.device)

    @torch.no_grad()
    def features(self, pixels: Tensor) -> Tensor:
        """The last hidden state, [B, L, D]."""
        return self._able("features")(pixels)

    @torch.no_grad()
    def encode_image(self, pixels: Tensor) -> Tensor:
        """Projected embeddings [B, E], not normalised."""
        return self._able("encode_image")(pixels)

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str | Prompt]) -> Tensor:
        """Projected embeddings [B, E], not normalised."""
        if self.text_encoder is None:
            raise ValueError(f"{self.name} hears no words; take a CLIP")
        cond = self.text_encoder.encode([Prompt.of(p) for p in prompts])
        return self._able("encode_text")(cond.to(self.device))

    @torch.no_grad()
    def detect(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits [B, Q, classes + 1] and boxes [B, Q, 4]: centre x, y, width, height in 0..1."""
        return self._able("detect")(pixels)

    @torch.no_grad()
    def classify(self, pixels: Tensor) -> Tensor:
        """Class logits [B, K]."""
        return self._able("classify")(pixels)

    def _able(self, what: str) -> Any:
        if not hasattr(self.vision, what):
            raise ValueError(f"{self.name} ({type(self.vision).__name__}) cannot {what.replace('_', ' ')}; take eyes that can")
        return getattr(self.vision, what)

    def names(self) -> dict[str, tuple[str, ...]]:
        """Of a detector: its classes, and where it tells them its colours, as `judges.objects` takes them. Raises ValueError without."""
        if not self.labels:
            raise ValueError(f"{self.name} does not name its classes: give labels in its triptych.json or config.json")
        told = dict(getattr(self.vision.config, "attributes", ()))  # type: ignore[union-attr]
        return {"classes": self.labels, **({"colors": tuple(told["color"])} if "color" in told else {})}

    # -- on pictures -------------------------------------------------------------------------------------------------------

    def sight(self, batch_size: int = 64) -> Sight:
        return Sight(self, batch_size)

    def save(self, folder: str | Path) -> None:
        """A folder that `triptych.load` reads; weights as bf16 safetensors."""
        folder = Path(folder)
        for place, panel in (("text_encoder", self.text_encoder), ("vision", self.vision)):
            if panel is None:
                continue
            kind = checkpoint.PLACES[place]
            card = {k: v for k, v in getattr(panel, "card", {}).items() if k != "fingerprint"}
            checkpoint.save_panel(folder / place, panel, kind=kind, name=catalog.name_of(kind, panel), config=panel.config, card=card)  # type: ignore[arg-type, union-attr]
        more = {"pixels": dataclasses.asdict(self.pixels)} if isinstance(self.pixels, Pixels) else {}
        checkpoint.export_model(folder, name=self.name, sampling={}, panels={}, labels=self.labels, **more)


@dataclasses.dataclass(frozen=True)
class Sight:
    """What a judge asks: pictures in [-1, 1] of any one size in, float32 out, a batch at a time."""

    eyes: Eyes
    batch_size: int = 64

    @property
    def name(self) -> str:
        return self.eyes.name

    @property
    def classifies(self) -> bool:
        return hasattr(self.eyes.vision, "classify")

    @property
    def is_inception(self) -> bool:
        """The original Inception weights: only then may a distance be called FID."""
        return bool(getattr(self.eyes.vision, "original", False))

    @torch.no_grad()
    def features(self, images_BCHW: Tensor) -> Tensor:
        """One vector a picture, [B, D]: what distances are measured between."""
        pooled = self.eyes._able("pooled")
        return torch.cat([pooled(pixels).float() for pixels in self._pixels(images_BCHW)])

    def image(self, images_BCHW: Tensor) -> Tensor:
        """Unit vectors [B, E]."""
        return F.normalize(torch.cat([self.eyes.encode_image(pixels).float() for pixels in self._pixels(images_BCHW)]), dim=-1)

    def text(self, prompts: Sequence[str | Prompt]) -> Tensor:
        """Unit vectors [B, E]."""
        parts = [prompts[i : i + self.batch_size] for i in range(0, len(prompts), self.batch_size)]
        return F.normalize(torch.cat([self.eyes.encode_text(part).float() for part in parts]), dim=-1)

    def detect(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        logits, boxes = zip(*(self.eyes.detect(pixels) for pixels in self._pixels(images_BCHW)), strict=True)
        return torch.cat(logits).float(), torch.cat(boxes).float()

    @torch.no_grad()
    def colors(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a detector that tells colours: what `detect` gives, and logits of each query's colour, the last of them "none"."""
        seen = [self.eyes.vision(pixels) for pixels in self._pixels(images_BCHW)]
        at = [name for name, _ in self.eyes.vision.config.attributes].index("color")  # type: ignore[union-attr]
        parts = zip(*((one.logits_BQK, one.boxes_BQ4, one.attributes[at]) for one in seen), strict=True)
        logits, boxes, colors = (torch.cat(part).float() for part in parts)
        return logits, boxes, colors

    @torch.no_grad()
    def probabilities(self, images_BCHW: Tensor) -> Tensor:
        """[B, K], of eyes that know classes."""
        ask = getattr(self.eyes.vision, "probabilities", None) or (lambda pixels: self.eyes.classify(pixels).softmax(-1))
        return torch.cat([ask(pixels).float() for pixels in self._pixels(images_BCHW)])

    @torch.no_grad()
    def features_and_probabilities(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Both, in one look where the network can."""
        both = getattr(self.eyes.vision, "features_and_probabilities", None)
        if both is None:
            return self.features(images_BCHW), self.probabilities(images_BCHW)
        features, probabilities = zip(*(both(pixels) for pixels in self._pixels(images_BCHW)), strict=True)
        return torch.cat(features).float(), torch.cat(probabilities).float()

    def _pixels(self, images_BCHW: Tensor) -> Iterator[Tensor]:
        for rows in images_BCHW.split(self.batch_size):
            yield self.eyes.preprocess(rows)


def _own(vision: Any) -> Pixels:
    """[-1, 1] at the size that the vision system names. One whose resizing is part of its definition (the FID's) has `preprocess`."""
    side = getattr(vision, "image_size", None)
    if side is None:
        raise ValueError(f"{type(vision).__name__} does not say which size it looks at; give pixels=Pixels(...)")
    return Pixels(height=side, width=side)


def as_tensor(image: Image.Image) -> Tensor:
    """A PIL picture to [1, 3, H, W] in [-1, 1]; transparent parts over white."""
    if image.mode in ("RGBA", "LA", "P"):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1)[None].float() / 127.5 - 1


def is_eyes(model: str | Path) -> bool:
    """A vision system and no generator; or a folder that transformers saved."""
    folder, draws, sees = checkpoint.locate(model), *(checkpoint.has_panel(model, place) for place in ("generator", "vision"))
    return not draws and (sees or (folder / "config.json").is_file())


def load_eyes(model: str | Path, *, device: str = "cpu") -> Eyes:
    """Eyes by an embedded name or a folder, ours or transformers'. Raises ValueError for what is wrong or missing in it."""
    folder = checkpoint.locate(model)
    if not checkpoint.has_panel(model, "vision"):
        return _foreign(folder).to(device)
    described = checkpoint.load_model_file(model)
    text_encoder = checkpoint.load_panel(model, "text_encoder") if checkpoint.has_panel(model, "text_encoder") else None
    vision = checkpoint.load_panel(model, "vision", **({"condition": text_encoder.gives} if text_encoder is not None else {}))
    heard, given = vision.card.get("neighbours", {}).get("text_encoder"), getattr(text_encoder, "card", {}).get("fingerprint")
    if heard and given and heard != given:
        raise ValueError(f"the eyes {vision.card.get('fingerprint')} were trained with text encoder {heard}, not with {given}")
    pixels = _pixels(described["pixels"], folder) if "pixels" in described else None
    name, labels = described.get("name") or folder.name, described.get("labels") or getattr(vision.config, "labels", ())
    return Eyes(vision, text_encoder, pixels=pixels, name=name, labels=labels).to(device)


def _pixels(values: Any, folder: Path) -> Pixels:
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(Pixels).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{folder / 'triptych.json'}: pixels.{where} = {first['input']!r}: {first['msg']}") from None


def _foreign(folder: Path) -> Eyes:
    """A folder that transformers saved."""
    from .interop import transformers_folder

    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model: neither triptych.json with panels, nor a config.json that transformers wrote")
    found = transformers_folder.read(folder)
    if "vision" not in found.parts:
        raise ValueError(f"{folder} holds a text encoder alone ({found.model_type}); eyes need a vision system")
    built: dict[str, Any] = {}
    for place in ("text_encoder", "vision"):  # in this order: eyes are built for the words they hear
        if place in found.parts:
            part = found.parts[place]
            decided: dict[str, Any] = {"assets": part.assets} if place == "text_encoder" else {}
            if place == "vision" and "text_encoder" in built:
                decided = {"condition": built["text_encoder"].gives}
            panel = catalog.build(checkpoint.PLACES[place], part.family, part.config, **decided)
            checkpoint.fill(panel, part.tensors, str(folder))
            built[place] = panel.eval().requires_grad_(False)
    pixels = Pixels(**found.preprocessing._asdict())
    built["vision"].card = {"fingerprint": fingerprint_tensors(built["vision"].state_dict())}  # no card of ours comes with it
    return Eyes(built["vision"], built.get("text_encoder"), pixels=pixels, name=folder.name, labels=found.labels)
