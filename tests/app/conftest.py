"""One small real model, saved as a folder, and a way to run a command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

WORDS = ["a red apple", "a blue circle left of a red square", "smiling cat", "火箭", "三个绿色的三角形", "花痴的猫"]


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny families with random weights; nothing is left at zero, so that words, seed and steps all show in the picture."""
    from triptych import catalog
    from triptych.pipeline import Generator, TextToImage

    torch.manual_seed(0)
    encoder = catalog.build("text_encoders", "bilingual", size="tiny")
    encoder.learn_vocabulary(WORDS * 20)
    decoder = catalog.build("decoders", "identity", size="tiny")
    network = catalog.build("generators", "dit", size="tiny", latent=decoder.latent, condition=encoder.gives)
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *network.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    process = catalog.build("processes", "rectified_flow", size="tiny")
    folder = tmp_path_factory.mktemp("models") / "small"
    TextToImage(encoder.eval(), Generator(network.eval(), process), decoder, name="small", sampling={"steps": 4}).save(folder, name="small")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, which is also the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """A command line, run in this process in the empty folder."""
    from triptych.app.cli import main

    def run(*argv: str | Path) -> Ran:
        capsys.readouterr()
        code = main([str(a) for a in argv])
        return Ran(code, *capsys.readouterr())

    return run
