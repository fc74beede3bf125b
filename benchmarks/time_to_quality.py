"""Minutes until our recipe draws as well as diffusers' plain loop does after half an hour, on the same pictures and captions.

    python -m benchmarks.time_to_quality [RECIPE] [--minutes 30] [--n 500] [--out out/time_to_quality] [--quick]

1.  The peer: `peers.diffusers_train.Loop` with the recipe's U-Net as `UNet2DConditionModel` (words by cross-attention, no pooled one), its
    batch, the same frozen text encoder and autoencoder, encoding every picture and caption as the example does, captions dropped
    as often as the recipe drops them. Its averaged weights and its plain ones are both judged, and the better ones count.
2.  Ours: the recipe with 1/8, 1/6, 1/4, 1/2 of its steps, and all; each from nothing, until one reaches FD and object accuracy. Its
    minutes are training alone, compiling included; the trials before it are told, and not counted.

Both draw by the recipe's own settings the words of the same held-out scenes, seeds and noise; FD through triptych-eyes-v1; object
accuracy = what triptych-detector-v1 reads right, the mean over the objects judge's tasks (number, colours, places...). `exact`, whole
scenes right, is told beside it: at this length it is a few in a hundred at most, and decides nothing. Run again after an interruption, it
goes on: the peer from its last whole minute, ours from the trainer's checkpoints. Recipes: those that hear words, such as ldm and sd.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from triptych import data, judging
from triptych.app.judge import drawing
from triptych.contracts import Condition, Prompt
from triptych.eyes import DETECTOR, EYES, load_eyes
from triptych.generators.unet import Config, UNet
from triptych.interop.diffusers_unet import config_from_diffusers, config_to_diffusers, tensors_from_diffusers
from triptych.layers.memory import keep_freed_memory
from triptych.pipeline import Generator, TextToImage, load_generator
from triptych.recipe import Data, Recipe, Source
from triptych.recipes import diffusion
from triptych.training.build import build_task
from triptych.training.loop import train
from triptych.training.report import Report
from triptych.training.tasks import GeneratorTask

__all__ = ["Peer", "main", "measure"]

SHARES = (1 / 8, 1 / 6, 1 / 4, 1 / 2, 1.0)


class Peer:
    """diffusers' plain loop between a recipe's frozen panels; it learns in slices of time, and keeps itself after each.

    Raises ValueError for a recipe that says no words, or trains its text encoder.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        from diffusers import UNet2DConditionModel

        from benchmarks.peers.diffusers_train import Loop

        task = build_task(recipe)
        if not isinstance(task, GeneratorTask) or not isinstance(task.network, UNet) or task.trains_text:
            raise ValueError(f"recipe {recipe.name!r} trains no U-Net between frozen panels; take one that does, such as ldm")
        if not task.text_encoder.gives.width:
            raise ValueError(f"recipe {recipe.name!r} hears no words, and captions are what is compared; take one that does, such as ldm")
        self.recipe, self.task, self.folder = recipe, task, folder
        self.config: Config = dataclasses.replace(task.network.config, text="cross", pooled=False)
        self.theirs = config_to_diffusers(self.config, task.decoder.latent, task.text_encoder.gives)
        torch.manual_seed(recipe.seed)
        unet: Any = UNet2DConditionModel.from_config(self.theirs)
        schedule = getattr(getattr(task.process, "config", None), "beta_schedule", "linear")
        self.loop = Loop(unet, schedule={"cosine": "squaredcos_cap_v2"}.get(schedule, schedule))
        self.step, self.seconds = 0, 0.0
        self._resume()

    def learn(self, seconds: float, dataset: Any) -> None:
        """Until so many seconds of learning have gone by altogether."""
        for batch in self._batches(dataset):
            if self.seconds >= seconds:
                return
            begun = time.monotonic()
            with torch.no_grad():
                latents = self.task.decoder.encode(batch.images_BCHW)
                words = self._said(batch.prompts)
            self.loop.step(latents, words)
            self.step, self.seconds = self.step + 1, self.seconds + time.monotonic() - begun

    def _batches(self, dataset: Any) -> Iterator[Any]:
        """The recipe's pictures in its order; waiting for them counts for neither side."""
        from triptych.training.run import Run

        run = Run(dataclasses.replace(self.recipe, compile=False, judges=()), self.task, dataset, None, "cpu", Report(quiet=True))
        step = self.step
        while True:
            yield run.batch(step)
            step += 1

    def _said(self, prompts: Sequence[Prompt]) -> Tensor:
        """Hidden states as long as the context; a caption that is dropped is the empty one."""
        dropped = torch.rand(len(prompts)) < self.recipe.dropout
        cond = self.task.text_encoder.encode([Prompt.of("") if out else said for said, out in zip(prompts, dropped.tolist(), strict=True)])
        return _padded(cond, self.task.text_encoder.gives.context_length)

    # --- kept between runs ----------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Weights, average, AdamW's moments, draws: one safetensors file, put in place whole."""
        tensors = {f"unet.{name}": value for name, value in self.loop.unet.state_dict().items()}
        tensors |= {f"ema.{i}": value for i, value in enumerate(self.loop.ema.shadow_params)}
        for i, one in self.loop.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{i}.{name}": torch.as_tensor(value) for name, value in one.items()}
        tensors["rng"] = torch.get_rng_state()
        facts = {"step": self.step, "seconds": self.seconds, "ema": self.loop.ema.optimization_step}
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / "peer.partial"
        save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, partial, metadata={"facts": json.dumps(facts)})
        partial.replace(self.folder / "peer.safetensors")

    def _resume(self) -> None:
        path = self.folder / "peer.safetensors"
        if not path.exists():
            return
        with safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.step, self.seconds, self.loop.ema.optimization_step = facts["step"], facts["seconds"], facts["ema"]
        self.loop.unet.load_state_dict({k.removeprefix("unet."): v for k, v in tensors.items() if k.startswith("unet.")})
        self.loop.ema.shadow_params = [tensors[f"ema.{i}"] for i in range(len(self.loop.ema.shadow_params))]
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("adam."):
                _, i, what = name.split(".")
                kept.setdefault(int(i), {})[what] = value
        state = self.loop.optimizer.state_dict()
        self.loop.optimizer.load_state_dict({"state": kept, "param_groups": state["param_groups"]})
        rates: Any = self.loop.lr_scheduler
        rates.last_epoch = self.step
        for group, base in zip(self.loop.optimizer.param_groups, rates.base_lrs, strict=True):
            group["lr"] = base * rates.lr_lambdas[0](self.step)
        torch.set_rng_state(tensors["rng"])

    # --- drawn from -----------------------------------------------------------------------------------------------------

    def model(self, averaged: bool) -> TextToImage:
        """Its weights in our own U-Net, which computes the same, between the same panels: both sides draw by the same steps."""
        unet = self.loop.unet
        if averaged:
            self.loop.ema.store(unet.parameters())
            self.loop.ema.copy_to(unet.parameters())
        config, latent, condition = config_from_diffusers({**self.theirs, **dict(unet.config)})
        network = UNet(config, latent=dataclasses.replace(self.task.decoder.latent, shape=latent.shape), condition=condition)
        network.load_state_dict(tensors_from_diffusers({k: v.clone() for k, v in unet.state_dict().items()}, config))
        if averaged:
            self.loop.ema.restore(unet.parameters())
        joined = Generator(network.eval().requires_grad_(False), self.task.process)
        return TextToImage(_Padding(self.task.text_encoder), joined, self.task.decoder, sampling=dict(self.recipe.sampling))


