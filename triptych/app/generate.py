"""`triptych generate`: jobs to pictures, each written with the record from which it can be drawn again."""

from __future__ import annotations

import time
import warnings
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from .. import __version__
from . import pictures, say
from .ask import Given, asked
from .errors import Failure, blame
from .guiding import NOBODY, Guiding, guiding
from .jobs import Job, Request, Target, from_record, numbered, parse_file, parse_size, strip_of
from .lora import add_loras
from .models import DEFAULT_MODEL, load_model

if TYPE_CHECKING:
    from PIL import Image

    from ..contracts import Prompt
    from ..pipeline import TextToImage

__all__ = ["NOISE", "record_of", "run"]

NOISE = 1  # the scheme of contracts.Rng: blake2b(seed, stream, step) seeds torch's CPU generator, float32
BATCH = 16  # pictures drawn together


def run(request: Request, as_json: bool = False) -> None:
    """Draw and write. Raises Failure or ValueError; pictures written before an error stay."""
    begun = time.perf_counter()
    record = _old_record(request.old) if request.old else None
    given = _given(request, record)
    jobs = _jobs(request, record, given)
    jobs, drawn = numbered(jobs, request.n, request.seed)
    target = Target(request.out, len(jobs), strip=request.strip is not None)
    exact = request.exact or bool(record and record.get("exact"))
    precision = request.precision or (record or {}).get("precision") or "float32"
    model = _model(request, record, precision)
    add_loras(request, record, model)
    guide = guiding(request, record, model)
    if drawn is not None:
        say.note(f"seed {drawn} (random)")
    done: list[dict[str, Any]] = []
    lines: set[str] = set()  # what was made from the words, told once
    with warnings.catch_warnings(record=True) as heard, say.bar("drawing", quiet=as_json) as bar:
        warnings.simplefilter("always", UserWarning)
        for group in _groups(_fitted(model, jobs), exact):
            count = f"{len(done) + 1}-{len(done) + len(group)}" if len(group) > 1 else str(len(done) + 1)

            def told(fraction: float, start: int = len(done), many: int = len(group), count: str = count) -> None:
                bar.update((start + fraction * many) / len(jobs), f"picture {count} of {len(jobs)}")

            prompts, made = asked(model, [job.prompt for _, job in group], [job.seed or 0 for _, job in group], given)
            for line in sorted({f"{job.prompt!r}: {line}" for (_, job), line in zip(group, made, strict=True) if line} - lines):
                say.note(line)
                lines.add(line)
            images, frames, rows = _draw(model, group, prompts, exact, request.strip, guide, told)
            for (index, job), image, growing, row in zip(group, images, frames, rows, strict=True):
                how = {"exact": exact, "precision": precision, "batch": row, "guide": guide, "given": given}
                kept = record_of(model, job, image.size, **how) if request.metadata else None
                path = target.put(index, job, lambda path, image=image, kept=kept: pictures.write(image, path, kept))
                done.append({"path": str(path), "prompt": job.prompt, "seed": job.seed, "size": list(image.size)})
                if request.strip is not None:
                    pictures.write(_side_by_side([*growing, image]), strip_of(path), kept)
                    done[-1]["strip"] = str(strip_of(path))
    said = sorted({str(w.message) for w in heard if issubclass(w.category, UserWarning)})
    for line in said:
        say.note(f"note: {line}")
    value = {
        "pictures": done, "model": model.name, "panels": model.fingerprints, "seed": drawn if drawn is not None else request.seed,
        "warnings": said, "seconds": round(time.perf_counter() - begun, 3), **guide.record(model),
        **({"made": sorted(lines)} if lines else {}), **({"loras": model.loras} if model.loras else {}),
    }  # fmt: skip
    say.result(value, "\n".join(path for d in done for path in (d["path"], d.get("strip")) if path), as_json)


# --- what to draw -------------------------------------------------------------------------------------------------------


def _old_record(path: str) -> dict[str, Any]:
    with blame("bad_data"):
        record = pictures.read(path)
        theirs = pictures.read_parameters(path) if record is None else None
    if record is not None:
        return record
    hint = f"; another program says it drew {theirs['prompt'][:80]!r}: pass that as PROMPT" if theirs else ""
    raise Failure("bad_data", f"{path} holds no record of Triptych (perhaps --no-metadata, or it was saved again elsewhere){hint}")


