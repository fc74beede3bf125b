"""How well do the eyes see? Retrieval by the CLIP, reading of scenes by the detector, and which features separate.

    python scripts/measure_eyes.py [--eyes NAME|DIR] [--detector NAME|DIR] [--mae DIR] [--out docs/results]         (3 minutes, two cores)

combinations   held-out combinations of profession, gender and skin tone, English and Chinese: is the right one among the first 1 and 5,
               of those combinations alone, and of all 3,635 pictures?
ideas          held-out single ideas: nothing of them was ever seen, by name or by picture; chance stands beside.
scenes         captions of held-out scenes.
detector       500 held-out scenes of one to three objects: AP as COCO defines it, attributes, and whether everything is read right.
features       per candidate for measuring distances: how many times farther than real ones are pictures that were changed? And how much
               of Open Clip Art's folders can a linear probe read?

Writes eyes.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import triptych
from triptych.contracts import Prompt
from triptych.data import emoji as artwork
from triptych.data import openclipart, scenes
from triptych.data.index import as_images, draws, pick
from triptych.eyes import DETECTOR, EYES, Eyes
from triptych.judges import detection, linear_probe, nearest, retrieval
from triptych.judges._moments import frechet, gaussian_of
from triptych.layers.pixels import average_down


def held_out_scenes(n: int, most: int, seed: int = 0) -> list[Prompt]:
    """English and Chinese by turns; compositions that no training showed, of at most so many objects."""
    found: list[Prompt] = []
    rng = draws(seed, "measured scenes")
    while len(found) < n:
        scene = scenes.random_scene(rng, True, cutouts=tuple(scenes.CUTOUTS))
        if len(scene.objects) <= most:
            text = pick(rng, scenes.captions(scene, ("en", "zh")[len(found) % 2]))
            found.append(Prompt(text=text, truth=scene, boxes_N5=scenes.boxes(scene)))
    return found


def found_among(eyes: Eyes, texts: list[str], right: list[int], gallery_NE: Tensor) -> dict[str, float]:
    """Text to picture: is picture right[i] among the first k for text i, of a whole gallery?"""
    text_BE = eyes.sight().text(texts)
    cosines = text_BE @ gallery_NE.T
    rank_B = (cosines >= cosines.gather(1, torch.tensor(right)[:, None])).sum(1) - 1
    out: dict[str, float] = {"n": len(texts), "candidates": len(gallery_NE)}
    for k in (1, 5):
        hits = int((rank_B < k).sum())
        low, high = nearest.wilson(hits, len(texts))
        out |= {f"top{k}": hits / len(texts), f"top{k}_low": low, f"top{k}_high": high}
    return out


def clip(eyes: Eyes, seed: int) -> dict[str, Any]:
    emoji, every = artwork.load_emoji(), as_images(artwork.pictures(128))
    gallery_NE = eyes.sight().image(every)
    order = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(seed)).tolist()
    groups = {
        "combinations": [i for i in order if emoji[i].group == "held_out_combination"],
        "ideas": [i for i in order if emoji[i].group == "held_out_idea" and emoji[i].single],
        "seen": [i for i in order if emoji[i].group == "train" and emoji[i].single][:300],
    }
    report: dict[str, Any] = {}
    for name, chosen in groups.items():
        for language in ("en", "zh"):
            texts = [emoji[i].name(language) for i in chosen]
            judge = retrieval.Retrieval(retrieval.Config(), eyes=eyes.sight())
            judge.add(every[chosen], [Prompt(text=text) for text in texts])
            report[f"{name}_{language}"] = plain(judge.result())
            report[f"{name}_{language}_of_all"] = found_among(eyes, texts, chosen, gallery_NE)
    prompts = held_out_scenes(500, 4, seed)
    for language, rows in (("en", prompts[::2]), ("zh", prompts[1::2])):
        judge = retrieval.Retrieval(retrieval.Config(), eyes=eyes.sight())
        judge.add(as_images([scenes.render(p.truth, 128) for p in rows]), rows)
        report[f"scenes_{language}"] = plain(judge.result())
    return report


def read(detector: Eyes, seed: int) -> dict[str, Any]:
    prompts = held_out_scenes(500, 3, seed)
    images = as_images([scenes.render(p.truth, 128) for p in prompts])
    judge = detection.Detection(detection.Config(), eyes=detector.sight(), **detector.names())
    judge.add(images, prompts)
    return judge.result()


def changes(prompts: list[Prompt], seed: int) -> dict[str, Tensor]:
    """Real pictures, and what can become of them: [N, 3, 128, 128] each."""
    import dataclasses

    real = as_images([scenes.render(p.truth, 128) for p in prompts])
    rng = draws(seed, "changes")

    def recolored(thing: scenes.Object) -> scenes.Object:
        return dataclasses.replace(thing, color=pick(rng, [c for c in scenes.COLORS if c != thing.color])) if thing.color else thing

    def drawn(change: Any) -> Tensor:
        return as_images([scenes.render(dataclasses.replace(p.truth, objects=change(p.truth.objects)), 128) for p in prompts])

    small = average_down(real, 32)
    generator = torch.Generator().manual_seed(seed)
    return {
        "real": real,
        "blurred": torch.nn.functional.interpolate(small, 128, mode="bilinear", align_corners=False),
        "noised": (real + 0.2 * torch.randn(real.shape, generator=generator)).clamp(-1, 1),
        "one recoloured": drawn(lambda objects: (recolored(objects[0]), *objects[1:])),
        "one lost": drawn(lambda objects: objects[1:]),
        "mirrored": real.flip(-1),
    }


def features(candidates: dict[str, Any], seed: int) -> dict[str, Any]:
    """Of 500 scenes that are changed and 500 others that are real: Fréchet distance over that of two real halves; and a linear probe."""
    prompts = held_out_scenes(1000, 3, seed + 1)
    changed, other = changes(prompts[:500], seed), as_images([scenes.render(p.truth, 128) for p in prompts[500:]])
    report: dict[str, Any] = {}
    folders, drawings, labels = clipart(1500, seed)
    for name, see in candidates.items():
        there = gaussian_of(see(other))
        distance = {what: frechet(gaussian_of(see(images)), there) for what, images in changed.items()}
        report[name] = {"floor": distance["real"], **{w: distance[w] / distance["real"] for w in changed if w != "real"}}
        judge = linear_probe.LinearProbe(linear_probe.SIZES["ridge"], eyes=Features(name, see))
        judge.add(drawings, [Prompt(label=label) for label in labels])
        report[name]["probe"] = plain(judge.result()) | {"folders": folders}
    return report


def clipart(n: int, seed: int) -> tuple[list[str], Tensor, list[int]]:
    """(top folders, drawings, the folder of each): Open Clip Art's own taxonomy, which no eyes were told."""
    source = openclipart.OpenClipartSource(size=64, captions="")
    rows = [source.row(seed, i) for i in range(n)]
    places = {f"openclipart:{drawing.digest}": drawing.files[0].split("/")[0] for drawing in source.drawings}
    named = [places[row.key] for row in rows]
    common = sorted(folder for folder in set(named) if named.count(folder) >= 20)
    kept = [i for i in range(n) if named[i] in common]
    return common, as_images([rows[i].picture for i in kept]), [common.index(named[i]) for i in kept]


