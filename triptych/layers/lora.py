"""LoRA: what a product learns anew, as two thin matrices beside it. Hu et al., arXiv 2106.09685.

    y = W x + (alpha / r) B A x             W stays as it was; B starts at zero, so the network starts as it was

    insert(network, rank)                   to learn: chosen products become `LoRA`s, all else is frozen
    fold(network)                           every addition into its weight, plain products again
    add(network, additions, weight)         to draw: what a file holds, into plain weights; several in turn

It starts so to the bit, but where a GELU is done inside of the product: there to rounding. While drawing there is always a plain
network: an addition that was folded costs nothing.

One product here may be several of the papers', and of public files: queries, keys and values one below the other (`Linear.parts`).
Each part has an A and a B of its own, as if it stood alone. One A for all three would be another model, which no public file can hold.

Shape legend: I numbers in, O rows out (of one part or of all), r rank, P parts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.catalog import nearest
from triptych.layers.conv import Conv
from triptych.layers.linear import Linear, geglu, repack

__all__ = ["ATTENTION", "Addition", "LoRA", "Part", "add", "additions", "fold", "insert", "inserted", "part_shape", "plain"]

ATTENTION = ("qkv", "query", "cross_query", "keys_values", "out", "cross_out")  # what the projections of all attentions here are called


class Part(NamedTuple):
    """One product of a network. module: its path.  index, count: which it is of those that stand one below the other there."""

    module: str
    index: int = 0
    count: int = 1


@dataclass(frozen=True)
class Addition:
    """(alpha / r) B A to one product: A [r, I], B [O, r]; to a convolution [r, I, h, w] and [O, r, 1, 1]."""

    part: Part
    A: Tensor
    B: Tensor
    alpha: float

    def delta(self, shape: Sequence[int]) -> Tensor:
        """What is added to a weight of this shape, in float32."""
        product = self.B.float().flatten(1) @ self.A.float().flatten(1)
        return product.mul_(self.alpha / len(self.A)).view(*shape)


class LoRA(nn.Module):
    """A product and what it learns anew: forward(x [..., I], gelu) -> [..., O], and `geglu`, as `Linear`.

    A [P r, I] and B [O, r] hold the parts' one below the other; A as Kaiming's uniform with a = sqrt(5), as PEFT's, B zero.
    """

    def __init__(self, base: Linear, rank: int, alpha: float) -> None:
        super().__init__()
        weight = base.weight
        self.base, self.rank, self.alpha = base, rank, alpha
        self.A = nn.Parameter(weight.new_empty(len(base.parts) * rank, base.in_features))
        self.B = nn.Parameter(weight.new_zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # its bound, 1 / sqrt(I), does not know how many stand below each other

    @property
    def weight(self) -> Tensor:
        """The base's: who asks for its dtype or device is answered."""
        return self.base.weight

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        y, inner, parts = self.base(x), F.linear(x, self.A), self.base.parts
        pairs = zip(inner.split(self.rank, dim=-1), self.B.split(parts), strict=True)
        added = [F.linear(part, B) for part, B in pairs]
        y = y + self.alpha / self.rank * (torch.cat(added, dim=-1) if added[1:] else added[0])
        return F.gelu(y, approximate="tanh") if gelu else y

    def geglu(self, x: Tensor) -> Tensor:
        """As `Linear.geglu`."""
        return geglu(self(x))

    def additions(self, module: str) -> list[Addition]:
        """One a part, under this module's path."""
        pairs, count = zip(self.A.detach().split(self.rank), self.B.detach().split(self.base.parts), strict=True), len(self.base.parts)
        return [Addition(Part(module, i, count), A, B, self.alpha) for i, (A, B) in enumerate(pairs)]

    def folded(self) -> Tensor:
        """The weight with its additions, [O, I]: in float32, then of the base's precision."""
        parts = zip(self.base.weight.detach().split(self.base.parts), self.additions(""), strict=True)
        return torch.cat([_sum(weight, one.delta(weight.shape)) for weight, one in parts])


# --- learning -------------------------------------------------------------------------------------------------------------


