"""The autoencoder with a KL-regularised Gaussian posterior of latent diffusion (LDM, Stable Diffusion, SD3, FLUX).

Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", arXiv 2112.10752; the variational autoencoder
is Kingma and Welling, arXiv 1312.6114. The training task here has no adversarial and no perceptual part.

Shape legend: B batch, C channels, H W grid; latents are [B, z_channels, H / f, W / f], f = 2 ** (levels - 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import Batch, Condition, LatentSpace, Prompt, Rng
from ..layers.conv import AttentionBlock, Conv, Down, Enlarge, ResBlock, silu
from ..layers.fingerprint import fingerprint_tensors
from ..layers.one_phase import OnePhase
from ..layers.pixels import average_down

__all__ = ["AutoencoderKL", "Config", "SIZES", "Sampling", "TASKS", "Reconstruct", "kl_to_unit_normal"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """width, multipliers: channels of the levels; each level after the first halves the side.

    num_res_blocks: of a level in the encoder; the decoder has one more.  norm_groups: of every group normalisation.
    quant_convs: the 1 x 1 convolutions around the latents (SD has them, SD3 and FLUX do not).
    mean, std: of the raw latents, one number for all channels or one each; training replaces them by what it measures.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    z_channels: int = 4
    norm_groups: int = 32
    quant_convs: bool = True
    image_size: int = 256
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


