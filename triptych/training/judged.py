"""What a recipe's judges say while a run goes on: the same words and seeds at every turn, by the averaged weights.

    RUN/metrics.jsonl                rows of kind "judged": every measure, with `_low` and `_high` where there are
    RUN/judged.svg                   each measure over the steps, its interval as a band
    RUN/previews/judged-STEP.png     the first pictures that were judged
    RUN/best/                        the model of the best turn, by the first measure of the first judge; judged.json says which turn

The steps do not notice: weights, averages, optimizer and draws are those of a run that nobody judges. `best/` is its own memory: what
stands there is the best that this run has drawn, also where a kill came before the next checkpoint.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from triptych import checkpoint, judging
from triptych.contracts import Task
from triptych.eyes import DETECTOR, EYES, Eyes, as_tensor, load_eyes
from triptych.pipeline import Generator, TextToImage
from triptych.recipe import Recipe

from . import lora, plot, run_folder
from .expect import names_of
from .report import Metrics
from .tasks import GeneratorTask

if TYPE_CHECKING:
    from .run import Run

__all__ = ["Judged", "curves"]

SHOWN = 16  # pictures of the strip
EACH = 4  # pictures of every prompt, where diversity is asked for
TRIAL = 8  # real pictures that the judges look at before training, to see that they can
LEARNT = 20_000  # training pictures at most, with which every drawn one is compared for memory

Export = Callable[[Task, Recipe, Path, Mapping[str, Any]], None]


class Judged:
    """The judges of one run.

    history: a row a turn, {"step": 2000, measure: value, ...}.  measure, better: what decides, and which way ("lower", "higher").
    measures: all that may be measured.  best: what judged.json of `best/` says, None before there is one.
    Raises ValueError, with what to do, where a judge cannot work: unknown, without eyes, without what it must be asked.
    """

    def __init__(self, recipe: Recipe, task: Task, data: Any, held_out: Any, device: str | torch.device) -> None:
        if not isinstance(task, GeneratorTask):
            raise ValueError(f"judges look at what a generator draws, and recipe {recipe.name!r} trains {recipe.panel}: leave judges empty")
        self.recipe, self.task = recipe, task
        self.eyes = _eyes(recipe, "eyes", [name for name in judging.JUDGES if name != "objects"], device)
        self.detector = _eyes(recipe, "detector", ["objects"], device)
        self.asked = _asked(recipe, data, held_out)
        training = _learnt(data) if "memorisation" in recipe.judges else None
        self._judges = judging.judges_for(self.asked, recipe.judges, eyes=self.eyes, detector=self.detector, training=training)
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None
        self.measure, self.better, self.measures = self._trial()
        eyes = {what: f"{one.name} {one.fingerprint}" for what, one in (("eyes", self.eyes), ("detector", self.detector)) if one}
        of = {"judges": recipe.judges, "asked": self.asked.says, "n": len(self.asked), **eyes, "sampling": recipe.sampling}
        self._of = json.loads(json.dumps(of, default=str))  # turns are compared only where all of this is the same

    def _fresh(self) -> dict[str, Any]:
        """Judges that have seen nothing yet, but for the training pictures; they look through the same eyes."""
        return copy.deepcopy(self._judges, {id(one): one for one in (self.eyes, self.detector) if one is not None})

    def _trial(self) -> tuple[str, str, tuple[str, ...]]:
        """A few real pictures, as if they were drawn: whatever a judge cannot do shows now, not at the first turn."""
        rows, results = range(min(TRIAL, len(self.asked))), {}
        assert self.asked.real is not None  # of scenes and of data there always are
        pictures, prompts = self.asked.real(rows), [self.asked.prompts[i] for i in rows]
        for name, judge in self._fresh().items():
            try:
                judge.add(pictures, prompts, pictures)
                results[name] = judge.result()
            except ValueError as error:
                raise ValueError(
                    f"judge {name!r} cannot judge {len(self.asked)} pictures here: {error}; change judge_pictures, eyes or judges"
                ) from error
        first = self.recipe.judges[0]
        deciding = judging.measures_of(first, results[first])
        if not deciding:
            raise ValueError(f"judge {first!r} measures nothing of what is asked here; put another first in judges")
        posed = [name for name, _ in judging.JUDGES["objects"]] if "objects" in results else []  # not every prompt poses every task
        return *deciding[0], tuple(dict.fromkeys([*_scores(results), *posed]))

    # --- a turn ---

    @property
    def scores(self) -> dict[str, float]:
        """Of the last turn."""
        return {name: value for name, value in self.history[-1].items() if name != "step"} if self.history else {}

    def due(self, step: int) -> bool:
        return step % self.recipe.judge_every == 0 or step == self.recipe.steps

    def turn(self, run: Run, out: Path, metrics: Metrics, export: Export) -> None:
        """Draw, judge, log; and where it is the best so far, keep the model. Raises Diverged for weights that are not finite."""
        run.check_finite()
        task = self.task
        with run.looking():
            generator = Generator(task.network, task.process)
            side = min(self.recipe.data.size, task.decoder.image_size)  # larger pictures are averaged down
            size = (side, side) if hasattr(task.decoder, "factor") else None
            model = TextToImage(task.text_encoder, generator, task.decoder, sampling=self.recipe.sampling, size=size)
            seen = judging.look(
                lambda prompts, seeds: model.generate(prompts, seeds=seeds), self.asked, self._fresh(), shown=range(SHOWN), curves=False
            )
            scores = _scores(seen.scores)
            self.history.append({"step": run.step, **scores})
            metrics.write(run.step, "judged", scores)
            best = self._is_best(scores)
            leading = [name for judge, result in seen.scores.items() for name, _ in judging.measures_of(judge, result)[:1]]
            said = "  ".join(_in_words(name, scores) for name in leading)
            run.report.say(f"step {run.step}  judged: {said}{'  the best so far' if best else ''}")
            if best:
                record = {"step": run.step, "measure": self.measure, "better": self.better, "value": scores[self.measure]}
                card = run_folder.card(run)
                kept = {**record, "scores": card["judged"], "of": self._of}

                def keep(folder: Path) -> None:
                    export(task, self.recipe, folder, card)
                    lora.export(task, folder / "lora", card, init=run.init or self.recipe.init, frozen=run.frozen)

                run.room(lambda: run_folder.keep_best(out, keep, kept))
                self.best = record
        shown = [as_tensor(seen.pictures[i]) for i in sorted(seen.pictures)[:SHOWN]]
        if shown:
            run.room(lambda: run_folder.save_strip(torch.cat(shown), out / "previews" / f"judged-{run.step:06d}.png"))
        chart = curves(self.history, self.recipe.name, self.best).encode()
        run.room(lambda: checkpoint.write_atomically(out / "judged.svg", chart))

    def _is_best(self, scores: Mapping[str, float]) -> bool:
        if not _finite(scores, self.measure):
            return False
        value = scores[self.measure]
        return self.best is None or (value < self.best["value"] if self.better == "lower" else value > self.best["value"])

    def in_words(self, out: Path, step: int) -> str:
        """Where the best is, for the end of a run that came to `step`."""
        if self.best is None:
            return f"judged: {self.measure} was never a number; there is no {out / 'best'}"
        at = f"{self.measure} {self.best['value']:.4g} at step {self.best['step']}"
        if self.best["step"] == step:
            return f"best judged: {at}, the last; also in {out / 'best'}"
        if self.scores.get(self.measure) == self.best["value"]:
            return f"best judged: {at}, in {out / 'best'}; the last, step {step}, is as good"
        last = f"{self.scores[self.measure]:.4g}" if self.measure in self.scores else "nothing"
        return f"best judged: {at}; the last, step {step}, has {last} and is not the best: take {out / 'best'}"

    # --- over a kill ---

    def facts(self) -> dict[str, Any]:
        """What a checkpoint remembers."""
        return {"of": self._of, "history": self.history}

    def begin(self, run: Run, out: Path, facts: Mapping[str, Any] | None) -> None:
        """Go on from a checkpoint's facts, None where the run starts. Turns of other words, eyes or judges do not count."""
        kept = run_folder.settle_best(out, fresh=facts is None)
        remembered = (facts or {}).get("judged")
        if remembered and remembered["of"] != self._of:
            run.report.say("what is judged has changed since: curves and best start anew")
        elif remembered:
            self.history = [dict(row) for row in remembered["history"]]
        if kept and kept.pop("of", None) == self._of:
            self.best = kept


