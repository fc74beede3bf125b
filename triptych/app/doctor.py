"""`triptych doctor`: what this machine has, and what to do about what it lacks."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .. import __version__
from . import say

__all__ = ["run"]

FONT = "NotoColorEmoji.ttf"
_FONTS = ("/usr/share/fonts/truetype/noto", "/usr/share/fonts/noto", "/usr/share/fonts/google-noto-emoji")
_CLDR = ("/usr/share/unicode/cldr/common/annotations",)
_ENOUGH_DISK = 2 * 2**30

Check = tuple[bool | None, str, str]  # (good, bad, or None: merely less), what was found, what to do


def run(as_json: bool) -> None:
    """Print every check; a bad one comes with its remedy. The exit code is 0: a diagnosis that was made is a success."""
    found: dict[str, dict[str, Any]] = {}
    for name, check in _CHECKS.items():
        try:
            good, what, remedy = check()
        except Exception as error:  # one check that breaks must not hide the others
            good, what, remedy = False, f"{type(error).__name__}: {' '.join(str(error).split())}", "see above"
        found[name] = {"ok": good, "found": what, **({"do": remedy} if good is not True and remedy else {})}
    marks = {True: "ok  ", None: "note", False: "BAD "}
    lines = [f"{marks[c['ok']]} {name:<10} {c['found']}" + (f"  ->  {c['do']}" if "do" in c else "") for name, c in found.items()]
    healthy = all(c["ok"] is not False for c in found.values())
    say.result({"version": __version__, "ok": healthy, "checks": found}, "\n".join([f"triptych {__version__}", *lines]), as_json)


def _python() -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return sys.version_info >= (3, 11), found, "install Python 3.11 or newer"


def _torch() -> Check:
    import torch

    good = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]) >= (2, 11)
    return good, f"torch {torch.__version__}", "pip install 'torch>=2.11'"


def _device() -> Check:
    import torch

    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        return True, f"cuda: {torch.cuda.get_device_name(0)}, {memory:.0f} GiB", ""
    if torch.backends.mps.is_available():
        return True, "mps", ""
    return True, "cpu; drawing takes a second, training hours", ""


def _threads() -> Check:
    import torch

    return True, f"{torch.get_num_threads()} torch threads, {os.cpu_count()} processors, {_memory():.1f} GiB of memory", ""


def _memory() -> float:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    except (AttributeError, ValueError, OSError):
        return 0.0


def _bf16() -> Check:
    import torch

    if torch.cuda.is_available():
        return True if torch.cuda.is_bf16_supported() else None, f"cuda bf16: {torch.cuda.is_bf16_supported()}", "use --precision float32"
    capable = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    fast = [name for name in ("avx512_bf16", "amx_bf16", "bf16") if capable.get(name)]
    return (True, f"in hardware ({', '.join(fast)})", "") if fast else (None, "not in hardware: bf16 works and is slower", "use float32")


def _compiler() -> Check:
    name = os.environ.get("CXX") or next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), None)
    remedy = "training runs without torch.compile, slower; install one: apt install g++"
    return (True, f"{name} ({shutil.which(name)})", "") if name and shutil.which(name) else (None, "no C++ compiler", remedy)


def _disk() -> Check:
    free = shutil.disk_usage(".").free
    return True if free > _ENOUGH_DISK else None, f"{free / 2**30:.1f} GiB free here", f"training wants {_ENOUGH_DISK / 2**30:.0f} GiB"


def _write() -> Check:
    with tempfile.NamedTemporaryFile(dir=".", prefix=".triptych-write-") as file:
        file.write(b"x" * 4096)
        file.flush()
        os.fsync(file.fileno())
    return True, f"can write in {Path.cwd()}", "go to a folder of your own"


def _font() -> Check:
    there = next((Path(folder) / FONT for folder in _FONTS if (Path(folder) / FONT).is_file()), None)
    remedy = "needed to train on `emoji` only: apt install fonts-noto-color-emoji"
    return (True, str(there), "") if there else (None, "no Noto Color Emoji", remedy)


def _cldr() -> Check:
    there = next((folder for folder in _CLDR if Path(folder).is_dir()), None)
    remedy = "needed to train on `emoji` only: apt install unicode-cldr-core"
    return (True, there, "") if there else (None, "no Unicode CLDR annotations", remedy)


def _weights() -> Check:
    from .. import checkpoint

    names, damaged, size = checkpoint.embedded(), [], 0
    for name in names:
        size += sum(path.stat().st_size for path in checkpoint.locate(name).rglob("*.safetensors"))  # a shared panel counts once
        for place in checkpoint.PLACES:
            try:
                if checkpoint.has_panel(name, place):
                    checkpoint.load_tensors(name, place)
            except ValueError:
                damaged.append(f"{name}/{place}")
    if damaged:
        return False, f"damaged: {', '.join(damaged)}", "install Triptych again"
    if not names:
        return None, "no embedded model", "give --model DIR, or install again"
    return True, f"{', '.join(names)}: {size / 1e6:.1f} MB, checksums right", ""


_CHECKS: dict[str, Callable[[], Check]] = {
    "python": _python, "torch": _torch, "device": _device, "threads": _threads, "bf16": _bf16, "compiler": _compiler, "disk": _disk,
    "write": _write, "font": _font, "cldr": _cldr, "weights": _weights,
}  # fmt: skip
