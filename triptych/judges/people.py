"""People: which of two models' pictures do they prefer? DrawBench's protocol (Imagen, arXiv 2205.11487, section 4).

A rater sees two unlabelled pictures of one prompt and answers two questions: which is the better picture ("quality": A or B), and which
fits the words better ("words": A, same or B). One rater's answers about one pair of models are one JSON object:

    {"format": 1, "kind": "triptych answers", "rater": "r1", "models": {"A": "emoji", "B": "other"},
     "answers": [{"pair": "colors-3", "category": "colors", "quality": "A", "words": "same"}, ...]}

A and B are the MODELS, whatever side they were shown on: who reads the page's own file puts their names in, by its key. An answer may
be missing (null).

Each question is told twice. Over answers: the shares of A, same and B, with Wilson intervals, as if answers were independent. Over
pairs: who has the majority of a pair's answers wins it, and a sign test over the pairs that somebody won says whether one model won.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..contracts import Prompt
from .nearest import wilson

__all__ = ["People", "Config", "SIZES", "alpha", "sign_test"]

QUESTIONS = {"quality": ("A", "B"), "words": ("A", "same", "B")}


@dataclass(frozen=True, kw_only=True)
class Config:
    """level: of the sign test, below which there is one winner."""

    level: float = 0.05


SIZES = {"tiny": Config(), "default": Config()}


def sign_test(a: int, b: int) -> float:
    """Two-sided exact p of a and b wins, ties left out, if both were as likely."""
    n, few = a + b, min(a, b)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(few + 1)) / 2**n)


def alpha(units: Iterable[Sequence[str]]) -> float:
    """Krippendorff's alpha for names: 1 - observed / expected disagreement. `units`: the answers that each unit got, any number of them.

    1 = all agree, 0 = as by chance. nan where no unit has two answers; 1 where only one name was ever said.
    Source: Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), from the matrix of coincidences.
    """
    together: Counter[tuple[str, str]] = Counter()
    for unit in units:
        for i, one in enumerate(unit):
            for j, other in enumerate(unit):
                if i != j:
                    together[one, other] += 1 / (len(unit) - 1)  # type: ignore[assignment]
    of_name: Counter[str] = Counter()
    for (one, _), often in together.items():
        of_name[one] += often  # type: ignore[assignment]
    n = sum(of_name.values())
    if not n:
        return math.nan
    observed = sum(often for (one, other), often in together.items() if one != other)
    expected = (n * n - sum(often**2 for often in of_name.values())) / (n - 1)
    return 1 - observed / expected if expected else 1.0


class People:
    """`answers` takes each rater's JSON, in any order; a pair that a rater answered twice counts as answered last."""

    def __init__(self, config: Config, **decided: Any) -> None:
        self.config = config
        self.models: dict[str, str] = {}
        self._given: dict[tuple[str, str], Mapping[str, Any]] = {}  # (rater, pair) -> the answer

    def add(self, images_BCHW: Tensor, prompts: Sequence[Prompt], references: Tensor | None = None) -> None:
        raise ValueError("people answer on a page, not here: `triptych judge --people A B` makes it, and answers() takes what they said")

    def answers(self, source: str | Path | Mapping[str, Any]) -> None:
        """One rater's answers, as a JSON file or the object itself.

        Raises ValueError, naming the place, for anything that is not of that form, and for answers about other models than before.
        """
        where, said = "the answers", source
        if not isinstance(source, Mapping):
            where = str(source)
            try:
                said = json.loads(Path(source).read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as error:
                raise ValueError(f"{where} is no JSON file: {error}") from None
        if not isinstance(said, Mapping) or said.get("kind") != "triptych answers" or said.get("format") != 1:
            raise ValueError(f"{where}: no answers of people, which have kind 'triptych answers' and format 1")
        rater, models, given = said.get("rater"), said.get("models"), said.get("answers")
        if not isinstance(rater, str) or not isinstance(given, list) or not isinstance(models, Mapping) or models.keys() != {"A", "B"}:
            raise ValueError(f"{where} lacks the rater, the models A and B, or the list of answers")
        if self.models and self.models != dict(models):
            raise ValueError(f"{where} is about {dict(models)}, the answers before about {self.models}: judge each pair of models alone")
        for i, one in enumerate(given):
            if not isinstance(one, Mapping) or not isinstance(one.get("pair"), str) or not isinstance(one.get("category", ""), str):
                raise ValueError(f"{where}: answers[{i}] lacks its pair, or its category is no text")
            for question, allowed in QUESTIONS.items():
                if one.get(question) is not None and one[question] not in allowed:
                    raise ValueError(f"{where}: answers[{i}].{question} = {one[question]!r}; there are: {', '.join(allowed)}")
        self.models = dict(models)
        self._given |= {(rater, one["pair"]): one for one in given}

    def result(self) -> dict[str, float]:
        """For quality and words, over all and per category ("quality/colors"): A, same, B (shares of answers, `_low`, `_high`), answers;
        pairs_A, pairs_B, pairs_tied; p of the sign test; winner: 1 = A, -1 = B, 0 = none; alpha: raters' agreement, where a pair has two
        answers. And n: pairs answered, summed over raters; raters; pairs."""
        given = self._given
        out: dict[str, float] = {
            "n": len(given), "raters": len({rater for rater, _ in given}), "pairs": len({pair for _, pair in given}),
        }  # fmt: skip
        categories = sorted({one.get("category", "") for one in given.values()} - {""})
        for question in QUESTIONS:
            for category in (None, *categories):
                units: dict[str, list[str]] = {}
                for (_, pair), one in given.items():
                    if one.get(question) is not None and category in (None, one.get("category", "")):
                        units.setdefault(pair, []).append(one[question])
                if units:
                    head = question if category is None else f"{question}/{category}"
                    out |= {f"{head} {name}": value for name, value in self._told(question, units).items()}
        return out

    def _told(self, question: str, units: Mapping[str, Sequence[str]]) -> dict[str, float]:
        every = Counter(answer for unit in units.values() for answer in unit)
        n = sum(every.values())
        out: dict[str, float] = {"answers": n}
        for name in QUESTIONS[question]:
            low, high = wilson(every[name], n)
            out |= {name: every[name] / n, f"{name}_low": low, f"{name}_high": high}
        won = Counter(_majority(unit) for unit in units.values())
        a, b = won["A"], won["B"]
        p = sign_test(a, b)
        out |= {"pairs_A": a, "pairs_B": b, "pairs_tied": won[""], "p": p}
        out["winner"] = 0 if p >= self.config.level else 1 if a > b else -1
        agreement = alpha(units.values())
        return out if math.isnan(agreement) else out | {"alpha": agreement}


def _majority(unit: Sequence[str]) -> str:
    """Who was named oftener, "A" or "B"; "" where they tie. "same" speaks for neither."""
    many = Counter(unit)
    return "A" if many["A"] > many["B"] else "B" if many["B"] > many["A"] else ""
