"""VAR's tokenizer (Tian et al., arXiv 2404.02905): a picture as token maps of growing side, each the residue of those before.

B batch, C channels, H W grid of the last scale, L tokens of all scales, K codes.
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

__all__ = ["MultiScale", "SIZES", "TASKS", "Config", "Reconstruct", "Sampling"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """scales: sides of the token maps; the picture's side is twice the last."""

    scales: tuple[int, ...] = (1, 2, 4)
    width: int = 32
    codebook_size: int = 32
    z_channels: int = 8


SIZES = {"tiny": Config()}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Nothing to choose."""


class Codes(nn.Module):
    """One codebook for all scales, and phi, a convolution after each enlargement, of which 0.5 is taken."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.scales, self.width = config.scales, config.z_channels
        self.weight = nn.Parameter(torch.randn(config.codebook_size, self.width) * 0.5)
        self.phi = nn.Conv2d(self.width, self.width, 3, padding=1)

    def lookup(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.weight).movedim(-1, 1)

    def accumulate(self, sum_BCHW: Tensor, tokens: Tensor, k: int) -> tuple[Tensor, Tensor]:
        side, after = sum_BCHW.shape[-1], self.scales[min(k + 1, len(self.scales) - 1)]
        small_BCHW = rearrange(self.lookup(tokens), "b c (h w) -> b c h w", h=self.scales[k])
        large_BCHW = F.interpolate(small_BCHW, size=(side, side), mode="bicubic") if side > self.scales[k] else small_BCHW
        sum_BCHW = sum_BCHW + 0.5 * (large_BCHW + self.phi(large_BCHW))
        return sum_BCHW, F.adaptive_avg_pool2d(sum_BCHW, after)

    def quantize(self, f_BCHW: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Tokens [B, L], coarse to fine, and the running sum after each scale."""
        tokens, sums = [], [torch.zeros_like(f_BCHW)]
        for k, side in enumerate(self.scales):
            residue_BLC = rearrange(F.adaptive_avg_pool2d(f_BCHW - sums[-1], side), "b c h w -> b (h w) c")
            tokens.append(torch.cdist(residue_BLC, self.weight[None]).argmin(-1))
            sums.append(self.accumulate(sums[-1], tokens[-1], k)[0])
        return torch.cat(tokens, dim=1), sums[1:]


class MultiScale(nn.Module):
    """Pictures [B, 3, 2 H, 2 W] in [-1, 1] to tokens [B, L] and back."""

    Sampling = Sampling

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.image_size = config, 2 * config.scales[-1]
        w, c = config.width, config.z_channels
        self.encoder = nn.Sequential(nn.Conv2d(3, w, 4, stride=2, padding=1), nn.SiLU(), nn.Conv2d(w, c, 3, padding=1))
        self.codebook = Codes(config)
        self.decoder = nn.Sequential(nn.Conv2d(c, w, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(w, 3, 3, padding=1))

    @property
    def latent(self) -> LatentSpace:
        c, encoding = self.config, {k: v.bfloat16() for k, v in self.state_dict().items() if not k.startswith("decoder.")}
        return LatentSpace(
            kind="scales", shape=(sum(s * s for s in c.scales),), scales=c.scales, vocab=c.codebook_size, codebook=self.codebook,
            fingerprint=fingerprint_tensors(encoding, f"multiscale {c.scales}"),
        )  # fmt: skip

    def encode(self, image_BCHW: Tensor) -> Tensor:
        return self.codebook.quantize(self.encoder(average_down(image_BCHW, self.image_size)))[0]

    def decode(self, z: Tensor, cond: Any = None, how: Any = None, rng: Rng | None = None, on_step: Any = None) -> Tensor:
        sum_BCHW = self.codebook.weight.new_zeros(len(z), self.codebook.width, *[self.config.scales[-1]] * 2)
        for k, tokens in enumerate(z.split([s * s for s in self.config.scales], dim=1)):
            sum_BCHW, _ = self.codebook.accumulate(sum_BCHW, tokens, k)
        return self.decoder(sum_BCHW).clamp(-1, 1)


class Reconstruct:
    """loss = error^2 + the mean over scales of |sum - sg f|^2 + 0.25 |f - sg sum|^2; gradients go straight through to the encoder."""

    def __init__(self, panel: MultiScale, *, neighbours: Any = None) -> None:
        self.panel, self.modules = panel, nn.ModuleDict({"decoder": panel})

    def panels(self) -> dict[str, nn.Module]:
        return {"decoder": self.panel}

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        return dict(self.modules.named_parameters())

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        true = average_down(batch.images_BCHW, self.panel.image_size)
        f = self.panel.encoder(true)
        _, sums = self.panel.codebook.quantize(f)
        codes = torch.stack([(s - f.detach()).square().mean() + 0.25 * (s.detach() - f).square().mean() for s in sums]).mean()
        error = (self.panel.decoder(f + (sums[-1] - f).detach()) - true).square().mean()
        return {"loss": error + codes, "mse": error, "codes": codes}

    def after_step(self, phase: str, step: int) -> None: ...

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        true = average_down(batch.images_BCHW, self.panel.image_size)
        return {"loss": (self.panel.decode(self.panel.encode(true)) - true).square().mean((1, 2, 3))}

    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        return self.panel.decode(self.panel.encode(batch.images_BCHW))


TASKS = {"reconstruct": Reconstruct}
