"""Models on disk: a folder of panels, each `config.json` + `model.safetensors` + `card.json` (+ files such as a tokenizer).

    my-model/
      triptych.json                  name, defaults of sampling, [panels that stand in an embedded model]
      text_encoder/  generator/  decoder/  [guide/]

Where several embedded models share a frozen panel it is stored once: `"panels": {"decoder": "sd"}` says that this model's decoder is
the one of the embedded model sd. A name alone leads there, never a path, and only one step far: `panel_folder`.

Weights are safetensors and the rest is JSON: nothing in a folder can name code, and nothing is written halfway. A card holds
the panel's own fingerprint (checked when it is loaded) and those of the neighbours it was trained with (checked when panels
are joined, in `pipeline.py`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import catalog
from .contracts import LatentSpace

__all__ = [
    "PLACES", "embedded", "export_model", "has_panel", "load_config", "load_model_file", "load_panel", "load_process", "load_tensors",
    "locate", "panel_fingerprint", "panel_folder", "place_of", "save_panel", "write_atomically",
]  # fmt: skip

PLACES = {"text_encoder": "text_encoders", "generator": "generators", "decoder": "decoders", "vision": "vision", "guide": "vision"}
WEIGHTS = Path(__file__).parent / "weights"
_LARGEST_JSON = 16 * 2**20


def place_of(kind: str) -> str:
    """Where a panel of this kind stands that was trained for itself."""
    return next(place for place, one in PLACES.items() if one == kind)


# --- writing ------------------------------------------------------------------------------------------------------------


def write_atomically(path: Path, data: bytes) -> None:
    """The file is either the old one or the whole new one: temporary name, fsync, rename, fsync of the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_panel(
    folder: Path, module: nn.Module, *, kind: str, name: str, config: Any, card: Mapping[str, Any],
    process: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.bfloat16, tensors: Mapping[str, torch.Tensor] | None = None,
) -> str:  # fmt: skip
    """Write one panel's folder and return its fingerprint. Floating tensors are stored in `dtype`. tensors: in place of its state dict.

    The folder appears whole: it is filled under a temporary name and renamed into place. Raises ValueError if a weight is
    not finite: such a panel is never written.
    """
    from safetensors.torch import save

    stored = {}
    for key, tensor in (module.state_dict() if tensors is None else tensors).items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(f"{name}: weight {key!r} is not finite; nothing was written to {folder}")
        stored[key] = tensor.detach().cpu().to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
    described: dict[str, Any] = {"kind": kind, "family": name, "config": _plain(config)}
    if process is not None:
        described["process"] = dict(process)
    assets: dict[str, bytes] = module.assets() if hasattr(module, "assets") else {}  # type: ignore[operator]
    files = {"config.json": _json(described), "model.safetensors": save(stored, metadata={"format": "pt"}), **assets}
    fingerprint = _fingerprint(files)
    parameters = sum(p.numel() for p in module.parameters())
    files["card.json"] = _json({"fingerprint": fingerprint, "parameters": parameters, **card})

    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        for file, data in files.items():
            write_atomically(temporary / file, data)
        _swap_in(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return fingerprint


def _swap_in(temporary: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old-{uuid.uuid4().hex[:8]}")
    if folder.exists():
        os.rename(folder, old)
    os.rename(temporary, folder)
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def export_model(
    folder: Path, *, name: str, sampling: Mapping[str, Any], panels: Mapping[str, Path], shared: Mapping[str, str] | None = None,
    **more: Any,
) -> None:  # fmt: skip
    """Complete a model's folder: panels that stand elsewhere are copied in, and `triptych.json` is written last.

    shared: place -> the embedded model whose panel stands there instead of an own one.
    """
    folder = Path(folder)
    for place, source in panels.items():
        if Path(source).resolve() != (folder / place).resolve():
            temporary = folder / f".{place}.tmp-{uuid.uuid4().hex[:8]}"
            shutil.copytree(source, temporary)
            _swap_in(temporary, folder / place)
    named = {"panels": dict(shared)} if shared else {}
    write_atomically(folder / "triptych.json", _json({"format": 1, "name": name, "sampling": dict(sampling), **named, **more}))


def _plain(config: Any) -> dict[str, Any]:
    return dataclasses.asdict(config)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()


def _fingerprint(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()[:16]


# --- finding ------------------------------------------------------------------------------------------------------------


def embedded() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in WEIGHTS.glob("*/triptych.json") if not path.parent.name.startswith("."))


def locate(model: str | Path) -> Path:
    """The folder of an embedded model's name, or of a path. Raises ValueError with the nearest right name."""
    if isinstance(model, str) and model in embedded():
        return WEIGHTS / model
    path = Path(model)
    if path.is_dir():
        return path
    raise ValueError(f"no model {str(model)!r}: neither a folder nor embedded; {catalog.nearest(str(model), embedded())}")


def panel_folder(model: str | Path, place: str) -> Path:
    """Where a model's panel is: below its own folder, or below the embedded model's that its `triptych.json` names for this place.

    The folder may not be there: see `has_panel`. Raises ValueError, naming file and value, for a name that is no embedded model's, a
    model that does not hold the panel itself, and a place that has both a name and a folder.
    """
    folder = locate(model)
    own, name = folder / place, load_model_file(model).get("panels", {}).get(place)
    if name is None:
        return own
    said = f"{folder / 'triptych.json'}: panels.{place} = {name!r}"
    if own.exists():
        raise ValueError(f"{said}, but {own} is there as well; take one of them away")
    if not (there := WEIGHTS / name / place).is_dir():
        raise ValueError(f"{said}, but the embedded {name} has no {place} of its own; name the model that holds it")
    return there


def has_panel(model: str | Path, place: str) -> bool:
    """Whether a model has a panel of this place, its own or a shared one. Raises as `panel_folder` does."""
    return panel_folder(model, place).is_dir()


def load_model_file(model: str | Path) -> dict[str, Any]:
    """`triptych.json` of a model, {} where the folder holds single panels only. Raises ValueError for what is wrong in it."""
    path = locate(model) / "triptych.json"
    described = _read_json(path) if path.exists() else {}
    if not isinstance(described.get("sampling", {}), dict):
        raise ValueError(f"{path}: 'sampling' is no object of settings")
    shared = described.get("panels", {})
    if not isinstance(shared, dict):
        raise ValueError(f"{path}: 'panels' is no object of places and embedded models' names")
    for place, name in shared.items():
        if place not in PLACES:
            raise ValueError(f"{path}: panels.{place} is no place; {catalog.nearest(place, list(PLACES))}")
        if not isinstance(name, str) or name not in embedded():
            why = "only an embedded model's panel can be shared, by its name"
            raise ValueError(f"{path}: panels.{place} = {name!r}: {why}; {catalog.nearest(str(name), embedded())}")
    return described


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: {path.parent} is not a whole panel or model folder")
    if path.stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a description has at most {_LARGEST_JSON}")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # broken, not UTF-8, numbers or nesting without end
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


def load_config(model: str | Path, place: str) -> tuple[str, Any, dict[str, Any]]:
    """(family, its Config, the whole config.json) of one panel of a model."""
    if place not in PLACES:
        raise ValueError(f"no panel {place!r}; there are: {', '.join(PLACES)}")
    folder = panel_folder(model, place)
    described = _read_json(folder / "config.json")
    family, fields = described.get("family"), described.get("config")
    if not isinstance(family, str) or not isinstance(fields, dict):
        raise ValueError(f"{folder / 'config.json'} lacks 'family' or 'config'")
    with _blaming(folder / "config.json"):
        return family, catalog.configure(PLACES[place], family, None, fields), described


@contextmanager
def _blaming(path: Path) -> Iterator[None]:
    """What cannot be built from a file's values is that file's fault, whatever broke on them: a ValueError that names it."""
    try:
        yield
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


# --- reading ------------------------------------------------------------------------------------------------------------


def panel_fingerprint(model: str | Path, place: str) -> str:
    """The fingerprint of a panel as its files are now (not as its card says)."""
    folder = panel_folder(model, place)
    names = [p for p in folder.iterdir() if p.is_file() and p.name != "card.json" and not p.name.startswith(".")]
    return _fingerprint({path.name: path.read_bytes() for path in names})


def load_tensors(model: str | Path, place: str) -> dict[str, torch.Tensor]:
    """A panel's weights, checked against its card. Raises ValueError for a damaged or missing file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = panel_folder(model, place)
    path = folder / "model.safetensors"
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    card = _read_json(folder / "card.json")
    found = panel_fingerprint(model, place)
    if card.get("fingerprint") != found:
        raise ValueError(f"{folder} is damaged or was edited: its card says {card.get('fingerprint')}, its files say {found}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None


def load_panel(model: str | Path, place: str, **neighbours: Any) -> Any:
    """One panel, ready to use: float32, evaluation mode, with `.card`.

    A generator needs `latent` and `condition`; where they are not given, its own model's neighbours decide them.
    Raises ValueError for unknown families, wrong shapes, missing or surplus tensors, naming the file and the tensor.
    """
    family, config, _ = load_config(model, place)
    folder, tensors = panel_folder(model, place), load_tensors(model, place)
    if place == "generator" and not neighbours:
        neighbours = {"latent": load_panel(model, "decoder").latent, "condition": load_panel(model, "text_encoder").gives}
    if place == "vision" and not neighbours and has_panel(model, "text_encoder"):
        neighbours = {"condition": load_panel(model, "text_encoder").gives}
    if place == "text_encoder":
        names = {"config.json", "model.safetensors", "card.json"}
        neighbours = {"assets": {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file() and p.name not in names}, **neighbours}
    with _blaming(folder):
        module = catalog.build(PLACES[place], family, config, **neighbours)
    fill(module, tensors, str(folder / "model.safetensors"))
    module.card = _read_json(folder / "card.json")
    if not isinstance(module.card.get("neighbours", {}), dict):
        raise ValueError(f"{folder / 'card.json'}: 'neighbours' is no object of fingerprints")
    return module.eval().requires_grad_(False)


def fill(module: nn.Module, tensors: Mapping[str, torch.Tensor], where: str) -> None:
    """Load weights strictly. Raises ValueError that names the first tensor that is missing, surplus or of another shape."""
    own = module.state_dict()
    for name, tensor in own.items():
        if name not in tensors:
            raise ValueError(f"{where} lacks tensor {name!r} {list(tensor.shape)}")
        if tensors[name].shape != tensor.shape:
            raise ValueError(f"{where}: tensor {name!r} is {list(tensors[name].shape)}, the configuration wants {list(tensor.shape)}")
    surplus = sorted(tensors.keys() - own.keys())
    if surplus:
        raise ValueError(f"{where} has a tensor {surplus[0]!r} that the configuration does not know")
    module.load_state_dict(dict(tensors))


def load_process(model: str | Path) -> Any:
    """The process that a model's generator was trained with."""
    described = load_config(model, "generator")[2].get("process")
    path = panel_folder(model, "generator") / "config.json"
    if not isinstance(described, dict) or not isinstance(described.get("family"), str) or not isinstance(described.get("config"), dict):
        raise ValueError(f"{path} names no process with its config")
    with _blaming(path):
        return catalog.build("processes", described["family"], described["config"])


def describe_latent(latent: LatentSpace) -> str:
    """The latent space in words, for cards and errors."""
    return f"{latent.kind} {'x'.join(str(n) for n in latent.shape)} ({latent.fingerprint})"
