"""The scenes' own sentences read back: words, English or Chinese, to a graph of what they say.

    scene_of("a red circle left of a blue square")   -> Scene, placed somewhere that fits
    scene_of("三只猫，浅蓝色背景")
    scene_of("democracy")                            -> None: nothing of this world is named

Every phrasing of `phrases.captions` is read to the groups, the relation and the background it was made from; of "b right of a" the
relation is b's, which is the same composition. Of other sentences that is read which is known, and the rest is passed over: a relation
of more than two single things, a property said after its noun, a colour of an emoji. What a sentence leaves open is drawn from the
seed: places, the exact size, the colour of a shape that has none ("a circle").
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from .graph import BACKGROUNDS, COLORS, CUTOUTS, GRID, SHAPES, SIZES, Scene, _beside, _between, _placed
from .index import draws, pick

__all__ = ["Said", "Thing", "read", "scene_of"]


@dataclass(frozen=True, kw_only=True)
class Thing:
    """count things of one kind.  color: of COLORS; None for a cut-out, and for a shape whose colour was not said."""

    shape: str
    color: str | None
    size: str = "medium"
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Said:
    """relation: of things[0], seen from things[1]; None where none was said."""

    things: tuple[Thing, ...]
    relation: str | None = None
    background: str = "white"


def scene_of(text: str, seed: int = 0) -> Scene | None:
    """A scene of which the text is true; None where the words name nothing of the scenes' world.

    Things that have no room at their own size are made smaller. Raises ValueError for more of them than fit at all.
    """
    said = read(text)
    if said is None:
        return None
    rng = draws(seed, "read", text)
    things = [(t.shape, t.color or (pick(rng, list(COLORS)) if t.shape in SHAPES else None), t.size) for t in said.things]
    every = [kind for kind, thing in zip(things, said.things, strict=True) for _ in range(thing.count)]
    for attempt in range(300):
        shrunk = 0.9 ** (attempt // 20)
        sides = [max(3, round(shrunk * side)) for side in _sides(rng, [size for *_, size in every])]
        sized = [(*kind, side) for kind, side in zip(every, sides, strict=True)]
        if said.relation:
            scene = _beside(rng, sized[0], sized[1], said.relation) if sized[0][3] + sized[1][3] <= GRID - 3 else None
        else:
            scene = _placed(rng, sized)
        if scene is not None:
            return Scene(objects=scene.objects, relation=said.relation, background=said.background)
    raise ValueError(f"{text!r} speaks of {len(every)} things; so many do not fit into one scene, say fewer")


def _sides(rng: random.Random, sizes: Sequence[str]) -> list[int]:
    """In 32nds of the picture, as random_scene draws them."""
    return [_between(rng, low, low if len(sizes) == 4 else high) for low, high in (SIZES[size] for size in sizes)]


# --- reading --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Word:
    kind: str  # "number", "size", "color", "noun" or "place"
    means: str
    start: int
    end: int


def read(text: str) -> Said | None:
    """What a sentence says; Chinese where there is a Chinese character in it. None where it names nothing of the scenes' world."""
    chinese = bool(re.search(r"[一-鿿]", text))
    background = _background(chinese).search(text)
    if background:  # cut out, so that its colour is nobody's
        text = text[: background.start()] + " ; " + text[background.end() :]
    words = _words(text, chinese)
    nouns, things, said = [], [], {}
    for word in words:
        if word.kind == "noun":
            shape, _, plural = word.means.partition("/")
            many = max(1, int(said.get("number", 2 if plural else 1)))
            color = said.get("color") if shape in SHAPES else None
            things.append(Thing(shape=shape, color=color, size=said.get("size", "medium"), count=many))
            nouns.append(word)
        said = {**said, word.kind: word.means} if word.kind in ("number", "size", "color") else {}
    if not things:
        return None
    relation = None
    if len(things) == 2 and all(thing.count == 1 for thing in things):
        second, relation = _relation(words, nouns[0], nouns[1], chinese, text)
        things = things[::-1] if second else things
    name = next((name for name in BACKGROUNDS if background and background["name"].lower() in (name, BACKGROUNDS[name][1])), "white")
    return Said(things=tuple(things), relation=relation, background=name)


