"""Twenty-step loss curves of tiny recipes. `python -m tests.golden.make` writes them anew: after a change that is meant to move them.

A curve is what the real trainer logs, in float32, with one thread and seed 0, on drawn scenes (which need nothing but Pillow).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych import data
from triptych.contracts import Task
from triptych.recipe import Data, Family, Neighbour, Optimizer, Recipe, Source
from triptych.training import Report, train

__all__ = ["CURVES", "RECIPES", "curve", "stored"]

CURVES = Path(__file__).with_name("curves.json")
STEPS = 20
WORDS = Neighbour(family=Family(name="bilingual", size="tiny"), trained=True)
FEW = {"vocabulary_texts": 500}  # enough for 512 tokens


def _recipe(panel: str, family: str, *, side: int, lr: float = 2e-3, **changed: Any) -> Recipe:
    return Recipe(
        name=f"golden-{family}", panel=panel, family=Family(name=family, size="tiny"),  # type: ignore[arg-type]
        data=Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=side),
        optimizer=Optimizer(lr=lr, weight_decay=0.01, warmup=0.2), steps=STEPS, batch=8, seed=0, precision="float32", compile=False,
        ema=0.0, save_every=STEPS, **changed,
    )  # fmt: skip


def _flow(target: str) -> Recipe:
    neighbours = {"text_encoder": WORDS, "decoder": Neighbour(family=Family(name="identity", size="tiny"))}
    process = Family(name="rectified_flow", config={"target": target})
    return _recipe("generators", "dit", side=16, process=process, task_options=FEW, neighbours=neighbours)


RECIPES: Mapping[str, Recipe] = {
    "masked_words": _recipe("text_encoders", "bilingual", side=0, task="masked_words", task_options=FEW),
    "contrastive": _recipe("vision", "clip", side=16, task="contrastive", task_options=FEW, neighbours={"text_encoder": WORDS}),
    "rectified_flow v": _flow("v"),
    "rectified_flow x0": _flow("x0"),
    "upscale 0": _recipe("decoders", "upscaler", side=16, task="upscale", task_options={"stage": 0}),
    "upscale 1": _recipe("decoders", "upscaler", side=32, task="upscale", task_options={"stage": 1}),
    "kl": _recipe("decoders", "autoencoder_kl", side=16, task="kl", lr=2e-4),  # its loss has corners: faster, one pixel's sign moves all
}


def curve(name: str, out: Path) -> list[float]:
    """Train a recipe in the run folder `out`; its loss at every step."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(RECIPES[name], out=out, data=data.build(RECIPES[name].data), report=Report(quiet=True), device="cpu", export=_nowhere)
    finally:
        torch.set_num_threads(threads)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def _nowhere(task: Task, recipe: Recipe, folder: Path, card: Mapping[str, Any]) -> None:
    """A curve needs no exported model."""


def stored() -> dict[str, Tensor]:
    return {name: torch.tensor(losses, dtype=torch.float64) for name, losses in json.loads(CURVES.read_text()).items()}


def main() -> None:
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in RECIPES:
            found[name] = [float(f"{loss:.7g}") for loss in curve(name, Path(folder) / name)]
            print(f"{name:20} {found[name][0]:.4f} -> {found[name][-1]:.4f}")
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(losses)}" for name, losses in found.items())
    CURVES.write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
