"""Our side: the same networks through the project's own paths, `processes.sample` and the trainer's `Run.update`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.setting import Inputs, Setting
from triptych.contracts import Batch, Condition, ConditionSpec, Latents, LatentSpace, Rng, Start
from triptych.generators.dit import Config, DiT
from triptych.interop.diffusers_dit import config_from_diffusers, tensors_from_diffusers
from triptych.processes import sample
from triptych.processes.rectified_flow import Config as FlowConfig
from triptych.processes.rectified_flow import RectifiedFlow, Sampling
from triptych.recipe import Family, Optimizer, Recipe
from triptych.training.report import Report
from triptych.training.run import Run

__all__ = ["Given", "evaluation", "load", "network_of", "training", "trajectory"]


def load(folder: Path) -> DiT:
    """A folder that diffusers saved, as our DiT."""
    config, latent, condition = config_from_diffusers(json.loads((folder / "config.json").read_text()))
    network = DiT(config, latent=latent, condition=condition)
    network.load_state_dict(tensors_from_diffusers(load_file(folder / "diffusion_pytorch_model.safetensors"), config))
    return network.eval().requires_grad_(False)


def network_of(model: str, setting: Setting, folder: Path) -> DiT:
    """diffusers' weights; the modern variant, which they have not, with random ones."""
    if model != "modern":
        return load(folder / model)
    s = setting
    config = Config(width=s.width, depth=s.depth, num_heads=s.heads, patch_size=s.patch)
    spec = ConditionSpec(width=s.text_width, context_length=s.words, pooled=s.text_width)
    network = DiT(config, latent=LatentSpace(kind="image", shape=(s.channels, s.side, s.side)), condition=spec)
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        scale = parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.1
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return network.eval().requires_grad_(False)


def conditions(model: str, given: Inputs) -> tuple[Condition, Condition]:
    """What is heard, and what the unconditional branch hears."""
    if model == "paper":
        return Condition(label_B=given.label_P), Condition(label_B=given.null_label_P)
    pooled = {"pooled_BD": given.pooled_PD} if model == "modern" else {}
    return (
        Condition(tokens_BLD=given.tokens_PLD, mask_BL=given.mask_PL, **pooled),
        Condition(tokens_BLD=given.null_tokens_PLD, mask_BL=given.null_mask_PL, **pooled),
    )


def evaluation(network: DiT, model: str, given: Inputs, dtype: torch.dtype, setting: Setting) -> Callable[[], Tensor]:
    """One pass over both branches at t = 0.5; returns (null, conditioned) velocities below one another."""
    cond, null = conditions(model, given)
    with torch.no_grad():
        both = network.prepare(null.cat([cond]))
    x = torch.cat([given.noise_PCHW] * 2).to(dtype)
    t = torch.tensor(500.0).expand(len(x))

    @torch.no_grad()
    def run() -> Tensor:
        return network(x, t, both)

    return run


def trajectory(network: DiT, model: str, given: Inputs, dtype: torch.dtype, setting: Setting) -> Callable[[], Tensor]:
    """From noise to latents by `processes.sample`, the way every picture here is drawn."""
    process = RectifiedFlow(FlowConfig(target="v"))
    cond, null = conditions(model, given)
    how = Sampling(steps=setting.steps, guidance=setting.guidance, sampler="euler")
    start = Start(shape=tuple(given.noise_PCHW.shape[1:]), noise=given.noise_PCHW)
    rng = Rng.of_seeds(range(len(given.noise_PCHW)))
    return lambda: sample(process, network, cond, null, how, start, rng)


class Given:
    """A Task whose latents and conditions are given, as the peer's are: what is timed is learning."""

    def __init__(self, network: nn.Module, latents: Latents, process: Any = None) -> None:
        self.modules, self.latents = nn.ModuleDict({"generator": network}), latents
        self.process = process or RectifiedFlow(FlowConfig(target="v", uniform=0.0))

    def panels(self) -> dict[str, nn.Module]:
        return dict(self.modules.items())

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        return dict(self.modules.named_parameters())

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> Mapping[str, Tensor]:
        return self.process.losses(self.modules["generator"], self.latents, phase, step, rng)

    def after_step(self, phase: str, step: int) -> None:
        return None


def training(network: DiT, model: str, given: Inputs, bf16: bool, compiled: bool) -> Callable[[], Tensor]:
    """One step by the trainer's `Run.update`, averages of the weights off as in the peer's loop; returns the loss."""
    cond, null = conditions(model, given)
    task: Any = Given(network.train().requires_grad_(True), Latents(z=given.noise_PCHW.clamp(-1, 1), cond=cond, null=null))
    recipe = Recipe(
        name="benchmark", panel="generators", family=Family(name="dit"), batch=len(given.noise_PCHW), ema=0.0, compile=compiled,
        precision="bf16" if bf16 else "float32", optimizer=Optimizer(lr=1e-4, warmup=0.0, decay=0.0), steps=10**9,
    )  # fmt: skip
    run = Run(recipe, task, None, None, "cpu", Report(quiet=True))
    batch = Batch(index=tuple(range(recipe.batch)))
    return lambda: torch.tensor(run.update(batch)["loss"])