class Features:
    def __init__(self, name: str, see: Any) -> None:
        self.name, self.features = name, see


def plain(result: dict[str, float]) -> dict[str, float]:
    """Without the eyes' name in the keys: it stands at the top."""
    return {key.partition("(")[0] + key.partition(")")[2] if "(" in key else key: value for key, value in result.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--eyes", default=EYES)
    parser.add_argument("--detector", default=DETECTOR)
    parser.add_argument("--mae", help="a folder with an MAE, as `triptych train eyes-mae` leaves it")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    started = time.time()
    eyes, detector = triptych.load(args.eyes), triptych.load(args.detector)
    report: dict[str, Any] = {"seed": args.seed, "eyes": {one.name: one.fingerprint for one in (eyes, detector)}}
    with torch.no_grad():
        report["clip"] = clip(eyes, args.seed)
        report["detector"] = read(detector, args.seed)
        candidates: dict[str, Any] = {eyes.name: eyes.sight().features, "pixels": lambda x: average_down(x, 8).flatten(1)}
        if args.mae:
            mae = triptych.load(args.mae)
            candidates["mae"] = mae.sight().features
            report["eyes"]["mae"] = mae.fingerprint
        report["features"] = features(candidates, args.seed)
    report["minutes"] = round((time.time() - started) / 60, 2)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "eyes.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