def _relation(words: Sequence[_Word], a: _Word, b: _Word, chinese: bool, text: str) -> tuple[bool, str | None]:
    """(is it the second thing that is placed, where it is, seen from the other)."""
    places = [word for word in words if word.kind == "place"]
    before = [word.means for word in places if word.end <= a.start]
    between = [word.means for word in places if a.end <= word.start and word.end <= b.start]
    after = [word.means for word in places if b.end <= word.start]
    if before:  # "left is a, right is b"; "above a there is b"
        return not between, before[0]
    if between:  # "a left of b", "a on the left, b on the right"; but "a左边有b": left of a there is b
        return chinese and not after, between[0]
    if after:  # "a with b to its left"; but "a在b的左边": a is at b's left
        return not chinese and " with " in text[a.end : b.start].lower(), after[0]
    return False, None


def _words(text: str, chinese: bool) -> list[_Word]:
    """The words that are known, in order, the longest where several begin at one place."""
    pattern, lexicon = _lexicon(chinese)
    found = []
    for hit in pattern.finditer(text):
        kind, means = ("number", hit.group()) if hit.group().isdecimal() else lexicon[" ".join(hit.group().lower().split())]
        found.append(_Word(kind, means, hit.start(), hit.end()))
    return found


@cache
def _lexicon(chinese: bool) -> tuple[re.Pattern[str], dict[str, tuple[str, str]]]:
    """What finds the known words, and what each is: (kind, meaning)."""
    lexicon = _chinese() if chinese else _english()
    known = sorted(lexicon, key=len, reverse=True)
    if chinese:
        return re.compile("|".join([*map(re.escape, known), r"\d+"])), lexicon
    words = [re.escape(word).replace(r"\ ", r"\s+") for word in known]
    return re.compile(rf"(?<!\w)(?:{'|'.join(words)}|\d+)(?!\w)", re.IGNORECASE), lexicon


_NUMBERS_EN = {"a": 1, "an": 1, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_NUMBERS_ZH = {"一": 1, "两": 2, "二": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7, "八": 8, "九": 9}
_SIZES_EN = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge")}
_PLACES_EN = {
    "left": ("left",), "right": ("right",), "above": ("above", "over", "on top of", "on top", "at the top", "atop"),
    "below": ("below", "under", "underneath", "beneath", "at the bottom"),
}  # fmt: skip
_OTHER_EN = {"square": ("box",), "diamond": ("rhombus",), "doughnut": ("donut",), "airplane": ("plane",), "rabbit": ("bunny",)}
_OTHER_ZH = {
    "circle": ("圆圈", "圆"), "square": ("正方形", "方形"), "triangle": ("三角",), "star": ("星星", "五角星"), "heart": ("爱心", "红心"),
    "cross": ("十字",), "ring": ("圆环形", "环形"), "cat": ("猫咪",), "dog": ("狗狗",), "rabbit": ("兔",), "whale": ("鲸",),
    "bee": ("蜂",), "bicycle": ("单车",), "bus": ("巴士", "公共汽车"),
}  # fmt: skip


def _english() -> dict[str, tuple[str, str]]:
    lexicon = {word: ("number", str(n)) for word, n in _NUMBERS_EN.items()}
    lexicon |= _each("size", _SIZES_EN) | _each("place", _PLACES_EN)
    lexicon |= {color: ("color", color) for color in COLORS} | {"grey": ("color", "gray")}
    for shape, plural in [*((s, said[0]) for s, said in SHAPES.items()), *((s, said[1]) for s, said in CUTOUTS.items())]:
        lexicon |= {shape: ("noun", shape), plural: ("noun", f"{shape}/plural")}
    return lexicon | _each("noun", _OTHER_EN)


def _chinese() -> dict[str, tuple[str, str]]:
    lexicon = {word: ("number", str(n)) for word, n in _NUMBERS_ZH.items()}
    lexicon |= {"小": ("size", "small"), "大": ("size", "large")}
    sides = {"left": "左", "right": "右", "above": "上", "below": "下"}
    lexicon |= {side + end: ("place", means) for means, side in sides.items() for end in "边侧面方"}
    for color, (_, zh) in COLORS.items():
        lexicon |= {zh: ("color", color), zh[0]: ("color", color)}
    lexicon |= {said[1]: ("noun", shape) for shape, said in SHAPES.items()} | {said[2]: ("noun", s) for s, said in CUTOUTS.items()}
    return lexicon | _each("noun", _OTHER_ZH)


def _each(kind: str, words: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, str]]:
    return {word: (kind, means) for means, every in words.items() for word in every}


@cache
def _background(chinese: bool) -> re.Pattern[str]:
    if chinese:
        return re.compile(rf"在?(?P<name>{'|'.join(zh for _, zh in BACKGROUNDS.values())})的?背景[上中下前里]?")
    return re.compile(rf"\b(?:on|with|against|over)\s+(?:an?|the)\s+(?P<name>{'|'.join(BACKGROUNDS)})\s+background\b", re.IGNORECASE)
