"""What tensors are, in sixteen digits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["fingerprint_tensors"]


def fingerprint_tensors(tensors: Mapping[str, Tensor], extra: str = "") -> str:
    """16 hexadecimal digits of the SHA-256 over names (sorted), dtypes, shapes and bytes, and over `extra`.

    The same on every device and in every memory format.
    """
    digest = hashlib.sha256(extra.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
