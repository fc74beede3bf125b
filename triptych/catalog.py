"""Names to files: a family is one file, found by its name in the folder of its kind.

    catalog.names("generators")                  -> ["dit", ...]
    catalog.find("generators", "dit")            -> the module
    catalog.build("generators", "dit", config, latent=..., condition=...)

A family's module has `Config` (a frozen dataclass: what a person chooses), `SIZES` (named configurations, always with
"tiny") and `__all__`, whose FIRST name is the family's class; the class is called with the configuration and with what the
neighbours decide. `TASKS`, where there is one, names the ways in which the family alone can be trained.

Nothing that is read from a file ever names code: a name is looked up here, or it is an error with the nearest right name.
A family from outside the package enters from Python alone, through `register`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import pkgutil
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

__all__ = ["KINDS", "build", "configure", "family", "find", "name_of", "names", "nearest", "register"]

KINDS = ("text_encoders", "generators", "decoders", "vision", "processes", "judges")

_outside: dict[tuple[str, str], ModuleType] = {}  # the one registry: filled by `register`, from Python, never from a file


def register(kind: str, name: str, module: ModuleType) -> None:
    """Add somebody's own family. `module` needs `Config`, `SIZES` and `__all__`, as every file of the package has.

    Raises ValueError if the kind is unknown, the name is taken by the package, or the module lacks a part.
    """
    _known_kind(kind)
    if name in _inside(kind):
        raise ValueError(f"{kind} {name!r} is Triptych's own; register yours under another name")
    missing = [part for part in ("Config", "SIZES", "__all__") if not hasattr(module, part)]
    if missing or not getattr(module, "__all__", None):
        raise ValueError(f"family {name!r} lacks {', '.join(missing) or 'a class named first in __all__'}")
    _outside[kind, name] = module


def names(kind: str) -> list[str]:
    """All families of a kind, sorted."""
    _known_kind(kind)
    return sorted({*_inside(kind), *(name for k, name in _outside if k == kind)})


def find(kind: str, name: str) -> ModuleType:
    """The family's module. Raises ValueError with the nearest right name."""
    _known_kind(kind)
    if (kind, name) in _outside:
        return _outside[kind, name]
    if name not in _inside(kind):
        raise ValueError(f"no {kind} called {name!r}; {nearest(name, names(kind))}")
    return importlib.import_module(f"triptych.{kind}.{name}")


def family(kind: str, name: str) -> type:
    """The family's class."""
    module = find(kind, name)
    return getattr(module, module.__all__[0])


def name_of(kind: str, one: Any) -> str:
    """The name of an object's family. Raises ValueError for a class that is in no catalog."""
    for name in names(kind):
        if type(one) is family(kind, name):
            return name
    raise ValueError(f"{type(one).__name__} is no family of {kind}; add its module with triptych.register")


def configure(kind: str, name: str, size: str | None = None, overrides: Mapping[str, Any] | None = None) -> Any:
    """The family's `Config`: a named size, with single fields replaced. Lists become tuples where the field is a tuple.

    Raises ValueError for an unknown size or field, with the nearest right name.
    """
    module = find(kind, name)
    if size is None:
        base = module.Config()
    elif size in module.SIZES:
        base = module.SIZES[size]
    else:
        raise ValueError(f"{name} has no size {size!r}; {nearest(size, list(module.SIZES))}")
    overrides = dict(overrides or {})
    known = {f.name for f in dataclasses.fields(base)}
    for key in overrides:
        if key not in known:
            raise ValueError(f"{name}.Config has no field {key!r}; {nearest(key, sorted(known))}")
    if not overrides:
        return base
    from pydantic import TypeAdapter, ValidationError  # only a changed configuration needs checking

    values = {f.name: getattr(base, f.name) for f in dataclasses.fields(base)} | overrides
    try:
        return TypeAdapter(module.Config).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{name}.Config.{where} = {first['input']!r}: {first['msg']}") from None


def build(kind: str, name: str, config: Any = None, *, size: str | None = None, **neighbours: Any) -> Any:
    """The family's object. `config` is its Config or a mapping of fields; what the neighbours decide comes by keyword."""
    if config is None or isinstance(config, Mapping):
        config = configure(kind, name, size, config)
    return family(kind, name)(config, **neighbours)


def _inside(kind: str) -> list[str]:
    package = importlib.import_module(f"triptych.{kind}")
    found = [module.name for module in pkgutil.iter_modules(package.__path__)]
    return [name for name in found if not name.startswith("_") and name not in _PARTS]


_PARTS = {"noise", "solvers", "guidance", "drawing", "precondition", "likeness"}  # of processes/: what families are made of


def _known_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"no kind {kind!r}; {nearest(kind, list(KINDS))}")


def nearest(wrong: str, right: Collection[str]) -> str:
    """How every error about a name ends: the nearest right one, and all there are."""
    close = difflib.get_close_matches(wrong, right, n=1)
    return (f"did you mean {close[0]!r}? " if close else "") + f"there are: {', '.join(right) or 'none'}"
