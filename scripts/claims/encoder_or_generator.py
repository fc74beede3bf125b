"""Claim 42: does the text encoder's size matter, and the generator's hardly? 3 text encoders x 3 U-Nets, guidance 1 to 8.

    python scripts/claims/encoder_or_generator.py [--steps 2500] [--words 600] [--n 300] [--draw 25] [--guidances 1 2 4 8] [--quick]
                                                                                              (2 hours of one core, 100 minutes training)

text encoders   T5's, two layers 56, 112 and 224 wide (75 k, 0.3 M and 1.2 M parameters beside the table of words), each taught --words
                steps of span corruption on texts alone, then frozen
generators      the U-Net of the recipe `pixel-text`, 8, 16 and 24 wide, predicting v (`chains.CLEAR`), on scenes of 32 x 32: pixels,
                classifier-free guidance
equal           the texts, steps, batches, pictures and learning rates of all; prompts, seeds and steps of all pictures. Minutes and
                what a step computes are not: that is what a size is. The nine U-Nets' own layers that hear words grow with T5's width

curve           of an arm: FD against CLIP score (the eyes'), by guidance, as in figure 4 of Imagen (arXiv 2205.11487)
area            how much of the plane a curve has reached: for each score the least FD of any guidance with that score or more, up to a
                corner, the lowest score and the highest FD of all arms. Between two curves lies the difference of their areas, in FD times
                points of score; where one of them does not reach a score, the corner counts for it
encoder         the area between the largest text encoder and the smallest, mean over generators
generator       the area between the largest U-Net and the smallest, mean over text encoders
exact           the same of how often the detector reads what was asked, and nothing else: mean over guidances in place of the area

The claim holds where the encoder's effect is above 0 and above the generator's. Sizes do not grow by the same factor (encoders 16, U-Nets
by what the row tells), which favours the claim; T5 is small, and so is its grammar: this is no text encoder of the web's texts.

Intervals are bootstraps over drawn pictures, the same prompts in each arm, of one training; areas: value +- 1.96 deviations, for repeated
pictures push an FD up. Needs Debian's emoji font and CLDR. Writes encoder_or_generator.json and .svg.
Shape legend: N pictures, D width of the features.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import chains, evidence, words
from scripts.claims.evidence import Row, around, percent
from triptych import catalog
from triptych.contracts import Prompt
from triptych.judges._moments import Gaussian, frechet, gaussian_of
from triptych.recipes.diffusion import ddpm
from triptych.training import plot

NAME = Path(__file__).stem
ENCODERS = {"small": 56, "middle": 112, "large": 224}  # name -> T5's width
WIDTHS = (8, 16, 24)  # of the U-Net
GUIDANCES = (1.0, 2.0, 4.0, 8.0)
COLOURS = {"small": "#bf8700", "middle": "#0969da", "large": "#8250df"}
Points = Sequence[tuple[float, float]]  # (score, FD)
Cell = tuple[str, int]  # text encoder, U-Net
CELLS = [(encoder, width) for encoder in ENCODERS for width in WIDTHS]
EFFECTS = ("encoder", "generator", "difference")


class Seen(NamedTuple):
    """What was seen of an arm's pictures at one guidance: features, CLIP score and rightness of each."""

    features_ND: Tensor
    score_N: np.ndarray
    right_N: np.ndarray


# --- areas ----------------------------------------------------------------------------------------------------------------------


def reached(points: Points, corner: tuple[float, float]) -> float:
    """The area of all (score, FD) than which some point is as good or better in both, up to the corner: lowest score, highest FD."""
    area, best = 0.0, corner[1]
    scores = sorted(points, reverse=True)
    for (score, fd), (below, _) in zip(scores, [*scores[1:], corner], strict=True):
        best = min(best, fd)
        area += max(0.0, score - max(below, corner[0])) * (corner[1] - best)
    return area


def effects(of: Mapping[Cell, float]) -> dict[str, float]:
    """encoder: largest less smallest, mean over U-Nets; generator: likewise, mean over text encoders; difference of the two."""
    first, *_, last = ENCODERS
    encoder = float(np.mean([of[last, width] - of[first, width] for width in WIDTHS]))
    generator = float(np.mean([of[size, WIDTHS[-1]] - of[size, WIDTHS[0]] for size in ENCODERS]))
    return {"encoder": encoder, "generator": generator, "difference": encoder - generator}


