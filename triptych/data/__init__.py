"""Pictures with words: a mixture of sources behind one random-access index.

    dataset = data.build(recipe.data)              -> Dataset
    dataset.batch(seed, step, batch_size)          -> contracts.Batch, a pure function of its arguments
    data.build(recipe.data, split="held_out").examples(64)
    data.describe(recipe.data)                     -> counts, for `triptych data check`
    data.contact_sheet(batch, columns)             -> PIL.Image, for `triptych data show`

Sources are files of this folder: `emoji` (pairs), `scenes` (pairs with ground truth), `openclipart` (pairs), `folder` (a person's own
pairs, or pictures alone, in many forms), `coco` (pictures with boxes), `photos` (a few photographs), `lines` (a person's text files),
`texts` (texts of the emoji and scenes). What `recipe.data.ports` names (`ports`) then fills the prompts with more than words: class
numbers, maps, small pictures, holes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL import Image

    from ..contracts import Batch
    from ..recipe import Data
    from .index import Dataset

__all__ = ["SOURCES", "WORDS", "build", "contact_sheet", "describe"]

SOURCES = {  # file -> its class
    "emoji": "EmojiSource", "scenes": "ScenesSource", "openclipart": "OpenClipartSource", "folder": "FolderSource", "coco": "CocoSource",
    "photos": "PhotosSource", "lines": "LinesSource", "texts": "TextsSource",
}  # fmt: skip

WORDS = ("texts", "lines")  # sources that have no pictures

Split = Literal["train", "held_out"]


def build(spec: Data, *, split: Split = "train") -> Dataset:
    """The mixture that `spec` names. Raises ValueError for an unknown source or option, and for files that are missing or broken."""
    import importlib
    import inspect

    from ..catalog import nearest
    from .index import Dataset

    if split not in ("train", "held_out"):
        raise ValueError(f"no split {split!r}; there are: train, held_out")
    sources = []
    for i, source in enumerate(spec.sources):
        if source.name not in SOURCES:
            raise ValueError(f"data.sources.{i}.name: no source {source.name!r}; {nearest(source.name, list(SOURCES))}")
        made = getattr(importlib.import_module(f"{__name__}.{source.name}"), SOURCES[source.name])
        taken = inspect.signature(made).parameters
        known = [name for name in taken if name not in ("size", "split", "buckets")]
        for option in source.options:
            if option not in known:
                raise ValueError(f"data.sources.{i}.options: {source.name} has no option {option!r}; {nearest(option, known)}")
        shapes = {"buckets": spec.buckets} if spec.buckets and "buckets" in taken else {}
        sources.append(made(size=spec.size, split=split, **shapes, **source.options))
    ports = ()
    if spec.ports:
        from .ports import build as build_ports

        ports = build_ports(spec.ports, spec.size)
    return Dataset(sources, [source.weight for source in spec.sources], size=spec.size, ports=ports, buckets=spec.buckets is not None)


def describe(spec: Data) -> dict[str, Any]:
    """What the mixture holds, JSON-ready: for each source and split the counts that the source knows of itself."""
    from dataclasses import replace

    report: dict[str, Any] = {"size": spec.size, "sources": []}
    total = sum(source.weight for source in spec.sources)
    for source in spec.sources:
        one = replace(spec, sources=(source,))
        splits = {split: build(one, split=split).sources[0].describe() for split in ("train", "held_out")}
        report["sources"].append({"name": source.name, "share": source.weight / total, "options": dict(source.options), **splits})
    if spec.ports:
        report["ports"] = [{"name": port.name, "options": dict(port.options)} for port in spec.ports]
    return report


def contact_sheet(batch: Batch, columns: int = 8) -> Image.Image:
    """Pictures with their captions beneath. See `triptych.data.sheet`."""
    from .sheet import contact_sheet

    return contact_sheet(batch, columns)
