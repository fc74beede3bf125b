"""Shipped recipes: one function, one run. The docstring holds the command, the hardware, the time and what was reached."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

from ..catalog import nearest
from ..recipe import Recipe

__all__ = ["describe", "get", "group", "groups", "names"]


def _modules() -> dict[str, dict[str, Callable[[], Recipe]]]:
    found: dict[str, dict[str, Callable[[], Recipe]]] = {}
    for module in pkgutil.iter_modules(__path__):
        loaded = importlib.import_module(f"{__name__}.{module.name}")
        found[module.name] = {name.replace("_", "-"): getattr(loaded, name) for name in loaded.__all__}
    return found


def _functions() -> dict[str, Callable[[], Recipe]]:
    return {name: function for functions in _modules().values() for name, function in functions.items()}


def groups() -> dict[str, list[str]]:
    """Each file of recipes, as `triptych train --all` names it, and its recipes in the order of its `__all__`."""
    return {module: list(functions) for module, functions in _modules().items()}


def group(name: str) -> list[Recipe]:
    """The recipes of one file, in its order. Raises ValueError with the nearest right name."""
    modules = _modules()
    if name not in modules:
        raise ValueError(f"no group of recipes {name!r}; {nearest(name, sorted(modules))}")
    return [function() for function in modules[name].values()]


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