SIZES = {
    "tiny": Config(width=8, multipliers=(1, 2), num_res_blocks=1, z_channels=2, norm_groups=4, image_size=16),
    "small": Config(width=16, multipliers=(1, 2, 3), num_res_blocks=1, norm_groups=8, image_size=64),
    "emoji": Config(width=16, multipliers=(1, 2, 3, 3), num_res_blocks=1, z_channels=8, norm_groups=8, image_size=64),
    "sd": Config(image_size=512, std=(1 / 0.18215,)),
    "flux": Config(z_channels=16, quant_convs=False, image_size=1024, mean=(0.1159,), std=(1 / 0.3611,)),
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Nothing to choose."""


class Mid(nn.Module):
    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.first = ResBlock(width, width, groups)
        self.attention = AttentionBlock(width, groups)
        self.second = ResBlock(width, width, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.attention(self.first(x)))


class Level(nn.Module):
    """Residual blocks at one resolution, then a change of it (none at the last level)."""

    def __init__(self, in_width: int, width: int, depth: int, groups: int, resize: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(ResBlock(in_width if i == 0 else width, width, groups) for i in range(depth)))
        self.resize = resize

    def forward(self, x: Tensor) -> Tensor:
        return self.resize(self.blocks(x))


class Encoder(nn.Module):
    """[B, 3, H, W] -> [B, 2 z_channels, H / f, W / f]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, groups = [config.width * m for m in config.multipliers], config.norm_groups
        self.stem = Conv(3, widths[0], 3, padding=1)
        self.levels = nn.Sequential(*(
            Level(before, width, config.num_res_blocks, groups, Down(width) if i < len(widths) - 1 else nn.Identity())
            for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        ))  # fmt: skip
        self.mid = Mid(widths[-1], groups)
        self.norm = nn.GroupNorm(groups, widths[-1], 1e-6)
        self.head = Conv(widths[-1], 2 * config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(silu(self.norm(self.mid(self.levels(self.stem(x))))))


class Decoder(nn.Module):
    """[B, z_channels, H / f, W / f] -> [B, 3, H, W]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        widths, groups = [config.width * m for m in reversed(config.multipliers)], config.norm_groups
        self.stem = Conv(config.z_channels, widths[0], 3, padding=1)
        self.mid = Mid(widths[0], groups)
        self.levels = nn.Sequential(*(
            Level(before, width, config.num_res_blocks + 1, groups, Enlarge(width) if i < len(widths) - 1 else nn.Identity())
            for i, (before, width) in enumerate(zip([widths[0], *widths], widths, strict=False))
        ))  # fmt: skip
        self.norm = nn.GroupNorm(groups, widths[-1], 1e-6)
        self.head = Conv(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(silu(self.norm(self.levels(self.mid(self.stem(z))))))


class AutoencoderKL(nn.Module):
    """Pictures [B, 3, H, W] in [-1, 1] to standardised latents [B, z_channels, H / f, W / f] and back."""

    Sampling = Sampling

    latent_mean: Tensor
    latent_std: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        for width in {config.width * m for m in config.multipliers}:
            if width % config.norm_groups:
                raise ValueError(f"a level of {width} channels cannot be normalised in {config.norm_groups} groups; choose a divisor")
        self.config = config
        self.image_size = config.image_size
        self.factor = 2 ** (len(config.multipliers) - 1)
        if self.image_size % self.factor:
            raise ValueError(f"image_size {self.image_size} is no multiple of {self.factor} ({len(config.multipliers)} levels)")
        z = config.z_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant = Conv(2 * z, 2 * z, 1) if config.quant_convs else nn.Identity()
        self.post_quant = Conv(z, z, 1) if config.quant_convs else nn.Identity()
        self._initialise(z)
        self.register_buffer("latent_mean", torch.tensor(_a_channel(config.mean, z)))
        self.register_buffer("latent_std", torch.tensor(_a_channel(config.std, z)))

    @torch.no_grad()
    def _initialise(self, z: int) -> None:
        """Residual branches start silent, and the posterior narrow (deviation 0.05): at 1, the noise drowns what the encoder says
        first, the decoder learns not to listen, and nothing ever teaches the encoder to speak up."""
        for module in self.modules():
            last = module.conv2 if isinstance(module, ResBlock) else module.out if isinstance(module, AttentionBlock) else None
            for parameter in [] if last is None else last.parameters():
                parameter.zero_()
        bias = (self.quant if isinstance(self.quant, nn.Conv2d) else self.encoder.head).bias
        assert bias is not None
        bias[z:].fill_(-6.0)

    @property
    def latent(self) -> LatentSpace:
        """The space as the weights define it now: its fingerprint changes with the encoder's, and with mean and std.

        It is taken of the weights rounded to bfloat16, so that a stored autoencoder keeps the space of the one in memory.
        """
        side, meta = self.image_size // self.factor, self.latent_mean.is_meta
        mean = _a_channel(self.config.mean, self.config.z_channels) if meta else tuple(self.latent_mean.tolist())
        std = _a_channel(self.config.std, self.config.z_channels) if meta else tuple(self.latent_std.tolist())
        encoding = {k: v.bfloat16() for k, v in self.state_dict().items() if k.startswith(("encoder.", "quant.", "latent_"))}
        c = self.config
        extra = f"autoencoder_kl {c.width} {c.multipliers} {c.num_res_blocks} {c.z_channels} {c.norm_groups} {c.image_size}"
        return LatentSpace(
            kind="image", shape=(c.z_channels, side, side), mean=mean, std=std,
            fingerprint="" if meta else fingerprint_tensors(encoding, extra),
        )  # fmt: skip

    def posterior(self, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the variance of q(raw latents | picture). Raises ValueError unless f divides both sides."""
        if any(side % self.factor for side in image_BCHW.shape[-2:]):
            raise ValueError(f"a picture of {tuple(image_BCHW.shape[-2:])} needs multiples of {self.factor}; crop or resize it")
        mean, logvar = self.quant(self.encoder(image_BCHW)).chunk(2, dim=1)
        return mean, logvar.clamp(-30.0, 20.0)

    def reconstruct(self, raw: Tensor) -> Tensor:
        """Raw latents to a picture that is not clamped."""
        return self.decoder(self.post_quant(raw))

    def encode(self, image_BCHW: Tensor) -> Tensor:
        """The posterior's mean, standardised. A larger picture is averaged down until its shorter side is `image_size`.

        A smaller one stays as it is: nothing here depends on the size. Raises ValueError where f does not divide its sides.
        """
        height, width = image_BCHW.shape[-2:]
        if min(height, width) >= self.image_size:
            scale = self.image_size / min(height, width)
            height, width = (max(self.image_size, round(side * scale / self.factor) * self.factor) for side in (height, width))
        mean, _ = self.posterior(average_down(image_BCHW, (height, width)))
        return (mean - _column(self.latent_mean)) / _column(self.latent_std)

    def decode(
        self, z: Tensor, cond: Condition | None = None, how: Any = None, rng: Rng | None = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Tensor:  # fmt: skip
        """Standardised latents of any height and width to a picture in [-1, 1]."""
        return self.reconstruct(z * _column(self.latent_std) + _column(self.latent_mean)).clamp(-1, 1)


class Reconstruct(OnePhase):
    """Train the autoencoder alone: loss = (distance + kl_weight KL) per value of the picture, as LDM weighs them.

    The distance is L1 at `scales` resolutions, each half of the one before, and `edges` times the L1 of finite differences:
    what stands in for a perceptual loss where there are no pre-trained features.
    """

    def __init__(
        self, panel: AutoencoderKL, *, neighbours: dict[str, Any] | None = None, kl_weight: float = 1e-6, scales: int = 3,
        edges: float = 0.5,
    ) -> None:  # fmt: skip
        self.panel, self.kl_weight, self.scales, self.edges = panel, kl_weight, scales, edges
        self.modules = nn.ModuleDict({"decoder": panel})

    def compiles(self) -> list[nn.Module]:
        return [self.panel.encoder, self.panel.decoder]

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        return {name: value.mean() for name, value in self._losses_B(batch, rng).items()}

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """The training losses on fixed draws, and the PSNR in dB of what is decoded from the posterior's mean."""
        true = self._true(batch)
        image = self.panel.reconstruct(self.panel.posterior(true)[0]).clamp(-1, 1)
        psnr = 10 * torch.log10(4 / (image - true).square().mean(dim=(1, 2, 3)).clamp(min=1e-10))
        return {**self._losses_B(batch, Rng.of_samples(0, batch.index)), "psnr": psnr}

    @torch.no_grad()
    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor:
        """Side by side: ours, the true one."""
        true = self._true(batch)
        return torch.cat([self.panel.reconstruct(self.panel.posterior(true)[0]).clamp(-1, 1), true], dim=3)

    @torch.no_grad()
    def finish(self, dataset: Any) -> None:
        """Measure mean and standard deviation of the latents, a channel, on 512 training pictures; called once, at the end."""
        batches = (dataset.batch(0, step, 32) for step in range(16))
        raw = torch.cat([self.panel.posterior(self._true(batch))[0].float() for batch in batches])
        self.panel.latent_mean.copy_(raw.mean(dim=(0, 2, 3)))
        self.panel.latent_std.copy_(raw.std(dim=(0, 2, 3)).clamp(min=1e-4))  # a channel that says nothing is not blown up

    def _true(self, batch: Batch) -> Tensor:
        assert batch.images_BCHW is not None
        return average_down(batch.images_BCHW, self.panel.image_size).to(self.panel.latent_mean.device)

    def _losses_B(self, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        true = self._true(batch)
        mean, logvar = (moment.float() for moment in self.panel.posterior(true))
        raw = mean + torch.exp(0.5 * logvar) * rng.normal("posterior", mean.shape[1:]).to(mean)
        error = self.panel.reconstruct(raw) - true
        l1 = distance = error.abs().mean(dim=(1, 2, 3))
        distance = distance + self.edges * (error.diff(dim=2).abs().mean(dim=(1, 2, 3)) + error.diff(dim=3).abs().mean(dim=(1, 2, 3)))
        for _ in range(self.scales - 1):
            error = F.avg_pool2d(error, 2)
            distance = distance + error.abs().mean(dim=(1, 2, 3))
        kl = kl_to_unit_normal(mean, logvar)
        return {"loss": distance + self.kl_weight * kl / true[0].numel(), "l1": l1, "kl": kl}


TASKS = {"kl": Reconstruct}


def kl_to_unit_normal(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, summed over a row: (mean^2 + var - 1 - logvar) / 2 (arXiv 1312.6114, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(dim=1)


def _a_channel(numbers: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if len(numbers) not in (1, channels):
        raise ValueError(f"{len(numbers)} latent statistics for {channels} channels; give one, or one a channel")
    return tuple(numbers) * (channels // len(numbers))


def _column(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1)
