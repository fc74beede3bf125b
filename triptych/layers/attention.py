"""Attention of image tokens, to each other and to words.

B batch, N heads, L tokens (M of another sequence), D width, d = D / N, K = L + M keys.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from triptych.layers.blocks import RMSNorm
from triptych.layers.linear import INTEL, Linear, learns, product

__all__ = ["CrossAttention", "SelfAttention", "attend", "rotate"]

_ONEDNN = torch.backends.mkldnn.is_available()
_MANY = 1024  # keys from which pieces are faster than torch's fused kernel
_BYTES = 2**22  # of a piece's scores
_CORES = 8  # with many more the fused kernel, which gives each core heads of its own, may win: not measured


def attend(q_BNLd: Tensor, k_BNKd: Tensor, v_BNKd: Tensor, mask_B11K: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over the keys whose mask is True; a row without any gives zeros or their mean, never NaN."""
    if mask_B11K is None and k_BNKd.shape[2] >= _MANY and _alone(q_BNLd, k_BNKd, v_BNKd):
        return _in_pieces(q_BNLd, k_BNKd, v_BNKd)
    short_bf16 = q_BNLd.dtype == torch.bfloat16 and q_BNLd.is_cpu and k_BNKd.shape[2] <= 512
    if not (short_bf16 and learns(q_BNLd, k_BNKd, v_BNKd)):
        return F.scaled_dot_product_attention(q_BNLd, k_BNKd, v_BNKd, mask_B11K)
    # Plain products: the fused kernel of CPUs takes three times as long backwards in bf16 (64 tokens, 4 or 8 heads, Zen 5). Forwards it is
    # mostly twice as fast (16 to 256 keys, a core of a Xeon with AMX; at worst 0.8), and half as far from the truth.
    scores_BNLK = (q_BNLd * q_BNLd.shape[-1] ** -0.5) @ k_BNKd.transpose(-1, -2)
    if mask_B11K is not None:
        scores_BNLK = scores_BNLK.masked_fill(~mask_B11K, torch.finfo(torch.bfloat16).min)
    return scores_BNLK.float().softmax(-1).to(v_BNKd.dtype) @ v_BNKd


def _alone(*tensors: Tensor) -> bool:
    """On a CPU with oneDNN and few cores that is not Intel's, of one precision that it multiplies; and nobody asks for gradients, compiles,
    or has chosen among torch's kernels (`torch.nn.attention.sdpa_kernel`)."""
    dtype = tensors[0].dtype
    if not (_ONEDNN and tensors[0].is_cpu and dtype in (torch.float32, torch.bfloat16) and all(one.dtype is dtype for one in tensors)):
        return False
    if torch.compiler.is_compiling() or not torch.backends.cuda.flash_sdp_enabled() or torch.get_num_threads() > _CORES or INTEL:
        return False
    return not learns(*tensors)


def _in_pieces(q_BNLd: Tensor, k_BNKd: Tensor, v_BNKd: Tensor) -> Tensor:
    """Head by head, as many rows at once as the processor's cache holds scores of: two of oneDNN's products and a softmax.

    Of 2 x 8 heads, 4,096 tokens, 40 wide, on two quiet cores of Zen 5: 306 ms by torch's fused kernel in float32, 236 so; 330 and 152 in
    bf16. On a core of a Xeon with AMX it is the other way round: 428 and 610 ms, in bf16 190 and 337. In float32 the result is the same
    but for the order of rounding. In bf16 scores are rounded too: on unit-normal numbers it is 0.5 % off, and the fused kernel's 0.2 %.
    """
    B, N, L, d = q_BNLd.shape
    rows = max(1, _BYTES // (k_BNKd.shape[2] * q_BNLd.element_size()))
    out_BLNd = q_BNLd.new_empty(B, L, N, v_BNKd.shape[3])
    for b in range(B):
        for n in range(N):
            k_Kd, v_dK = k_BNKd[b, n].contiguous(), v_BNKd[b, n].t().contiguous()
            for first in range(0, L, rows):
                some = slice(first, first + rows)
                weights_RK = product(q_BNLd[b, n, some] * d**-0.5, k_Kd).softmax(-1)
                out_BLNd[b, some, n] = product(weights_RK, v_dK)
    return out_BLNd.transpose(1, 2)


def rotate(x_BNLd: Tensor, rope_2Ld: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + d/2}) by its token's angle (RoPE, arXiv 2104.09864)."""
    cos, sin = rope_2Ld.to(x_BNLd.dtype)
    a, b = x_BNLd.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class SelfAttention(nn.Module):
    """Every token asks every token, and the words too where `extra` brings their keys and values (GLIDE, arXiv 2112.10741)."""

    def __init__(self, width: int, num_heads: int, *, qk_norm: bool, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(width, 3 * width, bias=bias, parts=(width,) * 3)
        self.out = Linear(width, width, bias=bias)
        self.q_norm = RMSNorm(width // num_heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // num_heads) if qk_norm else nn.Identity()

    def forward(
        self, x_BLD: Tensor, rope_2Ld: Tensor | None = None, extra: tuple[Tensor, Tensor] | None = None, mask_B11K: Tensor | None = None
    ) -> Tensor:
        """extra: keys and values [B, N, M, d] that stand before the image's own.  mask: bool, True = may be heard."""
        q, k, v = (rearrange(part, "b l (n d) -> b n l d", n=self.num_heads) for part in self.qkv(x_BLD).chunk(3, dim=-1))
        q, k = self.q_norm(q), self.k_norm(k)
        if rope_2Ld is not None:
            q, k = rotate(q, rope_2Ld), rotate(k, rope_2Ld)
        if extra is not None:
            k, v = (torch.cat([theirs.to(ours.dtype), ours], dim=2) for theirs, ours in zip(extra, (k, v), strict=True))
        heard = attend(q, k, v, mask_B11K)
        return self.out(rearrange(heard, "b n l d -> b l (n d)"))


class CrossAttention(nn.Module):
    """Image tokens ask the words, whose keys and values are made elsewhere."""

    def __init__(self, width: int, num_heads: int, *, bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = Linear(width, width, bias=bias)
        self.out = Linear(width, width, bias=bias)

    def forward(self, x_BLD: Tensor, keys_values: tuple[Tensor, Tensor], mask_B11M: Tensor | None = None) -> Tensor:
        q = rearrange(self.query(x_BLD), "b l (n d) -> b n l d", n=self.num_heads)
        k, v = (theirs.to(q.dtype) for theirs in keys_values)
        return self.out(rearrange(attend(q, k, v, mask_B11M), "b n l d -> b l (n d)"))
