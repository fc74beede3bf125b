"""The transformer block of ViT (arXiv 2010.11929), CLIP (arXiv 2103.00020) and MAE (arXiv 2111.06377): LayerNorm in front of each part.

Shape legend: B batch, L tokens, D width, N heads, K = D / N.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

__all__ = ["Activation", "EncoderBlock", "QuickGELU"]

Activation = Literal["gelu", "quick_gelu"]


class QuickGELU(nn.Module):
    """x sigmoid(1.702 x): the approximation of GELU that OpenAI's CLIP was trained with. The two differ by up to 0.02."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    qkv.weight holds queries, keys and values one below the other, each [D, D] with its heads one below the other.
    causal: a token hears itself and those before it, as in CLIP's text tower.
    Raises ValueError if the width does not split into the heads.
    """

    def __init__(
        self, width: int, num_heads: int, hidden: int, activation: Activation = "gelu", eps: float = 1e-5, causal: bool = False,
        qkv_bias: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        if width % num_heads:
            raise ValueError(f"width {width} does not split into {num_heads} heads; take a multiple of {num_heads}")
        self.num_heads, self.causal = num_heads, causal
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), _activation(activation), nn.Linear(hidden, width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x_BLD)), "b l (three n k) -> three b n l k", three=3, n=self.num_heads)
        heard = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x_BLD = x_BLD + self.out(rearrange(heard, "b n l k -> b l (n k)"))
        return x_BLD + self.mlp(self.norm2(x_BLD))


def _activation(name: Activation) -> nn.Module:
    if name not in ("gelu", "quick_gelu"):
        raise ValueError(f"no activation {name!r}; there are: gelu, quick_gelu")
    return QuickGELU() if name == "quick_gelu" else nn.GELU()
