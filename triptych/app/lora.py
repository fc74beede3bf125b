"""LoRAs of `generate`: what the command line names, what an old picture was drawn with, and what a record keeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import say
from .errors import Failure, blame

if TYPE_CHECKING:
    from ..pipeline import TextToImage
    from .jobs import Request

__all__ = ["add_loras", "parse"]


def parse(text: str) -> tuple[str, float | None]:
    """ "style.safetensors:0.8" -> (file, 0.8); without a weight None, which is 1, or that of an old picture."""
    file, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, None
    try:
        return file, float(weight)
    except ValueError:
        return text, None  # a drive's letter, say


def add_loras(request: Request, record: Mapping[str, Any] | None, model: TextToImage) -> None:
    """Fold in those of the old picture, found by their hashes, then those that are new on the command line.

    Raises Failure for a file that is none or for another model, and for an old picture's that is not here any more.
    """
    given = [parse(text) for text in request.loras]
    wanted = _remembered(request, record or {}, given)
    for path, weight in [*wanted, *given]:
        with blame("bad_checkpoint"):
            count = model.add_lora(path, 1.0 if weight is None else weight)
        say.note(f"{model.loras[-1]['file']}: {count} products, weight {model.loras[-1]['weight']:g}")


def _remembered(request: Request, record: Mapping[str, Any], given: list[tuple[str, float | None]]) -> list[tuple[str, float | None]]:
    """The old picture's, in their order. Each is one of the given, which it takes out of these, or lies beside the picture or here."""
    found: list[tuple[str, float | None]] = []
    for one in record.get("loras") or ():
        name, wanted = one["file"], one["hash"]
        typed = next((pair for pair in given if _hash(pair[0]) == wanted), None)
        if typed is not None:
            given.remove(typed)
            found.append((typed[0], one["weight"] if typed[1] is None else typed[1]))
            continue
        near = [folder / Path(name).name for folder in (Path(request.old or "").parent, Path())]
        path = next((path for path in near if path.is_file() and _hash(path) == wanted), None)
        if path is None:
            other = next((f"; {path} is another ({_hash(path)})" for path in near if path.is_file()), "")
            said = f"{request.old} was drawn with the LoRA {name} ({wanted}), which is not here{other}"
            raise Failure("bad_checkpoint", f"{said}; give it: --lora FILE")
        found.append((str(path), one["weight"]))
    return found


def _hash(path: str | Path) -> str:
    """"" for what is no file that can be read; `add_lora` will say why."""
    from ..interop.lora_files import hash_of

    try:
        return hash_of(path)
    except (OSError, ValueError):
        return ""
