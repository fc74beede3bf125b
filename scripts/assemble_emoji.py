"""Join the runs of the default's panels into the embedded model, with cards that tell the whole story.

    python scripts/assemble_emoji.py --words RUN --pairs RUN --generator RUN [RUN ...] --upscaler RUN --upscaler-256 RUN
    python scripts/measure_emoji.py
    python scripts/assemble_emoji.py --results docs/results/emoji.json       # measured results into the cards

Each RUN is the folder of a `triptych train`; of several generator runs, each started from the one before it, the last counts.
The panels' weights are not touched: same bytes, same fingerprints.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from triptych import checkpoint
from triptych.pipeline import Generator, TextToImage

EMOJI = checkpoint.WEIGHTS / "emoji"
DATA = {
    "emoji": "artwork of Noto Color Emoji (Apache-2.0 and SIL OFL 1.1), names and keywords of Unicode CLDR (Unicode-DFS-2016)",
    "scenes": "drawn by triptych.data.scenes; cut-outs of the same artwork",
    "held out": "5 % of the base ideas, combinations of profession, gender and skin tone, compositions of scenes: no panel saw any",
}
LIMITS = [
    "a few thousand drawings of single ideas and scenes of simple shapes: nothing else can be drawn",
    "pictures of 32 x 32, enlarged: no detail that 32 x 32 pixels do not suggest",
    "English and Chinese; a word that was never met is drawn as something near it, or as nothing",
    "ideas that were held out are drawn badly",
]


def told(run: Path, place: str) -> dict[str, Any]:
    return json.loads((run / "model" / place / "card.json").read_text())


def story(*runs: Path, place: str) -> dict[str, Any]:
    """The last run's card, with the hours of all and what went before."""
    cards = [told(run, place) for run in runs]
    kept = {key: value for key, value in cards[-1].items() if key not in ("fingerprint", "parameters", "neighbours")}
    kept["hours"] = round(sum(card["hours"] for card in cards), 4)
    if len(cards) > 1:
        kept["before"] = [{k: card[k] for k in ("recipe", "steps", "examples", "hours", "held_out")} for card in cards[:-1]]
    return without_paths({**kept, "data": DATA, "limits": LIMITS})


def without_paths(value: Any) -> Any:
    """Run folders are of one machine alone: what is kept of them is their name."""
    if isinstance(value, dict):
        return {key: without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [without_paths(one) for one in value]
    return Path(value).parent.name if isinstance(value, str) and value.startswith("/") else value


def join(args: argparse.Namespace) -> None:
    made = args.generator[-1] / "model"
    trained_on = [run for run in args.generator if told(run, "text_encoder")["recipe"]["name"] == "emoji"]
    text_encoder = checkpoint.load_panel(made, "text_encoder")
    text_encoder.card = story(args.words, args.pairs, *trained_on, place="text_encoder")
    decoder = checkpoint.load_panel(args.upscaler_256 / "model", "decoder")
    decoder.card = story(args.upscaler, args.upscaler_256, place="decoder")
    network = checkpoint.load_panel(made, "generator", latent=decoder.latent, condition=text_encoder.gives)
    trained_with = network.card["neighbours"]["text_encoder"]
    network.card = story(*args.generator, place="generator")
    sampling = checkpoint.load_model_file(made)["sampling"]
    model = TextToImage(text_encoder, Generator(network, checkpoint.load_process(made)), decoder, name="emoji", sampling=sampling)
    model.save(EMOJI, name="emoji")
    if checkpoint.panel_fingerprint(EMOJI, "text_encoder") != trained_with:
        raise SystemExit("the text encoder changed while it was saved: its fingerprint is not the one that the generator knows")
    print(f"joined into {EMOJI}: {model.fingerprints}")


def put_results(path: Path) -> None:
    report = json.loads(path.read_text())
    for place in ("text_encoder", "generator", "decoder"):
        card = EMOJI / place / "card.json"
        told = json.loads(card.read_text()) | {"results": {k: v for k, v in report.items() if k not in ("model", "fingerprints")}}
        checkpoint.write_atomically(card, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    print(f"{path} is in the cards of {EMOJI}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("words", "pairs", "upscaler", "upscaler-256", "results"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--generator", type=Path, nargs="+")
    args = parser.parse_args()
    put_results(args.results) if args.results else join(args)


if __name__ == "__main__":
    main()
