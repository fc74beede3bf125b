"""Put the claims that were measured into docs/survey.md and docs/survey.zh.md, as their scripts say them of their JSON.

    python scripts/claims/fill_survey.py [--docs docs] [--check]

What stands between `<!-- claims -->` and `<!-- /claims -->` is written anew; where the markers are missing, they are put behind the
table of claims. A claim without a JSON in docs/results/claims is left out, and so is one of a --quick run. --check writes nothing, and
exits with 1 where something would change.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims.evidence import ROOT, line

SCRIPTS = (
    "zero_shot_or_probe", "right_or_wrong_captions", "mask_share", "window_attention", "no_suppression", "how_many_pictures",
    "vit_or_cnn", "panoptic", "words_or_labels", "pretraining", "detr_positions",
    "noise_at_once", "how_many_steps", "what_to_predict", "which_variance", "one_shot", "cosine_or_linear", "ddim",
    "skip_connections", "why_attention", "two_text_paths", "bigger_and_better_unets", "latent_or_pixel",
    "encoder_or_generator", "who_taught_the_words", "two_guidances", "memory_of_tokens", "larger_canvas", "guided_layouts",
)  # fmt: skip
FIRST, LAST = "<!-- claims -->", "<!-- /claims -->"
PAGES = {  # language -> (file, the section of the table, what is said first, the table's head)
    "en": ("survey.md", "## Claims shown", "Measured through the eyes, by `scripts/claims/`:", "| survey | claim | shown by | verdict |"),
    "zh": ("survey.zh.md", "## 已展示的论断", "透过眼睛测得，由 `scripts/claims/`：", "| 综述 | 论断 | 由何展示 | 结论 |"),
}


def reports(folder: Path) -> dict[str, dict[str, Any]]:
    """script -> its report, of those that are there; a quick one proves nothing."""
    found = {name: json.loads(path.read_text(encoding="utf-8")) for name in SCRIPTS if (path := folder / f"{name}.json").is_file()}
    return {name: report for name, report in found.items() if not report["quick"]}


def block(found: Mapping[str, Mapping[str, Any]], language: str) -> str:
    """Markers, and between them the table."""
    _, _, says, head = PAGES[language]
    rows = [line(importlib.import_module(f"scripts.claims.{name}").row(report)[language]) for name, report in found.items()]
    table = [says, "", head, "|---|---|---|---|", *rows, ""] if rows else []
    return "\n".join([FIRST, *table, LAST])


def filled(page: str, found: Mapping[str, Mapping[str, Any]], language: str) -> str:
    """The page with its block. Raises ValueError for a page without markers and without the table, or with one marker alone."""
    made = block(found, language)
    if FIRST in page or LAST in page:
        before, first, rest = page.partition(FIRST)
        _, last, after = rest.partition(LAST)
        if not (first and last) or FIRST in after + rest.partition(LAST)[0] or LAST in after:
            raise ValueError(f"{PAGES[language][0]} needs {FIRST} and then {LAST}, once each")
        return before + made + after
    section = PAGES[language][1]
    table = re.search(rf"^{re.escape(section)}\n.*?(^\|[^\n]*\n)+", page, flags=re.S | re.M)
    if not table or re.search(r"^## ", table.group().removeprefix(section), flags=re.M):
        raise ValueError(f"{PAGES[language][0]} has no table under {section!r}, behind which the claims would stand")
    return page[: table.end()] + "\n" + made + "\n" + page[table.end() :]


def fill(docs: Path, *, write: bool = True) -> list[Path]:
    """The pages that were changed, or would be."""
    found, changed = reports(docs / "results" / "claims"), []
    for language, (name, *_) in PAGES.items():
        path = docs / name
        page = path.read_text(encoding="utf-8")
        made = filled(page, found, language)
        if made != page:
            changed.append(path)
            if write:
                path.write_text(made, encoding="utf-8")
    return changed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    changed = fill(args.docs, write=not args.check)
    print("\n".join(f"{path}: {'would change' if args.check else 'written'}" for path in changed) or "nothing changes")
    sys.exit(bool(changed) and args.check)


if __name__ == "__main__":
    main()
