"""The one trainer. `train(recipe, out=...)` trains any task; the files here are its parts, from the loop down to a checkpoint."""

from __future__ import annotations

from .build import build_task
from .loop import Result, train
from .report import Report
from .run import Diverged
from .state import BadCheckpoint, DiskFull, Locked
from .tasks import GeneratorTask

__all__ = ["BadCheckpoint", "DiskFull", "Diverged", "GeneratorTask", "Locked", "Report", "Result", "build_task", "train"]
