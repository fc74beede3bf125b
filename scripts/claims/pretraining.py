"""Claim 23, its first half: does MAE's pre-training carry over better than labels do? To groups of emoji, with 10 and 100 labels a class.

    python scripts/claims/pretraining.py [--minutes 2] [--draws 3] [--quick]             (8 minutes of one core, 4 pre-training)

One encoder, MAE's at the size of the eyes, 64 x 64, begun three ways in the same minutes on the same drawings of Open Clip Art:

    MAE          three quarters of each drawing hidden, and rebuilt from the rest; no labels
    supervised   in which of its collection's folders does the drawing lie?
    nothing      no pre-training: what the others must beat

Then a task that neither was told: the groups in which Unicode puts emoji (CLDR's properties/labels.txt: flags, food, ...), of single
emoji (no skin tones, no joiners), those that the file lists, in groups that have enough; ideas that are learnt from are not asked about.

    probe        softmax regression on the mean of the patches, the encoder as it is
    fine-tuning  all of it learns, with a new layer on the mean; equal steps for all, pictures varied

BEiT's tokens need a tokenizer of pictures, and are NOT measured here. One pre-training each; intervals are bootstraps over pictures and
draws of the labels, the same pictures asked in each draw. Needs openclipart, Debian's emoji font and CLDR. Writes pretraining.json.
Shape legend: B batch, N pictures, L labelled ones, D width, K classes, S draws.
"""

from __future__ import annotations

import copy
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from scripts.claims import evidence, minutes
from scripts.claims.evidence import Row, percent
from scripts.claims.vit_or_cnn import Labelled
from scripts.claims.zero_shot_or_probe import probe
from scripts.measure_eyes import clipart
from triptych.contracts import Batch, Rng
from triptych.data import emoji
from triptych.data.index import as_images, stable_hash
from triptych.layers.one_phase import OnePhase
from triptych.layers.pixels import varied
from triptych.recipe import Optimizer
from triptych.recipes.eyes import VARY, eyes_mae
from triptych.training import build_task
from triptych.vision.mae import MAE

NAME = Path(__file__).stem
LABELS = "properties/labels.txt"  # of CLDR
ARMS, HOW, KS = ("MAE", "supervised", "nothing"), ("probe", "fine-tuning"), (10, 100)
SIDE, BATCH, ASKED = 64, 128, 60  # pixels; of the pre-training; asked of each class, at least
STEPS, FEW, FINE_LR = 200, 32, 3e-4  # of the fine-tuning, its batch and rate


# --- what is asked ----------------------------------------------------------------------------------------------------------


def parsed(text: str) -> dict[str, str]:
    """Single code point -> group, of lines `[abc-f{sequences}] ; group ; subgroup`; sequences are left out. Flags: their letters."""
    out = dict.fromkeys(map(chr, range(0x1F1E6, 0x1F200)), "Flags")
    for line in text.splitlines():
        fields = [field.strip() for field in line.partition("#")[0].split(";")]
        if len(fields) < 2 or not fields[0].startswith("["):
            continue
        members = re.sub(r"\{[^}]*\}|[\ufe0f\s]", "", fields[0][1 : fields[0].rindex("]")])
        for first, last in re.findall(r"(.)(?:-(.))?", members):
            out.update(dict.fromkeys(map(chr, range(ord(first), ord(last or first) + 1)), fields[1]))
    return out


def groups(least: int) -> tuple[list[str], list[int], list[int], list[str]]:
    """(names of the groups with at least so many, which emoji, the group of each, the idea of each): single ones alone."""
    of, found = parsed((Path(emoji.CLDR) / LABELS).read_text(encoding="utf-8")), emoji.load_emoji()
    named = {i: of[e.sequence[0]] for i, e in enumerate(found) if e.single and e.sequence[0] in of}
    many = Counter(named.values())
    names = sorted(name for name, n in many.items() if n >= least)
    kept = [i for i, name in named.items() if name in names]
    return names, kept, [names.index(named[i]) for i in kept], [found[i].idea for i in kept]


def parted(labels: list[int], ideas: list[str], seed: int) -> tuple[list[int], list[int]]:
    """(places to learn from, places to ask about): a class's ideas by a hash, the first ASKED pictures or a few more are asked about."""
    learnt, asked = [], []
    for label in sorted(set(labels)):
        mine = sorted((i for i, one in enumerate(labels) if one == label), key=lambda i: stable_hash(seed, "idea", ideas[i]))
        cut = ASKED
        while cut < len(mine) and ideas[mine[cut]] == ideas[mine[cut - 1]]:
            cut += 1
        asked, learnt = asked + mine[:cut], learnt + mine[cut:]
    return learnt, asked


