"""What a run will cost, before it is run: `triptych train RECIPE --dry-run`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import torch

from triptych.contracts import Batch

if TYPE_CHECKING:
    from .run import Run

__all__ = ["estimate", "in_words"]


def estimate(run: Run) -> dict[str, Any]:
    """Parameters, FLOP and memory a step, pictures/s over three measured steps, hours and disk for the whole recipe.

    The run's weights are changed by the steps: it is of no use afterwards.
    """
    recipe = run.recipe
    batches = [run.batch(step) for step in range(5)]
    checkpoint_bytes, counter = run.checkpoint_bytes(), _counter()
    run.update(batches[0])  # compiles, compares, and sizes the optimizer's state
    with counter, run.uncompiled():
        run.update(batches[1])
    begun = time.perf_counter()
    for batch in batches[2:]:
        run.update(batch)
    seconds = (time.perf_counter() - begun) / 3
    trained = {id(p): p for phase in run.phases.values() for p in phase.parameters.values()}
    return {
        "parameters": sum(p.numel() for p in run.task.modules.parameters()),
        "trained": sum(p.numel() for p in trained.values()),
        "flop_per_step": counter.get_total_flops(),
        "memory_bytes": _memory(run.device),
        "batch_bytes": _bytes(batches[0]),
        "seconds_per_step": seconds,
        "pictures_per_s": recipe.batch / seconds,
        "hours": recipe.steps * seconds / 3600,
        "checkpoint_bytes": checkpoint_bytes,
        "disk_bytes": checkpoint_bytes * (recipe.keep + 1),
        "device": str(run.device),
        "precision": "bf16" if run.bf16 else "float32",
        "compiled": bool(run.compiled),
    }


def _counter() -> Any:
    """torch's own counter knows every fused attention but the CPU's."""
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: sdpa_backward_flop_count(g, q, k, v),
    }
    return FlopCounterMode(display=False, custom_mapping=attention)


def in_words(e: dict[str, Any]) -> list[str]:
    rate = e["flop_per_step"] / e["seconds_per_step"]
    return [
        f"parameters   {e['parameters']:,}, {e['trained']:,} of them trained",
        f"a step       {e['flop_per_step'] / 1e9:.1f} GFLOP in {e['seconds_per_step']:.3f} s ({rate / 1e9:.0f} GFLOP/s, {e['device']}, "
        f"{e['precision']}, {'compiled' if e['compiled'] else 'not compiled'})",
        f"memory       {e['memory_bytes'] / 2**20:.0f} MiB at most so far",
        f"speed        {e['pictures_per_s']:.1f} pictures/s, measured on three steps",
        f"time         {e['hours']:.2f} hours for the whole recipe, previews and validation aside",
        f"disk         {e['checkpoint_bytes'] / 2**20:.0f} MiB a checkpoint, {e['disk_bytes'] / 2**20:.0f} MiB at most",
    ]


def _memory(device: torch.device) -> int:
    """The largest so far: of the device, or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _bytes(batch: Batch) -> int:
    images = batch.images_BCHW
    return 0 if images is None else images.numel() * images.element_size()