def bootstrapped(
    seen: Mapping[Cell, Mapping[float, Seen]], real: Gaussian, times: int, seed: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Of "area" and "exact": effect -> value, low, high. Pictures are drawn again, the same places in all arms."""

    def curves(counts_N: Tensor) -> dict[Cell, list[tuple[float, float]]]:
        share_N = counts_N.double().numpy() / len(counts_N)
        return {
            cell: [(float(share_N @ one.score_N), frechet(gaussian_of(one.features_ND, counts_N), real)) for one in by.values()]
            for cell, by in seen.items()
        }

    def exact(counts_N: Tensor) -> dict[str, float]:
        share_N = counts_N.double().numpy() / len(counts_N)
        return effects({cell: float(np.mean([share_N @ one.right_N for one in by.values()])) for cell, by in seen.items()})

    n = len(next(iter(next(iter(seen.values())).values())).score_N)
    once = torch.ones(n, dtype=torch.int64)
    whole = curves(once)
    every = [point for points in whole.values() for point in points]
    corner = min(score for score, _ in every), max(fd for _, fd in every)

    def areas(counts_N: Tensor) -> dict[str, float]:
        return effects({cell: reached(points, corner) for cell, points in curves(counts_N).items()})

    generator, drawn = torch.Generator().manual_seed(seed), []
    for _ in range(max(2, times)):
        drawn.append(torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n))
    return {"area": around_all(areas, once, drawn), "exact": around_all(exact, once, drawn)}


def around_all(statistic: Any, once: Tensor, drawn: Sequence[Tensor]) -> dict[str, dict[str, float]]:
    """Of each effect value, and 1.96 deviations of its bootstrap to either side."""
    value, again = statistic(once), [statistic(counts_N) for counts_N in drawn]
    half = {name: 1.96 * float(np.std([one[name] for one in again], ddof=1)) for name in EFFECTS}
    return {name: {"value": value[name], "low": value[name] - half[name], "high": value[name] + half[name]} for name in EFFECTS}


# --- measured -------------------------------------------------------------------------------------------------------------------


def scores(sight: Any, pictures_NCHW: Tensor, prompts: Sequence[Prompt]) -> np.ndarray:
    """CLIP score of each picture with its own words, as the judge finds it: float64 [N]."""
    judge = catalog.build("judges", "clip_score", size="default", eyes=sight)
    judge.add(pictures_NCHW, prompts)
    return np.array(next(iter(judge.each().values())))


def measure(args: Any, report: dict[str, Any], eyes: Any, detector: Any) -> dict[str, Any]:
    spec, sight = ddpm().data, eyes.sight()
    ruler = chains.Ruler(eyes, spec, args)
    real_NCHW, prompts = chains.real_pictures(spec, args.n, args.seed + 2 * chains.AHEAD)
    found: dict[str, Any] = {
        "floor": ruler.floor, "ceiling": chains.share(chains.right(detector, real_NCHW, prompts)),
        "score of real pictures": float(scores(sight, real_NCHW, prompts).mean()), "arms": {},
    }  # fmt: skip
    encoders = {name: words.taught(f"t5-{width}", words.t5(width), args, report) for name, width in ENCODERS.items()}
    seen: dict[Cell, dict[float, Seen]] = {}
    for encoder, width in CELLS:
        arm = chains.taught(f"t5-{ENCODERS[encoder]}-to-{width}", words.listening(encoders[encoder], width), args, report)
        told, of = {}, seen.setdefault((encoder, width), {})
        for guidance in args.guidances:
            how = {"sampler": "ddpm", "steps": args.draw, "guidance": guidance, "threshold": "static"}
            pictures, seconds = chains.drawn(arm.model, arm.folder, args, prompts, **how)
            features_ND, score_N = sight.features(pictures), scores(sight, pictures, prompts)
            of[guidance] = one = Seen(features_ND, score_N, chains.right(detector, pictures, prompts))
            told[f"{guidance:g}"] = {
                "FD": ruler(pictures), "score": float(score_N.mean()), "exact": chains.share(one.right_N), "seconds": seconds
            }  # fmt: skip
        found["arms"][f"{encoder}, {width}"] = {
            "inner": report["encoders"][f"t5-{ENCODERS[encoder]}"]["inner"], "parameters": arm.told["parameters"], "guidances": told
        }  # fmt: skip
        one = told[best(told)]
        print(f"{encoder}, {width}: FD {around(one['FD'])}, exact {percent(one['exact'])}, guidance {best(told)}", flush=True)
    found["effects"] = bootstrapped(seen, gaussian_of(ruler.real_MD), 5 if args.quick else args.resamples, args.seed)
    return found


def best(guidances: Mapping[str, Any]) -> str:
    """The guidance whose FD is the least."""
    return min(guidances, key=lambda one: guidances[one]["FD"]["value"])


# --- curves ---------------------------------------------------------------------------------------------------------------------


def curves(found: Mapping[str, Any]) -> str:
    """FD against CLIP score over guidance as an SVG: a panel for each U-Net, a line for each text encoder. Down and right is better."""
    every = [one for arm in found["arms"].values() for one in arm["guidances"].values()]
    spans = [(min(values), max(values)) for values in ([one["score"] for one in every], [one["FD"]["value"] for one in every])]
    x, y = ((low - 0.05 * (high - low + 1e-9), high + 0.05 * (high - low + 1e-9)) for low, high in spans)
    panels = []
    for i, width in enumerate(WIDTHS):
        frame = plot.Frame(60 + 260 * i, 76, x, y, width=220, height=180)
        panels += plot.axes(frame, f"FD, U-Net {width} wide", "CLIP score")
        for encoder, colour in COLOURS.items():
            arm = found["arms"][f"{encoder}, {width}"]
            points = {guidance: (one["score"], one["FD"]["value"]) for guidance, one in arm["guidances"].items()}
            panels.append(f'<polyline points="{plot.path(frame, [*points.values()])}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            for guidance, point in points.items():
                cx, cy = frame.at(*point)
                told = f"{encoder} text encoder, guidance {guidance}: CLIP score {point[0]:.1f}, FD {point[1]:.1f}"
                panels.append(f'<circle cx="{cx}" cy="{cy}" r="3" fill="{colour}"><title>{told}</title></circle>')
                panels.append(f'<text x="{cx + 5}" y="{cy - 4:.1f}" font-size="8" fill="{colour}">{guidance}</text>')
    for i, (encoder, colour) in enumerate(COLOURS.items()):
        inner = thousands(found["arms"][f"{encoder}, {WIDTHS[0]}"]["inner"])
        panels.append(f'<text x="{60 + 200 * i}" y="44" font-size="11" fill="{colour}">{encoder} text encoder, {inner}</text>')
    return plot.page(840, 306, "Guidance along each line: what a larger text encoder changes, and what a larger U-Net", panels)


# --- what is said of it -----------------------------------------------------------------------------------------------------------


def head(found: Mapping[str, Mapping[str, float]]) -> tuple[str, str]:
    encoder, difference = found["encoder"], found["difference"]
    if difference["high"] < 0:
        return "does not hold, the generator's size matters more", "不成立，生成器的大小更重要"
    if encoder["high"] < 0:
        return "does not hold, the largest text encoder is worse", "不成立，最大的文本编码器反而更差"
    if encoder["low"] > 0 and difference["low"] > 0:
        return "holds", "成立"
    return "not decided", "未能分出"


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    area, exact = found["effects"]["area"], found["effects"]["exact"]
    heads = head(area), head(exact)

    first, *_, last = ENCODERS

    def factor(what: str, large: Cell, small: Cell) -> str:
        most, least = (found["arms"][f"{encoder}, {width}"][what] for encoder, width in (large, small))
        return f"{most / least:.0f}"

    def both(*said: str) -> str:
        return ", ".join(f"{one} {around(area[name], 1)}, {percent(exact[name])}" for name, one in zip(EFFECTS, said, strict=False))

    def listed(stop: str) -> str:
        arms = []
        for arm in found["arms"].values():
            one = arm["guidances"][best(arm["guidances"])]
            arms.append(f"{thousands(arm['inner'])} / {thousands(arm['parameters'])}: {around(one['FD'], 1)}, {percent(one['exact'], 0)}")
        return stop.join(arms)

    took, before, smallest = chains.told(report), words.told(report), (first, WIDTHS[0])
    factors = factor("inner", (last, WIDTHS[0]), smallest), factor("parameters", (first, WIDTHS[-1]), smallest)
    chart = [f"([{said}](results/claims/{NAME}.svg))" for said in ("curves", "曲线")]
    guided = ", ".join(next(iter(found["arms"].values()))["guidances"])
    floor, ceiling = around(found["floor"], 1), percent(found["ceiling"])
    return {
        "en": Row(
            "003", "the text encoder's size matters, the generator's hardly", evidence.shown_by(NAME, "en"),
            f"by FD against CLIP score {chart[0]}: {heads[0][0]}; by objects: {heads[1][0]}; {before[0]}; U-Nets {took[0]} "
            f"(as many real ones: {floor}; read exactly: {ceiling}); guidance {guided}, the chain in {report['draw']} steps. "
            f"Largest less smallest, area between the curves and objects: {both('text encoder', 'generator')}; encoders grow {factors[0]} "
            f"times, U-Nets {factors[1]} times. Parameters of text encoder (without its words) and U-Net, FD at the best guidance and "
            f"objects: {listed('; ')}",
        ),
        "zh": Row(
            "003", "文本编码器的大小重要，生成器的大小几乎不重要", evidence.shown_by(NAME, "zh"),
            f"按 FD 对 CLIP 分数{chart[1]}：{heads[0][1]}；按物体：{heads[1][1]}。{before[1]}；U-Net {took[1]}（同样多的真实图："
            f"{floor}；读对：{ceiling}）；引导 {guided}，链 {report['draw']} 步。最大减最小，曲线间的面积与物体全对率："
            f"{both('文本编码器', '生成器')}；文本编码器大了 {factors[0]} 倍，U-Net {factors[1]} 倍。"
            f"文本编码器（不计词表）与 U-Net 的参数、最佳引导下的 FD 与物体全对率：{listed('；')}",
        ),
    }  # fmt: skip


def thousands(n: int) -> str:
    return f"{n / 1000:,.0f} k"


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row, detector=True, n=300, chart=curves, draw=(25, 2, "steps of the chain"),
        words=(600, 2, f"steps of {words.CAPTIONS} texts that each text encoder learns before"),
        guidances=(GUIDANCES, (1.0, 4.0), "how strongly words pull, each a point of the curves"),
        resamples=(200, 5, "of the bootstrap"),
    )  # fmt: skip