# --- before a run ---------------------------------------------------------------------------------------------------------


def _eyes(recipe: Recipe, what: str, for_judges: Sequence[str], device: str | torch.device) -> Eyes | None:
    """The recipe's eyes or detector, by default the embedded ones; None where none of its judges looks through them."""
    looking = [name for name in recipe.judges if name in for_judges]
    if not looking:
        return None
    default, named = (EYES if what == "eyes" else DETECTOR), getattr(recipe, what)
    try:
        return load_eyes(named or default, device=str(device))
    except ValueError as error:
        which = f"{what} = {named!r}" if named else f"the embedded {default!r}, for {what} is not set"
        advice = f"set {what} to a model's folder (--set {what}=FOLDER), or take it out of judges"
        raise ValueError(f"judge {looking[0]!r} looks through {which}: {error}; {advice}") from error


def _asked(recipe: Recipe, data: Any, held_out: Any) -> judging.Asked:
    """Scenes for a judge of objects, else the words of the held-out pairs (of the trained ones, where none are held out)."""
    each = EACH if "diversity" in recipe.judges else 1
    many = max(2, recipe.judge_pictures // EACH) if each > 1 else recipe.judge_pictures
    if "objects" in recipe.judges:
        return judging.scenes(many).times(each)
    dataset, split = (data, "train") if held_out is None else (held_out, "held_out")
    if not hasattr(dataset, "row"):
        raise ValueError(f"judges ask the words of a data set's rows, and {type(dataset).__name__} has no `row`: leave judges empty")
    spec = "+".join(source.name for source in recipe.data.sources)
    return judging.from_data(dataset, spec, split, min(many, len(dataset))).times(each)


def _learnt(data: Any) -> torch.Tensor | None:
    if len(data) > LEARNT:
        raise ValueError(
            f"judge 'memorisation' compares with all training pictures, {LEARNT} at most; here are {len(data)}: take it out of judges"
        )
    return data.batch(0, 0, len(data)).images_BCHW


# --- telling --------------------------------------------------------------------------------------------------------------


def _scores(results: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Every measure of every judge, with its interval, in one mapping."""
    out: dict[str, float] = {}
    for judge, result in results.items():
        for name, _ in judging.measures_of(judge, result):
            out |= {key: float(result[key]) for key in (name, f"{name}_low", f"{name}_high") if key in result}
    return out


def _in_words(name: str, scores: Mapping[str, float]) -> str:
    low, high = (scores.get(f"{name}_{tail}") for tail in ("low", "high"))
    return f"{name} {scores[name]:.4g}" + (f" [{low:.4g}, {high:.4g}]" if low is not None and high is not None else "")


def curves(history: Sequence[Mapping[str, Any]], title: str, best: Mapping[str, Any] | None = None, columns: int = 3) -> str:
    """An SVG of each measure over the steps. history: {"step", measure, ...} a turn; what is not finite is left out."""
    names = [name for name in names_of(key for row in history for key in row) if name != "step"]
    panels = []
    for i, name in enumerate(names):
        left, top = 60 + 320 * (i % columns), 64 + 200 * (i // columns)
        panels += _panel(history, name, left, top, best["step"] if best and best["measure"] == name else None)
    width, height = 20 + 320 * min(columns, max(1, len(names))), 44 + 200 * math.ceil(len(names) / columns)
    return plot.page(width, height, f"{title}, judged while training", panels)


def _panel(history: Sequence[Mapping[str, Any]], name: str, left: float, top: float, best: int | None) -> list[str]:
    points = [(row["step"], row[name]) for row in history if _finite(row, name)]
    ends = [(row["step"], row[f"{name}_low"], row[f"{name}_high"]) for row in history if _finite(row, name, f"{name}_low", f"{name}_high")]
    values = [value for _, value in points] + [end for _, *both in ends for end in both] or [0.0]
    spare = 0.05 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 1.0
    frame = plot.Frame(left, top, (0.0, float(history[-1]["step"])), (min(values) - spare, max(values) + spare))
    out = plot.axes(frame, name)
    band = [(step, high) for step, _, high in ends] + [(step, low) for step, low, _ in reversed(ends)]
    out.append(f'<polygon points="{plot.path(frame, band)}" fill="#0969da" fill-opacity="0.2" stroke="#0969da" stroke-opacity="0.2"/>')
    out.append(f'<polyline points="{plot.path(frame, points)}" fill="none" stroke="#0969da" stroke-width="1.5"/>')
    for step, value in points:
        x, y = frame.at(step, value)
        ring = ' stroke="#cf222e" stroke-width="2"' if step == best else ""
        told = f"step {step}: {value:.4g}{', the best' if step == best else ''}"
        out.append(f'<circle cx="{x}" cy="{y}" r="{4 if step == best else 2}" fill="#0969da"{ring}><title>{told}</title></circle>')
    return out


def _finite(row: Mapping[str, Any], *names: str) -> bool:
    return all(math.isfinite(row.get(name, math.nan)) for name in names)
