"""Claim 32: do the U-Net's crossings keep "where"? The recipe `ddpm` with them and without: where things stand in a guess of x0, and FD.

    python scripts/claims/skip_connections.py [--steps 2500] [--n 500] [--times 0.1 0.3 0.5 0.7] [--draw 50] [--quick]

ddpm        the recipe, but that v is predicted (`chains.CLEAR`)
no-skips    the same with `skips = False`: all that is known of x_t goes through the middle, 8 x 8 x 32 numbers for 32 x 32 x 3

Real scenes that no training showed are noised to each time t, each network says once what x0 it sees, and the detector reads that guess.
Both arms are given the same noise.

off       from each thing's true centre to the nearest box of its kind that is read, in hundredths of the side, mean of those found
missed    share of things of whose kind no box is read
farther   how much farther off without crossings, over the things that both arms show: an arm that shows only what is easy gains nothing
FD        of pictures drawn by DDIM in --draw steps

Kind is shape alone, and several things of a kind may find the same box. The same of the real pictures says what is the detector's own.
Without crossings the way up is handed fewer channels, so that the network is smaller; the row says by how much. What is missed may be
gone or only blurred: "missed" is of what as much as of where. Intervals are bootstraps over pictures, of one training.
Writes skip_connections.json.

Shape legend: N pictures, K the most things in one, C channels, H W grid.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import asked, chains, evidence
from scripts.claims.evidence import Row, around, percent
from triptych.contracts import Prompt, Rng
from triptych.judges.objects import Seen
from triptych.recipes.diffusion import ddpm

NAME = Path(__file__).stem
TIMES = (0.1, 0.3, 0.5, 0.7)
ARMS: dict[str, dict[str, Any]] = {"ddpm": {}, "no-skips": {"skips": False}}
FAR = 100 * math.sqrt(2)  # in hundredths of the side: no two places are farther apart
FEW = 10  # things: resampling fewer would say that they do not differ


@torch.no_grad()
def guesses(model: Any, images_NCHW: Tensor, t: float, seed: int) -> Tensor:
    """What the network takes for x0 when it is shown x_t: one evaluation each, [N, 3, H, W] in [-1, 1]."""
    process, seen = model.generator.process, []
    for first in range(0, len(images_NCHW), chains.PIECE):
        z = model.decoder.encode(images_NCHW[first : first + chains.PIECE])
        rng, t_B = Rng.of_seeds([seed + first + i for i in range(len(z))]), torch.full((len(z),), t)
        cond = model.text_encoder.encode([Prompt()] * len(z))
        x_t = process.corrupt(z, t_B, rng.normal("noise", z.shape[1:]))
        D, _ = process.read(model.generator.network(x_t, process.clock(t_B), cond).float(), x_t, t_B)
        seen.append(model.decoder.decode(D, cond, rng=rng.child("decoder")).clamp(-1, 1))
    return torch.cat(seen)


# --- places -----------------------------------------------------------------------------------------------------------------


def places(read: Sequence[Sequence[Seen]], prompts: Sequence[Prompt]) -> np.ndarray:
    """[N, K], in hundredths of the side: how far off each thing is read, inf where it is missed, nan where there is none."""
    off_NK = np.full((len(prompts), max(len(prompt.truth.objects) for prompt in prompts)), np.nan)
    for off_K, seen, prompt in zip(off_NK, read, prompts, strict=True):
        for k, (thing, box) in enumerate(zip(prompt.truth.objects, prompt.boxes_N5.tolist(), strict=True)):  # type: ignore[union-attr]
            same = [math.hypot(one.cx - box[1], one.cy - box[2]) for one in seen if one.shape == thing.shape]
            off_K[k] = 100 * min(same, default=math.inf)
    return off_NK


def mean(values_NK: np.ndarray, among_NK: np.ndarray, nothing: tuple[float, float, float], times: int) -> dict[str, Any]:
    """value, low, high: of those among, over pictures; n: how many they are. nothing: what is said of none; of few, its interval."""
    sum_N, count_N = np.where(among_NK, values_NK, 0).sum(1), among_NK.sum(1)
    n = int(count_N.sum())
    if n < FEW:
        value, low, high = nothing
        return {"value": float(sum_N.sum()) / n if n else value, "low": low, "high": high, "n": n}

    def over(i: np.ndarray) -> float:
        return float(sum_N[i].sum() / count) if (count := count_N[i].sum()) else math.nan

    return {**evidence.estimate(over, len(sum_N), times=times), "n": n}


def told(off_NK: np.ndarray, times: int) -> dict[str, Any]:
    """off, missed."""
    missed_NK = np.isinf(off_NK)
    return {
        "off": mean(off_NK, np.isfinite(off_NK), (FAR, 0.0, FAR), times),
        "missed": mean(missed_NK, ~np.isnan(off_NK), (1.0, 0.0, 1.0), times),
    }


def farther(off_NK: np.ndarray, other_NK: np.ndarray, times: int) -> dict[str, Any]:
    """By how much the second are farther off, where both are found; of nothing anything may be."""
    both_NK = np.isfinite(off_NK) & np.isfinite(other_NK)
    difference_NK = np.subtract(other_NK, off_NK, where=both_NK, out=np.zeros_like(off_NK))
    return mean(difference_NK, both_NK, (0.0, -FAR, FAR), times)


def measure(args: Any, report: dict[str, Any], eyes: Any, detector: Any) -> dict[str, Any]:
    ruler, times = chains.Ruler(eyes, ddpm().data, args), 50 if args.quick else 1000
    real, prompts = asked.held_out(ddpm().data, args.n, args.seed)
    found: dict[str, Any] = {"floor": ruler.floor, "real": told(places(asked.read(detector, real), prompts), times), "arms": {}}
    off: dict[tuple[str, float], np.ndarray] = {}
    for name, unet in ARMS.items():
        arm = chains.taught(f"v-{name}", chains.changed(ddpm(), process=chains.CLEAR, unet=unet), args, report)
        fd = chains.swept(arm.model, arm.folder, args, ruler, (args.draw,), name, sampler="ddim")[str(args.draw)]
        found["arms"][name] = one = {"FD": fd, "times": {}}
        for t in args.times:
            off[name, t] = places(asked.read(detector, guesses(arm.model, real, t, args.seed)), prompts)
            one["times"][f"{t:g}"] = at = told(off[name, t], times)
            print(f"{name}, t = {t:g}: off {around(at['off'], 1)}, missed {percent(at['missed'])}", flush=True)
    found["farther"] = {f"{t:g}": farther(off["ddpm", t], off["no-skips", t], times) for t in args.times}
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    with_, without = (found["arms"][name] for name in ARMS)
    sides = {t: int(one["low"] > 0) - int(one["high"] < 0) for t, one in found["farther"].items()}
    lost = {t: chains.apart(without["times"][t]["missed"], one["missed"]) for t, one in with_["times"].items()}
    where, what = (asked.said_of(one, ("t =", "t =")) for one in (sides, lost))
    drawn = asked.VERDICTS[chains.apart(without["FD"], with_["FD"])]

    def listed(name: str, comma: str, stop: str) -> str:
        times = found["arms"][name]["times"]
        return stop.join(f"{t}: {around(one['off'], 1)}{comma}{percent(one['missed'])}" for t, one in times.items())

    took, floor, real, draw = chains.told(report), around(found["floor"], 1), found["real"], report["draw"]
    off, missed, fds = around(real["off"], 1), percent(real["missed"]), " / ".join(around(one["FD"], 1) for one in (with_, without))
    gap = ", ".join(f"{t}: {around(one, 2)} ({one['n']})" for t, one in found["farther"].items())
    sizes = " / ".join(f"{report['arms'][f'v-{name}']['parameters']:,}" for name in ARMS)
    return {
        "en": Row(
            "some", "the U-Net's crossings keep where things are", evidence.shown_by(NAME, "en"),
            f"things are nearer their place: {where[0]}; fewer are missed: {what[0]}; FD is lower: {drawn[0]}. {report['n']:,} held-out "
            f"scenes, noised, one guess of x0 each. Off by hundredths of the side, share missed, by t, with: {listed('ddpm', ', ', '; ')}; "
            f"without: {listed('no-skips', ', ', '; ')}; real pictures: {off}, {missed}. Farther without, over things that both show (how "
            f"many): {gap}. FD in {draw} steps of DDIM with / without: {fds} (as many real ones: {floor}). {sizes} parameters; {took[0]}",
        ),
        "zh": Row(
            "部分", "U-Net 的跳跃连接保住物体的位置", evidence.shown_by(NAME, "zh"),
            f"物体离原位更近：{where[1]}；漏掉的更少：{what[1]}；FD 更低：{drawn[1]}。{report['n']:,} 个留出场景加噪后各猜一次 x0。"
            f"各 t 的偏移（边长的百分之几）与漏掉的比例，有连接：{listed('ddpm', '、', '；')}；无连接：{listed('no-skips', '、', '；')}；"
            f"真实图：{off}、{missed}。双方都画出的物体上，无连接多偏（个数）：{gap}。"
            f"DDIM {draw} 步的 FD，有 / 无：{fds}（同样多的真实图：{floor}）。参数 {sizes} 个；{took[1]}",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row, detector=True, times=(TIMES, (0.3, 0.7), "at which real scenes are noised"),
        draw=(50, 2, "steps of DDIM"),
    )  # fmt: skip
