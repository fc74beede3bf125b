"""`triptych judge`: models side by side, the same words and seeds, by numbers with intervals and by a report of pictures."""

from __future__ import annotations

import json
import shlex
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ask, say
from .errors import blame
from .models import DEFAULT_MODEL, load_model, open_eyes, pick_device

if TYPE_CHECKING:
    from PIL import Image

    from ..eyes import Eyes
    from ..judging import Asked, Seen
    from ..pipeline import TextToImage

__all__ = ["PROTOCOLS", "Request", "drawing", "labelled", "run"]

PROTOCOLS = ("scenes", "pairs", "fid-10k", "coco-zero-shot", "drawbench")
SHOWN = 24  # prompts side by side in a report


@dataclass(frozen=True, kw_only=True)
class Request:
    """The command line of `judge`, as typed. None = not given."""

    models: Sequence[str]
    protocol: str | None = None
    data: str | None = None
    captions: str | None = None
    split: str = "held_out"
    judges: Sequence[str] = ()
    n: int | None = None
    each: int = 1
    seed: int = 0
    guidance: Sequence[float] = ()
    steps: int | None = None
    language: str = "en"
    eyes: str | None = None
    detector: str | None = None
    training: str | None = None
    report: str | None = None
    device: str = "auto"


def run(request: Request, as_json: bool = False) -> None:
    """Judge and tell. Raises ValueError for what does not fit, before anything is drawn."""
    from .. import judging

    begun = time.perf_counter()
    asked = _asked(request).times(request.each)
    eyes, detector = _eyes(request.eyes, request.device, "eyes"), _eyes(request.detector, request.device, "detector")
    training = _training(request)
    if not judging.judges_for(asked, request.judges, eyes=eyes, detector=detector, training=training):  # told before anything is drawn
        raise ValueError(f"no judge can say anything about {asked.name}: give --eyes, a CLIP's name or folder")
    entries = [(label, model, guidance) for label, model in labelled(request.models) for guidance in (request.guidance or (None,))]
    seen: dict[str, Seen] = {}
    about: dict[str, dict[str, Any]] = {}
    copies: dict[str, list[Any]] = {}
    shown = _shown(asked)
    with warnings.catch_warnings(record=True) as heard, say.bar("judging", quiet=as_json) as bar:
        warnings.simplefilter("always", UserWarning)
        for turn, (label, name, guidance) in enumerate(entries):
            model = load_model(name, request.device)
            how = {k: v for k, v in (("steps", request.steps), ("guidance", guidance)) if v is not None}
            label = f"{label}, guidance {guidance:g}" if guidance is not None else label
            judges: dict[str, Any] = dict(judging.judges_for(asked, request.judges, eyes=eyes, detector=detector, training=training))

            def told(done: int, of: int, turn: int = turn, label: str = label) -> None:
                bar.update((turn + done / of) / len(entries), f"{label}: {done} of {of} pictures")

            about[label] = _about(model, name, how)
            seen[label] = judging.look(drawing(model, how), asked, judges, shown=shown, told=told)
            if "memorisation" in judges:
                copies[label] = [(pair, training[pair.nearest]) for pair in judges["memorisation"].pairs()]
    unread = sorted({str(w.message) for w in heard if issubclass(w.category, UserWarning)})
    if unread:
        say.note(f"note: {len(unread)} warnings, the first: {unread[0]}")
    used = [one for one in (eyes, detector) if one is not None]
    value = judging.judgement(asked, seen, about, eyes=used, shown=shown)
    value["command"] = _command(request)
    value["curves"] = [*_against_guidance(request, value), *_while_training(request)]
    said = _table(value)
    if request.report:
        from .report import write_report

        real = {} if asked.real is None else {i: _picture(asked.real(range(i, i + 1))) for i in shown}
        path = write_report(Path(request.report), value, {label: one.pictures for label, one in seen.items()}, real)
        sheets = [_copies(pairs, path.with_name(f"memorisation-{i}.png"), label) for i, (label, pairs) in enumerate(copies.items())]
        value |= {"report": str(path), "memorisation": sheets}
        said += "\n\n" + "\n".join([str(path), *sheets])
    say.note(f"{len(entries)} x {len(asked)} pictures in {time.perf_counter() - begun:.0f} s")
    say.result(value, said, as_json)


# --- what is asked, of whom, and who judges -------------------------------------------------------------------------------


