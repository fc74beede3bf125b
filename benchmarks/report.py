"""Figures to paper: docs/results/benchmarks.json holds all of them, benchmarks.md what a person reads. Nobody types one."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.race import Result
from benchmarks.setting import Lane

__all__ = ["agreement", "row_of", "write"]

MODELS = {
    "paper": "the paper's DiT (class labels) against `DiTTransformer2DModel`",
    "cross": "text-conditioned adaLN-single against `PixArtTransformer2DModel`",
    "modern": "the modern variant, which diffusers has not",
}
JOBS = {
    "evaluation": "one network evaluation, {rows} rows",
    "trajectory": "a whole guided picture, {steps} Euler steps",
    "training": "one training step",
}
HEAD = """# How fast, beside diffusers

Written by `python -m benchmarks`; the figures and their spread are in [benchmarks.json](benchmarks.json). Both sides hold the same
weights and agree in float32 to 1e-5 an evaluation and 70 dB a picture, checked before anything is timed. Lanes run in turn, each side in
its own process. Share: FLOP a second over the best matrix product measured here in that precision. Ratio: against the peer at equal
precision, not compiled; vs default: against diffusers in float32, not compiled. Medians of rounds; ± half the distance between quartiles.
"""


def agreement(results: Sequence[Result]) -> dict[str, float]:
    """Lane -> relative distance of what it computed from diffusers' float32 (of the picture for a trajectory, in PSNR, dB).

    Raises RuntimeError where equal precision is not equal output: float32 beyond 1e-5 of an evaluation, or below 70 dB.
    """
    import torch
    from safetensors.torch import load_file

    outs = {r.lane: load_file(r.out)["out"].double() for r in results if r.lane.job != "training"}
    base = next((out for lane, out in outs.items() if lane.name == "diffusers float32"), None)
    if base is None:
        base = next(iter(outs.values()), None)
    told: dict[str, float] = {}
    for lane, out in outs.items():
        assert base is not None
        error = ((out - base).norm() / base.norm()).item()
        if lane.job == "trajectory":
            told[lane.name] = 20 * torch.log10((base.max() - base.min()) / (out - base).square().mean().sqrt().clamp_min(1e-12)).item()
        else:
            told[lane.name] = error
        wrong = told[lane.name] < 70 if lane.job == "trajectory" else error > 1e-5
        if lane.precision == "float32" and wrong:
            raise RuntimeError(f"{lane.model} {lane.job}: {lane.name} does not compute what diffusers does ({told[lane.name]:g})")
    return told


def write(
    folder: Path, found: Mapping[str, Any], name: str = "benchmarks", page: Callable[[Mapping[str, Any]], str] | None = None
) -> None:  # fmt: skip
    """Merge `found` into what is there: parts that were not measured now stay.  name: of both files.  page: figures to markdown."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    every = {**old, **found}
    path.write_text(json.dumps(_rounded(every), indent=1) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text((page or _markdown)(every), encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {k: _rounded(v) for k, v in value.items()}
    return [_rounded(v) for v in value] if isinstance(value, (list, tuple)) else value


def _markdown(every: Mapping[str, Any]) -> str:
    m = every["machine"]
    lines = [HEAD, f"{m['processor']}, {m['cores']} cores, {m['instructions']}, torch {m['torch']}, {m['system']}.", ""]
    for part in ("sampling", "training"):
        if part in every:
            lines += _part(part, every[part])
    if "cold" in every:
        lines += _cold(every["cold"])
    return "\n".join(lines)


def _part(name: str, part: Mapping[str, Any]) -> list[str]:
    c, s = part["ceilings"], part["setting"]
    tokens = (s["side"] // s["patch"]) ** 2
    lines = [
        f"## {name.capitalize()}", "",
        f"{part['when']}, {part['threads']} threads, load {part['load']:.1f}. Ceilings: float32 {c['float32']:.0f} GFLOP/s (torch's `mm` "
        f"{c['float32 mm']:.0f}), bf16 {c['bf16']:.0f} GFLOP/s, copying {c['copy GB/s']:.0f} GB/s. Width {s['width']}, depth {s['depth']}, "
        f"{tokens} tokens, " + (f"batch {s['batch']}." if name == "training" else f"captions padded to {s['words']} tokens."), "",
    ]  # fmt: skip
    for race in part["races"]:
        lanes = race["lanes"]
        first = lanes[0]
        title = JOBS[first["job"]].format(rows=2 * first["pictures"], steps=s["steps"])
        per = {"training": s["batch"], "trajectory": s["steps"], "evaluation": 1}[first["job"]]
        unit = "images/s" if name == "training" else "steps/s"
        lines += [f"### {title}: {MODELS[first['model']]}", ""]
        lines += [f"| | ms | ± | {unit} | share | ratio | vs default | agrees |", "|---|---:|---:|---:|---:|---:|---:|---:|"]
        base = {lane["precision"]: lane["median_s"] for lane in lanes if lane["side"] == "diffusers" and not lane["compiled"]}
        for lane in lanes:
            lines.append(row_of(lane, per, c, base, race["agreement"]))
        lines.append("")
    return lines


def row_of(
    lane: Mapping[str, Any], per: int, ceilings: Mapping[str, float], base: Mapping[str, float], agreement: Mapping[str, float]
) -> str:  # fmt: skip
    name = Lane(**{one.name: lane[one.name] for one in fields(Lane) if one.name in lane}).name
    t, (low, high) = lane["median_s"], lane["quartiles_s"]
    share = f"{lane['flop'] / t / 1e9 / ceilings[lane['precision']]:.0%}" if lane["flop"] else ""
    ratio = f"{base[lane['precision']] / t:.2f}" if lane["precision"] in base else ""
    default = f"{base['float32'] / t:.2f}" if "float32" in base else ""
    close = "" if name not in agreement else f"{agreement[name]:.0f} dB" if lane["job"] == "trajectory" else f"{agreement[name]:.0e}"
    if close == "0e+00" or agreement.get(name, 0) > 200:
        close = "itself"
    shown = f"**{name}**" if lane["side"] == "ours" else name
    cells = [shown, f"{t * 1e3:.1f}", f"{(high - low) / 2 * 1e3:.1f}", f"{per / t:.1f}", share, ratio, default, close]
    return f"| {' | '.join(cells)} |"


def _cold(cold: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Cold start", "",
        f"{cold['when']}, load {cold['load']:.1f}; every time a new process; `triptych generate` with {cold['model']}, words and "
        "enlarging included.", "",
        "| | s | ± | first time |", "|---|---:|---:|---:|",
    ]  # fmt: skip
    for what, row in cold["commands"].items():
        low, high = row["quartiles_s"]
        lines.append(f"| {what} | {row['median_s']:.2f} | {(high - low) / 2:.2f} | {row['first_s']:.2f} |")
    return [*lines, ""]
