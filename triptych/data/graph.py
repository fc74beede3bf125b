"""The graphs of a procedural world: up to four objects with colour, size, number and place.

A scene is a graph (`Scene`); its picture (`scenes.render`) and what can be said of it (`phrases.captions`) are functions of the graph.
Lengths are whole 32nds of the picture: at a side that 32 divides every object lands on whole pixels.

Held out by a stable hash, and never drawn or said in training: pairs of colour and shape, relations ("blue circle left of red
square", however it is phrased), and numbers of a shape. Every colour, shape, relation and number is shown in others.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from .index import pick, stable_hash

__all__ = [
    "BACKGROUNDS", "CLASSES", "COLORS", "CUTOUTS", "OPPOSITE", "RELATIONS", "SHAPES", "Object", "Scene", "held_out_pairs", "is_held_out",
    "random_scene",
]  # fmt: skip

GRID = 32
COLORS = {  # name -> (rgb, Chinese)
    "red": ((220, 38, 38), "红色"), "orange": ((249, 140, 22), "橙色"),
    "yellow": ((250, 212, 20), "黄色"), "green": ((34, 160, 70), "绿色"),
    "blue": ((37, 99, 235), "蓝色"), "purple": ((140, 60, 200), "紫色"),
    "pink": ((246, 132, 190), "粉色"), "brown": ((130, 78, 40), "棕色"),
    "black": ((20, 20, 24), "黑色"), "gray": ((140, 144, 150), "灰色"),
}  # fmt: skip
SHAPES = {  # name -> (plural, Chinese)
    "circle": ("circles", "圆形"), "square": ("squares", "方块"), "triangle": ("triangles", "三角形"), "star": ("stars", "星形"),
    "heart": ("hearts", "心形"), "diamond": ("diamonds", "菱形"), "cross": ("crosses", "十字形"), "ring": ("rings", "圆环"),
}  # fmt: skip
CUTOUTS = {  # name -> (code point, plural, Chinese, measure word); all of the emoji training split
    "cat": ("\U0001f431", "cats", "猫", "只"), "dog": ("\U0001f436", "dogs", "狗", "只"),
    "panda": ("\U0001f43c", "pandas", "熊猫", "只"), "frog": ("\U0001f438", "frogs", "青蛙", "只"),
    "pig": ("\U0001f437", "pigs", "猪", "头"), "lion": ("\U0001f981", "lions", "狮子", "头"),
    "rabbit": ("\U0001f430", "rabbits", "兔子", "只"), "turtle": ("\U0001f422", "turtles", "乌龟", "只"),
    "snail": ("\U0001f40c", "snails", "蜗牛", "只"), "bee": ("\U0001f41d", "bees", "蜜蜂", "只"),
    "whale": ("\U0001f433", "whales", "鲸鱼", "头"), "penguin": ("\U0001f427", "penguins", "企鹅", "只"),
    "owl": ("\U0001f989", "owls", "猫头鹰", "只"), "elephant": ("\U0001f418", "elephants", "大象", "头"),
    "apple": ("\U0001f34e", "apples", "苹果", "个"), "banana": ("\U0001f34c", "bananas", "香蕉", "根"),
    "lemon": ("\U0001f34b", "lemons", "柠檬", "个"), "pear": ("\U0001f350", "pears", "梨", "个"),
    "watermelon": ("\U0001f349", "watermelons", "西瓜", "块"), "carrot": ("\U0001f955", "carrots", "胡萝卜", "根"),
    "mushroom": ("\U0001f344", "mushrooms", "蘑菇", "个"), "pizza": ("\U0001f355", "pizzas", "披萨", "块"),
    "cookie": ("\U0001f36a", "cookies", "曲奇", "块"), "doughnut": ("\U0001f369", "doughnuts", "甜甜圈", "个"),
    "car": ("\U0001f697", "cars", "汽车", "辆"), "bus": ("\U0001f68c", "buses", "公交车", "辆"),
    "bicycle": ("\U0001f6b2", "bicycles", "自行车", "辆"), "rocket": ("\U0001f680", "rockets", "火箭", "枚"),
    "airplane": ("\u2708", "airplanes", "飞机", "架"), "sailboat": ("\u26f5", "sailboats", "帆船", "艘"),
    "house": ("\U0001f3e0", "houses", "房子", "座"), "tree": ("\U0001f333", "trees", "树", "棵"),
    "flower": ("\U0001f33b", "flowers", "花", "朵"), "sun": ("\u2600", "suns", "太阳", "个"),
    "soccer ball": ("\u26bd", "soccer balls", "足球", "个"), "book": ("\U0001f4d5", "books", "书", "本"),
    "key": ("\U0001f511", "keys", "钥匙", "把"), "bell": ("\U0001f514", "bells", "铃铛", "个"),
    "guitar": ("\U0001f3b8", "guitars", "吉他", "把"), "gift": ("\U0001f381", "gifts", "礼物", "份"),
}  # fmt: skip
CLASSES = (*SHAPES, *CUTOUTS)  # the class numbers of boxes
RELATIONS = ("left", "right", "above", "below")  # objects[0] stands there, seen from objects[1]
BACKGROUNDS = {  # name -> (rgb, Chinese)
    "white": ((255, 255, 255), "白色"), "pale yellow": ((255, 247, 214), "浅黄色"), "pale blue": ((219, 236, 255), "浅蓝色"),
    "pale green": ((222, 245, 222), "浅绿色"), "pale pink": ((255, 228, 238), "浅粉色"),
}  # fmt: skip
SIZES = {"small": (7, 9), "medium": (11, 13), "large": (15, 18)}  # sides in 32nds of the picture; "medium" is not said
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}


@dataclass(frozen=True, kw_only=True)
class Object:
    """shape: of SHAPES or CUTOUTS.  color: of COLORS, None for a cut-out.  cx, cy, r: centre and half side, in 0..1 of the picture."""

    shape: str
    color: str | None
    size: str
    cx: float
    cy: float
    r: float

    @property
    def kind(self) -> tuple[str, str | None, str]:
        return self.shape, self.color, self.size


@dataclass(frozen=True, kw_only=True)
class Scene:
    """relation: of objects[0], seen from objects[1]; None where places are left open. Objects never overlap."""

    objects: tuple[Object, ...]
    relation: str | None = None
    background: str = "white"

    def groups(self) -> list[tuple[Object, int]]:
        """Equal objects together, in order: (one of them, how many)."""
        counts: dict[tuple, list] = {}
        for thing in self.objects:
            counts.setdefault(thing.kind, [thing, 0])[1] += 1
        return [(thing, n) for thing, n in counts.values()]


# --- held-out compositions ------------------------------------------------------------------------------------------------

# Shown by an emoji of the training split (yellow star, red ring, black plus sign...), so that holding them out here would be no test.
_SHOWN_BY_EMOJI = {
    *((color, shape) for color in COLORS if color not in ("pink", "gray") for shape in ("heart", "circle", "square")),
    ("orange", "diamond"), ("blue", "diamond"), ("red", "triangle"), ("yellow", "star"), ("red", "ring"), ("red", "cross"),
    ("black", "cross"), ("pink", "heart"), ("red", "diamond"), ("yellow", "triangle"),
}  # fmt: skip


@cache
def held_out_pairs() -> frozenset[tuple[str, str]]:
    """12 of the 80 (colour, shape) pairs; no colour loses more than two, no shape more than three."""
    free = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in _SHOWN_BY_EMOJI and (c, s) != ("green", "triangle")]
    held: set[tuple[str, str]] = set()
    for color, shape in sorted(free, key=lambda pair: stable_hash("pair", *pair)):
        if len(held) < 12 and sum(c == color for c, _ in held) < 2 and sum(s == shape for _, s in held) < 3:
            held.add((color, shape))
    return frozenset(held)


@cache
def _number_held_out(shape: str, n: int) -> bool:
    """Of 45 % of the shapes one number of the three: 15 % of all."""
    return stable_hash("number", shape) % 100 < 45 and n == 2 + stable_hash("which number", shape) % 3


def _relation_held_out(a: Object, relation: str, b: Object) -> bool:
    if relation in ("right", "below"):  # "a right of b" is "b left of a": one composition
        a, relation, b = b, OPPOSITE[relation], a
    return stable_hash("relation", a.color or "", a.shape, relation, b.color or "", b.shape) % 100 < 15


def is_held_out(scene: Scene) -> bool:
    """Whether the scene holds a composition that training never shows."""
    groups = scene.groups()
    return (
        any((thing.color, thing.shape) in held_out_pairs() for thing, _ in groups)
        or any(n > 1 and _number_held_out(thing.shape, n) for thing, n in groups)
        or (scene.relation is not None and _relation_held_out(scene.objects[0], scene.relation, scene.objects[1]))
    )


def _may_be_shown(scene: Scene) -> bool:
    """Whether training may draw it: nothing held out is said, and no two objects stand by chance in a relation that is held out."""
    if is_held_out(scene):
        return False
    pairs = itertools.combinations(scene.objects, 2) if scene.relation is None and len(scene.groups()) > 1 else ()
    return not any(a.kind != b.kind and _relation_held_out(a, _stands(a, b), b) for a, b in pairs)


def _stands(a: Object, b: Object) -> str:
    """Where a stands, seen from b, along the axis on which they are farther apart."""
    dx, dy = a.cx - b.cx, a.cy - b.cy
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


# --- graphs ---------------------------------------------------------------------------------------------------------------


def random_scene(
    rng: random.Random, held_out: bool | None = False, *, cutouts: Sequence[str] = (), backgrounds: float = 0.0, form: str | None = None,
) -> Scene:  # fmt: skip
    """A scene that holds no held-out composition, or (held_out) at least one; None: whatever comes.

    cutouts: names of CUTOUTS that may appear.  backgrounds: share of scenes on a pale colour.
    form: "one", "number", "relation" or "list"; None draws one.
    """
    kind, scene = form or _pick_form(rng), None
    numbers = pick(rng, {"one": ((1,),), "number": ((2,), (3,), (4,)), "relation": ((1, 1),), "list": _LISTS}[kind])
    allowed = {None: lambda _: True, True: is_held_out, False: _may_be_shown}[held_out]
    while scene is None or not allowed(scene):
        if kind == "relation":
            scene = _related(rng, cutouts)
        else:
            # A single cut-out would be the emoji again, only smaller: two pictures for one caption.
            things = [_thing(rng, cutouts if kind != "one" else (), sum(numbers)) for _ in numbers]
            unlike = len({thing[:2] for thing in things}) == len(things)
            scene = _placed(rng, [thing for thing, n in zip(things, numbers, strict=True) for _ in range(n)]) if unlike else None
    background = pick(rng, list(BACKGROUNDS)[1:]) if rng.random() < backgrounds else "white"
    return Scene(objects=scene.objects, relation=scene.relation, background=background)


def _pick_form(rng: random.Random) -> str:
    u = rng.random()
    return "one" if u < 0.25 else "number" if u < 0.45 else "relation" if u < 0.85 else "list"


_LISTS = ((1, 1), (1, 1), (1, 1, 1), (1, 1, 1), (1, 1, 1, 1), (2, 1), (1, 2), (3, 1), (2, 2))  # how many of each kind
_Thing = tuple[str, "str | None", str, int]  # shape, colour, size, side in 32nds


def _thing(rng: random.Random, cutouts: Sequence[str], company: int = 1) -> _Thing:
    """company: how many objects share the picture; from three on none is large."""
    u = rng.random()
    size = "small" if u < 0.2 else "large" if u < 0.4 and company < 3 else "medium"
    low, high = SIZES[size]
    high = low if company == 4 else high
    side = low + int(rng.random() * (high - low + 1))
    if cutouts and rng.random() < 0.2:
        return pick(rng, cutouts), None, size, side
    return pick(rng, list(SHAPES)), pick(rng, list(COLORS)), size, side


def _object(thing: _Thing, left: int, top: int) -> Object:
    shape, color, size, side = thing
    return Object(shape=shape, color=color, size=size, cx=(left + side / 2) / GRID, cy=(top + side / 2) / GRID, r=side / 2 / GRID)


def _between(rng: random.Random, low: int, high: int) -> int:
    return low + int(rng.random() * (high - low + 1))


def _placed(rng: random.Random, things: list[_Thing]) -> Scene | None:
    """Anywhere, a gap of one apart; None if there is no room."""
    taken: list[tuple[int, int, int]] = []
    for thing in things:
        side = thing[3]
        for _ in range(20):
            x, y = _between(rng, 1, GRID - 1 - side), _between(rng, 1, GRID - 1 - side)
            if all(x > a + d or a > x + side or y > b + d or b > y + side for a, b, d in taken):
                taken.append((x, y, side))
                break
        else:
            return None
    return Scene(objects=tuple(_object(thing, x, y) for thing, (x, y, _) in zip(things, taken, strict=True)))


def _related(rng: random.Random, cutouts: Sequence[str]) -> Scene | None:
    """Two different things side by side or one above the other, the other axis within an eighth of the picture."""
    a, b = _thing(rng, cutouts), _thing(rng, cutouts)
    if a[:2] == b[:2] or a[3] + b[3] > GRID - 3:
        return None
    return _beside(rng, a, b, pick(rng, RELATIONS))


def _beside(rng: random.Random, a: _Thing, b: _Thing, relation: str) -> Scene:
    """a left of, right of, above or below b; both sides together are at most GRID - 3."""
    first, second = (a, b) if relation in ("left", "above") else (b, a)
    low = _between(rng, 1, GRID - 2 - first[3] - second[3])
    high = _between(rng, low + first[3] + 1, GRID - 1 - second[3])
    middle = _between(rng, 12, 20)
    across = [min(max(middle - t[3] // 2 + _between(rng, -2, 2), 1), GRID - 1 - t[3]) for t in (first, second)]
    places = [(low, across[0]), (high, across[1])]
    if relation in ("above", "below"):
        places = [(x, y) for y, x in places]
    objects = [_object(t, *place) for t, place in zip((first, second), places, strict=True)]
    return Scene(objects=tuple(objects if first is a else reversed(objects)), relation=relation)
