"""Judging: the same words and seeds to every model, its pictures to the judges, numbers and intervals side by side.

    asked = scenes(200)                                     what is asked, and the real pictures of it where there are some
    seen = look(model, asked, judges_for(asked, eyes=eyes))     one model's pictures, judged as they come
    judgement(asked, {"emoji": seen}, ...)                  all of it as plain JSON, from which a report is drawn

Nothing is chosen: every picture that is drawn is judged. A judge is given what it needs or is left out: real pictures for distances,
a scene graph for objects, several pictures of the same words for diversity.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from . import __version__, catalog
from .contracts import Judge, Prompt
from .eyes import Eyes, as_tensor
from .layers.memory import forget_peak, peak

__all__ = ["Asked", "JUDGES", "Seen", "coco", "drawbench", "from_data", "judgement", "judges_for", "look", "measures_of", "scenes"]

EXTREMES = 6  # pictures that are kept of the best, and of the worst, by each measure
BATCH = 16  # pictures drawn together


# --- what is asked --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """Prompts with their seeds and categories; `real(rows)` gives the real pictures of some of them, [B, 3, H, W] in [-1, 1].

    says: in a sentence, what was asked and of what.  unseen: whether the real pictures are none that a model was trained on.
    """

    name: str
    says: str
    data: str
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    categories: tuple[str, ...]
    seed: int = 0
    real: Callable[[range], Tensor] | None = None
    unseen: bool = True

    def __len__(self) -> int:
        return len(self.prompts)

    def times(self, each: int) -> Asked:
        """The same, `each` pictures of every prompt, one after the other, with further seeds."""
        if each == 1:
            return self
        rows, real = [i for i in range(len(self)) for _ in range(each)], self.real

        def repeated(at: range) -> Tensor:
            assert real is not None
            return torch.cat([real(range(rows[i], rows[i] + 1)) for i in at])

        return dataclasses.replace(
            self, prompts=tuple(self.prompts[i] for i in rows), categories=tuple(self.categories[i] for i in rows),
            seeds=tuple(self.seed + k for k in range(len(rows))), real=repeated if real else None,
        )  # fmt: skip


def scenes(n: int = 200, seed: int = 0, *, font: str | None = None, side: int = 128) -> Asked:
    """Prompts of the scenes' grammar with their graphs: one thing, a number of it, two in a relation, lists; by turns in English and in
    Chinese, by turns such as training may show and such as it never does. Drawn shapes alone: nothing but Pillow is needed."""
    from .data import scenes as world
    from .data.index import as_images, draws, pick

    forms = {"one": "one thing", "number": "counting", "relation": "position", "list": "several"}
    prompts, categories = [], []
    for i in range(n):
        form, language, held_out = list(forms)[i % 4], ("en", "zh")[i // 4 % 2], bool(i // 8 % 2)
        rng = draws(seed, "judged scene", i)
        graph = world.random_scene(rng, held_out, form=form)
        text = pick(rng, world.captions(graph, language))
        prompts.append(Prompt(text=text, truth=graph, boxes_N5=world.boxes(graph, font)))
        categories.append(forms[form] + (", never shown" if held_out else ""))

    def real(rows: range) -> Tensor:
        return as_images([world.render(prompts[i].truth, side, font) for i in rows])

    says = f"{n} scenes of one to four shapes, in English and Chinese, half of them compositions that training never shows"
    return _asked("scenes", says, "scenes", prompts, categories, seed, real)


def from_data(dataset: Any, spec: str, split: str, n: int = 200, seed: int = 0, name: str = "") -> Asked:
    """The words of the first n rows of a data set in this seed's order, and its pictures as the real ones.

    Raises ValueError for data without pictures or without words.
    """
    from .data.index import as_images

    rows = [dataset.row(seed, i).prompt for i in range(n)]
    if not dataset.size or not all(prompt.text for prompt in rows):
        raise ValueError(f"data {spec!r} has pictures without words, or words without pictures: judging needs pairs")

    def real(at: range) -> Tensor:
        return as_images([dataset.row(seed, i).picture for i in at])

    says = f"the words of {n} pairs of {spec} ({split.replace('_', ' ')}), whose pictures are the real ones"
    return dataclasses.replace(_asked(name or "pairs", says, spec, rows, [""] * n, seed, real), unseen=split != "train")


def drawbench(n: int = 200, seed: int = 0, language: str = "en") -> Asked:
    """The first n of 200 prompts in 11 categories, interleaved so that few are of all kinds. There are no real pictures of them."""
    from .data import drawbench as bench

    entries = sorted(bench.prompts(language), key=lambda one: (one.id.rpartition("-")[2], one.category))[:n]
    prompts = [Prompt(text=one.text) for one in entries]
    says = f"{len(entries)} prompts in 11 categories (language {language}), made to be hard; there are no real pictures of them"
    return _asked("drawbench", says, "drawbench", prompts, [one.category for one in entries], seed, None)


def coco(captions: str | Path, folder: str | Path, n: int = 30_000, seed: int = 0, side: int = 256) -> Asked:
    """Zero-shot COCO: captions drawn at random from a captions JSON ("images", "annotations"), one a picture, the pictures in a folder.

    n: at most; there may be fewer pictures. Raises ValueError, naming file and entry, for what is not of that form.
    """
    from PIL import ImageOps

    from .data.index import as_images
    from .data.picture import opened

    path, folder = Path(captions), Path(folder)
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        files = {image["id"]: str(image["file_name"]) for image in said["images"]}
        of_image: dict[Any, list[str]] = {}
        for i, note in enumerate(said["annotations"]):
            if note["image_id"] not in files:
                raise ValueError(f"annotations[{i}] is about image {note['image_id']!r}, which is not among the images")
            of_image.setdefault(note["image_id"], []).append(str(note["caption"]).strip())
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, (KeyError, TypeError)) else str(error)
        raise ValueError(f"{path} is no COCO captions file ({reason}); it holds images and annotations with image_id and caption") from None
    order = torch.randperm(len(of_image), generator=torch.Generator().manual_seed(seed)).tolist()
    ids = [list(of_image)[i] for i in order[:n]]
    draw = torch.Generator().manual_seed(seed + 1)
    chosen = [of_image[key][int(torch.randint(len(of_image[key]), (1,), generator=draw))] for key in ids]
    missing = [files[key] for key in ids if not (folder / files[key]).is_file()]
    if missing:
        raise ValueError(f"{folder} lacks {len(missing)} of {len(ids)} pictures that {path} names, as {missing[0]!r}")

    def real(rows: range) -> Tensor:
        return as_images([ImageOps.fit(opened(folder / files[ids[i]]), (side, side)) for i in rows])

    says = f"{len(ids)} captions of {path.name}, one a picture, zero-shot; the pictures of {folder.name} are the real ones"
    return _asked("coco-zero-shot", says, str(folder), [Prompt(text=text) for text in chosen], [""] * len(ids), seed, real)


def _asked(name: str, says: str, data: str, prompts: Sequence[Prompt], categories: Sequence[str], seed: int, real: Any) -> Asked:
    return Asked(
        name=name, says=says, data=data, prompts=tuple(prompts), seeds=tuple(seed + i for i in range(len(prompts))),
        categories=tuple(categories), seed=seed, real=real,
    )  # fmt: skip


# --- who judges -----------------------------------------------------------------------------------------------------------


# judge -> its measures, the most telling first: (the beginning of its name in a result, which way is better)
JUDGES: dict[str, tuple[tuple[str, str], ...]] = {
    "distribution": (("FID", "lower"), ("FD", "lower"), ("KID", "lower"), ("precision", "higher"), ("recall", "higher"), ("IS", "higher")),
    "objects": (
        ("exact", "higher"), ("exact en", "higher"), ("exact zh", "higher"), ("one object", "higher"), ("two objects", "higher"),
        ("counting", "higher"), ("colours", "higher"), ("position", "higher"), ("attribute binding", "higher"),
    ),
    "clip_score": (("clip_score", "higher"),),
    "retrieval": (("image_to_text_1", "higher"), ("text_to_image_1", "higher")),
    "diversity": (("diversity", "higher"),),
    "memorisation": (("copies", "lower"),),
}  # fmt: skip


def judges_for(
    asked: Asked, names: Sequence[str] = (), *, eyes: Eyes | None = None, detector: Eyes | None = None, training: Tensor | None = None
) -> dict[str, Judge]:
    """Fresh judges by name; none named = all that can say something here.

    eyes: a CLIP, or for distances alone any eyes.  detector: reads scenes.  training: pictures a model learnt from, [T, 3, H, W].
    Raises ValueError for a name that is not there, or a judge that lacks what it needs.
    """
    for name in names:
        if name not in JUDGES:
            raise ValueError(f"no judge {name!r}; {catalog.nearest(name, list(JUDGES))}")
    hears = eyes is not None and eyes.text_encoder is not None
    lacks = {
        "distribution": None if eyes and asked.real else "eyes and real pictures of what is asked (data with pictures)",
        "objects": None if detector and all(p.truth is not None for p in asked.prompts) else "a detector, and prompts of scenes",
        "clip_score": None if hears else "eyes that hear words, a CLIP",
        "retrieval": None if hears and len({p.text for p in asked.prompts}) > 1 else "eyes that hear words, and several prompts",
        "diversity": None if eyes and min(Counter(p.text for p in asked.prompts).values()) > 1 else "several pictures of each prompt",
        "memorisation": None if eyes and training is not None else "pictures that the model was trained on",
    }
    for name in names:
        if lacks[name]:
            raise ValueError(f"judge {name!r} needs {lacks[name]}")
    return {name: _judge(name, eyes, detector, training) for name in (names or JUDGES) if not lacks[name]}


def _judge(name: str, eyes: Any, detector: Any, training: Tensor | None) -> Any:
    if name == "objects":
        return catalog.build("judges", "objects", size="default", eyes=detector.sight(), **detector.names())
    size = "10k" if name == "distribution" else "default"
    made = catalog.build("judges", name, size=size, eyes=eyes.sight())
    if name == "memorisation":
        assert training is not None
        made.learn(training)
    return made


# --- looking --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(kw_only=True)
class Seen:
    """One model's pictures, judged. scores: of each judge, as its `result` says.  each: measure -> a number a picture.

    curves: measure -> [(pictures judged, value)].  pictures: those kept to be shown, by place.  memory: bytes at most, where it is known.
    """

    scores: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    each: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = dataclasses.field(default_factory=dict)
    pictures: dict[int, Image.Image] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0
    memory: int | None = None


def look(
    draw: Callable[[Sequence[Prompt], Sequence[int]], list[Image.Image]], asked: Asked, judges: Mapping[str, Judge], *,
    shown: Sequence[int] = (), curves: bool = True, batch: int = BATCH, told: Callable[[int, int], None] | None = None,
) -> Seen:  # fmt: skip
    """Draw all that is asked, and judge it batch by batch; memory does not grow with the number of pictures.

    draw: (prompts, seeds) -> pictures.  shown: places of pictures to keep, beside the best and worst by each measure.
    seconds: of drawing alone.  told(done, of): after each batch.
    """
    out, stops = Seen(), {len(asked) // 8, len(asked) // 4, len(asked) // 2}
    forget_peak()
    for first in range(0, len(asked), batch):
        rows = range(first, min(first + batch, len(asked)))
        prompts = [asked.prompts[i] for i in rows]
        begun = time.perf_counter()
        pictures = draw(prompts, [asked.seeds[i] for i in rows])
        out.seconds += time.perf_counter() - begun
        images = torch.cat([as_tensor(picture) for picture in pictures])
        real = asked.real(rows) if asked.real is not None else None
        for name, judge in judges.items():
            judge.add(images, prompts, real if asked.unseen or name != "memorisation" else None)
        out.pictures |= dict(zip(rows, pictures, strict=True))
        out.each = {name: values for judge in judges.values() for name, values in getattr(judge, "each", dict)().items()}
        kept = {*shown, *(i for values in out.each.values() for i in _extremes(values))}
        out.pictures = {i: picture for i, picture in out.pictures.items() if i in kept}
        if told is not None:
            told(rows.stop, len(asked))
        if curves and any(rows.start < stop <= rows.stop for stop in stops) and rows.stop >= 16:
            _note(out.curves, judges, rows.stop)
    out.memory = peak()
    out.scores = {name: judge.result() for name, judge in judges.items()}
    _note(out.curves, judges, len(asked), out.scores)
    return out


def _extremes(values: Sequence[float]) -> list[int]:
    order = sorted(range(len(values)), key=values.__getitem__)
    return [*order[:EXTREMES], *order[-EXTREMES:]]


def _note(curves: dict[str, list[tuple[int, float]]], judges: Mapping[str, Judge], n: int, results: Any = None) -> None:
    for name, judge in judges.items():
        if name == "diversity" and results is None:
            continue
        result = results[name] if results is not None else judge.result()
        for measure, _ in measures_of(name, result):
            curves.setdefault(measure, []).append((n, result[measure]))


def measures_of(judge: str, result: Mapping[str, float]) -> list[tuple[str, str]]:
    """(measure, which way is better) of a judge's result, in order: no intervals, counts or ceilings."""
    tails = ("_low", "_high", "_n", "_ceiling", "_real", "_shuffled", "_between")
    found = []
    for head, better in JUDGES[judge]:
        found += [(key, better) for key in result if (key == head or key.startswith(f"{head}(")) and not key.endswith(tails)]
    return found


