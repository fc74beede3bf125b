"""Claim 34: is DDIM 10 to 50 times as fast as the chain, do its pictures change steadily with x_T, and can it be run backwards?

    python scripts/claims/ddim.py [--model NAME|DIR] [--steps 2500] [--n 500] [--counts 10 20 50 100] [--whole 1000] [--quick]

Without --model the recipe `ddpm` is taught for --steps, as for the other claims about it; with one, that model is asked, and nothing is
trained. The same weights draw in every way; eta = 1 is the chain with variance beta~, over the same strides.

speed       FD against steps and seconds a picture (of one core's work), eta = 0 and 1; "as good as the chain" is an FD that is not told
            to be above that of all --whole steps of the chain. How many times fewer steps that takes is what the claim is about
between     nine points of the great circle between two x_T, drawn in 50 steps: how long the way is through the eyes' features, as a
            multiple of the distance of its ends; of eta = 0, of eta = 1 (every point draws noise of its own, as any picture does), and of a
            plain cross-fade of the two end pictures
backwards   real pictures to their x_T and back in 10 to 200 steps each way: PSNR. The guess of x0 is not held to the range of pixels here

Intervals: FD, bootstrap over drawn pictures; the rest, over pairs or pictures. Writes ddim.json.
Shape legend: N pictures, P pairs, K points of a way, C channels, H W grid, D width of the features.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import triptych
from scripts.claims import chains, evidence
from scripts.claims.evidence import Row, around
from triptych.contracts import Prompt, Rng
from triptych.data.index import as_images
from triptych.recipes.diffusion import ddpm

NAME = Path(__file__).stem
COUNTS, BACKWARDS = (10, 20, 50, 100), (10, 20, 50, 100, 200)
FASTER = 10  # times fewer steps than the chain: the least that is claimed
POINTS = 9
WAYS: dict[str, dict[str, Any]] = {"eta = 0": {"sampler": "ddim"}, "eta = 1": {"sampler": "ddpm"}}


# --- how fast ---------------------------------------------------------------------------------------------------------------


def speed(model: Any, folder: Path, args: Any, ruler: chains.Ruler) -> dict[str, Any]:
    chain = chains.drawn_by(model, variance="fixed_small")
    ways = {"eta = 0": (model, args.counts), "eta = 1": (chain, (*args.counts, args.whole))}
    return {way: chains.swept(one, folder, args, ruler, counts, way, **WAYS[way]) for way, (one, counts) in ways.items()}


# --- from one x_T to another ------------------------------------------------------------------------------------------------


def slerp(a_PCHW: Tensor, b_PCHW: Tensor, share: float) -> Tensor:
    """On the great circle, where noise is as long as noise is (arXiv 2010.02502, eq. 67)."""
    angle_P = torch.nn.functional.cosine_similarity(a_PCHW.flatten(1), b_PCHW.flatten(1)).clamp(-1, 1).acos().view(-1, 1, 1, 1)
    return (torch.sin((1 - share) * angle_P) * a_PCHW + torch.sin(share * angle_P) * b_PCHW) / torch.sin(angle_P)


def length(features_PKD: Tensor) -> dict[str, float]:
    """Of the ways, in units of the distance of their ends, mean over pairs; 1 = straight."""
    steps_P = (features_PKD.diff(dim=1)).norm(dim=-1).sum(1)
    ratio_P = (steps_P / (features_PKD[:, -1] - features_PKD[:, 0]).norm(dim=-1)).double().numpy()
    return evidence.estimate(lambda i: ratio_P[i].mean(), len(ratio_P))


def between(model: Any, sight: Any, pairs: int, steps: int, seed: int) -> dict[str, Any]:
    chain, shape = chains.drawn_by(model, variance="fixed_small"), (model.decoder.latent.shape[0], *model.size)
    a_PCHW, b_PCHW = (Rng.of_seeds([seed + side * chains.AHEAD + i for i in range(pairs)]).normal("start", shape) for side in (0, 1))
    shares = torch.linspace(0, 1, POINTS).tolist()
    found: dict[str, Any] = {"pairs": pairs, "points": POINTS, "steps": steps}
    for way, how in WAYS.items():
        seen = []
        for k, share in enumerate(shares):
            drawer, keys = (model if way == "eta = 0" else chain), [seed + k * pairs + i for i in range(pairs)]
            said, noise = [Prompt()] * pairs, slerp(a_PCHW, b_PCHW, share)
            seen.append(as_images(drawer.generate(said, seeds=keys, noise=noise, steps=steps, threshold="static", batch_size=pairs, **how)))
        found[way] = length(torch.stack([sight.features(one) for one in seen], dim=1))
        if way == "eta = 0":
            fade = torch.stack([sight.features(torch.lerp(seen[0], seen[-1], share)) for share in shares], dim=1)
            found["fade"] = length(fade)
        print(f"{way}: way {around(found[way])}", flush=True)
    return found


# --- backwards --------------------------------------------------------------------------------------------------------------


def backwards(model: Any, images_NCHW: Tensor, counts: Sequence[int]) -> dict[str, Any]:
    n, generator = len(images_NCHW), model.generator
    said, z = [Prompt()] * n, model.decoder.encode(images_NCHW)
    cond = model.text_encoder.encode(said)
    found: dict[str, Any] = {"n": n, "steps": {}}
    for steps in counts:
        how = {"sampler": "ddim", "steps": steps, "threshold": "none"}
        noise = generator.process.invert(generator.network, z, cond, model.settings(**how))
        back_NCHW = as_images(model.generate(said, noise=noise, batch_size=n, **how))
        error_N = ((back_NCHW - images_NCHW) / 2).square().flatten(1).mean(1).clamp(min=1e-6).double().numpy()  # of pixels in 0..1
        psnr_N = -10 * np.log10(error_N)
        found["steps"][str(steps)] = {
            **evidence.estimate(lambda i, x=psnr_N: x[i].mean(), n), "error": float(error_N.mean()), "std": float(noise.std())
        }  # fmt: skip
        print(f"{steps} steps back and forth: {around(found['steps'][str(steps)])} dB", flush=True)
    return found


def measure(args: Any, report: dict[str, Any], eyes: Any) -> dict[str, Any]:
    if args.model:
        model = triptych.load(args.model)
        folder = args.runs / f"of-{model.name}"
    else:
        model, folder, _ = chains.taught("ddpm", ddpm(), args, report)
    ruler = chains.Ruler(eyes, ddpm().data, args)
    images_NCHW, _ = chains.real_pictures(ddpm().data, args.pictures, args.seed + 2 * chains.AHEAD)
    found = {"model": {"name": model.name, "fingerprints": model.fingerprints}, "floor": ruler.floor}
    found["speed"] = speed(model, folder, args, ruler)
    with torch.no_grad():
        found["between"] = between(model, eyes.sight(), args.pairs, args.middle, args.seed)
        found["backwards"] = backwards(model, images_NCHW, args.back)
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    told = report["found"]
    found, way = told["speed"], told["between"]
    whole = max(found["eta = 1"], key=int)
    chain = found["eta = 1"][whole]
    enough = [int(steps) for steps, one in found["eta = 0"].items() if chains.apart(one, chain) != 1]
    times = int(whole) / min(enough) if enough else 0.0
    fast = (f"holds, {times:.0f} times fewer steps", f"成立，步数少 {times:.0f} 倍") if times >= FASTER else ("does not hold", "不成立")
    smooth = {-1: ("holds", "成立"), 0: ("not told from eta = 1", "未能与 eta = 1 区分"), 1: ("does not hold", "不成立")}[
        chains.apart(way["eta = 0"], way["eta = 1"])
    ]  # fmt: skip
    back = told["backwards"]["steps"]
    least, most = (pick(back, key=int) for pick in (min, max))
    low = back[most]["low"] > 30 and chains.apart(back[most], back[least]) == 1  # as a good JPEG, and steps are what it takes
    returns = ("holds", "成立") if low else ("does not hold", "不成立")

    def listed(way: str, comma: str) -> str:
        rows = {steps: f"{around(fd, 1)} ({fd['seconds']:.2f} s)" for steps, fd in found[way].items()}
        return f"{way}: " + comma.join(f"{steps}, {fd}" for steps, fd in rows.items())

    drawn = [stop.join(listed(eta, stop) for eta in WAYS) for stop in ("; ", "；")]
    psnr = ", ".join(f"{steps}: {around(one, 1)}" for steps, one in back.items())
    ways = " / ".join(around(way[which]) for which in ("eta = 0", "eta = 1", "fade"))
    floor, n = around(told["floor"], 1), told["backwards"]["n"]
    if report["arms"]:
        took = chains.told(report)
    else:
        numbers = f"{report['n']:,}", f"{report['references']:,}"
        took = (f"FD of {numbers[0]} drawn scenes from {numbers[1]} real ones", f"FD 由 {numbers[0]} 张生成图与 {numbers[1]} 张真实图算得")
    return {
        "en": Row(
            "some", "DDIM is 10 to 50 times as fast, interpolates, and inverts with little error", evidence.shown_by(NAME, "en"),
            f"speed: {fast[0]}. {took[0]} (as many real ones: {floor}). "
            f"Steps, FD (time a picture) {drawn[0]}. Interpolation: {smooth[0]}. "
            f"Way in features over the distance of its ends, eta = 0 / eta = 1 / cross-fade: {ways} ({way['pairs']} pairs). "
            f"Inversion: {returns[0]}. PSNR of {n} real pictures there and back, by steps: {psnr} dB",
        ),
        "zh": Row(
            "部分", "DDIM 快 10 到 50 倍，可以插值，并能以很小的误差反演", evidence.shown_by(NAME, "zh"),
            f"速度：{fast[1]}。{took[1]}（同样多的真实图：{floor}）。步数、FD（每张用时）{drawn[1]}。插值：{smooth[1]}。"
            f"特征中的路程与两端距离之比，eta = 0 / eta = 1 / 直接淡化：{ways}（{way['pairs']} 对）。"
            f"反演：{returns[1]}。{n} 张真实图去而复返的 PSNR，按步数：{psnr} dB",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row,
        model=(None, None, "an embedded name or a folder, of the process ddpm; default: the recipe, taught here"),
        counts=(COUNTS, (1, 2), "numbers of steps in which pictures are drawn"),
        whole=(1000, 3, "steps of the chain that they are compared with"), middle=(50, 1, "steps of each point between two x_T"),
        pairs=(16, 2, "of x_T, to go between"), back=(BACKWARDS, (1, 2), "numbers of steps back, and forth again"),
        pictures=(32, 2, "that are inverted"),
    )  # fmt: skip
