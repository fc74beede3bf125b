"""Shipped recipes: one function, one run. The docstring holds the command, the hardware, the time and what was reached."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from ..catalog import nearest
from ..recipe import Recipe

__all__ = ["describe", "get", "names"]


def _functions() -> dict[str, Callable[[], Recipe]]:
    found: dict[str, Callable[[], Recipe]] = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        found |= {name.replace("_", "-"): getattr(loaded, name) for name in loaded.__all__}
    return found


def names() -> list[str]:
    """All shipped recipes, sorted."""
    return sorted(_functions())


def get(name: str) -> Recipe:
    """A shipped recipe by name. Raises ValueError with the nearest right name."""
    functions = _functions()
    if name not in functions:
        raise ValueError(f"no recipe {name!r}; {nearest(name, sorted(functions))}")
    return functions[name]()


def describe(name: str) -> str:
    """The docstring of a shipped recipe: command, hardware, time, result."""
    get(name)
    return (_functions()[name].__doc__ or "").strip()
