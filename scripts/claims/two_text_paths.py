"""Claim 44: GLIDE tells its U-Net a text in two ways, its summary beside the time and its words as keys of attentions: are both needed?

    python scripts/claims/two_text_paths.py [--steps 2500] [--n 500] [--draw 50] [--quick]

time only        the pooled text is added to the time; positions ask positions alone
attention only   positions ask the words too; nothing is added to the time
both             as GLIDE, and the recipe `pixel-text`, have it (arXiv 2112.10741, section 2.3)

The first and the last are arms of why_attention.py, where all is said that they share, how parameters are held alike, and what is measured.
There as here panel 1 gives a summary that was learnt against pictures, which GLIDE's, the last token of a transformer trained along, was
not: a good summary leaves less to the other way. Attention on 8 x 8 positions alone, where GLIDE has it at three scales.

Intervals are over drawn pictures, of one training each. Writes two_text_paths.json.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import chains, evidence, why_attention
from scripts.claims.evidence import Row

NAME = Path(__file__).stem
PATHS = {"self": ("time only", "只加到时间"), "words-alone": ("attention only", "只经注意力"), "words": ("both", "两路")}
NEEDED = {
    ("words", "self"): ("the words as keys are needed beside the summary", "有了摘要仍需要词作为键"),
    ("words", "words-alone"): ("the summary is needed beside the words", "有了词作为键仍需要摘要"),
}
BETTER = {1: ("attention only is the better one", "只经注意力更好"), 0: ("", ""), -1: ("time only is the better one", "只加到时间更好")}


def measure(args: Any, report: dict[str, Any], eyes: Any, detector: Any) -> dict[str, Any]:
    return why_attention.compare(list(PATHS), args, report, detector)


# --- what is said of it -------------------------------------------------------------------------------------------------------


def alone(ways: Mapping[str, Any]) -> tuple[str, str]:
    """Which way is better by itself, where that is told: by whole scenes, or else by things."""
    sides = [chains.apart(ways["words-alone"][what], ways["self"][what]) for what in why_attention.MEASURES]
    en, zh = BETTER[next((side for side in sides if side), 0)]
    return (f"; of one alone, {en}", f"；单独一路时，{zh}") if en else ("", "")


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    verdicts, took, one = why_attention.heads(found["ways"], NEEDED), why_attention.told(report), alone(found["ways"])
    listed = why_attention.figures(found, report, PATHS)
    by = [" / ".join(words[language] for words in why_attention.MEASURES.values()) for language in (0, 1)]
    return {
        "en": Row(
            "001", "a text is to be heard in both of GLIDE's ways", evidence.shown_by(NAME, "en"),
            f"by {by[0]}: {verdicts[0]}{one[0]}. {took[0]}. Whole scenes right, things right: {listed[0]}. Attention at 8 x 8 alone",
        ),
        "zh": Row(
            "001", "GLIDE 的两路文本条件都需要", evidence.shown_by(NAME, "zh"),
            f"按{by[1]}：{verdicts[1]}{one[1]}。{took[1]}。整个场景全对的比例、物体相符的比例：{listed[1]}。注意力只在 8 x 8 上",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(NAME, __doc__, measure, row, detector=True, draw=(50, 2, "steps of the chain"))
