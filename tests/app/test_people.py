"""The people's page: in a real browser a rater answers twenty pairs, reloads in between, and the numbers are right."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from triptych.app import people

COLORS = {"secret-red": (200, 0, 0), "secret-blue": (0, 0, 200)}  # a model's pictures are of its colour


def picture(model: str, n: int) -> bytes:
    """Of the model's colour, with its name in a text chunk, as a generated PNG has it."""
    text, out = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text("Model", model)
    red, green, blue = COLORS[model]
    Image.new("RGBA", (32, 32), (red, green + n, blue, 255)).save(out, "PNG", pnginfo=text)
    return out.getvalue()


def pairs(n: int = 20) -> list[people.Pair]:
    red, blue = COLORS
    return [
        people.Pair(
            id=f"p{i}", prompt=f"prompt {i}: <b>一只猫</b></script>", category=("text", "colors")[i % 2],
            left=picture(red, i), right=picture(blue, i), model_left=red, model_right=blue,
        )
        for i in range(n)
    ]  # fmt: skip


def data_of(page: Path) -> dict:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S).group(1))  # type: ignore[union-attr]


def test_page_names_no_model_and_the_key_does(tmp_path):
    page = tmp_path / "out" / "people.html"
    key = people.write_page(page, pairs(), "Which one?")
    assert key == tmp_path / "out" / "people.key.json"
    text, said, known = page.read_text(encoding="utf-8"), data_of(page), json.loads(key.read_text(encoding="utf-8"))
    assert "secret" not in text and "colors" not in text.split("</style>")[1] and '"p0"' not in text
    assert known["page"] == said["page"] and set(known["pairs"]) == {pair["pair"] for pair in said["pairs"]}
    sides = []
    for pair in said["pairs"]:
        for side in "ab":
            png = base64.b64decode(pair[side].partition(",")[2])
            image = Image.open(io.BytesIO(png))
            model = known["pairs"][pair["pair"]][side]
            assert image.info == {} and b"secret" not in png and image.getpixel((0, 0))[::2] == COLORS[model][::2]
            sides.append(side + model)
    assert 3 <= sides.count("asecret-red") <= 17  # drawn pair by pair
    assert [pair["prompt"] for pair in said["pairs"]].count("prompt 3: <b>一只猫</b></script>") == 1
    people.write_page(tmp_path / "again.html", pairs(), "Which one?")
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    assert not re.search(r"https?:|//[a-z]", text.replace("http-equiv", ""))  # nothing is fetched


