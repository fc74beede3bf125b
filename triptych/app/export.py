"""`triptych export`: a model as a folder that another library reads, or a LoRA in the other dialect."""

from __future__ import annotations

from pathlib import Path

from . import say
from .errors import blame
from .models import load_model

__all__ = ["FORMATS", "run"]

FORMATS = ("diffusers", "kohya")


def run(
    name: str, *, form: str, out: str, steps: int | None = None, guidance: float | None = None, sampler: str | None = None,
    as_json: bool = False,
) -> None:  # fmt: skip
    """Write the folder. Raises ValueError for a format that is not there and for what it has no name for, naming the part."""
    if form not in FORMATS:
        raise ValueError(f"--format {form}: there are: {', '.join(FORMATS)}")
    if form == "kohya":
        return _kohya(name, out, as_json)
    model = load_model(name, "cpu")
    from ..interop.diffusers_export import export

    how = model.settings(steps=steps, guidance=guidance, sampler=sampler)
    panels = model.text_encoder, model.generator.network, model.generator.process, model.decoder
    with blame("usage", f"model {name}"):
        call = export(*panels, how, model.size, Path(out))
    value = {"folder": out, "format": form, "model": model.name, "call": call}
    say.result(value, f"{out}\n\n{call}", as_json)


def _kohya(name: str, out: str, as_json: bool) -> None:
    """A LoRA's file, or the folder that a training left, as one file; the card beside it says what it was trained on."""
    from ..interop.lora_files import to_kohya

    if (Path(name) / "triptych.json").exists():
        raise ValueError(f"--format kohya writes a LoRA, and {name} is a whole model: give the run's lora/, or a .safetensors file")
    if Path(out).exists():
        raise ValueError(f"{out} is there already; name a new file")
    if Path(out).suffix != ".safetensors":
        raise ValueError(f"-o {out}: a LoRA is written as .safetensors")
    with blame("bad_checkpoint"):
        count = to_kohya(name, out, **_base(Path(name)))
    say.result({"file": out, "format": "kohya", "products": count}, out, as_json)


def _base(path: Path) -> dict[str, str]:
    """Name and fingerprint of the base model, where a card says so."""
    import json

    card = (path if path.is_dir() else path.parent) / "card.json"
    try:
        base = json.loads(card.read_bytes())["base"]
        return {"base": str(base["name"]), "base_hash": str(base["fingerprint"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
