"""Claim 37: does each thing that made U-Nets better do so: AdaGN, more heads, attention at more scales, width? One at a time.

    python scripts/claims/bigger_and_better_unets.py [--steps 2500] [--n 500] [--widths 8 32] [--draw 50] [--quick]

The recipe `ddpm` (16 wide, the time added, attention at 8 x 8 by heads of 16 channels, two of them), but that v is predicted
(`chains.CLEAR`), with one thing changed:

adagn            blocks hear the time as scale and shift of their norm (ADM, arXiv 2105.05233), not as a sum
heads-1, -4      as many heads, where the recipe has two; width and parameters stay
attention-8-16   attention at 16 x 16 too
width-W          W wide; channels a head and a group stay, the time's code grows along

FD of pictures drawn by DDIM in --draw steps. Steps are equal, cost is not: minutes and parameters stand beside, and a wider network that
wins by steps may lose by minutes. One learning rate for all, the recipe's, which was not chosen for the others; one training each, and what
another seed would give no interval knows, so that small gains stay open. Intervals are bootstraps over drawn pictures.
Width 32 takes about three times as long as the recipe. Writes bigger_and_better_unets.json.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import asked, chains, evidence
from scripts.claims.evidence import Row, around
from triptych.recipes.diffusion import ddpm

NAME = Path(__file__).stem
WIDTH = 16  # the recipe's
PARTS: dict[str, dict[str, Any]] = {
    "ddpm": {}, "adagn": {"form": "scale_shift"}, "attention-8-16": {"attention": (1, 2)},
    "heads-1": {"head_width": 0, "num_heads": 1}, "heads-4": {"head_width": 0, "num_heads": 4},
}  # fmt: skip
GAINS = {  # (what should be better, than what) -> in words
    ("adagn", "ddpm"): ("AdaGN is better than adding", "AdaGN 优于相加"),
    ("heads-4", "heads-1"): ("four heads are better than one", "四个头优于一个"),
    ("attention-8-16", "ddpm"): ("attention at 16 x 16 too is better than at 8 x 8 alone", "加上 16 x 16 的注意力优于只在 8 x 8"),
}


def arms(widths: Sequence[int]) -> dict[str, dict[str, Any]]:
    """name -> the U-Net's settings."""
    wide = {_wide(w): {"width": w, "norm_groups": w // 2, "time_width": 4 * w} for w in widths if w != WIDTH}
    return {**PARTS, **wide}


def gains(widths: Sequence[int]) -> dict[tuple[str, str], tuple[str, str]]:
    """What is claimed of all arms: of widths, that each is better than the next smaller one."""
    pairs = itertools.pairwise(sorted({WIDTH, *widths}))
    return {**GAINS, **{(_wide(b), _wide(a)): (f"width {b} is better than {a}", f"宽 {b} 优于 {a}") for a, b in pairs}}


def _wide(width: int) -> str:
    return "ddpm" if width == WIDTH else f"width-{width}"


def measure(args: Any, report: dict[str, Any], eyes: Any) -> dict[str, Any]:
    ruler = chains.Ruler(eyes, ddpm().data, args)
    found: dict[str, Any] = {"floor": ruler.floor, "widths": list(args.widths), "FD": {}}
    for name, unet in arms(args.widths).items():
        arm = chains.taught(f"v-{name}", chains.changed(ddpm(), process=chains.CLEAR, unet=unet), args, report)
        fd = chains.swept(arm.model, arm.folder, args, ruler, (args.draw,), name, sampler="ddim")
        found["FD"][name] = fd[str(args.draw)]
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    fd, heads = found["FD"], ([], [])
    for (better, other), says in gains(found["widths"]).items():
        verdict = asked.VERDICTS[chains.apart(fd[other], fd[better])]
        for list_, words, colon, one in zip(heads, says, (": ", "："), verdict, strict=True):
            list_.append(f"{words}{colon}{one}")

    def listed(language: int, stop: str) -> str:
        words = ("{} {} ({:,} parameters, {:.1f} minutes)", "{} {}（{:,} 个参数，{:.1f} 分钟）")[language]
        told = report["arms"]
        known = {name: told[f"v-{name}"] for name in fd}
        return stop.join(words.format(name, around(fd[name], 1), one["parameters"], one["minutes"]) for name, one in known.items())

    took, floor, draw = chains.told(report), around(found["floor"], 1), report["draw"]
    return {
        "en": Row(
            "some", "AdaGN, more heads, attention at more scales and more width make better U-Nets", evidence.shown_by(NAME, "en"),
            f"{'; '.join(heads[0])}. {took[0]} (as many real ones: {floor}), DDIM in {draw} steps. "
            f"ddpm: {WIDTH} wide, added, two heads, 8 x 8. {listed(0, '; ')}. Equal steps, not equal minutes; one learning rate",
        ),
        "zh": Row(
            "部分", "AdaGN、更多的头、更多尺度的注意力、更大的宽度使 U-Net 更好", evidence.shown_by(NAME, "zh"),
            f"{'；'.join(heads[1])}。{took[1]}（同样多的真实图：{floor}），DDIM {draw} 步。ddpm：宽 {WIDTH}、相加、两个头、8 x 8。"
            f"{listed(1, '；')}。步数相同，用时不同；学习率相同",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row, widths=((8, 32), (8,), f"beside the recipe's {WIDTH}; multiples of 8"),
        draw=(50, 2, "steps of DDIM"),
    )  # fmt: skip