def _given(request: Request, record: dict[str, Any] | None) -> Given:
    """What stands beside the words: of the command line, then of the old picture."""
    given = Given.of(label=request.label, boxes=request.boxes, image=request.image, mask=request.mask)
    if record is None or not record.get("given"):
        return given
    with blame("bad_data"):
        return given.completed(record["given"], request.old or "")


def _jobs(request: Request, record: dict[str, Any] | None, given: Given) -> list[Job]:
    """The jobs in order; what the command line says goes for all, what a line of a file says goes before it."""
    if not 1 <= request.n <= 10_000:
        raise ValueError(f"-n {request.n} is out of range: 1 to 10000 pictures of each prompt")
    if request.strip is not None and request.strip < 1:
        raise ValueError(f"--strip {request.strip}: show every K-th step, K of 1 or more")
    wanted = [Job(prompt=prompt) for prompt in request.prompts]
    if request.prompts_file:
        wanted += parse_file(request.prompts_file)
    if not wanted and given.fields and record is None:
        wanted = [Job(prompt="")]  # a class, a layout or a picture says enough
    common = Job(
        prompt="", negative=request.negative, steps=request.steps, guidance=request.guidance, sampler=request.sampler,
        size=parse_size(request.size) if request.size else None,
    )  # fmt: skip
    if record is not None:
        old = from_record(record)
        if request.seed is not None or request.n > 1:
            old = replace(old, batch=None, seed=old.seed if request.seed is None else None)
        wanted = [replace(old, prompt=job.prompt, seed=old.seed if job.seed is None else job.seed) for job in wanted] or [old]
        wanted = [replace(job, **_said(common)) for job in wanted]  # here the command line changes the old
    else:
        wanted = [replace(job, **{k: v for k, v in _said(common).items() if getattr(job, k) is None}) for job in wanted]
    if not wanted:
        raise ValueError('nothing to draw: give a prompt, as in triptych generate "a red apple", or --prompts FILE, or --from OLD.png')
    for job in wanted:
        for text in (job.prompt, job.negative or ""):
            if any("\ud800" <= c <= "\udfff" for c in text):
                raise ValueError(f"prompt {text[:40]!a} is not valid Unicode; type it again in a UTF-8 terminal")
    return wanted


def _said(job: Job) -> dict[str, Any]:
    return {k: v for k in ("negative", "steps", "guidance", "sampler", "size") if (v := getattr(job, k)) is not None}


def _fitted(model: TextToImage, jobs: list[Job]) -> list[Job]:
    """The jobs as this model takes them: a side that was not said is its own, and its own size need not be asked for.

    Raises ValueError for settings that it does not have, before anything is drawn.
    """
    height, width = model.size

    def whole(job: Job) -> Job:
        _settings(model, job)
        size = None if job.size is None else (job.size[0] or width, job.size[1] or height)
        return replace(job, size=None if size == (width, height) else size)

    return [whole(job) for job in jobs]


def _settings(model: TextToImage, job: Job) -> Any:
    try:
        return model.settings(**job.sampling())
    except TypeError as error:  # a setting of a wrong type, out of a picture's record
        raise ValueError(f"settings {job.sampling()}: {error}") from None


def _groups(jobs: list[Job], exact: bool) -> list[list[tuple[int, Job]]]:
    """Pictures that can be drawn together, with their numbers: neighbours with equal settings, at most BATCH."""
    groups: list[list[tuple[int, Job]]] = []
    for index, job in enumerate(jobs):
        last = groups[-1][-1][1] if groups else None
        if last is not None and _shared(last) == _shared(job) and not exact and job.batch is None and len(groups[-1]) < BATCH:
            groups[-1].append((index, job))
        else:
            groups.append([(index, job)])
    return groups


def _shared(job: Job) -> tuple[Any, ...]:
    """What pictures of one batch have in common. A negative prompt is all or none: "" is not what panel 1 calls its null."""
    return job.sampling(), job.size, job.batch, bool(job.negative)


# --- drawing ------------------------------------------------------------------------------------------------------------


