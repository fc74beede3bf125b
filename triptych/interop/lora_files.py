"""Files of LoRAs, in the two dialects that are in use, and older spellings of the first. Names and tensors; no model is asked here.

    PEFT, diffusers    unet.<path>.lora_A.weight  .lora_B.weight        alpha in the metadata `lora_adapter_metadata`, JSON
    kohya              lora_unet_<path, _ for .>.lora_down.weight  .lora_up.weight  .alpha        who made it in the metadata `ss_...`

    file = LoRAFile(path)          # checked by its header alone
    A, B, alpha = file.read(name)  # of one product, as the file names it

A is [r, I] and B [O, r], of convolutions [r, I, h, w] and [O, r, 1, 1]. Who says no alpha means the rank.
A pickle is never opened; what is no plain LoRA (DoRA, LoHa, LoKr, a third matrix) is refused by name.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from triptych.checkpoint import write_atomically
from triptych.interop.weights import _PICKLED, _header

__all__ = ["FILE", "LoRAFile", "hash_of", "kohya_name", "to_kohya", "write_peft"]

FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls it in a folder
_METADATA = "lora_adapter_metadata"
_LARGEST_HEADER = 16 * 2**20  # three thousand products take one
_LARGEST_SCALE = 2.0**100  # of alpha / r times the largest numbers of A and B, so that no weight becomes infinite
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_WAY_OUT = "a pickle can run code, and is not read: save it anew where you trust it, pipe.save_lora_weights(FOLDER), as safetensors"
_ENDS = {  # of a tensor's name -> which it is
    ".lora_A.weight": "A", ".lora_B.weight": "B", ".lora_A.default.weight": "A", ".lora_B.default.weight": "B",
    ".lora.down.weight": "A", ".lora.up.weight": "B", ".lora_linear_layer.down.weight": "A", ".lora_linear_layer.up.weight": "B",
    "_lora.down.weight": "A", "_lora.up.weight": "B", ".lora_down.weight": "A", ".lora_up.weight": "B", ".alpha": "alpha",
}  # fmt: skip
_OTHERS = {"dora_scale": "a DoRA", "magnitude": "a DoRA", "hada_": "a LoHa", "lokr_": "a LoKr", "lora_mid": "a LoCon of three matrices"}
_NOT_PLAIN = (  # of PEFT's configuration: what computes something else than (alpha / r) B A
    "use_dora", "use_bdlora", "use_qalora", "kasa_config", "monteclora_config", "arrow_config", "alora_invocation_tokens",
    "layer_replication",
)  # fmt: skip
_OTHER_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # beginnings that take from the base what they put into A and B
_KOHYA = {"unet": "lora_unet", "text_encoder": "lora_te"}


@dataclass
class _Pair:
    """The names and shapes of one product's tensors."""

    A: str = ""
    B: str = ""
    alpha: str = ""
    a_shape: tuple[int, ...] = ()
    b_shape: tuple[int, ...] = ()


