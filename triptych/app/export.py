"""`triptych export`: a model as a folder that another library reads."""

from __future__ import annotations

from pathlib import Path

from . import say
from .errors import blame
from .models import load_model

__all__ = ["FORMATS", "run"]

FORMATS = ("diffusers",)


def run(
    name: str, *, form: str, out: str, steps: int | None = None, guidance: float | None = None, sampler: str | None = None,
    as_json: bool = False,
) -> None:  # fmt: skip
    """Write the folder. Raises ValueError for a format that is not there and for what it has no name for, naming the part."""
    if form not in FORMATS:
        raise ValueError(f"--format {form}: there are: {', '.join(FORMATS)}")
    model = load_model(name, "cpu")
    from ..interop.diffusers_export import export

    how = model.settings(steps=steps, guidance=guidance, sampler=sampler)
    panels = model.text_encoder, model.generator.network, model.generator.process, model.decoder
    with blame("usage", f"model {name}"):
        call = export(*panels, how, model.size, Path(out))
    value = {"folder": out, "format": form, "model": model.name, "call": call}
    say.result(value, f"{out}\n\n{call}", as_json)
