"""`triptych show PROCESS --forward PICTURE`: ten frames, each straight from the picture; and a process by its name alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from triptych import catalog
from triptych.app.forward import frames

FORWARD = [name for name in catalog.names("processes") if hasattr(catalog.family("processes", name), "corrupt")]


@pytest.fixture
def photo(here: Path) -> Path:
    Image.linear_gradient("L").convert("RGB").resize((60, 40)).save(here / "photo.png")
    return here / "photo.png"


@pytest.mark.parametrize("name", FORWARD)
def test_ten_frames_from_picture_to_noise(name: str) -> None:
    process, x0 = catalog.build("processes", name), torch.linspace(-1, 1, 3 * 32 * 32).view(3, 32, 32)
    told, shown = frames(process, x0, 7)
    assert len(told) == 10 == len(shown) and told[0]["t"] == 0 and told[9]["t"] == 1
    signals = [one["signal"] for one in told]
    assert signals == sorted(signals, reverse=True) and signals[0] > 0.99 and signals[9] < 0.01
    assert (shown[0] - x0).abs().max() < 0.06 and not torch.equal(shown[9], x0)
    for one, x in zip(told, shown, strict=True):  # one noise in all of them
        size = max(1.0, (one["alpha"] ** 2 + one["sigma"] ** 2) ** 0.5)
        eps = (x * size - one["alpha"] * x0) / max(one["sigma"], 1e-6)
        last = (shown[9] * max(1.0, told[9]["sigma"]) - told[9]["alpha"] * x0) / told[9]["sigma"]
        inside = (x.abs() < 0.99) & (shown[9].abs() < 0.9)
        assert one["sigma"] < 0.02 or (eps - last)[inside].abs().max() < 0.05
    again, other = frames(process, x0, 7)[1], frames(process, x0, 8)[1]
    assert torch.equal(shown, again) and not torch.equal(shown, other)


def test_the_strip(run: Callable, photo: Path, model: Path) -> None:
    ran = run("show", "rectified_flow", "--forward", photo, "-o", "strip.png", "--json")
    assert ran.code == 0 and len(ran.json["frames"]) == 10 and ran.json["path"] == "strip.png"
    with Image.open("strip.png") as strip:
        assert strip.width > 10 * 128 and strip.height > 128
    assert run("show", "processes/rectified_flow", "--forward", photo).out == f"{photo.with_name('photo-forward.png')}\n"
    assert run("show", model, "--forward", photo, "-o", "of-a-model.png").code == 0
    assert Image.open("of-a-model.png").tobytes() == Image.open("strip.png").tobytes()
    assert run("show", "rectified_flow", "--forward", photo, "-o", "strip.png").code == 2  # nothing is overwritten


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["dit", "--forward", "photo.png"], "wants a process"),
        (["rectified_flo", "--forward", "photo.png"], "did you mean 'rectified_flow'"),
        (["rectified_flow", "--forward", "no.png"], "no.png"),
        (["rectified_flow", "--forward", "photo.png", "--rebuild", "photo.png"], "ask for one of them"),
        (["rectified_flow", "--forward", "photo.png", "--trace"], "ask for one of them"),
        (["rectified_flow", "-o", "x.png"], "--forward"),
    ],
)
def test_mistakes(run: Callable, photo: Path, argv: list[str], said: str) -> None:
    ran = run("show", *argv)
    assert ran.code == 2 and said in ran.err and len(ran.err.splitlines()) == 1


def test_a_process_by_its_name(run: Callable) -> None:
    for name in catalog.names("processes"):
        ran = run("show", f"processes/{name}", "--json")
        assert ran.code == 0 and ran.json["kind"] == "processes" and "arXiv" in ran.json["about"]
        assert ran.json["sampling"]["steps"]["help"] if "steps" in ran.json["sampling"] else ran.json["sampling"]
    assert "settings of drawing" in (text := run("show", "rectified_flow").out) and "how strongly the words pull" in text
