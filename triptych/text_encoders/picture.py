"""A picture as panel 1: what the generator sees beside x_t, joined to its channels. Latent diffusion (LDM, arXiv 2112.10752) has three.

    low_resolution   super-resolution: `Prompt.image_CHW`, a small picture, enlarged to the latent's grid: 3 channels.
    semantic         semantic map to picture: `Prompt.image_CHW` is a map painted in `palette`; each pixel is the class of the nearest
                     colour, one-hot, averaged down to the grid and mixed by a learnt 1 x 1 convolution (LDM's SpatialRescaler).
    masked           inpainting: `Prompt.image_CHW` with the hole of `Prompt.mask_1HW` grey, as the decoder encodes it, and beside it
                     the share of each cell that is to be drawn: C + 1 channels.

The null condition is zeros, and so is a prompt without a picture. Words are not read. The convolution learns with the generator.

Shape legend: B batch, C channels, H W of pictures, h w of the latent's grid, V classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..contracts import Condition, ConditionSpec, Prompt, Rng
from ..layers.pixels import average_down

__all__ = ["PicturePort", "Config", "SIZES", "palette"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """size: side of the latent's grid.  channels: of the latent ("masked"), or that the map is mixed into ("semantic").

    num_classes, labels: of the map, the first of them the background; names are stored, not read.
    noise: deviation of normal noise on the low-resolution picture, in training and in drawing alike (conditioning augmentation at one
        level, CDM, arXiv 2106.15282): what made the small picture is then trusted less.
    """

    kind: Literal["low_resolution", "semantic", "masked"] = "low_resolution"
    size: int = 32
    channels: int = 3
    num_classes: int = 49
    labels: tuple[str, ...] = ()
    noise: float = 0.0


SIZES = {
    "tiny": Config(size=8),
    "low_resolution": Config(),
    "semantic": Config(kind="semantic"),  # the scenes' classes
    "masked": Config(kind="masked"),
    "LDM super-resolution": Config(size=64),
    "LDM semantic": Config(kind="semantic", size=64, num_classes=182),
    "LDM inpainting": Config(kind="masked", size=64),
}


def palette(num_classes: int) -> Tensor:
    """The colours of maps, uint8 [V, 3]: PASCAL VOC's. Class 0 is black; bits 0, 1, 2 of a class are the highest bits of its red, green
    and blue, bits 3, 4, 5 the next ones, and so on.

    Raises ValueError for more than 256 classes.
    """
    if not 1 <= num_classes <= 256:
        raise ValueError(f"a palette of {num_classes} colours: there are 1..256")
    color_V3 = [[sum((label >> (3 * k + c) & 1) << (7 - k) for k in range(3)) for c in range(3)] for label in range(num_classes)]
    return torch.tensor(color_V3, dtype=torch.uint8)


class PicturePort(nn.Module):
    """concat_BCHW [B, C, size, size]; C = 3, `channels` or `channels` + 1 by kind.

    Raises ValueError for a negative noise, or noise on anything but a low-resolution picture.
    """

    colors: Tensor

    def __init__(self, config: Config, *, assets: Mapping[str, bytes] | None = None) -> None:
        super().__init__()
        c = self.config = config
        if c.noise < 0 or (c.noise and c.kind != "low_resolution"):
            raise ValueError(f"noise {c.noise} on a {c.kind} picture: it is 0 or more, and only a low-resolution picture has it")
        self.channels = {"low_resolution": 3, "semantic": c.channels, "masked": c.channels + 1}[c.kind]
        self.gives = ConditionSpec(concat=self.channels)
        self.reads = frozenset({"image", "mask"} if c.kind == "masked" else {"image"})
        semantic = c.kind == "semantic"
        self.mix = nn.Conv2d(c.num_classes, c.channels, 1, bias=False) if semantic else None
        self.register_buffer("colors", palette(c.num_classes if semantic else 1).float(), persistent=False)

    def encode(
        self, prompts: Sequence[Prompt | str], *, encode_image: Callable[[Tensor], Tensor] | None = None, rng: Rng | None = None
    ) -> Condition:
        """concat_BCHW of B prompts.

        Raises ValueError for a picture that is no [3, H, W], a map smaller than the grid, a masked picture without a mask of its size
        or without `encode_image`, latents that are not [channels, size, size], and noise without an rng.
        """
        rows: dict[tuple[int, ...], list[int]] = {}  # pictures of one size are handled together
        for i, prompt in enumerate(prompts):
            image = None if isinstance(prompt, str) else prompt.image_CHW
            if image is not None:
                if image.ndim != 3 or image.shape[0] != 3:
                    raise ValueError(f"image_CHW of the shape {list(image.shape)}; a picture is [3, H, W], in [-1, 1]")
                rows.setdefault(tuple(image.shape), []).append(i)
        out = self._nothing(len(prompts))
        for which in rows.values():
            some = [prompts[i] for i in which]
            images = torch.stack([prompt.image_CHW for prompt in some]).to(out)  # type: ignore[union-attr]
            if self.config.kind == "masked":
                said = self._masked(images, some, encode_image)  # type: ignore[arg-type]
            else:
                said = self._semantic(images) if self.mix is not None else self._enlarged(images, rng and rng.rows(torch.tensor(which)))
            out = out.index_copy(0, torch.tensor(which, device=out.device), said.to(out))
        return Condition(concat_BCHW=out)

    def null(self, prompts: Sequence[Prompt | str]) -> Condition:
        """Zeros, for each of the prompts."""
        return Condition(concat_BCHW=self._nothing(len(prompts)))

    def _nothing(self, rows: int) -> Tensor:
        return self.colors.new_zeros(rows, self.channels, self.config.size, self.config.size)

    # --- the three kinds -------------------------------------------------------------------------------------------------

    def _enlarged(self, images_BCHW: Tensor, rng: Rng | None) -> Tensor:
        """Bicubic, or averaged down where a side is larger than the grid's."""
        size = self.config.size
        small = average_down(images_BCHW, (min(size, images_BCHW.shape[2]), min(size, images_BCHW.shape[3])))
        large = small if small.shape[2:] == (size, size) else F.interpolate(small, size=(size, size), mode="bicubic").clamp(-1, 1)
        if not self.config.noise:
            return large
        if rng is None:
            raise ValueError(f"noise {self.config.noise} is added to low-resolution pictures, and no rng was given to draw it")
        return large + self.config.noise * rng.normal("low resolution", large.shape[1:]).to(large)

    def _semantic(self, images_BCHW: Tensor) -> Tensor:
        """One-hot of the nearest colour. The 1 x 1 convolution comes after the averaging, where there is less of it: they commute."""
        assert self.mix is not None
        shares = torch.stack([average_down(self.classes(image), self.config.size) for image in images_BCHW])
        return self.mix(shares)

    def classes(self, image_CHW: Tensor) -> Tensor:
        """A painted map, [3, H, W] in [-1, 1], to [V, H, W], 1 where the palette's colour V is the nearest."""
        color_HW3 = (image_CHW.movedim(0, -1) + 1) * 127.5
        with torch.autocast(image_CHW.device.type, enabled=False):  # bf16 does not tell squares of neighbouring colours apart
            far_HWV = self.colors.square().sum(1) - 2 * color_HW3 @ self.colors.T  # |pixel - colour|^2 but for |pixel|^2
        return F.one_hot(far_HWV.argmin(-1), len(self.colors)).movedim(-1, 0).to(image_CHW.dtype)

    def _masked(self, images_BCHW: Tensor, prompts: Sequence[Prompt], encode_image: Callable[[Tensor], Tensor] | None) -> Tensor:
        c, size = self.config, images_BCHW.shape[2:]
        for prompt in prompts:
            if prompt.mask_1HW is None or tuple(prompt.mask_1HW.shape) != (1, *size):
                given = "no mask" if prompt.mask_1HW is None else f"a mask of {list(prompt.mask_1HW.shape)}"
                raise ValueError(f"{given} beside a picture of {size[0]} x {size[1]}; inpainting wants mask_1HW [1, {size[0]}, {size[1]}]")
        if encode_image is None:
            raise ValueError("a masked picture is seen as the decoder encodes it; call encode(prompts, encode_image=decoder.encode)")
        mask_B1HW = torch.stack([prompt.mask_1HW for prompt in prompts]).to(images_BCHW)  # type: ignore[misc]
        with torch.no_grad():
            z = encode_image(images_BCHW * (1 - mask_B1HW)).to(images_BCHW)
        if tuple(z.shape[1:]) != (c.channels, c.size, c.size):
            raise ValueError(f"the decoder encodes to {list(z.shape[1:])}, this panel was built for {[c.channels, c.size, c.size]}")
        return torch.cat([z, average_down(mask_B1HW, c.size)], dim=1)
