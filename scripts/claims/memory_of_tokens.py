"""Claim 40: is a transformer's memory quadratic in its tokens, and a U-Net's not? Peaks of a DiT and of a U-Net, 64 to 4,096 tokens.

    python scripts/claims/memory_of_tokens.py [--tokens 64 256 1024 4096] [--rounds 3] [--quick]          (2 minutes)

A DiT of patches of 2 and a U-Net of nearly as many parameters, both untrained, take the same latents, one picture: N tokens are a grid of
2 sqrt(N) x 2 sqrt(N). The U-Net attends where its map is a quarter as wide, that is over N / 4 positions.

fused         attention as it is computed here: piece by piece, its matrix of N x N is never there (arXiv 2112.05682, 2205.14135)
written out   the same networks, the matrix in memory: the softmax of a product, which a training step keeps for its way back

forward       without gradients
step          forwards and backwards; gradients of the weights are there before, no optimiser

Memory is the peak of a process beyond what it holds when it has run 64 tokens, when code, threads and gradients are there: so that of
64 tokens nothing can be told. Each network, each round, has a process of its own, which takes few tokens before many; freed blocks of
64 KiB and more are given back at once there (glibc), so that a peak is what lives together.

slope         of log bytes over log tokens, from 256 tokens on
power         of the last three counts N, qN, q^2 N: log_q of (M'' - M') / (M' - M), which for M = a + b N^p is p, whatever does not grow

Intervals are the range of rounds, each of which measures everything once: they know of the machine's noise, not of other widths, depths
and heads. A power above 1.5 is called quadratic, below linear: a network has parts of both, and which of them shows at 4,096 tokens
depends on its width and its heads. Writes memory_of_tokens.json.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import evidence
from scripts.claims.evidence import Row, around
from scripts.claims.window_attention import kernel_of
from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.generators import dit, unet

NAME = Path(__file__).stem
TOKENS = (64, 256, 1024, 4096)
WARM, ALONE = 64, 256  # tokens that are run before; from which on there is something to tell
KINDS = {  # what is said of each
    "DiT": ("DiT", "DiT"), "DiT, written out": ("DiT with its matrix written out", "写出矩阵的 DiT"),
    "U-Net": ("U-Net", "U-Net"), "U-Net, written out": ("U-Net with its matrix written out", "写出矩阵的 U-Net"),
}  # fmt: skip
PHASES = {"forward": ("forward", "前向"), "step": ("training step", "训练一步")}
QUADRATIC = 1.5  # the power above which it is called so
CHANNELS, PATCH = 4, 2


# --- one measurement ----------------------------------------------------------------------------------------------------------


def network(kind: str) -> nn.Module:
    """Both take latents of any size; as many parameters as each other, to a few hundredths."""
    known = {"latent": LatentSpace(kind="image", shape=(CHANNELS, 16, 16)), "condition": ConditionSpec()}
    if kind.startswith("DiT"):
        return dit.DiT(dit.Config(width=96, depth=4, num_heads=2, patch_size=PATCH), **known)
    levels = {"multipliers": (1, 2, 2), "num_res_blocks": 1, "attention": (2,), "num_heads": 2, "norm_groups": 4}
    return unet.UNet(unet.Config(width=20, **levels), **known)  # type: ignore[arg-type]


def passed(net: nn.Module, tokens: int, phase: str) -> None:
    """One picture of so many tokens, forwards, or forwards and backwards."""
    side = PATCH * math.isqrt(tokens)
    x, clock = torch.randn(1, CHANNELS, side, side), torch.full((1,), 500.0)
    with torch.set_grad_enabled(phase == "step"):
        out = net(x, clock, Condition())
    if phase == "step":
        out.square().mean().backward()


def peak_of(work: Callable[[], None]) -> int:
    """Bytes of this process at its largest while it works. Raises ValueError where the system does not tell."""
    from triptych.layers.memory import forget_peak, peak

    forget_peak()
    work()
    if (found := peak()) is None:
        raise ValueError("this system does not tell a process's peak of memory (/proc/self/status): measure on Linux")
    return found


def one(kind: str, counts: Sequence[int]) -> dict[str, list[int]]:
    """Phase -> bytes of each count beyond what stays. To be asked of a fresh process."""
    net, found = network(kind), {}
    with kernel_of("written out" if "written out" in kind else "fused"):
        for phase in PHASES:
            for _ in range(3):
                passed(net, WARM, phase)
            stays, found[phase] = peak_of(lambda: None), []
            for tokens in counts:
                passed(net, tokens, phase)  # once for what the first time at a size needs besides
                found[phase].append(peak_of(partial(passed, net, tokens, phase)) - stays)
    return found


# --- all of them ----------------------------------------------------------------------------------------------------------------


def slope(bytes_of: Mapping[int, float]) -> float:
    """Of the logarithms, over the tokens from which on there is something to tell."""
    trusted = {n: grown for n, grown in bytes_of.items() if n >= ALONE}
    trusted = trusted if len(trusted) > 1 else bytes_of
    return evidence.fit([math.log(n) for n in trusted], [math.log(max(1.0, grown)) for grown in trusted.values()])[0]


def power(bytes_of: Mapping[int, float]) -> float:
    """p of M = a + b N^p through the last three counts, each q times the one before: 1 = linear, 2 = quadratic."""
    *_, (_, least), (n, middle), (most_n, most) = sorted(bytes_of.items())
    return math.log(max(1.0, most - middle) / max(1.0, middle - least)) / math.log(most_n / n)


def ranged(rounds: Sequence[Mapping[int, float]], what: Callable[[Mapping[int, float]], float]) -> dict[str, float]:
    """Of the rounds' median growth, and the range of the rounds' own."""
    value, every = what({n: statistics.median(one[n] for one in rounds) for n in rounds[0]}), [what(one) for one in rounds]
    return {"value": value, "low": min(value, *every), "high": max(value, *every)}


def measured(args: Any) -> dict[str, Any]:
    told: dict[str, list[dict[str, list[float]]]] = {kind: [] for kind in KINDS}
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}  # else glibc keeps what a small run freed
    for number in range(args.rounds):
        for kind in KINDS:
            command = [sys.executable, __file__, "--one", kind, "--tokens", *map(str, args.tokens)]
            said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=given_back).stdout)
            told[kind].append(said)
            print(f"round {number + 1} of {args.rounds}, {kind}: {said}", flush=True)
    found: dict[str, Any] = {}
    for kind in KINDS:
        found[kind] = {"parameters": sum(p.numel() for p in network(kind).parameters())}
        for phase in PHASES:
            rounds = [dict(zip(args.tokens, one[phase], strict=True)) for one in told[kind]]
            found[kind][phase] = {
                "bytes": {str(n): [one[n] for one in rounds] for n in args.tokens}, "slope": ranged(rounds, slope),
                "power": ranged(rounds, power),
            }  # fmt: skip
            print(f"{kind}, {phase}: slope {around(found[kind][phase]['slope'])}, power {around(found[kind][phase]['power'])}", flush=True)
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def shape(one: Mapping[str, Any]) -> int:
    """1: quadratic, -1: linear, 0: not told, by the interval of its power."""
    return (one["power"]["low"] > QUADRATIC) - (one["power"]["high"] < QUADRATIC)


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["memory"]
    shapes = {kind: [shape(found[kind][phase]) for phase in PHASES] for kind in KINDS}

    def all_are(kind: str, which: int) -> bool:
        return all(one == which for one in shapes[kind])

    if all_are("DiT", 1):
        transformer = ("holds", "成立")
    elif all_are("DiT, written out", 1) and all_are("DiT", -1):
        transformer = (
            "holds of a matrix that is written out, does not hold with a fused kernel", "写出矩阵时成立，使用融合核时不成立"
        )  # fmt: skip
    elif all_are("DiT, written out", -1):
        transformer = ("does not hold", "不成立")
    else:
        transformer = ("not decided", "未能分出")
    if all_are("U-Net", -1):
        net = ("holds", "成立")
    else:
        net = ("does not hold", "不成立") if all_are("U-Net", 1) else ("not decided", "未能分出")

    counts = sorted(map(int, found["DiT"]["forward"]["bytes"]))
    span = (f"{counts[-2]:,}", f"{counts[-1]:,}")

    def megabytes(kind: str, phase: str) -> str:
        """Of the last two counts."""
        every = found[kind][phase]["bytes"]
        return " -> ".join(f"{statistics.median(every[str(n)]) / 2**20:,.0f}" for n in counts[-2:])

    def listed(language: int, comma: str, stop: str) -> str:
        return stop.join(
            f"{names[language]} "
            + comma.join(
                f"{said[language]} {around(found[kind][phase]['power'])} ({megabytes(kind, phase)} MiB)" for phase, said in PHASES.items()
            )
            for kind, names in KINDS.items()
        )

    sizes = " / ".join(f"{found[kind]['parameters'] / 1e6:.2f}" for kind in ("DiT", "U-Net"))
    return {
        "en": Row(
            "some", "a transformer's memory is quadratic in its tokens, a U-Net's is not", evidence.shown_by(NAME, "en"),
            f"the transformer: {transformer[0]}; the U-Net: {net[0]}. Power of the tokens by which a process's peak grows, "
            f"{span[0]} to {span[1]} (range of {report['rounds']} rounds; then both peaks): {listed(0, ', ', '; ')}. "
            f"One picture, {sizes} M parameters (DiT / U-Net); the U-Net attends over a quarter as many positions: its matrix "
            f"is a sixteenth, and has the same power",
        ),
        "zh": Row(
            "部分", "Transformer 的内存随 token 数平方增长，U-Net 则不然", evidence.shown_by(NAME, "zh"),
            f"Transformer：{transformer[1]}；U-Net：{net[1]}。从 {span[0]} 到 {span[1]} 个 token，进程内存峰值增长的幂次"
            f"（{report['rounds']} 轮的范围；后为两个峰值）：{listed(1, '、', '；')}。一张图，参数 {sizes} M（DiT / U-Net）；"
            f"U-Net 只在四分之一的位置上做注意力，矩阵是十六分之一，幂次相同",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="of a picture; squares of multiples of 4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", choices=KINDS, help="one network, in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one, args.tokens)))
        return
    if args.quick:
        args.tokens, args.rounds = TOKENS[:3], 1
    counts = sorted({*args.tokens})
    if len(counts) < 3 or any(n % 16 or math.isqrt(n) ** 2 != n for n in counts) or counts[-1] * counts[-3] != counts[-2] ** 2:
        parser.error(f"--tokens {' '.join(map(str, counts))}: three squares of multiples of 4 or more, by one factor: 64, 256, 1024")
    args.tokens = counts
    report = evidence.begin(args)
    report |= {"rounds": args.rounds, "memory": measured(args)}
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
