"""Claim 31: does the straight way from x_T to x0 fail? A network that learns it, beside a chain.

    python scripts/claims/one_shot.py [--steps 2500] [--n 500] [--draw 50] [--quick]

A regressor from noise straight to x0 is a denoiser that is asked at t = 1 alone, where nothing is left of the picture. The trainer has it
as the shortest chain there is: T = 2, zero terminal SNR, target x0. Its last step is noise alone, N(0, 1) to the bit, and drawing in one
step asks only there. Its first step, beta = 1e-4, is a picture with hardly any noise, which must be handed back: half of all rows go
there, where there is next to nothing to learn, so that --steps teach the straight way as many times 32 pictures as the chain has 64.
That is the price of changing nothing but settings; what the straight way learns, the mean, it has after the first few hundred steps.

straight   one step of this network             chain       --draw steps of DDIM by the recipe `ddpm`, predicting v (`chains.CLEAR`)
first      one step of that chain: its own guess of x0 from noise alone

FD           from real scenes
variance     of a pixel over the drawn pictures, mean over pixels, as a share of real pictures' (0: every start gives the same)
edges        mean square difference of neighbouring pixels, as a share of real pictures' (0: blurred)
from mean    root mean square distance of the drawn pictures from the mean of real ones, of pixels in -1..1; and that of real pictures

Intervals are bootstraps over drawn pictures, one training each. Writes one_shot.json.
Shape legend: N pictures, C channels, H W grid, P numbers of a picture.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import chains, evidence
from scripts.claims.evidence import Row, around, percent
from triptych.recipes.diffusion import ddpm

NAME = Path(__file__).stem
STRAIGHT = {"num_timesteps": 2, "zero_terminal_snr": True, "target": "x0"}


def blurred(images_NCHW: Tensor, real_NCHW: Tensor, times: int) -> dict[str, Any]:
    """variance, edges, as shares of the real pictures', and from_mean: value, low, high over the drawn pictures."""
    drawn_NP, real_NP = (one.flatten(1).double().numpy() for one in (images_NCHW, real_NCHW))
    edges_N, real_edges = edges(images_NCHW), edges(real_NCHW).mean()
    spread, off_N = real_NP.var(0).mean(), np.square(drawn_NP - real_NP.mean(0)).mean(1)
    n = len(drawn_NP)
    return {
        "variance": evidence.estimate(lambda i: drawn_NP[i].var(0).mean() / spread, n, times=times),
        "edges": evidence.estimate(lambda i: edges_N[i].mean() / real_edges, n, times=times),
        "from_mean": evidence.estimate(lambda i: np.sqrt(off_N[i].mean()), n, times=times),
    }


def edges(images_NCHW: Tensor) -> np.ndarray:
    """[N]: the mean square difference of neighbouring pixels."""
    return sum(images_NCHW.diff(dim=dim).square().flatten(1).mean(1) for dim in (2, 3)).double().numpy()  # type: ignore[union-attr]


def measure(args: Any, report: dict[str, Any], eyes: Any) -> dict[str, Any]:
    ruler = chains.Ruler(eyes, ddpm().data, args)
    real_NCHW, _ = chains.real_pictures(ddpm().data, args.references, args.seed)
    other_NCHW, _ = chains.real_pictures(ddpm().data, args.n, args.seed + chains.AHEAD)
    times = 20 if args.quick else 300
    found: dict[str, Any] = {"real": {"FD": ruler.floor, **blurred(other_NCHW, real_NCHW, times)}}
    chain = chains.taught("v-ddpm", chains.changed(ddpm(), process=chains.CLEAR), args, report)
    straight = chains.taught("straight", chains.changed(ddpm(), process=STRAIGHT), args, report)
    for name, (arm, steps) in {"straight": (straight, 1), "chain": (chain, args.draw), "first": (chain, 1)}.items():
        pictures, seconds = chains.drawn(arm.model, arm.folder, args, sampler="ddim", steps=steps)
        found[name] = {"FD": ruler(pictures), **blurred(pictures, real_NCHW, times), "steps": steps, "seconds": seconds}
        print(f"{name}: FD {around(found[name]['FD'])}, variance {percent(found[name]['variance'])}", flush=True)
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    straight, chain = found["straight"], found["chain"]
    worse, dead = chains.apart(straight["FD"], chain["FD"]), chains.apart(straight["variance"], chain["variance"])
    head = ("holds", "成立") if (worse, dead) == (1, -1) else ("not decided", "未能分出") if worse == 0 else ("does not hold", "不成立")
    names = {"straight": ("straight", "直接"), "chain": ("chain", "链"), "first": ("the chain's own first guess", "链自己的第一步猜测"),
             "real": ("other real scenes", "另一批真实图")}  # fmt: skip

    def listed(language: int, comma: str, stop: str) -> str:
        return stop.join(
            f"{words[language]} " + comma.join([
                around(found[name]["FD"], 1), percent(found[name]["variance"]), percent(found[name]["edges"]),
                around(found[name]["from_mean"]),
            ])
            for name, words in names.items()
        )  # fmt: skip

    took, steps = chains.told(report), chain["steps"]
    return {
        "en": Row(
            "some", "the straight way from x_T to x_0 fails", evidence.shown_by(NAME, "en"),
            f"{head[0]}: a network that learns x0 from noise alone, beside {steps} steps of DDIM. {took[0]}. FD; variance over pictures "
            f"and contrast of neighbouring pixels as shares of the real ones'; distance from the mean picture: {listed(0, ', ', '; ')}. "
            f"Half of the straight network's rows stood at the clean end of its chain of two",
        ),
        "zh": Row(
            "部分", "从 x_T 直接到 x_0 行不通", evidence.shown_by(NAME, "zh"),
            f"{head[1]}：一个只从噪声学 x0 的网络，对照 {steps} 步 DDIM。{took[1]}。"
            f"FD；图与图之间的方差、相邻像素的反差（相对真实图的比例）；与平均图的距离：{listed(1, '、', '；')}。"
            f"直接网络的样本有一半位于其两步链的干净一端",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(NAME, __doc__, measure, row, draw=(50, 2, "steps of the chain that it is compared with"))
