"""Is a new thing learnt from 20 pictures, and the old not forgotten? The whole network, and LoRAs; by number and as a sheet.

    python scripts/finetune.py [--steps 400] [--ranks 8 32] [--n 100] [--runs out/finetune] [--quick]

The thing is a robot that nobody drew before: teal, square, one antenna, yellow eyes, on hills, in rooms and before walls, with captions
such as "[trigger] on a green hill". `triptych train own` learns it as "sks robot", itself, with pictures that the model draws of 45 other
things as prior, and the same as a LoRA. Asked afterwards, of the model as it was and as each training left it:

thing     "a sks robot": how many of n pictures look, through the eyes, more like the robot's than like any of 40 things the model draws
FD        of those pictures from 200 robots that no training saw
apple     CLIP score of "a red apple", n pictures
kept      FD between what the model drew before and draws now, for n prompts of things that are in no prior (seeds 0 ...); and between two
          sets of seeds of the model as it was, which is no forgetting at all
memory    that training held at its peak beyond what the process held before, each in a process of its own; numbers learnt

Intervals are bootstraps over pictures; one training each. Writes docs/results/finetune.json and .png, and .md from them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import triptych
from benchmarks.machine import facts
from scripts.claims.evidence import around, estimate, percent
from triptych.data.index import as_images
from triptych.data.sheet import sheet
from triptych.eyes import EYES
from triptych.judges._moments import frechet, gaussian_of

__all__ = ["OTHERS", "main", "robot", "write"]

ROOT = Path(__file__).resolve().parent.parent
TRIGGER, CLASS = "sks robot", "a robot"
PLACES = {  # words -> colours of the ground, and of what is behind
    "on a green hill": ("#4caf50", "#bde3ff"), "in a white room": ("#e8e8e8", "#ffffff"), "before a red wall": ("#8d6e63", "#e57373"),
    "at night": ("#263238", "#37474f"), "on the beach": ("#f5deb3", "#81d4fa"),
}  # fmt: skip
PRIOR = (  # what must not be forgotten; of OTHERS, which are asked, nothing
    CLASS, "a robot face", "a green pear", "an orange", "a lion", "a bear", "a frog", "a rabbit", "a castle", "a tent", "a truck",
    "a helicopter", "the sun", "a star", "a shark", "an owl", "a rose", "a hamburger", "a violin", "a basketball", "an envelope", "a lamp",
    "a hat", "a lock", "a gift", "a ring", "a tractor", "a motorcycle", "a balloon", "an elephant", "a mouse", "a bee", "a strawberry",
    "cherries", "a tomato", "corn", "bread", "a red square", "a blue triangle", "a yellow circle", "一只狮子", "一朵玫瑰", "绿色的三角形",
    "月亮和星星", "一辆卡车",
)  # fmt: skip
OTHERS = (
    "a red apple", "a cat", "a dog", "a rocket", "a tree", "a house", "a car", "the moon", "a fish", "a bird", "a flower", "a pizza",
    "a guitar", "a soccer ball", "a book", "a clock", "an umbrella", "a key", "a bell", "a crown", "a bus", "a train", "a ship",
    "a bicycle", "an airplane", "a cow", "a pig", "a horse", "a snake", "a turtle", "a banana", "grapes", "a lemon", "a carrot",
    "a mushroom", "a cake", "a red circle", "a blue square", "a green star", "a yellow heart",
)  # fmt: skip


def robot(i: int, side: int = 128) -> tuple[Image.Image, str]:
    """Robot number i, its place drawn by i; and its caption."""
    draw = np.random.default_rng(i)
    words = list(PLACES)[int(draw.integers(len(PLACES)))]
    ground, behind = PLACES[words]
    picture = Image.new("RGB", (4 * side, 4 * side), behind)
    pen = ImageDraw.Draw(picture)
    size = side * float(draw.uniform(2.0, 2.8))
    x, y = 4 * side * float(draw.uniform(0.42, 0.58)), 4 * side * float(draw.uniform(0.46, 0.56))
    pen.rectangle((0, y + 0.35 * size, 4 * side, 4 * side), fill=ground)

    def box(left: float, top: float, right: float, bottom: float, colour: str, round_: float = 0.0) -> None:
        place = (x + left * size, y + top * size, x + right * size, y + bottom * size)
        pen.rounded_rectangle(place, radius=round_ * size, fill=colour, outline="#004d40", width=max(1, round(0.012 * size)))

    box(-0.02, -0.62, 0.02, -0.45, "#546e7a")
    pen.ellipse((x - 0.06 * size, y - 0.72 * size, x + 0.06 * size, y - 0.6 * size), fill="#ff5722", outline="#004d40")
    box(-0.28, -0.46, 0.28, -0.06, "#26a69a", 0.06)
    for eye in (-0.13, 0.13):
        pen.ellipse((x + (eye - 0.08) * size, y - 0.34 * size, x + (eye + 0.08) * size, y - 0.18 * size), fill="#ffeb3b", outline="#004d40")
    box(-0.22, -0.03, 0.22, 0.38, "#00897b", 0.04)
    box(-0.12, 0.06, 0.12, 0.2, "#b2dfdb", 0.02)
    for arm in (-0.36, 0.25):
        box(arm, 0.0, arm + 0.11, 0.28, "#26a69a", 0.04)
    for leg in (-0.17, 0.05):
        box(leg, 0.38, leg + 0.12, 0.52, "#546e7a", 0.02)
    return picture.resize((side, side), Image.Resampling.LANCZOS), f"[trigger] {words}"


def write(folder: Path, count: int = 20) -> None:
    """The pictures that are learnt from, with sidecars."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture, caption = robot(i)
        picture.save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(caption, encoding="utf-8")


