"""The verbs of judging: their options and their help. The work is done in `judge.py` and `compare.py`."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["judge_app"]

judge_app = typer.Typer(rich_markup_mode=None)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress and notes stay on stderr.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or mps.")]


@judge_app.command()
def judge(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL...",
        help="Embedded models, models' folders, or (with --answers) more files.  [default: emoji]")] = None,
    protocol: Annotated[str | None, typer.Option("--protocol", metavar="NAME",
        help="What is asked: scenes, pairs, fid-10k, coco-zero-shot, drawbench.  [default: scenes; pairs where --data is given]")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="SPEC",
        help='Pairs to ask and to compare with: "emoji", "emoji:3,scenes:1", a folder.')] = None,
    captions: Annotated[str | None, typer.Option("--captions", metavar="FILE",
        help="For coco-zero-shot: the captions JSON; --data is the folder of its pictures.")] = None,
    split: Annotated[str, typer.Option("--split", help="Of --data: held_out, or train (what a model has seen).")] = "held_out",
    judges: Annotated[str | None, typer.Option("--judges", metavar="LIST",
        help="Of distribution, objects, clip_score, retrieval, diversity, memorisation.  [default: all that can say something]")] = None,
    n: Annotated[int | None, typer.Option("-n", "--n",
        help="Prompts.  [default: 200; fid-10k 10000, coco-zero-shot 30000 at most]")] = None,
    each: Annotated[int, typer.Option("--per-prompt", help="Pictures of each prompt; two or more tell diversity.")] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of the prompts and of the first picture.")] = 0,
    guidance: Annotated[str | None, typer.Option("--guidance", metavar="LIST",
        help="Judge each model at each of these, as 1,2,4: draws distance against fit to the words.")] = None,
    steps: Annotated[int | None, typer.Option("--steps", help="Of drawing, instead of each model's own.")] = None,
    language: Annotated[str, typer.Option("--language", help="Of drawbench: en or zh.")] = "en",
    eyes: Annotated[str | None, typer.Option("--eyes", metavar="NAME|PATH",
        help="What is looked through: our eyes or a CLIP folder; a FID network as .safetensors.  [default: the embedded ones]")] = None,
    detector: Annotated[str | None, typer.Option("--detector", metavar="NAME|PATH",
        help="What reads scenes.  [default: the embedded one]")] = None,
    training: Annotated[str | None, typer.Option("--training", metavar="SPEC",
        help="What the models learnt from: tells copies (judge memorisation).")] = None,
    report: Annotated[str | None, typer.Option("--report", metavar="DIR",
        help="Write DIR/report.html, which opens without a network, and DIR/judgement.json.")] = None,
    people: Annotated[tuple[str, str] | None, typer.Option("--people", metavar="A B",
        help="Write a page on which people compare these two models (-o, drawbench's prompts).")] = None,
    answers: Annotated[list[str] | None, typer.Option("--answers", metavar="FILE...",
        help="What people answered on such a page, and its key: preference, verdict, agreement.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE",
        help="The page of --people.  [default: people.html]")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Judge models: the same words and seeds, by numbers with intervals.

    Every score is named by the eyes that saw it, and has its N. Scores of different eyes cannot be compared.

    \b
    triptych judge emoji --report out/                          scenes, by distance, objects, fit to the words
    triptych judge emoji runs/own/model --data my-pictures      two models on your own pairs
    triptych judge emoji --guidance 1,2,4 --report out/         distance against fit to the words
    triptych judge emoji --data emoji --split train --training emoji --judges memorisation
    triptych judge --people emoji runs/own/model -o page.html   a page for raters, and its key
    triptych judge --answers page.key.json answers-*.json       what they said
    """
    if answers:
        from .compare import run_answers

        return run_answers([*answers, *(models or ())], as_json)
    if people:
        from .compare import run_people

        return run_people(people, n, language, seed, output, device, as_json)
    from .judge import Request, run

    run(Request(
        models=models or (), protocol=protocol, data=data, captions=captions, split=split, judges=_list(judges), n=n, each=each, seed=seed,
        guidance=[_float(part) for part in _list(guidance)], steps=steps, language=language, eyes=eyes, detector=detector,
        training=training, report=report, device=device,
    ), as_json)  # fmt: skip


@judge_app.command()
def compare(
    words: Annotated[list[str] | None, typer.Argument(metavar="WORDS...", help="What to draw.")] = None,
    models: Annotated[list[str] | None, typer.Option("--model", "-m", metavar="NAME|PATH", help="A model; may be repeated.")] = None,
    listed: Annotated[str | None, typer.Option("--models", metavar="A,B,C", help="The same, several at once.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All embedded models that draw.")] = False,
    n: Annotated[int, typer.Option("-n", "--num-images", help="Pictures of each prompt.", min=1, max=64)] = 1,
    seed: Annotated[int, typer.Option("--seed", help="Of the first picture.")] = 0,
    steps: Annotated[int | None, typer.Option("--steps", help="Of drawing, instead of each model's own.")] = None,
    guidance: Annotated[float | None, typer.Option("--guidance", help="Instead of each model's own.")] = None,
    output: Annotated[str | None, typer.Option("-o", "--output", metavar="FILE", help="The picture.  [default: compare.png]")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:  # fmt: skip
    """Draw the same words and seeds with several models, side by side.

    \b
    triptych compare "a red apple" "火箭" --model emoji --model runs/own/model
    triptych compare "a red apple" --models emoji,runs/a/model,runs/b/model
    triptych compare "a red apple" --all -n 4

    A model that needs more than words (a class, boxes, a map, a small picture, a mask) gets it made from the words, which is said
    under its picture.
    """
    from .compare import run

    chosen = [*(models or ()), *_list(listed)]
    if every and chosen:
        raise ValueError(f"--all means every embedded model; leave it out to compare {', '.join(chosen)} alone")
    run(words or (), chosen, every, n, seed, steps, guidance, output, device, as_json)


def _list(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--guidance {text!r} is no number; write 1,2,4") from None