def _asked(request: Request) -> Asked:
    from .. import judging

    protocol = request.protocol or ("pairs" if request.data else "scenes")
    if protocol not in PROTOCOLS:
        from ..catalog import nearest

        raise ValueError(f"no protocol {protocol!r}; {nearest(protocol, list(PROTOCOLS))}")
    for what, many in (("-n", request.n), ("--per-prompt", request.each)):
        if many is not None and many < 1:
            raise ValueError(f"{what} {many}: judge one picture at least")
    if protocol == "scenes":
        return judging.scenes(request.n or 200, request.seed)
    if protocol == "drawbench":
        return judging.drawbench(request.n or 200, request.seed, request.language)
    if request.data is None:
        raise ValueError(f"protocol {protocol!r} needs --data" + (" DIR and --captions FILE" if protocol == "coco-zero-shot" else " SPEC"))
    if protocol == "coco-zero-shot":
        if request.captions is None:
            raise ValueError("protocol 'coco-zero-shot' needs --captions FILE: a captions JSON, as captions_val2014.json")
        with blame("bad_data"):
            return judging.coco(request.captions, request.data, request.n or 30_000, request.seed)
    return _pairs(request, protocol)


def _pairs(request: Request, protocol: str) -> Asked:
    from .. import judging
    from .data import open_split, parse_data_spec

    assert request.data is not None
    if request.split not in ("train", "held_out"):
        raise ValueError(f"--split {request.split}: there are train and held_out")
    dataset = open_split(parse_data_spec(request.data, 128), request.split)
    if dataset is None:
        raise ValueError(f"data {request.data!r} is too small to hold some out; judge on what was trained on: --split train")
    if protocol == "fid-10k":
        if request.n not in (None, 10_000):
            raise ValueError(f"protocol 'fid-10k' is of 10,000 pictures, not of {request.n}; leave -n out, or take the protocol 'pairs'")
        return judging.from_data(dataset, request.data, request.split, 10_000, request.seed, "fid-10k")
    return judging.from_data(dataset, request.data, request.split, request.n or 200, request.seed)


def _eyes(name: str | None, device: str, kind: str) -> Eyes | None:
    """By name or folder; the Inception network of the FID by its file. The embedded ones where none is named, None where there are none."""
    from .. import checkpoint
    from ..eyes import DETECTOR, EYES, Eyes

    if name is None:
        name = EYES if kind == "eyes" else DETECTOR
        if name not in checkpoint.embedded():
            return None
    if not name.endswith(".safetensors"):
        return open_eyes(name, device)
    from ..vision.inception import Inception

    device = pick_device(device)
    with blame("bad_checkpoint", f"{kind} {name}"):
        return Eyes(Inception.from_file(name).eval().requires_grad_(False), name=Path(name).stem).to(device)


def _training(request: Request) -> Any:
    """Pictures that the models learnt from, for the judge of memory; None where it was not asked for."""
    if request.training is None:
        return None
    from .data import open_split, parse_data_spec

    dataset = open_split(parse_data_spec(request.training, 128), "train")
    if dataset is None or len(dataset) > 20_000:
        raise ValueError(f"--training {request.training}: a source of at most 20,000 pictures can be compared with, not an endless one")
    return dataset.batch(0, 0, len(dataset)).images_BCHW


def labelled(models: Sequence[str]) -> list[tuple[str, str]]:
    """(a short name that no other has, the model as given)."""
    names = [name.rstrip("/") for name in models or (DEFAULT_MODEL,)]
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is named twice; a model is compared with another")
    short = [path.parent.name if path.name in ("model", "best") and path.parent.name else path.name for path in map(Path, names)]
    return [(s if short.count(s) == 1 else name, name) for s, name in zip(short, names, strict=True)]


def _about(model: TextToImage, name: str, how: Mapping[str, Any]) -> dict[str, Any]:
    import dataclasses

    from torch import nn

    panels = (model.text_encoder, model.generator.network, model.decoder)
    weights = sum(p.numel() for panel in panels if isinstance(panel, nn.Module) for p in panel.parameters())
    sampling = dataclasses.asdict(model.settings(**how))
    return {"name": name, "fingerprints": model.fingerprints, "sampling": sampling, "parameters": weights}


def drawing(model: TextToImage, how: Mapping[str, Any]) -> Callable[[Sequence[Any], Sequence[int]], list[Image.Image]]:
    """(prompts, seeds) -> pictures; what a model needs beside words is made, as `ask.asked` says."""
    return lambda prompts, seeds: model.generate(ask.asked(model, prompts, seeds)[0], seeds=seeds, **how)


