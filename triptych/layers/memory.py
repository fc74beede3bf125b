"""One setting of the machine: memory that was freed is kept for the next tensor of that size.

glibc hands every block above 128 KiB back to the kernel when it is freed, and the next activation faults it in again page by
page. Training on two cores spent a third of its time there (measured: 280 -> 1,000 texts/s of a small text encoder).
"""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

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