class _Padding:
    """A text encoder whose states are as long as the context and without a mask: what the plain loop's network was told."""

    def __init__(self, encoder: Any) -> None:
        self.encoder, self.gives = encoder, encoder.gives

    def encode(self, prompts: Sequence[Prompt], **more: Any) -> Condition:
        return Condition(tokens_BLD=_padded(self.encoder.encode(prompts, **more), self.gives.context_length))

    def null(self, prompts: Sequence[Prompt]) -> Condition:
        return Condition(tokens_BLD=_padded(self.encoder.null(prompts), self.gives.context_length))


def _padded(cond: Condition, length: int) -> Tensor:
    assert cond.tokens_BLD is not None
    return torch.nn.functional.pad(cond.tokens_BLD, (0, 0, 0, length - cond.tokens_BLD.shape[1]))


# --- the measurement ----------------------------------------------------------------------------------------------------


def measure(recipe: Recipe, out: Path, *, minutes: float, n: int, shares: Sequence[float] = SHARES, say: Any = print) -> dict[str, Any]:
    """All figures, kept in out/figures.json as they come. Raises ValueError where that file is of other settings."""
    out.mkdir(parents=True, exist_ok=True)
    path, of = out / "figures.json", {"recipe": recipe.name, "steps": recipe.steps, "minutes": minutes, "n": n}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"of": of, "ours": []}
    if found["of"] != of:
        raise ValueError(f"{path} holds figures of {found['of']}, and {of} is asked for; give another --out")
    found["threads"] = torch.get_num_threads()
    world = data.build(Data(sources=(Source(name="scenes"),), size=recipe.data.size), split="held_out")
    asked = judging.from_data(world, "scenes", "held_out", n, 0)
    eyes, detector = load_eyes(EYES), load_eyes(DETECTOR)

    def judged(model: TextToImage) -> dict[str, float]:
        judges = judging.judges_for(asked, ("distribution", "objects"), eyes=eyes, detector=detector)
        scores: dict[str, dict[str, Any]] = judging.look(drawing(model, {}), asked, judges, curves=False).scores
        fd = next(value for name, value in scores["distribution"].items() if name.startswith("FD") and not name.endswith(("_low", "_high")))
        return {"FD": fd, "objects": scores["objects"]["mean"], "exact": scores["objects"]["exact"]}

    def keep() -> None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    if "peer" not in found:
        peer, dataset = Peer(recipe, out), data.build(recipe.data)
        while peer.seconds < 60 * minutes:
            peer.learn(min(peer.seconds + 60, 60 * minutes), dataset)
            peer.save()
            say(f"diffusers' loop: {peer.seconds / 60:.1f} of {minutes:g} minutes, {peer.step} steps")
        tries = {"averaged": judged(peer.model(True)), "plain": judged(peer.model(False))}
        best = "plain" if tries["plain"]["FD"] < tries["averaged"]["FD"] else "averaged"
        found["peer"] = {"minutes": peer.seconds / 60, "steps": peer.step, "weights": best, "scores": tries, **tries[best]}
        keep()
        say(f"diffusers' loop: {found['peer']}")
    goal = found["peer"]
    for share in shares[len(found["ours"]) :]:
        if found["ours"] and found["ours"][-1]["reached"]:
            break
        steps = max(1, round(share * recipe.steps))
        ours = dataclasses.replace(recipe, steps=steps, judges=(), preview_prompts=(), validate_every=steps)
        folder = out / f"steps-{steps}"
        result = train(ours, out=folder, resume=True, report=Report(quiet=True))
        if result.reason != "finished":
            raise SystemExit(result.exit_code)
        card = json.loads((folder / "model" / "generator" / "card.json").read_text(encoding="utf-8"))
        scores = judged(load_generator(folder / "model"))
        reached = scores["FD"] <= goal["FD"] and scores["objects"] >= goal["objects"]
        found["ours"].append({"steps": steps, "minutes": 60 * card["hours"], **scores, "reached": reached})
        keep()
        say(f"ours: {found['ours'][-1]}")
    last = found["ours"][-1]
    found["ratio"] = last["minutes"] / goal["minutes"] if last["reached"] else None
    keep()
    return found