def _model(request: Request, record: dict[str, Any] | None, precision: str) -> TextToImage:
    if record is None:
        return load_model(request.model or DEFAULT_MODEL, request.device, precision)
    from ..checkpoint import embedded

    wanted = {k: v for k, v in (record.get("panels") or {}).items() if isinstance(v, str)}
    spelled = ", ".join(f"{place} {print_}" for place, print_ in sorted(wanted.items()))
    name = request.model or record.get("model") or ""
    if request.model is None and name not in embedded():
        said = f"{request.old} was made by model {name!r} ({spelled}), which is not embedded; give its folder: --model DIR"
        raise Failure("bad_checkpoint", said)
    model = load_model(name, request.device, precision)
    other = [f"{place} is {model.fingerprints.get(place) or 'unsaved'}, it needs {print_}" for place, print_ in sorted(wanted.items())
             if model.fingerprints.get(place) != print_]  # fmt: skip
    if other:
        said = f"{request.old} cannot be drawn again by model {name!r}: {'; '.join(other)}; give --model DIR that holds them"
        raise Failure("bad_checkpoint", said)
    _warn_of_other_machine(record, model)
    return model


def _warn_of_other_machine(record: dict[str, Any], model: TextToImage) -> None:
    import torch

    here = {"noise": NOISE, "torch": torch.__version__, "device": model.device.type}
    other = [f"{name} {record[name]} (here {value})" for name, value in here.items() if name in record and record[name] != value]
    if other:
        say.note(f"note: made with {', '.join(other)}; pixels may differ in their last bits")


def _draw(
    model: TextToImage,
    group: list[tuple[int, Job]],
    prompts: list[Prompt],
    exact: bool,
    strip: int | None,
    guide: Guiding,
    told: Any,
) -> tuple[list[Image.Image], list[list[Image.Image]], list[tuple[int, int]]]:
    """(pictures, for each the frames of its strip, for each its place in the batch)."""
    jobs, first = [job for _, job in group], group[0][1]
    rows = [(i, len(jobs)) for i in range(len(jobs))]
    if first.batch is not None and not exact and 0 <= first.batch[0] < first.batch[1] <= BATCH:
        jobs, rows, prompts = [first] * first.batch[1], [first.batch], prompts[:1] * first.batch[1]
    growing: list[list[Image.Image]] = []

    def on_step(done: int, total: int, preview: Any) -> None:
        told(done / max(total, 1))
        if strip is not None and done % strip == 0 and done < total:
            growing.append(preview())

    against = [job.negative or "" for job in jobs] if first.negative else None
    images = model.generate(
        prompts, seeds=[job.seed or 0 for job in jobs], negative=against,
        exact=exact, on_step=on_step, guide=guide.eyes, guide_scale=guide.scale, like=guide.like,
        size=None if first.size is None else (first.size[1] or 0, first.size[0] or 0), batch_size=BATCH, **first.sampling(),
    )  # fmt: skip
    kept = [row for row, _ in rows]
    return [images[row] for row in kept], [[frame[row] for frame in growing] for row in kept], rows


def record_of(
    model: TextToImage, job: Job, size: tuple[int, int], *, exact: bool = False, precision: str = "float32",
    batch: tuple[int, int] = (0, 1), guide: Guiding = NOBODY, given: Given | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The record of one picture: everything that decides its pixels. size: (width, height).  batch: (row, rows).  guide: who pulled.

    given: what stood beside the words.
    """
    import torch

    asked = asdict(_settings(model, job))
    flat = {name: asked.pop(name) for name in ("steps", "guidance", "sampler") if name in asked}
    panels = model.fingerprints
    return {
        "schema": pictures.SCHEMA, "version": f"triptych {__version__}",
        "prompt": job.prompt, "negative": job.negative or "", "seed": job.seed, "noise": NOISE, **flat, "settings": asked,
        "size": list(size),
        "model": model.name, "model_hash": panels.get("generator", "")[:10], "panels": panels, "exact": exact, "batch": list(batch),
        "precision": precision, "device": model.device.type, "torch": torch.__version__, "threads": torch.get_num_threads(),
        **guide.record(model), **({"given": given.record()} if given and given.fields else {}),
        **({"loras": model.loras} if model.loras else {}),
    }  # fmt: skip


def _side_by_side(frames: list[Image.Image], columns: int = 16) -> Image.Image:
    """Frames from left to right, in rows of `columns`."""
    from PIL import Image

    width, height = frames[-1].size
    sheet = Image.new("RGB", (width * min(columns, len(frames)), height * -(-len(frames) // columns)), "white")
    for i, frame in enumerate(frames):
        sheet.paste(frame.convert("RGB").resize((width, height)), (i % columns * width, i // columns * height))
    return sheet
