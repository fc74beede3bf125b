"""`triptych data build|show|check`, and what a SPEC says: "emoji", "scenes", "emoji:3,scenes:1", or a folder, .tar or .parquet of pictures.

Behind a place stands how it is to be read, as in an address: "my-pictures?form=classes&template=a {class}" (`data.folder.FolderSource`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import data, recipe
from ..catalog import nearest
from . import pictures, say
from .errors import Failure, blame

if TYPE_CHECKING:
    from ..data.album import Album
    from ..data.index import Dataset

__all__ = ["open_split", "parse_data_spec", "run_build", "run_check", "run_show", "sources_of"]


def parse_data_spec(text: str, size: int) -> recipe.Data:
    """ "emoji:2,scenes:1" -> the mixture, with pictures of side `size`. A part is a source's name or a folder, ":" its weight.

    Raises ValueError for a part that is neither, with the nearest right name, and for a weight that is not above 0.
    """
    sources = sources_of(text)
    return recipe.Data(sources=sources, size=0 if all(source.name in data.WORDS for source in sources) else size)


def sources_of(text: str) -> tuple[recipe.Source, ...]:
    """The sources that a SPEC names; see `parse_data_spec`."""
    place, _, options = text.partition("?")
    if Path(text).exists() and text not in data.SOURCES:  # a folder's name may hold commas, colons and question marks
        return (_source(text, "", 1.0),)
    if options and Path(place).exists():
        return (_source(place, options, 1.0),)
    sources = []
    for part in text.split(","):
        name, colon, tail = part.strip().rpartition(":")
        weight = _number(tail) if colon else None
        if weight is None:
            name, weight = part.strip(), 1.0
        if not 0 < weight < 1e9:
            raise ValueError(f"data {part.strip()!r}: a weight is a number above 0")
        place, _, options = name.partition("?")
        sources.append(_source(place, options, weight))
    return tuple(sources)


def _source(name: str, options: str, weight: float) -> recipe.Source:
    if name in data.SOURCES and name not in ("folder", "lines"):
        return recipe.Source(name=name, weight=weight, options=_options(options))
    if name and Path(name).exists():
        told = _options(options)
        lines = name.endswith(".txt") or told.get("form") == "texts"
        if lines:
            told.pop("form", None)
        return recipe.Source(name="lines" if lines else "folder", weight=weight, options={**told, "path": name})
    named = [source for source in data.SOURCES if source not in ("folder", "lines")]
    raise ValueError(f"data {name!r} is neither a folder here nor a source; {nearest(name, named)}")


def _options(text: str) -> dict[str, Any]:
    """ "form=classes&lines=true" -> {"form": "classes", "lines": True}. Raises ValueError for a part without "="."""
    import yaml

    found = {}
    for part in filter(None, text.split("&")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"data option {part!r} lacks '='; write name=value, several with & between them")
        found[name.strip()] = yaml.safe_load(value) if value in ("true", "false") or _number(value) is not None else value
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def run_build(spec: str, size: int, as_json: bool) -> None:
    """Read every example of both splits once, which fills the caches."""
    begun, rows = time.perf_counter(), {}
    described = parse_data_spec(spec, size)
    for split in ("train", "held_out"):
        dataset = open_split(described, split)
        if dataset is None:
            rows[split] = 0
            continue
        rows[split] = min(len(dataset), 20_000)  # endless sources have no cache to fill
        with blame("bad_data", spec), say.bar(f"reading {split}", quiet=as_json) as bar:
            for n in range(rows[split]):
                dataset.row(0, n)
                bar.update((n + 1) / rows[split], f"reading {split}")
    seconds = round(time.perf_counter() - begun, 2)
    text = f"{spec} at {size} px: {rows['train']} examples to train on, {rows['held_out']} held out, read in {seconds} s"
    say.result({"spec": spec, "size": size, "examples": rows, "seconds": seconds}, text, as_json)


def run_show(spec: str, output: str | None, *, n: int, columns: int, seed: int, held_out: bool, size: int, as_json: bool) -> None:
    """Write a contact sheet; what is there already is not overwritten."""
    path = _free("sheet.png") if output is None else Path(output)
    if path.exists():
        raise ValueError(f"{path} is there already and nothing is overwritten; give another -o")
    if path.suffix.lower() not in pictures.SUFFIXES:
        raise ValueError(f"-o {path}: cannot write {path.suffix or 'a file without a suffix'}; there are: {', '.join(pictures.SUFFIXES)}")
    dataset = open_split(parse_data_spec(spec, size), "held_out" if held_out else "train")
    if dataset is None:
        raise Failure("bad_data", f"{spec} holds nothing in the held-out split; leave --held-out away")
    with blame("bad_data", spec):
        batch = dataset.examples(n, seed=seed)
        sheet = data.contact_sheet(batch, columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures.write(sheet, path, None)
    captions = [prompt.text for prompt in batch.prompts]
    say.result({"path": str(path), "pictures": len(captions), "captions": captions, "size": list(sheet.size)}, str(path), as_json)


def run_check(spec: str, size: int, page: str | None, model: str, as_json: bool) -> None:
    """All that a place holds and lacks, as text or JSON, and as a page with thumbnails; of other sources the counts they know."""
    described = parse_data_spec(spec, size)
    folders = [source for source in described.sources if source.name == "folder"]
    if page is not None and Path(page).exists():
        raise ValueError(f"{page} is there already and nothing is overwritten; give another --page")
    if len(folders) != 1 or len(described.sources) != 1:
        if page is not None:
            raise ValueError(f"--page shows one folder of pictures, and {spec!r} is something else")
        with blame("bad_data", spec):
            report = data.describe(described)
        say.result(report, _as_text(report), as_json)
        return
    from ..data.album import BROKEN_AT_MOST
    from ..data.check import check

    with blame("bad_data", spec):
        album = _album(folders[0])
        report = check(album, size=size, buckets=described.buckets or recipe.Buckets(), too_long=_too_long(model))
    if page is not None:
        from .data_page import write_page

        report["page"] = str(write_page(Path(page), report, album))
    say.result(report, told(report), as_json)
    if album.wrong > BROKEN_AT_MOST * (len(album) + album.wrong):
        raise Failure("bad_data", f"{spec}: {album.wrong} of {len(album) + album.wrong} pictures cannot be used; replace or remove them")


def _album(source: recipe.Source) -> Album:
    """As `FolderSource` reads it, but for what is broken: that is what is asked. Raises ValueError for an option that it does not have."""
    import dataclasses

    from ..data.album import Album
    from ..data.forms import Reading

    known = [field.name for field in dataclasses.fields(Reading)]
    for option in source.options:
        if option not in (*known, "path", "trigger"):
            raise ValueError(f"a folder has no option {option!r}; {nearest(option, known)}")
    return Album(source.options["path"], Reading(**{name: value for name, value in source.options.items() if name in known}), strict=False)


def _too_long(model: str) -> Callable[[Sequence[str]], list[bool]] | None:
    """What the model's text encoder would cut; None for one that counts no tokens."""
    from .. import checkpoint

    return getattr(checkpoint.load_panel(model, "text_encoder"), "cut", None)


