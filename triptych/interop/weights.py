"""Files of a foreign folder: JSON, and safetensors whose shapes are known before a single number is read.

    weights = Weights(root, folder, "diffusion_pytorch_model")      # one file, a variant's, or the shards of an index
    plan = tensors_from_diffusers(weights.promised, config)         # shapes alone: nothing is read
    module = built(lambda: UNet(...))                               # on the meta device: nothing is allocated
    weights.fill(module, plan, torch.bfloat16)                      # tensor after tensor, straight into what it will be

A `Promise` is a tensor of the meta device that remembers how it is made of those in the file, so the functions that rename, cut and
join a state dict work on it unchanged. A tensor that is already what it will be stays mapped; others are made one at a time, and
what was mapped for them is let go. Nothing here follows a path out of the folder, and a pickle is never opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Promise", "Weights", "built", "inside", "read_bytes", "read_json"]

_LARGEST_JSON = 64 * 2**20
_LET_GO = 16 * 2**20  # bytes that may stay mapped of tensors that were copied
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32}
_PICKLES = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl")
_PICKLED = (b"PK\x03\x04", *(b"\x80" + bytes([version]) + rest for version in range(2, 6) for rest in (b"}q", b"\x8a\n", b"ct")))
_WAY_OUT = "a pickle can run code, and is not read: save the model anew where you trust it, pipe.save_pretrained(FOLDER), as safetensors"


# --- files --------------------------------------------------------------------------------------------------------------


def inside(root: Path, path: Path) -> Path:
    """`path`, if it leads nowhere else: a symbolic link may not leave `root`, but for the neighbour `blobs` of a hub's `snapshots`."""
    real, home = path.resolve(), root.resolve()
    hub = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not real.is_relative_to(home) and not real.is_relative_to(hub):
        raise ValueError(f"{path} leads out of {root}, to {real}: copy the file itself there")
    return path


def read_bytes(root: Path, path: Path) -> bytes:
    """A small file. Raises ValueError where it is missing, too large, or elsewhere."""
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    if inside(root, path).stat().st_size > _LARGEST_JSON:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; a description has at most {_LARGEST_JSON}")
    return path.read_bytes()


