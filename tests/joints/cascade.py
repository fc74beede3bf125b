"""A cascade (Ho et al., arXiv 2106.15282): a decoder whose latent is a small picture, and whose decode is a diffusion that sees it.

The space is that of the identity decoder of the same side, mean and std: a generator trained for one draws for the other.

B batch, C = 3 channels, h w the small grid, H W the large one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych import catalog
from triptych.contracts import Batch, Condition, Latents, LatentSpace, Prompt, Rng, Start
from triptych.layers.embed import timestep_embedding
from triptych.layers.pixels import average_down, pixel_space
from triptych.processes import sample

__all__ = ["Cascade", "SIZES", "TASKS", "Config", "Sampling", "Upsample"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """size: side of the small picture.  process: a family, at size "tiny"."""

    size: int = 8
    factor: int = 2
    width: int = 24
    process: str = "rectified_flow"


SIZES = {"tiny": Config()}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    steps: int = 4


class Unet(nn.Module):
    """Its smallest relative: x_t [B, C, H, W] beside the enlarged small picture, three convolutions, to x0 less the enlargement."""

    role = "denoiser"

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.clock = nn.Conv2d(6, width, 3, padding=1), nn.Linear(256, width)
        self.rest = nn.Sequential(nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 3, 3, padding=1))

    def forward(self, x_t: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        low = F.interpolate(cond.concat_BCHW, size=x_t.shape[2:], mode="bicubic").to(x_t)
        clock = self.clock(timestep_embedding(clock_B).to(x_t))[..., None, None]
        return low + self.rest(self.first(torch.cat([x_t, low], dim=1)) + clock)


class Cascade(nn.Module):
    """z [B, 3, h, w], a standardised small picture, to [B, 3, H, W] by `how.steps` steps."""

    Sampling = Sampling

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.image_size = config, config.size * config.factor
        self.latent: LatentSpace = pixel_space(config.size, mean=0.5, std=0.6)
        self.network, self.process = Unet(config.width), catalog.build("processes", config.process, size="tiny")

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return self.latent.standardise(average_down(image_BCHW, self.config.size))

    def decode(self, z: Tensor, cond: Any = None, how: Sampling | None = None, rng: Rng | None = None, on_step: Any = None) -> Tensor:
        asked, rng = self.process.Sampling(steps=(how or Sampling()).steps, guidance=1.0), rng or Rng.of_seeds(range(len(z)))
        low, start = Condition(concat_BCHW=z), Start(shape=(3, self.image_size, self.image_size))
        report = None if on_step is None else lambda state, _: on_step(int(state.index_B.max()), int(state.total_B.max()))
        return self.latent.restore(sample(self.process, self.network, low, low, asked, start, rng, report)).clamp(-1, 1)


class Upsample:
    """Learn the large picture from the small one, whose noise is the paper's conditioning augmentation: up to `augment`."""

    def __init__(self, panel: Cascade, *, neighbours: Any = None, augment: float = 0.1) -> None:
        self.panel, self.augment, self.modules = panel, augment, nn.ModuleDict({"decoder": panel})

    def panels(self) -> dict[str, nn.Module]:
        return {"decoder": self.panel}

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        return dict(self.modules.named_parameters())

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        return self.panel.process.losses(self.panel.network, self._latents(batch, rng), phase, step, rng)

    def after_step(self, phase: str, step: int) -> None: ...

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        rng = Rng.of_samples(0, batch.index)
        return self.panel.process.validate(self.panel.network, self._latents(batch, rng), rng)

    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        return self.panel.decode(self.panel.encode(batch.images_BCHW))

    def _latents(self, batch: Batch, rng: Rng) -> Latents:
        high = self.panel.latent.standardise(average_down(batch.images_BCHW, self.panel.image_size))
        low = self.panel.encode(batch.images_BCHW)
        sigma = self.augment * rng.uniform("augment", (1, 1, 1)).to(low)
        said = Condition(concat_BCHW=low + sigma * rng.normal("augmentation", low.shape[1:]).to(low))
        return Latents(z=high, cond=said, null=said)


TASKS = {"upsample": Upsample}
