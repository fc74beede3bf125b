"""A person's own pictures, in whatever form they have them (`forms`), as a source: each fitted to one size, or to the bucket of its shape.

Without buckets the whole picture stands in a white square: nothing is cropped or mirrored, since captions speak of left, right and number.
With buckets (`recipe.Data.buckets`) it fills a shape near its own. One picture in twenty, by a hash of its content, is held out.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..contracts import Prompt
from ..recipe import Buckets
from . import buckets as shapes
from .album import Album
from .forms import Reading
from .index import Row, draws, pick, place
from .picture import covering, fitted
from .store import cache_folder, stored

__all__ = ["FolderSource"]

ROOM = 8 * 2**30  # bytes of fitted pictures that the cache folder may be given, and half of what its disk has: more are made as they come
TRIGGER = "[trigger]"


class _Group(NamedTuple):
    """Pictures of one shape (height, width): all numbers in the album, and those of this split."""

    shape: tuple[int, int]
    every: np.ndarray
    mine: np.ndarray


class FolderSource:
    """Pairs, or with captions=False pictures alone.

    path: a folder, a .tar or a .parquet file.  form, captions, lines, column, template: of `forms.Reading`.
    trigger: a word that is to mean what these pictures show: it takes the place of "[trigger]" in a caption, or stands before it.

    A picture with several captions says one of them, drawn by (seed, epoch). Where pictures cannot be used they are left out and named on
    stderr and in `describe`; where they are more than one in a hundred, ValueError names them.
    """

    name = "folder"

    def __init__(
        self, *, size: int, split: str = "train", buckets: Buckets | None = None, path: str = "", form: str = "", captions: bool = True,
        lines: bool = False, column: str = "", template: str = Reading.template, trigger: str = "",
    ) -> None:  # fmt: skip
        if not path:
            raise ValueError("source 'folder' needs the option 'path': a folder of pictures")
        how = Reading(form=form, captions=captions, lines=lines, column=column, template=template)
        self.album, self.trigger, self.split = Album(path, how), trigger, split
        for fault in self.album.faults:
            print(f"{self.album.root / fault.name}: {'left out: ' if fault.counts else ''}{fault.reason}", file=sys.stderr)
        self._buckets, every_N = buckets, np.arange(len(self.album))
        self.histogram, self._groups = {}, [_Group((size, size), every_N, self._mine(every_N))]
        if buckets:
            planned = shapes.plan(size * size, buckets.step, buckets.slimmest)
            which_N = shapes.assign(self.album.sizes(), planned, upscale=buckets.upscale)
            self.histogram = shapes.histogram(self._mine(which_N), planned)
            full = [_Group(shape, ids, self._mine(ids)) for i, shape in enumerate(planned) if len(ids := np.flatnonzero(which_N == i))]
            self._groups = [group for group in full if len(group.mine)]
        self.groups = tuple(len(group.mine) for group in self._groups) if buckets else ()
        self.count = sum(len(group.mine) for group in self._groups)
        if not self.count or self.album.learnt in (0, len(self.album)):
            small = self.histogram.get("too small")
            more = f"; {small} are smaller than their bucket and stay out: set data.buckets.upscale" if small else ""
            raise ValueError(f"{path}: one picture cannot be both learnt and held out; give it two different ones at least{more}")
        self._pixels = self._kept() if size else None

    def _mine(self, of_N: np.ndarray) -> np.ndarray:
        """Of one value for each picture, or of the numbers of some (they rise), those of this split."""
        cut = self.album.learnt if len(of_N) == len(self.album) else int(np.searchsorted(of_N, self.album.learnt))
        return of_N[:cut] if self.split == "train" else of_N[cut:]

    # --- pictures ---

    def _kept(self) -> list[np.ndarray] | None:
        """All pictures of each shape, of both splits, from the cache folder; None where that would be too much for it."""
        if sum(len(one.every) * one.shape[0] * one.shape[1] * 3 for one in self._groups) > min(ROOM, _free() // 2):
            return None
        pixels, b = [], self._buckets
        for one in self._groups:
            height, width = one.shape
            tag = f"{b.step}-{b.slimmest:g}-{'up' if b.upscale else 'down'}-" if b else ""
            name, what = f"folder-{self.album.fingerprint}-{tag}{width}x{height}", f"pictures of {width} x {height} from {self.album.root}"
            made, why = stored(name, (len(one.every), height, width, 3), lambda i, one=one: self._made(int(one.every[i]), one.shape), what)
            if why:  # each was whole when the album looked at it
                (cache_folder() / f"{name}.npy").unlink(missing_ok=True)
                i, reason = next(iter(why.items()))
                changed = f"{self.album[int(one.every[i])].name} of {self.album.root} changed while it was being read"
                raise ValueError(f"{changed}: {reason}; run again")
            pixels.append(made)
        return pixels

    def _made(self, i: int, shape: tuple[int, int]) -> np.ndarray:
        data = self.album.bytes(i)
        return covering(data, *shape) if self._buckets else fitted(data, shape[0])

    def _picture(self, group: int, i: int) -> np.ndarray | None:
        one = self._groups[group]
        if not one.shape[0]:
            return None
        return self._made(i, one.shape) if self._pixels is None else self._pixels[group][np.searchsorted(one.every, i)]

    # --- rows ---

    def _drawn(self, seed: int, position: int, group: int) -> tuple[int, int]:
        """(picture, epoch)."""
        ids = self._groups[group].mine
        return int(ids[place(seed, position, len(ids))]), position // len(ids)

    def _said(self, captions: tuple[str, ...], seed: int, epoch: int, digest: str) -> str:
        text = pick(draws(seed, "caption", epoch, digest), captions) if captions else ""
        if not self.trigger:
            return text
        if TRIGGER in text:
            return text.replace(TRIGGER, self.trigger)
        return f"{self.trigger}, {text}" if text else self.trigger

    def words(self, seed: int, position: int) -> str:
        return self.row(seed, position, picture=False).prompt.text

    def row(self, seed: int, position: int, group: int = 0, *, picture: bool = True) -> Row:
        """group: of `groups`; each is an order of its own."""
        if self.groups and not picture:  # words of all shapes: any order will do
            group = position % len(self.groups)
        i, epoch = self._drawn(seed, position, group)
        one = self.album[i]
        shape = "{1}x{0}".format(*self._groups[group].shape) if self.groups else ""
        text = self._said(one.captions, seed, epoch, one.digest)
        return Row(self._picture(group, i) if picture else None, Prompt(text=text), f"folder:{one.digest}{shape and ':'}{shape}")

    def describe(self) -> dict[str, Any]:
        album = self.album
        told: dict[str, Any] = {"pictures": self.count, "path": str(album.root), "form": album.form}
        told["broken"] = {fault.name: fault.reason for fault in album.faults}
        if self._buckets:
            told["buckets"] = self.histogram
        return told


def _free() -> int:
    """Bytes that the cache folder's disk has, be the folder there or not."""
    folder: Path = cache_folder()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
