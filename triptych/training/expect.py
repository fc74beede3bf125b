"""Did a run reach what its recipe expects of it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Expectation", "check"]


@dataclass(frozen=True)
class Expectation:
    """One line of `Recipe.expect`. found: None where nothing of that name was measured."""

    measure: str
    bound: str
    found: float | None
    reached: bool

    def __str__(self) -> str:
        found = "was not measured" if self.found is None else f"is {self.found:.4g}"
        return f"{self.measure} {found}, expected {self.bound}: {'reached' if self.reached else 'MISSED'}"


def check(expect: Mapping[str, str], measured: Mapping[str, float]) -> list[Expectation]:
    """Each bound ("<= 0.3", ">= 0.6") beside what was measured. What is not a number reaches nothing."""
    out = []
    for measure, bound in expect.items():
        found, limit = measured.get(measure), float(bound[2:])
        reached = found is not None and (found <= limit if bound.startswith("<=") else found >= limit)
        out.append(Expectation(measure, bound, found, reached))
    return out
