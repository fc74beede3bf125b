"""Attention in pieces against torch's own: the same numbers, whatever the batch; and who is left to torch."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from triptych.layers import attention
from triptych.layers.attention import attend

onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch carries no oneDNN")


def heads(batch: int, many: int, tokens: int, keys: int, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as they come out of one product: strided, heads beside one another."""
    g = torch.Generator().manual_seed(tokens + keys)
    q = torch.randn(batch, tokens, many * width, generator=g).to(dtype)
    k, v = torch.randn(batch, keys, 2 * many * width, generator=g).to(dtype).chunk(2, dim=2)
    return tuple(one.unflatten(2, (many, width)).transpose(1, 2) for one in (q, k, v))  # type: ignore[return-value]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    calls: list[int] = []
    monkeypatch.setattr(attention, "INTEL", False)
    pieces = attention._in_pieces
    monkeypatch.setattr(attention, "_in_pieces", lambda *qkv: calls.append(1) or pieces(*qkv))
    return calls


@onednn
@pytest.mark.parametrize("batch, many, tokens, keys, width", [(2, 2, 300, 1024, 8), (1, 1, 1030, 1030, 33), (1, 3, 7, 1500, 40)])
@torch.no_grad()
def test_in_pieces_as_at_once(
    batch: int, many: int, tokens: int, keys: int, width: int, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces that the number of rows does not divide into included."""
    monkeypatch.setattr(attention, "_BYTES", 4 * 128 * keys)
    q, k, v = heads(batch, many, tokens, keys, width, torch.float32)
    torch.testing.assert_close(attend(q, k, v), F.scaled_dot_product_attention(q, k, v), rtol=1e-5, atol=2e-6)
    q, k, v = (one.bfloat16() for one in (q, k, v))
    true = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert float((attend(q, k, v).double() - true).norm() / true.norm()) < 0.008
    assert len(counted) == 2


@onednn
@pytest.mark.parametrize("intel", [False, True])
@torch.no_grad()
def test_a_row_is_the_same_in_any_batch(intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "INTEL", intel)
    q, k, v = heads(3, 2, 1100, 1100, 16, torch.float32)
    together = attend(q, k, v)
    for i in range(3):
        assert torch.equal(together[i : i + 1], attend(q[i : i + 1], k[i : i + 1], v[i : i + 1]))


@onednn
def test_who_learns_hides_keys_or_chooses_is_left_to_torch(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = heads(1, 2, 20, 1024, 8, torch.float32)
    mask = (torch.arange(1024) < 1000)[None, None, None]
    torch.testing.assert_close(attend(q, k, v, mask), F.scaled_dot_product_attention(q, k, v, mask))
    attend(q.clone().requires_grad_(), k, v).sum().backward()
    attend(q.double(), k.double(), v.double())
    attend(q, k[:, :, :1000], v[:, :, :1000])
    with sdpa_kernel(SDPBackend.MATH):
        attend(q, k, v)
    with monkeypatch.context() as there:
        there.setattr(attention, "INTEL", True)
        attend(q, k, v)
    assert not counted
    attend(q, k, v)
    assert counted
