"""ViT: a picture as a sentence of patches (Dosovitskiy et al., arXiv 2010.11929).

    224 x 224 -> 196 patches of 16 x 16 x 3 = 768 -> 197 tokens of 768, a class token first -> 12 blocks -> norm -> the class token

The hybrid reads its patches from the last map of a ResNet instead of from pixels (section 3.1): with stages of 3, 4 and 9 blocks
that map is 14 x 14, a patch is one position of it, and the rest of the network stays as it is.

Shape legend: B batch, C channels, H W grid, L tokens, D width, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from .. import catalog
from ..contracts import ConditionSpec
from ..layers.encoder import Activation, EncoderBlock
from ._classify import Classification

__all__ = ["ViT", "Config", "SIZES", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """image_size, patch_size: sides in pixels, the former a multiple of the latter.
    pooler: width of a linear layer and a tanh behind the class token, as in pre-training; 0 = none, as in fine-tuning.
    stem: blocks of each ResNet stage in front (GroupNorm of `stem_groups`, from 64 channels on); () = patches of pixels.
    num_classes: 0 = no head."""

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    activation: Activation = "gelu"
    eps: float = 1e-6
    qkv_bias: bool = True
    pooler: int = 0
    stem: tuple[int, ...] = ()
    stem_groups: int = 32
    num_classes: int = 0


SIZES = {
    "tiny": Config(image_size=16, patch_size=4, width=32, depth=1, num_heads=2, pooler=16, num_classes=10),
    "small": Config(image_size=32, patch_size=4, width=192, depth=6, num_heads=3, num_classes=10),
    "ViT-B/16": Config(num_classes=1000),
    "ViT-B/32": Config(patch_size=32, num_classes=1000),
    "ViT-L/16": Config(width=1024, depth=24, num_heads=16, num_classes=1000),
    "ViT-H/14": Config(patch_size=14, width=1280, depth=32, num_heads=16, num_classes=1000),
    "R50+ViT-B/16": Config(stem=(3, 4, 9), num_classes=1000),
}


class ViT(nn.Module):
    """`condition` is what a text encoder beside it gives; a ViT does not listen.

    All methods take pixels as the network was trained on them: float32 [B, 3, image_size, image_size].
    Raises ValueError if picture, patches and stem do not divide each other, or for pictures of another size.
    """

    def __init__(self, config: Config, *, condition: ConditionSpec | None = None) -> None:
        super().__init__()
        if config.image_size % config.patch_size:
            raise ValueError(f"image_size {config.image_size} is no multiple of patch_size {config.patch_size}")
        self.config, self.image_size = config, config.image_size
        channels, stride, width = 3, 1, config.width
        self.stem = None
        if config.stem:
            widths = tuple(256 * 2**i for i in range(len(config.stem)))
            channels, stride = widths[-1], 2 ** (len(widths) + 1)
            chosen = {"widths": widths, "depths": config.stem, "norm_groups": config.stem_groups, "image_size": config.image_size}
            self.stem = catalog.build("vision", "resnet", chosen)
        if config.patch_size % stride:
            raise ValueError(f"patch_size {config.patch_size} is no multiple of the stride of its stem's stages, {stride}")
        patch, side = config.patch_size // stride, config.image_size // config.patch_size
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.class_D = nn.Parameter(torch.zeros(width))
        self.position_LD = nn.Parameter(torch.randn(1 + side * side, width) * 0.02)
        hidden = round(width * config.mlp_ratio)
        self.blocks = nn.ModuleList(
            EncoderBlock(width, config.num_heads, hidden, config.activation, config.eps, qkv_bias=config.qkv_bias)
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(width, eps=config.eps)
        self.pooler = nn.Sequential(nn.Linear(width, config.pooler), nn.Tanh()) if config.pooler else None
        self.head = nn.Linear(config.pooler or width, config.num_classes) if config.num_classes else None
        for block in self.blocks:
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    nn.init.xavier_uniform_(layer.weight)

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """All tokens behind the last norm, the class token first: [B, 1 + patches, D]."""
        height, width = pixels_BCHW.shape[-2:]
        if (height, width) != (self.image_size, self.image_size):
            raise ValueError(f"a picture of {width} x {height}; this ViT looks at {self.image_size} x {self.image_size}: resize it")
        if self.stem is not None:
            pixels_BCHW = self.stem.pyramid(pixels_BCHW)[-1]
        x_BLD = rearrange(self.patches(pixels_BCHW), "b d h w -> b (h w) d")
        x_BLD = torch.cat([self.class_D.expand(len(x_BLD), 1, -1), x_BLD], dim=1) + self.position_LD
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)

    def pooled(self, pixels_BCHW: Tensor) -> Tensor:
        """The class token, through the pooler where there is one: [B, D] or [B, pooler]."""
        class_BD = self.features(pixels_BCHW)[:, 0]
        return class_BD if self.pooler is None else self.pooler(class_BD)

    def classify(self, pixels_BCHW: Tensor) -> Tensor:
        """Logits [B, K]. Raises ValueError if the network was built without a head."""
        if self.head is None:
            raise ValueError("this ViT has no head (num_classes = 0): it gives features, not classes")
        return self.head(self.pooled(pixels_BCHW))


TASKS = {"classify": Classification}
