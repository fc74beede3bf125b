"""The report of a judgement: one HTML file to be looked at, and the same numbers as JSON beside it.

    write_report("out", judgement, {"emoji": {0: image, 7: image}}, {0: image})   -> out/report.html, and out/judgement.json

The page is self-contained: it opens from a file, asks no network for anything, and its own policy forbids it to. `judgement.json` holds
everything that was measured, exactly; the page holds of `prompts` and `each` only the places whose pictures it shows, so that it stays
small however many pictures were judged. Every string of a judgement (prompts, labels, names) is untrusted: it reaches the page as JSON in
which no "<" is left, and the page puts it in as text.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["write_report"]

_MOST = 4 * 2**20  # bytes of all pictures together, as far as making them smaller gets there
_SIDES = (512, 384, 256, 192, 128)  # the longest side of a picture on the page: the first at which they fit, the same for all of them
_SMALL = 96  # up to this side every pixel will be seen as a square, and WebP's halved colour resolution with it


def write_report(
    folder: str | Path,
    judgement: Mapping[str, Any],
    pictures: Mapping[str, Mapping[int, Image]],
    references: Mapping[int, Image] = {},
) -> Path:
    """Write folder/judgement.json and folder/report.html, each whole or not at all and over what was there; the page's path is returned.

    judgement: as `triptych judge --json` prints it. pictures: label of a model -> place in judgement["prompts"] -> its picture; the page
    shows those of judgement["shown"] side by side, and by each measure the best and the worst that are there. references: place -> the
    real picture of that prompt. A number that is not finite is written as null, for JSON has no other word for it.

    Raises ValueError, before anything is written, for a judgement of another kind or with a label twice, a label or place that the
    judgement does not have, and values per picture that are not as many as the prompts.
    """
    from ..checkpoint import write_atomically  # imports torch

    judgement = _finite(judgement)
    _check(judgement, pictures, references)
    side, encoded = _encoded([*pictures.values(), references])
    data = {
        "judgement": _pruned(judgement, {place for some in encoded for place in some} | set(judgement["shown"])),
        "pictures": dict(zip(pictures, encoded[:-1], strict=True)), "references": encoded[-1], "side": side,
    }  # fmt: skip
    folder = Path(folder)
    write_atomically(folder / "judgement.json", _bytes(json.dumps(judgement, ensure_ascii=False, indent=1) + "\n"))
    write_atomically(folder / "report.html", _bytes(_filled(data)))
    return folder / "report.html"


def _check(judgement: Mapping[str, Any], pictures: Mapping[str, Any], references: Mapping[int, Any]) -> None:
    if judgement.get("format") != 1 or judgement.get("kind") != "triptych judgement":
        raise ValueError(f"no judgement of format 1: format = {judgement.get('format')!r}, kind = {judgement.get('kind')!r}")
    for name in ("protocol", "measures", "models", "prompts", "shown"):
        if name not in judgement:
            raise ValueError(f"the judgement lacks {name!r}")
    labels, n = [model["label"] for model in judgement["models"]], len(judgement["prompts"])
    if len(set(labels)) < len(labels):
        raise ValueError(f"a model's label is there twice: {next(one for one in labels if labels.count(one) > 1)!r}")
    for label in pictures:
        if label not in labels:
            raise ValueError(f"pictures of {label!r}, which was not judged; there are: {', '.join(labels)}")
    places = {f"pictures of {label!r}": some for label, some in pictures.items()} | {"references": references, "shown": judgement["shown"]}
    for what, some in places.items():
        for place in some:
            if not (isinstance(place, int) and 0 <= place < n):
                raise ValueError(f"{what}: there is no prompt {place!r}; the judgement has {n}, counted from 0")
    for measure, models in judgement.get("each", {}).items():
        for label, values in models.items():
            if len(values) != n:
                raise ValueError(f"each[{measure!r}][{label!r}] has {len(values)} values for {n} prompts")


def _pruned(judgement: Mapping[str, Any], places: set[int]) -> dict[str, Any]:
    """The judgement with `prompts` and the lists of `each` as place -> value, for these places alone."""
    kept = sorted(places)
    each = {
        measure: {label: {place: values[place] for place in kept} for label, values in models.items()}
        for measure, models in judgement.get("each", {}).items()
    }
    return {**judgement, "prompts": {place: judgement["prompts"][place] for place in kept}, "each": each}


# --- pictures -----------------------------------------------------------------------------------------------------------------


def _encoded(groups: list[Mapping[int, Image]]) -> tuple[int, list[dict[int, str]]]:
    """(the longest side, the groups as data URIs). Reduced are all pictures or none: a model must not look worse for its detail."""
    groups = [dict(sorted(group.items())) for group in groups]
    largest = max((max(image.size) for group in groups for image in group.values()), default=0)
    done: list[dict[int, str]] = []
    for side in _SIDES:
        if side < _SIDES[0] and side >= largest:  # nothing would change
            continue
        done = [{place: _data_uri(image, side) for place, image in group.items()} for group in groups]
        if sum(len(uri) for group in done for uri in group.values()) <= _MOST:
            return side, done
    return _SIDES[-1], done


def _data_uri(image: Image, side: int) -> str:
    """Lossless where it is small or has few colours, else WebP of high quality; whichever is smaller. Carries no metadata."""
    import numpy as np
    from PIL import Image as pillow

    rgb = pillow.new("RGB", image.size)
    rgb.paste(image.convert("RGB"))
    if max(rgb.size) > side:
        rgb.thumbnail((side, side), pillow.Resampling.LANCZOS)
    small = max(rgb.size) <= _SMALL
    made = {"webp": _saved(rgb, "WEBP", **({"lossless": True, "quality": 80} if small else {"quality": 90}))}
    if rgb.getcolors(256) is not None:  # a palette of them all is exact; Pillow's own search for the nearest entry is not
        table, index = np.unique(np.asarray(rgb).reshape(-1, 3), axis=0, return_inverse=True)
        indexed = pillow.fromarray(index.reshape(rgb.height, rgb.width).astype(np.uint8))
        indexed.putpalette(table.tobytes())
        made["png"] = _saved(indexed, "PNG", optimize=True)
    kind = min(made, key=lambda name: len(made[name]))
    return f"data:image/{kind};base64,{base64.b64encode(made[kind]).decode()}"


def _saved(image: Image, kind: str, **how: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **how)
    return out.getvalue()


# --- text ---------------------------------------------------------------------------------------------------------------------


def _finite(value: Any) -> Any:
    """NaN and infinities become None, however deep."""
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _filled(data: Mapping[str, Any]) -> str:
    assets = Path(__file__).with_name("assets")
    template, script = ((assets / name).read_text(encoding="utf-8") for name in ("report.html", "report.js"))
    before, mark, after = template.replace("{{SCRIPT}}", script).partition("{{DATA}}")
    assert mark
    return before + json.dumps(data, ensure_ascii=False).replace("<", "\\u003c") + after  # no "</script>" in a prompt ends the script


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "backslashreplace")  # of a lone surrogate, which has no UTF-8, that makes JSON's own escape
