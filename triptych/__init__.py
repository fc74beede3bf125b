"""Triptych: text encoder -> generator -> decoder. Every text-to-image system in one frame, trained, drawn with and judged.

    import triptych
    model = triptych.load("emoji")
    images = model.generate(["a red apple"], seeds=[0])

Light to import: torch comes when the first name that needs it is used.
"""

from typing import TYPE_CHECKING, Any

__all__ = ["Prompt", "TextToImage", "__version__", "load", "register"]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from .catalog import register
    from .contracts import Prompt
    from .pipeline import TextToImage, load

_home = {"Prompt": "contracts", "TextToImage": "pipeline", "load": "pipeline", "register": "catalog"}


def __getattr__(name: str) -> Any:
    if name in _home:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_home[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
