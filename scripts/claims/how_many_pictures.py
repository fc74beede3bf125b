"""How many pictures does a distance need, and do the judges say of models what counting their objects says?

    python scripts/claims/how_many_pictures.py [--eyes NAME|DIR] [--detector NAME|DIR] [--model NAME|DIR] [--n 200] [--quick]
                                                                                            (12 minutes, two cores)

number   N = 100 ... 10,000 real scenes against 10,000 other real ones: whatever FD, KID, precision and recall say beside "the same" is
         the work of N. Several draws of N where the pool allows; the interval is mean +- 1.96 deviations of a draw. Then the same of a
         model's pictures. FD without end: the intercept of FD over 1 / N (Chong and Forsyth, arXiv 1911.07023).
ladder   one model at eight settings of steps and guidance, from bad to good, draws the same prompts from the same seeds: the rank
         correlation (Spearman) of each judge with object accuracy (the detector's "exact"), so turned that 1 = it ranks as objects do.
         Interval: a bootstrap over the settings. The detector's reading is itself a judge; its ceiling on real pictures stands beside.
people   what people prefer is NOT measured here: their study is not at hand. This half of the claim stays open.

Writes how_many_pictures.json.
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
from scripts.claims import evidence
from scripts.claims.evidence import Row, around
from triptych import judging
from triptych.contracts import Prompt
from triptych.eyes import as_tensor
from triptych.judges import distribution

NAME = Path(__file__).stem
NUMBERS = (100, 300, 1000, 3000, 10_000)
REFERENCES, POOL, DRAWS = 10_000, 20_000, 5
LADDER = (  # (steps, guidance)
    (1, 2.0), (2, 2.0), (3, 2.0), (5, 2.0), (20, 2.0), (20, 1.0), (20, 4.0), (20, 10.0),
)  # fmt: skip
SCORES = ("FD", "KID", "precision", "recall")
JUDGED = ("distribution", "objects", "clip_score", "retrieval")
OPEN = "not measured: no study with people is at hand, so whether the judges rank models as people do stays open"
AHEAD = 10_000_000  # between the seeds of the references and of the pool


# --- how many ---------------------------------------------------------------------------------------------------------------


def real_features(sight: Any, n: int, seed: int, piece: int = 500) -> Tensor:
    """[n, D] of real scenes; pictures are made and forgotten a piece at a time."""
    asked = judging.scenes(n, seed)
    assert asked.real is not None
    found = []
    for first in range(0, n, piece):
        found.append(sight.features(asked.real(range(first, min(first + piece, n)))))
        print(f"real scenes, seed {seed}: {sum(map(len, found))} of {n}", file=sys.stderr, flush=True)
    return torch.cat(found)


class Known:
    """Eyes for a judge whose pictures were looked at before: they are shown features, and see these."""

    def __init__(self, name: str) -> None:
        self.name = name

    def features(self, features_BD: Tensor) -> Tensor:
        return features_BD


def scores(drawn_ND: Tensor, real_MD: Tensor, eyes: str, seed: int = 0) -> dict[str, float]:
    """FD, KID, precision, recall, as the judge `distribution` finds them."""
    config = distribution.Config(scores=("FD", "KID", "PR"), resamples=0, seed=seed)
    judge = distribution.Distribution(config, eyes=Known(eyes))
    judge.add(drawn_ND, (), real_MD)
    result = judge.result()
    return {score: result[f"{score}({eyes})"] for score in SCORES}


def over_numbers(pool_ND: Tensor, real_MD: Tensor, numbers: Sequence[int], eyes: str) -> dict[str, Any]:
    """Score -> N -> mean of the draws, which share no picture, and the interval of one draw; and FD without end."""
    out: dict[str, Any] = {score: {} for score in SCORES}
    for n in numbers:
        draws = min(DRAWS, len(pool_ND) // n)
        found = [scores(pool_ND[k * n : (k + 1) * n], real_MD, eyes, seed=k) for k in range(draws)]
        for score in SCORES:
            values = np.array([one[score] for one in found])
            told = {"value": float(values.mean()), "draws": draws, "values": values.tolist()}
            if draws > 1:
                half = 1.96 * float(values.std(ddof=1))
                told |= {"low": told["value"] - half, "high": told["value"] + half}
            out[score][str(n)] = told
        print(f"N = {n}: " + ", ".join(f"{score} {out[score][str(n)]['value']:.4g}" for score in SCORES), flush=True)
    slope, end = evidence.fit([1 / n for n in numbers], [out["FD"][str(n)]["value"] for n in numbers])
    return {**out, "FD_without_end": {"value": end, "slope": slope}}


def model_features(model: Any, sight: Any, asked: judging.Asked, piece: int = 50) -> Tensor:
    found = []
    for first in range(0, len(asked), piece):
        rows = range(first, min(first + piece, len(asked)))
        drawn = model.generate([asked.prompts[i].text for i in rows], seeds=[asked.seeds[i] for i in rows])
        found.append(sight.features(torch.cat([as_tensor(picture) for picture in drawn])))
        print(f"{model.name}: {rows.stop} of {len(asked)} pictures", file=sys.stderr, flush=True)
    return torch.cat(found)


# --- the ladder -------------------------------------------------------------------------------------------------------------


def ladder(model: Any, eyes: Any, detector: Any, n: int, seed: int, rungs: Sequence[tuple[int, float]]) -> list[dict[str, Any]]:
    """Each rung: its settings, and measure -> value, low, high, better."""
    asked, out = judging.scenes(n, seed), []
    for steps, guidance in rungs:

        def draw(prompts: Sequence[Prompt], seeds: Sequence[int], how: dict = {"steps": steps, "guidance": guidance}) -> list:  # noqa: B006
            return model.generate(prompts, seeds=seeds, **how)

        seen = {"": judging.look(draw, asked, judging.judges_for(asked, JUDGED, eyes=eyes, detector=detector), curves=False)}
        told = judging.judgement(asked, seen, {"": {}}, eyes=(eyes, detector))
        found = {measure: one | {"better": told["measures"][measure]["better"]} for measure, one in told["models"][0]["scores"].items()}
        ceiling = told["measures"]["exact"].get("ceiling")
        out.append({"steps": steps, "guidance": guidance, "seconds": seen[""].seconds, "ceiling": ceiling, "scores": found})
        print(f"{steps} steps, guidance {guidance}: " + ", ".join(f"{m} {s['value']:.3f}" for m, s in found.items()), flush=True)
    return out


def ranks(values: np.ndarray) -> np.ndarray:
    """1 = the smallest; equal ones share the mean of their places."""
    ordered = np.sort(values)
    return (np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right") + 1) / 2


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """The correlation of ranks; nan where all of one side are equal."""
    a, b = (ranks(np.asarray(side, dtype=float)) for side in (x, y))
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size else float("nan")


def agreements(rungs: Sequence[Mapping[str, Any]], counted: str = "exact") -> dict[str, Any]:
    """Measure -> its Spearman correlation with object accuracy; the detector's own are left out."""
    told = [{name: one for name, one in rung["scores"].items() if name == counted or "(" in name} for rung in rungs]
    right = np.array([one[counted]["value"] for one in told])
    out: dict[str, Any] = {}
    for measure in sorted(set.intersection(*(set(one) for one in told)) - {counted}):
        sign = 1 if told[0][measure]["better"] == "higher" else -1
        values = sign * np.array([one[measure]["value"] for one in told])
        found = evidence.estimate(lambda i, values=values: spearman(values[i], right[i]), len(rungs), times=2000)
        if all(np.isfinite(value) for value in found.values()):
            out[measure.partition("(")[0]] = {**found, "n": len(rungs)}
    return out


