"""People's answers: shares, the sign test, agreement by its published example, and files that are not of the form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from triptych.contracts import Prompt
from triptych.judges.people import Config, People, alpha, sign_test

MODELS = {"A": "emoji", "B": "other"}


def rater(name: str, answers: list[tuple[str, str, str | None, str | None]], models: dict[str, str] = MODELS) -> dict[str, Any]:
    rows = [{"pair": pair, "category": category, "quality": quality, "words": words} for pair, category, quality, words in answers]
    return {"format": 1, "kind": "triptych answers", "rater": name, "models": models, "answers": rows}


def test_alpha_of_krippendorffs_own_example() -> None:
    """Four observers, twelve units, some missing: 0.743 for names (Computing Krippendorff's Alpha-Reliability, 2011, C)."""
    table = ["123321412...", "1233224125.3", ".3332342251.", "123324412514"[:11] + "."]
    table[3] = "12332441251."
    units = [[row[i] for row in table if row[i] != "."] for i in range(12)]
    assert alpha(units) == pytest.approx(0.743, abs=5e-4)


def test_alpha_at_its_ends() -> None:
    assert alpha([["A", "A"], ["B", "B", "B"]]) == 1
    assert alpha([["A", "A"]] * 3) == 1, "one name alone"
    assert alpha([["A", "B"]] * 10) == pytest.approx(1 - 20 / (200 / 19))
    assert math.isnan(alpha([["A"], ["B"]]))


def test_sign_test_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for a, b in ((0, 0), (1, 0), (9, 1), (60, 40), (5, 5), (130, 70)):
        truth = stats.binomtest(a, a + b).pvalue if a + b else 1.0
        assert sign_test(a, b) == pytest.approx(truth, rel=1e-9)


def test_preference_winner_and_categories() -> None:
    judge = People(Config())
    pairs = [(f"p{i}", "colors" if i < 12 else "text") for i in range(20)]
    for name, flips in (("r1", 2), ("r2", 4), ("r3", 0)):
        judge.answers(rater(name, [(p, c, "B" if i < flips else "A", "same" if i % 2 else "A") for i, (p, c) in enumerate(pairs)]))
    found = judge.result()
    assert found["n"] == 60 and found["raters"] == 3 and found["pairs"] == 20
    assert found["quality A"] == pytest.approx(54 / 60) and found["quality A_low"] < 0.9 < found["quality A_high"]
    assert found["quality pairs_B"] == 2 and found["quality pairs_A"] == 18 and found["quality winner"] == 1
    assert found["quality p"] == pytest.approx(sign_test(18, 2))
    assert found["words same"] == 0.5 and found["words pairs_tied"] == 10 and found["words alpha"] == 1
    assert found["quality/colors answers"] == 36 and found["quality/text A"] == 1
    assert 0 < found["quality alpha"] < 1


def test_no_winner_where_few_answered_and_the_last_answer_counts() -> None:
    judge = People(Config())
    judge.answers(rater("r1", [("p0", "", "A", None), ("p1", "", "A", "B"), ("p0", "", "B", None)]))
    found = judge.result()
    assert found["quality winner"] == 0 and found["quality A"] == found["quality B"] == 0.5 and found["n"] == 2
    assert found["words answers"] == 1 and "quality alpha" not in found
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_files(tmp_path: Path) -> None:
    judge, path = People(Config()), tmp_path / "answers.json"
    path.write_text(json.dumps(rater("r1", [("p0", "x", "A", "same")])))
    judge.answers(path)
    assert judge.result()["quality A"] == 1
    for text, words in (
        ("{", "no JSON file"), ("[" * 100_000, "no JSON file"), ("[]", "no answers of people"), ('{"format": 2}', "no answers of people"),
        (json.dumps({**rater("r", []), "models": {"A": "x"}}), "lacks the rater"),
        (json.dumps({**rater("r", []), "answers": [3]}), r"answers\[0\] lacks its pair"),
        (json.dumps(rater("r", [("p0", "x", "left", None)])), r"answers\[0\].quality = 'left'; there are: A, B"),
        (json.dumps(rater("r", [("p0", "x", "A", None)], {"A": "emoji", "B": "third"})), "judge each pair of models alone"),
    ):  # fmt: skip
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            judge.answers(path)
    assert judge.result()["n"] == 1, "a file that was refused left nothing behind"
    with pytest.raises(ValueError, match="on a page"):
        judge.add(torch.zeros(1, 3, 4, 4), [Prompt()])
