"""Is three quarters the best share to hide, and is MAE three times as fast for it? The recipe `eyes-mae`, equal minutes an arm.

    python scripts/claims/mask_share.py [--minutes 10] [--pictures 3000] [--quick]          (50 minutes, two cores, 40 of them training)

probe    mask = 0.25, 0.5, 0.75, 0.9, all else as in the recipe. How many steps fit into the minutes is measured first, on a few real
         steps of each arm (pictures are made in the same time), in turn; what an arm really took stands beside it. Then a linear probe
         on Open Clip Art's folders, which no eyes were told, on the mean of all patches; and on the untrained network: the floor.
cost     one step's forward and backward, the encoder seeing what is left by the mask, or all places, with a token that is the same
         wherever a patch is hidden (as BEiT and SimMIM do); the decoder is the same. Time is the best of some runs, in turn; FLOP are
         counted, also for the published sizes.

Needs what the recipe needs (Debian's emoji font, CLDR, openclipart). Writes mask_share.json.
Shape legend: B batch, C channels, H W grid, L patches, D width, P numbers of a patch.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import triptych
from scripts.claims import evidence, minutes
from scripts.claims.evidence import Row, percent
from scripts.measure_eyes import clipart
from triptych import data
from triptych.contracts import Prompt
from triptych.eyes import Eyes
from triptych.judges import linear_probe
from triptych.recipe import Recipe
from triptych.recipes.eyes import eyes_mae
from triptych.vision.mae import MAE, SIZES, Config

NAME = Path(__file__).stem
SHARES = (0.25, 0.5, 0.75, 0.9)


# --- equal minutes ----------------------------------------------------------------------------------------------------------


def taught(share: float, steps: int, base: Recipe, sets: Any, folder: Path, seed: int) -> tuple[Any, minutes.Clock]:
    """sets: (training, held-out) pictures."""
    recipe = replace(base, family=replace(base.family, config={**base.family.config, "mask": share}), seed=seed)
    return minutes.trained(minutes.of_steps(recipe, steps), folder, f"mask {share}", data=sets[0], held_out=sets[1])


def probed(eyes: Any, asked: tuple[list[str], Tensor, list[int]]) -> dict[str, float]:
    """Accuracy of a linear probe with five folds, value, low and high."""
    folders, drawings, labels = asked
    judge = linear_probe.LinearProbe(linear_probe.SIZES["ridge"], eyes=eyes.sight())
    judge.add(drawings, [Prompt(label=label) for label in labels])
    found, name = judge.result(), f"accuracy({eyes.name})"
    return {
        "value": found[name], "low": found[f"{name}_low"], "high": found[f"{name}_high"], "n": found["n"], "classes": len(folders),
        "majority": found["majority"],
    }  # fmt: skip


def arms(args: Any, base: Recipe, asked: Any) -> dict[str, Any]:
    sets = (data.build(base.data), data.build(base.data, split="held_out"))
    trials = {share: (lambda steps, at, share=share: taught(share, steps, base, sets, at, args.seed)[1]) for share in SHARES}
    steps = minutes.fit(args.minutes, trials, few=3 if args.quick else 12)
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for share in SHARES:
            result, clock = taught(share, steps[share], base, sets, Path(name) / str(share), args.seed)
            assert result.model is not None
            pictures = steps[share] * base.batch
            out[str(share)] = {
                "steps": steps[share], "pictures": pictures, "minutes": clock.minutes, "pictures_per_s": pictures / clock.minutes / 60,
                "held_out_loss": result.validation.get("loss"), "probe": probed(triptych.load(result.model), asked),
            }  # fmt: skip
            print(f"mask {share}: {out[str(share)]}", flush=True)
    return out


# --- what it costs ----------------------------------------------------------------------------------------------------------


def loss_of_all(mae: MAE, pixels_BCHW: Tensor, noise_BL: Tensor) -> Tensor:
    """MAE's loss, but the encoder carries every place, hidden ones without their patch: mean over rows."""
    rank_BL = noise_BL.argsort(1).argsort(1)
    hidden_BL = rank_BL >= mae.kept(rank_BL.shape[1])
    x_BLD = torch.where(hidden_BL[..., None], mae.place_LD[1:], mae._placed(pixels_BCHW))
    decoder = mae._decoder()
    said_BLP = decoder.last(decoder(mae._encoder(x_BLD), torch.arange(rank_BL.shape[1], device=rank_BL.device).expand_as(rank_BL)))
    target_BLP, mean, std = mae._targets(pixels_BCHW)
    error_BL = (said_BLP - (target_BLP - mean) / std).square().mean(-1)
    return ((error_BL * hidden_BL).sum(1) / hidden_BL.sum(1)).mean()


WAYS = {"visible": lambda mae, x, noise: mae.loss_B(x, noise).mean(), "all": loss_of_all}


def flop(config: Config) -> dict[str, int]:
    """Of one picture's forward and backward, either way. Nothing is computed: on a CPU fused attention would not be counted."""
    from torch.utils.flop_counter import FlopCounterMode

    found = {}
    with torch.device("meta"):
        mae, side = MAE(config), config.image_size
        x, noise = torch.zeros(1, 3, side, side), torch.zeros(1, mae.side**2)
        for way, loss in WAYS.items():
            with FlopCounterMode(display=False) as counter:
                loss(mae, x, noise).backward()
            found[way] = counter.get_total_flops()
    return found


