"""What the claims about chains of noise share: arms of the recipe `ddpm` that differ in one thing, pictures drawn and kept, distances.

An arm is a recipe with a name. It learns in RUNS/NAME-STEPS-SEED by the one trainer, which goes on where it was stopped, so that a claim
that was interrupted is simply run again; claims that need the same arm find it there, and train it once. Drawn pictures stay beside it,
a few in a file, with the seconds that they took. All arms of a claim see the same pictures, in the same order.

Seconds are time of the processor, as in `minutes.py`; an arm's minutes are those of its run, by the clock on the wall.
Shape legend: B batch, N drawn pictures, M real ones, C channels, H W grid, D width of the features.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

import triptych
from scripts.claims import evidence
from scripts.claims.evidence import ROOT, around
from scripts.claims.how_many_pictures import Known
from scripts.claims.minutes import worked
from triptych import catalog, checkpoint, data
from triptych.contracts import Prompt
from triptych.data.index import as_images
from triptych.judges import distribution
from triptych.judges.nearest import wilson
from triptych.pipeline import Generator, TextToImage
from triptych.recipe import Data, Recipe
from triptych.training import train

__all__ = [
    "AHEAD", "CLEAR", "Arm", "Ruler", "apart", "changed", "costs", "drawn", "drawn_by", "exact", "learnt", "listed", "predicted",
    "reader", "real_pictures", "right", "run", "share", "swept", "taught", "told",
]  # fmt: skip

RUNS = "out/claims-runs/diffusion"  # from ROOT
AHEAD = 10_000_000  # between the seeds of what is learnt from and of what it is compared with
PIECE = 50  # pictures drawn together, and kept in one file
FEW = 8  # pictures of a step, with --quick
# What is predicted where a claim is of something else. A network as small as these tints its pictures where it predicts eps (claim 29), and
# whatever is compared drowns in that.
CLEAR = {"target": "v", "loss": "simple", "variance": "fixed_small"}
Found = Mapping[str, Any]


class Arm(NamedTuple):
    """A trained arm: its model, its folder, and what is told of its training."""

    model: Any
    folder: Path
    told: dict[str, Any]


# --- a script's frame -------------------------------------------------------------------------------------------------------


def run(
    name: str, says: str | None, measure: Callable[..., dict[str, Any]], row: Callable[[Found], dict[str, evidence.Row]], *,
    detector: bool = False, n: int = 500, chart: Callable[[Found], str] | None = None, **more: tuple[Any, Any, str],
) -> None:  # fmt: skip
    """A script of a claim, from its options to its JSON: `found` in the report is what `measure(args, report, eyes)` returns.

    chart: an SVG of `found`, written beside the JSON.

    Its options are those of every claim, --steps, --n, --references, --runs, and `more`: name -> (default, with --quick, help), where a
    tuple takes several numbers, a bool is a switch and None takes words. detector: measure(args, report, eyes, detector).
    With --quick two steps, few pictures, and nothing of an earlier time.
    """
    args = parsed(says, n, more)
    seeing = {"eyes": triptych.load(args.eyes)} | ({"detector": triptych.load(args.detector)} if detector else {})
    report = evidence.begin(args, **seeing) | {"steps": args.steps, "n": args.n, "references": args.references, "arms": {}}
    report |= {one: value for one in more if isinstance(value := getattr(args, one), int)}
    report["found"] = measure(args, report, *seeing.values())
    evidence.finish(report, args, name, row, chart)


def parsed(says: str | None, n: int, more: Mapping[str, tuple[Any, Any, str]]) -> argparse.Namespace:
    parser = evidence.options(says)
    parser.add_argument("--steps", type=int, default=2500, help="of training, each arm")
    parser.add_argument("--n", type=int, default=n, help="pictures drawn in each way")
    parser.add_argument("--references", type=int, default=2000, help="real pictures they are compared with")
    parser.add_argument("--runs", type=Path, default=ROOT / RUNS, help="where arms learn, and go on when a claim is run again")
    for one, (default, _, help) in more.items():
        if isinstance(default, bool):
            parser.add_argument(f"--{one}", action="store_true", help=help)
        else:
            number = type(default[0] if isinstance(default, tuple) else default) if default is not None else str
            parser.add_argument(f"--{one}", type=number, nargs="+" if isinstance(default, tuple) else None, default=default, help=help)
    args = parser.parse_args()
    if args.quick:
        args.steps, args.n, args.references, args.runs = 2, 8, 16, args.runs / "quick"
        shutil.rmtree(args.runs, ignore_errors=True)
        for one, (_, quick, _) in more.items():
            setattr(args, one, quick)
    return args


# --- arms -------------------------------------------------------------------------------------------------------------------


def changed(recipe: Recipe, *, process: Mapping[str, Any] | None = None, unet: Mapping[str, Any] | None = None, **fields: Any) -> Recipe:
    """The recipe with some settings of its process and of its network replaced, and some of its own fields."""
    assert recipe.process is not None
    return replace(
        recipe, process=replace(recipe.process, config={**recipe.process.config, **(process or {})}),
        family=replace(recipe.family, config={**recipe.family.config, **(unet or {})}), **fields,
    )  # fmt: skip


def learnt(name: str, recipe: Recipe, args: Any, steps: int, **few: Any) -> tuple[Path, Path, dict[str, float]]:
    """Train it for so many steps, or what is left of them: its model, its run, its held-out measures. few: settings with --quick."""
    recipe = replace(
        recipe, name=name, steps=steps, seed=args.seed, validate_every=steps, preview_every=steps, preview_prompts=(),
        save_every=min(250, steps), keep=1,
    )  # fmt: skip
    quick: dict[str, Any] = {}
    if args.quick:
        recipe = replace(recipe, batch=FEW, compile=False, **few)
        quick = {"data": data.build(recipe.data)}  # and no held-out loss
    folder = args.runs / f"{name}-{steps}-{args.seed}"
    print(f"{name}: {folder}", file=sys.stderr, flush=True)
    result = train(recipe, out=folder, resume=True, **quick)
    if result.exit_code:  # somebody stopped it: the same command goes on
        sys.exit(result.exit_code)
    assert result.model is not None
    return result.model, folder, result.validation


def costs(card: Mapping[str, Any], held_out: Mapping[str, float], saw: str = "pictures") -> dict[str, Any]:
    """What a report says of a panel that learnt. saw: of what it counts how many it learnt from."""
    return {
        "minutes": 60 * card["hours"], saw: card["examples"], "parameters": card["parameters"], "fingerprint": card["fingerprint"],
        "held_out": dict(held_out),
    }  # fmt: skip


def taught(name: str, recipe: Recipe, args: Any, report: dict[str, Any] | None = None) -> Arm:
    """Train it for args.steps; the report's `arms` are told of it."""
    place, folder, held_out = learnt(name, recipe, args, args.steps)
    model = triptych.load(place)
    assert recipe.process is not None
    known = {**costs(model.generator.network.card, held_out), "target": recipe.process.config.get("target", "eps")}
    if report is not None:
        report["batch"] = FEW if args.quick else recipe.batch
        report["arms"][name] = known
    return Arm(model, folder, known)


