"""What can be said of a scene graph: several phrasings in each language, every one of them true."""

from __future__ import annotations

from .graph import BACKGROUNDS, COLORS, CUTOUTS, OPPOSITE, SHAPES, Object, Scene

__all__ = ["captions"]

_NUMBERS = {"en": ("", "one", "two", "three", "four"), "zh": ("", "一", "两", "三", "四")}
_SIZE_ZH = {"small": "小", "medium": "", "large": "大"}


def captions(scene: Scene, language: str) -> list[str]:
    """All phrasings in "en" or "zh", the plainest first. "medium" is never said; every other property always is."""
    said = _english(scene) if language == "en" else _chinese(scene)
    if scene.background == "white":
        return said
    if language == "en":
        return [f"{text} on a {scene.background} background" for text in said]
    return [f"{text}，{BACKGROUNDS[scene.background][1]}背景" for text in said]


# --- English --------------------------------------------------------------------------------------------------------------


def _noun_en(thing: Object, plural: bool = False) -> str:
    name = thing.shape if not plural else SHAPES[thing.shape][0] if thing.color is not None else CUTOUTS[thing.shape][1]
    return " ".join(word for word in ("" if thing.size == "medium" else thing.size, thing.color or "", name) if word)


def _some_en(thing: Object, n: int = 1) -> str:
    if n > 1:
        return f"{_NUMBERS['en'][n]} {_noun_en(thing, plural=True)}"
    noun = _noun_en(thing)
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _english(scene: Scene) -> list[str]:
    groups = scene.groups()
    if scene.relation is None:
        if len(groups) == 1:
            thing, n = groups[0]
            some, bare = _some_en(thing, n), _noun_en(thing, n > 1)
            if n == 1:
                return [some, f"one {bare}", f"there is {some}", f"a picture of {some}"]
            return [some, f"{n} {bare}", f"there are {some}", f"a picture of {some}"]
        parts = [_some_en(thing, n) for thing, n in groups]
        return [f"{', '.join(order[:-1])} and {order[-1]}" for order in (parts, parts[::-1])] + [", ".join(parts)]
    a, b, other = _some_en(scene.objects[0]), _some_en(scene.objects[1]), OPPOSITE[scene.relation]
    if scene.relation in ("left", "right"):
        near, far = scene.relation, other
        return [
            f"{a} {near} of {b}", f"{a} to the {near} of {b}", f"{a} on the {near} of {b}", f"{b} with {a} to its {near}",
            f"{b} {far} of {a}", f"{b} to the {far} of {a}", f"{a} on the {near} and {b} on the {far}",
        ]  # fmt: skip
    under = {"above": ("above", "over", "on top"), "below": ("below", "under", "at the bottom")}
    near, far = under[scene.relation], under[other]
    return [
        f"{a} {near[0]} {b}", f"{a} {near[1]} {b}", f"{b} with {a} {near[0]} it", f"{b} {far[0]} {a}", f"{b} {far[1]} {a}",
        f"{a} {near[2]} and {b} {far[2]}",
    ]  # fmt: skip


# --- Chinese --------------------------------------------------------------------------------------------------------------


def _noun_zh(thing: Object, short: bool = True) -> str:
    size = _SIZE_ZH[thing.size]
    if thing.color is None:
        name = CUTOUTS[thing.shape][2]
        return f"{size}的{name}" if size else name
    name = SHAPES[thing.shape][1]
    color = COLORS[thing.color][1]
    return f"{color}{size}{name}" if short else f"{size}的{color}{name}" if size else f"{color}的{name}"


def _some_zh(thing: Object, n: int = 1, short: bool = True) -> str:
    measure = "个" if thing.color is not None else CUTOUTS[thing.shape][3]
    return f"{_NUMBERS['zh'][n]}{measure}{_noun_zh(thing, short)}"


def _chinese(scene: Scene) -> list[str]:
    groups = scene.groups()
    if scene.relation is None:
        if len(groups) == 1:
            thing, n = groups[0]
            some = _some_zh(thing, n, False)
            return [some, _some_zh(thing, n), f"{some}的图片", f"图中有{some}"]
        parts, short = [_some_zh(thing, n, False) for thing, n in groups], [_some_zh(thing, n) for thing, n in groups]
        return [f"{'、'.join(order[:-1])}和{order[-1]}" for order in (parts, short, short[::-1])] + ["，".join(short)]
    zh = {"left": ("左边", "左侧"), "right": ("右边", "右侧"), "above": ("上面", "上方"), "below": ("下面", "下方")}
    (near, near2), (far, far2) = zh[scene.relation], zh[OPPOSITE[scene.relation]]
    a, b = _noun_zh(scene.objects[0]), _noun_zh(scene.objects[1])
    one_a, one_b = _some_zh(scene.objects[0]), _some_zh(scene.objects[1], short=False)
    return [
        f"{b}{near}有{one_a}", f"{a}在{b}的{near}", f"{a}在{b}{near2}", f"{b}的{near}是{one_a}", f"{b}在{a}的{far}", f"{a}{far2}有{one_b}",
        f"{near}是{a}，{far}是{b}",
    ]  # fmt: skip
