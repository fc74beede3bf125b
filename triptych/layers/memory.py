"""Memory of the machine: the most that was used, and one setting: what was freed is kept for the next tensor of that size.

glibc hands every block above 128 KiB back to the kernel when it is freed, and the next activation faults it in again page by
page. Training on two cores spent a third of its time there (measured: 280 -> 1,000 texts/s of a small text encoder).
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

__all__ = ["forget_peak", "keep_freed_memory", "peak"]

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed, up to 1 GiB. True if it was told; elsewhere than on Linux with glibc nothing happens."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False  # musl
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, 2**30))


def forget_peak() -> None:
    """The largest size so far is forgotten, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak() -> int | None:
    """Bytes, the most since `forget_peak`: of the accelerator where one is used, else of this process; None where nobody knows."""
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), None)
