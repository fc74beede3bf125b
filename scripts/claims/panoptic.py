"""Claim 26: does one head make a detector tell things and ground apart, pixel by pixel? The embedded DETR's trunk, frozen, and a mask head.

    python scripts/claims/panoptic.py [--detector NAME|DIR] [--minutes 4] [--n 500] [--quick]    (6 minutes of one core, 4 training)

The detector is built again with `masks = True` (arXiv 2005.12872, section 4.4); all it knew is loaded and stays as it is, so what it finds
is what it found before, and only the head learns, from the scenes' own masks. Then held-out scenes of up to four objects are read:

    queries whose surest class is a thing of probability 0.5 or more, surest first; a pixel is the first's that wants it (mask logit above
    0, enlarged from a quarter of the side); what nobody wants is ground, the one class of stuff, and stands last

PQ, SQ, RQ are means over classes (`judges/_panoptic_quality.py`): of all 49, of the 48 things alone, of the ground alone. Beside them
"boxes": the same detections, the box filled in place of the mask. What a mask knows beyond that, the head taught. Intervals are bootstraps
over pictures, of one training. Needs Debian's emoji font. Writes panoptic.json.
Shape legend: B batch, Q queries, D things told, H W pixels, h w a quarter of them.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import triptych
from scripts.claims import evidence, minutes
from scripts.claims.evidence import Row, percent
from scripts.measure_eyes import held_out_scenes
from triptych import data
from triptych.contracts import Batch, Rng
from triptych.data import scenes
from triptych.data.index import as_images
from triptych.judges._panoptic_quality import panoptic_quality
from triptych.layers.matching import Pairs, mask_losses, match
from triptych.recipe import Family, Optimizer, Recipe
from triptych.recipes.eyes import eyes_detr
from triptych.vision.detr import DETR, Config, Detect, Seen

NAME = Path(__file__).stem
GROUND = len(scenes.CLASSES)  # the class number of what is no thing
BATCH, LR = 16, 1e-3


class Told(NamedTuple):
    """One picture's masks, bool [D, H, W], the surest first, and their classes [D]."""

    masks: Tensor
    classes: Tensor


def with_head(detector: DETR, seed: int) -> DETR:
    """The same detector with a mask head that has learnt nothing, all else frozen."""
    torch.manual_seed(seed)
    made = DETR(dataclasses.replace(detector.config, masks=True))
    missing, surplus = made.load_state_dict(detector.state_dict(), strict=False)
    if surplus or any(not name.startswith("mask_head.") for name in missing):
        raise ValueError(f"the detector does not fit: {[*surplus, *missing][0]} is in one of the two alone")
    for name, p in made.named_parameters():
        p.requires_grad_(name.startswith("mask_head."))
    return made


class MatchedMasks(Detect):
    """`Detect`'s masks alone, and of the queries only those that training would give an object: each query's mask is told for itself, so
    nothing changes for these, and the head has 4 to carry, not 25."""

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        panel, pixels, objects = self.panel, self._shown(batch), self.objects(batch.prompts)
        assert panel.mask_head is not None
        with torch.no_grad():
            maps, source_BDHW, memory_BDHW, real_BHW = panel._encode(pixels, None)
            state_BQD, boxes_BQ4 = panel._decode(memory_BDHW, real_BHW)[-1]
            row, query, chosen = match(panel.class_head(state_BQD), boxes_BQ4, objects, self.costs)
        of_BN = torch.zeros_like(objects.classes_BN)  # the query of each object; places without one ask the first, and are not heard
        of_BN[row, chosen] = query
        state_BND = state_BQD.gather(1, of_BN[..., None].expand(-1, -1, state_BQD.shape[-1]))
        masks_BNhw = panel.mask_head(state_BND, source_BDHW, memory_BDHW, real_BHW, maps[-2::-1])
        parts = mask_losses(masks_BNhw, objects, Pairs(row, chosen, chosen))
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def told(masks_DHW: Tensor, class_D: Tensor) -> Told:
    """With the ground behind all: what no mask holds."""
    ground_1HW = ~masks_DHW.any(0, keepdim=True)
    return Told(torch.cat([masks_DHW, ground_1HW]), torch.cat([class_D, torch.tensor([GROUND])]))


