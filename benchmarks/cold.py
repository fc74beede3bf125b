"""From the start of a process to the first picture on disk, and what importing costs: each time a new process."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.race import load
from benchmarks.setting import Setting
from benchmarks.worker import ROOT, Worker

__all__ = ["measure"]

PROMPT = "a red apple"


def commands(folder: Path, steps: int) -> dict[str, list[str]]:
    """What is started. Ours hears words and enlarges its picture; the peer's draws for a class number, and writes its latents."""
    python = [sys.executable]
    drawn = ["--steps", str(steps), "-o", str(folder / "pictures")]
    return {
        "triptych generate": [*python, "-m", "triptych.app.cli", "generate", PROMPT, *_model(folder), *drawn],
        "diffusers, first PNG": [*python, "-m", "benchmarks.peers.diffusers_cold", str(folder / "paper"), str(folder / "b.png"), drawn[1]],
        "import triptych": [*python, "-c", "import triptych"],
        "import torch": [*python, "-c", "import torch"],
        "import triptych.pipeline": [*python, "-c", "import triptych.pipeline"],
        "from diffusers import DiTTransformer2DModel": [*python, "-c", "from diffusers import DiTTransformer2DModel"],
    }


def _model(folder: Path) -> list[str]:
    """The embedded default; where there is none yet, a tiny model made for the purpose."""
    from triptych.checkpoint import embedded

    return [] if "emoji" in embedded() else ["--model", str(make_tiny(folder / "tiny"))]


def make_tiny(folder: Path) -> Path:
    from triptych import catalog
    from triptych.pipeline import Generator, TextToImage

    decoder = catalog.build("decoders", "identity", {}, size="tiny")
    words = catalog.build("text_encoders", "bilingual", {}, size="tiny")
    words.learn_vocabulary([PROMPT])
    network = catalog.build("generators", "dit", {}, size="tiny", latent=decoder.latent, condition=words.gives)
    TextToImage(words, Generator(network, catalog.build("processes", "rectified_flow", {}, size="tiny")), decoder).save(folder, name="tiny")
    return folder


def measure(setting: Setting, rounds: int, say: Any) -> dict[str, Any]:
    """Seconds of each command, in turn, `rounds` times; the first round, which fills the disk's cache, is told apart."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with Worker("diffusers", 1, folder, asdict(setting)) as worker:
            worker.ask("make", models=["paper"])
        every = commands(folder, setting.steps)
        seconds: dict[str, list[float]] = {what: [] for what in every}
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        say("measuring cold")
        for number in range(rounds + 1):
            for what, command in every.items():
                begun = time.perf_counter()
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
                seconds[what].append(time.perf_counter() - begun)
                if done.returncode:
                    raise RuntimeError(f"{what}: {json.dumps(done.stderr.strip()[-500:])}")
            say(f"cold: round {number} of {rounds}")
    rows = {}
    for what, all_seconds in seconds.items():
        first, *rest = all_seconds
        low, _, high = statistics.quantiles(rest, n=4) if len(rest) > 1 else (rest[0],) * 3
        rows[what] = {"first_s": first, "median_s": statistics.median(rest), "quartiles_s": [low, high], "rounds": len(rest)}
    model = "the embedded default" if not _is_tiny(every) else "a tiny model"
    return {"when": time.strftime("%Y-%m-%d"), "load": load(), "model": model, "commands": rows}


def _is_tiny(every: dict[str, list[str]]) -> bool:
    return "--model" in every["triptych generate"]
