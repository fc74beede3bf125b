"""`triptych compare`, and people's comparisons: two or more models' pictures of the same words and seeds, for eyes that are not ours."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.sheet import font, sheet, wrapped
from . import say
from .errors import blame
from .judge import drawing, labelled
from .models import load_model

if TYPE_CHECKING:
    from PIL import Image

    from ..judges.people import People
    from ..pipeline import TextToImage

__all__ = ["run", "run_answers", "run_people"]

_SIDE, _COLUMNS = 160, 8  # of a sheet: a picture's side in pixels, models in a row at most


def run(
    words: Sequence[str], models: Sequence[str], every: bool, n: int, seed: int, steps: int | None, guidance: float | None, out: str | None,
    device: str, as_json: bool,
) -> None:  # fmt: skip
    """The same words and seeds by each model as one picture: words above, the models' pictures below, each with its name.

    Under a picture stands what a model was given beside the words, or that it hears none.
    """
    from .. import checkpoint
    from ..eyes import as_tensor
    from .jobs import Job, Target

    names = [m for m in checkpoint.embedded() if checkpoint.has_panel(m, "generator")] if every else list(models)
    labels = labelled(names)
    if not words:
        raise ValueError('nothing to draw: give words, as in triptych compare "a red apple" --model emoji --model runs/own/model')
    target = Target(out or "compare.png", 1)
    rows = [(text, seed + k) for text in words for k in range(n)]
    shown: list[list[_Shown]] = [[] for _ in rows]
    how = {k: v for k, v in (("steps", steps), ("guidance", guidance)) if v is not None}
    with say.bar("drawing", quiet=as_json) as bar:
        for turn, (label, name) in enumerate(labels):
            for cells, one in zip(shown, _shown(load_model(name, device), label, rows, how), strict=True):
                cells.append(one)
            bar.update((turn + 1) / len(labels), label)
    captions = [f"{text} (seed {s})" if n > 1 else text for text, s in rows]
    if len(labels) == 1:  # one model's pictures: the words stand under them
        notes_of = [f"{caption}: {row[0].note}" if row[0].note else caption for caption, row in zip(captions, shown, strict=True)]
        cells = [(note, [as_tensor(row[0].picture)[0]]) for note, row in zip(notes_of, shown, strict=True)]
        picture = sheet(cells, 4, side=_SIDE, smooth=True)
    else:
        picture = _stacked(captions, shown)
    path = target.put(0, Job(prompt=words[0]), lambda path: picture.save(path))
    notes = {label: sorted({row[i].note for row in shown if row[i].note}) for i, (label, _) in enumerate(labels)}
    value = {"picture": str(path), "models": [label for label, _ in labels], "prompts": list(words), "seed": seed, "notes": notes}
    for label, lines in notes.items():
        for line in lines:
            say.note(f"{label}: {line}")
    say.result(value, str(path), as_json)


@dataclass(frozen=True)
class _Shown:
    """One picture of a sheet. note: what was made beside the words, or why there is no picture."""

    label: str
    picture: Image.Image
    note: str = ""


def _shown(model: TextToImage, label: str, rows: Sequence[tuple[str, int]], how: Mapping[str, Any]) -> list[_Shown]:
    """A model's pictures of all rows; grey where a scene is needed and the words are none. A setting that it lacks is left out."""
    from PIL import Image

    from .ask import Unreadable, asked

    known = {field.name for field in fields(model.generator.process.Sampling)}
    how = {k: v for k, v in how.items() if k in known}
    prompts: list[tuple[Any, int]] = []
    notes: list[str] = []
    drawn: list[int | None] = []  # the place of each row's picture among those that are drawn
    for text, seed in rows:
        try:
            (prompt,), (note,) = asked(model, [text], [seed])
            drawn.append(len(prompts))
            prompts.append((prompt, seed))
        except Unreadable:
            drawn.append(None)
            note = "not drawn: the words describe no scene"
        notes.append(note)
    pictures = model.generate([p for p, _ in prompts], seeds=[s for _, s in prompts], **how) if prompts else []
    blank = Image.new("RGB", (_SIDE, _SIDE), (208, 208, 208))
    return [_Shown(label, blank if k is None else pictures[k], note) for k, note in zip(drawn, notes, strict=True)]


def _stacked(captions: Sequence[str], rows: Sequence[Sequence[_Shown]]) -> Image.Image:
    """A block for each of the words: they as its heading, then the models in rows of at most eight. Few models: blocks side by side."""
    from PIL import Image

    many = len(rows[0])
    columns = -(-many // -(-many // _COLUMNS))  # rows of equal length
    lines = 4 if any(one.note for row in rows for one in row) else 1
    blocks = [_block(caption, row, columns, lines) for caption, row in zip(captions, rows, strict=True)]
    beside = max(1, min(len(blocks), _COLUMNS // columns))
    wide, high = blocks[0].size
    canvas = Image.new("RGB", (wide * beside, high * -(-len(blocks) // beside)), "white")
    for i, block in enumerate(blocks):
        canvas.paste(block, (i % beside * wide, i // beside * high))
    return canvas


def _block(caption: str, row: Sequence[_Shown], columns: int, lines: int) -> Image.Image:
    """One heading of at most two lines, and under it each model's picture, its name, and in grey what was made for it."""
    from PIL import Image, ImageDraw

    gap, heading, line = 8, 60, 16
    wide, high = _SIDE + gap, _SIDE + lines * line + 2 * gap
    canvas = Image.new("RGB", (columns * wide + 2 * gap, heading + -(-len(row) // columns) * high), "white")
    draw = ImageDraw.Draw(canvas)
    said = wrapped(caption, font(17), canvas.width - 2 * gap, 2)
    for k, text in enumerate(said):
        draw.text((gap, heading - 4 - 24 * (len(said) - k)), text, fill="black", font=font(17))
    for i, one in enumerate(row):
        x, y = gap + i % columns * wide, heading + i // columns * high
        how = Image.Resampling.NEAREST if max(one.picture.size) < 24 else Image.Resampling.LANCZOS
        canvas.paste(one.picture.convert("RGB").resize((_SIDE, _SIDE), how), (x, y))
        draw.rectangle((x - 1, y - 1, x + _SIDE, y + _SIDE), outline=(208, 208, 208))
        told = [(wrapped(one.label, font(13), _SIDE, 1), "black"), (wrapped(one.note, font(12), _SIDE, lines - 1), (110, 110, 110))]
        for k, (text, color) in enumerate([(text, color) for texts, color in told for text in texts]):
            draw.text((x, y + _SIDE + gap // 2 + k * line), text, fill=color, font=font(13 if k == 0 else 12))
    return canvas


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
