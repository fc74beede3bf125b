"""`triptych show PROCESS --forward PICTURE`: how a process turns a picture into noise, ten frames from t = 0 to t = 1.

Every frame is corrupted directly from the picture by `process.corrupt(x0, t, eps)` with the same eps, as in training: no frame comes
from the one before it. Under each stand t and the signal's share alpha^2 / (alpha^2 + sigma^2). Where noise has more than unit size
(a variance that explodes) the frame is shown divided by sqrt(alpha^2 + sigma^2), as a network gets it.

Shape legend: B frames, C channels, H W of the picture.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import catalog, checkpoint
from ..contracts import Rng
from ..data.sheet import sheet
from . import say
from .errors import blame
from .look import free, named_picture, put

__all__ = ["draw", "frames"]

FRAMES, SIDE = 10, 128


def draw(name: str, picture: str, *, output: str | None = None, seed: int = 0, as_json: bool = False) -> None:
    """The strip of a process by name, or of the process of a model. Raises ValueError for one that corrupts nothing."""
    from PIL import Image, ImageOps

    from ..eyes import as_tensor

    target = None if output is None else free(output)
    process = _process(name)
    image = ImageOps.fit(named_picture(picture), (SIDE, SIDE), method=Image.Resampling.LANCZOS)
    told, shown_BCHW = frames(process, as_tensor(image)[0], seed)
    cells = [(f"t {one['t']:.2f}, signal {100 * one['signal']:.3g} %", [x]) for one, x in zip(told, shown_BCHW, strict=True)]
    target = put(sheet(cells, FRAMES, side=SIDE, lines=1), target, Path(picture), "forward")
    value = {"process": type(process).__name__, "picture": picture, "seed": seed, "frames": told, "path": str(target)}
    say.result(value, str(target), as_json)


def frames(process: Any, x0_CHW: Tensor, seed: int) -> tuple[list[dict[str, float]], Tensor]:
    """([{"t", "signal", "alpha", "sigma"}], pictures [B, C, H, W] to look at)."""
    t_B = torch.linspace(0, 1, FRAMES)
    eps_BCHW = Rng.of_seeds([seed]).normal("forward", x0_CHW.shape).expand(FRAMES, -1, -1, -1)
    x_BCHW = process.corrupt(x0_CHW.expand(FRAMES, -1, -1, -1), t_B, eps_BCHW)
    alpha_B, sigma_B = process.schedule.alpha(t_B).float(), process.schedule.sigma(t_B).float()
    size_B = (alpha_B.square() + sigma_B.square()).sqrt()
    named = zip(t_B.tolist(), (alpha_B / size_B).square().tolist(), alpha_B.tolist(), sigma_B.tolist(), strict=True)
    told = [{"t": t, "signal": signal, "alpha": alpha, "sigma": sigma} for t, signal, alpha, sigma in named]
    return told, (x_BCHW / size_B.clamp_min(1).view(-1, 1, 1, 1)).clamp(-1, 1)


def _process(name: str) -> Any:
    kind, slash, bare = name.rpartition("/")
    if (bare if slash and kind == "processes" else name) in catalog.names("processes"):
        process = catalog.build("processes", bare if kind == "processes" else name)
    elif name in checkpoint.embedded() or Path(name).is_dir():
        with blame("bad_checkpoint", f"model {name}"):
            process = checkpoint.load_process(name)
    else:
        known = [*catalog.names("processes"), *(m for m in checkpoint.embedded() if checkpoint.has_panel(m, "generator"))]
        raise ValueError(f"--forward wants a process, or a model, and {name!r} is none; {catalog.nearest(name, known)}")
    if not hasattr(process, "corrupt") or not hasattr(process, "schedule"):
        able = [one for one in catalog.names("processes") if hasattr(catalog.family("processes", one), "corrupt")]
        raise ValueError(f"{type(process).__name__} does not turn pictures into noise step by step; take one of {', '.join(able)}")
    return process
