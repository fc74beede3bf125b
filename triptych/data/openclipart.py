"""Open Clip Art: public-domain drawings with titles, descriptions and keywords, as Debian ships them.

The pictures are `openclipart-png`'s; the words are the metadata of the same files in `openclipart-svg`; the folders are a taxonomy.
8,121 files are 6,900 different drawings, for many lie in several folders: copies are one drawing here, with the words of all.
Captions are English as the artists wrote it; some titles are Italian or French, and nothing says which.

Where one title stands over a whole collection ("Lemon SVG theme", 431 times), the drawing's file name is its name instead. Of drawings
with the same name at most `alike` are shown, else one in six would be one of 1,375 computed stars.

Never shown, in either split: a drawing whose title, file name, folder, keywords or description contain the name of an emoji that
`emoji` holds out, as a whole phrase, in any language that titles are in. Of the rest one drawing in twenty, by a hash of its pixels'
file, is the held-out split.
"""

from __future__ import annotations

import hashlib
import html
import re
import sys
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..catalog import nearest
from ..contracts import Prompt
from ._rdf import Work, read
from .emoji import CLDR, load_emoji
from .index import Row, draws, place, stable_hash
from .picture import fitted
from .store import stored

__all__ = ["Drawing", "OpenClipartSource", "caption", "load_drawings", "secrets"]

PNG, SVG = "/usr/share/openclipart/png", "/usr/share/openclipart/svg"
LANGUAGES = ("it", "fr", "es")  # of titles, beside English
BROKEN_AT_MOST = 0.01  # a share: more, and something is wrong with the folder, not with a file

