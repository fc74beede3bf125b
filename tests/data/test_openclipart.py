"""Open Clip Art: on a small tree of the same shape as Debian's, and once on the real one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from triptych import data
from triptych.data import openclipart as O
from triptych.data._rdf import read
from triptych.data.artwork import FONT
from triptych.data.emoji import CLDR
from triptych.recipe import Data, Source

SVG = """<?xml version="1.0" encoding="UTF-8" standalone="no"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.0//EN" "http://www.w3.org/TR/2001/REC-SVG-20010904/DTD/svg10.dtd" [{entities}]>
<svg xmlns="http://www.w3.org/2000/svg"><metadata>
<rdf:RDF xmlns:cc="http://web.resource.org/cc/" xmlns:dc="http://purl.org/dc/elements/1.1/"
  xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><cc:Work rdf:about="">
<dc:title>{title}</dc:title><dc:description>{description}</dc:description><dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject>
<dc:publisher><cc:Agent><dc:title>Open Clip Art Library</dc:title></cc:Agent></dc:publisher>
<dc:creator><cc:Agent><dc:title>{creator}</dc:title></cc:Agent></dc:creator>
</cc:Work><cc:Work><dc:title>another</dc:title></cc:Work></rdf:RDF></metadata><path d="M 0 0"/></svg>
"""


class Tree:
    """png/ and svg/ side by side."""

    def __init__(self, root: Path) -> None:
        self.png, self.svg, self.n = root / "png", root / "svg", 0

    def add(self, stem: str, title: str = "", keywords: tuple[str, ...] = (), description: str = "", creator: str = "", **more) -> None:
        self.n += 1
        picture = more.get("picture") or self.picture(self.n)
        for folder, suffix in ((self.png, ".png"), (self.svg, ".svg")):
            (folder / stem).parent.mkdir(parents=True, exist_ok=True)
            if suffix == ".png":
                picture.save(f"{folder / stem}.png")
        items = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
        words = {"title": title, "keywords": items, "description": description, "creator": creator, "entities": more.get("entities", "")}
        (self.svg / f"{stem}.svg").write_text(SVG.format(**words), encoding="utf-8")

    @staticmethod
    def picture(n: int) -> Image.Image:
        """40 x 20, transparent, a bar whose left end is red and whose right end tells n."""
        picture = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
        draw = ImageDraw.Draw(picture)
        draw.rectangle((0, 5, 19, 14), fill=(255, 0, 0, 255))
        draw.rectangle((20, 5, 39, 14), fill=(0, n % 256, n // 256, 255))
        return picture

    def source(self, size: int = 0, split: str = "train", **options) -> O.OpenClipartSource:
        options = {"png": str(self.png), "svg": str(self.svg), "secret": False, **options}
        dataset = data.build(Data(sources=(Source(name="openclipart", options=options),), size=size), split=split)  # type: ignore[arg-type]
        return dataset.sources[0]  # type: ignore[return-value]

    def named(self) -> dict[str, O.Drawing]:
        return {drawing.files[0]: drawing for drawing in O.load_drawings(str(self.png), str(self.svg))[0]}


@pytest.fixture
def tree(tmp_path, monkeypatch) -> Tree:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Tree(tmp_path)


def fill(tree: Tree, n: int = 120) -> Tree:
    words = ["".join(chr(97 + i // 26**k % 26) for k in (1, 0)) for i in range(n)]
    for i, word in enumerate(words):
        tree.add(f"things/thing_{word}_{i:02}", f"thing {word}", (f"kind{word}", "one", "two", "three"), f"This is the thing {word}. More.")
    return tree


# --- words -----------------------------------------------------------------------------------------------------------------


def test_metadata_is_read(tree):
    tree.add("a/x", " A &amp;  B\n", ("cat", "", " big  dog "), "One. Two.", "Ann Bee")
    work = read(tree.svg / "a/x.svg")
    assert (work.title, work.description, work.creator, work.keywords) == ("A & B", "One. Two.", "Ann Bee", ["cat", "big dog"])


@pytest.mark.parametrize(("entities", "title"), [
    ('<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">', "&b;"),  # grows
    ('<!ENTITY secret SYSTEM "secret.txt">', "&secret;"),
    ('<!ENTITY % more SYSTEM "secret.txt">', "x"),
    (f'<!ENTITY long "{"x" * 2000}">', "&long;"),
])  # fmt: skip
def test_entities_are_refused_where_they_could_harm(tree, entities, title):
    tree.add("a/x", title, entities=entities)
    (tree.svg / "a/secret.txt").write_text("a secret")
    with pytest.raises(ValueError, match="is refused"):
        read(tree.svg / "a/x.svg")


def test_an_entity_that_names_a_namespace_is_taken(tree):
    tree.add("a/x", "cup of &drink;", entities='<!ENTITY drink "tea">')
    assert read(tree.svg / "a/x.svg").title == "cup of tea"


@pytest.mark.parametrize(("text", "message"), [
    ("<svg><metadata>", "no element found"), ("<svg/>", "no metadata"), ("", "no element found"),
    ("<svg>&nothing;</svg>", "undefined entity"), ("<svg>" + "<g/>" * 300_000, "first 1048576 bytes"),
])  # fmt: skip
def test_broken_metadata_is_named(tmp_path, text, message):
    (tmp_path / "x.svg").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "x.svg")


def test_a_file_that_breaks_after_its_metadata_still_tells(tree):
    tree.add("a/x", "cat")
    path = tree.svg / "a/x.svg"
    path.write_text(path.read_text().partition("</rdf:RDF>")[0])
    assert read(path).title == "cat"


def test_names(tree):
    tree.add("animals/bat_orlando_karam_", "bat", creator="Orlando Karam")
    tree.add("animals/cow_jean-victor_bali_01", "", creator="Jean-Victor Balin")
    tree.add("shapes/star_red", "Clipart by Ann Bee - RedStar02")
    tree.add("flags/signs/africa", "Africa")  # `flags` at the root of the tree is no folder of flags
    tree.add("signs/flags/asia/laos", "laos")
    tree.add("signs/flags/laos_flag", "Flag of Laos")
    keywords = ("hash(0x8a3ecd4)", "0x99", "11", "icons", "tea_cup", "Bob", "bob@tea.org")
    for i, name in enumerate(("editClear", "paste_01", "aiga_mail1")):
        tree.add(f"computer/icons/{name}", "Tea Theme", keywords, f"Tea {i}")
    for i in range(3):
        tree.add(f"cards/c_{'abc'[i]}x", "card", ("card", "game"))
    names = {file: drawing.name for file, drawing in tree.named().items()}
    assert names == {
        "animals/bat_orlando_karam_": "bat", "animals/cow_jean-victor_bali_01": "cow", "shapes/star_red": "red star",
        "flags/signs/africa": "africa", "signs/flags/asia/laos": "flag of laos", "signs/flags/laos_flag": "Flag of Laos",
        "computer/icons/editClear": "edit clear icon", "computer/icons/paste_01": "paste icon", "computer/icons/aiga_mail1": "mail icon",
        "cards/c_ax": "card", "cards/c_bx": "card", "cards/c_cx": "card",
    }  # fmt: skip
    assert tree.named()["computer/icons/paste_01"].keywords == ("tea cup", "bob")


def test_copies_are_one_drawing_with_the_words_of_all(tree):
    picture = Tree.picture(7)
    tree.add("food/pear", "Pear", ("fruit",), picture=picture)
    tree.add("plants/pear_2", "", ("plant", "fruit"), "A ripe green pear. And more.", picture=picture)
    ((_, pear),) = tree.named().items()
    assert pear.files == ("food/pear", "plants/pear_2") and pear.under("plants") and not pear.under("plan")
    assert (pear.name, pear.keywords, pear.sentence) == ("pear", ("fruit", "plant"), "A ripe green pear.")


def test_captions(tree):
    source = fill(tree).source()
    texts = [source.words(3, i) for i in range(4000)]
    named = {drawing.name: drawing for drawing in source.drawings}
    kinds = Counter(
        "name" if text in named else "sentence" if text.startswith("This is") else "more" if text.startswith("thing") else "keywords"
        for text in texts
    )
    for kind, share in {"name": 0.55, "more": 0.20, "keywords": 0.12, "sentence": 0.13}.items():
        assert abs(kinds[kind] / 4000 - share) < 0.03, kinds
    assert all(text.endswith(".") and text.count(".") == 1 for text in texts if text.startswith("This is"))
    assert all(source.words(3, i) == text for i, text in enumerate(texts[:50]))
    assert all(tree.source(captions="names").words(3, i) in named for i in range(50)) and tree.source(captions="").words(3, 0) == ""


# --- pictures ----------------------------------------------------------------------------------------------------------------


def test_split_and_pictures(tree):
    fill(tree)
    train, held = tree.source(32), tree.source(32, split="held_out")
    assert train.count + held.count == 120 and 1 <= held.count <= 14
    keys = [{source.row(0, i).key for i in range(source.count)} for source in (train, held)]
    assert len(keys[0]) == train.count and len(keys[1]) == held.count and not keys[0] & keys[1]
    row = train.row(0, 5)
    assert row.picture.shape == (32, 32, 3) and row.picture.dtype == np.uint8
    assert (row.picture[:8] == 255).all() and (row.picture[24:] == 255).all()  # the whole of it, over white, in the middle
    assert (row.picture[16, 1] == (255, 0, 0)).all() and row.picture[16, 30, 0] == 0  # not mirrored
    words = tree.source(0).row(0, 5)
    assert words.picture is None and (words.prompt.text, words.key) == (row.prompt.text, row.key)


def test_what_is_missing_or_broken_is_counted_and_named(tree, capsys):
    fill(tree, 500)
    (tree.png / "things/thing_aa_00.png").unlink()
    (tree.svg / "things/thing_ab_01.svg").write_text("<svg>")
    (tree.png / "things/thing_ac_02.png").write_bytes((tree.png / "things/thing_ac_02.png").read_bytes()[:60])
    Image.new("RGBA", (9, 9), (255, 255, 255, 60)).save(tree.png / "things/thing_ad_03.png")
    source = tree.source(16)
    assert source.broken == source.describe()["broken"]
    assert set(source.broken) == {"things/thing_aa_00.svg", "things/thing_ab_01.svg", "things/thing_ac_02.png", "things/thing_ad_03.png"}
    assert "no picture" in source.broken["things/thing_aa_00.svg"] and "over white" in source.broken["things/thing_ad_03.png"]
    said = capsys.readouterr().err
    assert "4 files are left out" in said and "thing_ab_01.svg (no element found" in said
    assert source.count + tree.source(16, split="held_out").count == 496
    assert capsys.readouterr().err == ""  # once
    for i in range(4, 8):
        (tree.png / f"things/thing_a{chr(97 + i)}_{i:02}.png").unlink()
    O._load.cache_clear()
    with pytest.raises(ValueError, match=r"8 files cannot be used: .*install openclipart-png and openclipart-svg again"):
        tree.source(16)


def test_options(tree):
    fill(tree)
    for i in range(10):
        tree.add(f"shapes/stars/star_{i}", "star", ("star",))
    assert tree.source(alike=3).describe()["more of the same name"] == 7
    only = tree.source(folders=["shapes/stars"])
    assert all(only.row(0, i).prompt.text == "star" for i in range(9))
    with pytest.raises(ValueError, match=r"no 'shapes/star'; did you mean 'shapes/stars'"):
        tree.source(folders=["shapes/star"])
    with pytest.raises(ValueError, match="captions 'all'"):
        tree.source(captions="all")
    with pytest.raises(ValueError, match="alike 0"):
        tree.source(alike=0)


def test_missing_packages_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere is missing: `sudo apt-get install openclipart-png openclipart-svg`.*option 'png'"):
        O.load_drawings(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no drawing in common: both are empty"):
        O.load_drawings(str(tmp_path), str(tmp_path))


# --- what is held out ----------------------------------------------------------------------------------------------------------


def test_whole_phrases_are_secret(tree, monkeypatch):
    monkeypatch.setattr(O, "secrets", lambda font, cldr: ((" palm tree ",), (" flag ", " spain "), (" fly ",)))
    fill(tree)
    secret = [
        ("plants/a", "Two palm-trees", ()), ("plants/palmTree2", "", ()), ("plants/b", "beach", ("palm_tree",)),
        ("signs/flags/x", "Galicia", ("spain",)), ("animals/flies", "insects", ()),
    ]  # fmt: skip
    for stem, title, keywords in secret:
        tree.add(stem, title, keywords)
    for stem, title, keywords in (("a/a", "palm of a tree", ()), ("a/b", "map of Spain", ()), ("a/c", "butterfly", ())):
        tree.add(stem, title, keywords)
    kept = [tree.source(secret=True, split=split) for split in ("train", "held_out")]
    assert all(source.describe()["named as something held out"] == 5 for source in kept)
    files = {source.drawings[i].files[0] for source in kept for i in source._rows}
    assert {"a/a", "a/b", "a/c"} <= files and not files & {stem for stem, _, _ in secret}


@pytest.mark.debian
@pytest.mark.skipif(
    not (Path(FONT).exists() and Path(CLDR).exists()), reason="sudo apt-get install fonts-noto-color-emoji unicode-cldr-core"
)
def test_secrets_are_the_held_out_emoji_in_the_languages_of_titles():
    names = O.secrets()
    assert {(" strawberry ",), (" fragola ",), (" flag ", " spain "), (" palm tree ",)} <= set(names)
    assert (" red apple ",) not in names and all(part.strip() for parts in names for part in parts)


# --- the real one ----------------------------------------------------------------------------------------------------------------


@pytest.mark.debian
@pytest.mark.skipif(
    not all(Path(path).exists() for path in (O.PNG, O.SVG, FONT, CLDR)),
    reason="sudo apt-get install openclipart-png openclipart-svg fonts-noto-color-emoji unicode-cldr-core",
)
def test_debians_own():
    source = O.OpenClipartSource(size=0)
    counts = source.describe()
    assert (counts["files"], counts["drawings"], counts["broken"]) == (8121, 6900, {})
    assert 4900 < source.count < 5100 and 200 < O.OpenClipartSource(size=0, split="held_out").count < 300
    secret = [" ".join(parts).split() for parts in O.secrets()]
    said = [source.words(1, i).lower() for i in range(source.count)]
    assert not [text for text in said for word in ("strawberry", "fragola", "duck", "pineapple") if word in text.split()]
    assert ["strawberry"] in secret and any("flag of ethiopia" in text for text in said)
    assert not [text for text in said if "hash(" in text or "@" in text or "Flat Icon Collection" in text or not text]
