"""Should panel 1 learn on while panel 2 is trained? The recipe `emoji` twice, equal but for that; what was reached is written down.

    python scripts/frozen_or_trained.py --text-encoder RUN/model --steps 700 --out docs/results/text_encoder.json

--text-encoder: a model whose panel 1 was trained before panel 2 (the run of `emoji-pairs`). The generator starts new both times, from
the same seed, on the same pictures, noise and times. Measured as in scripts/measure_emoji.py, on 300 training names, without enlarging.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from triptych import load
from triptych.contracts import Prompt
from triptych.data import emoji as artwork
from triptych.data.index import as_images
from triptych.judges import nearest
from triptych.recipe import Neighbour
from triptych.recipes.emoji import emoji as recipe
from triptych.training import train


def names(folder: Path, seed: int = 0, n: int = 300) -> dict[str, Any]:
    model, emoji = load(folder), artwork.load_emoji()
    pictures = as_images(artwork.pictures(32))
    order = torch.randperm(len(emoji), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = [i for i in order if emoji[i].single and emoji[i].group == "train"][:n]
    out: dict[str, Any] = {}
    for language in ("en", "zh"):
        prompts = [Prompt(text=emoji[i].name(language)) for i in chosen]
        with torch.no_grad():
            drawn = model.decoder.decode(model.latents(prompts, seeds=list(range(seed, seed + n)), steps=20))
        judge = nearest.NearestPicture(nearest.Config(), candidates_NCHW=pictures)
        judge.add(drawn, prompts, torch.tensor(chosen))
        out[language] = judge.result()
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text-encoder", required=True)
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("docs/results/text_encoder.json"))
    args = parser.parse_args()

    base = replace(
        recipe(), steps=args.steps, seed=args.seed, init=None, preview_prompts=(), validate_every=args.steps, save_every=args.steps
    )
    told: dict[str, Any] = {"steps": args.steps, "batch": base.batch, "seed": args.seed, "threads": torch.get_num_threads()}
    for kind, trained in (("frozen", False), ("trained", True)):
        one = replace(base, neighbours={**base.neighbours, "text_encoder": Neighbour(model=args.text_encoder, trained=trained)})
        with tempfile.TemporaryDirectory() as folder:
            result = train(one, out=Path(folder) / kind)
            assert result.model is not None
            card = json.loads((result.model / "generator" / "card.json").read_text())
            told[kind] = {"held_out": result.validation, "hours": card["hours"], "names": names(result.model)}
        print(kind, json.dumps(told[kind]))
        args.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