# --- side by side -----------------------------------------------------------------------------------------------------------


def judgement(
    asked: Asked, seen: Mapping[str, Seen], about: Mapping[str, Mapping[str, Any]], *, eyes: Sequence[Eyes] = (), shown: Sequence[int] = ()
) -> dict[str, Any]:
    """All of it as plain JSON: protocol, eyes, measures (each judge's first one in front), models with their scores, prompts, and a number
    a picture where a judge has one.

    about: label -> what is to be said of a model (name, fingerprints, sampling, parameters).
    """
    measures: dict[str, dict[str, Any]] = {}
    for one in seen.values():
        for judge, result in one.scores.items():
            for measure, better in measures_of(judge, result):
                told = measures.setdefault(measure, {"judge": judge, "better": better})
                for tail in ("ceiling", "real"):
                    if (bound := _tailed(result, measure, tail)) is not None:
                        told["ceiling"] = bound
    first = {next(name for name, told in measures.items() if told["judge"] == judge) for judge in {m["judge"] for m in measures.values()}}
    return {
        "format": 1, "kind": "triptych judgement", "version": f"triptych {__version__}",
        "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "protocol": {
            "name": asked.name, "data": asked.data, "n": len(asked), "n_references": len(asked) if asked.real else 0, "seed": asked.seed,
            "says": asked.says,
        },
        "eyes": {one.name: one.fingerprint for one in eyes},
        "measures": dict(sorted(measures.items(), key=lambda item: item[0] not in first)),
        "models": [
            {
                "label": label, **about[label], "seconds": round(one.seconds, 3), "seconds_per_picture": one.seconds / len(asked),
                "memory_bytes": one.memory, "scores": _scores(one),
                "curves": {name: [list(point) for point in points] for name, points in one.curves.items()},
            }
            for label, one in seen.items()
        ],
        "curves": [],
        "prompts": [
            {"text": p.text, "category": c, "seed": s} for p, c, s in zip(asked.prompts, asked.categories, asked.seeds, strict=True)
        ],
        "each": {name: {label: one.each[name] for label, one in seen.items() if name in one.each} for name in _names(seen)},
        "shown": list(shown),
    }  # fmt: skip


def _names(seen: Mapping[str, Seen]) -> list[str]:
    return list(dict.fromkeys(name for one in seen.values() for name in one.each))


def _tailed(result: Mapping[str, float], measure: str, tail: str) -> float | None:
    return result.get(f"{measure}_{tail}")


def _scores(seen: Seen) -> dict[str, dict[str, float]]:
    out: dict[str, dict[str, float]] = {}
    for judge, result in seen.scores.items():
        for measure, _ in measures_of(judge, result):
            told = {"value": result[measure], "n": result.get(f"{measure}_n", result["n"])}
            out[measure] = told | {k: v for k in ("low", "high", "shuffled") if (v := _tailed(result, measure, k)) is not None}
            if judge == "distribution":
                kept = () if measure.startswith(("FD", "FID", "IS")) else ("reservoir", "reservoir_references")
                out[measure] |= {k: result[k] for k in ("n_references", *kept)}
    return out