def read_json(root: Path, path: Path) -> dict[str, Any]:
    """An object. Raises ValueError as `read_bytes` does, and for what is no JSON."""
    try:
        value = json.loads(read_bytes(root, path).decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, expected an object")
    return value


# --- tensors that are not read yet --------------------------------------------------------------------------------------


class Promise(Tensor):
    """A tensor of the meta device, and how it is made: by `read()`, from no other promise; or by a function of them.

    sources: the names, in the file, of what it is made of.
    """

    make: Callable[[], Tensor]
    sources: tuple[str, ...]

    @staticmethod
    def of(shape: tuple[int, ...], dtype: torch.dtype, name: str, read: Callable[[], Tensor]) -> Promise:
        found = torch.empty(shape, dtype=dtype, device="meta").as_subclass(Promise)
        found.make, found.sources = read, (name,)
        return found

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.equal:  # a question about numbers
            return func(*_made(args), **_made(kwargs))
        with torch._C.DisableTorchFunctionSubclass():
            out = _joined(*args, **kwargs) if func is torch.cat else func(*args, **kwargs)
        if not isinstance(out, Tensor | list | tuple) or isinstance(out, torch.Size):  # a question about shapes, asked often
            return out
        sources = tuple(name for one in _promises((args, kwargs)) for name in one.sources)

        def promised(value: Any, pick: Callable[[Any], Any]) -> Any:
            if isinstance(value, Tensor):
                found = value.as_subclass(Promise)
                found.make, found.sources = lambda: pick(func(*_made(args), **_made(kwargs))), sources
                return found
            if isinstance(value, list | tuple) and any(isinstance(one, Tensor) for one in value):
                return [promised(one, lambda whole, i=i: pick(whole)[i]) for i, one in enumerate(value)]
            return value

        return promised(out, lambda whole: whole)


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """torch.cat of shapes: torch's own, of the meta device, imports its compiler first, for seconds and 80 MB."""
    first = list(tensors[0].shape)
    others = [[*one.shape[:dim], first[dim], *one.shape[dim + 1 :]] for one in tensors]
    if any(one != first for one in others):
        raise ValueError(f"tensors of shapes {[list(one.shape) for one in tensors]} are no one matrix")
    first[dim] = sum(one.shape[dim] for one in tensors)
    return torch.empty(first, dtype=tensors[0].dtype, device="meta")


def _made(value: Any) -> Any:
    if isinstance(value, Promise):
        return value.make()
    if isinstance(value, list | tuple):
        return type(value)(_made(one) for one in value)
    return {name: _made(one) for name, one in value.items()} if isinstance(value, dict) else value


def _promises(value: Any) -> Iterator[Promise]:
    if isinstance(value, Promise):
        yield value
    elif isinstance(value, list | tuple):
        for one in value:
            yield from _promises(one)
    elif isinstance(value, dict):
        yield from _promises(list(value.values()))


# --- the files of one network -------------------------------------------------------------------------------------------


class Weights:
    """The tensors of one network's files.

    root: the folder that nothing may lead out of.  stem: how the files' names begin.  promised: name -> Promise.
    Raises ValueError, naming the file, for pickles, files that are missing, broken or elsewhere, and indices that do not fit them.
    """

    def __init__(self, root: Path, folder: Path, stem: str) -> None:
        self.folder = folder
        self.promised: dict[str, Promise] = {}
        self._files: dict[str, Path] = {}
        self._kept: dict[Path, Any] = {}  # mapped for good
        self._passing: dict[Path, Any] = {}  # mapped until `_LET_GO` bytes of it were copied
        self._copied = 0
        plain, index = _found(root, folder, stem)
        where: dict[str, str] | None = None
        if index is not None:
            where = _weight_map(root, index)
            paths = [folder / name for name in sorted(set(where.values()))]
        else:
            paths = [plain]
        for path in paths:
            for name, shape, dtype in _header(root, path):
                if name in self._files or (where is not None and where.get(name) != path.name):
                    raise ValueError(f"{path} has a tensor {name!r} that {'the index does not place there' if where else 'occurs twice'}")
                self._files[name] = path
                self.promised[name] = Promise.of(shape, dtype, name, lambda name=name: self._read(name))
        for name in sorted((where or {}).keys() - self._files.keys()):
            raise ValueError(f"{folder / (where or {})[name]} lacks tensor {name!r}, which the index places there")

    def __str__(self) -> str:
        """How errors name it: the file, or the folder of several."""
        paths = set(self._files.values())
        return str(paths.pop()) if len(paths) == 1 else str(self.folder)

    def check(self, module: nn.Module, plan: Mapping[str, Tensor], unread: Callable[[str], bool] = lambda name: False) -> None:
        """Before anything is read: raises ValueError, naming file and tensor, where shapes are wrong, or tensors missing or left over.

        unread: tensors of the file that may be left over.
        """
        own = module.state_dict()
        for name, tensor in own.items():
            if name not in plan:
                raise ValueError(f"{self} has nothing for {name!r} {list(tensor.shape)}, which the configuration asks for")
            if plan[name].shape != tensor.shape:
                theirs = " and ".join(map(repr, getattr(plan[name], "sources", (name,))[:3]))
                there = f"{list(plan[name].shape)}, the configuration wants {list(tensor.shape)}"
                raise ValueError(f"{self}: tensor {theirs} makes {there}")
        used = {name for one in plan.values() if isinstance(one, Promise) for name in one.sources}
        surplus = sorted(name for name in self._files if name not in used and not unread(name)) + sorted(plan.keys() - own.keys())
        if surplus:
            raise ValueError(f"{self} has a tensor {surplus[0]!r} that the configuration does not know")

    def fill(self, module: nn.Module, plan: Mapping[str, Tensor], dtype: torch.dtype) -> None:
        """Give the module its tensors, floating ones in `dtype`. Raises ValueError for one that is not finite; see `check`."""
        done: dict[str, Tensor] = {}
        for name, promise in plan.items():
            if not isinstance(promise, Promise):
                done[name] = promise
                continue
            theirs = promise.sources[0]
            plain = promise.dtype is dtype and promise.shape == self.promised[theirs].shape and len(promise.sources) == 1
            tensor = self._tensor(theirs, self._kept) if plain else promise.make()
            if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float32)):
                raise ValueError(f"{self._files[theirs]}: tensor {theirs!r} is not finite: the file is damaged")
            if not plain:
                tensor = tensor.to(dtype, copy=len(promise.sources) == 1) if tensor.is_floating_point() else tensor.clone()
            done[name] = tensor.contiguous()
        self._passing.clear()
        module.load_state_dict(done, assign=True)
        module.eval().requires_grad_(False)

    def _read(self, name: str) -> Tensor:
        tensor = self._tensor(name, self._passing)
        self._copied += tensor.nbytes
        if self._copied > _LET_GO:  # its pages go when its tensors have gone
            self._copied = 0
            self._passing.clear()
        return tensor

    def _tensor(self, name: str, open_files: dict[Path, Any]) -> Tensor:
        from safetensors import safe_open

        path = self._files[name]
        if path not in open_files:
            open_files[path] = safe_open(path, framework="pt")
        return open_files[path].get_tensor(name)


