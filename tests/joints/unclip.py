"""unCLIP's decoder (Ramesh et al., arXiv 2204.06125): a picture from its embedding, by a small diffusion of its own.

The latent is a vector, so the generator in front of it is unCLIP's prior. The embedder, the denoiser and their process are other
families, named in `Config` and had from the catalog.

B batch, C = 3 channels, H W grid, K the embedding's numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from triptych import catalog
from triptych.contracts import Batch, Condition, ConditionSpec, Latents, LatentSpace, Prompt, Rng, Start
from triptych.layers.fingerprint import fingerprint_tensors
from triptych.layers.pixels import average_down, pixel_space
from triptych.processes import sample

__all__ = ["UnCLIP", "SIZES", "TASKS", "Config", "Denoise", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """embedder, denoiser, process: families, each at size "tiny"."""

    image_size: int = 8
    embedder: str = "joints_embedder"
    denoiser: str = "dit"
    process: str = "rectified_flow"


SIZES = {"tiny": Config()}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    steps: int = 4
    guidance: float = 1.5


class UnCLIP(nn.Module):
    """Pictures [B, 3, H, W] to the frozen embedder's [B, K]; back by `how.steps` steps. The null embedding is zeros."""

    Sampling = Sampling

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.image_size, self.pixels = config, config.image_size, pixel_space(config.image_size, mean=0.5, std=0.6)
        self.embedder = catalog.build("vision", config.embedder, size="tiny").requires_grad_(False)
        hears = ConditionSpec(pooled=self.embedder.config.embed)
        self.network = catalog.build("generators", config.denoiser, size="tiny", latent=self.pixels, condition=hears)
        self.process = catalog.build("processes", config.process, size="tiny")

    @property
    def latent(self) -> LatentSpace:
        encoding = {k: v.bfloat16() for k, v in self.embedder.state_dict().items()}
        return LatentSpace(kind="vector", shape=(self.embedder.config.embed,), fingerprint=fingerprint_tensors(encoding, "unclip"))

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return self.embedder(image_BCHW)

    def decode(self, z: Tensor, cond: Any = None, how: Sampling | None = None, rng: Rng | None = None, on_step: Any = None) -> Tensor:
        how, rng = how or Sampling(), rng or Rng.of_seeds(range(len(z)))
        asked = self.process.Sampling(steps=how.steps, guidance=how.guidance)
        said, null, start = Condition(pooled_BD=z), Condition(pooled_BD=torch.zeros_like(z)), Start(shape=self.pixels.shape)
        report = None if on_step is None else lambda state, _: on_step(int(state.index_B.max()), int(state.total_B.max()))
        return self.pixels.restore(sample(self.process, self.network, said, null, asked, start, rng, report)).clamp(-1, 1)


class Denoise:
    """Learn to draw a picture from its embedding, heard in nine rows of ten."""

    def __init__(self, panel: UnCLIP, *, neighbours: Any = None) -> None:
        self.panel, self.modules = panel, nn.ModuleDict({"decoder": panel})

    def panels(self) -> dict[str, nn.Module]:
        return {"decoder": self.panel}

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.modules.named_parameters() if name.startswith("decoder.network.")}

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        latents, keep_B = self._latents(batch), rng.uniform("condition dropout") >= 0.1
        heard = latents.cond.drop({"pooled_BD": keep_B}, latents.null)
        return self.panel.process.losses(self.panel.network, Latents(z=latents.z, cond=heard, null=latents.null), phase, step, rng)

    def after_step(self, phase: str, step: int) -> None: ...

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        return self.panel.process.validate(self.panel.network, self._latents(batch), Rng.of_samples(0, batch.index))

    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        return self.panel.decode(self.panel.encode(batch.images_BCHW))

    def _latents(self, batch: Batch) -> Latents:
        pixels = self.panel.pixels.standardise(average_down(batch.images_BCHW, self.panel.image_size))
        said = self.panel.encode(batch.images_BCHW)
        return Latents(z=pixels, cond=Condition(pooled_BD=said), null=Condition(pooled_BD=torch.zeros_like(said)))


TASKS = {"denoise": Denoise}