class LoRAFile:
    """pairs: product, as the file names it -> its tensors' names and shapes.  metadata: strings.  path: of the file itself.

    Raises ValueError, naming file and tensor, for what is no whole safetensors file, holds something else than a LoRA, an A without its
    B or the other way round, ranks that disagree, or an alpha that is no number. Nothing but the header was read then.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = _found(Path(path))
        _plausible(self.path)
        real = self.path.resolve()  # a link of the user's own
        self.pairs: dict[str, _Pair] = {}
        for key, shape, dtype in _header(real.parent, real):
            name, what = self._split(key)
            pair = self.pairs.setdefault(name, _Pair())
            if getattr(pair, what):
                raise ValueError(f"{self.path}: tensor {key!r} says what {getattr(pair, what)!r} says too")
            setattr(pair, what, key)
            if what == "alpha":
                if math.prod(shape) != 1:
                    raise ValueError(f"{self.path}: tensor {key!r} is {list(shape)}, and an alpha is one number")
                continue
            if not dtype.is_floating_point:
                raise ValueError(f"{self.path}: tensor {key!r} is of type {dtype}: only floating numbers can be added")
            setattr(pair, f"{what.lower()}_shape", shape)
        if not self.pairs:
            raise ValueError(f"{self.path} holds no tensor: it is no LoRA")
        for name, pair in self.pairs.items():
            self._check(name, pair)
        with _opened(real) as file:
            self.metadata: dict[str, str] = dict(file.metadata() or {})
        self._said = self._adapter_metadata()

    def _split(self, key: str) -> tuple[str, str]:
        """(product, "A", "B" or "alpha")."""
        for end, what in _ENDS.items():
            if key.endswith(end) and len(key) > len(end):
                return _modern(key[: -len(end)], end), what
        other = next((f"belongs to {kind}" for part, kind in _OTHERS.items() if part in key), "is no part of a LoRA")
        raise ValueError(f"{self.path}: tensor {key!r} {other}: only plain LoRA, an A and a B for a product, can be read")

    def _check(self, name: str, pair: _Pair) -> None:
        if not (pair.A and pair.B):
            there, lacks = (pair.A or pair.B or pair.alpha), "A (lora_down)" if pair.B else "B (lora_up)"
            raise ValueError(f"{self.path}: tensor {there!r} is there, and its {lacks} is missing: the file is not whole")
        a, b = pair.a_shape, pair.b_shape
        if len(a) not in (2, 4) or len(b) != len(a) or (len(b) == 4 and b[2:] != (1, 1)) or 0 in (*a, *b):
            raise ValueError(f"{self.path}: tensors {pair.A!r} {list(a)} and {pair.B!r} {list(b)} are no A and B of one product")
        if a[0] != b[1]:
            raise ValueError(f"{self.path}: tensor {pair.A!r} is of rank {a[0]}, {pair.B!r} of rank {b[1]}: they do not belong together")

    # -- numbers

    def read(self, name: str) -> tuple[Tensor, Tensor, float]:
        """A, B and alpha of a product. Raises ValueError, naming the tensor, where a number is none, or beyond reason."""
        pair = self.pairs[name]
        with _opened(self.path.resolve()) as file:
            A, B = (file.get_tensor(key).float() for key in (pair.A, pair.B))
            alpha = float(file.get_tensor(pair.alpha)) if pair.alpha else self._alpha(name, len(A))
        largest = [float(one.abs().max()) for one in (A, B)]
        for key, most in zip((pair.A, pair.B), largest, strict=True):
            if not math.isfinite(most):
                raise ValueError(f"{self.path}: tensor {key!r} is not finite: the file is damaged")
        if not abs(alpha) * largest[0] * largest[1] < _LARGEST_SCALE:  # an alpha that is no number too
            said = f"{pair.alpha or _METADATA!r} = {alpha:g}, and numbers up to {largest[0]:g} in {pair.A!r}"
            raise ValueError(f"{self.path}: tensor {pair.B!r}: with {said} a weight would not be finite: the file is damaged")
        return A, B, alpha

    def _alpha(self, name: str, rank: int) -> float:
        """What the metadata say of this product, else its rank."""
        place = name.split(".")[0]
        said = {key.removeprefix(f"{place}."): value for key, value in self._said.items() if key.startswith(f"{place}.")} or self._said
        inner = name.removeprefix(f"{place}.")
        found = said.get("lora_alpha", rank)
        for key, value in (said.get("alpha_pattern") or {}).items():
            if inner == key.removeprefix("^") or (not key.startswith("^") and inner.endswith(f".{key}")):
                found = value
                break
        return float(found) * (math.sqrt(rank) if said.get("use_rslora") else 1.0)

    def _adapter_metadata(self) -> dict[str, Any]:
        """PEFT's configuration, checked. Its keys may begin with the place: "unet.lora_alpha"."""
        where = f"{self.path}: metadata {_METADATA!r}"
        try:
            said = json.loads(self.metadata.get(_METADATA, "{}"))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(said, dict):
            raise ValueError(f"{where} holds a {type(said).__name__}, expected an object")
        for key, value in said.items():
            last = key.rpartition(".")[2]
            if (last in _NOT_PLAIN and value) or (last == "init_lora_weights" and value in _OTHER_BASE):
                raise ValueError(f"{where}: {key} = {str(value)[:80]!r}: only plain LoRA, beside the base as it is, can be read")
            if last == "lora_alpha" and not _is_number(value):
                raise ValueError(f"{where}: {key} = {value!r} is no number")
            if last != "alpha_pattern" or value is None:
                continue
            if not isinstance(value, dict) or not all(_is_number(one) for one in value.values()):
                raise ValueError(f"{where}: {key} holds no modules and numbers")
            odd = next((one for one in value if set(one.removeprefix("^")) & set("\\^$*+?()[]{}|")), None)
            if odd is not None:
                raise ValueError(f"{where}: {key}: {odd[:80]!r} is a pattern, and only names of modules can be read")
        return said