def built(make: Callable[[], nn.Module]) -> Any:
    """A module whose tensors are shapes alone."""
    with torch.device("meta"), _Unfilled():
        return make()


class _Unfilled(TorchFunctionMode):
    """Inside, nobody draws first weights: there is no memory to hold them, and asking costs time."""

    SKIPPED = (nn.init.kaiming_uniform_, nn.init.xavier_uniform_, Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.SKIPPED:
            tensor = args[0] if args else (kwargs or {})["tensor"]
            if tensor.is_meta:
                return tensor
        return func(*args, **(kwargs or {}))


def _found(root: Path, folder: Path, stem: str) -> tuple[Path, Path | None]:
    """(the one file, or the index of several): as it is, else a variant of it."""
    names = [f"{stem}.safetensors", f"{stem}.fp16.safetensors", f"{stem}.bf16.safetensors"]
    indices = [f"{stem}.safetensors.index.json", f"{stem}.safetensors.index.fp16.json", f"{stem}.safetensors.index.bf16.json"]
    for name in names:
        if (folder / name).is_file():
            return folder / name, None
    for name in indices:
        if (folder / name).is_file():
            return folder / names[0], folder / name
    pickles = sorted(path for pattern in _PICKLES for path in folder.glob(pattern))
    raise ValueError(f"{pickles[0]}: {_WAY_OUT}" if pickles else f"{folder / names[0]} is missing")


def _weight_map(root: Path, index: Path) -> dict[str, str]:
    where = read_json(root, index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"{index} has no 'weight_map' of tensors and file names")
    for tensor, name in where.items():
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ValueError(f"{index}: tensor {tensor!r} in {name!r}: that is no safetensors file beside it")
    return where


def _header(root: Path, path: Path) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """(name, shape, dtype) of all tensors of a file whose length is as its header says."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise ValueError(f"{path} is missing")
    found = []
    try:
        with safe_open(inside(root, path), framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    known = ", ".join(_DTYPES)
                    raise ValueError(f"{path}: tensor {name!r} is of type {part.get_dtype()}: only {known} can be read")
                found.append((name, tuple(part.get_shape()), _DTYPES[part.get_dtype()]))
    except (SafetensorError, OSError, RuntimeError) as error:
        with open(path, "rb") as file:
            if file.read(4) in _PICKLED or path.stat().st_size == 0:
                raise ValueError(f"{path} is empty, or a pickle by another name; {_WAY_OUT}") from None
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from None
    return found
