"""Put the runs of the eyes into the package, with cards that tell the whole story.

    python scripts/assemble_eyes.py --clip RUN --detector RUN [RUN ...]     of several runs, each begun from the one before, the last counts
    python scripts/measure_eyes.py
    python scripts/assemble_eyes.py --results docs/results/eyes.json         measured results into the cards

The weights are not touched: same bytes, same fingerprints.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from assemble_emoji import DATA, story

from triptych import checkpoint
from triptych.data.scenes import CLASSES
from triptych.eyes import DETECTOR, EYES, Eyes

CLIPART = "8,121 public-domain drawings of Open Clip Art (CC0 / public domain), but none that is named as a held-out emoji is"
LIMITS = {
    EYES: [
        "drawings and artwork: no photograph was ever seen", "64 x 64 pixels", "scores of other eyes cannot be compared with its own",
        "it hears which things and colours are named, hardly which belong together, and no order: left and right score the same",
        "blur moves its distances little, for it learnt from pictures that were blurred",
    ],
    DETECTOR: ["scenes of triptych.data.scenes and nothing else: 8 drawn shapes in 10 colours, 40 cut-outs", "128 x 128 pixels"],
}


def join(clip: Path, detector: list[Path]) -> None:
    words = checkpoint.load_panel(clip / "model", "text_encoder")
    vision = checkpoint.load_panel(clip / "model", "vision", condition=words.gives)
    heard = vision.card["neighbours"]
    for place, panel in (("text_encoder", words), ("vision", vision)):
        panel.card = story(clip, place=place) | {"data": {**DATA, "openclipart": CLIPART}, "limits": LIMITS[EYES]}
    vision.card["neighbours"] = heard
    Eyes(vision, words, name=EYES).save(checkpoint.WEIGHTS / EYES)
    seeing = checkpoint.load_panel(detector[-1] / "model", "vision")
    held = {"scenes": DATA["scenes"], "held out": "compositions of scenes: pairs of colour and shape, numbers, relations"}
    seeing.card = story(*detector, place="vision") | {"data": held, "limits": LIMITS[DETECTOR]}
    Eyes(seeing, name=DETECTOR, labels=CLASSES).save(checkpoint.WEIGHTS / DETECTOR)
    print(f"joined into {checkpoint.WEIGHTS / EYES} and {checkpoint.WEIGHTS / DETECTOR}")


def put_results(path: Path) -> None:
    report = json.loads(path.read_text())
    for name, keys in ((EYES, ("clip", "features")), (DETECTOR, ("detector",))):
        card = checkpoint.WEIGHTS / name / "vision" / "card.json"
        results = {key: report[key] for key in keys} | {"seed": report["seed"]}
        told: dict[str, Any] = json.loads(card.read_text()) | {"results": results, "limits": LIMITS[name]}
        if report["eyes"].get(name) != told["fingerprint"]:
            raise SystemExit(f"{path} measured {report['eyes'].get(name)}, {name} is {told['fingerprint']}: measure again")
        checkpoint.write_atomically(card, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
    print(f"{path} is in the cards")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip", type=Path)
    parser.add_argument("--detector", type=Path, nargs="+")
    parser.add_argument("--results", type=Path)
    args = parser.parse_args()
    put_results(args.results) if args.results else join(args.clip, args.detector)


if __name__ == "__main__":
    main()
