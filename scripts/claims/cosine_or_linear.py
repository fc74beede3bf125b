"""Claim 33: does every step of a cosine schedule do as much, and does it beat the linear one?

    python scripts/claims/cosine_or_linear.py [--steps 2500] [--n 500] [--counts 10 50 250] [--quick]

drop     how much each of the 1,000 steps takes away, of log SNR = log alpha-bar / (1 - alpha-bar) and of alpha-bar itself; equal effects
         would be equal drops. Told: the deviation of the drops as a share of their mean, of log SNR without the first and the last
         twentieth of the steps, for the ends of any schedule fall steeply; and the share of steps whose alpha-bar is below 1 %, where
         little is left to take away.
FD       of the recipe `ddpm`, but that v is predicted (`chains.CLEAR`), and of the same with the cosine schedule, by the chain (variance:
         beta~) in each number of steps: a strided chain jumps over its steps as if they were all alike. The paper predicts eps; there,
         at the end of a cosine schedule, sigma / alpha is so large that what is wrong in a guess tints the whole picture

Trained alike, on the same pictures. FD's intervals are bootstraps over drawn pictures, of one training. Writes cosine_or_linear.json.
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
from triptych.processes import ddpm as process
from triptych.recipes.diffusion import ddpm

NAME = Path(__file__).stem
COUNTS = (10, 50, 250)
SCHEDULES = {"linear": ("v-ddpm", {}), "cosine": ("v-cosine", {"beta_schedule": "cosine"})}  # -> arm, settings


def drops(config: process.Config) -> dict[str, Any]:
    """At steps 1 ... T: what each step takes away, and how uneven that is."""
    T = config.num_timesteps
    times = torch.arange(1, T + 1, dtype=torch.float64) / T
    schedule = process.DDPM(config).schedule
    log_snr, bar = 2 * schedule.lam(times), schedule.alpha(times) ** 2
    drop, inner, lost = -log_snr.diff(), -log_snr.diff()[T // 20 : T - T // 20], -bar.diff()
    some = torch.linspace(0, T - 1, 41, dtype=torch.float64).round().long()
    return {
        "log_snr_all": float(drop.std() / drop.mean()), "log_snr_inside": float(inner.std() / inner.mean()),
        "bar": float(lost.std() / lost.mean()), "spent": float((bar < 0.01).double().mean()),
        "alpha_bar_end": float(bar[-1]), "steps": (some + 1).tolist(), "log_snr": log_snr[some].tolist(),
    }  # fmt: skip


def measure(args: Any, report: dict[str, Any], eyes: Any) -> dict[str, Any]:
    ruler = chains.Ruler(eyes, ddpm().data, args)
    found: dict[str, Any] = {"floor": ruler.floor, "counts": list(args.counts), "schedules": {}}
    for schedule, (name, settings) in SCHEDULES.items():
        arm = chains.taught(name, chains.changed(ddpm(), process={**chains.CLEAR, **settings}), args, report)
        fd = chains.swept(arm.model, arm.folder, args, ruler, args.counts, schedule, sampler="ddpm")
        found["schedules"][schedule] = {"drops": drops(arm.model.generator.process.config), "FD": fd}
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    linear, cosine = (report["found"]["schedules"][name] for name in SCHEDULES)
    counts = [str(one) for one in report["found"]["counts"]]
    sides = [chains.apart(cosine["FD"][steps], linear["FD"][steps]) for steps in counts]
    wins, loses = ([steps for steps, side in zip(counts, sides, strict=True) if side == sign] for sign in (-1, 1))
    if loses:
        better = (f"does not hold, linear is better in {', '.join(loses)} steps", f"不成立，{'、'.join(loses)} 步时线性更好")
    elif wins:
        every = len(wins) == len(counts)
        better = ("holds", "成立") if every else (f"holds in {', '.join(wins)} steps", f"在 {'、'.join(wins)} 步时成立")
    else:
        better = ("not decided", "未能分出")
    a, b = linear["drops"], cosine["drops"]
    alike = [("holds", "成立") if b[what] < a[what] else ("does not hold", "不成立") for what in ("log_snr_inside", "bar")]

    def listed(one: Mapping[str, Any], comma: str) -> str:
        return comma.join(around(one["FD"][steps], 1) for steps in counts)

    took, floor = chains.told(report), around(report["found"]["floor"], 1)
    snr, whole, bar, spent = (
        " / ".join(f"{100 * one[what]:.0f} %" for one in (a, b)) for what in ("log_snr_inside", "log_snr_all", "bar", "spent")
    )
    return {
        "en": Row(
            "some", "a cosine schedule beats a linear one, because each of its steps does as much", evidence.shown_by(NAME, "en"),
            f"steps more alike by log SNR: {alike[0][0]}, by alpha-bar: {alike[1][0]}; better pictures: {better[0]}. Linear / cosine: "
            f"drops of log SNR deviate by {snr} of their mean without the first and last twentieth of 1,000 steps ({whole} with them), "
            f"those of alpha-bar by {bar}; {spent} of the steps have alpha-bar below 1 %. "
            f"{took[0]} (as many real ones: {floor}). In {', '.join(counts)} steps: linear {listed(linear, ', ')}; "
            f"cosine {listed(cosine, ', ')}",
        ),
        "zh": Row(
            "部分", "余弦调度胜过线性调度，因为每一步的作用相同", evidence.shown_by(NAME, "zh"),
            f"按 log SNR 各步更一致：{alike[0][1]}，按 alpha-bar：{alike[1][1]}；图更好：{better[1]}。"
            f"线性 / 余弦：去掉首尾各二十分之一后，1000 步中 log SNR 的降幅偏离其均值 {snr}（不去掉则为 {whole}），alpha-bar 的降幅偏离 "
            f"{bar}；alpha-bar 低于 1 % 的步占 {spent}。{took[1]}（同样多的真实图：{floor}）。"
            f"{'、'.join(counts)} 步的 FD：线性 {listed(linear, '、')}；余弦 {listed(cosine, '、')}",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(NAME, __doc__, measure, row, counts=(COUNTS, (2, 3), "numbers of steps in which pictures are drawn"))
