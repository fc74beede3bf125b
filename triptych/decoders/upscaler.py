"""A decoder whose latent is a small picture: learned super-resolution in stages, each a residual network in low resolution.

Sub-pixel convolution (Shi et al., arXiv 1609.05158) with the residual blocks without normalisation of EDSR (Lim et al., arXiv
1707.02921). Each stage adds its correction to a bicubic enlargement, and its last convolution starts at zero: an untrained stage
IS bicubic enlargement. Stages are trained one at a time, each on pictures that truly have its size, from inputs corrupted as
drawn small pictures are (noise conditioning augmentation: Ho et al., Cascaded Diffusion, arXiv 2106.15282).

The space is that of the identity decoder of the same size, mean and std: the two swap freely.

Shape legend: B batch, C = 3 channels, H W grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import Batch, Condition, LatentSpace, Prompt, Rng
from ..layers.one_phase import OnePhase
from ..layers.pixels import average_down, pixel_space

__all__ = ["Upscaler", "Config", "SIZES", "Sampling", "TASKS", "Upscale"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """size: side of the small picture. mean, std: of its pixels, as in the identity decoder.

    factors: what each stage multiplies the side by.  widths, depths: channels and residual blocks of each stage.
    image_size: the side that is drawn when nothing else is asked; one of size, size * factors[0], ...
    """

    size: int = 32
    mean: float = 0.5
    std: float = 0.6
    factors: tuple[int, ...] = (4, 2)
    widths: tuple[int, ...] = (64, 24)
    depths: tuple[int, ...] = (6, 4)
    image_size: int = 128


SIZES = {
    "tiny": Config(size=8, factors=(2, 2), widths=(8, 8), depths=(1, 1), image_size=16),
    "emoji": Config(),
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """size: side of the picture, one of the decoder's `sides`; None = the configuration's image_size."""

    size: int | None = None


class Block(nn.Module):
    """x + conv(relu(conv(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.3)  # without normalisation the sum of `depth` branches must start small

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.relu(self.first(x)))


class Stage(nn.Module):
    """[B, 3, H, W] -> [B, 3, factor H, factor W], both in pixels; not clamped."""

    def __init__(self, factor: int, width: int, depth: int) -> None:
        super().__init__()
        self.factor = factor
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.head = nn.Conv2d(width, 3 * factor**2, 3, padding=1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        first = h = self.stem(x)
        for block in self.blocks:
            h = block(h)
        return enlarged(x, self.factor) + F.pixel_shuffle(self.head(h + first), self.factor)


def enlarged(x: Tensor, factor: int) -> Tensor:
    """Plain bicubic enlargement: where a stage starts, and what it is measured against."""
    return F.interpolate(x, scale_factor=factor, mode="bicubic", align_corners=False)


class Upscaler(nn.Module):
    """z [B, 3, size, size], a standardised small picture, to pictures of any side in `sides`."""

    Sampling = Sampling

    def __init__(self, config: Config) -> None:
        super().__init__()
        if not len(config.factors) == len(config.widths) == len(config.depths):
            counts = f"{len(config.factors)} factors, {len(config.widths)} widths, {len(config.depths)} depths"
            raise ValueError(f"{counts}: a stage needs one of each")
        self.config = config
        self.sides = tuple(config.size * math.prod(config.factors[:n]) for n in range(len(config.factors) + 1))
        self._stages_to(config.image_size)
        self.image_size = config.image_size
        self.latent: LatentSpace = pixel_space(config.size, 3, config.mean, config.std)
        self.stages = nn.ModuleList(Stage(*each) for each in zip(config.factors, config.widths, config.depths, strict=True))

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Picture in [-1, 1] of at least `size` (ValueError if smaller), averaged down, to z."""
        return self.latent.standardise(average_down(image_BCHW, self.config.size))

    def decode(
        self, z: Tensor, cond: Condition | None = None, how: Sampling | None = None, rng: Rng | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """z to pictures in [-1, 1] with the side `how.size`; a z of another height and width is enlarged by the same factor.

        Raises ValueError if `how.size` is not one of `sides`.
        """
        wanted = self._stages_to(how.size if how is not None and how.size is not None else self.image_size)
        image = self.latent.restore(z).clamp(-1, 1)
        for done, stage in enumerate(self.stages[:wanted], start=1):
            image = stage(image).clamp(-1, 1)
            if on_step is not None:
                on_step(done, wanted)
        return image.contiguous()

    def _stages_to(self, side: int) -> int:
        if side not in self.sides:
            raise ValueError(f"this upscaler draws sides of {', '.join(map(str, self.sides))}, not {side}; ask for one of them")
        return self.sides.index(side)


class Upscale(OnePhase):
    """Train one stage on pictures that truly have its size (larger ones are averaged down).

    noise: largest standard deviation of the noise on the input; each row draws its own strength.
    blur: largest share of a 3 x 3 average mixed into the input.
    edges: weight of the L1 distance between finite differences, which punishes blurred outlines.
    earlier: share of rows whose input is what the stages before this one make of the smallest picture.
    """

    def __init__(
        self, panel: Upscaler, *, neighbours: dict[str, Any] | None = None, stage: int = 0, noise: float = 0.05, blur: float = 0.3,
        edges: float = 0.5, earlier: float = 0.5,
    ) -> None:  # fmt: skip
        if not 0 <= stage < len(panel.stages):
            raise ValueError(f"stage {stage}: this upscaler has stages 0 to {len(panel.stages) - 1}")
        self.panel, self.stage, self.noise, self.blur, self.edges, self.earlier = panel, stage, noise, blur, edges, earlier
        self.modules = nn.ModuleDict({"decoder": panel})
        self.low, self.high, self.factor = panel.sides[stage], panel.sides[stage + 1], panel.config.factors[stage]

    def compiles(self) -> list[nn.Module]:
        return [self.panel.stages[self.stage]]

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        prefix = f"decoder.stages.{self.stage}."
        return {name: p for name, p in self.modules.named_parameters() if name.startswith(prefix)}

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        true = self._true(batch)
        pixels, edges = _distances(self.panel.stages[self.stage](self._corrupted(true, rng)), true)
        return {"loss": (pixels + self.edges * edges).mean(), "l1": pixels.mean(), "edges": edges.mean()}

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """loss: from corrupted inputs, as in training.  psnr, psnr_bicubic: in dB, from clean ones."""
        true, stage = self._true(batch), self.panel.stages[self.stage]
        pixels, edges = _distances(stage(self._corrupted(true, Rng.of_samples(0, batch.index))), true)
        low = average_down(true, self.low)
        return {
            "loss": pixels + self.edges * edges,
            "psnr": _psnr(stage(low), true),
            "psnr_bicubic": _psnr(enlarged(low, self.factor), true),
        }

    @torch.no_grad()
    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor:
        """Side by side: the small picture in large pixels, ours, the true one."""
        true, stage = self._true(batch), self.panel.stages[self.stage]
        low = average_down(true, self.low)
        return torch.cat([F.interpolate(low, scale_factor=self.factor, mode="nearest"), stage(low).clamp(-1, 1), true], dim=3)

    def _true(self, batch: Batch) -> Tensor:
        assert batch.images_BCHW is not None
        return average_down(batch.images_BCHW, self.high)

    def _corrupted(self, true: Tensor, rng: Rng) -> Tensor:
        low = average_down(true, self.low)
        if self.stage and self.earlier:
            with torch.no_grad():
                made = average_down(true, self.panel.sides[0])
                for stage in self.panel.stages[: self.stage]:
                    made = stage(made).clamp(-1, 1)
            low = torch.where(rng.uniform("earlier", (1, 1, 1)).to(low) < self.earlier, made, low)
        blur = self.blur * rng.uniform("blur", (1, 1, 1)).to(low)
        low = torch.lerp(low, F.avg_pool2d(F.pad(low, (1, 1, 1, 1), mode="replicate"), 3, stride=1), blur)
        sigma = self.noise * rng.uniform("strength", (1, 1, 1)).to(low)
        return (low + sigma * rng.normal("noise", low.shape[1:]).to(low)).clamp(-1, 1)


TASKS = {"upscale": Upscale}


def _distances(image: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """L1 distance a row, of pixels and of finite differences along both axes."""
    error = image - true
    across, down = error.diff(dim=3).abs().mean(dim=(1, 2, 3)), error.diff(dim=2).abs().mean(dim=(1, 2, 3))
    return error.abs().mean(dim=(1, 2, 3)), across + down


def _psnr(image: Tensor, true: Tensor) -> Tensor:
    """In dB, a row; the peak-to-peak range is 2."""
    error = (image.clamp(-1, 1) - true).square().mean(dim=(1, 2, 3))
    return 10 * torch.log10(4 / error.clamp(min=1e-10))
