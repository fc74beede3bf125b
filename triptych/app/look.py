"""What people do with eyes: `triptych classify`, `score`, `detect`, `probe`, and `triptych show MODEL --rebuild PICTURE`.

Shape legend: B batch, C channels, H W grid, E the common space of pictures and words, L patches, Q queries, K classes.
"""

from __future__ import annotations

import colorsys
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from ..contracts import Prompt, Rng
from ..data.picture import SUFFIXES, opened
from ..data.sheet import font, sheet
from ..eyes import DETECTOR, EYES, Eyes, Pixels, Sight, as_tensor
from . import pictures, say
from .errors import blame
from .models import open_eyes

__all__ = [
    "classify", "detect", "free", "hearing", "label_vectors", "named_picture", "overheard", "pictures_below",
    "probe", "put", "rebuild", "score", "told",
]  # fmt: skip


# --- eyes and pictures --------------------------------------------------------------------------------------------------


def named_picture(path: str) -> Image.Image:
    """The picture that a person named. Raises Failure where it is broken, ValueError where it is a folder or not there."""
    if os.path.isdir(path):
        raise ValueError(f"{path} is a folder; give a picture")
    with blame("bad_data", path):
        return opened(path)


@contextmanager
def overheard() -> Iterator[list[str]]:
    """What a text encoder warns of, such as words that it did not read: a list, filled at the end, and notes."""
    said: list[str] = []
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always", UserWarning)
        yield said
    said += sorted({str(w.message) for w in heard if issubclass(w.category, UserWarning)})
    for line in said:
        say.note(f"note: {line}")


def hearing(eyes: Eyes, also: str = "") -> Sight:
    """Raises ValueError for eyes that hear no words."""
    if eyes.text_encoder is None or not hasattr(eyes.vision, "encode_text"):
        raise ValueError(f"{eyes.name} ({type(eyes.vision).__name__}) hears no words{also}; take a CLIP, such as {EYES}")
    return eyes.sight()


def told(eyes: Eyes) -> dict[str, str]:
    return {"eyes": eyes.name, "fingerprint": eyes.fingerprint}


# --- classify -----------------------------------------------------------------------------------------------------------


def classify(
    images: Sequence[str], *, labels: str | None, templates: Sequence[str] = (), model: str | None = None, device: str = "auto",
    as_json: bool = False,
) -> None:  # fmt: skip
    """Which of the labels, "cat,dog" or "@FILE", fits each picture; without labels, which of the eyes' own classes."""
    names, templates = _labels(labels), list(templates) or ["{}"]
    for template in templates:
        if "{}" not in template:
            raise ValueError(f'--template {template!r} has no {{}} where the label goes, as in "a photo of {{}}"')
    eyes = open_eyes(model or EYES, device)
    with overheard() as said:
        if names:
            sight = hearing(eyes, ": leave --labels away to have its own classes" if eyes.sight().classifies else "")
            text_KE, scale = label_vectors(sight, names, templates), float(eyes.vision.scale())  # type: ignore[operator]
        elif not eyes.sight().classifies:
            raise ValueError(f"{eyes.name} has no classes of its own; say which to choose from, as in --labels cat,dog")
        found = []
        for path in images:
            image_BCHW = as_tensor(named_picture(path))
            if names:
                likely_K = (scale * (text_KE @ eyes.sight().image(image_BCHW)[0])).softmax(0).cpu()
            else:
                likely_K = eyes.sight().probabilities(image_BCHW)[0].cpu()
            best = likely_K.topk(len(names) or min(5, len(likely_K)))
            rows = [{"label": _class(names or eyes.labels, k), "probability": likely_K[k].item()} for k in best.indices.tolist()]
            found.append({"path": path, "classes": rows})
    lines = []
    for one in found:
        lines += [one["path"], *(f"  {row['probability']:7.2%}  {row['label']}" for row in one["classes"])]
    asked = {"labels": names, "templates": templates} if names else {}
    say.result({**told(eyes), **asked, "pictures": found, "warnings": said}, "\n".join(lines), as_json)