def drawn_by(model: Any, **process: Any) -> Any:
    """The same panels, the process's settings changed: for what says how to draw, and was no part of training."""
    made = type(model.generator.process)(replace(model.generator.process.config, **process))
    generator = Generator(model.generator.network, made)
    return TextToImage(model.text_encoder, generator, model.decoder, name=model.name, sampling=model.sampling, size=model.size)


# --- pictures ---------------------------------------------------------------------------------------------------------------


def drawn(model: Any, folder: Path, args: Any, prompts: Sequence[Prompt] = (), **how: Any) -> tuple[Tensor, float]:
    """args.n pictures [N, 3, H, W] in [-1, 1], and how many seconds one took; what is in the folder already is not drawn again.

    prompts: as many, or none for a model that hears nothing.  how: of the process's Sampling; each guess of x0 is held to the range of
    pixels, as the recipe draws, unless it says otherwise.
    """
    said, how = list(prompts) or [Prompt()] * args.n, {"threshold": "static", **how}
    process, settings = model.generator.process, dataclasses.asdict(model.settings(**how))
    of = {
        "weights": model.fingerprints, "process": dataclasses.asdict(process.config), "how": settings, "seed": args.seed,
        "said": [(one.text, one.label) for one in prompts],
    }  # fmt: skip
    digest = hashlib.blake2b(json.dumps(of, sort_keys=True).encode(), digest_size=6).hexdigest()
    kept = folder / "drawn" / f"{settings['sampler']}-{settings['steps']}-{digest}"
    kept.mkdir(parents=True, exist_ok=True)
    pictures, seconds = [], 0.0
    for first in range(0, args.n, PIECE):
        rows = range(first, min(first + PIECE, args.n))
        path = kept / f"{rows.start:05d}-{rows.stop:05d}.safetensors"
        if not path.is_file():
            begun = worked()
            made = model.generate(said[rows.start : rows.stop], seeds=[args.seed + i for i in rows], batch_size=PIECE, **how)
            spent = torch.tensor(worked() - begun, dtype=torch.float64)
            checkpoint.write_atomically(path, save({"pictures": torch.from_numpy(np.stack([np.array(one) for one in made])), "s": spent}))
            print(f"{model.name}, {kept.name}: {rows.stop} of {args.n}", file=sys.stderr, flush=True)
        found = load_file(path)
        pictures.append(found["pictures"].numpy())
        seconds += float(found["s"])
    return as_images(list(np.concatenate(pictures))), seconds / args.n


def swept(
    model: Any, folder: Path, args: Any, ruler: Ruler, counts: Sequence[int], title: str, prompts: Sequence[Prompt] = (), **how: Any
) -> dict[str, Any]:
    """str(steps) -> FD and its interval, precision, recall, seconds a picture; drawn in each number of steps."""
    found = {}
    for steps in counts:
        pictures, seconds = drawn(model, folder, args, prompts, steps=steps, **how)
        found[str(steps)] = one = {**ruler(pictures), "seconds": seconds}
        print(f"{title}, {steps} steps: FD {around(one)}, {seconds:.3f} s a picture", flush=True)
    return found


def reader(detector: Any) -> Any:
    """The judge of objects, that sees by the detector."""
    return catalog.build("judges", "objects", size="default", eyes=detector.sight(), **detector.names())


def right(detector: Any, pictures_NCHW: Tensor, prompts: Sequence[Prompt]) -> np.ndarray:
    """1 where the detector reads what was asked, with its colours and places, and nothing else; 0 elsewhere: float64 [N]."""
    judge = reader(detector)
    for first in range(0, len(prompts), PIECE):
        judge.add(pictures_NCHW[first : first + PIECE], prompts[first : first + PIECE])
    return np.array(judge.each()["exact"])


def share(right_N: np.ndarray) -> dict[str, float]:
    """value, low, high (Wilson)."""
    low, high = wilson(int(right_N.sum()), len(right_N))
    return {"value": float(right_N.mean()), "low": low, "high": high}


def exact(detector: Any, pictures_NCHW: Tensor, prompts: Sequence[Prompt]) -> dict[str, float]:
    """How often it is `right`: value, low, high."""
    return share(right(detector, pictures_NCHW, prompts))


def real_pictures(spec: Data, n: int, seed: int, split: data.Split = "train") -> tuple[Tensor, list[Prompt]]:
    """The first n of another order of what training shows: as it, and none of it (the scenes have no end); or of the split held out."""
    source = data.build(spec, split=split)
    rows = [source.row(seed + AHEAD, i) for i in range(n)]
    return as_images([row.picture for row in rows]), [row.prompt for row in rows]


# --- distances --------------------------------------------------------------------------------------------------------------


class Ruler:
    """FD, precision and recall of pictures, from real ones of a split, through the eyes. floor: those of as many other real pictures."""

    def __init__(self, eyes: Any, spec: Data, args: Any, split: data.Split = "train") -> None:
        self.sight, self.resamples = eyes.sight(), 5 if args.quick else 200
        self.real_MD = self.sight.features(real_pictures(spec, args.references, args.seed, split)[0])
        self.floor = self(real_pictures(spec, args.n, args.seed + AHEAD, split)[0])

    def __call__(self, images_NCHW: Tensor) -> dict[str, float]:
        """value, low, high: FD and 1.96 deviations of its bootstrap over the drawn pictures; precision, recall."""
        config = distribution.Config(scores=("FD", "PR"), resamples=self.resamples)
        judge = distribution.Distribution(config, eyes=Known("here"))
        judge.add(self.sight.features(images_NCHW), (), self.real_MD)
        result = judge.result()
        fd = {name: result[f"FD(here){tail}"] for name, tail in (("value", ""), ("low", "_low"), ("high", "_high"))}
        return {**fd, "precision": result["precision(here)"], "recall": result["recall(here)"]}


def apart(a: Found, b: Found) -> int:
    """-1: a is lower than b, 1: higher, 0: their intervals overlap."""
    return (a["low"] > b["high"]) - (a["high"] < b["low"])


# --- in words ---------------------------------------------------------------------------------------------------------------


def predicted(report: Found) -> tuple[str, str]:
    """Where all arms predict v, that they do, as rows say it, in English and Chinese."""
    return (", predicting v", "，预测 v") if {one.get("target") for one in report["arms"].values()} == {"v"} else ("", "")


def told(report: Found) -> tuple[str, str]:
    """How long arms learnt, and how many pictures were drawn, as rows say it, in English and Chinese."""
    took = [one["minutes"] for one in report["arms"].values()]
    least, most = (f"{one:.1f}" for one in (min(took), max(took)))
    spans = least if least == most else f"{least}-{most}"
    steps, batch, n, m = (f"{report[key]:,}" for key in ("steps", "batch", "n", "references"))
    en, zh = predicted(report)
    return (
        f"{steps} steps of {batch} pictures ({spans} minutes by the clock, other work and pauses included) each{en}, one seed; "
        f"FD of {n} drawn scenes from {m} real ones",
        f"每种训练 {steps} 步、每步 {batch} 张图（按时钟 {spans} 分钟，含其他工作和停顿）{zh}，一个种子；"
        f"FD 由 {n} 张生成图与 {m} 张真实图算得",
    )


def listed(found: Mapping[str, Found], comma: str = ", ", digits: int = 1) -> str:
    """name value [low, high], one after another."""
    return comma.join(f"{name} {around(one, digits)}" for name, one in found.items())