def _shown(asked: Asked) -> list[int]:
    """Places spread over all categories, never chosen by their result."""
    by_category: dict[str, list[int]] = {}
    for i, category in enumerate(asked.categories):
        by_category.setdefault(category, []).append(i)
    turns = [rows[k] for k in range(len(asked)) for rows in by_category.values() if k < len(rows)]
    return sorted(turns[:SHOWN])


def _picture(images_BCHW: Any) -> Image.Image:
    from ..pipeline import to_pil

    return to_pil(images_BCHW)[0]


def _command(request: Request) -> str:
    """The command line that does it again."""
    spelled = {"each": "per-prompt"}
    parts = ["triptych judge", *(shlex.quote(model) for model in request.models)]
    for field in fields(Request):
        value = getattr(request, field.name)
        if field.name in ("models", "report", "device") or value == field.default or not value:
            continue
        said = value if isinstance(value, (str, int)) else ",".join(f"{x:g}" if isinstance(x, float) else x for x in value)
        parts.append(f"--{spelled.get(field.name, field.name)} {shlex.quote(str(said))}")
    return " ".join(parts)


def _copies(pairs: Sequence[Any], path: Path, label: str) -> str:
    """A sheet of the drawn pictures that are likest to a training picture, that picture beside each."""
    from ..data.sheet import sheet

    cells = [(f"{label}: {pair.prompt.text} (ratio {pair.ratio:.2f})", [pair.image_CHW, near]) for pair, near in pairs]
    sheet(cells, 4, side=128, smooth=True, lines=2).save(path)
    return str(path)


# --- what is told -----------------------------------------------------------------------------------------------------------


def _against_guidance(request: Request, value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Distance against fit to the words, a point a guidance: the curves by which Imagen compares (arXiv 2205.11487, figure 4)."""
    if len(request.guidance) < 2:
        return []
    x = next((m for m in value["measures"] if m.startswith("clip_score")), None)
    y = next((m for m in value["measures"] if m.startswith(("FD", "FID"))), None)
    if x is None or y is None:
        return []
    lines: dict[str, list[list[Any]]] = {}
    for one in value["models"]:
        label, _, guidance = one["label"].rpartition(", guidance ")
        lines.setdefault(label, []).append([one["scores"][x]["value"], one["scores"][y]["value"], guidance])
    return [{"title": f"{y} against {x}, by guidance", "x": x, "y": y, "lines": lines}]


def _while_training(request: Request) -> list[dict[str, Any]]:
    """Held-out losses of models that lie in the folder of their run."""
    lines = {}
    for label, name in labelled(request.models):
        log = Path(name).parent / "metrics.jsonl"
        if not log.is_file():
            continue
        with blame("bad_data", str(log)):
            rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
        points = [[row["step"], row["loss"], ""] for row in rows if row.get("kind") == "held_out" and "loss" in row]
        if points:
            lines[label] = points
    return [{"title": "held-out loss while training", "x": "step", "y": "loss", "lines": lines}] if lines else []


def _table(value: Mapping[str, Any]) -> str:
    """Measures down, models across, each with its interval."""
    labels = [one["label"] for one in value["models"]]
    rows = [["", *labels]]
    for measure, told in value["measures"].items():
        tail = f"  (real: {_number(told['ceiling'])})" if "ceiling" in told else ""
        rows.append([measure + tail, *(_cell(one["scores"].get(measure)) for one in value["models"])])
    rows.append(["seconds a picture", *(f"{one['seconds_per_picture']:.3f}" for one in value["models"])])
    known = [one["memory_bytes"] for one in value["models"]]
    rows.append(["memory, MiB", *("-" if m is None else f"{m / 2**20:.0f}" for m in known)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]) for row in rows]
    head = f"{value['protocol']['says']}; seed {value['protocol']['seed']}; 95 % intervals"
    return "\n".join([head, "", *lines])


def _cell(score: Mapping[str, float] | None) -> str:
    if score is None:
        return "-"
    around = f" [{_number(score['low'])}, {_number(score['high'])}]" if "low" in score else ""
    return _number(score["value"]) + around


def _number(x: float) -> str:
    return f"{x:.3f}" if abs(x) < 10 else f"{x:.1f}"