def label_vectors(sight: Sight, labels: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Unit vectors [K, E]: of each label the mean over the templates, as CLIP ensembles them (arXiv 2103.00020, section 3.1.4)."""
    text_NE = sight.text([template.replace("{}", label) for label in labels for template in templates])
    return F.normalize(text_NE.unflatten(0, (len(labels), len(templates))).mean(1), dim=-1)


def probe(folder: str, *, method: str = "logistic", model: str | None = None, device: str = "auto", as_json: bool = False) -> None:
    """How much of the names of a folder's subfolders one linear layer reads off the eyes' frozen features, by cross-validation."""
    from ..judges.linear_probe import SIZES, LinearProbe

    if method not in SIZES or method == "tiny":
        raise ValueError(f"--method {method!r}: there are ridge and logistic")
    if not os.path.isdir(folder):
        raise ValueError(f"{folder} is no folder; give one with a subfolder of pictures for each class")
    classes = {path.name: pictures_below(path) for path in sorted(Path(folder).iterdir()) if path.is_dir()}
    classes = {name: files for name, files in classes.items() if files}
    if len(classes) < 2:
        raise ValueError(f"{folder} has {len(classes)} subfolders with pictures; a probe tells two classes or more apart")
    eyes = open_eyes(model or EYES, device)
    judge, rows = LinearProbe(SIZES[method], eyes=eyes.sight()), [(name, file) for name, files in classes.items() for file in files]
    labels, broken = list(classes), {}
    with say.bar("looking", quiet=as_json) as bar:
        for i, (name, file) in enumerate(rows):
            try:
                judge.add(as_tensor(opened(file)), [Prompt(label=labels.index(name))])
            except (OSError, ValueError) as error:
                broken[str(file)] = str(error)
            bar.update((i + 1) / len(rows), f"picture {i + 1} of {len(rows)}")
    for file, why in broken.items():
        say.note(f"skipped {file}: {why}")
    found = judge.result()
    measure = f"accuracy({eyes.name})"
    around = f"[{found[f'{measure}_low']:.3f}, {found[f'{measure}_high']:.3f}]"
    line = f"{measure} {found[measure]:.3f} {around}  of {found['n']} pictures; the commonest class alone {found['majority']:.3f}"
    say.result({**told(eyes), "labels": labels, **found, "skipped": broken}, line, as_json)


def pictures_below(root: Path) -> list[Path]:
    """Sorted, subfolders included."""
    return sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def _labels(said: str | None) -> list[str]:
    """ "cat, dog", "猫，狗" or "@FILE" with one a line and '#' comments; [] for None. Raises ValueError for fewer than two."""
    if said is None:
        return []
    parts = _lines(Path(said[1:])) if said.startswith("@") else re.split("[,，、]", said)
    labels = [" ".join(part.split()) for part in parts if part.strip()]
    if len(labels) < 2:
        raise ValueError(f"--labels {said!r} leaves nothing to choose; give two or more, as in --labels cat,dog")
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise ValueError(f"--labels names {twice!r} twice, and its probability would be split; name it once")
    return labels


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8-sig").splitlines() if not line.lstrip().startswith("#")]
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _class(names: Sequence[str], k: int) -> str:
    return names[k] if k < len(names) else f"class {k}"


# --- score --------------------------------------------------------------------------------------------------------------


def score(image: str, texts: Sequence[str], *, model: str | None = None, device: str = "auto", as_json: bool = False) -> None:
    """The CLIP score of a picture and each text: max(100 cos, 0) (arXiv 2104.08718)."""
    if not all(text.strip() for text in texts):
        raise ValueError("an empty text fits every picture; say what the picture should show")
    picture, eyes = named_picture(image), open_eyes(model or EYES, device)
    with overheard() as said:
        sight = hearing(eyes)
        cosine_B = (sight.text(texts) @ sight.image(as_tensor(picture))[0]).tolist()
    rows = [{"text": text, "score": max(100 * cosine, 0.0)} for text, cosine in zip(texts, cosine_B, strict=True)]
    if len(rows) == 1:
        say.note(f"a CLIP score is on the scale of its eyes, here {eyes.name}: compare it with their scores of other texts or pictures, "
                 "never with those of other eyes")  # fmt: skip
    name = f"clip_score({eyes.name})"
    lines = [f"{row['score']:6.2f}  {row['text']}" for row in rows]
    say.result({**told(eyes), "measure": name, "picture": image, "scores": rows, "warnings": said}, "\n".join([name, *lines]), as_json)


# --- detect -------------------------------------------------------------------------------------------------------------


def detect(
    image: str, *, output: str | None = None, threshold: float = 0.5, model: str | None = None, device: str = "auto", as_json: bool = False
) -> None:
    """Objects with names, attributes and boxes, drawn on the picture at its own size.

    Doubles are not taken away: of what it was trained on a DETR makes hardly any, of other things it may.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"--threshold {threshold}: a probability, 0 to 1")
    target = None if output is None else free(output)
    picture, eyes = named_picture(image), open_eyes(model or DETECTOR, device)
    if isinstance(eyes.pixels, Pixels) and eyes.pixels.fit == "crop":
        raise ValueError(f"{eyes.name} looks at the middle of a picture alone; take a detector that looks at all of it")
    found = _objects(eyes, eyes.preprocess([picture]), threshold)
    _draw(picture, found)
    target = put(picture, target, Path(image), "detected")
    lines = []
    for one in found:
        x, y, w, h = (one["box"][side] for side in ("x", "y", "width", "height"))
        lines.append(f"{one['probability']:.2f} {_spoken(one)}  x {x:.2f} y {y:.2f} w {w:.2f} h {h:.2f}")
    say.note(f"{len(found)} seen by {eyes.name} with a probability of {threshold:g} or more (--threshold)")
    value = {**told(eyes), "picture": image, "size": list(picture.size), "threshold": threshold, "objects": found, "path": str(target)}
    say.result(value, "\n".join([*lines, str(target)]), as_json)


