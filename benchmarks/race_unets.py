"""Race our U-Nets against diffusers' at the same weights and write docs/results/benchmarks_unet.json and .md.

    python -m benchmarks.race_unets [steps|loading|training|all] [--quick] [--full] [--threads N] [--models unet-64,unet-256,unet-plain]

Leave the machine alone meanwhile. `--full` adds Stable Diffusion 1.5's own U-Net, random weights, 64 x 64 latents: 16 GB of memory, 7 GB of
disk, half an hour. `--quick` runs fewer rounds, nothing compiled, and writes to out/benchmarks unless told otherwise.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report, run
from benchmarks.machine import facts
from benchmarks.setting import Lane, Setting
from benchmarks.unets import SHAPES

__all__ = ["PARTS", "lanes_of", "main", "page"]

PARTS = {"steps": "evaluation", "loading": "loading", "training": "training"}
SMALL = ("unet-64", "unet-256", "unet-plain")
FULL = "sd-1.5"
ROOT = Path(__file__).resolve().parent.parent


def lanes_of(part: str, models: Sequence[str], *, compiled: bool) -> Iterator[list[Lane]]:
    """The races of a part. The peer runs as it comes, and as its documentation says that it is fastest: channels-last, compiled."""
    for model in models:
        for pictures in (1, 8) if part == "steps" and model != FULL else (1,):
            lanes: list[Lane] = []
            for precision in ("float32", "bf16"):
                for side in ("diffusers", "ours"):
                    this: dict[str, Any] = {"side": side, "model": model, "job": PARTS[part], "precision": precision, "pictures": pictures}
                    lanes.append(Lane(**this))
                    best = side == "diffusers" and part == "steps"
                    if best:
                        lanes.append(Lane(**this, channels_last=True))
                    if compiled and pictures == 1 and part != "loading" and model != FULL:
                        lanes.append(Lane(**this, channels_last=best, compiled=True))
            yield lanes


TITLES = {
    "evaluation": "one evaluation, {rows} rows", "loading": "from a folder to a network that can be asked", "training": "one training step",
}  # fmt: skip
HEAD = """# U-Nets: how fast, beside diffusers

Written by `python -m benchmarks.race_unets`; all figures are in [benchmarks_unet.json](benchmarks_unet.json). Both sides hold the same
weights, which diffusers saved, and agree in float32 to 1e-5 an evaluation, checked before anything is timed. Lanes run in turn, each
side in its own process. Share: FLOP a second that a side computes itself (ours computes what both branches of guidance share once)
over the best matrix product measured here in that precision. Ratio: against the peer as it comes, at equal precision; vs default:
against it in float32. channels-last, and compiled with it: the peer as its documentation says that it is fastest. Training is the
documented loop, exponential average included, against our trainer's step with its own. Medians of rounds; ± half the distance between
quartiles.
"""


def page(every: Mapping[str, Any]) -> str:
    m = every["machine"]
    lines = [HEAD, f"{m['processor']}, {m['cores']} cores, {m['instructions']}, torch {m['torch']}, {m['system']}.", ""]
    for part in PARTS:
        if part in every:
            lines += _part(part, every[part])
    return "\n".join(lines)


def _part(name: str, part: Mapping[str, Any]) -> list[str]:
    c = part["ceilings"]
    lines = [
        f"## {name.capitalize()}", "",
        f"{part['when']}, {part['threads']} threads, load {part['load']:.1f}. Ceilings: float32 {c['float32']:.0f} GFLOP/s (torch's `mm` "
        f"{c['float32 mm']:.0f}), bf16 {c['bf16']:.0f} GFLOP/s, copying {c['copy GB/s']:.0f} GB/s.", "",
    ]  # fmt: skip
    for race in part["races"]:
        lanes, first = race["lanes"], race["lanes"][0]
        shape = SHAPES[first["model"]]
        rows = first["pictures"] * (2 if shape.words else 1)
        per, unit = (shape.batch, "images/s") if name == "training" else (1, "steps/s" if name == "steps" else "loads/s")
        words = f"{shape.words} words of {shape.text}" if shape.words else "no words"
        what = f"widths {', '.join(map(str, shape.widths))}; {shape.side} x {shape.side} x {shape.channels} latents; {words}"
        batch = f", batch {shape.batch}" if name == "training" else ""
        lines += [f"### {TITLES[first['job']].format(rows=rows)}{batch}: {first['model']} ({what})", ""]
        lines += [f"| | ms | ± | {unit} | share | ratio | vs default | agrees |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
        plain = [lane for lane in lanes if lane["side"] == "diffusers" and not lane["compiled"] and not lane["channels_last"]]
        base = {lane["precision"]: lane["median_s"] for lane in plain}
        lines += [*(report.row_of(lane, per, c, base, race["agreement"]) for lane in lanes), ""]
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.race_unets", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="?", default="all", choices=[*PARTS, "all"])
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing compiled")
    parser.add_argument("--full", action="store_true", help="Stable Diffusion 1.5's own U-Net too")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--models", default=",".join(SMALL))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    models = [name for name in asked.models.split(",") if name]
    if unknown := [name for name in models if name not in SHAPES]:
        raise SystemExit(f"no U-Net {unknown[0]!r} here; there are: {', '.join(SHAPES)}")
    out = asked.out or (ROOT / "out" / "benchmarks" if asked.quick else ROOT / "docs" / "results")
    compiled = not asked.quick and any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    found: dict[str, Any] = {"machine": facts()}
    for part in PARTS if asked.part == "all" else [asked.part]:
        every = [*models, *([FULL] if asked.full and part != "training" else [])]
        found[part] = run.measure(
            part, Setting(), threads=asked.threads, rounds=5 if asked.quick else 15, budget=0.1 if asked.quick else 0.15, models=every,
            say=say, races=list(lanes_of(part, every, compiled=compiled)),
        )  # fmt: skip
        report.write(out, found, "benchmarks_unet", page)  # a part that is done stays, whatever happens to the next
    say(f"written: {out / 'benchmarks_unet.json'} and benchmarks_unet.md")


if __name__ == "__main__":
    main()
