"""Load folders while an audit hook watches: `python watched.py GOOD HOSTILE LOG [--unpickle]`, in a process of its own.

GOOD is a model, HOSTILE a folder of models, and what was seen goes into LOG. Models beside GOOD named warm-* are loaded first,
unwatched, so that what loading imports is imported. --unpickle: a loader as ours must never be, which proves that the hook sees.
"""

from __future__ import annotations

import json
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

import triptych

MARK = "PWNED"
NEVER = (
    "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.startfile", "os.remove", "os.rename", "os.putenv",
    "socket.", "pickle.find_class", "ctypes.", "urllib.", "webbrowser.", "shutil.", "code.__new__",
)  # fmt: skip

events: list[list[str]] = []
hostile = ""


def hook(event: str, args: tuple[Any, ...]) -> None:
    """Python's own machinery compiles and runs annotations and modules of ours; what may never be is that THEIR text is run."""
    theirs = False
    if event == "compile":
        theirs = MARK in repr(args[0]) or hostile in str(args[1])
    elif event == "exec":
        code = args[0]
        theirs = hostile in code.co_filename or MARK in repr((code.co_consts, code.co_names))
    elif event == "import":
        theirs = MARK in str(args[0]) or hostile in str(args[1:3])
    elif event == "open":
        theirs = isinstance(args[1], str) and bool(set(args[1]) & set("wax+"))
    if theirs or event.startswith(NEVER):
        events.append([event, repr(args)[:300]])


def attempt(folder: Path, unpickle: bool) -> str:
    try:
        if unpickle:
            pickle.loads((folder / "bomb").read_bytes())
        triptych.load(folder).generate(["a"], steps=1)
        return "loaded"
    except ValueError:
        return "refused"


def main(good: str, folder: str, log: str, *unpickle: str) -> None:
    global hostile
    hostile = folder
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for one in [Path(good), *sorted(Path(good).parent.glob("warm-*"))]:
        attempt(one, False)
    report = open(log, "w")  # noqa: SIM115  opened before anybody watches what is opened for writing
    sys.addaudithook(hook)
    results = {one.name: attempt(one, bool(unpickle)) for one in sorted(Path(folder).iterdir())}
    json.dump({"events": list(events), "results": results}, report)
    report.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
