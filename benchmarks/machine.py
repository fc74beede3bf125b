"""What this machine can do at best, measured: products of large matrices, and moving memory."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from typing import Any

__all__ = ["ceilings", "facts"]


def facts() -> dict[str, Any]:
    """What it is, without a name."""
    import torch

    model = ""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            model = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "")
    return {
        "processor": model or platform.processor() or platform.machine(), "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__, "python": platform.python_version(),
        "system": platform.system(),
    }  # fmt: skip


def ceilings(size: int = 2048, repeats: int = 8) -> dict[str, float]:
    """GFLOP/s of the best square product in each precision, by any library that torch carries, and GB/s of a copy (read + written)."""
    import torch

    found: dict[str, float] = {}
    with torch.no_grad():
        for name, dtype in (("float32", torch.float32), ("bf16", torch.bfloat16)):
            a, b = torch.randn(2, size, size, dtype=dtype)
            ways: dict[str, Callable[[], Any]] = {"mm": lambda a=a, b=b: a @ b}
            if torch.backends.mkldnn.is_available():
                ways["onednn"] = lambda a=a, b=b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], "")
            for way, product in ways.items():
                found[f"{name} {way}"] = 2 * size**3 / _best(product, repeats) / 1e9
            found[name] = max(found[f"{name} {way}"] for way in ways)
        source = torch.zeros(2**26)
        target = torch.empty_like(source)
        found["copy GB/s"] = 2 * source.nbytes / _best(lambda: target.copy_(source), repeats) / 1e9
    return found


def _best(run: Callable[[], Any], repeats: int) -> float:
    run()
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