def test_what_is_wrong_with_pairs_is_said(tmp_path):
    good = pairs(2)
    for wrong, message in [
        ([], "a pair of pictures at least"), ([good[0], good[0]], "twice: 'p0'"),
        ([{**good[0], "model_right": "secret-red"}], "beside itself"),
        ([{**good[0], "left": b"no picture"}], "'p0' holds bytes that are no picture"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            people.write_page(tmp_path / "x.html", wrong, "")
    assert not list(tmp_path.iterdir())
    people.write_page(tmp_path / "x.html", good, "")
    (tmp_path / "x.html").unlink()
    with pytest.raises(FileExistsError, match=r"x\.key\.json is there already"):
        people.write_page(tmp_path / "x.html", good, "")
    assert not (tmp_path / "x.html").exists()


def answers(page: Path, key: Path, prefer: str, words: str = "same", /, **more) -> Path:
    known = json.loads(key.read_text(encoding="utf-8"))
    side = {name: next(s for s in "ab" if pair[s] == prefer) for name, pair in known["pairs"].items()}
    given = [{"pair": name, "quality": s, "words": words, "seconds": 1.5} for name, s in side.items()]
    file = page.with_name("answers.json")
    file.write_text(json.dumps({"format": 1, "page": known["page"], "rater": "r", "answers": given, **more}), encoding="utf-8")
    return file


def test_answers_get_their_models_back(tmp_path):
    page = tmp_path / "p.html"
    key = people.write_page(page, pairs(6), "")
    (read,) = people.read_answers(answers(page, key, "secret-red"), key)
    assert read["models"] == {"A": "secret-blue", "B": "secret-red"} and read["rater"] == "r" and len(read["answers"]) == 6
    assert all(one["quality"] == "B" and one["words"] == "same" for one in read["answers"])
    assert {(one["pair"], one["category"]) for one in read["answers"]} == {(f"p{i}", ("text", "colors")[i % 2]) for i in range(6)}
    for more, message in [
        ({"page": "else"}, "page 'else'"), ({"format": 2}, "none of the people's page's"), ({"rater": None}, "lacks the rater"),
        ({"answers": [{"pair": "?"}]}, r"answers\[0\] is about a pair"), ({"answers": ["?"]}, r"answers\[0\] is about a pair"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            people.read_answers(answers(page, key, "secret-red", **more), key)
    with pytest.raises(ValueError, match=r"answers\[0\]\.words = 'both'; there are: a, b, same"):
        people.read_answers(answers(page, key, "secret-red", "both"), key)
    page.with_name("answers.json").write_text("{")
    with pytest.raises(ValueError, match=r"answers\.json is no JSON"):
        people.read_answers(page.with_name("answers.json"), key)


# --- in a browser ------------------------------------------------------------------------------------------------------------


class Rater:
    """Looks at the pictures' colours alone, as a person would: it knows neither ids nor sides."""

    def __init__(self, browser, page: Path, locale: str = "en-US") -> None:
        self.context = browser.new_context(locale=locale, accept_downloads=True, offline=True, viewport={"width": 1000, "height": 900})
        self.page, self.faults = self.context.new_page(), []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: self.faults.append(message.text) if message.type == "error" else None)
        self.page.goto(page.as_uri())

    def colors(self) -> list[str]:
        """Which model's picture is on the left and on the right."""
        seen = self.page.evaluate(
            """async () => Promise.all(["left", "right"].map(async id => {
                const image = document.getElementById(id); await image.decode();
                const canvas = document.createElement("canvas"); canvas.width = canvas.height = 1;
                const context = canvas.getContext("2d"); context.drawImage(image, 0, 0);
                return Array.from(context.getImageData(0, 0, 1, 1).data)[0] > 100; }))"""
        )
        red, blue = COLORS
        return [red if is_red else blue for is_red in seen]

    def prompt(self) -> str:
        return self.page.inner_text("#prompt")

    def save(self, button: str, folder: Path) -> Path:
        with self.page.expect_download() as caught:
            self.page.click(button)
        file = folder / caught.value.suggested_filename
        caught.value.save_as(file)
        return file


def test_a_rater_goes_through_twenty_pairs(browser, tmp_path):
    key = people.write_page(tmp_path / "people.html", pairs(), "Which one?")
    rater, expected, sides, order = Rater(browser, tmp_path / "people.html"), {}, [], []
    page = rater.page
    assert page.title() == "Which one?" and page.inner_text("#quality legend") == "Which is the better picture?"
    for i in range(20):
        assert page.inner_text("#count") == f"{i + 1} / 20" and page.is_disabled("#next") and "secret" not in page.inner_text("body")
        colors, prompt = rater.colors(), rater.prompt()
        number = int(re.fullmatch(r"prompt (\d+): <b>一只猫</b></script>", prompt).group(1))  # type: ignore[union-attr]
        like = "secret-red" if number < 15 else "secret-blue"
        fits = "same" if number % 4 == 0 else "secret-blue"
        expected[f"p{number}"] = (like, fits)
        sides.append(colors[0])
        order.append(number)
        quality, words = colors.index(like), ("same" if fits == "same" else colors.index(fits))
        if i % 2:  # by mouse
            page.click(f"#quality button[data-side={('left', 'right')[quality]}]")
            page.click(f"#words button[data-side={words if words == 'same' else ('left', 'right')[words]}]")
            page.click("#next")
        else:  # by keys; the first answer is changed before it counts
            page.keyboard.press("21"[quality])
            page.keyboard.press("12"[quality])
            if i == 10:  # in the middle of a pair: what is chosen and what is shown stays
                page.reload()
                assert (rater.colors(), rater.prompt()) == (colors, prompt) and page.inner_text("#count") == "11 / 20"
                assert page.get_attribute(f"#quality button[data-side={('left', 'right')[quality]}]", "aria-pressed") == "true"
            page.keyboard.press({0: "3", 1: "5", "same": "4"}[words])
            page.keyboard.press("Enter")
        if i == 5:  # back to the last pair and on again: the answer is still there
            page.keyboard.press("Backspace")
            assert rater.prompt() == prompt and rater.colors() == colors and not page.is_disabled("#next")
            page.keyboard.press("Enter")
        if i == 6:
            assert len(json.loads(rater.save("#part", tmp_path).read_text())["answers"]) == 7
    assert page.is_visible("#done") and not page.is_visible("#ask")
    page.reload()
    said = json.loads((file := rater.save("#save", tmp_path)).read_text())
    assert file.name in page.inner_text("#saved") and rater.faults == []
    assert said["format"] == 1 and said["page"] == data_of(tmp_path / "people.html")["page"] and re.fullmatch("[0-9a-f]{16}", said["rater"])
    assert len(said["answers"]) == 20 and all(0 <= one["seconds"] < 60 for one in said["answers"])
    (read,) = people.read_answers(file, key)
    names = {**{model: letter for letter, model in read["models"].items()}, "same": "same"}
    assert {one["pair"]: (one["quality"], one["words"]) for one in read["answers"]} == {
        pair: (names[like], names[fits]) for pair, (like, fits) in expected.items()
    }
    known = json.loads(key.read_text())["pairs"]
    assert [known[one["pair"]][one["left"]] for one in said["answers"]] == sides  # in the order, and on the sides, that were shown
    assert order != sorted(order) and 2 < sides.count("secret-red") < 18
    rater.context.close()


def test_another_rater_sees_another_order_in_chinese(browser, tmp_path):
    people.write_page(tmp_path / "people.html", pairs(), "")
    raters = [Rater(browser, tmp_path / "people.html", "zh-CN") for _ in range(2)]
    assert raters[0].page.inner_text("#quality legend") == "哪一张画得更好？"
    raters[0].page.click("#language")
    assert raters[0].page.inner_text("#words legend") == "Which fits the words better?"
    seen = []
    for rater in raters:
        steps = []
        for _ in range(5):
            steps.append((rater.prompt(), rater.colors()))
            rater.page.keyboard.press("1")
            rater.page.keyboard.press("4")
            rater.page.keyboard.press("Enter")
        seen.append(steps)
        rater.context.close()
    assert seen[0] != seen[1] and not raters[0].faults + raters[1].faults
