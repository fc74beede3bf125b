"""What tests of the claims' scripts share: made-up figures, and what every row must be."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.claims import evidence

__all__ = ["FRAME", "ROOT", "check", "fd", "figure"]

ROOT = Path(__file__).resolve().parent.parent
FRAME = {
    "quick": False, "steps": 2500, "batch": 64, "n": 500, "references": 2000,
    "arms": {name: {"minutes": 7.5, "pictures": 160_000, "parameters": 200_000} for name in ("ddpm", "other")},
}  # fmt: skip
NOT = {"en": ("not hold", "not told", "not decided", "in FLOP"), "zh": ("不成立", "未能", "按 FLOP")}


def figure(value: float, low: float | None = None, high: float | None = None, **more: Any) -> dict[str, Any]:
    return {"value": value, "low": value - 0.02 if low is None else low, "high": value + 0.02 if high is None else high, **more}


def fd(value: float) -> dict[str, Any]:
    return figure(value, seconds=0.1, steps=50, precision=0.9, recall=0.9)


def check(name: str, report: Mapping[str, Any], holds: bool) -> None:
    """Rows of both languages, one line each, which say of figures that hold that they do, and of others not."""
    rows = importlib.import_module(f"scripts.claims.{name}").row(report)
    assert set(rows) == {"en", "zh"}
    for language, row in rows.items():
        text = evidence.line(row)
        assert text.count("|") == 5 and f"`scripts/claims/{name}.py`" in row.shown_by and (ROOT / f"scripts/claims/{name}.py").is_file()
        assert any(word in row.verdict for word in NOT[language]) != holds, row.verdict
        assert "nan" not in text and "None" not in text
    assert "\u4e00" <= rows["zh"].claim[-1] <= "\u9fff" and rows["en"].verdict.isascii()
