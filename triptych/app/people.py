"""The people's page: one HTML file on which a rater compares two models, pair by pair, without knowing which is which.

    write_page("people.html", pairs, "Which picture?")   -> people.html, which goes to the raters, and people.key.json, which does not
    read_answers("answers-1f0a2b-9c3d4e.json", "people.key.json")   -> what `judges.people` reads

The protocol is DrawBench's (Imagen, arXiv:2205.11487): two uncurated pictures of one prompt side by side; which is the better picture
(left or right), which fits the words better (left, same or right). The page needs no network and sends nothing. It holds no model's
name: pairs carry opaque ids, which of the two models is a pair's `a` is drawn pair by pair, and only the key tells. Pictures are
written anew, so that nothing which a PNG says about itself comes along. The order and the sides are drawn in the browser, from a seed
of the rater's own that is saved with the answers:

    answers  {"format": 1, "page": ..., "rater": ..., "seed": n,
              "answers": [{"pair": ..., "quality": "a"|"b", "words": "a"|"same"|"b", "seconds": s, "left": "a"|"b"}]}
    key      {"format": 1, "page": ..., "title": ...,
              "pairs": {"...": {"id": ..., "prompt": ..., "category": ..., "a": model, "b": model}}}
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

__all__ = ["Pair", "read_answers", "write_page"]


class Pair(TypedDict):
    """One prompt and its two pictures. id: unique on the page. left, right: picture files, as bytes; the page draws its own sides."""

    id: str
    prompt: str
    category: str
    left: bytes
    right: bytes
    model_left: str
    model_right: str


def write_page(path: str | Path, pairs: Sequence[Pair], title: str) -> Path:
    """Write the page, and beside it the key, whose path is returned. The same pairs give the same page.

    Raises ValueError for no pairs, ids that are there twice, a model beside itself, and bytes that are no picture; FileExistsError
    where either file is there already.
    """
    path = Path(path)
    key = path.with_suffix(".key.json")
    ids = [pair["id"] for pair in pairs]
    if not pairs:
        raise ValueError("a page needs a pair of pictures at least")
    if len(set(ids)) < len(ids):
        raise ValueError(f"a pair's id is there twice: {next(name for name in ids if ids.count(name) > 1)!r}")
    for pair in pairs:
        if pair["model_left"] == pair["model_right"]:
            raise ValueError(f"pair {pair['id']!r} shows {pair['model_left']!r} beside itself; two models are compared")
    for file in (path, key):
        if file.exists():
            raise FileExistsError(f"{file} is there already and nothing is overwritten")
    page = _digest(title, *(pair[name] for pair in pairs for name in Pair.__annotations__))
    seen, told = [], {}
    for pair in pairs:
        name = _digest(page, pair["id"])
        sides = [(_data_uri(pair["left"], pair["id"]), pair["model_left"]), (_data_uri(pair["right"], pair["id"]), pair["model_right"])]
        (a, model_a), (b, model_b) = sides[:: -1 if int(name, 16) % 2 else 1]
        seen.append({"pair": name, "prompt": pair["prompt"], "a": a, "b": b})
        told[name] = {"id": pair["id"], "prompt": pair["prompt"], "category": pair["category"], "a": model_a, "b": model_b}
    _write(path, _filled({"page": page, "title": title, "pairs": sorted(seen, key=lambda one: one["pair"])}))
    _write(key, json.dumps({"format": 1, "page": page, "title": title, "pairs": told}, ensure_ascii=False, indent=1))
    return key


def read_answers(answers: str | Path, key: str | Path) -> list[dict[str, Any]]:
    """One rater's file with the models' names put in: for each two models that the page compares, what `judges.people` takes.

    Of two models A is the one whose name is first in the alphabet. Raises ValueError naming the file and the place for a file of
    another form, of another page, or with an answer that the key does not know; OSError where a file cannot be read.
    """
    said, known = _json(answers), _json(key)
    if said.get("page") != known.get("page"):
        raise ValueError(f"{answers} are answers to page {said.get('page')!r}, {key} is the key of page {known.get('page')!r}")
    pairs, given = known.get("pairs"), said.get("answers")
    if not isinstance(pairs, dict) or not isinstance(given, list) or not isinstance(said.get("rater"), str):
        raise ValueError(f"{answers} lacks the rater or the list of answers, or {key} the pairs")
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for i, one in enumerate(given):
        pair = pairs.get(one.get("pair")) if isinstance(one, dict) else None
        if not isinstance(pair, dict):
            raise ValueError(f"{answers}: answers[{i}] is about a pair that {key} does not know")
        models = (min(pair["a"], pair["b"]), max(pair["a"], pair["b"]))
        names = {side: "AB"[models.index(pair[side])] for side in ("a", "b")}
        for question, same in (("quality", {}), ("words", {"same": "same"})):
            if one.get(question) not in names | same:
                raise ValueError(f"{answers}: answers[{i}].{question} = {one.get(question)!r}; there are: {', '.join(names | same)}")
        answer = {"quality": names[one["quality"]], "words": (names | {"same": "same"})[one["words"]]}
        found.setdefault(models, []).append({"pair": pair["id"], "category": pair["category"], **answer, "seconds": one.get("seconds")})
    return [
        {"format": 1, "kind": "triptych answers", "rater": said["rater"], "models": {"A": a, "B": b}, "answers": found[a, b]}
        for a, b in sorted(found)
    ]  # fmt: skip


def _json(path: str | Path) -> Mapping[str, Any]:
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file: {error}") from None
    if not isinstance(value, dict) or value.get("format") != 1:
        raise ValueError(f"{path} is none of the people's page's files (format 1)")
    return value


def _digest(*parts: str | bytes) -> str:
    """16 hex digits; no two different lists of parts run into one another."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def _data_uri(picture: bytes, name: str) -> str:
    """The picture alone, as PNG: no text chunk, no EXIF, no colour profile, no alpha."""
    from PIL import Image

    out = io.BytesIO()
    try:
        with Image.open(io.BytesIO(picture)) as opened:
            bare = Image.new("RGB", opened.size)
            bare.paste(opened.convert("RGB"))
        bare.save(out, "PNG", optimize=True)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"pair {name!r} holds bytes that are no picture: {error}") from None
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _filled(data: Mapping[str, Any]) -> str:
    template = Path(__file__).with_name("assets") / "people.html"
    before, mark, after = template.read_text(encoding="utf-8").partition("{{DATA}}")
    assert mark
    return before + json.dumps(data, ensure_ascii=False).replace("<", "\\u003c") + after  # no "</script>" in a prompt ends the script


def _write(path: Path, text: str) -> None:
    """Raises FileExistsError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
