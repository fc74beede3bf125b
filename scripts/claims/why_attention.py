"""Claim 36: why attention? Text to pixels by one U-Net that hears its words in four ways.

    python scripts/claims/why_attention.py [--steps 2500] [--n 500] [--draw 50] [--quick]

silent    no words, no attention: what is right by luck, the floor        summary   the pooled text added to the time, no attention
self      the same, and positions ask positions                           words     and they ask the words too, as more keys (GLIDE)

Each way adds one thing to the one before it. "No attention" means none in the middle either. All else is the recipe `pixel-text`, but that
v is predicted (`chains.CLEAR`), on scenes alone: panel 1 is the embedded `emoji`, frozen; a tenth of the texts are dropped; drawn by the
strided chain with guidance 3, but for the silent one. `words` is that recipe's network. What the others lack in parameters they are given
as width (18 for 16, norms of 6 groups for 8) and as a wider code of the time: they have 0 to 4 % more. Width costs more time than attention
on 8 x 8 positions does.

exact     compositions that no training showed: how often the detector reads what was asked, with its colours and places, and nothing else
things    shape and colour alone: of all things that were asked for or seen, how many are both; it says more where whole scenes are rare

What this cannot say: how it would be after many steps, with attention on finer grids, or with a panel 1 whose words were not learnt
against pictures of such scenes. One training each: what another seed would give, no interval knows. Every arm sees the same pictures,
and draws from the same noise. Intervals are over drawn pictures (exact: Wilson; things: bootstrap). Writes why_attention.json.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import asked, chains, evidence
from scripts.claims.evidence import Row, percent
from triptych.recipe import Recipe
from triptych.recipes.diffusion import ddpm, pixel_text

NAME = Path(__file__).stem
MEASURES = {"exact": ("whole scenes", "整个场景"), "things": ("things", "物体")}
WIDE = {"width": 18, "head_width": 18, "norm_groups": 6}  # 16 wide: 8 groups of 2 channels, and the same two heads
BARE = {**WIDE, "text": "none", "attention": (), "middle_attention": False}


class Way(NamedTuple):
    """How words are heard: in English, in Chinese, the U-Net's settings."""

    en: str
    zh: str
    unet: dict[str, Any]


WAYS = {  # the arms, `text-NAME`; those of two_text_paths.py among them
    "silent": Way("silent", "不听文字", {**BARE, "pooled": False, "time_width": 112}),
    "summary": Way("summary, no attention", "摘要、无注意力", {**BARE, "time_width": 96}),
    "self": Way("summary and attention among positions", "摘要、位置间注意力", {**WIDE, "text": "none"}),
    "words": Way("summary and attention to words", "摘要、对词的注意力", {}),
    "words-alone": Way("attention to words alone", "只有对词的注意力", {"pooled": False, "time_width": 96}),
}
RUNGS = {  # of the ladder: (a way, the one before it) -> what is added
    ("summary", "silent"): ("a summary of the words helps", "文字摘要有用"),
    ("self", "summary"): ("attention among positions helps", "位置间的注意力有用"),
    ("words", "self"): ("attention to the words helps", "对词的注意力有用"),
}


def heard(way: str) -> Recipe:
    """The recipe `pixel-text` on scenes alone, whose U-Net hears words in this way, and predicts v."""
    return chains.changed(pixel_text(), process=chains.CLEAR, unet=WAYS[way].unet, data=ddpm().data)


def compare(ways: Sequence[str], args: Any, report: dict[str, Any], detector: Any) -> dict[str, Any]:
    """way -> exact, things, seconds a picture; and of real pictures of the same scenes."""
    real, prompts = asked.held_out(ddpm().data, args.n, args.seed)
    found: dict[str, Any] = {"ceiling": asked.judged(detector, real, prompts), "ways": {}}
    for way in ways:
        arm = chains.taught(f"text-{way}", heard(way), args, report)
        guidance = 1.0 if way == "silent" else 3.0
        how: dict[str, Any] = {"sampler": "ddpm", "steps": args.draw, "guidance": guidance, "threshold": "static"}
        pictures, seconds = chains.drawn(arm.model, arm.folder, args, prompts, **how)
        found["ways"][way] = one = {**asked.judged(detector, pictures, prompts), "seconds": seconds, "guidance": guidance}
        print(f"{way}: exact {percent(one['exact'])}, things {percent(one['things'])}, {arm.told['minutes']:.1f} minutes", flush=True)
    return found