def filled(boxes_D4: Tensor, side: int) -> Tensor:
    """Boxes (centre x, y, width, height in 0..1) as masks: bool [D, side, side]."""
    at = (torch.arange(side) + 0.5) / side
    near_DH, near_DW = ((at - boxes_D4[:, i, None]).abs() <= boxes_D4[:, 2 + i, None] / 2 for i in (1, 0))
    return near_DH[:, :, None] & near_DW[:, None]


def read(seen: Seen, side: int) -> dict[str, list[Told]]:
    """What is told of every picture, by masks and by boxes."""
    assert seen.masks_BQhw is not None
    out: dict[str, list[Told]] = {"masks": [], "boxes": []}
    score_BQ, class_BQ = seen.logits_BQK.softmax(-1).max(-1)
    for i, (score_Q, class_Q) in enumerate(zip(score_BQ, class_BQ, strict=True)):
        order_Q = score_Q.argsort(descending=True)
        chosen = order_Q[(class_Q[order_Q] < GROUND) & (score_Q[order_Q] >= 0.5)]
        large_QHW = F.interpolate(seen.masks_BQhw[i, chosen][:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]
        out["masks"].append(told(large_QHW > 0, class_Q[chosen]))
        out["boxes"].append(told(filled(seen.boxes_BQ4[i, chosen], side), class_Q[chosen]))
    return out


def tally(said: Told, there: Told) -> np.ndarray:
    """Of one picture, by class: [K + 1, 4], the sum of matched IoU, matches, masks told, masks there; as the judge counts them."""
    out = np.zeros((GROUND + 1, 4))
    first_DX = (said.masks & (said.masks.cumsum(0) == 1)).flatten(1)
    there_GX = there.masks.flatten(1)
    both_DG = first_DX.float() @ there_GX.float().T
    iou_DG = both_DG / (first_DX.sum(1)[:, None] + there_GX.sum(1) - both_DG).clamp(min=1)
    for place, masks_MX, classes in ((2, first_DX, said.classes), (3, there_GX, there.classes)):
        np.add.at(out[:, place], classes[masks_MX.any(1)].numpy(), 1)
    for d, g in ((iou_DG > 0.5) & (said.classes[:, None] == there.classes)).nonzero().tolist():
        out[said.classes[d]] += (float(iou_DG[d, g]), 1, 0, 0)
    return out


def quality(tally_K4: np.ndarray) -> tuple[float, float, float]:
    """(PQ, SQ, RQ), means over the classes that occur."""
    overlap, right, said, there = tally_K4[tally_K4[:, 2:].any(1)].T
    half = (said + there) / 2
    return float((overlap / half).mean()), float((overlap / right.clip(min=1)).mean()), float((right / half).mean())


def qualities(said: Sequence[Told], there: Sequence[Told], resamples: int, seed: int) -> dict[str, Any]:
    """part -> measure -> value, low, high."""
    tally_NK4 = np.stack([tally(a, b) for a, b in zip(said, there, strict=True)])
    judged = panoptic_quality(*([getattr(one, what) for one in side] for side in (said, there) for what in ("masks", "classes")))
    assert math.isclose(judged["PQ"], quality(tally_NK4.sum(0))[0], rel_tol=1e-5), "this is not what the judge measures"
    generator, out = np.random.default_rng(seed), {}
    drawn = [generator.integers(0, len(said), len(said)) for _ in range(resamples)]
    for part, classes in {"all": slice(None), "things": slice(GROUND), "ground": slice(GROUND, None)}.items():
        value = quality(tally_NK4[:, classes].sum(0))
        spread = zip(*(quality(tally_NK4[some][:, classes].sum(0)) for some in drawn), strict=True)
        three = {key: (one, *evidence.interval(many)) for key, one, many in zip(("PQ", "SQ", "RQ"), value, spread, strict=True)}
        out[part] = {key: dict(zip(("value", "low", "high"), numbers, strict=True)) for key, numbers in three.items()}
    return out


@torch.no_grad()
def measure(panel: DETR, n: int, seed: int, resamples: int) -> dict[str, Any]:
    prompts, side = held_out_scenes(n, 4, seed + 2), panel.image_size
    said: dict[str, list[Told]] = {"masks": [], "boxes": []}
    for at in range(0, n, 10):
        images = as_images([scenes.render(p.truth, side) for p in prompts[at : at + 10]])
        for way, some in read(panel(images), side).items():
            said[way] += some
    there = [told(torch.from_numpy(scenes.masks(p.truth, side)), torch.as_tensor(p.boxes_N5)[:, 0].long()) for p in prompts]
    return {"n": n, **{way: qualities(one, there, resamples, seed) for way, one in said.items()}}


def recipe_of(config: Config, seed: int) -> Recipe:
    """Only the head learns, and fast; on the pictures of the recipe `eyes-detr`."""
    base = eyes_detr()
    return dataclasses.replace(
        base, name="mask-head", family=Family(name="detr", config=dataclasses.asdict(config)), task_options={}, batch=BATCH, seed=seed,
        optimizer=Optimizer(lr=LR, weight_decay=0.05, warmup=0.05, decay=0.5), ema=0.0, compile=False,
    )  # fmt: skip


def taught(detector: DETR, args: Any) -> tuple[DETR, dict[str, Any]]:
    """The detector with its head, and what that saw."""
    pairs = data.build(eyes_detr().data)

    def run(steps: int, folder: Path) -> tuple[DETR, minutes.Clock]:
        panel = with_head(detector, args.seed)
        recipe = minutes.of_steps(recipe_of(panel.config, args.seed), steps)
        _, clock = minutes.trained(recipe, folder, "mask head", data=pairs, task=MatchedMasks(panel, masks=scenes.masks))
        return panel.eval(), clock

    steps = minutes.fit(args.minutes, {"head": lambda steps, at: run(steps, at)[1]}, few=3 if args.quick else 30)["head"]
    with tempfile.TemporaryDirectory() as folder:
        panel, clock = run(steps, Path(folder) / "run")
    return panel, {"minutes": clock.minutes, "steps": steps, "pictures": steps * BATCH}


# --- what is said of it -----------------------------------------------------------------------------------------------------


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found, saw = report["found"], report["training"]
    took = minutes.told(report["minutes_asked"], [saw["minutes"]])
    masks, boxes = found["masks"], found["boxes"]
    holds = masks["things"]["PQ"]["low"] > boxes["things"]["PQ"]["high"]
    apart = masks["things"]["PQ"]["high"] < boxes["things"]["PQ"]["low"]
    head = ("holds", "成立") if holds else ("does not hold", "不成立") if apart else ("not told from filled boxes", "未能区分于填满的框")
    three = ", ".join(f"{key} {percent(masks['all'][key])}" for key in ("PQ", "SQ", "RQ"))
    things, ground = percent(masks["things"]["PQ"]), percent(masks["ground"]["PQ"])
    bare = percent(boxes["things"]["PQ"])
    return {
        "en": Row(
            "002", "one head more and DETR segments: things and ground at once", evidence.shown_by(NAME, "en"),
            f"{head[0]}: the embedded detector's trunk frozen, its mask head taught {took[0]}, {saw['pictures']:,} pictures, "
            f"one seed: {three} on {found['n']} held-out scenes. PQ of things {things}, of the ground "
            f"{ground}; the same detections with their boxes filled reach {bare} on things. Stuff is one class here, the ground",
        ),
        "zh": Row(
            "002", "DETR 再加一个头就能做全景分割：物体与背景一并得到", evidence.shown_by(NAME, "zh"),
            f"{head[1]}：冻结内置检测器的主干，只训练掩码头，{took[1]}，{saw['pictures']:,} 张图，一个种子，在 "
            f"{found['n']} 个留出场景上：{three}。物体的 PQ 为 {things}，背景为 {ground}；同样的检测结果若把框填满，物体的 PQ 为 {bare}。"
            f"这里背景只有一类",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--minutes", type=float, default=4, help="of training the head")
    parser.add_argument("--n", type=int, default=500, help="scenes that are asked about")
    args = parser.parse_args()
    if args.quick:
        args.minutes, args.n = 0.05, 12
    detector = triptych.load(args.detector)
    report = evidence.begin(args, detector=detector)
    panel, training = taught(detector.vision, args)
    report |= {"minutes_asked": args.minutes, "training": training, "batch": BATCH, "lr": LR}
    report["found"] = measure(panel, args.n, args.seed, 20 if args.quick else 200)
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
