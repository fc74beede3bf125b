"""A refactor must not move a loss curve. Where one is meant to move, `python -m tests.golden.make` writes them anew; say why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.golden.make import RECIPES, STEPS, curve, stored

TOLERANCE = 1e-4  # relative; other instruction sets and versions of torch stay below a third of it


@pytest.mark.parametrize("name", RECIPES)
def test_the_loss_curve_stays(name: str, tmp_path: Path) -> None:
    found = torch.tensor(curve(name, tmp_path / "run"), dtype=torch.float64)
    assert len(found) == STEPS and found.isfinite().all()
    away = ((found - stored()[name]).abs() / stored()[name].abs()).max().item()
    assert away <= TOLERANCE, f"{name} is off by {away:.1e}: {found.tolist()}"


def test_every_stored_curve_has_its_recipe() -> None:
    assert stored().keys() == RECIPES.keys()
