"""Claim 28: is a chain of more steps closer to a Gaussian at its end, and are its pictures better? T = 50, 300, 1000.

    python scripts/claims/how_many_steps.py [--steps 2500] [--n 500] [--most 250] [--rescaled] [--quick]

The recipe `ddpm`, but that v is predicted (`chains.CLEAR`), with `num_timesteps` changed; betas run from 1e-4 to 0.02 in any number of
steps, as surveys have them, so a short chain ends before its picture is gone. Drawing begins with N(0, 1) all the same: what the network
then sees, it never saw in training.

end      alpha-bar, and the KL of x_T from N(0, 1): as in noise_at_once.py
FD       of pictures drawn by the chain itself, in --most of its steps or in all where it has fewer, as the recipe draws;
         and in 50 steps, whatever T is: the network is then asked as often for each
--rescaled   two arms more, T = 50 and 300 with betas times 1000 / T, which end in noise: few steps alone, nothing left of the picture

FD's intervals are bootstraps over drawn pictures, of one training. Writes how_many_steps.json.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import chains, evidence
from scripts.claims.evidence import Row, around
from scripts.claims.noise_at_once import terminal
from triptych.recipes.diffusion import ddpm

NAME = Path(__file__).stem
SHORT = (50, 300)  # beside the recipe's own 1,000
FEW = 50  # steps in which every arm can be drawn


def arms(rescaled: bool) -> dict[str, dict[str, Any]]:
    """name -> the process's settings. The whole chain is the recipe itself, and other claims train it too."""
    made: dict[str, dict[str, Any]] = {f"T-{T}": {"num_timesteps": T} for T in SHORT} | {"ddpm": {}}
    return made | ({f"T-{T}-rescaled": {"num_timesteps": T, "rescale": True} for T in SHORT} if rescaled else {})


def measure(args: Any, report: dict[str, Any], eyes: Any) -> dict[str, Any]:
    ruler = chains.Ruler(eyes, ddpm().data, args)
    images_NCHW, _ = chains.real_pictures(ddpm().data, 40 if args.quick else 1000, args.seed)
    found: dict[str, Any] = {"floor": ruler.floor, "chains": {}}
    for name, process in arms(args.rescaled).items():
        arm = chains.taught(f"v-{name}", chains.changed(ddpm(), process={**chains.CLEAR, **process}), args, report)
        chain = arm.model.generator.process
        T = chain.config.num_timesteps
        told: dict[str, Any] = {"T": T, "rescaled": "rescale" in process, "end": terminal(chain, images_NCHW, args.seed)}
        for what, steps in {"chain": min(T, args.most), "few": args.few}.items():
            pictures, seconds = chains.drawn(arm.model, arm.folder, args, sampler="ddpm", steps=steps)
            told[what] = {**ruler(pictures), "steps": steps, "seconds": seconds}
        found["chains"][name] = told
        print(f"{name}: FD {around(told['chain'])} in {told['chain']['steps']} steps, {around(told['few'])} in {args.few}", flush=True)
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = {one["T"]: one for one in report["found"]["chains"].values() if not one["rescaled"]}
    short, middle, long = (found[T] for T in sorted(found))
    pairs = ((short, middle), (middle, long))
    closer = all(chains.apart(a["end"]["KL"], b["end"]["KL"]) == 1 for a, b in pairs)
    first, second = (chains.apart(a["chain"], b["chain"]) for a, b in pairs)
    end = ("holds", "成立") if closer else ("does not hold", "不成立")
    head = {
        (1, 1): ("holds", "成立"),
        (1, 0): ("holds up to 300 steps; 300 and 1,000 are not told apart", "到 300 步为止成立，300 与 1000 未能区分"),
    }.get((first, second), ("does not hold", "不成立") if -1 in (first, second) else ("not decided", "未能分出"))  # fmt: skip

    def listed(stop: str, words: tuple[str, str]) -> str:
        return stop.join(
            f"T = {one['T']}{words[0] if one['rescaled'] else ''}: {one['end']['alpha_bar']:.2g}, {one['end']['KL']['value']:.2g}, "
            f"{around(one['chain'], 1)} ({one['chain']['steps']}{words[1]}), {around(one['few'], 1)}"
            for one in report["found"]["chains"].values()
        )

    took, floor, few = chains.told(report), around(report["found"]["floor"], 1), short["few"]["steps"]
    return {
        "en": Row(
            "some", "the more steps, the closer the end of the chain to a Gaussian, and the better the pictures",
            evidence.shown_by(NAME, "en"),
            f"closer: {end[0]}. Better pictures: {head[0]}. {took[0]} (as many real ones: {floor}). Alpha-bar at the end, KL from N(0, 1) "
            f"in bits a number, FD by the chain, FD in {few} steps: {listed('; ', (' rescaled', ' steps'))}. The betas are the same in any "
            f"number of steps, so that a short chain ends before its picture is gone",
        ),
        "zh": Row(
            "部分", "步数越多，链的末端越接近高斯，图也越好", evidence.shown_by(NAME, "zh"),
            f"更接近：{end[1]}。图更好：{head[1]}。{took[1]}（同样多的真实图：{floor}）。"
            f"末端的 alpha-bar、与 N(0, 1) 的 KL（每个数的比特数）、按链采样的 FD、{few} 步采样的 FD：{listed('；', ('（放大）', ' 步'))}。"
            f"不论多少步，beta 的范围都相同，所以短链在图像消失之前就结束了",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row, most=(250, 3, "steps of the chain that are taken"), few=(FEW, 2, "steps in which every arm is drawn"),
        rescaled=(False, False, "two arms more, whose short chains end in noise"),
    )  # fmt: skip