def page(found: Mapping[str, Any]) -> str:
    rows = [("diffusers' loop", found["peer"], ""), *(("ours", one, "yes" if one["reached"] else "no") for one in found["ours"])]
    lines = [
        "# Time to quality", "",
        f"Written by `python -m benchmarks.time_to_quality`: recipe {found['of']['recipe']}, {found['of']['n']} held-out scenes, "
        f"{found['threads']} threads.", "", "| | steps | minutes | FD | objects, % | exact, % | reached |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]  # fmt: skip
    for who, one, said in rows:
        objects = f"{100 * one['objects']:.1f} | {100 * one['exact']:.1f}"
        lines.append(f"| {who} | {one['steps']} | {one['minutes']:.1f} | {one['FD']:.2f} | {objects} | {said} |")
    return "\n".join([*lines, "", "Not reached." if found["ratio"] is None else f"Ratio of minutes: {found['ratio']:.2f}.", ""])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.time_to_quality", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipe", nargs="?", default="ldm")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the peer's learning")
    parser.add_argument("--n", type=int, default=500, help="pictures that are judged each time")
    parser.add_argument("--out", type=Path, default=Path("out/time_to_quality"))
    parser.add_argument("--quick", action="store_true", help="seconds of learning, 32 pictures: to see that it runs")
    asked = parser.parse_args(arguments)
    keep_freed_memory()
    recipe, minutes, n, shares = getattr(diffusion, asked.recipe.replace("-", "_"))(), asked.minutes, asked.n, SHARES
    if asked.quick:
        recipe = dataclasses.replace(recipe, steps=16, batch=4, compile=False, sampling={**recipe.sampling, "steps": 4})
        minutes, n, shares = 0.05, 16, (0.5, 1.0)
    out = asked.out / (f"{asked.recipe}-quick" if asked.quick else asked.recipe)
    found = measure(recipe, out, minutes=minutes, n=n, shares=shares)
    (out / "figures.md").write_text(page(found), encoding="utf-8")
    print(page(found))


if __name__ == "__main__":
    main()
