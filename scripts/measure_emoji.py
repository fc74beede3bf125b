"""How well does a model draw what it is told? By number, and on contact sheets.

    python scripts/measure_emoji.py --model emoji --out docs/results        (about 5 minutes on two cores)

names          300 training names without skin tone or joiner, English and Chinese: is the nearest of all pictures the right one?
combinations   held-out combinations of profession, gender and skin tone: is the right one among the nearest five?
copier         the same question to a program that returns the picture of the nearest training caption.
scenes         200 two-object prompts, half of them held out: are both colours there and in the right order?

Writes emoji.json and contact sheets. Distances: 16 x 16 RGB, Euclidean, identical pictures count as one (judges/nearest.py).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import triptych
from triptych.contracts import Prompt
from triptych.data import emoji as artwork
from triptych.data import scenes
from triptych.data import sheet as sheets
from triptych.data.index import as_images
from triptych.judges import nearest, scene_reader
from triptych.pipeline import TextToImage

EYES = [  # never chosen by their result; the last half of it is held out or composed
    "smiling cat with heart-eyes", "red apple", "花痴的猫", "火箭", "a blue circle left of a red square", "三个绿色的三角形",
    "grinning face", "fire engine", "熊猫脸", "flag: Japan", "pizza", "蝴蝶", "soccer ball", "crown", "雪人", "eyes", "kiss mark", "蘑菇",
    "key", "bell", "向日葵", "rainbow", "guitar", "tropical fish",
]  # fmt: skip


def draw(model: TextToImage, prompts: list[Prompt], seed: int, args: argparse.Namespace) -> torch.Tensor:
    out = []
    for first in range(0, len(prompts), 25):
        chunk = prompts[first : first + 25]
        settings = {"steps": args.steps, "guidance": args.guidance, "sampler": args.sampler}
        out.append(as_images(model.generate(chunk, seeds=[seed + first + i for i in range(len(chunk))], batch_size=25, **settings)))
        print(f"  {first + len(chunk)}/{len(prompts)}", end="\r", flush=True)
    return torch.cat(out)


def sheet(path: Path, rows: list[tuple[str, list[torch.Tensor]]], columns: int, side: int = 64, lines: int = 2) -> None:
    """A palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sheets.sheet(rows, columns, side=side, smooth=True, lines=lines).quantize(128).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--sampler")
    args = parser.parse_args()

    started = time.time()
    model = triptych.load(args.model)
    emoji = artwork.load_emoji()
    pictures = as_images(artwork.pictures(32))
    judge = lambda: nearest.NearestPicture(nearest.Config(), candidates_NCHW=pictures)  # noqa: E731
    order = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(args.seed)).tolist()
    of_training = [i for i in range(len(emoji)) if emoji[i].group == "train"]
    report: dict = {"model": args.model, "fingerprints": model.fingerprints, "seed": args.seed, "sampling": str(model.settings())}

    # Names that were trained on, in both languages.
    chosen = [i for i in order if emoji[i].single and emoji[i].group == "train"][: args.n]
    for language in ("en", "zh"):
        prompts = [Prompt(text=emoji[i].name(language)) for i in chosen]
        drawn, seen = draw(model, prompts, args.seed, args), judge()
        seen.add(drawn, prompts, torch.tensor(chosen))
        report[f"names_{language}"] = seen.result()
        print(f"names {language}: {seen.result()}")
        rows = [(emoji[i].name(language), [drawn[k], pictures[i]]) for k, i in enumerate(chosen[:48])]
        sheet(args.out / f"names-{language}.png", rows, 8)

    # Combinations never shown, beside the nearest training picture and the copier's.
    held = [i for i in order if emoji[i].group == "held_out_combination"]
    prompts = [Prompt(text=emoji[i].name_en) for i in held]
    drawn, seen, copied = draw(model, prompts, args.seed, args), judge(), judge()
    copies = [of_training[nearest.copier(emoji[i].name_en, [emoji[j].name_en for j in of_training])] for i in held]
    seen.add(drawn, prompts, torch.tensor(held))
    copied.add(pictures[copies], prompts, torch.tensor(held))
    report |= {"combinations": seen.result(), "combinations_copier": copied.result()}
    print(f"combinations: {seen.result()}\ncopier: {copied.result()}")
    close = torch.cdist(nearest.thumbnails(drawn), nearest.thumbnails(pictures[of_training])).argmin(1).tolist()
    beside = [[drawn[k], pictures[i], pictures[of_training[close[k]]]] for k, i in enumerate(held)]
    sheet(args.out / "combinations.png", [(emoji[i].name_en, beside[k]) for k, i in enumerate(held[:36])], 6)

    # Two objects: both colours and the order.
    palette = {name: rgb for name, (rgb, _) in scenes.COLORS.items()}
    for held_out in (False, True):
        prompts = scenes.two_object_prompts(args.scenes // 2, held_out=held_out, seed=args.seed)
        reader = scene_reader.SceneReader(scene_reader.Config(), palette=palette)
        ceiling = scene_reader.SceneReader(scene_reader.Config(), palette=palette)
        drawn = draw(model, prompts, args.seed, args)
        reader.add(drawn, prompts)
        ceiling.add(as_images([scenes.render(p.truth, 128) for p in prompts]), prompts)
        name = "scenes_held_out" if held_out else "scenes_seen"
        report |= {name: reader.result(), f"{name}_ceiling": ceiling.result()}
        print(f"{name}: {reader.result()}  (real pictures read: {ceiling.result()['right']:.3f})")
        sheet(args.out / f"{name.replace('_', '-')}.png", [(p.text, [drawn[k]]) for k, p in enumerate(prompts[:40])], 8, 96, lines=3)

    # By eye: fixed prompts, then ideas never seen.
    unseen = [emoji[i].name_en for i in order if emoji[i].group == "held_out_idea" and emoji[i].single][:22]
    drawn = draw(model, [Prompt(text=text) for text in EYES + unseen], args.seed, args)
    close = torch.cdist(nearest.thumbnails(drawn), nearest.thumbnails(pictures[of_training])).argmin(1).tolist()
    sheet(args.out / "first-light.png", [(text, [drawn[k]]) for k, text in enumerate(EYES[:12])], 6, 128)
    sheet(args.out / "by-eye.png", [(text, [drawn[k]]) for k, text in enumerate(EYES)], 8, 96)
    rows = [(text, [drawn[k], pictures[of_training[close[k]]]]) for k, text in enumerate(unseen, start=len(EYES))]
    sheet(args.out / "never-seen.png", rows, 6)

    report["minutes"] = round((time.time() - started) / 60, 2)
    (args.out / "emoji.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