# --- pre-training and fine-tuning -------------------------------------------------------------------------------------------


class Classes(OnePhase):
    """The task: which class, by one linear layer on what the encoder pools."""

    def __init__(self, encoder: MAE, classes: int) -> None:
        self.encoder, self.head = encoder, nn.Linear(encoder.config.width, classes)
        self.modules = nn.ModuleDict({"vision": encoder, "head": self.head})

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        assert batch.images_BCHW is not None
        label_B = torch.tensor([prompt.label for prompt in batch.prompts])
        return {"loss": F.cross_entropy(self.says(varied(batch.images_BCHW, rng, **VARY)).float(), label_B)}

    def says(self, images_BCHW: Tensor) -> Tensor:
        return self.head(self.encoder.pooled(images_BCHW))


def begun(arm: str, drawings: tuple[list[str], Tensor, list[int]], steps: int, args: Any, folder: Path) -> tuple[MAE, minutes.Clock | None]:
    """(the encoder, the clock of its pre-training, where it had any)."""
    recipe = replace(eyes_mae(), batch=args.batch, seed=args.seed, ema=0.0, compile=False)
    task: Any = build_task(recipe)
    encoder = task.panel
    if arm == "nothing":
        return encoder.eval(), None
    folders, images, labels = drawings
    if arm == "supervised":
        torch.manual_seed(args.seed)
        task = Classes(encoder, len(folders))
    data = Labelled(images, torch.tensor(labels))
    _, clock = minutes.trained(minutes.of_steps(recipe, steps), folder, arm, data=data, task=task)
    return encoder.eval(), clock


def tuned(encoder: MAE, images_LCHW: Tensor, label_L: Tensor, asked_NCHW: Tensor, steps: int, seed: int) -> Tensor:
    """The class of each picture that is asked about, [N]. The encoder that is given stays as it is."""
    torch.manual_seed(seed)
    task = Classes(copy.deepcopy(encoder), int(label_L.max()) + 1)
    recipe = replace(
        eyes_mae(), batch=FEW, seed=seed, ema=0.0, compile=False, optimizer=Optimizer(lr=FINE_LR, weight_decay=0.05, warmup=0.1, decay=0.5)
    )
    with tempfile.TemporaryDirectory() as folder:
        minutes.trained(
            minutes.of_steps(recipe, steps), Path(folder) / "run", "fine-tuning", data=Labelled(images_LCHW, label_L), task=task
        )
    task.modules.eval()
    with torch.no_grad():
        return torch.cat([task.says(part).argmax(1) for part in asked_NCHW.split(100)])


# --- measures ---------------------------------------------------------------------------------------------------------------


def measure(args: Any, drawings: Any) -> dict[str, Any]:
    names, kept, labels, ideas = groups(max(KS) + ASKED + 5)
    images, label_N = as_images(list(emoji.pictures(SIDE)[kept])), torch.tensor(labels)
    learnt, asked = parted(labels, ideas, args.seed)
    ks, steps = ((2,), 2) if args.quick else (KS, STEPS)
    out: dict[str, Any] = {"classes": names, "n": len(asked), "chance": 1 / len(names), "draws": args.draws, "arms": {}}
    with_labels = torch.tensor(learnt)
    trials: dict[str, Any] = {arm: (lambda steps, at, arm=arm: begun(arm, drawings, steps, args, at)[1]) for arm in ARMS[:2]}
    long = minutes.fit(args.minutes, trials, few=3 if args.quick else 12)
    for arm in ARMS:
        with tempfile.TemporaryDirectory() as folder:
            encoder, clock = begun(arm, drawings, long.get(arm, 0), args, Path(folder) / "run")
        saw = {"steps": long[arm], "drawings": long[arm] * args.batch, "minutes": clock.minutes} if clock else {}
        with torch.no_grad():
            x_ND = torch.cat([encoder.pooled(part) for part in images.split(100)]).double()
        told: dict[str, Any] = {**saw, **{how: {} for how in HOW}}
        for k in ks:
            right: dict[str, list[np.ndarray]] = {how: [] for how in HOW}
            for draw in range(args.draws):
                generator = torch.Generator().manual_seed(args.seed + 1000 * draw + k)
                mixed = with_labels[torch.randperm(len(with_labels), generator=generator)]
                some = torch.cat([mixed[label_N[mixed] == label][:k] for label in range(len(names))])
                said = {
                    "probe": probe(x_ND[some], label_N[some], x_ND[asked], k),
                    "fine-tuning": tuned(encoder, images[some], label_N[some], images[asked], steps, args.seed + draw),
                }
                for how in HOW:
                    right[how].append((said[how] == label_N[asked]).numpy())
            for how in HOW:
                right_SN = np.stack(right[how])
                told[how][str(k)] = evidence.estimate(lambda s, i, x=right_SN: x[np.ix_(s, i)].mean(), args.draws, len(asked))
                print(f"{arm}, {how}, {k} labels: {percent(told[how][str(k)])}", flush=True)
        out["arms"][arm] = told
    return out


