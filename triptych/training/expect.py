"""Did a run reach what its recipe expects of it?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from triptych.catalog import nearest

__all__ = ["Expectation", "check", "names_of", "strange"]


@dataclass(frozen=True)
class Expectation:
    """One line of `Recipe.expect`. found: None where nothing of that name was measured; then there_are: what was."""

    measure: str
    bound: str
    found: float | None
    reached: bool
    there_are: tuple[str, ...] = ()

    def __str__(self) -> str:
        found = f"was not measured ({nearest(self.measure, self.there_are)})" if self.found is None else f"is {self.found:.4g}"
        return f"{self.measure} {found}, expected {self.bound}: {'reached' if self.reached else 'MISSED'}"


def check(expect: Mapping[str, str], measured: Mapping[str, float]) -> list[Expectation]:
    """Each bound ("<= 0.3", ">= 0.6") beside what was measured. What is not a number reaches nothing."""
    out, names = [], names_of(measured)
    for measure, bound in expect.items():
        found, limit = measured.get(measure), float(bound[2:])
        reached = found is not None and (found <= limit if bound.startswith("<=") else found >= limit)
        out.append(Expectation(measure, bound, found, reached, names if found is None else ()))
    return out


def strange(expect: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """A line for each expectation of which it can be foretold that nothing will measure it."""
    known = set(known)
    return [f"expect: nothing here measures {name!r}; {nearest(name, names_of(sorted(known)))}" for name in expect if name not in known]


def names_of(measured: Iterable[str]) -> tuple[str, ...]:
    """Each measure once, without the ends of its interval."""
    return tuple(name for name in dict.fromkeys(measured) if not name.endswith(("_low", "_high")))
