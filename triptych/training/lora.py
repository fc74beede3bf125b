"""A generator that learns beside its weights: `recipe.lora`. What is learnt becomes a file, RUN/lora, beside the whole model.

    RUN/lora/pytorch_lora_weights.safetensors    averaged A and B, under PEFT's names: see `interop/lora.py`
    RUN/lora/card.json                           how it was made, and for which model
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from triptych import checkpoint
from triptych.contracts import Task
from triptych.interop.lora import write
from triptych.interop.lora_files import FILE, hash_of
from triptych.layers import lora
from triptych.recipe import Recipe

__all__ = ["begin", "export"]


def begin(recipe: Recipe, panel: nn.Module, init: str | Path | None) -> None:
    """Insert what the recipe asks for, where it asks. Raises ValueError where it cannot be: see `layers.lora.insert`."""
    how = recipe.lora
    if how is None:
        return
    if recipe.panel != "generators":
        raise ValueError(f"lora: a LoRA is trained beside a generator, and recipe {recipe.name!r} trains {recipe.panel}: leave lora empty")
    if init is None:
        raise ValueError("lora: a LoRA adds to a model that has learnt; give --init MODEL, or set init")
    trained = [place for place, one in recipe.neighbours.items() if one.trained]
    if trained:
        field = f"neighbours.{trained[0]}.trained"
        raise ValueError(f"lora: {field} = true, and what it learns is in no LoRA's file: set {field}=false")
    try:
        lora.insert(panel, how.rank, how.alpha, how.targets or lora.ATTENTION)
    except ValueError as error:
        raise ValueError(f"lora: {error}") from None


def export(task: Task, folder: Path, card: Mapping[str, Any], *, init: str | Path | None, frozen: str) -> None:
    """What the generator's LoRAs have learnt, as they stand now; nothing where it has none.

    init: the model that it adds to.  frozen: the fingerprint of the weights beside which it was learnt.
    """
    network = task.panels().get("generator")
    if network is None or not any(lora.inserted(network)):
        return
    products = write(folder / FILE, network)
    base = {"name": Path(init).name if init else "", "fingerprint": _fingerprint(init) or frozen, "weights": frozen}
    one = next(one for _, one in lora.inserted(network))
    told = {
        "fingerprint": hash_of(folder), "base": base, "rank": one.rank, "alpha": one.alpha,
        "products": products, "parameters": sum(p.numel() for _, one in lora.inserted(network) for p in (one.A, one.B)), **card,
    }  # fmt: skip
    checkpoint.write_atomically(folder / "card.json", (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())


def _fingerprint(init: str | Path | None) -> str:
    """Of a model's generator, as its card has it; public folders have no cards."""
    if init is None or not (checkpoint.locate(init) / "triptych.json").is_file():
        return ""
    return checkpoint.panel_fingerprint(init, "generator")