def insert(network: nn.Module, rank: int, alpha: float | None = None, targets: Sequence[str] = ATTENTION) -> list[str]:
    """Put LoRAs where `targets` say, and freeze all that was there. Returns the products' paths.

    alpha: None = the rank.  targets: ends of paths, "qkv" or "attention.qkv"; by default the projections of all attentions.
    Raises ValueError for a rank below 1 or above the smallest side of a product, for an alpha that is not above 0, and for a target
    that no product bears.
    """
    alpha = float(rank if alpha is None else alpha)
    if rank < 1:
        raise ValueError(f"a LoRA of rank {rank} adds nothing: take 1 or more")
    if not 0 < alpha < math.inf:
        raise ValueError(f"a LoRA of alpha {alpha:g}: must be more than 0; the rank itself is a good start")
    found = _chosen(network, targets)
    for path, layer in found.items():
        side = min(layer.in_features, *layer.parts)
        if rank > side:
            said = f"{path}, {layer.in_features} numbers to {' + '.join(map(str, sorted(set(layer.parts))))}"
            raise ValueError(f"a LoRA of rank {rank} is more than {said} can have: take {side} or less")
    network.requires_grad_(False)
    for path, layer in found.items():
        _put(network, path, LoRA(layer, rank, alpha))
    return list(found)


def inserted(network: nn.Module) -> Iterator[tuple[str, LoRA]]:
    """(path, LoRA), of all that are in it."""
    yield from ((path, module) for path, module in network.named_modules() if isinstance(module, LoRA))


def additions(network: nn.Module) -> list[Addition]:
    """What all its LoRAs add, as it stands now."""
    return [one for path, module in inserted(network) for one in module.additions(path)]


@torch.no_grad()
def fold(network: nn.Module) -> int:
    """Every addition into its weight, and plain products in place of LoRAs. Returns how many there were."""
    found = list(inserted(network))
    for path, module in found:
        module.base.weight.copy_(module.folded())
        repack(module.base)
        _put(network, path, module.base)
    return len(found)


@torch.no_grad()
def plain(network: nn.Module) -> dict[str, Tensor]:
    """The state dict that `fold` would leave; the network stays as it is."""
    found, out = dict(inserted(network)), {}
    for name, tensor in network.state_dict().items():
        path, _, last = name.rpartition(".")
        base = path.removesuffix(".base")
        if path != base and base in found:
            out[f"{base}.{last}"] = found[base].folded() if last == "weight" else tensor
        elif path not in found:
            out[name] = tensor
    return out


def _chosen(network: nn.Module, targets: Sequence[str]) -> dict[str, Linear]:
    products = {path: module for path, module in network.named_modules() if isinstance(module, Linear)}
    found: dict[str, Linear] = {}
    for target in targets:
        here = {path: one for path, one in products.items() if path == target or path.endswith(f".{target}")}
        if not here and target not in ATTENTION:  # of which no network has all
            ends = sorted({path.rpartition(".")[2] for path in products} - {"0", "1", "2"})
            raise ValueError(f"no product of {type(network).__name__} is called {target!r}; {nearest(target, ends)}")
        found |= here
    if not found:
        raise ValueError(f"{type(network).__name__} has no attention with {' or '.join(targets)} that a LoRA could be put at")
    return {path: found[path] for path in products if path in found}


def _put(network: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, module)


# --- drawing --------------------------------------------------------------------------------------------------------------


def part_shape(layer: nn.Module, part: Part) -> tuple[int, ...]:
    """Of the rows of a product's or a convolution's weight that are this part's."""
    return (_rows(layer, part)[1], *layer.weight.shape[1:])  # type: ignore[union-attr,misc]


@torch.no_grad()
def add(network: nn.Module, found: Iterable[Addition], weight: float = 1.0) -> int:
    """weight times each addition into the plain weights of its part, in place: in float32, then of the weight's precision.

    A negative weight takes away. Returns how many products were changed. What is memory-mapped is copied page by page where it is
    written, and its file stays; what was packed is packed anew.
    """
    count, changed = 0, {}
    for one in found:
        layer = network.get_submodule(one.part.module)
        if isinstance(layer, Conv) and layer not in changed:
            changed[layer] = layer.packing
            layer.unpack()
        elif isinstance(layer, Linear):
            changed[layer] = True
        first, rows = _rows(layer, one.part)
        into: Tensor = layer.weight[first : first + rows]  # type: ignore[index]
        into.copy_(_sum(into, one.delta(into.shape).to(into.device), weight))
        count += 1
    for layer, packing in changed.items():
        if isinstance(layer, Conv):
            layer.packing = packing
        else:
            repack(layer)
    return count


def _sum(weight: Tensor, delta: Tensor, share: float = 1.0) -> Tensor:
    return (weight.float() + share * delta).to(weight.dtype)


def _rows(layer: nn.Module, part: Part) -> tuple[int, int]:
    """(first row, rows) of a part; nn.Linear does not say its parts, which are of one size then."""
    whole = len(layer.weight)  # type: ignore[arg-type]
    said = getattr(layer, "parts", (whole,))
    parts = said if len(said) == part.count else (whole // part.count,) * part.count
    assert sum(parts) == whole, f"{part} of {whole} rows"
    return sum(parts[: part.index]), parts[part.index]
