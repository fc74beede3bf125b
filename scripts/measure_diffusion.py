"""Every embedded diffusion system, judged on the same words and seeds: one table, one sheet, one picture growing clear.

    python scripts/measure_diffusion.py [--n 500] [--models ddpm,sd] [--out docs/results]        (about 20 minutes on two cores)

Asked are the words of held-out scenes, compositions that training never showed those who hear words (who hears classes has seen all of
them: a class never shown says nothing); their pictures are the real ones. A system that needs
more than words is given it from the same scene (its class, boxes, map, small or holed picture), so that its figures are not those of
words alone; the table says what each hears. Systems that hear nothing are judged as they draw. Drawn as the model's own settings say.

FD, precision, recall, CLIP score through triptych-eyes-v1; exact = the share of pictures in which triptych-detector-v1 reads the whole
scene right; intervals are bootstraps. Seconds are of this machine, drawing in batches of 16. PFLOP are those of training,
counted on one step. The rest is told by the cards.
Writes diffusion.json, diffusion.md, diffusion.png and diffusion-strip.png.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import triptych
from triptych import checkpoint, data, judging, recipes
from triptych.app.ask import asked as heard_by
from triptych.app.ask import reads
from triptych.app.judge import drawing
from triptych.data.sheet import sheet
from triptych.eyes import DETECTOR, EYES, as_tensor, load_eyes
from triptych.layers.memory import keep_freed_memory
from triptych.recipe import Data, Source
from triptych.training import Report, train

SYSTEMS = {  # in the order of their papers
    "ncsn": "score matching, Langevin", "ddpm": "DDPM", "ddim": "DDPM's weights, DDIM", "improved-ddpm": "cosine, learned variance",
    "adm": "a class, classifier guidance", "adm-clip": "no condition, CLIP guidance", "pixel-text": "pixels, classifier-free guidance",
    "ldm": "latents, frozen words", "ldm-joint": "latents, words learnt along", "layout": "latents, boxes", "semantic": "pixels, a map",
    "inpainting": "latents, the rest of the picture", "super-resolution": "pixels, the picture at a quarter",
    "edm": "preconditioned, Heun", "sd": "Stable Diffusion, small",
}  # fmt: skip
SAID = ("a red circle left of a blue square", "红色的圆", "three green triangles", "a large yellow star above a purple ring", "黑色的心形")


def about(name: str) -> dict[str, Any]:
    """What the cards of one model say: of the generator, and of a text encoder that learnt along."""
    card = json.loads((checkpoint.panel_folder(name, "generator") / "card.json").read_text(encoding="utf-8"))
    recipe = card.get("recipe") or {}
    own = [place for place in checkpoint.PLACES if (checkpoint.WEIGHTS / name / place).is_dir()]
    return {
        "steps": card.get("steps"), "pictures": card.get("examples"), "minutes": round(60 * card.get("hours", 0.0), 1),
        "hardware": card.get("hardware"), "parameters": card.get("parameters"), "recipe": recipe.get("name"),
        "bytes": sum(path.stat().st_size for place in own for path in (checkpoint.WEIGHTS / name / place).iterdir()),
    }  # fmt: skip


def flop_of(name: str, steps: int) -> float | None:
    """Of all training steps of a recipe, counted on one; None for a model that no recipe of the group has made."""
    recipe = next((one for one in recipes.group("diffusion") if one.name == name), None)
    if recipe is None:
        return None
    cost = train(replace(recipe, compile=False), out="unused", dry_run=True, report=Report(stream=io.StringIO())).estimate
    return float(cost["flop_per_step"]) * steps


def measure(name: str, asked: judging.Asked, eyes: Any, detector: Any) -> dict[str, Any]:
    model = triptych.load(name)
    judges = judging.judges_for(asked, ("distribution", "objects", "clip_score"), eyes=eyes, detector=detector)
    seen = judging.look(
        drawing(model, {}), asked, judges, curves=False, told=lambda done, of: print(f"{name}: {done}/{of}", end="\r", flush=True)
    )
    network = model.generator.network
    calls = [0]
    hook = network.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    model.generate(heard_by(model, SAID[:1], [0])[0], seeds=[0])
    hook.remove()
    score, known = seen.scores, about(name)
    told = {
        "name": name, "hears": sorted(reads(model)), "sampling": model.sampling, "guide": model.guide, "size": list(model.size),
        "evaluations": calls[0], "pictures_per_s": len(asked) / seen.seconds, **known,
        "flop": flop_of(known["recipe"], known["steps"] or 0),
        "scores": {judge: {k: v for k, v in result.items() if isinstance(v, int | float)} for judge, result in score.items()},
    }  # fmt: skip
    print(f"{name}: {_cells(told)}", flush=True)
    return told


def _value(told: Mapping[str, Any], judge: str, head: str, scale: float = 1.0, digits: int = 2) -> str:
    """value [low, high] of a measure."""
    result = told["scores"].get(judge, {})
    key = next((k for k in result if k == head or (k.startswith(f"{head}(") and k.endswith(")"))), None)
    if key is None:
        return "-"
    low, high = result.get(f"{key}_low"), result.get(f"{key}_high")
    said = f"{scale * result[key]:.{digits}f}"
    return said if low is None else f"{said} [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def _cells(told: Mapping[str, Any]) -> list[str]:
    return [
        _value(told, "distribution", "FD"), _value(told, "distribution", "precision"), _value(told, "distribution", "recall"),
        _value(told, "clip_score", "clip_score", 1, 1), _value(told, "objects", "exact", 100, 1), str(told["evaluations"]),
        f"{told['pictures_per_s']:.2f}", f"{told['minutes']:.0f}",
        f"{(told['pictures'] or 0) / 1000:.0f}k", "-" if told["flop"] is None else f"{told['flop'] / 1e15:.2f}",
        f"{(told['parameters'] or 0) / 1e3:.0f}k",
    ]  # fmt: skip


def table(found: Sequence[Mapping[str, Any]]) -> str:
    heads: list[str] = [
        "system", "what it is", "hears", "FD", "precision", "recall", "CLIP score", "exact, %", "evaluations", "pictures/s", "minutes",
        "pictures", "PFLOP", "parameters",
    ]  # fmt: skip
    rows = [[f"`{one['name']}`", SYSTEMS[one["name"]], ", ".join(one["hears"]) or "nothing", *_cells(one)] for one in found]
    lines = ["| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows]]
    return "\n".join(lines)


def pictures(names: Sequence[str], path: Path) -> None:
    """Each system a row, the same words and seeds a column."""
    cells = []
    for name in names:
        model = triptych.load(name)
        prompts, notes = heard_by(model, SAID, range(len(SAID)))
        drawn = model.generate(prompts, seeds=list(range(len(SAID))))
        cells += [
            (f"{name}: {said}{f' ({note})' if note else ''}", [as_tensor(image)[0]])
            for said, image, note in zip(SAID, drawn, notes, strict=True)
        ]
    _kept(sheet(cells, len(SAID), side=128, lines=2), path)


def strip(name: str, path: Path, frames: int = 10) -> None:
    """What the model believes in at ten moments of one drawing, the last one the result."""
    model, shown = triptych.load(name), []
    seen: list[list[Image.Image]] = []
    done = model.generate([SAID[0]], seeds=[0], on_step=lambda at, of, preview: seen.append(preview()))
    chosen = [seen[round(i * (len(seen) - 1) / (frames - 1))] for i in range(frames - 1)] + [done]
    for i, images in enumerate(chosen):
        shown.append(
            ("the result" if i == frames - 1 else f"step {round(i * (len(seen) - 1) / (frames - 1)) + 1}", [as_tensor(images[0])[0]])
        )
    _kept(sheet(shown, frames, side=96, lines=1), path)


def _kept(image: Image.Image, path: Path) -> None:
    image.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=500, help="pictures of each system")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", default="", help="names, comma between; default all that are embedded")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    keep_freed_memory()
    there = [name for name in SYSTEMS if name in checkpoint.embedded()]
    chosen = [name for name in there if not args.models or name in args.models.split(",")]
    world = data.build(Data(sources=(Source(name="scenes"),), size=64), split="held_out")
    asked = judging.from_data(world, "scenes", "held_out", args.n, args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / "diffusion.json"
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"systems": {}}
    eyes, detector = load_eyes(EYES), load_eyes(DETECTOR)
    report |= {
        "version": f"triptych {triptych.__version__}", "says": asked.says, "n": args.n, "seed": args.seed,
        "threads": torch.get_num_threads(), "eyes": {EYES: eyes.fingerprint, DETECTOR: detector.fingerprint},
    }  # fmt: skip
    for name in chosen:
        report["systems"][name] = measure(name, asked, eyes, detector)
        path.write_text(
            json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )  # an interrupted run goes on with the next
    found = [report["systems"][name] for name in there if name in report["systems"]]
    (args.out / "diffusion.md").write_text(PAGE.format(n=args.n, seed=args.seed, table=table(found)), encoding="utf-8")
    pictures(there, args.out / "diffusion.png")
    strip("sd" if "sd" in there else there[-1], args.out / "diffusion-strip.png")


PAGE = """# Diffusion systems, small, side by side

Written by `scripts/measure_diffusion.py` (N = {n} held-out scenes, seed {seed}; figures in [diffusion.json](diffusion.json)). What a system
hears besides words is made from the same scene; who hears more draws the easier picture, so compare within "hears". The compositions are
new to those who hear words, not to those who hear classes. Minutes are of one core that other work shared, unless the card says otherwise.
Systems may have been measured on different days, and pictures/s of one machine then differ with no code changed (`layout`: 17 and 24).

{table}

The same words and seeds, nothing chosen:

![pictures of all systems](diffusion.png)

One picture growing clear:

![ten moments of one drawing](diffusion-strip.png)
"""

if __name__ == "__main__":
    main()
