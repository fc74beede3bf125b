"""The program as a person has it: the command line in processes of its own, and the embedded model."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import triptych
from triptych import checkpoint
from triptych.pipeline import TextToImage

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def emoji() -> TextToImage:
    """The embedded model."""
    if not (checkpoint.WEIGHTS / "emoji").is_dir():
        pytest.skip("triptych/weights/emoji is not in this tree")
    return triptych.load("emoji")


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`triptych ARGS...` in a fresh folder, one thread; it must end with `code`."""

    def run(*args: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "triptych.app.cli", *args], cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=600,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        )  # fmt: skip
        said = f"{done.stdout[-2000:]}{done.stderr[-4000:]}"
        assert done.returncode == code, f"triptych {' '.join(args)}: exit code {done.returncode}\n{said}"
        return done

    return run