@torch.no_grad()
def _objects(eyes: Eyes, pixels_BCHW: Tensor, threshold: float) -> list[dict[str, Any]]:
    """What is seen in one picture, the likeliest first. box: the middle and the sides, as shares of the picture."""
    config: Any = getattr(eyes.vision, "config", None)
    attributes: Sequence[Any] = getattr(config, "attributes", ())
    if attributes and hasattr(eyes.vision, "detect"):
        seen = eyes.vision(pixels_BCHW)
        logits_QK, boxes_Q4, more = seen.logits_BQK[0], seen.boxes_BQ4[0], [logits_BQA[0] for logits_BQA in seen.attributes]
    else:
        (logits_QK,), (boxes_Q4,) = eyes.detect(pixels_BCHW)
        more: list[Tensor] = []
    likely_Q, class_Q = logits_QK.float().softmax(-1)[:, :-1].max(-1)
    names, found = getattr(config, "labels", ()) or eyes.labels, []
    for q in likely_Q.argsort(descending=True, stable=True).tolist():
        if likely_Q[q] < threshold:
            break
        said = {name: _value(values, logits_QA[q]) for (name, values), logits_QA in zip(attributes, more, strict=True)}
        box = dict(zip(("x", "y", "width", "height"), boxes_Q4[q].tolist(), strict=True))
        label = {"label": _class(names, int(class_Q[q])), "class": int(class_Q[q])}
        found.append({**label, "probability": likely_Q[q].item(), "attributes": said, "box": box})
    return found


def _value(values: Sequence[str], logits_A: Tensor) -> str | None:
    best = int(logits_A.argmax())
    return values[best] if best < len(values) else None


def _spoken(one: Mapping[str, Any]) -> str:
    return " ".join([*(value for value in one["attributes"].values() if value), one["label"]])


