"""What does CLIP guidance do to pictures? A dozen prompts, drawn without it and with two scales of it: a sheet, and numbers.

    python scripts/show_clip_guidance.py --out docs/results        (about 4 minutes on two cores)

Six prompts are of training, six are ideas that neither the generator nor the eyes were shown. The same seeds at every scale.

clip_score    what the guide itself thinks of the pictures: it must rise, for it is what is climbed.
nearest       what eyes that nobody trained think (judges/nearest.py): how often the named artwork is the nearest, or among the
              nearest five, of all there are; how far from it the picture is, in 0..255 of 16 x 16 pixels; and how much farther than
              the picture of the same seed without a guide, which says more than the other two.

Where the score rises and the pictures go away from the artwork, the critic is fooled and they are not better.
Writes clip-guidance.png and clip-guidance.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import triptych
from triptych import catalog
from triptych.contracts import Prompt
from triptych.data import emoji as artwork
from triptych.data.sheet import sheet
from triptych.eyes import EYES, Eyes, as_tensor
from triptych.judges import nearest
from triptych.judges._samples import mean_of  # the bootstrap of clip_score's own interval
from triptych.pipeline import TextToImage

# Never chosen by their result. (English name, the language in which it is asked for)
SEEN = [("red apple", "en"), ("rocket", "zh"), ("pizza", "en"), ("guitar", "zh"), ("panda", "en"), ("grinning face", "en")]
UNSEEN = [
    ("pineapple", "en"), ("strawberry", "zh"), ("palm tree", "en"), ("octopus", "zh"), ("angry face", "en"), ("closed umbrella", "en"),
]  # fmt: skip


def asked() -> list[tuple[str, int, bool]]:
    """(words, index of the named artwork, never seen)."""
    emoji = artwork.load_emoji()
    rows = []
    for names, group in ((SEEN, "train"), (UNSEEN, "held_out_idea")):
        for name, language in names:
            index = next(i for i, one in enumerate(emoji) if one.name_en == name)
            assert emoji[index].group == group, (name, emoji[index].group)
            rows.append((emoji[index].name(language), index, group != "train"))
    return rows


def measure(
    images: torch.Tensor, unguided: torch.Tensor, prompts: list[Prompt], truth: torch.Tensor, pictures: torch.Tensor, eyes: Eyes
) -> dict[str, Any]:
    clip = catalog.build("judges", "clip_score", size="default", eyes=eyes.sight())
    clip.add(images, prompts)
    close = nearest.NearestPicture(nearest.Config(), candidates_NCHW=pictures)
    close.add(images, prompts, truth)
    away, before = (_distance(many, pictures[truth]) for many in (images, unguided))
    return {**clip.result(), **close.result(), **mean_of("distance", away), **mean_of("farther", away - before)}


def _distance(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return (nearest.thumbnails(images) - nearest.thumbnails(truth)).square().mean(1).sqrt()


def draw(model: TextToImage, prompts: list[Prompt], seeds: list[int], eyes: Eyes, scale: float) -> torch.Tensor:
    images = model.generate(prompts, seeds=seeds, guide=eyes, guide_scale=scale)
    return torch.cat([as_tensor(image) for image in images])


def _short(told: dict[str, Any]) -> str:
    parts = []
    for group in ("seen", "unseen"):
        score = next(value for name, value in told[group].items() if name.startswith("clip_score(") and name.endswith(")"))
        parts.append(f"{group}: score {score:.1f}, distance {told[group]['distance']:.1f} ({told[group]['farther']:+.2f})")
    return "; ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--eyes", default=EYES)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--scales", type=float, nargs="+", default=[10.0, 50.0], help="beside 0")
    parser.add_argument("--each", type=int, default=4, help="pictures of each prompt; the first is shown")
    args = parser.parse_args()

    started = time.time()
    model, eyes = triptych.load(args.model), triptych.load(args.eyes)
    pictures = torch.cat([as_tensor(Image.fromarray(one)) for one in artwork.pictures(32)])
    rows = asked()
    prompts = [Prompt(text=text) for text, _, _ in rows for _ in range(args.each)]
    truth = torch.tensor([index for _, index, _ in rows for _ in range(args.each)])
    unseen = torch.tensor([new for _, _, new in rows for _ in range(args.each)])
    seeds, scales = list(range(len(prompts))), [0.0, *args.scales]
    report: dict[str, Any] = {
        "model": args.model, "fingerprints": model.fingerprints, "sampling": str(model.settings()),
        "eyes": eyes.name, "eyes_fingerprint": eyes.fingerprint, "each": args.each, "scales": {},
    }  # fmt: skip
    drawn = {}
    for scale in scales:
        drawn[scale] = images = draw(model, prompts, seeds, eyes, scale)
        told = {"moved": (images - drawn[0.0]).abs().mean().item() * 127.5}
        for name, which in (("all", unseen | ~unseen), ("seen", ~unseen), ("unseen", unseen)):
            said = [prompts[i] for i in which.nonzero().flatten().tolist()]
            told[name] = measure(images[which], drawn[0.0][which], said, truth[which], pictures, eyes)
        report["scales"][f"{scale:g}"] = told
        print(f"scale {scale:g}: moved by {told['moved']:.1f}/255; {_short(told)}", flush=True)

    args.out.mkdir(parents=True, exist_ok=True)
    shown = f"scale {', '.join(f'{scale:g}' for scale in scales)}, and the artwork"
    cells = []
    for k, (text, index, new) in enumerate(rows):
        side_by_side = [*(drawn[scale][k * args.each] for scale in scales), pictures[index]]
        cells.append((f"{text}{' (never seen)' if new else ''}: {shown}", side_by_side))
    sheet(cells, 2, side=112, smooth=True, lines=2).quantize(128).save(args.out / "clip-guidance.png", optimize=True)
    report["minutes"] = round((time.time() - started) / 60, 2)
    (args.out / "clip-guidance.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
