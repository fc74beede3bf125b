"""What the scripts of claims share: their options, intervals, what a report holds beside its figures, and a row of the survey.

Each script measures one claim into docs/results/claims/NAME.json and says by `row(report)` what stands in the table of docs/survey.md;
fill_survey.py puts it there. With --quick everything is tiny and proves nothing: it is written to out/claims, and no survey takes it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import triptych
from benchmarks.machine import facts
from benchmarks.race import load
from triptych.eyes import DETECTOR, EYES

__all__ = ["ROOT", "Row", "around", "begin", "estimate", "finish", "fit", "interval", "line", "options", "percent", "shown_by"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path("docs/results/claims")  # from ROOT
Statistic = Callable[..., float]


class Row(NamedTuple):
    """One claim, as it stands in the survey's table."""

    survey: str
    claim: str
    shown_by: str
    verdict: str


def line(row: Row) -> str:
    """Markdown. Raises ValueError for a cell that would break the table."""
    for cell in row:
        if "|" in cell or "\n" in cell:
            raise ValueError(f"a cell of a table holds neither | nor a new line: {cell!r}")
    return "| " + " | ".join(row) + " |"


def shown_by(name: str, language: str) -> str:
    return f"`scripts/claims/{name}.py` ([{'figures' if language == 'en' else '数据'}](results/claims/{name}.json))"


# --- a script's frame -------------------------------------------------------------------------------------------------------


def options(says: str | None) -> argparse.ArgumentParser:
    """--eyes, --detector, --seed, --out, --quick; a script adds its own."""
    parser = argparse.ArgumentParser(description=says, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eyes", default=EYES, help="a CLIP: an embedded name or a folder")
    parser.add_argument("--detector", default=DETECTOR, help="reads scenes: an embedded name or a folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help=f"folder of the JSON; default {RESULTS}, with --quick out/claims")
    parser.add_argument("--quick", action="store_true", help="tiny: does it run? Its figures mean nothing")
    return parser


def begin(args: argparse.Namespace, **eyes: Any) -> dict[str, Any]:
    """A report without figures yet. eyes: place -> loaded eyes, or other models, whose fingerprints are told."""
    told = {place: {"name": one.name, "fingerprint": _fingerprint(one)} for place, one in eyes.items()}
    machine = {**facts(), "threads": torch.get_num_threads(), "load_before": round(load(), 2)}
    return {
        "version": f"triptych {triptych.__version__}", "quick": args.quick, "seed": args.seed, "eyes": told, "machine": machine,
        "started": time.time(),
    }  # fmt: skip


def _fingerprint(model: Any) -> Any:
    return model.fingerprint if hasattr(model, "fingerprint") else model.fingerprints


def finish(
    report: dict[str, Any], args: argparse.Namespace, name: str, row: Callable[[Mapping[str, Any]], dict[str, Row]],
    chart: Callable[[Mapping[str, Any]], str] | None = None,
) -> None:  # fmt: skip
    """Write NAME.json, and NAME.svg where there is a chart of what was found; print the rows that the survey will take from it.

    Raises ValueError for a figure that is not finite.
    """
    report["minutes"] = round((time.time() - report.pop("started")) / 60, 2)
    folder = args.out or ROOT / ("out/claims" if args.quick else RESULTS)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"{path}, {report['minutes']} minutes")
    read = json.loads(text)
    if chart is not None:
        path.with_suffix(".svg").write_text(chart(read["found"]), encoding="utf-8")
    for one in row(read).values():
        print(line(one))


# --- intervals --------------------------------------------------------------------------------------------------------------


def estimate(statistic: Statistic, *sizes: int, times: int = 1000, seed: int = 0) -> dict[str, float]:
    """value, low, high: a statistic of index arrays, one of each size, and the 95 % percentile interval of its bootstrap.

    Several sizes are drawn independently: seeds AND pictures, shots AND pictures, so that the interval knows of both.
    """
    generator = np.random.default_rng(seed)
    found = [statistic(*(generator.integers(0, n, n) for n in sizes)) for _ in range(times)]
    low, high = interval(found)
    return {"value": float(statistic(*(np.arange(n) for n in sizes))), "low": low, "high": high}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The middle 95 %; what is not a number (a resample that says nothing) is left out; nan of nothing. inf may be among them."""
    known = np.sort([value for value in values if not np.isnan(value)])
    if not len(known):
        return float("nan"), float("nan")
    at = [round(share * (len(known) - 1)) for share in (0.025, 0.975)]  # members, not means of two: inf - inf would be none
    return float(known[at[0]]), float(known[at[1]])


def fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """(slope, intercept) of the straight line by least squares."""
    slope, intercept = np.polyfit(np.asarray(x, dtype=float), np.asarray(y, dtype=float), 1)
    return float(slope), float(intercept)


# --- in words ---------------------------------------------------------------------------------------------------------------


def around(one: Mapping[str, Any], digits: int = 2) -> str:
    """0.91 [0.89, 0.93]"""
    return f"{one['value']:.{digits}f} [{one['low']:.{digits}f}, {one['high']:.{digits}f}]"


def percent(one: Mapping[str, Any], digits: int = 1) -> str:
    """91.0 % [89.2, 93.1]"""
    value, low, high = (100 * one[key] for key in ("value", "low", "high"))
    return f"{value:.{digits}f} % [{low:.{digits}f}, {high:.{digits}f}]"