# --- what is said of it -----------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    real, drawn, agree = report["real"], report["model"], report["agreement"]
    few, most = (str(pick(int(n) for n in real["FD"])) for pick in (min, max))
    fd = [real["FD"][n]["value"] for n in (few, most)]
    kid = real["KID"][few]
    unbiased = "low" in kid and kid["low"] <= 0 <= kid["high"]
    biased = fd[0] > 2 * fd[1]
    head = ("holds of FD", "对 FD 成立") if biased else ("does not hold", "不成立")
    at = {score: [real[score][n]["value"] for n in (few, most)] for score in ("precision", "recall")}
    first, last = (str(pick(int(n) for n in drawn["FD"])) for pick in (min, max))
    ladder_fd = [drawn["FD"][n]["value"] for n in (first, last)]
    rungs = report["ladder"]
    exact = [rung["scores"]["exact"]["value"] for rung in rungs]
    sure = [name for name, one in agree.items() if one["low"] > 0]

    def listed(comma: str) -> str:
        return comma.join(f"{name} {around(one)}" for name, one in sorted(agree.items(), key=lambda item: -item[1]["value"]))

    n, n_most, m, m_most = (f"{int(number):,}" for number in (few, most, first, last))
    precision, recall = ([f"{value:.2f}" for value in at[score]] for score in ("precision", "recall"))
    name, end, references = report["eyes"]["model"]["name"], drawn["FD_without_end"]["value"], f"{report['references']:,}"
    worst, best = (f"{100 * share:.0f}" for share in (min(exact), max(exact)))
    return {
        "en": Row(
            "001, 003", "FID needs many pictures; the judges rank models as people do", evidence.shown_by(NAME, "en"),
            f"many pictures: {head[0]}. Real scenes against {references} other real ones: FD {fd[0]:.3g} at {n}, {fd[1]:.3g} at {n_most}, "
            f"where 0 is the truth; KID at {n} is {kid['value']:.2g}, its interval {'holds' if unbiased else 'does not hold'} 0; precision "
            f"{precision[0]} to {precision[1]}, recall {recall[0]} to {recall[1]}. Of `{name}`: FD {ladder_fd[0]:.3g} at {m}, "
            f"{ladder_fd[1]:.3g} at {m_most}, {end:.3g} without end. Rank correlation with object accuracy over {len(rungs)} settings of "
            f"one model ({worst} to {best} % of scenes right): {listed(', ')}; told from 0: {', '.join(sure) or 'none'}. With people: "
            "not measured, open",
        ),
        "zh": Row(
            "001、003", "FID 需要很多图片；评判给模型排的名次与人一致", evidence.shown_by(NAME, "zh"),
            f"需要很多图片：{head[1]}。真实场景与另外 {references} 个真实场景相比：{n} 张时 FD 为 {fd[0]:.3g}，{n_most} 张时为 "
            f"{fd[1]:.3g}，而真值是 0；KID 在 {n} 张时为 {kid['value']:.2g}，区间{'' if unbiased else '不'}包含 0；precision 从 "
            f"{precision[0]} 到 {precision[1]}，recall 从 {recall[0]} 到 {recall[1]}。`{name}` 的图：{m} 张时 FD 为 "
            f"{ladder_fd[0]:.3g}，{m_most} 张时为 {ladder_fd[1]:.3g}，外推到无穷多为 {end:.3g}。同一模型 {len(rungs)} 种设置"
            f"（场景画对 {worst} 至 {best} %）上，与物体准确率的等级相关："
            f"{listed('、')}；能与 0 区分的：{'、'.join(sure) or '没有'}。"
            "与人是否一致：没有测量，尚待回答",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--model", default="emoji", help="whose settings are the ladder: an embedded name or a folder")
    parser.add_argument("--n", type=int, default=200, help="pictures of each setting")
    parser.add_argument("--drawn", type=int, default=1000, help="pictures of the model over which FD is followed")
    args = parser.parse_args()
    numbers, references, pool, rungs = NUMBERS, REFERENCES, POOL, LADDER
    if args.quick:
        numbers, references, pool, rungs, args.n, args.drawn = (10, 30), 60, 60, ((1, 2.0), (2, 1.0), (2, 2.0)), 16, 16
    eyes, detector, model = (triptych.load(name) for name in (args.eyes, args.detector, args.model))
    report = evidence.begin(args, eyes=eyes, detector=detector, model=model)
    with torch.no_grad():
        report["ladder"] = ladder(model, eyes, detector, args.n, args.seed, rungs)
        report["agreement"] = agreements(report["ladder"])
        report["references"], report["pool"] = references, pool
        real_MD = real_features(eyes.sight(), references, args.seed + AHEAD)
        report["real"] = over_numbers(real_features(eyes.sight(), pool, args.seed + 2 * AHEAD), real_MD, numbers, eyes.name)
        asked = judging.scenes(args.drawn, args.seed + 3 * AHEAD)
        drawn = model_features(model, eyes.sight(), asked)
        some = sorted(n for part in (8, 4, 2, 1) if (n := args.drawn // part) >= 8)
        report["model"] = over_numbers(drawn, real_MD, some, eyes.name)
    report["people"] = {"measured": False, "says": OPEN}
    print(f"people: {OPEN}")
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
