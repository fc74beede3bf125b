"""Real artwork with real captions: the colour bitmaps of Noto Color Emoji, named by the Unicode CLDR annotations.

Captions are CLDR's name (type="tts") and keywords, English and Chinese, drawn anew for every sample; the pictures are `artwork`'s.

Held out, and never shown by any source: 5 % of the IDEAS, an idea being all the sequences that differ in skin tone or gender alone or
share one picture; and single COMBINATIONS of idea, gender and skin tone whose parts are all shown in others. Both by a hash of the
code points, so that the split is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..contracts import Prompt
from .artwork import FONT, SIDE, VARIATION, bitmaps, cutout, drawn, found
from .index import Row, deal, draws, pick, place, shares, stable_hash

__all__ = ["Emoji", "EmojiSource", "caption", "cutout", "load_emoji", "pictures"]

CLDR = "/usr/share/unicode/cldr/common"
LANGUAGES = ("en", "zh")

Group = Literal["train", "held_out_idea", "held_out_combination"]

TONES = "\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"
JOINER, FEMALE, MALE = "\u200d", "\u2640", "\u2642"
PERSON = {"\U0001f468": "man", "\U0001f469": "woman", "\U0001f9d1": "person"}
CHILD = "\U0001f466\U0001f467\U0001f9d2"
# One idea under code points of its own for each gender: two people holding hands, kiss, couple with heart, family; royalty; Santa.
_SIBLINGS = str.maketrans({
    **dict.fromkeys("\U0001f46b\U0001f46c\U0001f46d", "\U0001f9d1\U0001f91d\U0001f9d1"),
    "\U0001f48f": "\U0001f9d1\u2764\U0001f48b\U0001f9d1",
    "\U0001f491": "\U0001f9d1\u2764\U0001f9d1",
    **dict.fromkeys("\U0001f934\U0001f478", "\U0001fac5"),
    **dict.fromkeys("\U0001f385\U0001f936", "\U0001f9d1\U0001f384"),
})  # fmt: skip
# Never held out: coloured hearts, circles, squares, diamonds, triangles, star and ring, which `scenes` shows too, and man, woman and
# person, of whom every combination is made.
_ALWAYS_SHOWN = frozenset(
    "\U0001f468\U0001f469\U0001f9d1"
    "\u2764\U0001f9e1\U0001f49b\U0001f49a\U0001f499\U0001f49c\U0001f90e\U0001f5a4\U0001f90d\U0001f534\U0001f7e0\U0001f7e1\U0001f7e2\U0001f535\U0001f7e3\U0001f7e4"
    "\u26ab\u26aa\U0001f7e5\U0001f7e7\U0001f7e8\U0001f7e9\U0001f7e6\U0001f7ea\U0001f7eb\u2b1b\u2b1c\U0001f536\U0001f537\U0001f538\U0001f539\U0001f53a\U0001f53b\u2b50\u2b55"
)


@dataclass(frozen=True, kw_only=True)
class Emoji:
    """One picture's words. sequence: code points without U+FE0F. key: the same in hex. idea: key of the idea it belongs to.

    single: neither skin tone nor joiner. gender: "man", "woman", "person" or "" where several or none. tone: one skin tone or "".
    """

    sequence: str
    key: str
    idea: str
    name_en: str
    name_zh: str
    keywords_en: tuple[str, ...]
    keywords_zh: tuple[str, ...]
    single: bool
    gender: str
    tone: str
    group: Group = "train"

    def name(self, language: str) -> str:
        return self.name_en if language == "en" else self.name_zh

    def keywords(self, language: str) -> tuple[str, ...]:
        return self.keywords_en if language == "en" else self.keywords_zh


# --- the two sources of truth ---------------------------------------------------------------------------------------------


def load_emoji(font: str | None = None, cldr: str | None = None) -> tuple[Emoji, ...]:
    """Every sequence that has a picture in `font` and a name in both languages in `cldr`, in code point order.

    Raises ValueError naming the missing file, the Debian package that holds it and the option that points elsewhere.
    """
    return _load(found(font or FONT, "fonts-noto-color-emoji", "font"), found(cldr or CLDR, "unicode-cldr-core", "cldr"))


@cache
def _load(font: str, cldr: str) -> tuple[Emoji, ...]:
    images = bitmaps(font)
    words = {language: _annotations(cldr, language) for language in LANGUAGES}
    sequences = sorted(s for s in images if all(s in words[language][0] and s in words[language][1] for language in LANGUAGES))
    ideas = _ideas(sequences, images)
    emoji = []
    for s in sequences:
        names = {language: words[language][0][s] for language in LANGUAGES}
        keywords = {la: tuple(k for k in words[la][1][s] if k != names[la]) for la in LANGUAGES}
        tones, people = [c for c in s if c in TONES], [PERSON[c] for c in s if c in PERSON]
        signs = ["woman" if c == FEMALE else "man" for c in s if c in (FEMALE, MALE) and len(s) > 1]
        emoji.append(Emoji(
            sequence=s, key=_key(s), idea=ideas[s], name_en=names["en"], name_zh=names["zh"],
            keywords_en=keywords["en"], keywords_zh=keywords["zh"], single=JOINER not in s and not tones,
            gender=signs[0] if signs else people[0] if len(people) == 1 else "" if people else "person",
            tone=tones[0] if len(tones) == 1 and len(s) > 1 else "",
        ))  # fmt: skip
    return _split(emoji, {s: hashlib.blake2b(images[s]).digest() for s in sequences})


def _key(sequence: str) -> str:
    return "-".join(f"{ord(c):x}" for c in sequence)


def _annotations(cldr: str, language: str) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """(names, keywords) by sequence; the plain annotations go before the derived ones."""
    from xml.etree import ElementTree

    names: dict[str, str] = {}
    keywords: dict[str, tuple[str, ...]] = {}
    for folder in ("annotations", "annotationsDerived"):
        path = Path(cldr) / folder / f"{language}.xml"
        try:
            rows = ElementTree.parse(found(str(path), "unicode-cldr-core", "cldr")).iter("annotation")
        except ElementTree.ParseError as error:
            raise ValueError(f"{path} is broken: {error}; install unicode-cldr-core again, or set the option 'cldr'") from None
        for row in rows:
            sequence, text = row.attrib["cp"].replace(VARIATION, ""), row.text or ""
            if row.get("type") == "tts":
                names.setdefault(sequence, text.strip())
            else:
                keywords.setdefault(sequence, tuple(word.strip() for word in text.split("|") if word.strip()))
    return names, keywords


@cache
def pictures(size: int = SIDE, font: str | None = None, cldr: str | None = None) -> np.ndarray:
    """uint8 [N, size, size, 3] over white, row i the picture of load_emoji(font, cldr)[i]: 128, or a side that divides it."""
    return drawn([e.sequence for e in load_emoji(font, cldr)], size, font or FONT)


# --- what is held out -----------------------------------------------------------------------------------------------------


def _bare(sequence: str) -> str:
    """The sequence without skin tone, gender and generation: siblings share it."""
    kept = "".join(c for c in sequence if c not in TONES and c not in (FEMALE, MALE, VARIATION, JOINER)) or sequence
    if JOINER in sequence:
        kept = "".join("\U0001f9d1" if c in PERSON else "\U0001f9d2" if c in CHILD else c for c in kept)
    return kept.translate(_SIBLINGS)


def _ideas(sequences: Iterable[str], images: dict[str, bytes]) -> dict[str, str]:
    """Sequence -> its idea: siblings, and whoever shares a picture with one of them (two flags, one design), joined until nothing moves."""
    idea = {s: _bare(s) for s in sequences}
    by_picture: defaultdict[bytes, list[str]] = defaultdict(list)
    for s in idea:
        by_picture[images[s]].append(s)
    parent = {bare: bare for bare in idea.values()}

    def root(bare: str) -> str:
        while parent[bare] != bare:
            bare = parent[bare]
        return bare

    for first, *others in by_picture.values():
        for other in others:
            low, high = sorted((root(idea[first]), root(idea[other])))
            parent[high] = low
    return {s: _key(root(bare)) for s, bare in idea.items()}


def _split(emoji: Sequence[Emoji], picture: dict[str, bytes]) -> tuple[Emoji, ...]:
    """The same emoji with their groups; a keyword that names something held out is no longer said of what is shown."""
    always = {e.idea for e in emoji if e.sequence in _ALWAYS_SHOWN}
    held_ideas = {e.idea for e in emoji if stable_hash("idea", e.idea) % 100 < 5} - always
    copies = defaultdict(list)
    for e in emoji:
        copies[picture[e.sequence]].append(e)
    combinations = [e for e in emoji if e.idea not in held_ideas and e.gender and e.tone and len(copies[picture[e.sequence]]) == 1]
    held = {e.key for e in combinations if stable_hash("combination", e.idea, e.gender, e.tone) % 100 < 8}
    shown = {(e.idea, e.gender) for e in emoji if e.tone and e.key not in held}
    toned = {(e.idea, e.tone) for e in emoji if e.key not in held}
    several = defaultdict(set)
    for e in combinations:
        several[e.idea].add(e.gender)
    held = {
        e.key for e in combinations
        if e.key in held and (e.idea, e.gender) in shown and (e.idea, e.tone) in toned and len(several[e.idea]) > 1
    }  # fmt: skip
    groups: dict[str, Group] = {
        e.key: "held_out_idea" if e.idea in held_ideas else "held_out_combination" if e.key in held else "train" for e in emoji
    }
    secret = {name.casefold() for e in emoji if groups[e.key] != "train" for name in (e.name_en, e.name_zh)}

    def placed(e: Emoji) -> Emoji:
        group = groups[e.key]
        if group != "train":
            return replace(e, group=group)
        english, chinese = (tuple(k for k in words if k.casefold() not in secret) for words in (e.keywords_en, e.keywords_zh))
        return replace(e, keywords_en=english, keywords_zh=chinese)

    return tuple(placed(e) for e in emoji)


# --- words ----------------------------------------------------------------------------------------------------------------

TEMPLATES = {
    "en": ("a picture of {}", "{} emoji", "an emoji of {}", "an icon of {}", "a drawing of {}", "a {}", "{}, white background"),
    "zh": ("{}的图片", "{}表情", "一张{}的图片", "{}的图标", "画一个{}", "一个{}", "{}，白色背景"),
}
_COMMA = {"en": ", ", "zh": "\uff0c"}


def caption(emoji: Emoji, rng: Any, language: str) -> str:
    """Half of the time the name alone; else a template, the name with keywords, several keywords, or (rarely, for it says little) one."""
    name, keywords, kind = emoji.name(language), list(emoji.keywords(language)), rng.random()
    if kind < 0.52 or (not keywords and kind >= 0.70):
        return name
    if kind < 0.70:
        filled = pick(rng, TEMPLATES[language]).format(name)
        return f"an{filled[1:]}" if filled.startswith(f"a {name}") and name[0] in "aeiouAEIOU" else filled
    for i in range(len(keywords) - 1):  # Fisher-Yates
        j = i + int(rng.random() * (len(keywords) - i))
        keywords[i], keywords[j] = keywords[j], keywords[i]
    if kind < 0.84:
        return _COMMA[language].join([name, *keywords[: 1 + int(rng.random() * 2)]])
    if kind < 0.95 and len(keywords) > 1:
        return _COMMA[language].join(keywords[: 2 + int(rng.random() * 3)])
    return keywords[0]


class EmojiSource:
    """Pairs. The training split alone shows ideas by `single_share`; the held-out split is shown evenly.

    single_share: share of the draws that single ideas (no skin tone, no joiner) get.  languages, english: which, and English's share.
    captions: "mix", "names", or "" for pictures alone.  group: of the held-out split, "held_out_idea" or "held_out_combination" alone.
    """

    name = "emoji"

    def __init__(
        self, *, size: int, split: str = "train", font: str | None = None, cldr: str | None = None, single_share: float = 0.67,
        languages: Sequence[str] = LANGUAGES, english: float = 0.55, captions: str = "mix", group: str | None = None,
    ) -> None:  # fmt: skip
        if not languages or set(languages) - set(LANGUAGES):
            raise ValueError(f"emoji languages {list(languages)}: there are {list(LANGUAGES)}")
        if captions not in ("mix", "names", ""):
            raise ValueError(f"emoji captions {captions!r}: there are 'mix', 'names' and '' (pictures alone)")
        if not 0 <= single_share <= 1 or not 0 <= english <= 1:
            raise ValueError(f"emoji single_share {single_share} and english {english} are shares, in 0..1")
        if group not in (None, "held_out_idea", "held_out_combination"):
            raise ValueError(f"emoji group {group!r}: there are 'held_out_idea' and 'held_out_combination'")
        self.emoji, self.captions, self.languages, self.english = load_emoji(font, cldr), captions, tuple(languages), english
        self._pictures = pictures(size, font, cldr) if size else None
        if split == "train":
            mine = [i for i, e in enumerate(self.emoji) if e.group == "train"]
            pools = [[i for i in mine if self.emoji[i].single], [i for i in mine if not self.emoji[i].single]]
            cards = shares([single_share, 1 - single_share], 100)
        else:
            pools = [[i for i, e in enumerate(self.emoji) if e.group == group or (group is None and e.group != "train")]]
            cards = (1,)
        self._pools, self._cards = [np.array(pool) for pool in pools], cards
        self.count = sum(len(pool) for pool in pools)

    def _pick(self, seed: int, position: int) -> int:
        which, turn = deal(seed, position, self._cards)
        pool = self._pools[which]
        return int(pool[place(stable_hash(seed, "pool", which), turn, len(pool))])

    def words(self, seed: int, position: int) -> str:
        if not self.captions:
            return ""
        emoji, rng = self.emoji[self._pick(seed, position)], draws(seed, "caption", position)
        language = ("en" if rng.random() < self.english else "zh") if len(self.languages) == 2 else self.languages[0]
        return emoji.name(language) if self.captions == "names" else caption(emoji, rng, language)

    def row(self, seed: int, position: int) -> Row:
        i = self._pick(seed, position)
        picture = None if self._pictures is None else self._pictures[i]
        return Row(picture, Prompt(text=self.words(seed, position)), f"emoji:{self.emoji[i].key}")

    def describe(self) -> dict[str, Any]:
        chosen = [self.emoji[i] for pool in self._pools for i in pool]
        groups = {group: sum(e.group == group for e in chosen) for group in ("train", "held_out_idea", "held_out_combination")}
        return {
            "pictures": self.count, "single": sum(e.single for e in chosen), "ideas": len({e.idea for e in chosen}),
            **{group: n for group, n in groups.items() if n},
        }  # fmt: skip
