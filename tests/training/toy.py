"""The smallest honest training that has everything a checkpoint must hold: two phases with an optimizer each, a buffer that
learns, dropout that draws by itself, a stack of matrices for Muon, 50,000 parameters. A step takes milliseconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.contracts import Batch, Prompt, Rng, Task
from triptych.recipe import Family, Optimizer, Recipe
from triptych.training import Report, Result, train


class Lines(Report):
    """A report that remembers what it was told."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


class Pixels:
    """Endless 8 x 8 pictures of two-coloured halves; sample n is a function of (seed, n)."""

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        index = tuple(range(step * batch_size, (step + 1) * batch_size))
        colours = Rng.of_samples(seed, index).uniform("colours", (2, 3))
        images = torch.cat([colours[:, :1, :, None].expand(-1, 4, -1, 8), colours[:, 1:, :, None].expand(-1, 4, -1, 8)], dim=1)
        images = images.permute(0, 2, 1, 3) * 2 - 1
        return Batch(index=index, images_BCHW=images, prompts=(Prompt(),) * batch_size, keys=tuple(map(str, index)))

    def examples(self, n: int, seed: int = 0) -> Batch:
        return self.batch(seed + 1, 0, n)


class Denoiser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(192, 96)
        self.norm = nn.BatchNorm1d(96)
        self.stack = nn.ModuleList(nn.Linear(96, 96) for _ in range(2))
        self.drop = nn.Dropout(0.1)
        self.last = nn.Linear(96, 192)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.first(x.flatten(1)))
        for layer in self.stack:
            h = h + F.silu(layer(self.drop(h)))
        return self.last(h).view_as(x)


class Toy:
    """Phase "main" trains a denoiser, phase "judge" a critic that scores its work. `poison`: steps whose loss is nan."""

    def __init__(self, poison: Sequence[int] = ()) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.modules = nn.ModuleDict({"generator": Denoiser(), "judge": nn.Linear(192, 1)})
        self.poison = set(poison)

    def panels(self) -> dict[str, nn.Module]:
        return {"generator": self.modules["generator"]}

    def plan(self, step: int) -> tuple[str, ...]:
        return ("judge", "main") if step % 3 == 0 else ("main",)

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        place = "judge" if phase == "judge" else "generator"
        return {name: p for name, p in self.modules.named_parameters() if name.startswith(place + ".")}

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        x0 = batch.images_BCHW
        assert x0 is not None
        out = self.modules["generator"](x0 + 0.3 * rng.normal("noise", x0.shape[1:]))
        error_B = (out - x0).square().mean((1, 2, 3))
        if phase == "judge":
            guess_B = self.modules["judge"](out.detach().flatten(1))[:, 0]
            return {"loss": (guess_B - error_B.detach()).square().mean()}
        loss = error_B.mean() * (float("nan") if step in self.poison else 1.0)
        return {"loss": loss, "largest": error_B.max().detach()}

    def after_step(self, phase: str, step: int) -> None: ...

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        x0 = batch.images_BCHW
        assert x0 is not None
        noisy = x0 + 0.3 * Rng.of_samples(0, batch.index).normal("noise", x0.shape[1:])
        return {"loss": (self.modules["generator"](noisy) - x0).square().mean((1, 2, 3))}

    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        return batch.images_BCHW


def recipe(**changed: Any) -> Recipe:
    """60 steps, a checkpoint every 5."""
    fields: dict[str, Any] = {
        "name": "toy", "panel": "generators", "family": Family(name="toy"), "optimizer": Optimizer(lr=3e-3, weight_decay=0.01),
        "steps": 60, "batch": 8, "compile": False, "precision": "float32", "save_every": 5, "validate_every": 20, "preview_every": 1000,
    }  # fmt: skip
    return Recipe(**{**fields, **changed})


def run(out: Path, task: Task | None = None, **changed: Any) -> Result:
    """Train the toy; keywords that `train` knows go to it, the rest changes the recipe."""
    to_train = {key: changed.pop(key) for key in ("resume", "report", "data", "held_out", "export", "dry_run", "device") if key in changed}
    options: dict[str, Any] = {"data": Pixels(), "held_out": Pixels(), "report": Report(quiet=True), "export": nothing, **to_train}
    return train(recipe(**changed), out=out, task=task or Toy(), **options)


def nothing(task: Task, recipe: Recipe, folder: Path, card: Mapping[str, Any]) -> None:
    """Instead of an export: the toy is in no catalog."""


def differences(a: Path, b: Path, step: int) -> list[str]:
    """What two runs do not share to the last bit: the tensors of the checkpoint of `step`, and the metrics but for times."""
    files = [folder / "checkpoints" / f"step-{step:06d}" for folder in (a, b)]
    names = [sorted(p.name for p in folder.glob("*.safetensors")) for folder in files]
    found = [] if names[0] == names[1] and names[0] else [f"files {names}"]
    found += [name for name in names[0] if (files[0] / name).read_bytes() != (files[1] / name).read_bytes()]
    return found + (["metrics"] if metrics(a) != metrics(b) else [])


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("time", "pictures_per_s")} for line in lines]
