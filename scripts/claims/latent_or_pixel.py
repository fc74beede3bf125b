"""Claim 38: is diffusion on latents cheaper than diffusion on pixels, and as good? Two systems, 64 x 64, in the same minutes.

    python scripts/claims/latent_or_pixel.py [--minutes 2 6 12] [--n 300] [--draw 25] [--quick]  (1 hour of one core, 40 minutes training)

pixel     the recipe `pixel-text` on scenes of 64 x 64: levels of 64, 32 and 16, attention at 16
latent    the same on the 16 x 16 x 4 latents of the embedded `kl`: levels of 16 and 8, attention at both, so that it has nearly as many
          parameters as the other; all of a batch is encoded anew at each step, for scenes do not return

Both predict v (`chains.CLEAR`). Process, learning rate, batch, words (the embedded `emoji`, frozen), dropout of them, guidance and steps
of the chain are equal; what differs is the space. Each is taught once for each of --minutes, with a schedule of its own, by as many steps
as fit into them: time of the processor, measured first on a few steps of each and then kept (minutes.json among the runs); compiling does
not count. --steps is not used.

FD, exact    of pictures drawn for the same prompts from the same seeds; exact: the detector reads what was asked, and nothing else
reached      the least minutes in which the latent system's FD is not told to be above that of the pixel system after all its minutes
memory       by which a process of its own grows, at its peak, in five training steps, not compiled; weights and optimiser are in it
seconds      a picture: of drawing, decoding included

"As good": after the most minutes neither FD nor exact is told to be worse. "Cheaper": reached in fewer minutes, memory and seconds less.
The autoencoder's own training is in none of these, it is told beside (once, for all systems that draw in its space); its pictures of real
ones are the latent system's floor. Guesses of pixels are held to their range (static threshold), those of latents are not.

Intervals are over drawn pictures (FD: bootstrap; exact: Wilson), of one training each; memory and seconds have none. What is true at
64 x 64, where pixels are only 12 times as many numbers as latents, says little of 512 x 512. Writes latent_or_pixel.json.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import chains, evidence, minutes
from scripts.claims.evidence import Row, around, percent
from triptych import checkpoint, data
from triptych.layers.memory import forget_peak, peak
from triptych.recipe import Data, Family, Neighbour, Recipe, from_mapping, to_mapping
from triptych.recipes.diffusion import SCENES, pixel_text
from triptych.training import train

NAME = Path(__file__).stem
SPEC = Data(sources=SCENES, size=64)
GUIDANCE = 3.0
THRESHOLDS = {"pixel": "static", "latent": "none"}
MINUTES = (2.0, 6.0, 12.0)
SAID = {"FD": "FD ", "objects": "物体"}


def recipes() -> dict[str, Recipe]:
    words = pixel_text().neighbours["text_encoder"]
    pixels, latents = Neighbour(family=Family(name="identity", size="64")), Neighbour(model="kl")
    return {
        "pixel": chains.changed(pixel_text(), process=chains.CLEAR, data=SPEC, neighbours={"text_encoder": words, "decoder": pixels}),
        "latent": chains.changed(
            pixel_text(), process=chains.CLEAR, unet={"multipliers": (1, 2), "attention": (0, 1)}, data=SPEC,
            neighbours={"text_encoder": words, "decoder": latents}, sampling={**pixel_text().sampling, "threshold": "none"},
        ),
    }  # fmt: skip


# --- what it costs --------------------------------------------------------------------------------------------------------------


def cost(recipe: Recipe) -> dict[str, int | None]:
    """memory: bytes by which a process of its own grew at its peak, None where the system does not tell; flop: of a step."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_cost, (to_mapping(recipe), torch.get_num_threads()))


def _cost(values: Mapping[str, Any], threads: int) -> dict[str, int | None]:
    torch.set_num_threads(threads)
    recipe = replace(from_mapping(values), compile=False, preview_prompts=())
    rows = data.build(recipe.data)
    train(replace(recipe, batch=2), out="nowhere", data=rows, dry_run=True)  # what the first time needs besides is there before
    forget_peak()
    before = peak()
    found = train(recipe, out="nowhere", data=rows, dry_run=True).estimate
    after = peak()
    return {"memory": None if before is None or after is None else after - before, "flop": found["flop_per_step"]}


