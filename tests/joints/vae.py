"""The variational autoencoder (Kingma and Welling, arXiv 1312.6114): a decoder whose latent is a vector.

B batch, C = 3 channels, H W grid, K latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from triptych.contracts import Batch, LatentSpace, Prompt, Rng
from triptych.layers.fingerprint import fingerprint_tensors
from triptych.layers.pixels import average_down

__all__ = ["VAE", "SIZES", "TASKS", "Config", "Elbo", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Config:
    image_size: int = 8
    width: int = 64
    num_latents: int = 8


SIZES = {"tiny": Config()}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Nothing to choose."""


class VAE(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] to the posterior's mean [B, K], whose prior is N(0, 1), and back."""

    Sampling = Sampling

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.image_size, pixels = c.image_size, (3, c.image_size, c.image_size)
        count = 3 * c.image_size**2
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(count, c.width), nn.SiLU(), nn.Linear(c.width, 2 * c.num_latents))
        self.decoder = nn.Sequential(nn.Linear(c.num_latents, c.width), nn.SiLU(), nn.Linear(c.width, count), nn.Unflatten(1, pixels))

    @property
    def latent(self) -> LatentSpace:
        encoding = {k: v.bfloat16() for k, v in self.encoder.state_dict().items()}  # as it is stored
        return LatentSpace(kind="vector", shape=(self.config.num_latents,), fingerprint=fingerprint_tensors(encoding, "vae"))

    def posterior(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        mean_BK, logvar_BK = self.encoder(average_down(image_BCHW, self.image_size)).chunk(2, dim=1)
        return mean_BK, logvar_BK

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return self.posterior(image_BCHW)[0]

    def decode(self, z: Tensor, cond: Any = None, how: Any = None, rng: Rng | None = None, on_step: Any = None) -> Tensor:
        return self.decoder(z).clamp(-1, 1)


class Elbo:
    """loss = error^2 / (2 sigma^2) + KL, a value of the picture, in nats; `sigma` of the Gaussian observation."""

    def __init__(self, panel: VAE, *, neighbours: Any = None, sigma: float = 0.3) -> None:
        self.panel, self.sigma = panel, sigma
        self.modules = nn.ModuleDict({"decoder": panel})

    def panels(self) -> dict[str, nn.Module]:
        return {"decoder": self.panel}

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        return dict(self.modules.named_parameters())

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        return {name: value_B.mean() for name, value_B in self._losses_B(batch, rng).items()}

    def after_step(self, phase: str, step: int) -> None: ...

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        return self._losses_B(batch, Rng.of_samples(0, batch.index))

    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        return self.panel.decode(self.panel.encode(batch.images_BCHW))

    def _losses_B(self, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        true = average_down(batch.images_BCHW, self.panel.image_size)
        mean, logvar = self.panel.posterior(true)
        z = mean + torch.exp(0.5 * logvar) * rng.normal("posterior", mean.shape[1:])
        error = (self.panel.decoder(z) - true).square().flatten(1).sum(1)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)
        return {"loss": (error / (2 * self.sigma**2) + kl) / true[0].numel(), "mse": error / true[0].numel(), "kl": kl}


TASKS = {"elbo": Elbo}
