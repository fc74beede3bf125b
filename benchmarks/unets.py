"""U-Nets, which both sides build, and our lanes of them: steps, loading, training.

What was counted of our side, in shares of a guided step, both branches:

    both branches' common prefix, computed once    SD 1.5 2.7 %, pixel-text 3.6 %, ldm 2.4 %, sd 1.1 % (4.9 % without a pooled vector)
    words' keys and values once a request          SD 1.5 0.4 %, pixel-text 1.7 %, ldm 6.1 %, sd 3.7 %
    rows of the time's table kept between steps    SD 1.5 0.004 %, pixel-text 0.05 %, ldm 0.2 %, sd 0.03 %: not done (90 us:
                                                   1 to 2 % of the smallest steps' time; they depend on conditions joined anew each step)
    convolutions' weights in oneDNN's layout       no FLOP, but 49-79 % of the time of 1280-channel ones on maps of 8 x 8 and 16 x 16

    python -m benchmarks.unets         counts the FLOP of these again
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.ours import Given
from triptych.contracts import Batch, Condition, ConditionSpec, Latents, LatentSpace
from triptych.generators.unet import SIZES, UNet
from triptych.interop.diffusers_unet import config_from_diffusers, tensors_from_diffusers
from triptych.interop.weights import Weights, built
from triptych.processes.ddpm import DDPM
from triptych.processes.ddpm import Config as DDPMConfig
from triptych.recipe import Family, Optimizer, Recipe
from triptych.training.report import Report
from triptych.training.run import Run

__all__ = ["SHAPES", "Shape", "UNetInputs", "counted", "evaluation", "inputs", "load", "loading", "training"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A U-Net in diffusers' words. words = 0: `UNet2DModel`, which hears nothing; else `UNet2DConditionModel`.

    widths, attention: of each level, and whether it asks.  heads: of every level.  text: the words' width.  batch: of training.
    """

    side: int
    widths: tuple[int, ...]
    attention: tuple[bool, ...]
    heads: int = 4
    layers: int = 1
    channels: int = 4
    words: int = 0
    text: int = 0
    groups: int = 32
    batch: int = 32


