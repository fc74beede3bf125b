"""`triptych search`: the pictures of a folder that are nearest to words, or to a picture.

What the eyes saw is kept in the user's cache, so that the next search of the folder looks at new and changed pictures alone.

Shape legend: N pictures, B batch, E the common space of pictures and words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import checkpoint
from ..data.picture import SUFFIXES, fitted, opened
from ..data.sheet import sheet
from ..data.store import cache_folder
from ..eyes import EYES, Eyes, Pixels, as_tensor
from ..layers.fingerprint import fingerprint_tensors
from . import say
from .errors import Failure, blame
from .look import free, hearing, named_picture, overheard, pictures_below, put, told
from .models import open_eyes

__all__ = ["search"]

BATCH = 32  # pictures looked at together


def search(
    query: str, folder: str, *, n: int = 10, output: str | None = None, model: str | None = None, device: str = "auto",
    as_json: bool = False,
) -> None:  # fmt: skip
    """The pictures of a folder, subfolders included, nearest to words or to a picture, by cosine; as a contact sheet too."""
    begun, root = time.perf_counter(), Path(folder)
    if not query.strip():
        raise ValueError("nothing to search for: give words, or a picture")
    if not root.is_dir():
        raise ValueError(f"{folder} is no folder; give one that holds pictures")
    example = named_picture(query) if query.lower().endswith(SUFFIXES) else None
    target = None if output is None else free(output)
    files = pictures_below(root)
    if not files:
        raise Failure("bad_data", f"{folder} holds no picture ({', '.join(SUFFIXES)})")
    eyes = open_eyes(model or EYES, device)
    with overheard() as said:
        query_E = (hearing(eyes).text([query]) if example is None else eyes.sight().image(as_tensor(example)))[0].cpu()
    known, broken, new = _embedded(eyes, root, files, as_json)
    for line in _named(broken, len(files)):
        say.note(line)
    if not known:
        raise Failure("bad_data", f"none of the {len(files)} pictures in {folder} can be read")
    cosine_N = torch.stack(list(known.values())) @ query_E
    order = cosine_N.argsort(descending=True, stable=True)[:n].tolist()
    best = [(list(known)[i], cosine_N[i].item()) for i in order]
    if target is not None:
        with blame("bad_data", folder):
            cells = [(f"{cosine:.3f} {_drawable(name)}", [_square(root / name)]) for name, cosine in best]
        target = put(sheet(cells, columns=5, side=160), target, Path("search.png"), "sheet")
    value = {
        **told(eyes), "query": {"words" if example is None else "picture": query}, "folder": folder,
        "found": [{"path": str(root / name), "cosine": cosine} for name, cosine in best],
        "searched": len(known), "looked_at": new, "skipped": [{"path": str(root / name), "reason": why} for name, why in broken.items()],
        "sheet": target and str(target), "warnings": said, "seconds": round(time.perf_counter() - begun, 3),
    }  # fmt: skip
    lines = [f"{one['cosine']:6.3f}  {one['path']}" for one in value["found"]]
    say.result(value, "\n".join(lines + ([str(target)] if target else [])), as_json)


def _embedded(eyes: Eyes, root: Path, files: Sequence[Path], quiet: bool) -> tuple[dict[str, Tensor], dict[str, str], int]:
    """(name below root -> unit vector [E], in the order of files; name -> why it was skipped; how many had to be looked at).

    The vectors are kept in the cache, one file for these eyes and this folder; a file is known by name, size and time of change.
    What was looked at before an interruption is kept too.
    """
    cache = cache_folder() / f"search-{_print(eyes)}-{_digest(str(root.resolve()))}.safetensors"
    old, vectors, broken = _remembered(cache), {}, {}
    names = {path.relative_to(root).as_posix(): path for path in files}
    marks: dict[str, str] = {}
    for name, path in names.items():
        try:
            there = path.stat()
        except OSError as error:
            broken[name] = error.strerror or str(error)
            continue
        marks[name] = json.dumps([name, there.st_size, there.st_mtime_ns])
        if marks[name] in old:
            vectors[name] = old[marks[name]]
    new = [name for name in marks if name not in vectors]
    waiting: dict[str, Tensor] = {}

    def look() -> None:
        if waiting:
            seen_BE = F.normalize(eyes.encode_image(torch.cat(list(waiting.values()))).float(), dim=-1).cpu()
            vectors.update(zip(waiting, seen_BE, strict=True))
            waiting.clear()

    try:
        with say.bar("looking", quiet=quiet) as bar:
            for i, name in enumerate(new):
                try:
                    pixels = eyes.preprocess([opened(names[name])])
                except (OSError, ValueError) as error:
                    broken[name] = getattr(error, "strerror", None) or str(error)
                    continue
                if len(waiting) == BATCH or any(other.shape != pixels.shape for other in waiting.values()):
                    look()
                waiting[name] = pixels
                bar.update((i + 1) / len(new), f"picture {i + 1} of {len(new)}")
            look()
    finally:
        if {marks[name] for name in vectors} != old.keys():
            _remember(cache, {marks[name]: vector for name, vector in vectors.items()})
    return {name: vectors[name] for name in names if name in vectors}, broken, sum(name in vectors for name in new)


def _print(eyes: Eyes) -> str:
    """Of the weights and of how pictures become pixels: what an embedding depends on."""
    weights = eyes.fingerprint or fingerprint_tensors(eyes.vision.state_dict())
    return _digest(f"1 {weights} {eyes.pixels if isinstance(eyes.pixels, Pixels) else ''}")


def _digest(text: str) -> str:
    return blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()


def _remembered(cache: Path) -> dict[str, Tensor]:
    """mark of a file -> its vector; {} where nothing is kept, or it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(cache, "pt") as kept:
            vectors_NE, marks = kept.get_tensor("vectors_NE"), json.loads((kept.metadata() or {})["files"])
            return dict(zip(marks, vectors_NE, strict=True))
    except (OSError, SafetensorError, ValueError, LookupError, TypeError):
        return {}


def _remember(cache: Path, vectors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save

    if not vectors:
        return
    try:
        checkpoint.write_atomically(cache, save({"vectors_NE": torch.stack(list(vectors.values()))}, {"files": json.dumps(list(vectors))}))
    except OSError as error:
        say.note(f"note: {cache.parent} cannot keep what was seen ({error.strerror}); the next search looks again")


def _named(broken: Mapping[str, str], of: int, most: int = 5) -> list[str]:
    if not broken:
        return []
    some = "; ".join(f"{name} ({why})" for name, why in list(broken.items())[:most])
    more = f"; and {len(broken) - most} more, which --json names" if len(broken) > most else ""
    return [f"skipped {len(broken)} of {of} pictures, which cannot be read: {some}{more}"]


def _square(file: Path, side: int = 160) -> Tensor:
    """The whole picture in a white square, [3, side, side] in [-1, 1]."""
    return torch.from_numpy(fitted(file, side).copy()).permute(2, 0, 1).float() / 127.5 - 1


def _drawable(name: str) -> str:
    return name.encode("utf-8", "replace").decode()  # a file's name may hold bytes that are no letters