def told(report: Mapping[str, Any]) -> str:
    """The report in a screenful."""
    pictures, captions, broken = report["pictures"], report["captions"], report["broken"]
    spans = [f"{name} {span['least']} to {span['most']}, mostly {span['median']:g}" for name in ("width", "height")
             if (span := pictures[name])]  # fmt: skip
    counts = ", ".join(f"{n} {kind}" for kind, n in pictures["formats"].items())
    lines = [
        f"{report['path']}: {pictures['count']} pictures ({counts}), read as {report['form']}",
        f"  to learn from {pictures['learnt']}, held out {pictures['held_out']}",
        f"  pixels        {'; '.join(spans)}",
        f"  captions      {captions['count']} ({', '.join(f'{n} {name}' for name, n in captions['languages'].items()) or 'none'})",
    ]
    for count, what in (
        (captions["pictures_with_several"], "pictures have several captions"), (captions["pictures_without"], "pictures have none"),
        (captions.get("too_long", 0), "pictures have a caption that the text encoder cuts: " + _few(captions.get("too_long_named", []))),
        (report["duplicates"]["pictures"], "pictures are there twice: " + _few([" = ".join(o) for o in report["duplicates"]["named"]])),
        (report["alike"]["pairs"], "pairs look alike: " + _few([" ~ ".join(pair) for pair in report["alike"]["named"]])),
        (broken["count"], "cannot be used: " + _few([f"{one['name']} ({one['reason']})" for one in broken["named"]])),
    ):  # fmt: skip
        if count:
            lines.append(f"  {count} {what}")
    if buckets := report.get("buckets"):
        lines.append(f"  buckets       {', '.join(f'{name}: {n}' for name, n in buckets.items())}")
    return "\n".join(lines)


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def open_split(described: recipe.Data, split: Any) -> Dataset | None:
    """The dataset; None for a held-out split that is empty, as a small folder's may be."""
    with blame("bad_data"):
        try:
            return data.build(described, split=split)
        except ValueError as error:
            if split == "held_out" and "holds nothing in this split" in str(error):
                return None
            raise


def _free(name: str) -> Path:
    path, k = Path(name), 1
    while path.exists():
        k += 1
        path = path.with_name(f"{Path(name).stem}-{k}{path.suffix}")
    return path


def _as_text(value: Any) -> str:
    import yaml

    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120).rstrip()


# --- what is kept -----------------------------------------------------------------------------------------------------------


def run_cache_list(as_json: bool) -> None:
    from ..data.store import cache_folder, kept

    found = kept()
    total = sum(one.size for one in found)
    lines = [f"{_bytes(one.size):>9}  {time.strftime('%Y-%m-%d %H:%M', time.localtime(one.used))}  {one.name}" for one in found]
    entries = [{"name": one.name, "bytes": one.size, "used": one.used} for one in found]
    text = "\n".join([*lines, f"{_bytes(total):>9}  in {cache_folder()}"])
    say.result({"folder": str(cache_folder()), "bytes": total, "kept": entries}, text, as_json)


def run_cache_clear(names: Sequence[str], as_json: bool) -> None:
    """Raises ValueError for a name that nothing has."""
    from fnmatch import fnmatch

    from ..data.store import cache_folder, kept

    found = kept()
    for name in names:
        if not any(fnmatch(one.name, name) for one in found):
            raise ValueError(f"nothing that is kept is named {name!r}; {nearest(name, [one.name for one in found])}")
    gone = [one for one in found if not names or any(fnmatch(one.name, name) for name in names)]
    for one in gone:
        (cache_folder() / one.name).unlink(missing_ok=True)
    freed = sum(one.size for one in gone)
    say.result({"removed": [one.name for one in gone], "bytes": freed}, f"removed {len(gone)} files, {_bytes(freed)}", as_json)


def _bytes(count: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit in ("B", "KB") else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError
