"""Are the judges honest? Real pictures are spoilt in known ways, and every judge must notice what is its business, and only that.

    python scripts/judges_honest.py [--eyes NAME|DIR] [--detector NAME|DIR] [--n 500] [--out docs/results]          (2 minutes, two cores)

The "model" of each row draws the truth of scenes that training never shows, and then spoils it: blurs it, noises it, gives each prompt
another prompt's picture, recolours one object, loses one, adds one, mirrors it. `truth` spoils nothing: it is the ceiling of each scale,
against references that are other scenes of the same kind.

Writes judges.json and judges.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter

import triptych
from triptych import judging
from triptych.contracts import Prompt
from triptych.data import scenes
from triptych.data.index import draws, pick
from triptych.eyes import DETECTOR, EYES

SIDE = 128
HEAD = """# Do the judges notice?

Written by `python scripts/judges_honest.py` (N = {n} scenes, seed {seed}; eyes {eyes}).
Real pictures of scenes, spoilt in known ways, judged as a model's would be; real pictures of other scenes of the same kinds are the
references. 95 % intervals in brackets. FD is a distance (0 = the same), all others are better when higher.

"""


def drawn(prompt: Prompt, objects: Sequence[Any] | None = None) -> Image.Image:
    graph = prompt.truth if objects is None else dataclasses.replace(prompt.truth, objects=tuple(objects))
    return Image.fromarray(scenes.render(graph, SIDE))


def spoilers(prompts: Sequence[Prompt], seed: int) -> dict[str, Callable[[int], Image.Image]]:
    """What is done -> the picture of prompt i."""

    def noised(i: int) -> Image.Image:
        pixels = np.asarray(drawn(prompts[i])).astype(np.float32)
        pixels = pixels + 25 * np.random.default_rng((seed, i)).standard_normal(pixels.shape)
        return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))

    def recoloured(i: int) -> Image.Image:
        first, *rest = prompts[i].truth.objects
        other = pick(draws(seed, "colour", i), [c for c in scenes.COLORS if c != first.color])
        return drawn(prompts[i], [dataclasses.replace(first, color=other), *rest])

    def added(i: int) -> Image.Image:
        here = np.asarray(drawn(prompts[i]))
        thing = scenes.Object(shape="circle", color="black", size="small", cx=0.12, cy=0.12, r=0.09)
        one = scenes.render(scenes.Scene(objects=(thing,)), SIDE)
        return Image.fromarray(np.where((one < 250).any(-1, keepdims=True), one, here))

    return {
        "truth": lambda i: drawn(prompts[i]),
        "blurred (radius 2)": lambda i: drawn(prompts[i]).filter(ImageFilter.GaussianBlur(2)),
        "noised (25 of 255)": noised,
        "another prompt's picture": lambda i: drawn(prompts[(i + 1) % len(prompts)]),
        "one object recoloured": recoloured,
        "one object lost": lambda i: drawn(prompts[i], prompts[i].truth.objects[1:]),
        "one object added": added,
        "mirrored": lambda i: drawn(prompts[i]).transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eyes", default=EYES)
    parser.add_argument("--detector", default=DETECTOR)
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args()

    started = time.time()
    eyes, detector = triptych.load(args.eyes), triptych.load(args.detector)
    asked, other = judging.scenes(args.n, args.seed), judging.scenes(args.n, args.seed + 1_000_000)
    asked = dataclasses.replace(asked, seeds=tuple(range(args.n)), real=other.real)  # the seed says which prompt
    rows: dict[str, judging.Seen] = {}
    for name, spoilt in spoilers(asked.prompts, args.seed).items():
        judges = judging.judges_for(asked, ["distribution", "objects", "clip_score", "retrieval"], eyes=eyes, detector=detector)
        rows[name] = judging.look(lambda _, seeds, spoilt=spoilt: [spoilt(i) for i in seeds], asked, judges, curves=False, batch=50)
        print(name, {k: round(v["value"], 3) for k, v in judging._scores(rows[name]).items()}, flush=True)
    told = judging.judgement(asked, rows, {name: {"name": name} for name in rows}, eyes=(eyes, detector))
    told["minutes"] = round((time.time() - started) / 60, 2)
    args.out.mkdir(parents=True, exist_ok=True)
    kept = {key: told[key] for key in ("version", "made", "protocol", "eyes", "measures", "models", "minutes")}
    (args.out / "judges.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n")
    (args.out / "judges.md").write_text(page(told, args))


def page(told: dict[str, Any], args: argparse.Namespace) -> str:
    tail = f"({next(iter(told['eyes']))})"
    shown = [f"FD{tail}", f"precision{tail}", f"recall{tail}", "exact", "counting", "colours", "position", "attribute binding",
             f"clip_score{tail}", f"image_to_text_1{tail}"]  # fmt: skip
    lines = ["| | " + " | ".join(name.removesuffix(tail) for name in shown) + " |", "|---|" + "---:|" * len(shown)]
    for one in told["models"]:
        cells = [one["scores"].get(name) for name in shown]
        lines.append(f"| {one['label']} | " + " | ".join("-" if c is None else cell(c) for c in cells) + " |")
    eyes = ", ".join(f"{name} {print_}" for name, print_ in told["eyes"].items())
    return HEAD.format(n=args.n, seed=args.seed, eyes=eyes) + "\n".join(lines) + "\n"


def cell(score: dict[str, float]) -> str:
    digits = 1 if abs(score["value"]) >= 10 else 3
    around = f" [{score['low']:.{digits}f}, {score['high']:.{digits}f}]" if "low" in score else ""
    return f"{score['value']:.{digits}f}{around}"


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
