"""Claim 35: does a classifier's gradient trade diversity for realism, in 25 steps, and is classifier-free guidance better, and dearer?

    python scripts/claims/two_guidances.py [--steps 2500] [--n 500] [--led 0 1 2 4 8] [--free 1 1.5 2 3 5] [--draw 25] [--quick]

Pictures show one thing of ten colours and eight shapes, 80 classes; the network hears the class. Two arms of the recipe `adm`, but that
v is predicted and no variance learnt (`chains.CLEAR`: of eps, pictures of a small network are tinted, and none is realistic):

v-classes     the class is always heard; drawing, the gradient of the recipe `adm-classifier` leads, times s (arXiv 2105.05233). The
              classifier is a training of its own, of half as many steps, as in the recipes
v-free        the same, and of one picture in ten the class is dropped; drawing, u + s (c - u) (arXiv 2207.12598), s = 1 without

Both draw by DDIM (eta 0) in --draw steps, each guess of x0 held to the range of pixels, the same classes and seeds for every s.

trade      precision and recall, through the eyes, from other real pictures: told at some s if precision is above that without guidance and
           recall below it. Precision's interval is Wilson's over drawn pictures; recall's, of a jackknife over twenty parts of the drawn
           pictures and of the real ones' number
25 steps   FD of the classifier's guidance (s = 2, the recipe's) in --draw steps is not told to be above that in --many steps
better     the best s of each kind, no guidance left out: by FD, and by objects (how often the detector reads the thing that was asked for,
           with its colour, and nothing else). Each kind may choose among as many s; that the best was chosen is not in the intervals
dearer     time of the processor of a training step with and without dropping classes, in alternating rounds without compilation; more than
           1.05 times as long is dearer. And of drawing a picture: without guidance, with each (s = 2)

One training each, so that the two arms differ by chance as well: what they draw without guidance stands beside. Intervals of FD are
bootstraps over drawn pictures, of times bootstraps over rounds. Writes two_guidances.json.
Shape legend: N drawn pictures, M real ones, D width of the features.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import asked, chains, evidence, minutes
from scripts.claims.evidence import Row, around, percent
from triptych import checkpoint, data
from triptych.judges._kernels import inside
from triptych.judges.nearest import wilson
from triptych.pipeline import Generator, TextToImage
from triptych.recipe import Recipe
from triptych.recipes.diffusion import adm, adm_classifier

NAME = Path(__file__).stem
LED, FREE = (0.0, 1.0, 2.0, 4.0, 8.0), (1.0, 1.5, 2.0, 3.0, 5.0)  # scales; the first of each: no guidance
KINDS = {"led": ("classifier", "分类器"), "free": ("classifier-free", "无分类器")}
MIDDLE = 2.0  # at which 25 steps are tried, and drawing is timed
DEARER = 1.05  # times as long: less is called the same
NEIGHBOURS, PARTS = 3, 20  # of precision and recall; of the jackknife


# --- arms -------------------------------------------------------------------------------------------------------------------


def labelled(dropout: float) -> Recipe:
    """The recipe `adm` without its guide, which only draws; v is predicted."""
    neighbours = {place: one for place, one in adm().neighbours.items() if place != "guide"}
    return chains.changed(adm(), process=chains.CLEAR, unet={"learn_sigma": False}, neighbours=neighbours, guide=None, dropout=dropout)


def critic(args: Any, report: dict[str, Any]) -> nn.Module:
    """The classifier of noised pictures, taught as the arms are, for half as many steps."""
    steps = max(1, args.steps // 2)
    place, _, held_out = chains.learnt(adm_classifier().name, adm_classifier(), args, steps)
    found: Any = checkpoint.load_panel(place, "vision")
    report["classifier"] = chains.costs(found.card, held_out) | {"steps": steps}
    return found


def led(model: Any, guide: nn.Module, scale: float) -> TextToImage:
    """The same panels, pulled by a classifier; 0: not at all."""
    generator = Generator(model.generator.network, model.generator.process, guide)
    return TextToImage(
        model.text_encoder, generator, model.decoder, name=model.name, sampling=model.sampling, size=model.size, guide={"scale": scale}
    )


# --- realism and diversity --------------------------------------------------------------------------------------------------


def cloud(drawn_ND: Tensor, real_MD: Tensor) -> dict[str, dict[str, float]]:
    """precision: the share of drawn pictures that lie among real ones; recall: of real ones that lie among drawn ones."""
    among_N = inside(drawn_ND, real_MD, NEIGHBOURS)
    precision = dict(zip(("low", "high"), wilson(int(among_N.sum()), len(among_N)), strict=True))

    def recalled(rows_ND: Tensor) -> float:
        return float(inside(real_MD, rows_ND, NEIGHBOURS).double().mean())

    value, parts = recalled(drawn_ND), torch.arange(len(drawn_ND)) % min(PARTS, len(drawn_ND))
    without = np.array([recalled(drawn_ND[parts != part]) for part in range(int(parts.max()) + 1)])
    variance = (len(without) - 1) * without.var() + value * (1 - value) / len(real_MD)  # of the drawn ones, and of the real ones' number
    half = 1.96 * math.sqrt(variance)
    low, high = wilson(value * len(real_MD), len(real_MD))  # 0 and 1 have no variance, and are not certain
    recall = {"value": value, "low": min(low, max(0.0, value - half)), "high": max(high, min(1.0, value + half))}
    return {"precision": {"value": float(among_N.double().mean()), **precision}, "recall": recall}


def looked(ruler: chains.Ruler, images_NCHW: Tensor) -> dict[str, Any]:
    """FD; precision and recall with their intervals."""
    fd = ruler(images_NCHW)
    return {"FD": {name: fd[name] for name in ("value", "low", "high")}, **cloud(ruler.sight.features(images_NCHW), ruler.real_MD)}


# --- cost -------------------------------------------------------------------------------------------------------------------


def ratio(one: Sequence[float], other: Sequence[float]) -> dict[str, Any]:
    """How many times as long the first takes: the median over rounds, interval by a bootstrap over them."""
    times_R = np.array(one) / np.maximum(np.array(other), 1e-9)
    return evidence.estimate(lambda r: float(np.median(times_R[r])), len(times_R)) | {"rounds": times_R.tolist()}


def of_training(args: Any) -> dict[str, Any]:
    """Seconds of a step with the class dropped now and then, and without; as many steps in turn, each round beginning with the other."""
    arms, seconds = {"free": 0.1, "plain": 0.0}, {"free": list[float](), "plain": list[float]()}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(args.rounds):
            for name in sorted(arms, reverse=bool(number % 2)):
                recipe = replace(minutes.of_steps(labelled(arms[name]), args.few), seed=args.seed, compile=False)
                recipe = replace(recipe, batch=8) if args.quick else recipe
                place = Path(folder) / f"{number}-{name}"
                _, clock = minutes.trained(recipe, place, name, data=data.build(recipe.data))  # and no held-out loss
                seconds[name].append(clock.seconds_a_step)
    middle = {name: statistics.median(every) for name, every in seconds.items()}
    return {**ratio(seconds["free"], seconds["plain"]), "seconds": middle, "steps": args.few}


def of_drawing(ways: Mapping[str, tuple[Any, dict[str, Any]]], args: Any, prompts: Sequence[Any]) -> dict[str, Any]:
    """Seconds a picture of each way, in turn, and how many times those of the first one."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    said = list(prompts[: args.timed])
    for number in range(args.rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            model, how = ways[name]
            begun = minutes.worked()
            model.generate(said, steps=args.draw, sampler="ddim", threshold="static", batch_size=len(said), **how)
            seconds[name].append((minutes.worked() - begun) / len(said))
    first = next(iter(ways))
    return {
        name: {**ratio(every, seconds[first]), "seconds": statistics.median(every)} for name, every in seconds.items() if name != first
    } | {"seconds": statistics.median(seconds[first])}


def swept_scales(args: Any) -> dict[str, list[float]]:
    """Kind -> its scales, no guidance first. Raises ValueError where there is nothing to compare."""
    found = {kind: [off, *sorted({*getattr(args, kind)} - {off})] for kind, off in (("led", 0.0), ("free", 1.0))}
    for kind, scales in found.items():
        if len(scales) < 2:
            raise ValueError(f"--{kind} {scales[0]:g} is no guidance; give a scale besides")
    if args.many <= args.draw:
        raise ValueError(f"--many {args.many} steps are to be more than the {args.draw} of --draw")
    return found


def measure(args: Any, report: dict[str, Any], eyes: Any, detector: Any) -> dict[str, Any]:
    every = swept_scales(args)
    training = of_training(args)
    print(f"a training step with classes dropped: {around(training)} times as long", flush=True)
    spec = adm().data
    ruler = chains.Ruler(eyes, spec, args)
    real, prompts = chains.real_pictures(spec, args.n, args.seed + 2 * chains.AHEAD)
    guide = critic(args, report)
    plain, free = (chains.taught(name, labelled(p), args, report) for name, p in (("v-classes", 0.0), ("v-free", 0.1)))
    found: dict[str, Any] = {"training": training, "floor": looked(ruler, real), "ceiling": chains.exact(detector, real, prompts)}

    def drawn(kind: str, scale: float, steps: int) -> dict[str, Any]:
        how: dict[str, Any] = {"sampler": "ddim", "steps": steps}
        if kind == "led":  # chains.drawn names what it keeps by what it is told, and of the classifier it is told nothing
            folder = plain.folder / f"led-{scale:g}-{report['classifier']['fingerprint']}" if scale else plain.folder
            pictures, seconds = chains.drawn(led(plain.model, guide, scale), folder, args, prompts, guidance=1.0, **how)
        else:
            pictures, seconds = chains.drawn(free.model, free.folder, args, prompts, guidance=scale, **how)
        one = {**looked(ruler, pictures), "exact": chains.exact(detector, pictures, prompts), "seconds": seconds}
        print(
            f"{kind} {scale:g}, {steps} steps: FD {around(one['FD'])}, precision {around(one['precision'])}, "
            f"recall {around(one['recall'])}, exact {percent(one['exact'])}", flush=True,
        )  # fmt: skip
        return one

    for kind, scales in every.items():
        found[kind] = {f"{scale:g}": drawn(kind, scale, args.draw) for scale in scales}
    found["steps"] = {str(steps): drawn("led", MIDDLE, steps) for steps in (args.draw, args.many)}
    ways = {
        "off": (led(plain.model, guide, 0.0), {"guidance": 1.0}), "led": (led(plain.model, guide, MIDDLE), {"guidance": 1.0}),
        "free": (free.model, {"guidance": MIDDLE}),
    }  # fmt: skip
    found["drawing"] = of_drawing(ways, args, prompts)
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def traded(scales: Mapping[str, Mapping[str, Any]]) -> tuple[int, list[str]]:
    """(1, at which scales): realism bought with diversity; -1: diversity is paid, or realism lost, and nothing bought; 0: not told."""
    off, *guided = scales.values()
    up = [chains.apart(one["precision"], off["precision"]) for one in guided]
    down = [chains.apart(one["recall"], off["recall"]) for one in guided]
    bought = [name for name, more, less in zip(list(scales)[1:], up, down, strict=True) if more == 1 and less == -1]
    if bought:
        return 1, bought
    return (-1 if 1 not in up and (-1 in up or -1 in down) else 0), []


def better(found: Mapping[str, Any], what: str, sign: int) -> tuple[int, dict[str, str]]:
    """Whether the best of classifier-free guidance is better (1) or worse (-1) than the best of the classifier's; kind -> its best s."""
    best = {}
    for kind in KINDS:
        guided = list(found[kind])[1:]
        best[kind] = max(guided, key=lambda s, k=kind: sign * found[k][s][what]["value"])
    return sign * chains.apart(found["free"][best["free"]][what], found["led"][best["led"]][what]), best


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    says = asked.VERDICTS
    trades = {}
    for kind in KINDS:
        which, at = traded(found[kind])
        en, zh = says[which]
        trades[kind] = (f"{en} (s = {', '.join(at)})", f"{zh}（s = {'、'.join(at)}）") if at else (en, zh)
    few, many = min(found["steps"], key=int), max(found["steps"], key=int)
    enough = says[-1 if chains.apart(found["steps"][few]["FD"], found["steps"][many]["FD"]) == 1 else 1]
    wins = {what: better(found, what, sign) for what, sign in (("FD", -1), ("exact", 1))}
    training, drawing = found["training"], found["drawing"]
    dearer = says[(training["low"] > DEARER) - (training["high"] < DEARER)]

    def listed(kind: str, comma: str, stop: str) -> str:
        return stop.join(
            f"{s}: {around(one['FD'], 1)}{comma}{around(one['precision'])}{comma}{around(one['recall'])}{comma}{percent(one['exact'])}"
            for s, one in found[kind].items()
        )

    def chosen(what: str, language: int) -> str:
        which, best = wins[what]
        names = " / ".join(f"s = {best[kind]}" for kind in KINDS)
        return f"{says[which][language]} ({names})" if language == 0 else f"{says[which][language]}（{names}）"

    took, fds = chains.told(report), [around(found["steps"][one]["FD"], 1) for one in (few, many)]
    ceiling, first = percent(found["ceiling"]), report["classifier"]
    costs = [around(training), around(drawing["led"]), around(drawing["free"])]
    return {
        "en": Row(
            "some", "classifier guidance buys realism with diversity, in 25 steps; classifier-free guidance does it better, its training "
            "is dearer", evidence.shown_by(NAME, "en"),
            f"the trade, by a classifier: {trades['led'][0]}; classifier-free: {trades['free'][0]}. {few} steps: {enough[0]} (FD {fds[0]}, "
            f"in {many}: {fds[1]}). Classifier-free is better, each at its best s (classifier / free), by FD: {chosen('FD', 0)}; by "
            f"objects: {chosen('exact', 0)}. Dearer training: {dearer[0]}: a step takes {costs[0]} times as long; the classifier is a "
            f"second training ({first['minutes']:.1f} minutes). Drawing takes {costs[1]} times as long with a classifier, {costs[2]} "
            f"classifier-free. {took[0]}. One thing of 80 classes; s: FD, precision, recall, the thing asked for drawn exactly (real "
            f"pictures {ceiling}). Classifier {listed('led', ', ', '; ')}. Classifier-free {listed('free', ', ', '; ')}",
        ),
        "zh": Row(
            "部分", "分类器引导以多样性换真实感，25 步即可；无分类器引导更好，但训练更贵", evidence.shown_by(NAME, "zh"),
            f"此消彼长，分类器：{trades['led'][1]}；无分类器：{trades['free'][1]}。{few} 步：{enough[1]}"
            f"（FD {fds[0]}，{many} 步 {fds[1]}）。无分类器更好，各取最佳 s（分类器 / 无分类器），按 FD：{chosen('FD', 1)}；按物体："
            f"{chosen('exact', 1)}。训练更贵：{dearer[1]}：一步用时是 {costs[0]} 倍；分类器则要另行训练（{first['minutes']:.1f} 分钟）。"
            f"生成用时：分类器 {costs[1]} 倍，无分类器 {costs[2]} 倍。{took[1]}。80 类中的一个物体；s：FD、精确率、召回率、所要物体画得全"
            f"对的比例（真实图 {ceiling}）。分类器 {listed('led', '、', '；')}。无分类器 {listed('free', '、', '；')}",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row, detector=True,
        led=(LED, (0.0, 2.0), "scales of the classifier's gradient; 0, none, is always among them"),
        free=(FREE, (1.0, 2.0), "scales of classifier-free guidance; 1, none, is always among them"), draw=(25, 2, "steps of DDIM"),
        many=(100, 3, "steps with which these few are compared"), few=(25, 3, "steps of training in each timed round"),
        rounds=(10, 2, "of timing"), timed=(25, 2, "pictures drawn in each timed round"),
    )  # fmt: skip