# Said of thousands, or by the library's own machinery: they tell nothing of a drawing.
_NOISE = frozenset((
    "11", "appicon", "hash", "icons", "lemon_theme_icon", "magick", "mapsym", "misc", "miscellany", "openclipart", "special", "theme",
    "unsorted",
))  # fmt: skip
_NAME_NOISE = frozenset(("aiga", "bb", "fs", "ganson", "gnome", "kcm", "kde", "mime", "stock", "svg"))
_ADDRESS = re.compile(r"@|https?:|www\.|created with|part of|converted", flags=re.I)  # said of the file, not of the drawing
# What a name alone leaves unsaid, by folder: "ethiopia" is a flag there.
_KINDS = {"flags": ("flag", "flag of {}"), "icons": ("icon", "{} icon"), "roadsigns": ("sign", "{} road sign")}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One picture's words. digest: of its PNG, hex. files: where it lies, without suffix, below both folders. name may be "".

    sentence: the description's first, or "".  said: all texts about it, a line each, as `_singular` writes them.
    """

    digest: str
    files: tuple[str, ...]
    name: str
    keywords: tuple[str, ...]
    sentence: str
    said: str

    def under(self, folder: str) -> bool:
        return any(file.startswith(f"{folder.strip('/')}/") for file in self.files)


# --- the files -------------------------------------------------------------------------------------------------------------


def load_drawings(png: str | None = None, svg: str | None = None) -> tuple[tuple[Drawing, ...], dict[str, str]]:
    """(every different drawing, by the path of its first file;  file -> why it is none).

    Raises ValueError naming a missing folder, with the Debian packages, and two folders that have no drawing in common.
    """
    return _load(_folder(png or PNG, "png"), _folder(svg or SVG, "svg"))


def _folder(path: str, option: str) -> str:
    if not Path(path).is_dir():
        install = "`sudo apt-get install openclipart-png openclipart-svg` (156 MB)"
        raise ValueError(f"{path} is missing: {install}, or set the openclipart source's option {option!r} to where it is")
    return path


@cache
def _load(png: str, svg: str) -> tuple[tuple[Drawing, ...], dict[str, str]]:
    stems = {kind: _stems(Path(root), f".{kind}") for kind, root in (("png", png), ("svg", svg))}
    broken = {f"{stem}.svg": "no picture beside it" for stem in stems["svg"] - stems["png"]}
    broken |= {f"{stem}.png": "no words beside it" for stem in stems["png"] - stems["svg"]}
    works: dict[str, Work] = {}
    copies: defaultdict[str, list[str]] = defaultdict(list)
    for stem in sorted(stems["png"] & stems["svg"]):
        try:
            works[stem] = read(Path(svg, f"{stem}.svg"))
            copies[hashlib.blake2b(Path(png, f"{stem}.png").read_bytes(), digest_size=16).hexdigest()].append(stem)
        except (ValueError, OSError) as error:
            broken[f"{stem}.svg"] = str(error)
    if not copies:
        raise ValueError(f"{png} and {svg} have no drawing in common: {_some(_reasons(broken)) or 'both are empty'}")
    collections, slogans = _collections(works)
    drawings = (_drawing(digest, files, works, collections, slogans) for digest, files in copies.items())
    return tuple(sorted(drawings, key=lambda drawing: drawing.files)), broken


def _stems(root: Path, suffix: str) -> set[str]:
    return {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob(f"*{suffix}") if path.is_file()}


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _reasons(broken: dict[str, str]) -> list[str]:
    return [f"{name} ({why})" for name, why in broken.items()]


@cache
def _pictures(png: str, svg: str, size: int) -> tuple[np.ndarray, dict[str, str]]:
    """(uint8 [N, size, size, 3] in the order of `load_drawings`, file -> why it has no picture: its row is blank)."""
    drawings = _load(png, svg)[0]
    content = hashlib.blake2b(" ".join(["2", *(drawing.digest for drawing in drawings)]).encode(), digest_size=12).hexdigest()
    shape, what = (len(drawings), size, size, 3), f"Open Clip Art of side {size}"

    def make(i: int) -> np.ndarray:
        with warnings.catch_warnings():  # a dozen are larger than Pillow cares to open: they are refused, and named by whoever asked
            warnings.simplefilter("ignore")
            picture = fitted(Path(png, f"{drawings[i].files[0]}.png"), size)
        if picture.min() > 250:
            raise ValueError("nothing of it is seen over white")
        return picture

    pixels, why = stored(f"openclipart-{content}-{size}", shape, make, what)
    return pixels, {f"{drawings[i].files[0]}.png": reason for i, reason in why.items()}


# --- the words -------------------------------------------------------------------------------------------------------------


def _parts(name: str) -> list[str]:
    """A file name's words: split at capitals, signs and digits; no single letters."""
    return [word for word in re.findall(r"[^\W\d_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()) if len(word) > 1]


def _file_name(stem: str, creator: str) -> str:
    """ "animals/bat_orlando_karam_" by Orlando Karam -> "bat"; file names were cut at 24 letters, in the artist's name as well."""
    words, artist = _parts(stem.rpartition("/")[2]), _parts(creator)
    while len(words) > 1 and any(part.startswith(words[-1]) for part in artist):
        words.pop()
    return " ".join([word for word in words if word not in _NAME_NOISE] or words)


def _title(work: Work) -> str:
    title = re.sub(r"^clip ?art by .*? - ", "", html.unescape(work.title), flags=re.I).strip()
    if " " not in title:
        title = " ".join(_parts(title))  # it was a file name
    return title if title.isprintable() and len(title) <= 80 and not _ADDRESS.search(title) else ""


def _collections(works: dict[str, Work]) -> tuple[set[str], set[str]]:
    """Titles and descriptions that stand over files of three different names, or over a thousand files: said of a collection."""
    titles, slogans, files = defaultdict(set), defaultdict(set), Counter(work.title for work in works.values())
    for stem, work in works.items():
        name = _file_name(stem, work.creator)
        slogans[work.description].add(name)
        if work.title.lower() not in work.keywords:
            titles[work.title].add(name)
    shared = {title for title, names in titles.items() if len(names) >= 3 or files[title] >= 1000}
    return shared, {text for text, names in slogans.items() if len(names) >= 3}


def _drawing(digest: str, files: list[str], works: dict[str, Work], collections: set[str], slogans: set[str]) -> Drawing:
    first = files[0]
    own = [_title(works[stem]) for stem in files if works[stem].title not in collections]
    name = next(filter(None, own), "") or _file_name(first, works[first].creator)
    for folder, (word, kind) in _KINDS.items():
        if name and f"/{folder}/" in first and word not in name.lower():
            name = kind.format(name)
            break
    keywords = dict.fromkeys(word for stem in files for word in _keywords(works[stem]) if word != name.lower())
    sentence = next(filter(None, (_sentence(works[s].description) for s in files if works[s].description not in slogans)), "")
    texts = {text for s in files for text in (works[s].title, works[s].description, *works[s].keywords, *s.split("/"))}
    said = "\n".join(sorted(_singular(text) for text in texts))
    return Drawing(digest=digest, files=tuple(files), name=name, keywords=tuple(keywords), sentence=sentence, said=said)


def _keywords(work: Work) -> list[str]:
    """Without what a broken upload left: addresses of Perl hashes and people, HTML, numbers, the artist's name."""
    plain = [word for word in work.keywords if re.fullmatch(r"[^\W_][\w .'&-]{1,29}", word) and word.isprintable() and "&" not in word]
    plain = [word for word in plain if word.lower() not in _NOISE and not re.match(r"0x|www\.|\d", word) and word != work.creator.lower()]
    return [word.replace("_", " ").lower() for word in plain]


def _sentence(description: str) -> str:
    sentence = re.split(r"(?<=[.!?])\s", html.unescape(description), maxsplit=1)[0]
    telling = len(sentence.split()) >= 3 and len(sentence) <= 160 and sentence.isprintable()
    return sentence if telling and not _ADDRESS.search(sentence) else ""


_COMMON = 0.55, 0.75, 0.87  # up to here the name, the name with keywords, several keywords; the rest is the description


def caption(drawing: Drawing, rng: Any) -> str:
    """The name in half of the draws; else the name with one or two keywords, three to five keywords, or the description's first sentence.

    What a drawing lacks is said by its name, or where there is none by its keywords. ("action, computer" tells nothing: two are too few.)
    """
    kind, words = rng.random(), list(drawing.keywords)
    for i in range(len(words) - 1):  # Fisher-Yates
        j = i + int(rng.random() * (len(words) - i))
        words[i], words[j] = words[j], words[i]
    if kind >= _COMMON[2] and drawing.sentence:
        return drawing.sentence
    if not drawing.name or (_COMMON[1] <= kind < _COMMON[2] and len(words) > 2):
        return ", ".join(words[: 3 + int(rng.random() * 3)])
    if _COMMON[0] <= kind < _COMMON[1] and words:
        return ", ".join([drawing.name, *words[: 1 + int(rng.random() * 2)]])
    return drawing.name


# --- what is held out ------------------------------------------------------------------------------------------------------


def _singular(text: str) -> str:
    """Words of a text between single blanks, each without its plural: "Palm-trees, 2" -> " palm tree 2 ". Wrong alike on both sides."""
    words = re.findall(r"[^\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=\D)(?=\d)|(?<=\d)(?=\D)", " ", text).casefold())
    return f" {' '.join(_one(word) for word in words)} " if words else ""


def _one(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if re.search(r"(ch|sh|ss|x)es$", word):
        return word[:-2]
    return word[:-1] if re.search(r"..[^su]s$", word) else word


@cache
def secrets(font: str | None = None, cldr: str | None = None) -> tuple[tuple[str, ...], ...]:
    """Names of the emoji that are held out, each as its parts ("flag: Spain" has two), as `_singular` writes them."""
    from xml.etree import ElementTree

    held = {e.sequence: e.name_en for e in load_emoji(font, cldr) if e.group != "train"}
    names = set(held.values())
    for language in LANGUAGES:
        path = Path(cldr or CLDR, "annotations", f"{language}.xml")
        rows = ElementTree.parse(path).iter("annotation") if path.exists() else ()
        names |= {row.text or "" for row in rows if row.get("type") == "tts" and row.attrib["cp"].replace("\ufe0f", "") in held}
    return tuple(sorted({tuple(_singular(part) for part in name.split(":")) for name in names if name}))


@cache
def _held(png: str, svg: str, font: str | None, cldr: str | None) -> frozenset[int]:
    """Which drawings have all parts of a secret name somewhere in their words."""
    names: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for parts in secrets(font, cldr):
        names[parts[0].split()[0]].append(parts)

    def tells(said: str) -> bool:
        return any(all(part in said for part in parts) for word in set(said.split()) for parts in names.get(word, ()))

    return frozenset(i for i, drawing in enumerate(_load(png, svg)[0]) if tells(drawing.said))


class OpenClipartSource:
    """Pairs in English.

    png, svg: the two folders; they hold the same tree.  font, cldr: where `emoji`'s files are, which say what is held out.
    captions: "mix", "names", or "" for pictures alone.  folders: of the taxonomy, as "animals" or "food/fruit"; none means all.
    alike: of drawings with one name, at most so many.  secret: whether what `emoji` holds out is left out here.
    """

    name = "openclipart"

    def __init__(
        self, *, size: int, split: str = "train", png: str | None = None, svg: str | None = None, font: str | None = None,
        cldr: str | None = None, captions: str = "mix", folders: Sequence[str] = (), alike: int = 48, secret: bool = True,
    ) -> None:  # fmt: skip
        if captions not in ("mix", "names", ""):
            raise ValueError(f"openclipart captions {captions!r}: there are 'mix', 'names' and '' (pictures alone)")
        if alike < 1:
            raise ValueError(f"openclipart alike {alike}: one drawing of a name at least")
        self.captions = captions
        drawings, broken = load_drawings(png, svg)
        self.broken, self._pixels = dict(broken), None
        if size:
            self._pixels, blank = _pictures(png or PNG, svg or SVG, size)
            self.broken |= blank
        if len(self.broken) > BROKEN_AT_MOST * sum(len(drawing.files) for drawing in drawings):
            again = "install openclipart-png and openclipart-svg again"
            raise ValueError(f"{png or PNG}: {len(self.broken)} files cannot be used: {_some(_reasons(self.broken))}; {again}")
        _tell(png or PNG, tuple(_reasons(self.broken)))
        wrong = [folder for folder in folders if not any(drawing.under(folder) for drawing in drawings)]
        if wrong:
            known = sorted({"/".join(f.split("/")[:n]) for d in drawings for f in d.files for n in range(1, f.count("/") + 1)})
            raise ValueError(f"openclipart folders: no {wrong[0]!r}; {nearest(wrong[0], known)}")
        good = [i for i, d in enumerate(drawings) if f"{d.files[0]}.png" not in self.broken and (d.name or d.keywords)]
        good = [i for i in good if not folders or any(drawings[i].under(folder) for folder in folders)]
        held = _held(png or PNG, svg or SVG, font, cldr).intersection(good) if secret else ()
        good = [i for i in good if i not in held]
        same: defaultdict[str, list[int]] = defaultdict(list)
        for i in sorted(good, key=lambda i: stable_hash("alike", drawings[i].digest)):
            same[drawings[i].name.lower()].append(i)
        kept = sorted(i for many in same.values() for i in many[:alike])
        mine = [i for i in kept if (stable_hash(self.name, drawings[i].digest) % 100 < 5) == (split == "held_out")]
        self._rows, self.drawings, self.count = mine, drawings, len(mine)
        self._counts = {
            "files": sum(len(d.files) for d in drawings), "drawings": len(drawings), "named as something held out": len(held),
            "more of the same name": len(good) - len(kept),
        }  # fmt: skip

    def _words(self, i: int, seed: int, position: int) -> str:
        drawing = self.drawings[i]
        if self.captions == "names":
            return drawing.name or drawing.keywords[0]
        return caption(drawing, draws(seed, "caption", position)) if self.captions else ""

    def words(self, seed: int, position: int) -> str:
        return self._words(self._rows[place(seed, position, self.count)], seed, position)

    def row(self, seed: int, position: int) -> Row:
        i = self._rows[place(seed, position, self.count)]
        picture = None if self._pixels is None else self._pixels[i]
        return Row(picture, Prompt(text=self._words(i, seed, position)), f"openclipart:{self.drawings[i].digest}")

    def describe(self) -> dict[str, Any]:
        return {"pictures": self.count, **self._counts, "broken": dict(self.broken)}


@cache
def _tell(folder: str, broken: tuple[str, ...]) -> None:
    """Once in a process."""
    if broken:
        print(f"{folder}: {len(broken)} files are left out: {_some(broken)}", file=sys.stderr)
