"""Claim 27: is x_t drawn at once the same as t small steps, and what is left of a picture at the end of a chain of T? No training.

    python scripts/claims/noise_at_once.py [--samples 100000] [--pictures 1000] [--quick]                    (half a minute, one core)

same     a chain x <- sqrt(1 - beta_t) x + sqrt(beta_t) noise, step by step, from four values of a pixel, and `process.corrupt`, at five
         times of T = 300 and of T = 1,000. What both should be is N(sqrt(abar_t) x0, 1 - abar_t): their first four moments, standardised
         by it, in standard errors away from a normal's and from each other's. The bound is that of as many comparisons, 95 % (Bonferroni).
left     at the last step of several chains: alpha-bar; the KL from N(0, 1), which is where drawing starts, in bits a number, over real
         scenes; and how often the picture behind x_T is told among all of them, by the likeliest (chance: 1 / pictures).

Writes noise_at_once.json.
Shape legend: V values, N samples or pictures, C channels, H W grid.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import evidence
from scripts.claims.chains import real_pictures
from scripts.claims.evidence import Row, percent
from triptych.processes import ddpm, noise
from triptych.recipes.diffusion import ddpm as recipe

NAME = Path(__file__).stem
VALUES = (-1.0, -0.25, 0.5, 1.0)
LENGTHS = (300, 1000)
MOMENTS = {1: (0.0, 1.0), 2: (1.0, 2.0), 3: (0.0, 15.0), 4: (3.0, 96.0)}  # of a unit normal: E y^k, and var y^k
CHAINS: dict[str, dict[str, Any]] = {
    "T = 50": {"num_timesteps": 50}, "T = 300": {"num_timesteps": 300}, "T = 1000": {},
    "T = 50, rescaled": {"num_timesteps": 50, "rescale": True}, "T = 300, rescaled": {"num_timesteps": 300, "rescale": True},
    "T = 1000, cosine": {"beta_schedule": "cosine"},
    "T = 1000, Stable Diffusion": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
}  # fmt: skip


# --- at once, and step by step ------------------------------------------------------------------------------------------------


def stepped(betas_T: Tensor, x0_V: Tensor, n: int, at: Sequence[int], generator: torch.Generator) -> dict[int, Tensor]:
    """The chain itself: n samples of each value after so many steps, [V, n]."""
    x_VN, found = x0_V[:, None].repeat(1, n), {}
    for step, beta in enumerate(betas_T.tolist(), 1):
        x_VN.mul_(math.sqrt(1 - beta)).add_(torch.randn(x_VN.shape, generator=generator), alpha=math.sqrt(beta))
        if step in at:
            found[step] = x_VN.clone()
    return found


def deviations(x_VN: Tensor, mean_V1: Tensor, std: float) -> Tensor:
    """How many standard errors each of four moments is away from those of N(mean, std^2): [V, 4]."""
    y_VN = (x_VN.double() - mean_V1) / std
    return torch.stack([((y_VN**k).mean(1) - m) * math.sqrt(x_VN.shape[1] / v) for k, (m, v) in MOMENTS.items()], dim=1)


def same(n: int, seed: int) -> dict[str, Any]:
    generator, x0_V = torch.Generator().manual_seed(seed), torch.tensor(VALUES)
    out: dict[str, Any] = {"samples": n, "values": VALUES, "chains": {}}
    worst = dict.fromkeys(("chain", "at once", "between"), 0.0)
    for T in LENGTHS:
        process = ddpm.DDPM(ddpm.Config(num_timesteps=T))
        at = (1, T // 10, T // 3, 2 * T // 3, T)
        betas_T = noise.betas("linear", T, process.config.beta_start, process.config.beta_end)
        for step, chain_VN in stepped(betas_T, x0_V, n, at, generator).items():
            eps_VN = torch.randn(chain_VN.shape, generator=generator)
            once_VN = process.corrupt(x0_V[:, None].expand_as(eps_VN), torch.full((len(x0_V),), step / T), eps_VN)
            bar = float(torch.cumprod(1 - betas_T, 0)[step - 1])
            mean_V1, std = math.sqrt(bar) * x0_V[:, None].double(), math.sqrt(1 - bar)
            told = {"chain": deviations(chain_VN, mean_V1, std), "at once": deviations(once_VN, mean_V1, std)}
            told["between"] = (told["chain"] - told["at once"]) / math.sqrt(2)
            out["chains"].setdefault(str(T), {})[str(step)] = {"alpha_bar": bar, **{what: z.tolist() for what, z in told.items()}}
            worst = {what: max(before, float(told[what].abs().max())) for what, before in worst.items()}
    out["comparisons"] = count = len(VALUES) * len(MOMENTS) * sum(map(len, out["chains"].values()))
    return {**out, "largest": worst, "bound": statistics.NormalDist().inv_cdf(1 - 0.05 / (2 * count))}


# --- what is left -------------------------------------------------------------------------------------------------------------


def terminal(process: ddpm.DDPM, images_NCHW: Tensor, seed: int) -> dict[str, Any]:
    """Of the last step: alpha-bar, KL from N(0, 1) in bits a number, and the share of pictures told from their x_T."""
    one = torch.ones(len(images_NCHW))
    alpha, var = float(process.schedule.alpha(one[0].double())), float(process.schedule.sigma(one[0].double())) ** 2
    kl_N = (0.5 * ((alpha * images_NCHW) ** 2 + var - 1 - math.log(var)).flatten(1).mean(1) / math.log(2)).numpy()
    eps = torch.randn(images_NCHW.shape, generator=torch.Generator().manual_seed(seed))
    x_NX, clean_NX = process.corrupt(images_NCHW, one, eps).flatten(1), alpha * images_NCHW.flatten(1)
    likely_NN = x_NX @ clean_NX.T - clean_NX.square().sum(1) / 2  # but for what is the same for all
    right_N = (likely_NN.argmax(1) == torch.arange(len(x_NX))).double().numpy()
    n = len(right_N)
    return {
        "alpha_bar": alpha**2, "amplitude": alpha, "KL": evidence.estimate(lambda i: kl_N[i].mean(), n),
        "matched": evidence.estimate(lambda i: right_N[i].mean(), n), "chance": 1 / n,
    }  # fmt: skip


def left(n: int, seed: int) -> dict[str, Any]:
    images_NCHW, _ = real_pictures(recipe().data, n, seed)
    return {"n": n, "chains": {name: terminal(ddpm.DDPM(ddpm.Config(**one)), images_NCHW, seed) for name, one in CHAINS.items()}}


# --- what is said of it -------------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found, ends = report["same"], report["left"]["chains"]
    holds = max(found["largest"].values()) <= found["bound"]
    head = ("holds", "成立") if holds else ("does not hold", "不成立")
    short, long = ends["T = 300"], ends["T = 1000"]
    stays = short["matched"]["low"] > long["matched"]["high"] and short["KL"]["low"] > long["KL"]["high"]
    signal = ("holds", "成立") if stays else ("not told from 1,000", "未能与 1000 区分")
    worst, n, count, chance = found["largest"], f"{found['samples']:,}", found["comparisons"], f"{100 * short['chance']:.1f} %"

    def listed(stop: str, names: Mapping[str, str]) -> str:
        rows = {name: f"{one['alpha_bar']:.2g}, {one['KL']['value']:.2g}, {percent(one['matched'])}" for name, one in ends.items()}
        return stop.join(f"{names.get(name, name)}: {said}" for name, said in rows.items())

    words = {", rescaled": "，按 1000 / T 放大", ", cosine": "，余弦", ", Stable": "，Stable"}
    zh = {name: name.replace(tail, said) for name in ends for tail, said in words.items() if tail in name}
    return {
        "en": Row(
            "002, 004", "x_t at once is t small steps; 300 steps leave signal", evidence.shown_by(NAME, "en"),
            f"at once: {head[0]}. Over {n} samples of four values at ten times the first four moments of the chain and of the one step "
            f"differ by at most {worst['between']:.1f} standard errors, and from the normal's by {worst['chain']:.1f} "
            f"and {worst['at once']:.1f} ({count} comparisons each: up to {found['bound']:.1f} is chance). T = 300 leaves "
            f"signal: {signal[0]}. Alpha-bar at the end, KL from N(0, 1) in bits a number, and how often the scene behind x_T is told from "
            f"{report['left']['n']:,} (chance {chance}): {listed('; ', {})}",
        ),
        "zh": Row(
            "002、004", "x_t 一步得到等于走 t 小步；300 步会留下信号", evidence.shown_by(NAME, "zh"),
            f"一步得到：{head[1]}。四个取值、十个时刻、各 {n} 个样本，逐步的链与一步所得的前四阶矩最多相差 {worst['between']:.1f} "
            f"个标准误，与正态分布相差 {worst['chain']:.1f} 与 {worst['at once']:.1f}（各 {count} 次比较，"
            f"{found['bound']:.1f} 以内属偶然）。T = 300 留有信号：{signal[1]}。末端的 alpha-bar、与 N(0, 1) 的 KL（每个数的比特数）、"
            f"以及从 {report['left']['n']:,} 张图中认出 x_T 背后那张的比例（随机 {chance}）：{listed('；', zh)}",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--samples", type=int, default=100_000, help="of each value at each time")
    parser.add_argument("--pictures", type=int, default=1000, help="scenes that are told apart")
    args = parser.parse_args()
    if args.quick:
        args.samples, args.pictures = 1000, 40
    report = evidence.begin(args)
    report["same"] = same(args.samples, args.seed)
    report["left"] = left(args.pictures, args.seed)
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
