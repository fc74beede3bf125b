"""The shapes of one prompt on its way to a picture, taken by forward hooks from the modules that really run."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..contracts import Condition, Prompt

if TYPE_CHECKING:
    from ..pipeline import TextToImage

__all__ = ["trace"]


def trace(model: TextToImage, prompt: str) -> list[dict[str, str]]:
    """[{"stage", "what", "shapes"}] in the order of running: top-level blocks only, one step, each block's first call."""
    stages = [{"stage": "words", "what": "prompt", "shapes": repr(prompt)}]
    panels = {"text encoder": model.text_encoder, "generator": model.generator.network, "decoder": model.decoder}
    hooks = [
        block.register_forward_hook(_recorder(stages, stage, f"{name}: {type(block).__name__}"), with_kwargs=True)
        for stage, panel in panels.items() if isinstance(panel, nn.Module) for name, block in _blocks(panel)
    ]  # fmt: skip
    try:
        with torch.inference_mode():
            cond = model.text_encoder.encode([Prompt(text=prompt)], encode_image=model.decoder.encode)
            stages += [{"stage": "condition", "what": name, "shapes": _shape(port)} for name, port in cond.ports().items()]
            few: dict[str, Any] = {"steps": 1} if hasattr(model.settings(), "steps") else {}
            z = model.latents([prompt], seeds=[0], **few)
            stages.append({"stage": "latents", "what": f"z ({model.decoder.latent.kind})", "shapes": _shape(z)})
            image = model.decoder.decode(z, cond)
            stages.append({"stage": "image", "what": "image_BCHW", "shapes": _shape(image)})
    finally:
        for hook in hooks:
            hook.remove()
    return _folded(stages)


def _blocks(panel: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in panel.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from ((f"{name}.{inner}", block) for inner, block in child.named_children())
        else:
            yield name, child


def _recorder(stages: list[dict[str, str]], stage: str, what: str) -> Callable[..., None]:
    heard: list[bool] = []

    def hear(_module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        if not heard:
            heard.append(True)
            given = ", ".join(filter(None, (_shape(value) for value in [*args, *kwargs.values()])))
            stages.append({"stage": stage, "what": what, "shapes": f"{given} -> {_shape(out)}"})

    return hear


def _shape(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Condition):
        return "Condition(" + ", ".join(value.ports()) + ")"
    if isinstance(value, (tuple, list)):
        return ", ".join(filter(None, (_shape(part) for part in value)))
    return ""


def _folded(stages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Neighbours of one list with equal shapes become one line: blocks.0-7."""
    folded: list[dict[str, str]] = []
    for stage in stages:
        here = re.fullmatch(r"(.+?)\.(\d+)(: .+)", stage["what"])
        last = re.fullmatch(r"(.+?)\.(\d+)(?:-\d+)?(: .+)", folded[-1]["what"]) if folded else None
        same = here and last and (here[1], here[3]) == (last[1], last[3])
        if same and (stage["stage"], stage["shapes"]) == (folded[-1]["stage"], folded[-1]["shapes"]):
            assert here and last
            folded[-1] = {**stage, "what": f"{here[1]}.{last[2]}-{here[2]}{here[3]}"}
        else:
            folded.append(stage)
    return folded