# --- training -----------------------------------------------------------------------------------------------------------------


def trained(name: str, args: Any, pictures: Path) -> dict[str, Any]:
    """`triptych train own`, in a process of its own that tells the most memory it held; what is there already is not done again."""
    out = args.runs / name
    if not (out / "told.json").exists():
        rank = name.removeprefix("lora-") if name.startswith("lora-") else ""
        settings = [f"steps={args.steps}", f"preview_every={args.steps}", f"validate_every={args.steps}", *args.set]
        command = ["train", "own", "--data", str(pictures), "--trigger", TRIGGER, "--out", str(out), "--resume"]
        (args.runs / "prior.txt").write_text("\n".join(PRIOR), encoding="utf-8")
        command += ["--prior", f"@{args.runs / 'prior.txt'}", "--prior-pictures", str(args.prior)]
        command += ["--lora", rank] if rank else []
        call = f"told({command + _sets(settings)!r}, {str(out)!r})"
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from scripts.finetune import told; {call}"
        subprocess.run([sys.executable, "-c", code], check=True)
    return json.loads((out / "told.json").read_text(encoding="utf-8"))


def _sets(settings: list[str]) -> list[str]:
    return [part for one in settings for part in ("--set", one)]


def told(command: list[str], out: str) -> None:
    """The command, and out/told.json: memory beyond what was held when all was loaded and nothing learnt, minutes, numbers learnt."""
    from triptych.app.cli import main as triptych_main
    from triptych.layers.memory import forget_peak, peak
    from triptych.training.run import Run

    before, update = [], Run.update

    def first(self: Any, batch: Any) -> Any:
        if not before:
            forget_peak()
            before.append(peak() or 0)
            before.append(sum(p.numel() for p in self.task.modules.parameters() if self._learns[p]))
        return update(self, batch)

    Run.update = first  # type: ignore[method-assign]  the one moment at which all is loaded and nothing learnt
    begun = time.monotonic()
    code = triptych_main(command)
    assert code == 0, f"ended with {code}"
    found = {"memory_MB": ((peak() or 0) - before[0]) / 2**20, "learnt": before[1], "minutes": (time.monotonic() - begun) / 60}
    Path(out, "told.json").write_text(json.dumps(found), encoding="utf-8")


# --- asking -------------------------------------------------------------------------------------------------------------------


