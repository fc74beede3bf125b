"""Claim 29: is predicting the noise the essence of DDPM? One network, five targets: x_{t-1}, its mean, x0, the noise, v.

    python scripts/claims/what_to_predict.py [--steps 2500] [--n 500] [--draw 50] [--quick]

At a given x_t each of the five is an affine function of x0, so that any of them draws in the same way; what differs is what the mean
square is taken of, and so which times weigh how much. "previous" asks for x_{t-1} itself, which no network can know: its best guess is
the mean. All else is the recipe `ddpm`, with that recipe's learning rate, which was chosen for the noise.

Object accuracy needs words to be asked for, and the recipe `ddpm` hears none: here its U-Net hears a class, and learns from the labelled
pictures of the recipe `adm`: one thing of ten colours and eight shapes, 80 classes. No guidance. Every arm sees the same pictures.

FD       drawn by DDIM (eta 0) in --draw steps, from real ones
exact    how often the detector reads the thing that was asked, with its colour, and nothing else; and of real pictures

Steps are equal, and so is what a step computes: minutes stand beside, they differ by what else the machine did. Intervals are over drawn
pictures (FD: bootstrap; accuracy: Wilson), of one training. Writes what_to_predict.json.
"""

from __future__ import annotations

import sys
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
    "previous": ("x_{t-1}", "x_{t-1}"), "mean": ("its mean", "其均值"), "x0": ("x0", "x0"), "eps": ("noise", "噪声"), "v": ("v", "v"),
}  # fmt: skip


def labelled(target: str) -> Recipe:
    """The recipe `ddpm` on pictures with a class, which is heard always."""
    neighbours = {**ddpm().neighbours, "text_encoder": adm().neighbours["text_encoder"]}
    return chains.changed(ddpm(), process={"target": target}, data=adm().data, neighbours=neighbours)


def measure(args: Any, report: dict[str, Any], eyes: Any, detector: Any) -> dict[str, Any]:
    spec = adm().data
    ruler = chains.Ruler(eyes, spec, args)
    real, prompts = chains.real_pictures(spec, args.n, args.seed + 2 * chains.AHEAD)
    found: dict[str, Any] = {"floor": ruler.floor, "ceiling": chains.exact(detector, real, prompts), "targets": {}}
    for target in TARGETS:
        arm = chains.taught(f"one-thing-{target}", labelled(target), args, report)
        pictures, seconds = chains.drawn(arm.model, arm.folder, args, prompts, sampler="ddim", steps=args.draw)
        told = {"FD": ruler(pictures), "exact": chains.exact(detector, pictures, prompts), "seconds": seconds}
        found["targets"][target] = told
        print(f"{target}: FD {around(told['FD'])}, exact {percent(told['exact'])}, {arm.told['minutes']:.1f} minutes", flush=True)
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def first(found: Mapping[str, Any], what: str, sign: int) -> tuple[str, bool]:
    """Which target is best (sign -1: lowest), and whether it is told apart from all others."""
    best = min(found, key=lambda name: -sign * found[name][what]["value"])
    return best, all(chains.apart(found[best][what], one[what]) == sign for name, one in found.items() if name != best)


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]["targets"]
    heads: dict[str, tuple[str, str]] = {}
    for what, sign in (("FD", -1), ("exact", 1)):
        best, alone = first(found, what, sign)
        beaten = chains.apart(found[best][what], found["eps"][what]) == sign
        en, zh = TARGETS[best]
        if best == "eps":
            first_only = ("the noise is first, but not told apart from all others", "噪声居首，但与其余未能全部区分")
            heads[what] = ("holds", "成立") if alone else first_only
        else:
            heads[what] = (f"does not hold, {en} is better", f"不成立，{zh} 更好") if beaten else ("not decided", "未能分出")

    def listed(comma: str, language: int) -> str:
        return comma.join(
            f"{TARGETS[name][language]} {around(one['FD'], 1)}, {percent(one['exact'])}" for name, one in found.items()
        )  # fmt: skip

    took, floor, ceiling = chains.told(report), around(report["found"]["floor"], 1), percent(report["found"]["ceiling"])
    draw = report["draw"]
    return {
        "en": Row(
            "002", "predicting the noise is the essence of DDPM", evidence.shown_by(NAME, "en"),
            f"by FD: {heads['FD'][0]}; by objects: {heads['exact'][0]}. One thing of 80 classes, no guidance, DDIM in {draw} steps; "
            f"{took[0]} (as many real ones: {floor}). FD, and the thing asked for drawn exactly (real pictures: {ceiling}), by target: "
            f"{listed('; ', 0)}. One learning rate for all, the noise's",
        ),
        "zh": Row(
            "002", "预测噪声是 DDPM 的精髓", evidence.shown_by(NAME, "zh"),
            f"按 FD：{heads['FD'][1]}；按物体：{heads['exact'][1]}。80 类中的一个物体，无引导，DDIM {draw} 步；{took[1]}"
            f"（同样多的真实图：{floor}）。各目标的 FD，以及所要物体画得全对的比例（真实图：{ceiling}）：{listed('；', 1)}。"
            f"学习率都相同，是为噪声选的",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(NAME, __doc__, measure, row, detector=True, draw=(50, 2, "steps of DDIM"))
