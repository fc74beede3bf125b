"""VQGAN (Esser et al., arXiv 2012.09841): a decoder whose latent is a grid of tokens, trained in two phases.

B batch, C channels, H W grid of tokens, K codes, D their width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.contracts import Batch, LatentSpace, Prompt, Rng
from triptych.layers.fingerprint import fingerprint_tensors
from triptych.layers.pixels import average_down

__all__ = ["VQGAN", "SIZES", "TASKS", "Adversarial", "Config", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Config:
    image_size: int = 8
    width: int = 32
    codebook_size: int = 32
    z_channels: int = 8


SIZES = {"tiny": Config()}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Nothing to choose."""


class Codes(nn.Module):
    """[K, D] codes: the nearest of each vector, and back."""

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.width, self.weight = width, nn.Parameter(torch.randn(count, width) * 0.5)

    def nearest(self, f_BDHW: Tensor) -> Tensor:
        return torch.cdist(rearrange(f_BDHW, "b d h w -> b (h w) d"), self.weight[None]).argmin(-1).view(len(f_BDHW), *f_BDHW.shape[2:])

    def lookup(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight).movedim(-1, 1)


class VQGAN(nn.Module):
    """Pictures [B, 3, 2 H, 2 W] in [-1, 1] to tokens [B, H, W] and back."""

    Sampling = Sampling

    def __init__(self, config: Config) -> None:
        super().__init__()
        c = self.config = config
        self.image_size, w, d = c.image_size, c.width, c.z_channels
        self.encoder = nn.Sequential(nn.Conv2d(3, w, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(w, d, 3, padding=1))
        self.codebook = Codes(c.codebook_size, d)
        grow = nn.Upsample(scale_factor=2)
        self.body = nn.Sequential(nn.Conv2d(d, w, 3, padding=1), nn.SiLU(), grow, nn.Conv2d(w, w, 3, padding=1), nn.SiLU())
        self.last = nn.Conv2d(w, 3, 3, padding=1)

    @property
    def latent(self) -> LatentSpace:
        side = self.image_size // 2
        encoding = {k: v.bfloat16() for k, v in self.state_dict().items() if k.startswith(("encoder.", "codebook."))}
        return LatentSpace(
            kind="grid", shape=(side, side), vocab=self.config.codebook_size, codebook=self.codebook,
            fingerprint=fingerprint_tensors(encoding, "vqgan"),
        )  # fmt: skip

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return self.codebook.nearest(self.encoder(average_down(image_BCHW, self.image_size)))

    def decode(self, z: Tensor, cond: Any = None, how: Any = None, rng: Rng | None = None, on_step: Any = None) -> Tensor:
        return self.last(self.body(self.codebook.lookup(z))).clamp(-1, 1)


class Adversarial:
    """main: |error| + codes + lambda g;  discriminator: hinge.  lambda = |grad error| / (|grad g| + 1e-4) at the last layer, at most 1e4.

    begin: the step from which the discriminator is heard.  weight: of lambda.
    """

    def __init__(self, panel: VQGAN, *, neighbours: Any = None, begin: int = 100, weight: float = 0.8) -> None:
        self.panel, self.begin, self.weight = panel, begin, weight
        self.discriminator = nn.Sequential(nn.Conv2d(3, 32, 4, stride=2, padding=1), nn.LeakyReLU(0.2), nn.Conv2d(32, 1, 3, padding=1))
        self.modules = nn.ModuleDict({"decoder": panel, "discriminator": self.discriminator})

    def panels(self) -> dict[str, nn.Module]:
        return {"decoder": self.panel}

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main", "discriminator")

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        own = "decoder." if phase == "main" else "discriminator."
        return {name: p for name, p in self.modules.named_parameters() if name.startswith(own)}

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        true = average_down(batch.images_BCHW, self.panel.image_size)
        if phase == "discriminator":
            with torch.no_grad():
                fake, _ = self._drawn(true)
            return {"loss": F.relu(1 - self.discriminator(true)).mean() + F.relu(1 + self.discriminator(fake)).mean()}
        fake, codes = self._drawn(true)
        error, g = (fake - true).abs().mean(), -self.discriminator(fake).mean()
        by_error, by_g = (torch.autograd.grad(loss, self.panel.last.weight, retain_graph=True)[0].norm() for loss in (error, g))
        lam = (by_error / (by_g + 1e-4)).clamp(max=1e4).detach() * self.weight * (step >= self.begin)
        return {"loss": error + codes + lam * g, "l1": error, "codes": codes, "g": g, "lambda": lam}

    def after_step(self, phase: str, step: int) -> None: ...

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        true = average_down(batch.images_BCHW, self.panel.image_size)
        return {"loss": (self.panel.decode(self.panel.encode(true)) - true).abs().mean((1, 2, 3))}

    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        return self.panel.decode(self.panel.encode(batch.images_BCHW))

    def _drawn(self, true: Tensor) -> tuple[Tensor, Tensor]:
        """What is drawn from the codes (straight through), and the price of the codes: codebook + 0.25 commitment."""
        f = self.panel.encoder(true)
        q = self.panel.codebook.lookup(self.panel.codebook.nearest(f))
        codes = (q - f.detach()).square().mean() + 0.25 * (q.detach() - f).square().mean()
        return self.panel.last(self.panel.body(f + (q - f).detach())), codes


TASKS = {"adversarial": Adversarial}
