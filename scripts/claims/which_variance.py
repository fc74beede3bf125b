"""Claim 30: does a fixed variance suffice, and does learning it help where steps are few? Small, large, learnt; 10 to 1,000 steps.

    python scripts/claims/which_variance.py [--steps 2500] [--n 500] [--counts 10 25 50 250 1000] [--bits 16] [--quick]

small, large   the recipe `ddpm`, but that v is predicted (`chains.CLEAR`); its loss never sees the variance: one training, drawn with
               beta~ and with beta (of the strided chain)
learnt         the same with `variance = learned_range` and the hybrid loss (arXiv 2102.09672): twice the channels at the end, and of all
               else nothing; the schedule stays linear

FD       of the chain, strided to each number of steps, trailing
bits     a dimension: the bound of all 1,000 terms (`DDPM.log_likelihood`), on a few pictures that no arm learnt from

FD's intervals are bootstraps over drawn pictures, those of bits over pictures; one training each. Writes which_variance.json.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import chains, evidence
from scripts.claims.evidence import Row, around
from triptych.contracts import Prompt, Rng
from triptych.recipes.diffusion import ddpm

NAME = Path(__file__).stem
COUNTS = (10, 25, 50, 250, 1000)
FEW = 50  # steps that are few
VARIANCES = {"fixed_small": ("small", "小"), "fixed_large": ("large", "大"), "learned_range": ("learnt", "学习")}


@torch.no_grad()
def bits(model: Any, images_NCHW: torch.Tensor, seed: int) -> dict[str, Any]:
    """Bits a dimension: value, low, high; and of them the last step's, -log p(x0 | x_1)."""
    cond = model.text_encoder.encode([Prompt()] * len(images_NCHW))
    rng = Rng.of_seeds([seed + i for i in range(len(images_NCHW))])
    found = model.generator.process.log_likelihood(model.generator.network, model.decoder.encode(images_NCHW), cond, rng)
    bits_N, last_N = found["bits"].double().numpy(), found["terms"][:, 0].double().numpy()
    estimate = evidence.estimate(lambda i: bits_N[i].mean(), len(bits_N))
    return {**estimate, "n": len(bits_N), "last": float(last_N.mean()), "prior": float(found["prior"].mean())}


def measure(args: Any, report: dict[str, Any], eyes: Any) -> dict[str, Any]:
    ruler = chains.Ruler(eyes, ddpm().data, args)
    asked, _ = chains.real_pictures(ddpm().data, args.bits, args.seed + 2 * chains.AHEAD)
    learning = {**chains.CLEAR, "variance": "learned_range", "loss": "hybrid"}
    fixed = chains.taught("v-ddpm", chains.changed(ddpm(), process=chains.CLEAR), args, report)
    learnt = chains.taught("v-learnt-variance", chains.changed(ddpm(), process=learning, unet={"learn_sigma": True}), args, report)
    found: dict[str, Any] = {"floor": ruler.floor, "counts": list(args.counts), "variances": {}}
    for variance in VARIANCES:
        arm = learnt if variance == "learned_range" else fixed
        model = chains.drawn_by(arm.model, variance=variance)
        coded = bits(model, asked, args.seed)
        print(f"{variance}: {around(coded, 3)} bits", flush=True)
        fd = chains.swept(model, arm.folder, args, ruler, args.counts, variance, sampler="ddpm")
        found["variances"][variance] = {"bits": coded, "FD": fd}
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]["variances"]
    counts = report["found"]["counts"]
    learnt = found["learned_range"]

    def against(steps: int) -> int:
        """-1: learning is better than the better of the two fixed ones, 1: worse."""
        best = min((found[name]["FD"][str(steps)] for name in ("fixed_small", "fixed_large")), key=lambda one: one["value"])
        return chains.apart(learnt["FD"][str(steps)], best)

    many, few = against(max(counts)), [steps for steps in counts if steps <= FEW]
    suffices = {
        -1: ("does not hold, learning is better there too", "不成立，此时学习也更好"), 0: ("holds", "成立"),
        1: ("holds, learning is even worse there", "成立，此时学习反而更差"),
    }[many]  # fmt: skip
    helped, harmed = ([str(steps) for steps in few if against(steps) == side] for side in (-1, 1))
    helps = (f"holds at {', '.join(helped)} steps", f"在 {'、'.join(helped)} 步时成立") if helped else (
        ("does not hold", "不成立") if harmed else ("not decided", "未能分出")
    )  # fmt: skip
    sharper = all(chains.apart(learnt["bits"], found[name]["bits"]) == -1 for name in ("fixed_small", "fixed_large"))
    coded = ("learning codes shorter", "学习的编码更短") if sharper else ("the codes are not told apart, or longer", "编码未能区分，或更长")

    def listed(language: int, comma: str, stop: str) -> str:
        fd = {name: comma.join(around(one, 1) for one in found[name]["FD"].values()) for name in VARIANCES}
        return stop.join(f"{words[language]} {fd[name]}" for name, words in VARIANCES.items())

    def coding(language: int, stop: str) -> str:
        return stop.join(f"{words[language]} {around(found[name]['bits'])}" for name, words in VARIANCES.items())

    took, floor, n = chains.told(report), around(report["found"]["floor"], 1), learnt["bits"]["n"]
    steps = [str(one) for one in counts]
    return {
        "en": Row(
            "some", "a fixed variance suffices; learning it helps few steps", evidence.shown_by(NAME, "en"),
            f"with {max(counts):,} steps a fixed one suffices: {suffices[0]}. Learning helps few steps: {helps[0]}. {took[0]} (as "
            f"many real ones: {floor}). In {', '.join(steps)} steps: {listed(0, ', ', '; ')}. "
            f"Bits a dimension of {n} pictures: {coding(0, '; ')}"
            f": {coded[0]}",
        ),
        "zh": Row(
            "部分", "固定方差就够，学习方差有助于少步采样", evidence.shown_by(NAME, "zh"),
            f"{max(counts)} 步时固定方差就够：{suffices[1]}。学习有助于少步：{helps[1]}。{took[1]}（同样多的真实图：{floor}）。"
            f"{'、'.join(steps)} 步的 FD：{listed(1, '、', '；')}。{n} 张图每维的比特数：{coding(1, '；')}：{coded[1]}",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row, counts=(COUNTS, (2, 3), "numbers of steps in which pictures are drawn"),
        bits=(16, 2, "pictures whose likelihood is bounded, in 1,000 steps each"),
    )  # fmt: skip