def speed(config: Config, batch: int, runs: int) -> dict[str, float]:
    """Pictures a second, forward and backward, the best of some runs; the ways take turns."""
    torch.manual_seed(0)
    mae = MAE(config)
    x, noise = torch.rand(batch, 3, config.image_size, config.image_size) * 2 - 1, torch.rand(batch, mae.side**2)
    best = dict.fromkeys(WAYS, float("inf"))
    for _ in range(runs + 1):  # the first one warms up, and may be the best no less
        for way, loss in WAYS.items():
            begun = time.perf_counter()
            loss(mae, x, noise).backward()
            best[way] = min(best[way], time.perf_counter() - begun)
            mae.zero_grad(set_to_none=True)
    return {way: batch / seconds for way, seconds in best.items()}


def costs(args: Any) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for size, batch in {"eyes": 64, "MAE-B/16": 4, "MAE-L/16": 0, "MAE-H/14": 0}.items():
        for share in SHARES if size == "eyes" else (0.75,):
            config = replace(SIZES[size], mask=share)
            counted = flop(config)
            told: dict[str, Any] = {"flop": counted, "flop_ratio": counted["all"] / counted["visible"]}
            if batch and not (args.quick and size != "eyes"):
                told["pictures_per_s"] = speed(config, 8 if args.quick else batch, 1 if args.quick else 8)
                told["ratio"] = told["pictures_per_s"]["visible"] / told["pictures_per_s"]["all"]
            out.setdefault(size, {})[str(share)] = told
            print(f"{size}, mask {share}: {told}", flush=True)
    return out


# --- what is said of it -----------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found, cost = report["arms"], report["cost"]
    best = max(found, key=lambda share: found[share]["probe"]["value"])
    here = found["0.75"]["probe"]
    if best == "0.75":
        apart = all(one["probe"]["high"] < here["low"] for share, one in found.items() if share != "0.75")
        head = ("holds", "成立") if apart else ("75 % is first, and not told apart from all others", "75 % 居首，但与其余未能全部区分")
    else:
        overlap = found[best]["probe"]["low"] <= here["high"]
        head = ("not decided", "未能分出") if overlap else ("does not hold at this length", "在这个训练长度上不成立")

    def listed(between: str, speed: str) -> str:
        told = {f"{100 * float(share):.0f} %": one for share, one in found.items()}
        return between.join(f"{share}: {percent(one['probe'])} ({one['pictures_per_s']:.0f} {speed})" for share, one in told.items())

    eyes, base = cost["eyes"]["0.75"], cost["MAE-B/16"]["0.75"]
    measured = f"{base['ratio']:.1f}" if "ratio" in base else "-"
    took = statistics.mean(one["minutes"] for one in found.values())
    large = cost["MAE-L/16"]["0.75"]["flop_ratio"]
    return {
        "en": Row(
            "000", "MAE: hiding 75 % is best, and makes it three times as fast", evidence.shown_by(NAME, "en"),
            f"best share: {head[0]}. {took:.1f} minutes of training each, one seed, linear probe on {here['classes']} folders of Open "
            f"Clip Art: {listed(', ', 'pictures/s')}; untrained {percent(report['untrained'])}. Speed: an encoder that sees only what is "
            f"left is {eyes['ratio']:.1f} times as fast as one that carries all tokens at this size, {measured} times at MAE-B/16 (FLOP: "
            f"{eyes['flop_ratio']:.1f} and {base['flop_ratio']:.1f}; MAE-L/16 {large:.1f})",
        ),
        "zh": Row(
            "000", "MAE：遮住 75 % 最好，并且快三倍", evidence.shown_by(NAME, "zh"),
            f"最佳比例：{head[1]}。每种训练 {took:.1f} 分钟，一个种子，在 Open Clip Art 的 {here['classes']} 个文件夹上做线性探针："
            f"{listed('、', '图/秒')}；未训练 {percent(report['untrained'])}。速度：只看可见部分的编码器，在这个尺寸上是带着全部 token 的 "
            f"{eyes['ratio']:.1f} 倍，在 MAE-B/16 上是 {measured} 倍（FLOP：{eyes['flop_ratio']:.1f} 与 {base['flop_ratio']:.1f}；"
            f"MAE-L/16 为 {large:.1f}）",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--minutes", type=float, default=10, help="of training, each arm")
    parser.add_argument("--pictures", type=int, default=3000, help="of Open Clip Art, for the probe")
    args = parser.parse_args()
    base = eyes_mae()
    if args.quick:
        args.minutes, args.pictures, base = 0.05, 250, replace(base, batch=16)
    report = evidence.begin(args)
    report |= {"recipe": base.name, "batch": base.batch, "minutes_asked": args.minutes, "cost": costs(args)}
    asked = clipart(args.pictures, args.seed)
    torch.manual_seed(args.seed)
    report["untrained"] = probed(Eyes(MAE(SIZES["eyes"]).eval(), name="untrained"), asked)
    report["arms"] = arms(args, base, asked)
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
