"""How fast and how large the judges' mathematics is, beside scipy's root and torchmetrics, as ratios in one run.

    python -m benchmarks.judges [frechet|memory|scores|all] [--quick] [--threads N]

frechet   the Fréchet distance of two pairs of moments, at d = 2048: many pictures, and fewer than features
memory    what a process has grown by behind 2,000 and behind more pictures: each measured in a process of its own
scores    pictures to scores a second through one Inception with the same random weights: FD alone, then FD + KID + Inception Score

Lanes run in turn, round after round; medians count. Every lane's number is compared with ours first: what does not agree is not timed.
Leave the machine alone meanwhile. Figures go to docs/results/judges_speed.json, and a table is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.machine import facts
from benchmarks.race import load

__all__ = ["frechet", "main", "memory", "scores"]

ROOT = Path(__file__).resolve().parent.parent
Lanes = Mapping[str, Callable[[], float]]


def race(lanes: Lanes, rounds: int, agree: float | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Median seconds of each lane, and what it found; the first round is thrown away where there are more.

    Raises RuntimeError if a lane's number is further than `agree` (relative) from the first lane's.
    """
    seconds: dict[str, list[float]] = {name: [] for name in lanes}
    found: dict[str, float] = {}
    for number in range(rounds):
        for name in lanes if number % 2 == 0 else reversed(list(lanes)):
            begun = time.perf_counter()
            found[name] = lanes[name]()
            seconds[name].append(time.perf_counter() - begun)
            say(f"{name}: {seconds[name][-1]:.2f} s")
    first = next(iter(lanes))
    for name, value in found.items():
        if agree is not None and abs(value - found[first]) > agree * abs(found[first]):
            raise RuntimeError(f"{name} finds {value:.9g}, {first} {found[first]:.9g}: they do not compute the same")
    medians = {name: statistics.median(all_seconds[1:] or all_seconds) for name, all_seconds in seconds.items()}
    return {
        name: {"median_s": medians[name], "ratio": medians[name] / medians[first], "seconds": seconds[name], "found": found[name]}
        for name in lanes
    }  # fmt: skip


# --- the Fréchet distance -------------------------------------------------------------------------------------------------


