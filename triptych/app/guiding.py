"""Who pulls at a picture while it is drawn: what the command line says, what an old picture's record says, and what a record keeps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .ask import fingerprint_of
from .errors import Failure, blame
from .models import open_eyes

if TYPE_CHECKING:
    from ..eyes import Eyes
    from ..guides import Like
    from ..pipeline import TextToImage
    from .jobs import Request

__all__ = ["GUIDE_SCALE", "NOBODY", "Guiding", "guiding"]

GUIDE_SCALE = 10.0  # of --guide, chosen by looking: a pixel moves by 3/255 in the mean, and one sees it; from 50 on colours go astray


@dataclass(frozen=True, kw_only=True)
class Guiding:
    """eyes: those of --guide; None = what the model brings itself.  scale: None = nobody of the two pulls.

    like: a picture; file: its name.
    """

    eyes: Eyes | None = None
    scale: float | None = None
    like: Like | None = None
    file: str = ""

    def record(self, model: TextToImage) -> dict[str, Any]:
        """What a picture's record says of it; a model's own guide has no name, and is told where it is off too."""
        found: dict[str, Any] = {}
        if self.scale is not None and self.eyes is None:
            own = getattr(model.generator.guide, "card", {}).get("fingerprint", "")
            found["guide"] = {"name": "", "fingerprint": own, "text_encoder": "", "scale": self.scale}
        elif self.scale:
            found["guide"] = _told(self.eyes) | {"scale": self.scale}
        if self.like is not None and self.like.scale:
            eyes = {} if self.like.eyes is None else {"eyes": self.like.eyes.name, "fingerprint": self.like.eyes.fingerprint}
            picture = {"picture": fingerprint_of(self.like.picture), "file": self.file}
            found["like"] = {"by": self.like.by, "scale": self.like.scale, **picture, **eyes}
        return found


NOBODY = Guiding()


def guiding(request: Request, record: Mapping[str, Any] | None, model: TextToImage) -> Guiding:
    """Of the command line, else of the old picture, else the model's own."""
    old = record or {}
    like, file = _like(request, old.get("like") or {}, model)
    return _guide(request, old.get("guide") or {}, model, like, file)


def _guide(request: Request, old: Mapping[str, Any], model: TextToImage, like: Like | None, file: str) -> Guiding:
    if request.guide is None and not old.get("name"):
        return Guiding(scale=_own_scale(request, old, model), like=like, file=file)
    scale = old.get("scale", GUIDE_SCALE) if request.guide_scale is None else request.guide_scale
    if request.guide is None and scale == 0:
        return Guiding(like=like, file=file)
    eyes = _eyes(request.guide, old, f"{request.old} was guided by", "--guide", model)
    return Guiding(eyes=eyes, scale=scale, like=like, file=file)


def _eyes(said: str | None, old: Mapping[str, Any], was: str, option: str, model: TextToImage) -> Eyes:
    """Those that are said, else those of the record. Raises Failure where the record's are not here, or are others."""
    from ..checkpoint import embedded

    name, seen = said or old["name"], f"{was} the eyes {old.get('name')!r} ({_spelled(old)})"
    if said is None and name not in embedded():
        raise Failure("bad_checkpoint", f"{seen}, which are not embedded; give their folder: {option} DIR")
    eyes = open_eyes(name, model.device.type)
    here = _spelled(_told(eyes))
    if old and here != _spelled(old):
        raise Failure("bad_checkpoint", f"{seen}, and {eyes.name!r} is another ({here}); give {option} DIR that holds them")
    return eyes


def _own_scale(request: Request, old: Mapping[str, Any], model: TextToImage) -> float | None:
    """How strongly what the model brings itself pulls, eyes or a critic of its own; None where it brings nothing."""
    if model.generator.guide is None and not model.guide:
        if request.guide_scale is not None:
            raise ValueError(f"--guide-scale {request.guide_scale:g} says how strongly eyes pull; say which: --guide NAME|PATH")
        return None
    scale = float(old.get("scale", model.guide.get("scale", 0.0)) if request.guide_scale is None else request.guide_scale)
    here = Guiding(scale=scale).record(model)["guide"]
    if old and _spelled(here) != _spelled(old):
        said = f"{request.old} was guided by its model's own {_spelled(old)}, and {model.name!r} has {_spelled(here)}"
        raise Failure("bad_checkpoint", f"{said}; give the model's folder: --model DIR")
    return scale


def _like(request: Request, old: Mapping[str, Any], model: TextToImage) -> tuple[Like | None, str]:
    """The picture that is to be resembled, and its file's name; an old picture's must be given again."""
    scale = old.get("scale", 1.0) if request.like_scale is None else request.like_scale
    if request.like is None:
        if old and scale:
            said = f"{request.old} was drawn to be like {old.get('file')} ({old.get('picture')}), which was not given"
            raise ValueError(f"{said}; give it: --like FILE, or draw without it: --like-scale 0")
        if not old and (request.like_by is not None or request.like_scale is not None):
            raise ValueError("--like-by and --like-scale say how a picture is resembled; say which: --like PICTURE")
        return None, ""
    from ..data.picture import opened
    from ..eyes import EYES
    from ..guides import Like

    with blame("bad_data", request.like):
        picture = opened(request.like)
    by = request.like_by or old.get("by", "features")
    if old and old.get("picture") != fingerprint_of(picture) and request.like_by is None:
        raise ValueError(f"{request.old} was drawn to be like {old.get('picture')}, and {request.like} is {fingerprint_of(picture)}")
    eyes = None
    if by != "pixels":
        told = {"name": old["eyes"], "fingerprint": old.get("fingerprint")} if old.get("eyes") and request.guide is None else {}
        eyes = open_eyes(request.guide or told.get("name") or EYES, model.device.type)
        if told and eyes.fingerprint != told["fingerprint"]:
            raise Failure("bad_checkpoint", f"{request.old} was seen by other eyes, vision {told['fingerprint']}; give them: --guide DIR")
    return Like(picture=picture, by=by, scale=scale, eyes=eyes), Path(request.like).name


def _told(eyes: Eyes | None) -> dict[str, Any]:
    words = getattr(getattr(eyes, "text_encoder", None), "card", {}).get("fingerprint", "")
    return {"name": getattr(eyes, "name", ""), "fingerprint": getattr(eyes, "fingerprint", ""), "text_encoder": words}


def _spelled(guide: Mapping[str, Any]) -> str:
    return f"vision {guide.get('fingerprint') or 'unsaved'}, text_encoder {guide.get('text_encoder') or 'unsaved'}"