def _draw(picture: Image.Image, found: Sequence[Mapping[str, Any]]) -> None:
    """Boxes onto the picture, then words above each, or inside where there is no room above; the likeliest on top."""
    draw, (width, height) = ImageDraw.Draw(picture), picture.size
    letters, thick = font(max(10, min(width, height) // 32)), max(1, min(width, height) // 200)
    labels: list[tuple[int, int, str, tuple[int, int, int]]] = []
    for one in reversed(found):
        box = one["box"]
        left, right = (_within((box["x"] + side * box["width"] / 2) * width, width) for side in (-1, 1))
        top, bottom = (_within((box["y"] + side * box["height"] / 2) * height, height) for side in (-1, 1))
        red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(one["class"] * 0.618034 % 1, 0.9, 0.85))
        draw.rectangle((left, top, right, bottom), outline=(red, green, blue), width=thick)
        labels.append((left, top, f"{_spoken(one)} {one['probability']:.2f}", (red, green, blue)))
    for left, top, words, color in labels:
        x0, y0, x1, y1 = draw.textbbox((0, 0), words, font=letters)
        wide, high = round(x1 - x0) + 4, round(y1 - y0) + 4
        x, y = max(0, min(left, width - wide)), top - high if top >= high else top
        draw.rectangle((x, y, x + wide - 1, y + high - 1), fill=color)
        light = sum(weight * c for weight, c in zip((0.299, 0.587, 0.114), color, strict=True)) > 140
        draw.text((x + 2 - x0, y + 2 - y0), words, fill="black" if light else "white", font=letters)


def _within(place: float, side: int) -> int:
    return min(max(round(place), 0), side - 1)


# --- rebuild ------------------------------------------------------------------------------------------------------------


def rebuild(model: str, picture: str, *, output: str | None = None, seed: int = 0, device: str = "auto", as_json: bool = False) -> None:
    """Three pictures side by side: with hidden patches, as an MAE imagines them, and as it was. `seed` says which are hidden."""
    target = None if output is None else free(output)
    image, eyes = named_picture(picture), open_eyes(model, device)
    vision: Any = eyes.vision
    if not hasattr(vision, "rebuild") or not isinstance(eyes.pixels, Pixels):
        raise ValueError(f"{eyes.name} ({type(eyes.vision).__name__}) rebuilds no pictures; take an MAE")
    pixels_BCHW = eyes.preprocess([image])
    H, W = pixels_BCHW.shape[-2:]
    patch = vision.config.patch_size
    noise_BL = Rng.of_seeds([seed]).uniform("mask", ((H // patch) * (W // patch),)).to(eyes.device)
    shown = [_undone(x_BCHW, eyes.pixels) for x_BCHW in (*vision.rebuild(pixels_BCHW, noise_BL), pixels_BCHW)]
    cells = [(what, [x_BCHW[0]]) for what, x_BCHW in zip(("masked", "rebuilt", "original"), shown, strict=True)]
    target = put(sheet(cells, columns=3, side=W * max(1, 256 // W)), target, Path(picture), "rebuilt")
    say.result({**told(eyes), "picture": picture, "seed": seed, "path": str(target)}, str(target), as_json)


def _undone(x_BCHW: Tensor, pixels: Pixels) -> Tensor:
    """A network's pixel values back to [-1, 1]."""
    mean, std = (x_BCHW.new_tensor(values).view(1, 3, 1, 1) for values in (pixels.mean, pixels.std))
    return (x_BCHW * std + mean).clamp(0, 1) * 2 - 1


# --- where pictures go --------------------------------------------------------------------------------------------------


def free(output: str) -> Path:
    """A name that was asked for, or a folder, which is made. Raises ValueError for one that is taken or has a wrong suffix."""
    path = Path(output)
    if path.is_dir() or output.endswith(("/", "\\")):
        path.mkdir(parents=True, exist_ok=True)
        return path
    if path.suffix.lower() not in pictures.SUFFIXES:
        wrong = path.suffix or "a file without a suffix"
        raise ValueError(f"-o {output}: cannot write {wrong}; there are: {', '.join(pictures.SUFFIXES)}, or give a folder")
    if path.exists():
        raise ValueError(f"{path} is there already and nothing is overwritten; give another -o, or a folder")
    return path


def put(image: Image.Image, target: Path | None, beside: Path, what: str) -> Path:
    """Write under the name that was asked for, else beside a picture, or into a folder under its name: cat-detected.png,
    cat-detected-2.png and so on. Nothing is ever overwritten."""
    if target is not None and not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        pictures.write(image, target, None)
        return target
    folder, k = target or beside.parent, 1
    while True:
        path = folder / f"{beside.stem}-{what}{f'-{k}' if k > 1 else ''}.png"
        try:
            if not path.exists():
                pictures.write(image, path, None)
                return path
        except FileExistsError:
            pass  # it appeared meanwhile
        k += 1
