"""`triptych compare`, and people's comparisons: two or more models' pictures of the same words and seeds, for eyes that are not ours."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import say
from .errors import blame
from .judge import drawing, labelled
from .models import load_model

if TYPE_CHECKING:
    from PIL import Image

    from ..judges.people import People

__all__ = ["run", "run_answers", "run_people"]


def run(
    words: Sequence[str], models: Sequence[str], every: bool, n: int, seed: int, steps: int | None, guidance: float | None, out: str | None,
    device: str, as_json: bool,
) -> None:  # fmt: skip
    """The same words and seeds by each model, a column a model, as one picture."""
    from .. import checkpoint
    from ..data.sheet import sheet
    from ..eyes import as_tensor
    from .jobs import Job, Target

    names = [m for m in checkpoint.embedded() if (checkpoint.locate(m) / "generator").is_dir()] if every else list(models)
    labels = labelled(names)
    if not words:
        raise ValueError('nothing to draw: give words, as in triptych compare "a red apple" --model emoji --model runs/own/model')
    rows = [(text, seed + k) for text in words for k in range(n)]
    cells: list[list[Any]] = [[] for _ in rows]
    with say.bar("drawing", quiet=as_json) as bar:
        for turn, (label, name) in enumerate(labels):
            model = load_model(name, device)
            how = {k: v for k, v in (("steps", steps), ("guidance", guidance)) if v is not None}
            pictures = drawing(model, how)([text for text, _ in rows], [s for _, s in rows])
            for cell, picture in zip(cells, pictures, strict=True):
                cell.append(as_tensor(picture)[0])
            bar.update((turn + 1) / len(labels), label)
    order = " | ".join(label for label, _ in labels)
    captions = [f"{text} (seed {s})" if n > 1 else text for text, s in rows]
    if len(labels) > 1:
        captions = [f"{caption}: {order}" for caption in captions]
    picture = sheet(list(zip(captions, cells, strict=True)), 1 if len(labels) > 2 else 4, side=160, smooth=True)
    path = Target(out or "compare.png", 1).put(0, Job(prompt=words[0]), lambda path: picture.save(path))
    value = {"picture": str(path), "models": [label for label, _ in labels], "prompts": list(words), "seed": seed}
    say.note(f"left to right: {order}")
    say.result(value, str(path), as_json)


# --- people -----------------------------------------------------------------------------------------------------------------


def run_people(models: tuple[str, str], n: int | None, language: str, seed: int, out: str | None, device: str, as_json: bool) -> None:
    """A page on which a person compares two models' pictures of the same words."""
    from .. import judging
    from .people import Pair, write_page

    asked = judging.drawbench(n or 200, seed, language)
    drawn: list[list[bytes]] = []
    labels = labelled(models)
    with say.bar("drawing", quiet=as_json) as bar:
        for turn, (label, name) in enumerate(labels):
            draw, files = drawing(load_model(name, device), {}), []
            for first in range(0, len(asked), judging.BATCH):
                rows = slice(first, first + judging.BATCH)
                files += [_png(picture) for picture in draw(asked.prompts[rows], asked.seeds[rows])]
                bar.update((turn + len(files) / len(asked)) / 2, f"{label}: {len(files)} of {len(asked)} pictures")
            drawn.append(files)
    (a, _), (b, _) = labels
    pairs = [
        Pair(id=f"{category}-{i}", prompt=prompt.text, category=category, left=left, right=right, model_left=a, model_right=b)
        for i, (prompt, category, left, right) in enumerate(zip(asked.prompts, asked.categories, *drawn, strict=True))
    ]
    page = Path(out or "people.html")
    key = write_page(page, pairs, "哪一张图更好？" if language == "zh" else "Which picture?")
    say.note(f"send {page} to the raters, keep {key}; then: triptych judge --answers {key} answers-*.json")
    say.result({"page": str(page), "key": str(key), "pairs": len(pairs), "models": [a, b]}, f"{page}\n{key}", as_json)


def run_answers(files: Sequence[str], as_json: bool) -> None:
    """What raters said: preference with intervals, the verdict, each category, and their agreement. One of the files is the page's key."""
    from ..judges.people import Config, People
    from .people import read_answers

    with blame("bad_data"):
        keys = [file for file in files if _is_key(file)]
        answers = [file for file in files if file not in keys]
        if len(keys) != 1 or not answers:
            said = f"{len(keys)} keys and {len(answers)} files of answers"
            raise ValueError(f"{said}: give the page's one key (*.key.json) and the raters' files")
        judges: dict[tuple[str, str], People] = {}
        for file in answers:
            for told in read_answers(file, keys[0]):
                judges.setdefault((told["models"]["A"], told["models"]["B"]), People(Config())).answers(told)
    value = {"comparisons": [{"A": a, "B": b, **judge.result()} for (a, b), judge in judges.items()]}
    say.result(value, "\n\n".join(_preference(one) for one in value["comparisons"]), as_json)


def _is_key(file: str) -> bool:
    try:
        said = json.loads(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON file: {error}") from None
    return isinstance(said, dict) and isinstance(said.get("pairs"), dict)


def _preference(told: Mapping[str, Any]) -> str:
    a, b = told["A"], told["B"]
    lines = [f"{a} against {b}: {told['pairs']} pairs, {told['raters']} raters, {told['n']} answers"]
    for question, asks in (("quality", "the better picture"), ("words", "fits the words better")):
        if f"{question} answers" not in told:
            continue
        shares = []
        for name, key in ((a, "A"), ("same", "same"), (b, "B")):
            if f"{question} {key}" in told:
                low, high = told[f"{question} {key}_low"], told[f"{question} {key}_high"]
                shares.append(f"{name} {told[f'{question} {key}']:.0%} [{low:.0%}, {high:.0%}]")
        winner = {1: a, -1: b, 0: "nobody"}[told[f"{question} winner"]]
        agree = f", agreement {told[f'{question} alpha']:.2f}" if f"{question} alpha" in told else ""
        lines.append(f"  {asks}: {', '.join(shares)}; the winner is {winner} (p = {told[f'{question} p']:.3g}{agree})")
        for key in sorted(k for k in told if k.startswith(f"{question}/") and k.endswith(" answers")):
            head = key.removesuffix(" answers")
            shares = f"{a} {told[f'{head} A']:.0%}, {b} {told[f'{head} B']:.0%}"
            lines.append(f"    {head.partition('/')[2]:<14} {shares}  ({told[key]} answers)")
    return "\n".join(lines)


def _png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