SHAPES = {
    "unet-tiny": Shape(side=4, widths=(8, 16), attention=(True, False), heads=2, words=6, text=12, groups=4, batch=2),
    "unet-64": Shape(side=8, widths=(128, 256), attention=(True, True), words=16, text=160),
    "unet-256": Shape(side=16, widths=(64, 128, 256), attention=(True, True, True), words=16, text=160),
    "unet-plain": Shape(side=32, widths=(64, 128, 128), attention=(False, True, False), channels=3, batch=16),
    "sd-1.5": Shape(
        side=64, widths=(320, 640, 1280, 1280), attention=(True, True, True, False), heads=8, layers=2, words=77, text=768, batch=1
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNetInputs:
    """P pictures and what they hear, [P, words, width]; None where nothing is heard."""

    noise_PCHW: Tensor
    tokens_PLD: Tensor | None
    null_PLD: Tensor | None


def inputs(shape: Shape, pictures: int) -> UNetInputs:
    """The same for everybody."""
    g = torch.Generator().manual_seed(7)
    noise = torch.randn(pictures, shape.channels, shape.side, shape.side, generator=g)
    if not shape.words:
        return UNetInputs(noise_PCHW=noise, tokens_PLD=None, null_PLD=None)
    tokens = torch.randn(pictures, shape.words, shape.text, generator=g)
    null = torch.randn(1, shape.words, shape.text, generator=g).expand_as(tokens).contiguous()
    return UNetInputs(noise_PCHW=noise, tokens_PLD=tokens, null_PLD=null)


def load(folder: Path, dtype: torch.dtype) -> UNet:
    """A folder that diffusers saved, as our U-Net, each tensor straight into `dtype`."""
    config, latent, condition = config_from_diffusers(json.loads((folder / "config.json").read_text()))
    weights = Weights(folder, folder, "diffusion_pytorch_model")
    plan = tensors_from_diffusers(weights.promised, config)
    network = built(lambda: UNet(config, latent=latent, condition=condition))
    weights.check(network, plan)
    weights.fill(network, plan, dtype)
    return network


def evaluation(network: UNet, given: UNetInputs) -> Callable[[], Tensor]:
    """One step's evaluation, as `processes.guidance` asks for it: the conditioned answers, below them the unconditional ones.

    Where nothing is heard there is one branch.
    """
    x, clock = given.noise_PCHW, torch.full((len(given.noise_PCHW),), 500)
    heard = Condition()
    if given.tokens_PLD is not None and given.null_PLD is not None:
        with torch.no_grad():
            heard = network.prepare(Condition(tokens_BLD=torch.cat([given.tokens_PLD, given.null_PLD])))

    @torch.no_grad()
    def run() -> Tensor:
        return network(x, clock, heard)

    return run


def loading(folder: Path, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The network from its folder; returns its last weight."""
    return lambda: load(folder, dtype).head.weight


def training(network: UNet, given: UNetInputs, bf16: bool, compiled: bool) -> Callable[[], Tensor]:
    """One step by the trainer's `Run.update`, its average of the weights included; returns the loss."""
    heard = Condition(tokens_BLD=given.tokens_PLD)
    latents = Latents(z=given.noise_PCHW.clamp(-1, 1), cond=heard, null=Condition(tokens_BLD=given.null_PLD))
    task: Any = Given(network.train().requires_grad_(True), latents, DDPM(DDPMConfig()))
    recipe = Recipe(
        name="benchmark", panel="generators", family=Family(name="unet"), batch=len(given.noise_PCHW), ema=0.1, compile=compiled,
        precision="bf16" if bf16 else "float32", optimizer=Optimizer(lr=1e-4, warmup=0.0, decay=0.0), steps=10**9,
    )  # fmt: skip
    run = Run(recipe, task, None, None, "cpu", Report(quiet=True))
    batch = Batch(index=tuple(range(recipe.batch)))
    return lambda: torch.tensor(run.update(batch)["loss"])


# --- counting -----------------------------------------------------------------------------------------------------------


def counted() -> dict[str, dict[str, float]]:
    """Network -> GFLOP of a guided step with each row by itself, and the shares of it that are saved or could be. Nothing is computed."""
    from torch.utils.flop_counter import FlopCounterMode

    small = dataclasses.replace(SIZES["scenes-latent"], multipliers=(1, 2), attention=(0, 1))
    clip, bilingual = ConditionSpec(width=64, context_length=77, pooled=64), ConditionSpec(width=160, context_length=16, pooled=160)
    networks = {
        "SD-1.5": (SIZES["SD-1.5"], (4, 64, 64), ConditionSpec(width=768, context_length=77)),
        "pixel-text": (SIZES["scenes"], (3, 32, 32), bilingual), "ldm": (SIZES["scenes-latent"], (4, 8, 8), bilingual),
        "sd": (small, (4, 16, 16), clip), "sd, no pooled vector": (dataclasses.replace(small, pooled=False), (4, 16, 16), clip),
    }  # fmt: skip
    found = {}
    for name, (config, sides, heard) in networks.items():
        with torch.device("meta"):
            network = UNet(config, latent=LatentSpace(kind="image", shape=sides), condition=heard).requires_grad_(False)
            said = Condition(
                tokens_BLD=torch.empty(2, heard.context_length, heard.width),
                pooled_BD=torch.empty(2, heard.pooled) if heard.pooled else None,
            )
            flop = []
            for rows in (2, 1):
                with FlopCounterMode(display=False) as counter:
                    network(torch.empty(rows, *sides), torch.empty(rows), said)
                flop.append(counter.get_total_flops())
        parts = {part: sum(counter.get_flop_counts().get(f"UNet.{part}", {}).values()) / flop[0] for part in ("text", "clock")}
        found[name] = {"GFLOP": flop[0] / 1e9, "prefix": 1 - flop[1] / flop[0], "words": parts["text"], "time": parts["clock"]}
    return found


if __name__ == "__main__":
    for name, shares in counted().items():
        told = [f"{what} {value:.2f}" if what == "GFLOP" else f"{what} {value:.3%}" for what, value in shares.items()]
        print(f"{name:22} " + "  ".join(told))