def frechet(width: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Features like Inception's: not negative, correlated, a spectrum that falls by powers of ten."""
    import numpy as np
    import torch
    from scipy import linalg
    from torchmetrics.image.fid import _compute_fid

    from triptych.judges import _moments
    from triptych.judges._moments import Gaussian, gaussian_of

    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64) * (1 + torch.arange(width)).double().pow(-0.7)[:, None]

    def features(n: int, shift: float) -> torch.Tensor:
        return (torch.randn(n, width, generator=generator, dtype=torch.float64) @ mix * (1 + shift) + 0.3 + shift).clamp_min(0)

    def by_root(a: Gaussian, b: Gaussian, few: bool) -> float:
        one, other = (np.asarray(g.covariance_DD) for g in (a, b))
        nudge = 1e-6 * np.eye(width) if few else 0.0  # what the common programs add where the product is singular
        root = linalg.sqrtm((one + nudge) @ (other + nudge))
        apart = (a.mean_D - b.mean_D).square().sum().item()
        return float(apart + np.trace(one) + np.trace(other) - 2 * np.trace(root).real)

    out: dict[str, Any] = {"width": width}
    for name, n in (("many pictures", 3 * width), ("fewer than features", width // 4)):
        x, y = features(n, 0.0), features(n, 0.05)
        a, b = (Gaussian(mean_D=v.mean(0), covariance_DD=torch.cov(v.T)) for v in (x, y))
        few = n < width
        mine = [gaussian_of(v) for v in (x, y)] if few else [a, b]  # rows of few pictures are the input that we take
        lanes: Lanes = {
            "triptych": lambda mine=mine: _moments.frechet(*mine),
            "torchmetrics (eigvals)": lambda a=a, b=b: _compute_fid(a.mean_D, a.covariance_DD, b.mean_D, b.covariance_DD).item(),
            "scipy (sqrtm)": lambda a=a, b=b, few=few: by_root(a, b, few),
        }
        say(f"Fréchet distance, {name}: n = {n}, d = {width}")
        out[name] = {"n": n, "lanes": race(lanes, rounds, 1e-2 if few else 1e-6, say)}  # of few, both of theirs are roots of roundings
        if not few:
            exact = torch.linalg.svdvals(a.factor() @ b.factor().T).sum().item()
            out[name]["relative_error_of_root_trace"] = abs(_moments.root_trace(a, b) - exact) / exact
    return out


# --- memory ---------------------------------------------------------------------------------------------------------------


def grown(side: str, n: int, width: int) -> float:
    """MiB that this process has grown by (Linux), from its first thousand pictures to its last, `n` of them: the peak, result included."""
    import torch

    generator = torch.Generator().manual_seed(0)

    class Stub(torch.nn.Module):
        """Features as they would come, without the network."""

        name, num_features = "stub", width

        def features(self, images: torch.Tensor) -> torch.Tensor:
            return torch.randn(len(images), width, generator=generator)

        forward = features

    pictures, lanes = torch.zeros(250, 3, 1, 1), []
    if side == "triptych":
        from triptych.judges.distribution import Config, Distribution

        lanes = [Distribution(Config(scores=("FD", "KID"), resamples=0, kid_subsets=2), eyes=Stub())]
    else:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance

        lanes = [FrechetInceptionDistance(feature=Stub()), KernelInceptionDistance(feature=Stub(), subsets=2)]

    def peak() -> float:  # of this program: ru_maxrss would begin with what its parent had
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    before = 0.0
    for step in range(n // 250):
        for lane in lanes:
            if side == "triptych":
                lane.add(pictures, [], pictures)
            else:
                lane.update(pictures, True)
                lane.update(pictures, False)
        before = before or (peak() if step == 3 else 0.0)
    for lane in lanes:
        lane.result() if side == "triptych" else lane.compute()
    return peak() - before


def memory(width: int, counts: Sequence[int], say: Callable[[str], None]) -> dict[str, Any]:
    out: dict[str, Any] = {"width": width}
    for side in ("triptych", "torchmetrics"):
        out[side] = {}
        for n in counts:
            command = [sys.executable, str(Path(__file__)), "grown", "--side", side, "--n", str(n), "--width", str(width)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
            out[side][n] = float(done.stdout.split()[-1])
            say(f"{side}, {n} pictures of each side: grown by {out[side][n]:.0f} MiB")
    return out


# --- pictures to scores -----------------------------------------------------------------------------------------------------


def scores(n: int, batch: int, size: str, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The same random weights on both sides; each side resizes and normalises, and looks in its own best way."""
    import torch
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.inception import InceptionScore
    from torchmetrics.image.kid import KernelInceptionDistance

    from triptych.judges.distribution import Config, Distribution
    from triptych.vision.inception import SIZES, Inception

    torch.manual_seed(0)
    plain = Inception(SIZES[size]).eval().requires_grad_(False)
    fast = Inception(SIZES[size])
    fast.load_state_dict(plain.state_dict())
    fast.fuse().requires_grad_(False)
    pictures = [torch.rand(batch, 3, 64, 64) * 2 - 1 for _ in range(2 * n // batch)]
    drawn, real = pictures[: n // batch], pictures[n // batch :]

    def pixels_of(images: torch.Tensor) -> torch.Tensor:
        return fast.preprocess(images).contiguous(memory_format=torch.channels_last)

    class Eyes:
        """Ours: one look serves features and probabilities."""

        name = "inception"

        def features(self, images: torch.Tensor) -> torch.Tensor:
            return fast.pooled(pixels_of(images))

        def probabilities(self, images: torch.Tensor) -> torch.Tensor:
            return fast.probabilities(pixels_of(images))

        def features_and_probabilities(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return fast.features_and_probabilities(pixels_of(images))

    class Theirs(torch.nn.Module):
        """The network as it would be given to torchmetrics."""

        num_features = plain.width

        def __init__(self, classes: bool = False) -> None:
            super().__init__()
            self.classes = classes

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pooled = plain.pooled(plain.preprocess(images))
            return torch.nn.functional.linear(pooled, plain.fc.weight) if self.classes else pooled  # type: ignore[union-attr]

    size_of_subsets = min(n, 1000)

    @torch.no_grad()
    def ours(kinds: tuple[str, ...]) -> float:
        judge = Distribution(Config(scores=kinds, resamples=0, kid_subsets=1, kid_size=size_of_subsets), eyes=Eyes())
        for a, b in zip(drawn, real, strict=True):
            judge.add(a, [], b)
        return judge.result()["FD(inception)"]

    @torch.no_grad()
    def theirs(every: bool) -> float:
        distance = FrechetInceptionDistance(feature=Theirs())
        kernel = KernelInceptionDistance(feature=Theirs(), subsets=1, subset_size=size_of_subsets)
        classes = InceptionScore(feature=Theirs(True), splits=1)
        for a, b in zip(drawn, real, strict=True):
            for metric in (distance, kernel) if every else (distance,):
                metric.update(a, False)
                metric.update(b, True)
            if every:
                classes.update(a)
        if every:
            kernel.compute()
            classes.compute()
        return distance.compute().item()

    out: dict[str, Any] = {"n": n, "batch": batch, "network": size}
    # torchmetrics subtracts what a mean of squares has in common, in float64; with few pictures its roots are roundings: 1e-3 is agreement
    for name, kinds in (("FD", ("FD",)), ("FD + KID + IS", ("FD", "KID", "IS"))):
        say(f"pictures to scores: {name}")
        lanes: Lanes = {"triptych": lambda k=kinds: ours(k), "torchmetrics": lambda k=kinds: theirs(len(k) > 1)}
        out[name] = race(lanes, rounds, 1e-3, say)
        for row in out[name].values():
            row["images_per_s"] = 2 * n / row["median_s"]
    return out


# --- the command ------------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.judges", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="?", default="all", choices=["frechet", "memory", "scores", "all", "grown"])
    parser.add_argument("--quick", action="store_true", help="small and few: whether it runs, not how fast it is")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    for name, kind in (("--side", str), ("--n", int), ("--width", int)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.part == "grown":
        warnings.simplefilter("ignore")
        print(grown(asked.side, asked.n, asked.width))
        return

    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(asked.threads)

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    path = asked.out / "judges_speed.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found |= {"machine": facts(), "when": time.strftime("%Y-%m-%d"), "threads": asked.threads, "load": load(), "quick": asked.quick}
    if asked.part in ("frechet", "all"):
        found["frechet"] = frechet(256 if asked.quick else 2048, 2 if asked.quick else 3, say)
    if asked.part in ("memory", "all"):
        found["memory"] = memory(64 if asked.quick else 2048, (2000, 4000) if asked.quick else (2000, 10_000, 20_000, 40_000), say)
    if asked.part in ("scores", "all"):
        found["scores"] = scores(32 if asked.quick else 96, 8 if asked.quick else 16, "tiny" if asked.quick else "2015-12-05", 3, say)
    asked.out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    say(f"written: {path}")
    for line in table(found):
        print(line)


def table(found: Mapping[str, Any]) -> list[str]:
    """What a person reads: one row a lane, ratios to ours."""
    lines = ["| what | lane | s | times ours |", "|---|---|---:|---:|"]
    races = {
        **{f"Fréchet, {name}": part["lanes"] for name, part in found.get("frechet", {}).items() if isinstance(part, dict)},
        **{f"pictures to {name}": part for name, part in found.get("scores", {}).items() if isinstance(part, dict)},
    }
    for what, lanes in races.items():
        lines += [f"| {what} | {lane} | {row['median_s']:.3f} | {row['ratio']:.2f} |" for lane, row in lanes.items()]
    for side in ("triptych", "torchmetrics"):
        for n, grew in found.get("memory", {}).get(side, {}).items():
            lines.append(f"| memory behind {n} pictures of each side | {side} | | {grew:.0f} MiB |")
    return lines


if __name__ == "__main__":
    main()