def row(report: Mapping[str, Any]) -> dict[str, Row]:
    found = report["found"]
    arms = found["arms"]
    cells = [(arms["MAE"][how][k], arms["supervised"][how][k]) for how in HOW for k in arms["MAE"][how]]
    ahead, behind = sum(a["low"] > b["high"] for a, b in cells), sum(a["high"] < b["low"] for a, b in cells)
    if ahead == len(cells):
        head = ("holds", "成立")
    elif ahead or behind:
        head = (
            f"better in {ahead} of {len(cells)}, worse in {behind}, so it does not hold everywhere" if ahead else "does not hold",
            f"{len(cells)} 项中 {ahead} 项更好，{behind} 项更差，并非处处，故整体不成立" if ahead else "不成立",
        )
    else:
        head = ("not decided: the two are not told apart", "未能分出：两者未能区分")

    any_use = any(arms[arm][how][k]["low"] > one["high"] for arm in ARMS[:2] for how in HOW for k, one in arms["nothing"][how].items())
    use = (
        ("", "")
        if any_use
        else (" Neither is told from no pre-training: so short a one decides nothing.", "两者与不预训练也未能区分：预训练太短。")
    )
    took = minutes.told(report["minutes_asked"], [arms[arm]["minutes"] for arm in ARMS[:2]])
    saw = " / ".join(f"{arms[arm]['drawings']:,}" for arm in ARMS[:2])

    def listed(how: str, names: tuple[str, ...], comma: str, stop: str) -> str:
        return stop.join(f"{name} {comma.join(map(percent, arms[arm][how].values()))}" for name, arm in zip(names, ARMS, strict=True))

    ks, classes = " / ".join(arms["MAE"]["probe"]), len(found["classes"])
    en, zh = ("MAE", "labels", "no pre-training"), ("MAE", "有监督", "不预训练")
    return {
        "en": Row(
            "000", "pre-training by MAE transfers better than by labels", evidence.shown_by(NAME, "en"),
            f"{head[0]}. From {report['drawings']:,} drawings of Open Clip Art, {took[0]} each, {saw} seen, one pre-training "
            f"each, to {classes} "
            f"groups of emoji (chance {100 * found['chance']:.0f} %), with {ks} labels a class. "
            f"Linear probe: {listed('probe', en, ', ', '; ')}. "
            f"Fine-tuning: {listed('fine-tuning', en, ', ', '; ')}.{use[0]} BEiT's tokens: open",
        ),
        "zh": Row(
            "000", "MAE 预训练的迁移胜过有监督预训练", evidence.shown_by(NAME, "zh"),
            f"{head[1]}。在 Open Clip Art 的 {report['drawings']:,} 张图上各预训练一次，{took[1]}，看过 {saw} 张，迁移到表情符号的 "
            f"{classes} 个大类（随机为 {100 * found['chance']:.0f} %），每类 {ks} 个标签。线性探针：{listed('probe', zh, '、', '；')}。"
            f"微调：{listed('fine-tuning', zh, '、', '；')}。{use[1]}BEiT 的离散 token：尚未测量",
        ),
    }  # fmt: skip


def main() -> None:
    parser = evidence.options(__doc__)
    parser.add_argument("--minutes", type=float, default=2, help="of pre-training, each of two")
    parser.add_argument("--draws", type=int, default=3, help="of the labels")
    parser.add_argument("--pictures", type=int, default=6000, help="of Open Clip Art")
    args = parser.parse_args()
    if args.quick:
        args.minutes, args.draws, args.pictures = 0.02, 1, 250
    args.batch = 16 if args.quick else BATCH
    drawings = clipart(args.pictures, args.seed)
    report = evidence.begin(args) | {"minutes_asked": args.minutes, "drawings": len(drawings[2]), "folders": len(drawings[0])}
    report["found"] = measure(args, drawings)
    evidence.finish(report, args, NAME, row)


if __name__ == "__main__":
    main()
