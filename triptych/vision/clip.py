"""CLIP: pictures and words in one space (Radford et al., arXiv 2103.00020), the published towers and one at our scale.

Three image towers, all with one vector at the end that `image_projection` takes into the common space:

    plain    a ViT (arXiv 2010.11929) without class token and without a first LayerNorm; the mean of all patches is read.
             At few patches and few pictures it learns faster (arXiv 2205.01580).
    clip     the paper's ViT: a class token, a LayerNorm in front of the blocks, one behind them for the class token alone.
    resnet   the paper's ResNet: a stem of three convolutions; wherever the grid halves, an average and then a convolution of
             stride 1 (anti-aliased, arXiv 1904.11486); at the end one query, the mean, attends to all positions.

The text tower is any panel 1 that gives a pooled state, a neighbour that is handed in and never built here. The loss is the
paper's, with one change that small worlds need: several rows of a batch may show the same picture or say the same words, and all
are right answers.

Shape legend: B batch, C channels, H W grid, L tokens, D width, N heads, K = D / N, E the common space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import Batch, Condition, ConditionSpec, Rng
from ..layers.encoder import Activation, EncoderBlock
from ..layers.one_phase import OnePhase
from ..layers.pixels import varied

__all__ = ["CLIP", "Config", "Contrastive", "SIZES", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """image_size: side in pixels, a multiple of patch_size.  embed: E, the width of the common space.

    depth: blocks of a transformer, or of each of a ResNet's four stages. Of a ResNet, width is that of the stem (the last map has 32
    times as much), num_heads those of the pooling, and patch_size 32: what one position of the last map covers.
    """

    image_size: int = 32
    patch_size: int = 8
    width: int = 192
    depth: int | tuple[int, int, int, int] = 4
    num_heads: int = 4
    mlp_ratio: float = 4.0
    embed: int = 160
    tower: Literal["plain", "clip", "resnet"] = "plain"
    activation: Activation = "gelu"
    eps: float = 1e-5


_PUBLISHED = {"tower": "clip", "activation": "quick_gelu", "image_size": 224}

SIZES = {
    "tiny": Config(image_size=16, patch_size=4, width=32, depth=1, num_heads=2, embed=32),
    "small": Config(),  # 16 patches, as wide as a patch has values: nothing is lost at the door, at a quarter of the cost of patch 4
    "fine": Config(patch_size=4),
    "eyes": Config(image_size=64, patch_size=8, width=160, num_heads=5),
    "base": Config(image_size=64, patch_size=8, width=384, depth=6, num_heads=6, embed=256),
    "ViT-B/32": Config(**_PUBLISHED, patch_size=32, width=768, depth=12, num_heads=12, embed=512),
    "ViT-B/16": Config(**_PUBLISHED, patch_size=16, width=768, depth=12, num_heads=12, embed=512),
    "ViT-L/14": Config(**_PUBLISHED, patch_size=14, width=1024, depth=24, num_heads=16, embed=768),
    "RN50": Config(tower="resnet", image_size=224, patch_size=32, width=64, depth=(3, 4, 6, 3), num_heads=32, embed=1024),
}


class Bottleneck(nn.Module):
    """relu(shortcut(x) + y), y by 1 x 1, 3 x 3, 1 x 1; a stride averages, behind the 3 x 3 and in front of the shortcut's 1 x 1."""

    def __init__(self, in_channels: int, inner: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.norm1 = nn.Conv2d(in_channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.norm3 = nn.Conv2d(inner, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner)
        self.shortcut = None
        if stride > 1 or in_channels != 4 * inner:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, 4 * inner, 1, bias=False), nn.BatchNorm2d(4 * inner))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        y = self.norm3(self.conv3(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class ModifiedResNet(nn.Module):
    """Pixels to a map [B, 32 * width, H / 32, W / 32]."""

    def __init__(self, width: int, depths: Sequence[int]) -> None:
        super().__init__()
        shapes = ((3, width // 2, 2), (width // 2, width // 2, 1), (width // 2, width, 1))
        self.stem = nn.Sequential()
        for a, b, stride in shapes:
            self.stem.extend([nn.Conv2d(a, b, 3, stride, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()])
        self.stem.append(nn.AvgPool2d(2))
        self.stages, channels = nn.ModuleList(), width
        for i, depth in enumerate(depths):
            inner, stage = width * 2**i, nn.Sequential()
            for k in range(depth):
                stage.append(Bottleneck(channels, inner, 2 if i and not k else 1))
                channels = 4 * inner
            self.stages.append(stage)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for stage in self.stages:
            x = stage(x)
        return x


class AttentionPool(nn.Module):
    """The mean of all positions asks all positions and itself; what the heads bring home, side by side: [B, L, D] to [B, D].

    The output projection is CLIP's `image_projection`.
    """

    def __init__(self, positions: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.position_LD = nn.Parameter(torch.randn(1 + positions, width) * width**-0.5)
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        x_BLD = torch.cat([x_BLD.mean(dim=1, keepdim=True), x_BLD], dim=1) + self.position_LD
        q, k, v = rearrange(self.qkv(x_BLD), "b l (three n k) -> three b n l k", three=3, n=self.num_heads)
        heard = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        return rearrange(heard, "b n 1 k -> b (n k)")


class CLIP(nn.Module):
    """A critic of pictures by words. `condition`: of the text encoder it listens to; only pooled_BD is heard.

    Pixels are float32 [B, 3, H, W] as the network was trained on them: in [-1, 1] for those trained here.
    Raises ValueError if the text encoder gives no pooled state, or the picture does not split into patches.
    """

    role = "critic"

    def __init__(self, config: Config, *, condition: ConditionSpec) -> None:
        super().__init__()
        if not condition.pooled:
            raise ValueError("CLIP hears a text encoder's pooled state, and this one gives none (pooled = 0); take one that does")
        if config.image_size % config.patch_size:
            raise ValueError(f"image_size {config.image_size} is no multiple of patch_size {config.patch_size}")
        self.config, self.image_size = config, config.image_size
        num_patches = (config.image_size // config.patch_size) ** 2
        if config.tower == "resnet":
            width = self._build_resnet(num_patches)
        else:
            width = self._build_transformer(num_patches)
        self.image_projection = nn.Linear(width, config.embed, bias=config.tower == "resnet")
        self.text_projection = nn.Linear(condition.pooled, config.embed, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._initialise()

    def _build_transformer(self, num_patches: int) -> int:
        c, published = self.config, self.config.tower == "clip"
        if isinstance(c.depth, tuple):
            raise ValueError(f"depth {c.depth} is a ResNet's; give a number of blocks, or set tower to 'resnet'")
        self.patches = nn.Conv2d(3, c.width, c.patch_size, c.patch_size, bias=not published)
        self.class_D = nn.Parameter(torch.randn(c.width) * c.width**-0.5) if published else None
        self.position_LD = nn.Parameter(torch.randn(num_patches + published, c.width) * 0.02)
        self.norm_in = nn.LayerNorm(c.width, eps=c.eps) if published else nn.Identity()
        hidden = round(c.width * c.mlp_ratio)
        self.blocks = nn.ModuleList(EncoderBlock(c.width, c.num_heads, hidden, c.activation, c.eps) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width, eps=c.eps)
        return c.width

    def _build_resnet(self, num_patches: int) -> int:
        c, width = self.config, 32 * self.config.width
        if not isinstance(c.depth, tuple) or c.patch_size != 32:
            raise ValueError(f"a ResNet tower has four depths and patch_size 32, not depth {c.depth} and patch_size {c.patch_size}")
        if c.width % 2 or width % c.num_heads:
            raise ValueError(f"width {c.width} is odd, or 32 times it does not split into {c.num_heads} heads")
        self.resnet = ModifiedResNet(c.width, c.depth)
        self.pool = AttentionPool(num_patches, width, c.num_heads)
        return width

    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and not name.endswith("position_LD"):
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            if name.endswith(("out.weight", "mlp.2.weight")):
                with torch.no_grad():
                    weight.mul_((2 * len(self.blocks)) ** -0.5)
            if name.endswith("norm3.weight"):
                nn.init.zeros_(weight)  # a residual block starts as its shortcut (arXiv 1706.02677)

    def _tower(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """All tokens and the one vector that is read."""
        side, (height, width) = self.image_size, pixels_BCHW.shape[-2:]
        if height != width or height % side:
            raise ValueError(f"a picture of {width} x {height}; this CLIP looks at {side} x {side} or a whole multiple of it")
        if height > side:
            pixels_BCHW = F.avg_pool2d(pixels_BCHW, height // side)
        if self.config.tower == "resnet":
            x_BLD = rearrange(self.resnet(pixels_BCHW), "b d h w -> b (h w) d")
            return x_BLD, self.pool(x_BLD)
        x_BLD = rearrange(self.patches(pixels_BCHW), "b d h w -> b (h w) d")
        if self.class_D is not None:
            x_BLD = torch.cat([self.class_D.expand(len(x_BLD), 1, -1), x_BLD], dim=1)
        x_BLD = self.norm_in(x_BLD + self.position_LD)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return x_BLD, self.norm(x_BLD.mean(dim=1) if self.class_D is None else x_BLD[:, 0])

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """All tokens behind the last block, not normed: [B, L, D], a class token first where there is one; of a ResNet its last map."""
        return self._tower(pixels_BCHW)[0]

    def pooled(self, pixels_BCHW: Tensor) -> Tensor:
        """What `image_projection` reads: [B, D], the normed mean or class token, or what the attention pooling heard."""
        return self._tower(pixels_BCHW)[1]

    def encode_image(self, pixels_BCHW: Tensor) -> Tensor:
        """Pictures to the common space: [B, E], float32, of any length. A picture k times as large as `image_size` is averaged down.

        Raises ValueError for a picture that is no whole multiple of `image_size`.
        """
        return self.image_projection(self.pooled(pixels_BCHW)).float()

    def encode_text(self, cond: Condition) -> Tensor:
        """What the text encoder said, in the common space: [B, E], float32, of any length."""
        if cond.pooled_BD is None:
            raise ValueError("this condition has no pooled state; CLIP listens to nothing else")
        return self.text_projection(cond.pooled_BD).float()

    def forward(self, x: Tensor, clock_B: Tensor | None, cond: Condition) -> Tensor:
        """score_B in [-1, 1]: the cosine between each picture and its words. The clock is not heard: CLIP knows clean pictures."""
        return (_unit(self.encode_image(x)) * _unit(self.encode_text(cond))).sum(dim=-1)

    def scale(self) -> Tensor:
        """1 / temperature, at most 100 (section 2.5)."""
        return self.logit_scale.float().clamp(max=math.log(100)).exp()


class Contrastive(OnePhase):
    """The task: pictures find their words, and words their pictures.

    neighbours["text_encoder"] learns too, unless its parameters do not require gradients (a locked text tower).
    masked_weight: how much of the masked-word loss goes on, so that single tokens, which a generator will read, keep their
    meaning while the pooled state learns to be a summary; 0 = off, and it needs a text encoder with `masked_words`.
    vary: how pictures are varied in training, the arguments of `layers.pixels.varied`; the paper crops them at random.
    """

    def __init__(
        self, panel: CLIP, *, neighbours: Mapping[str, Any], masked_weight: float = 0.3, mask: float = 0.15,
        vary: Mapping[str, Any] | None = None, vocabulary_texts: int = 100_000,
    ) -> None:  # fmt: skip
        if "text_encoder" not in neighbours:
            raise ValueError("contrastive training needs a text_encoder among its neighbours")
        self.panel, self.text = panel, neighbours["text_encoder"]
        self.learns = any(p.requires_grad for p in self.text.parameters())
        self.masked_weight = masked_weight if self.learns else 0.0
        if self.masked_weight and not hasattr(self.text, "masked_words"):
            raise ValueError(f"{type(self.text).__name__} has no masked_words loss; set masked_weight to 0")
        self.mask, self.vary, self.vocabulary_texts = mask, dict(vary or {}), vocabulary_texts
        self.modules = nn.ModuleDict({"vision": panel})
        if self.learns:
            self.modules["text_encoder"] = self.text

    def prepare_data(self, dataset: Any) -> None:
        """Called once, before training."""
        if not getattr(self.text, "has_vocabulary", True):
            self.text.learn_vocabulary(dataset.texts(self.vocabulary_texts))

    def panels(self) -> dict[str, nn.Module]:
        return {"vision": self.panel, "text_encoder": self.text}

    def _compared(self, batch: Batch, rng: Rng | None = None) -> tuple[Tensor, Tensor]:
        """logits_BB (rows pictures, columns texts) and same_BB, True where the text is a right one for the picture.

        With an rng the pictures are varied."""
        if batch.images_BCHW is None or not batch.prompts:
            raise ValueError("contrastive training needs pairs; this data has pictures alone or texts alone")
        images_BCHW = batch.images_BCHW if rng is None else varied(batch.images_BCHW, rng, **self.vary)
        image_BE = _unit(self.panel.encode_image(images_BCHW))
        text_BE = _unit(self.panel.encode_text(self.text.encode(batch.prompts)))
        same_BB = _equal(batch.keys) if batch.keys else torch.eye(len(batch.prompts), dtype=torch.bool)
        same_BB = same_BB | _equal([prompt.text for prompt in batch.prompts])
        return self.panel.scale() * image_BE @ text_BE.T, same_BB.to(image_BE.device)

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        logits_BB, same_BB = self._compared(batch, rng)
        contrastive = _loss_B(logits_BB, same_BB).mean()
        out = {"loss": contrastive, "contrastive": contrastive.detach(), "scale": self.panel.scale().detach()}
        out["image_to_text_1"] = _found_B(logits_BB, same_BB, 1).mean()
        if self.masked_weight:
            loss_M = self.text.masked_words(batch.prompts, rng, self.mask)["loss_M"]
            if len(loss_M):
                out["masked"] = loss_M.mean().detach()
                out["loss"] = contrastive + self.masked_weight * loss_M.mean()
        return out

    def after_step(self, phase: str, step: int) -> None:
        with torch.no_grad():  # the paper clips it, so that a long run does not drift out of reach
            self.panel.logit_scale.clamp_(max=math.log(100))

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """[B] each: loss, and whether a right answer is among the first 1 and 5 of the batch, in both directions."""
        logits_BB, same_BB = self._compared(batch)
        out = {"loss": _loss_B(logits_BB, same_BB)}
        for k in (1, 5):
            out[f"image_to_text_{k}"] = _found_B(logits_BB, same_BB, k)
            out[f"text_to_image_{k}"] = _found_B(logits_BB.T, same_BB.T, k)
        return out


TASKS = {"contrastive": Contrastive}


def _unit(x_BE: Tensor) -> Tensor:
    return F.normalize(x_BE, dim=-1)


def _loss_B(logits_BB: Tensor, same_BB: Tensor) -> Tensor:
    """Figure 3 of the paper, one value a row; where several answers are right they share the target evenly."""
    right = same_BB.float()
    pictures = -(right / right.sum(1, keepdim=True) * logits_BB.log_softmax(1)).sum(1)
    texts = -(right / right.sum(0, keepdim=True) * logits_BB.log_softmax(0)).sum(0)
    return (pictures + texts) / 2


def _found_B(logits_BB: Tensor, same_BB: Tensor, k: int) -> Tensor:
    best_BK = logits_BB.topk(min(k, logits_BB.shape[1]), dim=1).indices
    return same_BB.gather(1, best_BK).any(dim=1).float()


def _equal(values: Sequence[str]) -> Tensor:
    number: dict[str, int] = {}
    ids_B = torch.tensor([number.setdefault(value, len(number)) for value in values])
    return ids_B[:, None] == ids_B[None, :]
