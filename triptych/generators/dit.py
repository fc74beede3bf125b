"""DiT: a transformer over the patches of latents, as a denoiser. Three readings in one file, chosen by `Config`.

    modern    (the default) RMSNorm, SwiGLU, rotary places, normalised queries and keys: the ladder of arXiv 2501.01423.
              Words join every self-attention as extra keys and values (GLIDE, arXiv 2112.10741).
              One modulation for all blocks plus a learnt table (adaLN-single, arXiv 2310.00426).
    DiT-*     Scalable Diffusion Models with Transformers, arXiv 2212.09748: class labels, adaLN-Zero, learnt variance.
    PixArt-*  PixArt-alpha, arXiv 2310.00426: adaLN-single, cross-attention to captions.

What is heard is what panel 1 says: tokens, a pooled vector, a label; a port that is silent has no parameters here.

B batch, C channels, H W grid, L image tokens, M text tokens, D width, N heads, d = D / N, Z depth, X = Z * 2 * D.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.layers.attention import CrossAttention, SelfAttention
from triptych.layers.blocks import MLP, RMSNorm, SwiGLU, modulate
from triptych.layers.embed import patchify, rope_2d, sincos_2d, timestep_embedding, unpatchify
from triptych.layers.linear import Linear

__all__ = ["DiT", "Config", "SIZES"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """mlp_ratio: hidden width over width; SwiGLU, with three matrices for two, takes two thirds of it, in sixteens.

    norm, mlp, qk_norm, bias: of the blocks.  bias: do the matrices of a block have one.
    position: "rope" turns queries and keys, "sincos" is added to the patches, "both" does both.
    modulation: "single" = one vector for all blocks and a table; "block" = a projection for every block (adaLN-Zero).
    text: how tokens are heard, if the text encoder gives any. "keys": in self-attention; "cross": in an attention of their
        own; "none": not.
    learn_sigma: give 2 C channels, the second half for the variance.
    """

    width: int = 256
    depth: int = 8
    num_heads: int = 4
    patch_size: int = 4
    mlp_ratio: float = 2.5
    norm: Literal["rms", "layer"] = "rms"
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    position: Literal["rope", "sincos", "both"] = "both"
    modulation: Literal["single", "block"] = "single"
    text: Literal["keys", "cross", "none"] = "keys"
    qk_norm: bool = True
    bias: bool = False
    learn_sigma: bool = False


_PAPER = Config(
    patch_size=2, mlp_ratio=4.0, norm="layer", mlp="gelu", position="sincos", modulation="block", text="none", qk_norm=False, bias=True,
    learn_sigma=True,
)  # fmt: skip

SIZES = {
    "tiny": Config(width=32, depth=2, num_heads=2),
    "emoji": Config(),
    "DiT-S/2": replace(_PAPER, width=384, depth=12, num_heads=6),
    "DiT-B/2": replace(_PAPER, width=768, depth=12, num_heads=12),
    "DiT-L/2": replace(_PAPER, width=1024, depth=24, num_heads=16),
    "DiT-XL/2": replace(_PAPER, width=1152, depth=28, num_heads=16),
    "PixArt-XL/2": replace(_PAPER, width=1152, depth=28, num_heads=16, modulation="single", text="cross"),
}


class Block(nn.Module):
    """Self-attention, perhaps cross-attention, feed-forward; shifted, scaled and gated by time and condition."""

    def __init__(self, config: Config, cross: bool) -> None:
        super().__init__()
        c = config
        self.norm1, self.norm2 = _norm(c), _norm(c)
        self.attention = SelfAttention(c.width, c.num_heads, qk_norm=c.qk_norm, bias=c.bias)
        self.cross = CrossAttention(c.width, c.num_heads, bias=c.bias) if cross else None
        if c.mlp == "swiglu":
            self.mlp = SwiGLU(c.width, 16 * round(c.mlp_ratio * c.width * 2 / 3 / 16), bias=c.bias)
        else:
            self.mlp = MLP(c.width, int(c.mlp_ratio * c.width), bias=c.bias)

    def forward(
        self, x_BLD: Tensor, modulation_B6D: Tensor, rope_2Ld: Tensor | None, text: tuple[Tensor, Tensor] | None, mask_B11K: Tensor | None
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_B6D.unsqueeze(2).unbind(1)
        inner = modulate(self.norm1(x_BLD), shift1, scale1)
        if self.cross is None:
            x_BLD = x_BLD + gate1 * self.attention(inner, rope_2Ld, text, mask_B11K)
        else:
            assert text is not None
            x_BLD = x_BLD + gate1 * self.attention(inner, rope_2Ld)
            x_BLD = x_BLD + self.cross(x_BLD, text, mask_B11K)
        return x_BLD + gate2 * self.mlp(modulate(self.norm2(x_BLD), shift2, scale2))


class TextKeys(nn.Module):
    """The words' keys and values for all blocks in one product: nothing in it depends on the picture or on time."""

    def __init__(self, config: Config, text_width: int) -> None:
        super().__init__()
        c, cross = config, config.text == "cross"
        self.num_heads, self.depth = c.num_heads, c.depth
        self.caption = MLP(text_width, c.width, c.width) if cross else RMSNorm(text_width)
        parts = (c.width,) * (2 * c.depth)
        self.keys_values = Linear(c.width if cross else text_width, sum(parts), bias=c.bias, parts=parts)
        self.key_scale = nn.Parameter(torch.ones(c.depth, c.width // c.num_heads)) if c.qk_norm else None

    def forward(self, tokens_BMD: Tensor) -> Tensor:
        """[B, M, D of text] -> [B, M, X], ordered (block, key or value, head, d)."""
        kv = self.keys_values(self.caption(tokens_BMD))
        if self.key_scale is None:
            return kv
        k, v = rearrange(kv, "b m (z two n d) -> two b m n z d", two=2, z=self.depth, n=self.num_heads)
        k = F.rms_norm(k, k.shape[-1:], eps=1e-6) * self.key_scale.to(k.dtype)
        return rearrange([k, v], "two b m n z d -> b m (z two n d)")

    def split(self, prepared_BMX: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [B, N, M, d] of each block."""
        kv = rearrange(prepared_BMX, "b m (z two n d) -> z two b n m d", z=self.depth, two=2, n=self.num_heads)
        return [(k, v) for k, v in kv]


class DiT(nn.Module):
    """forward(x_t [B, C, H, W], clock_B, cond) -> [B, C, H, W], or 2 C channels with `learn_sigma`.

    H and W are multiples of the patch, and need not be those of `latent`. The clock runs over 0..1000.
    Raises ValueError for latents that are no image, a grid that the patch does not divide, or heads that do not fit.
    """

    role = "denoiser"

    def __init__(self, config: Config, *, latent: LatentSpace, condition: ConditionSpec) -> None:
        super().__init__()
        c = self.config = config
        self.latent, self.condition = latent, condition
        if latent.kind != "image":
            raise ValueError(f"DiT draws latents of kind 'image', these are of kind {latent.kind!r}: choose another generator or decoder")
        if c.width % (4 * c.num_heads):
            raise ValueError(f"DiT's width {c.width} is no multiple of 4 * num_heads = {4 * c.num_heads}: change one of them")
        channels, *size = latent.shape
        self.trained = self._grid(*size)
        hears_text = condition.width > 0 and c.text != "none"

        self.patch_in = Linear(channels * c.patch_size**2, c.width)
        self.clock = nn.Sequential(Linear(256, c.width), nn.SiLU(), Linear(c.width, c.width))
        self.label = nn.Embedding(condition.num_labels + 1, c.width) if condition.num_labels else None
        self.pooled = nn.Sequential(RMSNorm(condition.pooled), Linear(condition.pooled, c.width)) if condition.pooled else None
        self.text = TextKeys(c, condition.width) if hears_text else None
        single = c.modulation == "single"
        parts = (6 * c.width,) * (1 if single else c.depth)
        self.modulation = Linear(c.width, sum(parts), parts=parts)
        self.table = nn.Parameter(torch.empty(c.depth, 6, c.width)) if single else None
        self.blocks = nn.ModuleList([Block(c, cross=hears_text and c.text == "cross") for _ in range(c.depth)])
        self.norm_out = _norm(c)
        self.modulation_out = Linear(c.width, 2 * c.width) if not single else None
        self.table_out = nn.Parameter(torch.empty(2, c.width)) if single else None
        self.patch_out = Linear(c.width, c.patch_size**2 * channels * (2 if c.learn_sigma else 1))
        self._initialise()

    def _initialise(self) -> None:
        """As in DiT: Xavier for matrices, 0.02 for embeddings, zero for gates and for the last layer: a block starts as identity."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for small in [self.clock[0], self.clock[2], *([self.label] if self.label else [])]:
            nn.init.normal_(small.weight, std=0.02)
        if self.text is not None:  # as many products side by side: each is as wide as the picture's own keys, not as all together
            for part in self.text.keys_values.weight.chunk(2 * self.config.depth):
                nn.init.xavier_uniform_(part)
        for name, parameter in self.named_parameters():
            if name.startswith(("modulation", "table", "patch_out")) or ".cross.out." in name:
                nn.init.zeros_(parameter)

    def prepare(self, cond: Condition) -> Condition:
        """Once a request: the words' keys and values, which no step changes, as `prepared_BLX`."""
        if self.text is None or cond.tokens_BLD is None:
            return cond
        return replace(cond, prepared_BLX=self.text(cond.tokens_BLD.to(self.dtype)))

    def forward(self, x_t: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        c = self.config
        h, w = grid = self._grid(*x_t.shape[2:])
        modulation_BZ6D, shift_out, scale_out = self._modulation(clock_B, cond)
        texts, mask = self._texts(cond, h * w)
        rope = rope_2d(c.width // c.num_heads, grid, self.trained, x_t.device) if c.position != "sincos" else None

        x_BLD = self.patch_in(patchify(x_t.to(self.dtype), c.patch_size))
        if c.position != "rope":
            x_BLD = x_BLD + sincos_2d(c.width, grid, self.trained, x_t.device).to(self.dtype)  # lifts a bf16 product back to float32
        for block, modulation_B6D, text in zip(self.blocks, modulation_BZ6D.unbind(1), texts, strict=True):
            x_BLD = block(x_BLD, modulation_B6D, rope, text, mask)
        x_BLD = self.patch_out(modulate(self.norm_out(x_BLD), shift_out, scale_out))
        return unpatchify(x_BLD, c.patch_size, grid).to(x_t.dtype)

    def _modulation(self, clock_B: Tensor, cond: Condition) -> tuple[Tensor, Tensor, Tensor]:
        """All blocks' (shift, scale, gate, shift, scale, gate) in one product, [B, Z, 6, D], and the last layer's shift and scale."""
        with nullcontext() if clock_B.is_meta else torch.autocast(clock_B.device.type, enabled=False):  # few rows: float32 is cheap
            c_BD = self.clock(timestep_embedding(clock_B).to(self.dtype))
            if self.label is not None:
                c_BD = c_BD + self.label(_heard(cond, "label_B"))
            if self.pooled is not None:
                c_BD = c_BD + self.pooled(_heard(cond, "pooled_BD").to(self.dtype))
            active_BD = F.silu(c_BD)
            modulation_BZ6D = self.modulation(active_BD).unflatten(1, (-1, 6, self.config.width))
            if self.table is not None:
                modulation_BZ6D, out_B2D = modulation_BZ6D + self.table, c_BD[:, None] + self.table_out
            else:
                assert self.modulation_out is not None
                out_B2D = self.modulation_out(active_BD).unflatten(1, (2, -1))
            shift_B1D, scale_B1D = out_B2D.unsqueeze(2).unbind(1)
            return modulation_BZ6D, shift_B1D, scale_B1D

    def _texts(self, cond: Condition, length: int) -> tuple[Sequence[tuple[Tensor, Tensor] | None], Tensor | None]:
        """Each block's text keys and values, and the mask over all keys that its attention sees."""
        if self.text is None:
            return [None] * self.config.depth, None
        prepared_BMX, mask = cond.prepared_BLX, cond.mask_BL
        if prepared_BMX is None:
            prepared_BMX = self.text(_heard(cond, "tokens_BLD").to(self.dtype))
        if mask is not None and self.config.text == "keys":
            mask = F.pad(mask, (0, length), value=True)  # the image's own keys stand behind the words'
        return self.text.split(prepared_BMX), None if mask is None else mask[:, None, None]

    @property
    def dtype(self) -> torch.dtype:
        return self.patch_in.weight.dtype

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        patch = self.config.patch_size
        if height % patch or width % patch:
            raise ValueError(f"latents of {height} x {width} cannot be cut into patches of {patch}: choose multiples of {patch}")
        return height // patch, width // patch


def _norm(config: Config) -> nn.Module:
    """Without scale and shift of its own: the modulation brings them."""
    return RMSNorm(config.width, scale=False) if config.norm == "rms" else nn.LayerNorm(config.width, eps=1e-6, elementwise_affine=False)


def _heard(cond: Condition, port: str) -> Tensor:
    value = getattr(cond, port)
    if value is None:
        raise ValueError(f"this DiT was built to hear {port}, and the condition is silent there: it speaks on {sorted(cond.ports())}")
    return value