def measure(args: Any, report: dict[str, Any], eyes: Any, detector: Any) -> dict[str, Any]:
    return compare([way for way in WAYS if way != "words-alone"], args, report, detector)


# --- what is said of it -------------------------------------------------------------------------------------------------------


def heads(ways: Mapping[str, Any], rungs: Mapping[tuple[str, str], tuple[str, str]]) -> tuple[str, str]:
    """Of each two ways: is the first better, by whole scenes and by things?"""
    told: tuple[list[str], list[str]] = [], []
    for (better, other), says in rungs.items():
        sides = [asked.VERDICTS[chains.apart(ways[better][what], ways[other][what])] for what in MEASURES]
        for language, (list_, words) in enumerate(zip(told, says, strict=True)):
            list_.append(f"{words}{(': ', '：')[language]}{' / '.join(side[language] for side in sides)}")
    return "; ".join(told[0]), "；".join(told[1])


def figures(found: Mapping[str, Any], report: Mapping[str, Any], names: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """Each way's accuracies and parameters; real pictures' too. No minutes: by the clock, they are those of whatever else ran."""
    every = {**found["ways"], "": found["ceiling"]}

    def listed(language: int, comma: str, stop: str) -> str:
        parts = []
        for way, one in every.items():
            arm = report["arms"].get(f"text-{way}")
            name = names[way][language] if way else ("real pictures", "真实图")[language]
            large = (" ({:,} parameters)", "（{:,} 个参数）")[language].format(arm["parameters"]) if arm else ""
            parts.append(f"{name} {comma.join(percent(one[what]) for what in MEASURES)}{large}")
        return stop.join(parts)

    return listed(0, ", ", "; "), listed(1, "、", "；")


def told(report: Mapping[str, Any]) -> tuple[str, str]:
    """What all arms have in common."""
    steps, batch, n = (f"{report[key]:,}" for key in ("steps", "batch", "n"))
    en, zh = chains.predicted(report)
    return (
        f"{steps} steps of {batch} pictures each{en}, one seed, parameters within 4 % of one another; {n} held-out compositions in English "
        f"and Chinese, the chain in {report['draw']} steps, guidance 3",
        f"每种训练 {steps} 步、每步 {batch} 张图{zh}，一个种子，参数量相差不超过 4 %；{n} 个中英文留出组合，链 {report['draw']} 步，引导 3",
    )


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    verdicts, took = heads(found["ways"], RUNGS), told(report)
    listed = figures(found, report, {name: (way.en, way.zh) for name, way in WAYS.items()})
    by = [" / ".join(words[language] for words in MEASURES.values()) for language in (0, 1)]
    return {
        "en": Row(
            "004", "it takes attention for words to be heard", evidence.shown_by(NAME, "en"),
            f"by {by[0]}, each beside the way before it: {verdicts[0]}. {took[0]} (silent: none). Whole scenes right, things right: "
            f"{listed[0]}. Attention at 8 x 8 alone",
        ),
        "zh": Row(
            "004", "要听懂文字，需要注意力", evidence.shown_by(NAME, "zh"),
            f"按{by[1]}，每种与其前一种相比：{verdicts[1]}。{took[1]}（不听文字者无引导）。整个场景全对的比例、物体相符的比例：{listed[1]}。"
            f"注意力只在 8 x 8 上",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(NAME, __doc__, measure, row, detector=True, draw=(50, 2, "steps of the chain"))
