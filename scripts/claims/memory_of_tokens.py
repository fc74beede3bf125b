"""Claim 40: is a transformer's memory quadratic in its tokens, and a U-Net's not? Peaks of a DiT and of a U-Net, 64 to 4,096 tokens.

    python scripts/claims/memory_of_tokens.py [--tokens 64 256 1024 4096] [--rounds 3] [--quick]          (8 minutes)

A DiT of patches of 2 and a U-Net of nearly as many parameters, both untrained, take the same latents, one picture: N tokens are a grid of
2 sqrt(N) x 2 sqrt(N). The U-Net attends where its map is a quarter as wide, that is over N / 4 positions.

fused         attention as PyTorch computes it here: piece by piece, its matrix of N x N is never there (arXiv 2112.05682, 2205.14135)
written out   the same networks, the matrix in memory: the softmax of a product, which a training step keeps for its way back

forward       without gradients
step          forwards and backwards; gradients of the weights are there before, no optimiser

Memory is the growth of the process at its peak, of one measurement in a process of its own; freed blocks of 64 KiB and more are given back
at once there (glibc), so that the peak is what lives together. A small run goes before, so that code and threads are there. What the
growth cannot tell is less than about a megabyte: the power of N is taken from 256 tokens on, and between the last two counts, where
what does not grow weighs least. Its interval is the range of rounds, each of which measures everything once: it knows of the machine's
noise, not of other widths, depths and heads. A power above 1.5 is called quadratic, below linear. Small networks on CPUs: how far up the
quadratic part shows depends on the heads and on the width; that it is there does not. Writes memory_of_tokens.json.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
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
ALONE = 256  # tokens from which on the growth is more than what else a process does
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


def grown(work: Callable[[], None]) -> int | None:
    """Bytes by which this process grew while it worked, at its peak; None where the system does not tell."""
    from triptych.judging import _forget_peak, _peak

    _forget_peak()
    before = _peak()
    work()
    after = _peak()
    return None if before is None or after is None else after - before


def one(kind: str, tokens: int, phase: str) -> dict[str, Any]:
    """To be asked of a fresh process."""
    net = network(kind)
    with kernel_of("written out" if "written out" in kind else "fused"):
        for _ in range(2):
            passed(net, min(TOKENS), phase)
        return {"bytes": grown(lambda: passed(net, tokens, phase))}


# --- all of them ----------------------------------------------------------------------------------------------------------------


def power(bytes_of: Mapping[int, float]) -> float:
    """Of the number of tokens: 1 = linear, 2 = quadratic."""
    return evidence.fit([math.log(n) for n in bytes_of], [math.log(max(1.0, grown)) for grown in bytes_of.values()])[0]


def ranged(rounds: Sequence[Mapping[int, float]]) -> dict[str, float]:
    """The power of the rounds' median growth, and the range of the rounds' own."""
    every = [power(one) for one in rounds]
    middle = {n: sorted(one[n] for one in rounds)[len(rounds) // 2] for n in rounds[0]}
    value = power(middle)
    return {"value": value, "low": min(value, *every), "high": max(value, *every)}


def of_rounds(rounds: Sequence[Mapping[int, float]]) -> dict[str, Any]:
    """rounds: tokens -> bytes, each."""
    last = sorted(rounds[0])[-2:]
    trusted = [n for n in rounds[0] if n >= ALONE]
    trusted = trusted if len(trusted) > 1 else last
    return {
        "bytes": {str(n): [one[n] for one in rounds] for n in rounds[0]},
        "power": ranged([{n: one[n] for n in trusted} for one in rounds]), "last": ranged([{n: one[n] for n in last} for one in rounds]),
    }  # fmt: skip


def measured(args: Any) -> dict[str, Any]:
    cells = [(kind, tokens, phase) for kind in KINDS for phase in PHASES for tokens in sorted(args.tokens)]
    told: dict[tuple[str, int, str], list[float]] = {cell: [] for cell in cells}
    given_back = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}  # else glibc keeps what a small run freed
    for number in range(args.rounds):
        for cell in cells:
            command = [sys.executable, __file__, "--one", *map(str, cell)]
            said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=given_back).stdout)["bytes"]
            if said is None:
                raise ValueError("this system does not tell a process's peak of memory (/proc/self/status): measure on Linux")
            told[cell].append(said)
        print(f"memory: round {number + 1} of {args.rounds}", flush=True)
    found: dict[str, Any] = {}
    for kind in KINDS:
        parameters = sum(p.numel() for p in network(kind).parameters())
        phases = {}
        for phase in PHASES:
            rounds = [{n: told[kind, n, phase][r] for n in sorted(args.tokens)} for r in range(args.rounds)]
            phases[phase] = of_rounds(rounds)
            print(f"{kind}, {phase}: power {around(phases[phase]['power'])}, last {around(phases[phase]['last'])}", flush=True)
        found[kind] = {"parameters": parameters, **phases}
    return found


# --- what is said of it -------------------------------------------------------------------------------------------------------


def shape(one: Mapping[str, Any]) -> int:
    """1: quadratic, -1: linear, 0: not told, by the interval of the last power."""
    return (one["last"]["low"] > QUADRATIC) - (one["last"]["high"] < QUADRATIC)


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
        """At the least and at the most tokens."""
        every = found[kind][phase]["bytes"]
        return " -> ".join(f"{sorted(every[str(n)])[len(every[str(n)]) // 2] / 2**20:,.0f}" for n in (counts[-2], counts[-1]))

    def listed(language: int, comma: str, stop: str) -> str:
        return stop.join(
            f"{names[language]} "
            + comma.join(
                f"{said[language]} {around(found[kind][phase]['last'])} ({megabytes(kind, phase)} MiB)" for phase, said in PHASES.items()
            )
            for kind, names in KINDS.items()
        )

    sizes = " / ".join(f"{found[kind]['parameters'] / 1e6:.2f}" for kind in ("DiT", "U-Net"))
    return {
        "en": Row(
            "some", "a transformer's memory is quadratic in its tokens, a U-Net's is not", evidence.shown_by(NAME, "en"),
            f"the transformer: {transformer[0]}; the U-Net: {net[0]}. Power of the tokens by which a process's peak grows from "
            f"{span[0]} to {span[1]} (range of {report['rounds']} rounds; in brackets both peaks): {listed(0, ', ', '; ')}. "
            f"One picture, {sizes} M parameters (DiT / U-Net); the U-Net attends over a quarter as many positions, so that its matrix, "
            f"written out, is a sixteenth, and grows as fast in the end",
        ),
        "zh": Row(
            "部分", "Transformer 的内存随 token 数平方增长，U-Net 则不然", evidence.shown_by(NAME, "zh"),
            f"Transformer：{transformer[1]}；U-Net：{net[1]}。从 {span[0]} 到 {span[1]} 个 token，进程内存峰值增长的幂次"
            f"（{report['rounds']} 轮的范围；括号内为两个峰值）：{listed(1, '、', '；')}。一张图，参数 {sizes} M（DiT / U-Net）；"
            f"U-Net 只在四分之一的位置上做注意力，写出的矩阵是十六分之一，最终同样按平方增长",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="of a picture; squares of multiples of 4")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, metavar=("KIND", "TOKENS", "PHASE"), help="one measurement, in this process")
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(args.one[0], int(args.one[1]), args.one[2])))
        return
    if args.quick:
        args.tokens, args.rounds = TOKENS[:2], 1
    if len(args.tokens) < 2 or any(n % 16 or math.isqrt(n) ** 2 != n for n in args.tokens):
        parser.error(f"--tokens {' '.join(map(str, args.tokens))}: two or more, each the square of a multiple of 4: 64, 256, 1024")
    report = evidence.begin(args)
    report |= {"rounds": args.rounds, "memory": measured(args)}
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
