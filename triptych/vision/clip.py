"""CLIP: pictures and words in one space (Radford et al., arXiv 2103.00020), at our scale.

The image tower is a plain ViT (arXiv 2010.11929), without the paper's class token and first LayerNorm; the text tower is any
panel 1 that gives a pooled state, a neighbour that is handed in and never built here. The loss is the paper's, with one change
that small worlds need: several rows of a batch may show the same picture or say the same words, and all are right answers.

Shape legend: B batch, C channels, H W grid, L patches, D width, E the common space.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import Batch, Condition, ConditionSpec, Prompt, Rng

__all__ = ["CLIP", "Config", "Contrastive", "SIZES", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """image_size: side in pixels, a multiple of patch_size.  embed: E, the width of the common space."""

    image_size: int = 32
    patch_size: int = 8
    width: int = 192
    depth: int = 4
    num_heads: int = 4
    mlp_ratio: float = 4.0
    embed: int = 160


SIZES = {
    "tiny": Config(image_size=16, patch_size=4, width=32, depth=1, num_heads=2, embed=32),
    "small": Config(),  # 16 patches, as wide as a patch has values: nothing is lost at the door, at a quarter of the cost of patch 4
    "fine": Config(patch_size=4),
    "base": Config(image_size=64, patch_size=8, width=384, depth=6, num_heads=6, embed=256),
}


class Block(nn.Module):
    """A pre-norm transformer block, as in the paper: LayerNorm, attention, a GELU MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, hidden = config.width, round(config.width * config.mlp_ratio)
        self.num_heads = config.num_heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x_BLD)), "b l (three n k) -> three b n l k", three=3, n=self.num_heads)
        x_BLD = x_BLD + self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b n l k -> b l (n k)"))
        return x_BLD + self.mlp(self.norm2(x_BLD))


class CLIP(nn.Module):
    """A critic of pictures by words. `condition`: of the text encoder it listens to; only pooled_BD is heard.

    Raises ValueError if the text encoder gives no pooled state, or the picture does not split into patches.
    """

    role = "critic"

    def __init__(self, config: Config, *, condition: ConditionSpec) -> None:
        super().__init__()
        if not condition.pooled:
            raise ValueError("CLIP hears a text encoder's pooled state, and this one gives none (pooled = 0); take one that does")
        if config.image_size % config.patch_size:
            raise ValueError(f"image_size {config.image_size} is no multiple of patch_size {config.patch_size}")
        if config.width % config.num_heads:
            raise ValueError(f"width {config.width} does not split into {config.num_heads} heads")
        self.config = config
        width, side = config.width, config.image_size // config.patch_size
        self.patches = nn.Conv2d(3, width, config.patch_size, config.patch_size)
        self.position_LD = nn.Parameter(torch.randn(side * side, width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width)
        self.image_projection = nn.Linear(width, config.embed, bias=False)
        self.text_projection = nn.Linear(condition.pooled, config.embed, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self._initialise()

    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if weight.ndim == 2 and name != "position_LD":
                nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
            if name.endswith(("out.weight", "mlp.2.weight")):
                with torch.no_grad():
                    weight.mul_((2 * self.config.depth) ** -0.5)

    def encode_image(self, x_BCHW: Tensor) -> Tensor:
        """Pictures in [-1, 1] to unit vectors [B, E], float32. A picture k times as large is averaged down.

        Raises ValueError for a picture that is no whole multiple of `image_size`.
        """
        side, (height, width) = self.config.image_size, x_BCHW.shape[-2:]
        if height != width or height % side:
            raise ValueError(f"a picture of {width} x {height}; this CLIP looks at {side} x {side} or a whole multiple of it")
        if height > side:
            x_BCHW = F.avg_pool2d(x_BCHW, height // side)
        x_BLD = rearrange(self.patches(x_BCHW), "b d h w -> b (h w) d") + self.position_LD
        for block in self.blocks:
            x_BLD = block(x_BLD)
        # The mean of all patches, not a class token: at few patches and few pictures it learns faster (arXiv 2205.01580).
        return F.normalize(self.image_projection(self.norm(x_BLD.mean(dim=1))).float(), dim=-1)

    def encode_text(self, cond: Condition) -> Tensor:
        """What the text encoder said, to unit vectors [B, E], float32."""
        if cond.pooled_BD is None:
            raise ValueError("this condition has no pooled state; CLIP listens to nothing else")
        return F.normalize(self.text_projection(cond.pooled_BD).float(), dim=-1)

    def forward(self, x: Tensor, clock_B: Tensor | None, cond: Condition) -> Tensor:
        """score_B in [-1, 1]: the cosine between each picture and its words. The clock is not heard: CLIP knows clean pictures."""
        return (self.encode_image(x) * self.encode_text(cond)).sum(dim=-1)

    def scale(self) -> Tensor:
        """1 / temperature, at most 100 (section 2.5)."""
        return self.logit_scale.float().clamp(max=math.log(100)).exp()


class Contrastive:
    """The task: pictures find their words, and words their pictures.

    neighbours["text_encoder"] learns too, unless its parameters do not require gradients (a locked text tower).
    masked_weight: how much of the masked-word loss goes on, so that single tokens, which a generator will read, keep their
    meaning while the pooled state learns to be a summary; 0 = off, and it needs a text encoder with `masked_words`.
    """

    def __init__(
        self, panel: CLIP, *, neighbours: Mapping[str, Any], masked_weight: float = 0.3, mask: float = 0.15, vocabulary_texts: int = 100_000
    ) -> None:
        if "text_encoder" not in neighbours:
            raise ValueError("contrastive training needs a text_encoder among its neighbours")
        self.panel, self.text = panel, neighbours["text_encoder"]
        self.learns = any(p.requires_grad for p in self.text.parameters())
        self.masked_weight = masked_weight if self.learns else 0.0
        if self.masked_weight and not hasattr(self.text, "masked_words"):
            raise ValueError(f"{type(self.text).__name__} has no masked_words loss; set masked_weight to 0")
        self.mask, self.vocabulary_texts = mask, vocabulary_texts
        self.modules = nn.ModuleDict({"vision": panel})
        if self.learns:
            self.modules["text_encoder"] = self.text

    def prepare_data(self, dataset: Any) -> None:
        """Called once, before training."""
        if not getattr(self.text, "has_vocabulary", True):
            self.text.learn_vocabulary(dataset.texts(self.vocabulary_texts))

    def panels(self) -> dict[str, nn.Module]:
        return {"vision": self.panel, "text_encoder": self.text}

    def plan(self, step: int) -> tuple[str, ...]:
        return ("main",)

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.modules.named_parameters() if p.requires_grad}

    def _compared(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """logits_BB (rows pictures, columns texts) and same_BB, True where the text is a right one for the picture."""
        if batch.images_BCHW is None or not batch.prompts:
            raise ValueError("contrastive training needs pairs; this data has pictures alone or texts alone")
        image_BE = self.panel.encode_image(batch.images_BCHW)
        text_BE = self.panel.encode_text(self.text.encode(batch.prompts))
        same_BB = _equal(batch.keys) if batch.keys else torch.eye(len(batch.prompts), dtype=torch.bool)
        same_BB = same_BB | _equal([prompt.text for prompt in batch.prompts])
        return self.panel.scale() * image_BE @ text_BE.T, same_BB.to(image_BE.device)

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        logits_BB, same_BB = self._compared(batch)
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

    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        return None


TASKS = {"contrastive": Contrastive}


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
