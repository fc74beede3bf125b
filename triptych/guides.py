"""Who pulls at a picture while it is drawn, beside the words that the network hears.

    model.generate(words, guide=load("triptych-eyes-v1"), guide_scale=10)        eyes that hear words, a CLIP
    model.generate(words, guide_scale=2)                                         the model's own critic, where it has one
    model.generate(words, like=Like(picture=image, by="gram", eyes=eyes))        likeness to a picture: of pixels, features or style

Each becomes a `processes.guidance.Guide`, and several pull together. Eyes and likeness ask about the believed x0, a model's own critic
of noised pictures about x_t itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageOps
from torch import Tensor, nn

from .contracts import Condition, Prompt, Rng
from .eyes import Eyes, as_tensor, load_eyes
from .processes.guidance import CriticGuidance, Guide
from .processes.likeness import LIKENESSES, Likeness

__all__ = ["FORCES", "Like", "guided_by", "pulls"]

# A scale of 1, for latents of as many numbers as 32 x 32 pixels have, chosen by looking: one sees it, and words still count. A likeness
# is a mean, so that each number of larger latents would be pulled less: the force grows with their count.
FORCES = {"pixels": 2000.0, "features": 40.0, "gram": 20_000.0}
Pull = tuple[Any, float]  # who (Eyes, the model's own critic, or Like), and how strongly


@dataclass(frozen=True, kw_only=True, eq=False)
class Like:
    """A picture that the drawn ones are to be like.

    picture: of any size and shape; its middle is seen at the drawn ones' size.
    by: "pixels" = what lies where, in which colour; "features" = what there is, roughly where; "gram" = style, wherever it is.
    scale: how strongly; 0 = off, 1 = so that one sees it.  eyes: whose features; pixels need none.
    Raises ValueError for another likeness, a scale that is none, and features without eyes.
    """

    picture: Image.Image
    by: str = "features"
    scale: float = 1.0
    eyes: Eyes | None = None

    def __post_init__(self) -> None:
        if self.by not in LIKENESSES:
            raise ValueError(f"no likeness by {self.by!r}; there are: {', '.join(LIKENESSES)}")
        if not (math.isfinite(self.scale) and self.scale >= 0):
            raise ValueError(f"a likeness of scale {self.scale!r}: must be 0 (off) or more")
        if self.by != "pixels" and (self.eyes is None or not hasattr(self.eyes.vision, "features")):
            raise ValueError(f"likeness by {self.by} is seen through eyes that have features; give some, or take pixels")


def pulls(model: Any, eyes: Eyes | None, scale: float | None, like: Like | None) -> list[Pull]:
    """Who guides. Raises ValueError for eyes or a process that cannot, and a wrong scale."""
    process, own = model.generator.process, eyes is None
    scale = float(model.guide.get("scale", 0.0)) if own and scale is None else scale or 0.0
    if not (math.isfinite(scale) and scale >= 0):
        raise ValueError(f"guide_scale = {scale!r}: must be 0 (off) or more")
    if own and "eyes" in model.guide and scale:
        eyes = model.own_eyes = model.own_eyes or load_eyes(model.guide["eyes"], device=model.device.type)
    guide = eyes or model.generator.guide
    if guide is None and scale:
        raise ValueError(f"guide_scale = {scale!r} and no guide; give eyes that hear words, a CLIP")
    if eyes is not None and (eyes.text_encoder is None or getattr(eyes.vision, "role", "") != "critic"):
        raise ValueError(f"{eyes.name} ({type(eyes.vision).__name__}) hears no words and cannot guide; take a CLIP")
    found: list[Pull] = [(guide, scale)] if guide is not None and scale else []
    found += [(like, like.scale)] if like is not None and like.scale else []
    asks_x0 = process.drives == "denoiser" and all(hasattr(process, name) for name in ("schedule", "time"))
    if not asks_x0 and (eyes is not None or like is not None):
        raise ValueError(f"{type(process).__name__} has no x0 to ask eyes about at each step; a guide needs a denoiser's process")
    return found


def guided_by(
    found: Sequence[Pull], model: Any, network: nn.Module, prompts: Sequence[Prompt], cond: Condition, shape: Sequence[int],
    how: Any, rng: Rng,
) -> nn.Module:  # fmt: skip
    """The network as it is pulled. shape, how: of the latents, and of what becomes of them in the decoder."""
    if not found:
        return network
    process: Any = model.generator.process
    target = getattr(process, "says", None) or process.config.target
    if target not in ("x0", "eps", "v"):
        raise ValueError(f"a guide moves x0, eps or v, and this {type(process).__name__} says {target!r}: draw without a guide")

    latent = model.decoder.latent
    pixels = latent.kind == "image" and len(latent.mean) == 3 and latent.fingerprint.startswith("pixels-")
    side = getattr(how, "size", None) or model.decoder.image_size
    factor = 1 if pixels else getattr(model.decoder, "factor", 0)
    size = (shape[1] * factor, shape[2] * factor) if factor else (side, side)

    def picture(x0: Tensor) -> Tensor:
        """Latents to a picture [B, 3, *size]; pixels are one already, whatever the decoder makes of them afterwards."""
        return latent.restore(x0) if pixels else model.decoder.decode(x0, cond, how, rng.child("decoder"))

    for who, scale in found:
        known = {"schedule": process.schedule, "target": target, "time": process.time, "scale": scale}
        if isinstance(who, Like):
            known["scale"] = scale * FORCES[who.by] * math.prod(shape) / (3 * 32**2)
            critic, look = _alike(who, size, model)
            guide = Guide(critic=critic, heard=Condition(), see=_through(picture, look), **known)  # type: ignore[arg-type]
        elif isinstance(who, nn.Module):
            guide = Guide(critic=who, heard=cond, noisy=True, **known)  # type: ignore[arg-type]
        else:
            heard, vision = who.text_encoder.encode(prompts).to(who.device), who.vision
            known["scale"] = scale * float(vision.scale())  # in units of their own logit
            guide = Guide(critic=vision, heard=heard, see=_through(picture, who.preprocess), **known)  # type: ignore[arg-type]
        network = CriticGuidance(network, guide)
    return network


def _through(picture: Callable[[Tensor], Tensor], look: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x0: look(picture(x0))


def _alike(like: Like, size: tuple[int, int], model: Any) -> tuple[Likeness, Callable[[Tensor], Tensor]]:
    """The critic, and how pictures are brought before it."""
    height, width = size
    picture = like.picture.convert("RGB")
    smooth = Image.Resampling.BOX if min(picture.size) >= max(size) else Image.Resampling.BICUBIC
    seen = as_tensor(ImageOps.fit(picture, (width, height), smooth)).to(model.device)
    if like.by == "pixels":
        return Likeness(seen, "pixels"), lambda images: images
    assert like.eyes is not None
    return Likeness(like.eyes.preprocess(seen), like.by, features=like.eyes.vision.features), like.eyes.preprocess  # type: ignore[arg-type]
