"""Claim 29: is predicting the noise the essence of DDPM? One network, five targets: x_{t-1}, its mean (in two ways), x0, the noise, v.

    python scripts/claims/what_to_predict.py [--steps 2500] [--n 500] [--draw 50] [--whole 1000] [--chained 100] [--quick]

At a given x_t each of the five is an affine function of x0, so that any of them draws in the same way; what differs is what the mean
square is taken of, and so which times weigh how much. "previous" asks for x_{t-1} itself, which no network can know: its best guess is
the mean. The mean is learnt in two ways, by the plain square, as all the others are, and weighted as the bound weights it. All else is the
recipe `ddpm`, with that recipe's learning rate, which was chosen for the noise.

Object accuracy needs words to be asked for, and the recipe `ddpm` hears none: here its U-Net hears a class, and learns from the labelled
pictures of the recipe `adm`: one thing of ten colours and eight shapes, 80 classes. No guidance. Every arm sees the same pictures.

chain    --chained pictures in all 1,000 steps, as the paper drew: each step goes to the mean that the network says, or that follows from
         what it says. A mean is taken as it is said, as the authors' code does; a guess of x0, eps or v is held to the range of pixels
DDIM     --n pictures in --draw steps (eta 0). To jump, x0 must follow from what is said, and an error of a mean is enlarged on the way, at
         step 50 of the linear schedule 27 times, at step 500 326 times: a mean is no good guess to jump by
FD       from real pictures
exact    how often the detector reads the thing that was asked, with its colour, and nothing else; and of real pictures

Steps are equal, and so is what a step computes: minutes stand beside, they differ by what else the machine did. Intervals are over drawn
pictures (FD: bootstrap; accuracy: Wilson), of one training. Writes what_to_predict.json.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import chains, evidence
from scripts.claims.evidence import Row, around, percent
from triptych.recipe import Recipe
from triptych.recipes.diffusion import adm, ddpm

NAME = Path(__file__).stem
TARGETS = {  # what is said of each, in English and Chinese
    "previous": ("x_{t-1}", "x_{t-1}"), "mean": ("its mean", "其均值"),
    "mean by the bound": ("its mean by the bound", "其均值（变分界）"), "x0": ("x0", "x0"), "eps": ("noise", "噪声"), "v": ("v", "v"),
}  # fmt: skip
WAYS = {"chain": ("the chain", "链"), "ddim": ("DDIM", "DDIM")}


def labelled(target: str) -> Recipe:
    """The recipe `ddpm` on pictures with a class, which is heard always."""
    neighbours = {**ddpm().neighbours, "text_encoder": adm().neighbours["text_encoder"]}
    process = {"target": "mean", "loss": "vlb"} if target == "mean by the bound" else {"target": target}
    return chains.changed(ddpm(), process=process, data=adm().data, neighbours=neighbours)


def measure(args: Any, report: dict[str, Any], eyes: Any, detector: Any) -> dict[str, Any]:
    spec = adm().data
    ruler = chains.Ruler(eyes, spec, args)
    real, prompts = chains.real_pictures(spec, args.n, args.seed + 2 * chains.AHEAD)
    found: dict[str, Any] = {"floor": ruler.floor, "ceiling": chains.exact(detector, real, prompts), "targets": {}}
    for target in TARGETS:
        arm = chains.taught(f"one-thing-{target.replace(' ', '-')}", labelled(target), args, report)
        some = Namespace(**{**vars(args), "n": min(args.n, args.chained)})
        held = "static" if target in ("x0", "eps", "v") else "none"
        ways = {
            "chain": (some, {"sampler": "ddpm", "steps": args.whole, "threshold": held}),
            "ddim": (args, {"sampler": "ddim", "steps": args.draw}),
        }  # fmt: skip
        found["targets"][target] = told = {}
        for way, (asked, how) in ways.items():
            said = prompts[: asked.n]
            pictures, seconds = chains.drawn(arm.model, arm.folder, asked, said, **how)
            told[way] = one = {"FD": ruler(pictures), "exact": chains.exact(detector, pictures, said), "seconds": seconds}
            print(f"{target}, {way}: FD {around(one['FD'])}, exact {percent(one['exact'])}", flush=True)
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def first(found: Mapping[str, Any], what: str, sign: int) -> tuple[str, bool]:
    """Which target is best (sign -1: lowest), and whether it is told apart from all others."""
    best = min(found, key=lambda name: -sign * found[name][what]["value"])
    return best, all(chains.apart(found[best][what], one[what]) == sign for name, one in found.items() if name != best)


def heads(found: Mapping[str, Any], what: str, sign: int) -> tuple[str, str]:
    """The verdict by one measure of one way of drawing, in English and Chinese. found: target -> what was seen."""
    best, alone = first(found, what, sign)
    en, zh = TARGETS[best]
    if best == "eps":
        first_only = ("the noise is first, but not told apart from all others", "噪声居首，但与其余未能全部区分")
        return ("holds", "成立") if alone else first_only
    beaten = chains.apart(found[best][what], found["eps"][what]) == sign
    return (f"does not hold, {en} is better", f"不成立，{zh} 更好") if beaten else ("not decided", "未能分出")


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]["targets"]
    by = {way: {target: one[way] for target, one in found.items()} for way in WAYS}
    verdicts = {way: [heads(by[way], what, sign) for what, sign in (("FD", -1), ("exact", 1))] for way in WAYS}

    def listed(way: str, language: int) -> str:
        return ("; ", "；")[language].join(
            f"{TARGETS[name][language]} {around(one['FD'], 1)}, {percent(one['exact'])}" for name, one in by[way].items()
        )

    took, floor, ceiling = chains.told(report), around(report["found"]["floor"], 1), percent(report["found"]["ceiling"])
    draw, whole, few = report["draw"], report["whole"], report["chained"]
    return {
        "en": Row(
            "002", "predicting the noise is the essence of DDPM", evidence.shown_by(NAME, "en"),
            f"by the chain in {whole} steps: {verdicts['chain'][0][0]} (FD), {verdicts['chain'][1][0]} (objects); by DDIM in {draw}: "
            f"{verdicts['ddim'][0][0]} (FD), {verdicts['ddim'][1][0]} (objects). One thing of 80 classes, no guidance; "
            f"{took[0]} (as many real ones: {floor}). FD, and the thing asked for drawn exactly (real pictures: {ceiling}), by target: "
            f"chain, {few} pictures: {listed('chain', 0)}. DDIM: {listed('ddim', 0)}. One learning rate for all, the noise's",
        ),
        "zh": Row(
            "002", "预测噪声是 DDPM 的精髓", evidence.shown_by(NAME, "zh"),
            f"链 {whole} 步：{verdicts['chain'][0][1]}（FD），{verdicts['chain'][1][1]}（物体）；DDIM {draw} 步："
            f"{verdicts['ddim'][0][1]}（FD），{verdicts['ddim'][1][1]}（物体）。80 类中的一个物体，无引导；{took[1]}"
            f"（同样多的真实图：{floor}）。各目标的 FD，以及所要物体画得全对的比例（真实图：{ceiling}）："
            f"链，{few} 张图：{listed('chain', 1)}。DDIM：{listed('ddim', 1)}。学习率都相同，是为噪声选的",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row, detector=True, draw=(50, 2, "steps of DDIM"), whole=(1000, 3, "steps of the chain"),
        chained=(100, 4, "pictures drawn by it"),
    )  # fmt: skip
