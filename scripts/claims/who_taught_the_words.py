"""Claim 43: does a frozen text encoder that texts taught beat one that captions taught? T5, T5 with the U-Net, CLIP's; BERT and GPT.

    python scripts/claims/who_taught_the_words.py [--steps 2500] [--words 600] [--n 500] [--draw 50] [--clip NAME|DIR] [--quick]
                                                                                            (80 minutes of one core, 70 training)

One U-Net, the recipe `pixel-text` on scenes of 32 x 32, predicting v (`chains.CLEAR`), hears five text encoders, all of two layers 112
wide:

    T5          learnt --words steps from texts alone (span corruption; names of emoji, sentences of scenes), then frozen
    joint T5    the same network with the same tokens, its weights new: it learns with the U-Net from the captions of its pictures
    CLIP        the text tower of a CLIP, which learnt from as many captions with their pictures, then frozen; --clip takes another
    BERT, GPT   as T5, by hidden words and by the next word

Equal: the U-Net, its steps, pictures, learning rate; the layers' number and width; texts heard before, but for the joint one, which hears
a caption for each picture. Not equal: parameters by a few thousand, CLIP's tokens (its own kind), minutes, which are told.

exact    how often the detector reads what was asked, and nothing else, of compositions that training never shows
FD       of the same pictures, from other real ones of such compositions
more     T5's exact less each other's, over the same prompts and seeds

The claim holds where T5 is above joint T5 and above CLIP. "Caption-taught" is both, for the survey says no more; BERT and GPT say whether
it is T5's matter. Text encoders and texts are small: what the web's texts would teach is NOT measured. Guidance 3, the chain. Intervals are
over drawn pictures (exact: Wilson; FD and more: bootstrap), of one training. Needs Debian's emoji font and CLDR.
Writes who_taught_the_words.json.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import asked, chains, evidence, words
from scripts.claims.evidence import Row, around, percent
from triptych.recipe import Recipe
from triptych.recipes.diffusion import ddpm

NAME = Path(__file__).stem
TEXTS, CAPTIONS = "T5", ("joint T5", "CLIP")  # who is to beat whom
GUIDANCE = 3.0
SAID = {  # of each, in English and Chinese
    "T5": ("T5, texts, frozen", "T5，文本，冻结"), "joint T5": ("T5, with the U-Net", "T5，与 U-Net 同学"),
    "CLIP": ("CLIP, pictures, frozen", "CLIP，图像，冻结"), "BERT": ("BERT, texts, frozen", "BERT，文本，冻结"),
    "GPT": ("GPT, texts, frozen", "GPT，文本，冻结"),
}  # fmt: skip


def arms(args: Any, report: dict[str, Any]) -> dict[str, tuple[str, Recipe]]:
    """name -> what the arm is called among the runs, and its recipe; text encoders are taught here."""
    t5 = words.taught(f"t5-{words.WIDTH}", words.t5(), args, report)
    joint = words.unlearnt(f"t5-{words.WIDTH}-unlearnt", words.t5(), t5, args)
    clip = args.clip or words.taught("clip-words-and-pictures", words.clip(), args, report)
    bert = words.taught("bert", words.bert(), args, report)
    gpt = words.taught("gpt", words.gpt(), args, report)
    return {
        "T5": (f"t5-{words.WIDTH}-to-16", words.listening(t5)),
        "joint T5": (f"t5-{words.WIDTH}-joint-to-16", words.listening(joint, trained=True)),
        "CLIP": (f"{Path(args.clip).name}-to-16" if args.clip else "clip-to-16", words.listening(clip)),
        "BERT": ("bert-to-16", words.listening(bert)),
        "GPT": ("gpt-to-16", words.listening(gpt)),
    }  # fmt: skip


def measure(args: Any, report: dict[str, Any], eyes: Any, detector: Any) -> dict[str, Any]:
    ruler = chains.Ruler(eyes, ddpm().data, args, "held_out")
    real_NCHW, prompts = asked.held_out(ddpm().data, args.n, args.seed + 2 * chains.AHEAD)
    found: dict[str, Any] = {
        "floor": ruler.floor, "ceiling": chains.share(chains.right(detector, real_NCHW, prompts)), "clip": args.clip or "taught here",
        "arms": {},
    }  # fmt: skip
    right: dict[str, np.ndarray] = {}
    for name, (called, recipe) in arms(args, report).items():
        arm = chains.taught(called, recipe, args, report)
        how = {"sampler": "ddpm", "steps": args.draw, "guidance": GUIDANCE, "threshold": "static"}
        pictures, seconds = chains.drawn(arm.model, arm.folder, args, prompts, **how)
        right[name] = chains.right(detector, pictures, prompts)
        told = {"FD": ruler(pictures), "exact": chains.share(right[name]), "seconds": seconds, "minutes": arm.told["minutes"]}
        found["arms"][name] = {**told, **words.sizes(arm.model.text_encoder)}
        print(f"{name}: exact {percent(told['exact'])}, FD {around(told['FD'])}, {told['minutes']:.1f} minutes", flush=True)
    found["more"] = {name: less(right[TEXTS], one) for name, one in right.items() if name != TEXTS}
    return found


def less(a_N: np.ndarray, b_N: np.ndarray) -> dict[str, float]:
    """value, low, high of a's share less b's: the same prompts, drawn again together."""
    apart_N = a_N - b_N
    return evidence.estimate(lambda i: float(apart_N[i].mean()), len(apart_N))


# --- what is said of it -----------------------------------------------------------------------------------------------------------


def head(sides: Mapping[str, int]) -> tuple[str, str]:
    """sides: whom T5 is to beat -> 1 where it does, -1 where it is beaten, 0 where neither is seen."""
    lost, won, open_ = ([name for name in CAPTIONS if sides[name] == side] for side in (-1, 1, 0))
    if lost:
        return f"does not hold, {' and '.join(lost)} better", f"不成立，{'与'.join(lost)} 更好"
    if not open_:
        return "holds", "成立"
    if won:
        return f"holds against {won[0]}, not decided against {open_[0]}", f"对 {won[0]} 成立，对 {open_[0]} 未能分出"
    return "not decided", "未能分出"


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    told, more = found["arms"], found["more"]
    nothing = {"low": 0.0, "high": 0.0}
    other = "" if found["clip"] == "taught here" else f" ({found['clip']})"
    by_objects = head({name: chains.apart(more[name], nothing) for name in CAPTIONS})
    by_distance = head({name: -chains.apart(told[TEXTS]["FD"], told[name]["FD"]) for name in CAPTIONS})

    def listed(language: int, stop: str) -> str:
        of = {name: f"{said[language]}{other if name == 'CLIP' else ''}" for name, said in SAID.items()}
        return stop.join(
            f"{of[name]} {percent(one['exact'])}, {around(one['FD'], 1)} ({one['inner'] / 1000:.0f} k)" for name, one in told.items()
        )

    def beyond(comma: str) -> str:
        return comma.join(f"{name} {percent(one)}" for name, one in more.items())

    took, before = chains.told(report), words.told(report)
    floor, ceiling = around(found["floor"], 1), percent(found["ceiling"])
    return {
        "en": Row(
            "001", "a frozen text encoder taught by texts beats one taught by captions", evidence.shown_by(NAME, "en"),
            f"by objects: {by_objects[0]}; by FD: {by_distance[0]}. Compositions never shown, guidance {GUIDANCE:g}, the chain in "
            f"{report['draw']} steps; {before[0]}; U-Nets {took[0]} (as many real ones: {floor}; read exactly: {ceiling}). Exact, FD "
            f"(parameters of the text encoder without its words): {listed(0, '; ')}. T5's exact less the "
            f"others': {beyond(', ')}",
        ),
        "zh": Row(
            "001", "由文本教出并冻结的文本编码器胜过由图注教出的", evidence.shown_by(NAME, "zh"),
            f"按物体：{by_objects[1]}；按 FD：{by_distance[1]}。从未展示的组合，引导 {GUIDANCE:g}，链 {report['draw']} 步；{before[1]}；"
            f"U-Net {took[1]}（同样多的真实图：{floor}；读对：{ceiling}）。全对率、FD（文本编码器不计词表的参数）："
            f"{listed(1, '；')}。T5 的全对率减去：{beyond('、')}",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row, detector=True, draw=(50, 2, "steps of the chain"),
        words=(600, 2, f"steps of {words.CAPTIONS} texts that each text encoder learns before"),
        clip=(None, None, "an embedded name or a folder with a CLIP's text tower; default: one of the others' size, taught here"),
    )  # fmt: skip
