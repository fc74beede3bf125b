"""Claim 41: can one draw beyond the size that was learnt? A U-Net and a DiT on twice and on four times their area.

    python scripts/claims/larger_canvas.py [--unet sd] [--dit emoji] [--n 200] [--draw 0] [--quick]

unet    `sd`: latents of 16 x 16 for pictures of 64 x 64; every layer is a convolution, an attention or a norm, and knows no places
dit     `emoji`: pixels, 32 x 32 (what enlarges them to 128 afterwards is left out, and its pipeline, which takes no other size, is given
        noise of the canvas instead). Its places are learnt for 8 x 8 patches; on a larger canvas they are spread over the same range, so
        that there is no place that it does not know, and neighbours are nearer than they ever were

Canvases: the size that was learnt, twice as wide, twice as wide and high. Words: captions of scenes. Steps and guidance: each model's own.

windows     one of the learnt size from each picture, at a place that is drawn: FD through the eyes from windows of real pictures that stand
            side by side on such a canvas (their things lie within each, so that no seam cuts one): a world that goes on
things      that the detector reads, for each thing asked for: through windows of the learnt size, half a window apart, each of which counts
            what has its centre in its middle half, so that all is counted once; of a thing larger than windows are, each sees a part.
            Constant: the picture is enlarged; constant on an area: it goes on. Of real pictures side by side the same count is told
exact       how often the whole picture, made as small as the detector looks, shows exactly what was asked: of square canvases alone

That the claim holds means that windows' FD is not told to be above that at the learnt size, and that there are as many things for each
asked one as at the learnt size. The two models differ in everything (words, data, minutes, pixels or latents): each is compared with
itself. A DiT whose places went on instead of being spread, or that saw several sizes in training, is another one. One training each;
intervals are bootstraps over drawn pictures (exact: Wilson). Writes larger_canvas.json.
Shape legend: N pictures, C channels, H W grid, S side of a window.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import triptych
from scripts.claims import chains, evidence
from scripts.claims.evidence import Row, around, percent
from triptych import checkpoint
from triptych.contracts import Prompt, Rng
from triptych.data.index import as_images
from triptych.recipe import Data, Source

NAME = Path(__file__).stem
CANVASES = {"1": (1, 1), "2": (1, 2), "4": (2, 2)}  # area -> height and width, in learnt ones
MODELS = {"unet": ("U-Net", "U-Net"), "dit": ("DiT", "DiT")}


class Learnt(NamedTuple):
    """The size that a model learnt: of latents, of pictures, and what its decoder is told so that it draws that."""

    latents_CHW: tuple[int, int, int]
    side: int
    decoder: dict[str, Any]


def learnt(model: Any) -> Learnt:
    """Raises ValueError for a model whose pictures are no squares, or whose decoder has no such size."""
    decoder = model.decoder
    channels, height, width = decoder.latent.shape
    if factor := getattr(decoder, "factor", 0):
        height, width = (side // factor for side in model.size)
    if height != width:
        raise ValueError(f"{model.name} draws {model.size[1]}x{model.size[0]}; windows here are squares")
    if factor:
        return Learnt((channels, height, width), factor * height, {})
    if "size" not in {f.name for f in dataclasses.fields(decoder.Sampling)}:
        raise ValueError(f"{model.name}: {type(decoder).__name__} has one size of pictures; take a model with a decoder of any size")
    return Learnt((channels, height, width), height, {"size": height})  # an upscaler, which is asked for nothing


# --- pictures ---------------------------------------------------------------------------------------------------------------


def drawn(model: Any, folder: Path, args: Any, prompts: Sequence[Prompt], canvas: tuple[int, int]) -> tuple[Tensor, float]:
    """args.n pictures [N, 3, H, W] on so many learnt heights and widths, and seconds a picture; kept, and not drawn again."""
    from scripts.claims.minutes import worked

    (channels, height, width), _, decoder = learnt(model)
    shape, steps = (channels, canvas[0] * height, canvas[1] * width), args.draw or None
    of = {
        "weights": model.fingerprints, "how": dataclasses.asdict(model.settings(steps=steps)), "seed": args.seed, "shape": shape,
        "decoder": decoder, "said": [one.text for one in prompts],
    }  # fmt: skip
    kept = folder / "drawn" / hashlib.blake2b(json.dumps(of, sort_keys=True).encode(), digest_size=6).hexdigest()
    pictures, seconds = [], 0.0
    for first in range(0, args.n, chains.PIECE):
        rows = range(first, min(first + chains.PIECE, args.n))
        path = kept / f"{rows.start:05d}-{rows.stop:05d}.safetensors"
        if not path.is_file():
            keys = [args.seed + i for i in rows]
            begun, noise = worked(), Rng.of_seeds(keys).normal("start", shape)
            made = model.generate(prompts[rows.start : rows.stop], seeds=keys, noise=noise, steps=steps, decoder=decoder, batch_size=25)
            spent = torch.tensor(worked() - begun, dtype=torch.float64)
            checkpoint.write_atomically(path, save({"pictures": torch.from_numpy(np.stack([np.array(one) for one in made])), "s": spent}))
            print(f"{model.name}, {shape[1]} x {shape[2]}: {rows.stop} of {args.n}", file=sys.stderr, flush=True)
        found = load_file(path)
        pictures += list(found["pictures"].numpy())
        seconds += float(found["s"])
    return as_images(pictures), seconds / args.n


def side_by_side(real_NCSS: Tensor, canvas: tuple[int, int], seed: int) -> tuple[Tensor, Tensor]:
    """As many canvases full of real pictures, and which ones: [N, C, H, W], int64 [N, pictures of a canvas]; each picture is used as often
    as any other, once in every place."""
    n, generator = len(real_NCSS), torch.Generator().manual_seed(seed)
    which = torch.stack([torch.randperm(n, generator=generator) for _ in range(canvas[0] * canvas[1])], dim=1)
    rows = [torch.cat([real_NCSS[which[:, r * canvas[1] + c]] for c in range(canvas[1])], dim=3) for r in range(canvas[0])]
    return torch.cat(rows, dim=2), which


# --- windows ----------------------------------------------------------------------------------------------------------------


def one_each(images_NCHW: Tensor, side: int, seed: int) -> Tensor:
    """[N, C, S, S]: of each picture one window, anywhere."""
    generator, (height, width) = torch.Generator().manual_seed(seed), images_NCHW.shape[2:]
    tops, lefts = (torch.randint(0, length - side + 1, (len(images_NCHW),), generator=generator).tolist() for length in (height, width))
    return torch.stack([one[:, y : y + side, x : x + side] for one, y, x in zip(images_NCHW, tops, lefts, strict=True)])


def along(length: int, side: int) -> Iterator[tuple[int, float, float]]:
    """(start of a window, what it counts from, and to): every point of the length is counted by one window, in its middle half but for
    the ends, in pixels."""
    starts = range(0, length - side + 1, side // 2)
    for start in starts:
        low = 0.0 if start == 0 else start + side / 4
        yield start, low, float(length) + 1 if start == starts[-1] else start + 3 * side / 4


def things(judge: Any, images_NCHW: Tensor, side: int) -> np.ndarray:
    """How many things there are in each, int [N]."""
    counts, (height, width) = np.zeros(len(images_NCHW), dtype=np.int64), images_NCHW.shape[2:]
    for top, above, below in along(height, side):
        for left, before, behind in along(width, side):
            for i, seen in enumerate(judge.read(images_NCHW[:, :, top : top + side, left : left + side])):
                for one in seen:
                    y, x = top + min(max(one.cy, 0.0), 1.0) * side, left + min(max(one.cx, 0.0), 1.0) * side
                    counts[i] += above <= y < below and before <= x < behind
    return counts


def each_asked(counts_N: np.ndarray, asked_N: np.ndarray, area: int = 1) -> dict[str, float]:
    """Things for each thing asked, and of one learnt area."""
    return evidence.estimate(lambda i: counts_N[i].sum() / max(1, asked_N[i].sum()) / area, len(counts_N))


# --- all of it --------------------------------------------------------------------------------------------------------------


def scenes(side: int) -> Data:
    return Data(sources=(Source(name="scenes"),), size=side)


def of_model(model: Any, args: Any, eyes: Any, detector: Any) -> dict[str, Any]:
    side = learnt(model).side
    spec, folder = scenes(side), args.runs / f"of-{model.name}"
    ruler: Any = chains.Ruler(eyes, spec, args)
    judge = chains.reader(detector)
    real, _ = chains.real_pictures(spec, args.references, args.seed)
    other, prompts = chains.real_pictures(spec, args.n, args.seed + chains.AHEAD)
    asked_N = np.array([len(prompt.truth.objects) for prompt in prompts])
    found: dict[str, Any] = {
        "name": model.name, "fingerprints": model.fingerprints, "side": side, "settings": dataclasses.asdict(model.settings()),
        "parameters": sum(p.numel() for p in model.generator.network.parameters()), "canvases": {},
    }  # fmt: skip
    for name, canvas in CANVASES.items():
        area = canvas[0] * canvas[1]
        there = copy.copy(ruler)
        there.real_MD = ruler.sight.features(one_each(side_by_side(real, canvas, args.seed)[0], side, args.seed))
        control, which = side_by_side(other, canvas, args.seed + 1)
        few = slice(0, min(args.counted, args.n))
        known_N = asked_N[which[few].numpy()].sum(1)
        pictures, seconds = drawn(model, folder, args, prompts, canvas)
        counts_N = things(judge, pictures, side)
        found["canvases"][name] = one = {
            "size": list(pictures.shape[2:]), "seconds": seconds, "FD": there(one_each(pictures, side, args.seed + 2)),
            "floor": there(one_each(control, side, args.seed + 3)), "things": each_asked(counts_N, asked_N),
            "of an area": each_asked(counts_N, asked_N, area), "of real": each_asked(things(judge, control[few], side), known_N),
        }  # fmt: skip
        if canvas[0] == canvas[1]:
            one["exact"] = chains.exact(detector, pictures, prompts)
        print(
            f"{model.name}, {name} times the area: FD {around(one['FD'])} (real {around(one['floor'])}), things {around(one['things'])}, "
            f"real ones counted {around(one['of real'])}", flush=True,
        )  # fmt: skip
    return found


def measure(args: Any, report: dict[str, Any], eyes: Any, detector: Any) -> dict[str, Any]:
    return {kind: of_model(triptych.load(getattr(args, kind)), args, eyes, detector) for kind in MODELS}


# --- what is said of it -------------------------------------------------------------------------------------------------------


def verdicts(canvases: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[str, str]]:
    """Of windows, and of what was asked for, in English and Chinese."""
    at, larger = canvases["1"], {name: one for name, one in canvases.items() if name != "1"}
    worse = [name for name, one in larger.items() if chains.apart(one["FD"], at["FD"]) == 1]
    windows = (f"does not hold at {', '.join(worse)} times the area", f"{'、'.join(worse)} 倍面积时不成立") if worse else ("holds", "成立")
    sides = {name: chains.apart(one["things"], at["things"]) for name, one in larger.items()}
    told = [name for name in larger if sides[name]]
    if not told:
        asked = ("holds", "成立")
    else:
        most = max(told, key=int)
        times = larger[most]["things"]["value"] / max(1e-9, at["things"]["value"])
        what = ("repeated", "重复出现") if sides[most] == 1 else ("lost", "减少")
        asked = (
            f"does not hold, things are {what[0]}: {times:.1f} times as many at {most} times the area",
            f"不成立，物体{what[1]}：{most} 倍面积时为 {times:.1f} 倍",
        )
    return {"windows": windows, "asked": asked}


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    heads = {kind: verdicts(found[kind]["canvases"]) for kind in MODELS}

    def said(language: int, stop: str, windows: str, asked: str) -> str:
        return stop.join(
            f"{names[language]}{': ' if language == 0 else '：'}"
            f"{windows}{heads[kind]['windows'][language]}{', ' if language == 0 else '，'}{asked}{heads[kind]['asked'][language]}"
            for kind, names in MODELS.items()
        )

    def listed(language: int, comma: str, stop: str) -> str:
        of_each = []
        for kind, names in MODELS.items():
            each = []
            for one in found[kind]["canvases"].values():
                exact = f"{comma}{percent(one['exact'])}" if "exact" in one else ""
                each.append(
                    f"{one['size'][1]}x{one['size'][0]} {around(one['FD'], 1)}{comma}{around(one['things'])}{comma}"
                    f"{around(one['of an area'])}{exact}"
                )
            of_each.append(f"{names[language]} ({found[kind]['name']}) {stop.join(each)}")
        return (". " if language == 0 else "。").join(of_each)

    floors = " / ".join(around(one["floor"], 1) for one in found["unet"]["canvases"].values())
    real = around(found["unet"]["canvases"][max(found["unet"]["canvases"], key=int)]["of real"])
    n, m = f"{report['n']:,}", f"{report['references']:,}"
    return {
        "en": Row(
            "004", "one can draw beyond the size that was learnt", evidence.shown_by(NAME, "en"),
            f"{said(0, '; ', 'windows as good: ', 'as many things as asked: ')}. {n} pictures of scenes' captions on each canvas, windows "
            f"of the learnt size against {m} of real pictures side by side (the U-Net's; other real ones: {floors}). FD of windows, things "
            f"for each thing asked, the same on one learnt area, whole picture exactly as asked: {listed(0, ', ', '; ')}. Of things known "
            f"to be on the largest canvas the count finds {real}. The U-Net is told no places; the DiT's, of the learnt size, are spread "
            f"over the canvas",
        ),
        "zh": Row(
            "004", "可以画出比训练时更大的画面", evidence.shown_by(NAME, "zh"),
            f"{said(1, '；', '窗口同样好：', '物体数与所求相同：')}。每种画布 {n} 张由场景描述生成的图，取训练尺寸的窗口，"
            f"与 {m} 个并排真实图的窗口相比（U-Net 的；另一批真实图：{floors}）。窗口的 FD、每个所求物体对应的物体数、"
            f"每个训练面积上的同一数、整图与所求全同的比例：{listed(1, '、', '；')}。最大画布上已知存在的物体数到 {real}。"
            f"U-Net 不知位置；DiT 的位置取自训练尺寸，铺满画布",
        ),
    }  # fmt: skip


if __name__ == "__main__":
    chains.run(
        NAME, __doc__, measure, row, detector=True, n=200, unet=("sd", "sd", "an embedded name or a folder"),
        dit=("emoji", "emoji", "the same, of a DiT"), draw=(0, 1, "steps of drawing; 0: each model's own"),
        counted=(50, 2, "canvases of real pictures whose known things are counted"),
    )  # fmt: skip