def fitting(args: Any, arms: Mapping[str, Recipe]) -> dict[str, dict[float, int]]:
    """arm -> minutes -> steps. Measured once: what is among the runs already goes on with the steps that it was begun with."""
    path, most = args.runs / "minutes.json", max(args.minutes)
    kept = json.loads(path.read_text()) if path.is_file() else {}
    if missing := [name for name in arms if f"{NAME}, {name}, {most:g}" not in kept]:

        def run(name: str) -> Any:
            recipe = replace(arms[name], batch=8, compile=False) if args.quick else arms[name]

            def few(steps: int, folder: Path) -> minutes.Clock:
                return minutes.trained(minutes.of_steps(recipe, steps), folder, name, data=data.build(recipe.data))[1]

            return few

        steps = minutes.fit(most, {name: run(name) for name in missing}, **({"few": 3, "rounds": 1} if args.quick else {}))
        kept |= {f"{NAME}, {name}, {most:g}": count for name, count in steps.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint.write_atomically(path, json.dumps(kept, indent=1).encode())
    return {name: {m: max(2, round(kept[f"{NAME}, {name}, {most:g}"] * m / most)) for m in sorted(args.minutes)} for name in arms}


# --- measured -------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def rebuilt(decoder: Any, images_NCHW: Tensor) -> Tensor:
    """Pictures as the autoencoder gives them back."""
    return torch.cat([decoder.decode(decoder.encode(part)) for part in images_NCHW.split(chains.PIECE)])


def measure(args: Any, report: dict[str, Any], eyes: Any, detector: Any) -> dict[str, Any]:
    ruler = chains.Ruler(eyes, SPEC, args)
    real_NCHW, prompts = chains.real_pictures(SPEC, args.n, args.seed + 2 * chains.AHEAD)
    kl = checkpoint.load_panel("kl", "decoder")
    again_NCHW = rebuilt(kl, real_NCHW)
    found: dict[str, Any] = {
        "floor": ruler.floor, "ceiling": chains.exact(detector, real_NCHW, prompts),
        "autoencoder": {
            "FD": ruler(again_NCHW), "exact": chains.exact(detector, again_NCHW, prompts), "minutes": 60 * kl.card["hours"],
            "parameters": kl.card["parameters"], "pictures": kl.card["examples"],
        },
        "systems": {},
    }  # fmt: skip
    print(f"autoencoder: FD {around(found['autoencoder']['FD'])}, real ones {around(ruler.floor)}", flush=True)
    del report["steps"]  # each has its own
    arms = recipes()
    for name, steps in fitting(args, arms).items():
        asked = replace(arms[name], batch=8) if args.quick else arms[name]
        found["systems"][name] = system = {**cost(asked), "minutes": {}}
        for allowed, count in steps.items():
            arm = chains.taught(f"{name}-64", arms[name], Namespace(**{**vars(args), "steps": count}), report)
            report["arms"][f"{name}, {allowed:g}"] = report["arms"].pop(f"{name}-64")
            how = {"sampler": "ddpm", "steps": args.draw, "guidance": GUIDANCE, "threshold": THRESHOLDS[name]}
            pictures, seconds = chains.drawn(arm.model, arm.folder, args, prompts, **how)
            system["minutes"][f"{allowed:g}"] = one = {
                "FD": ruler(pictures), "exact": chains.exact(detector, pictures, prompts), "seconds": seconds, "steps": count,
                "pictures": arm.told["pictures"], "taken": arm.told["minutes"],
            }  # fmt: skip
            system["parameters"] = arm.told["parameters"]
            print(f"{name}, {allowed:g} minutes, {count} steps: FD {around(one['FD'])}, exact {percent(one['exact'])}", flush=True)
    return found


# --- what is said of it -----------------------------------------------------------------------------------------------------------


def reached(latent: Mapping[str, Any], pixel: Mapping[str, Any]) -> float | None:
    """The least minutes in which the one's FD is not above that of the other after all of its minutes; None = never."""
    aim = pixel[max(pixel, key=float)]["FD"]
    return min((float(m) for m, one in latent.items() if chains.apart(one["FD"], aim) != 1), default=None)


def as_good(latent: Mapping[str, Any], pixel: Mapping[str, Any]) -> tuple[str, str]:
    """After equal minutes, the most there are."""
    most = max(pixel, key=float)
    a, b = latent[most], pixel[most]
    better = {"FD": -chains.apart(a["FD"], b["FD"]), "objects": chains.apart(a["exact"], b["exact"])}
    worse = [name for name, side in better.items() if side == -1]
    if worse:
        return f"does not hold, worse by {' and '.join(worse)}", f"不成立，{'与'.join(SAID[one] for one in worse)}更差"
    above = [name for name, side in better.items() if side == 1]
    if above:
        return f"holds, even better by {' and '.join(above)}", f"成立，{'与'.join(SAID[one] for one in above)}甚至更好"
    return "holds, nothing is seen to be worse", "成立，看不出更差"


def cheaper(sooner: bool, less: Sequence[bool | None]) -> tuple[str, str]:
    """less: in memory, in seconds a picture; None = not known."""
    known = [one for one in less if one is not None]
    if sooner and all(known):
        return "holds", "成立"
    if not sooner and not any(known):
        return "does not hold", "不成立"
    names = zip((("minutes", "训练分钟"), ("memory", "内存"), ("seconds", "作图时间")), (sooner, *less), strict=True)
    fails = [name for name, one in names if one is False]
    en, zh = " and ".join(en for en, _ in fails), "、".join(zh for _, zh in fails)
    return f"holds in part, but not in {en}", f"部分成立，{zh}除外"


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    pixel, latent, coder = found["systems"]["pixel"], found["systems"]["latent"], found["autoencoder"]
    most = max(pixel["minutes"], key=float)
    first = reached(latent["minutes"], pixel["minutes"])
    both = latent, pixel
    drawing = [one["minutes"][most]["seconds"] for one in both]
    room = [one["memory"] for one in both if one["memory"] is not None]
    smaller = room[0] < room[1] if len(room) == 2 else None
    costs = cheaper(first is not None and first < float(most), (smaller, drawing[0] < drawing[1]))
    good = as_good(latent["minutes"], pixel["minutes"])

    def listed(of: Mapping[str, Any], language: int, stop: str) -> str:
        said = ("{} minutes, {:,} steps: {}, {}", "{} 分钟 {:,} 步：{}、{}")[language]
        return stop.join(said.format(m, one["steps"], around(one["FD"], 1), percent(one["exact"])) for m, one in of["minutes"].items())

    def paired(form: str, *values: float) -> str:
        return " / ".join(form.format(value) for value in values)

    compared = {
        "memory": paired("{:,.0f} MiB", *(one / 2**20 for one in room)) if len(room) == 2 else "?", "seconds": paired("{:.2f} s", *drawing),
        "flop": paired("{:,.0f} GFLOP", *(one["flop"] / 1e9 for one in both)),
        "parameters": paired("{:,.0f} k", *(one["parameters"] / 1000 for one in both)),
    }  # fmt: skip
    n, references, draw, before = f"{report['n']:,}", f"{report['references']:,}", report["draw"], f"{coder['minutes']:.0f}"
    real, back = (f"{around(fd, 1)}, {percent(exact)}" for fd, exact in (
        (found["floor"], found["ceiling"]), (coder["FD"], coder["exact"]),
    ))  # fmt: skip
    since = (f"from {first:g} minutes on", f"从 {first:g} 分钟起不再") if first is not None else ("at no time", "始终")
    return {
        "en": Row(
            "000, 002, 004", "diffusion on latents is cheaper than on pixels, and as good", evidence.shown_by(NAME, "en"),
            f"as good in {most} minutes: {good[0]}; cheaper: {costs[0]}. Scenes of 64 x 64, guidance {GUIDANCE:g}, chain of {draw} steps, "
            f"one seed. Minutes of one core, FD of {n} drawn scenes from {references} real ones, read exactly (as many real ones: {real}; "
            f"as the autoencoder gives them back: {back}). Latent: {listed(latent, 0, '; ')}. Pixel: {listed(pixel, 0, '; ')}. The latent "
            f"system's FD is not above the pixel one's last {since[0]}. Latent / pixel: memory of a training step {compared['memory']}, "
            f"{compared['flop']} a step, {compared['seconds']} a picture, {compared['parameters']} parameters. The autoencoder learnt "
            f"{before} minutes before, counted in none of these",
        ),
        "zh": Row(
            "000、002、004", "潜空间扩散比像素扩散便宜，而且一样好", evidence.shown_by(NAME, "zh"),
            f"{most} 分钟后一样好：{good[1]}；更便宜：{costs[1]}。64 x 64 的场景，引导 {GUIDANCE:g}，链 {draw} 步，一个种子。"
            f"单核分钟、由 {n} 张生成图与 {references} 张真实图算得的 FD、读对的比例（同样多的真实图：{real}；自编码器还原的：{back}）。"
            f"潜空间：{listed(latent, 1, '；')}。像素：{listed(pixel, 1, '；')}。潜空间的 FD {since[1]}高于像素最后的 FD。"
            f"潜空间 / 像素：训练一步的内存 {compared['memory']}，每步 {compared['flop']}，每张图 {compared['seconds']}，"
            f"参数 {compared['parameters']}。自编码器此前另学了 {before} 分钟，未计入",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row, detector=True, n=300, draw=(25, 2, "steps of the chain"),
        minutes=(MINUTES, (0.002, 0.004), "of one core, each a training of either system; the last says who is as good"),
    )  # fmt: skip
