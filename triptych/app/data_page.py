"""The page of `triptych data check --page`: what an album holds, to be looked at. One HTML file, no script, nothing fetched."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..data.album import Album

__all__ = ["write_page"]

SHOWN = 48  # pictures of the sample, evenly from the whole
SIDE = 96

def write_page(path: Path, report: Mapping[str, Any], album: Album) -> Path:
    """report: as `data.check` tells it. Every name and caption is somebody's: they reach the page as text."""
    from ..checkpoint import write_atomically  # imports torch

    pictures, captions, broken = report["pictures"], report["captions"], report["broken"]
    ids = {one.name: i for i, one in enumerate(album.each())} if report["duplicates"]["named"] or report["alike"]["named"] else {}
    spans = {what: pictures[what] for what in ("width", "height") if pictures[what]}
    pixels = "; ".join(f"{what} {span['least']} to {span['most']}, mostly {span['median']:g}" for what, span in spans.items())
    facts = {
        "pictures": pictures["count"], "to learn from": pictures["learnt"], "held out": pictures["held_out"], "captions": captions["count"],
    }  # fmt: skip
    wrong = {
        "cannot be used": broken["count"], "there twice": report["duplicates"]["pictures"], "pairs alike": report["alike"]["pairs"],
        "captions too long": captions.get("too_long", 0), "without words": captions["pictures_without"],
    }  # fmt: skip
    parts = [
        f"<h1>{escape(report['path'])}</h1>", f"<p>read as {escape(report['form'])}; {escape(pixels)}</p>",
        '<div class="facts">', *(f"<div><b>{n}</b>{escape(name)}</div>" for name, n in facts.items()),
        *(f'<div class="bad"><b>{n}</b>{escape(name)}</div>' for name, n in wrong.items() if n), "</div>",
        _bars("Formats", pictures["formats"]), _bars("Languages of the captions", captions["languages"]),
        _bars("Buckets, width x height", report.get("buckets", {})),
        _faults(broken["named"], broken["count"]),
        _pairs("There twice, byte for byte", [some[:2] for some in report["duplicates"]["named"]], ids, album),
        _pairs("Alike to the eye", report["alike"]["named"], ids, album),
        _sheet(album),
    ]  # fmt: skip
    template = (Path(__file__).with_name("assets") / "check.html").read_text(encoding="utf-8")
    before, _, after = template.replace("{{TITLE}}", escape(report["path"])).partition("{{BODY}}")
    write_atomically(path, (before + "\n".join(part for part in parts if part) + after).encode("utf-8", "backslashreplace"))
    return path


def _bars(title: str, counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    most = max(counts.values())
    rows = "".join(f'<span>{escape(name)}</span><i style="width:{100 * n / most:.1f}%"></i><span>{n}</span>' for name, n in counts.items())
    return f'<h2>{escape(title)}</h2><div class="bars">{rows}</div>'


def _faults(named: Sequence[Mapping[str, str]], count: int) -> str:
    if not named:
        return ""
    rows = "".join(f"<tr><td>{escape(one['name'])}</td><td>{escape(one['reason'])}</td></tr>" for one in named)
    return f"<h2>What cannot be used ({count})</h2><table><tr><th>where</th><th>why</th></tr>{rows}</table>"


def _pairs(title: str, pairs: Iterable[Sequence[str]], ids: Mapping[str, int], album: Album) -> str:
    shown = ['<div class="pair">' + "".join(_figure(album, ids[name]) for name in pair) + "</div>" for pair in pairs]
    return f'<h2>{escape(title)}</h2><div class="pairs">{"".join(shown)}</div>' if shown else ""


def _sheet(album: Album) -> str:
    count = min(SHOWN, len(album))
    figures = "".join(_figure(album, i * len(album) // count) for i in range(count))
    return f'<h2>{count} of {len(album)} pictures</h2><div class="sheet">{figures}</div>'


def _figure(album: Album, i: int) -> str:
    one = album[i]
    words = "".join(f"<div>{escape(text)}</div>" for text in one.captions)
    alt = escape(one.captions[0] if one.captions else one.name, quote=True)
    return (
        f'<figure><img alt="{alt}" src="{_thumbnail(album, i)}"><figcaption>{words}<small>{escape(one.name)}, {one.width} x {one.height}'
        f"{', held out' if one.held else ''}</small></figcaption></figure>"
    )


def _thumbnail(album: Album, i: int) -> str:
    from ..data.picture import opened

    try:
        picture = opened(album.bytes(i))
    except ValueError:
        return "data:,"  # it went while it was being looked at: its words remain
    picture.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode()}"