def hash_of(path: str | Path) -> str:
    """16 hexadecimal digits of a file's bytes, or of a folder's LoRA: what a picture's record keeps."""
    with open(_found(Path(path)), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _found(path: Path) -> Path:
    """The file, or the one of that name in a folder."""
    if path.is_dir():
        pickle = next(iter(sorted(one for one in path.iterdir() if one.suffix in _PICKLES)), None)
        if not (path / FILE).is_file() and pickle is not None:
            raise ValueError(f"{pickle}: {_WAY_OUT}")
        path = path / FILE
    if not path.is_file():
        raise ValueError(f"{path} is missing: a LoRA is a .safetensors file, or a folder that holds {FILE}")
    return path


def _plausible(path: Path) -> None:
    """Before safetensors' own reader: pickles by name or by content, and headers beyond reason."""
    with open(path, "rb") as file:
        first = file.read(8)
    if path.suffix.lower() in _PICKLES or first[:4] in _PICKLED or not first:
        raise ValueError(f"{path} is empty, or a pickle; {_WAY_OUT}")
    header = struct.unpack("<Q", first.ljust(8, b"\0"))[0]
    if len(first) < 8 or header + 8 > path.stat().st_size:
        raise ValueError(f"{path} is not a whole safetensors file: its header of {header} bytes does not end in it")
    if header > _LARGEST_HEADER:
        raise ValueError(f"{path}: its header has {header} bytes; a LoRA's has at most {_LARGEST_HEADER}")


def _opened(path: Path) -> Any:
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def _modern(name: str, end: str) -> str:
    """Spellings before PEFT: `attn1.processor.to_q_lora` is `attn1.to_q`, and `self_attn.to_q_lora` is `self_attn.q_proj`."""
    if not end.startswith("_lora"):
        return name
    start, _, last = name.replace(".processor.", ".").rpartition(".")
    if start.endswith("self_attn"):
        return f"{start}.{last.removeprefix('to_')}_proj"
    return f"{start}.{'to_out.0' if last == 'to_out' else last}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- writing ------------------------------------------------------------------------------------------------------------


def write_peft(path: Path, pairs: Mapping[str, tuple[Tensor, Tensor]], rank: int, alpha: float) -> None:
    """pairs: product, "unet.mid_block...to_q", -> A and B. Whole or not at all."""
    tensors, said = {}, {}
    for name, (A, B) in pairs.items():
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
        place, _, inner = name.partition(".")
        said.setdefault(place, []).append(inner)
    metadata = {}
    for place, modules in said.items():
        config = {"peft_type": "LORA", "r": rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "target_modules": modules}
        metadata |= {f"{place}.{key}": value for key, value in config.items()}
    _write(path, tensors, {_METADATA: json.dumps(metadata, indent=2, sort_keys=True)})


def to_kohya(source: str | Path, path: str | Path, *, base: str = "", base_hash: str = "") -> int:
    """A file of the first dialect in the second; base: the name and fingerprint of what it was trained on. Returns how many products.

    Raises ValueError as `LoRAFile` does, for a file that is kohya's already, and for products that kohya has no name for.
    """
    file = LoRAFile(source)
    tensors: dict[str, Tensor] = {}
    ranks, alphas = set(), set()
    for name in file.pairs:
        spelled = kohya_name(name)
        if spelled is None:
            why = "has no name there, which U-Nets and CLIP text encoders of diffusers have"
            raise ValueError(f"{file.path}: {name!r} {'is in that dialect' if name.startswith('lora_') else why}")
        A, B, alpha = file.read(name)
        tensors |= {f"{spelled}.lora_down.weight": A, f"{spelled}.lora_up.weight": B, f"{spelled}.alpha": torch.tensor(alpha)}
        ranks.add(len(A))
        alphas.add(alpha)
    said = {"ss_network_module": "networks.lora", "ss_network_dim": _one(ranks), "ss_network_alpha": _one(alphas)}
    said |= {"ss_sd_model_name": base, "ss_sd_model_hash": base_hash}
    _write(Path(path), tensors, {key: value for key, value in said.items() if value})
    return len(file.pairs)


def kohya_name(name: str) -> str | None:
    """ "unet.down_blocks.0..." -> "lora_unet_down_blocks_0..."; None where there is none."""
    place, _, inner = name.partition(".")
    return f"{_KOHYA[place]}_{inner.replace('.', '_')}" if place in _KOHYA and inner else None


def _one(values: set[Any]) -> str:
    return f"{values.pop():g}" if len(values) == 1 else "Dynamic"


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    from safetensors.torch import save

    whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    write_atomically(path, _ordered(save(whole, metadata={"format": "pt", **metadata})))


def _ordered(data: bytes) -> bytes:
    """safetensors' own bytes, the metadata by name: its writer has no order for them, and one LoRA has one hash."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data[8 + size :]