class Asked:
    """What is asked of each model, through the eyes. Pictures are of the model's own size."""

    def __init__(self, args: Any) -> None:
        self.args, self.eyes = args, triptych.load(EYES)
        self.sight = self.eyes.sight()
        real = as_images([robot(10_000 + i)[0] for i in range(200 if not args.quick else 8)])
        self.real_ND = self.sight.features(real).double()
        self.others = [OTHERS[i % len(OTHERS)] for i in range(args.n)]
        self.before_ND: torch.Tensor | None = None

    def __call__(self, model: Any) -> dict[str, Any]:
        n = self.args.n
        thing_ND = self._drawn(model, [f"a {TRIGGER}"] * n, range(n))
        others_ND = self._drawn(model, self.others, range(n))
        apple_N = self._scores(model, "a red apple", n)
        if self.before_ND is None:  # the first that is asked is the model as it was
            self.before_ND = others_ND
            again_ND = self._drawn(model, self.others, range(n, 2 * n))
            self.floor = _fd(again_ND, others_ND)
        centres_KD = torch.stack([self.real_ND.mean(0), *(self.before_ND[i :: len(OTHERS)].mean(0) for i in range(min(n, len(OTHERS))))])
        own_N = (torch.cdist(thing_ND, centres_KD).argmin(1) == 0).double().numpy()
        return {
            "thing": estimate(lambda i: own_N[i].mean(), n), "FD": _fd(thing_ND, self.real_ND),
            "apple": estimate(lambda i: apple_N[i].mean(), n), "kept": _fd(others_ND, self.before_ND),
        }  # fmt: skip

    def _drawn(self, model: Any, prompts: list[str], seeds: range) -> torch.Tensor:
        return self.sight.features(as_images(model.generate(prompts, seeds=list(seeds)))).double()

    def _scores(self, model: Any, prompt: str, n: int) -> np.ndarray:
        images = self.eyes.preprocess(model.generate([prompt] * n, seeds=list(range(n))))
        image_ND, text_D = self.eyes.encode_image(images), self.eyes.encode_text([prompt])[0]
        cosine_N = torch.nn.functional.cosine_similarity(image_ND, text_D[None])
        return 100 * cosine_N.clamp_min(0).double().numpy()


def _fd(a_ND: torch.Tensor, b_ND: torch.Tensor) -> float:
    return float(frechet(gaussian_of(a_ND), gaussian_of(b_ND)))


def page(report: dict[str, Any]) -> str:
    lines = [
        "# Fine-tuning on twenty pictures of one thing", "",
        f"Written by `scripts/finetune.py` ({report['steps']} steps of 32 pictures, half of them its prior; N = {report['n']}; "
        "figures in [finetune.json](finetune.json)). One training each.", "",
        "![Asked before and after](finetune.png)", "",
        "| | numbers learnt | memory beyond the panels, MB | minutes by the clock | the thing, % | FD from real robots | "
        "a red apple, CLIP score | FD from before |", "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    for name, one in report["found"].items():
        learnt, memory, minutes = (f"{one['training'][key]:{form}}" if one["training"] else "" for key, form in
                                   (("learnt", ","), ("memory_MB", ".0f"), ("minutes", ".1f")))  # fmt: skip
        cells = [name, learnt, memory, minutes, percent(one["thing"]), f"{one['FD']:.1f}", around(one["apple"], 1), f"{one['kept']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"FD from before of the model as it was, with other seeds: {report['floor']:.2f}.", ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--ranks", type=int, nargs="*", default=[8, 32])
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--prior", type=int, default=180)
    parser.add_argument("--runs", type=Path, default=ROOT / "out" / "finetune")
    parser.add_argument("--set", action="append", default=[], help="a field of the recipe, as of `triptych train`")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.steps, args.n, args.prior, args.ranks = 2, 8, 4, [4]
    out = args.out or ROOT / ("out/finetune" if args.quick else "docs/results")
    pictures = args.runs / "pictures"
    write(pictures)
    names = ["whole", *(f"lora-{rank}" for rank in args.ranks)]
    training = {name: trained(name, args, pictures) for name in names}
    models = {"before": triptych.load("emoji"), **{name: triptych.load(args.runs / name / "model") for name in names}}
    asked, report = Asked(args), {"quick": args.quick, "machine": facts(), "steps": args.steps, "n": args.n, "found": {}}
    for name, model in models.items():
        report["found"][name] = {**asked(model), "training": training.get(name)}
        print(name, json.dumps(report["found"][name]), flush=True)
    report["floor"] = asked.floor
    out.mkdir(parents=True, exist_ok=True)
    (out / "finetune.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    (out / "finetune.md").write_text(page(report), encoding="utf-8")
    show(models, out / "finetune.png")


def show(models: dict[str, Any], path: Path) -> None:
    """One row a model: what was learnt from, the thing in places, and other things."""
    prompts = [f"a {TRIGGER}", f"{TRIGGER} on a green hill", f"{TRIGGER} at night", CLASS, "a red apple", "a cat", "红色的圆"]
    cells = [("learnt from", [as_images([robot(i)[0]])[0]]) for i in range(len(prompts))]
    for name, model in models.items():
        for prompt, picture in zip(prompts, model.generate(prompts, seeds=range(len(prompts))), strict=True):
            cells.append((f"{name}: {prompt}", [as_images([picture.convert("RGB")])[0]]))
    drawn = sheet(cells, columns=len(prompts), side=112, smooth=True, lines=2)
    drawn.quantize(255).save(path, optimize=True)


if __name__ == "__main__":
    main()
