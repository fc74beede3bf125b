"""Models by name, ready on their device: what the verbs begin with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .errors import blame

if TYPE_CHECKING:
    from ..eyes import Eyes
    from ..pipeline import TextToImage

__all__ = ["DEFAULT_MODEL", "load_model", "open_eyes", "pick_device"]

DEFAULT_MODEL = "emoji"


def pick_device(wanted: str) -> str:
    """auto: the first of cuda, mps, cpu that is here. Raises ValueError for one that is not."""
    import torch

    backends = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    there = [name for name, here in backends.items() if here]
    if wanted not in ("auto", *there):
        raise ValueError(f"--device {wanted} is not here; there are: auto, {', '.join(there)}")
    return there[0] if wanted == "auto" else wanted


def load_model(name: str, device: str = "auto", precision: str = "float32") -> TextToImage:
    """A model, ready on its device. Raises ValueError for a name or device that is not there, Failure for a damaged model."""
    from .. import checkpoint
    from ..layers.memory import keep_freed_memory
    from ..pipeline import load_generator

    keep_freed_memory()
    device = pick_device(device)
    if precision not in ("float32", "bf16"):
        raise ValueError(f"--precision {precision} is not known; there are: float32, bf16")
    checkpoint.locate(name)
    with blame("bad_checkpoint", f"model {name}"):
        return load_generator(name, device=device, precision=precision)


def open_eyes(name: str, device: str = "auto") -> Eyes:
    """Eyes by name or folder, on a device. Raises ValueError for what is not there, Failure for what is broken."""
    from .. import checkpoint
    from ..eyes import EYES, load_eyes

    checkpoint.locate(name)
    device = pick_device(device)
    with blame("bad_checkpoint", f"model {name}"):
        draws, sees = (checkpoint.has_panel(name, place) for place in ("generator", "vision"))
    if draws and not sees:
        raise ValueError(f"{name} draws pictures and has no eyes to look at them; give --model eyes, such as {EYES}")
    with blame("bad_checkpoint", f"model {name}"):
        return load_eyes(name, device=device)
