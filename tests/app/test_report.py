"""The report of a judgement: written whole, self-contained, and in a real browser it sorts, filters and opens pictures."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from triptych.app import report

HOSTILE = '</script><img src=x onerror="window.hurt=1"><b>&amp;\'\u2028 一只猫'
FD, CLIP = "FD(eyes-v1)", "clip_score(eyes-v1)"
CATEGORIES = ("one object", "counting", "position")
COLORS = {"emoji": (200, 40, 40), "dit": (40, 40, 200), "</script>gan": (40, 160, 40)}  # a model's pictures are of its colour
N = 24


def judgement(**more: Any) -> dict[str, Any]:
    """Three models. By FD dit is best (9.5 < 10.25 as numbers; as texts it would be last), and emoji and dit are level by CLIP score."""
    emoji, dit, gan = COLORS
    scores = {
        emoji: {FD: {"value": 10.25, "low": 9.9, "high": 10.5, "n": N}, CLIP: {"value": 33.0, "low": 32.0, "high": 34.0, "n": N},
                "exact": {"value": 0.5, "low": 0.3, "high": 0.7, "n": N}},
        dit: {FD: {"value": 9.5, "low": 9.2, "high": 9.7, "n": N}, CLIP: {"value": 32.5, "low": 31.5, "high": 33.5, "n": N},
              "exact": {"value": None}},
        gan: {FD: {"value": 100.0, "low": 90.0, "high": 110.0, "n": N}, CLIP: {"value": 20.0, "low": 19.0, "high": 21.0, "n": N}},
    }  # fmt: skip
    models = [
        {"label": label, "name": label, "fingerprints": {"generator": f"print-{k}"}, "sampling": {"steps": 20 + k, "guidance": 2.0},
         "parameters": [7_960_000, 120_000_000, 690_000][k], "seconds": 31.2, "seconds_per_picture": [0.156, 1.31, 0.024][k],
         "memory_bytes": [812e6, 1.63e9, 9.5e6][k], "scores": scores[label],
         "curves": {FD: [[6, 20.0], [12, 15.0], [24, 10.0]] if k < 2 else [[24, 100.0]]}}
        for k, label in enumerate(COLORS)
    ]  # fmt: skip
    guidance = {"title": "FD against CLIP score", "x": CLIP, "y": FD, "lines": {emoji: [[31.0, 12.0, "1.0"], [33.0, 10.0, "2.0"]]}}
    return {
        "format": 1, "kind": "triptych judgement", "version": "triptych 0.1.0", "made": "2026-11-21T03:00:00+00:00",
        "protocol": {"name": "scenes-objects", "data": "scenes", "n": N, "seed": 7, "n_references": N, "says": "What was asked."},
        "eyes": {"eyes-v1": "5f3c9a7e"},
        "measures": {FD: {"judge": "distribution", "better": "lower"}, CLIP: {"judge": "clip_score", "better": "higher"},
                     "exact": {"judge": "objects", "better": "higher", "ceiling": 0.97}},
        "models": models, "curves": [guidance],
        "prompts": [{"text": f"prompt {i}{f' {HOSTILE}' * (i == 2)}", "category": CATEGORIES[i % 3], "seed": 100 + i} for i in range(N)],
        "each": {CLIP: {label: [float(i) for i in range(N)] for label in COLORS}, "exact": {emoji: [i % 2 for i in range(N)]}},
        "shown": [0, 1, 2, 3], **more,
    }  # fmt: skip


def picture(color: tuple[int, int, int], size: int = 32) -> Image.Image:
    image = Image.new("RGB", (size, size), color)
    ImageDraw.Draw(image).ellipse((size // 4, size // 4, size // 2, size // 2), fill=(255, 255, 255))
    return image


def pictures() -> dict[str, dict[int, Image.Image]]:
    """Of the shown, and the six best and worst by CLIP score; the last model has none for place 3."""
    places = sorted({0, 1, 2, 3, *range(6), *range(N - 6, N)})
    return {label: {i: picture(color) for i in places if (label, i) != ("</script>gan", 3)} for label, color in COLORS.items()}


def data_of(page: Path) -> dict[str, Any]:
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S).group(1))  # type: ignore[union-attr]


def opened(uri: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    image.load()
    return image


# --- the files ---------------------------------------------------------------------------------------------------------------


def test_the_numbers_read_back_equal_and_the_page_fetches_nothing(tmp_path):
    said = judgement(note="a lone \udc80 surrogate")
    page = report.write_report(tmp_path / "out", said, pictures(), {0: picture((9, 9, 9))})
    assert page == tmp_path / "out" / "report.html" and sorted(p.name for p in page.parent.iterdir()) == ["judgement.json", "report.html"]
    text = (tmp_path / "out" / "judgement.json").read_bytes().decode("utf-8")
    assert json.loads(text) == said and "一只猫" in text and text.count("\n") > 100
    html = page.read_text(encoding="utf-8")
    names = html.replace('"http://www.w3.org/2000/svg"', "")  # the name of a namespace, which nobody fetches
    assert not re.search(r"https?://|@import|url\(|<link|\bsrc=\"[^d]", names.split('id="data"')[0] + names.split("</script>")[1])
    assert not re.search(r"https?://", names) and "default-src 'none'" in html
    assert html.count("</script>") == 2 and "<img src=x" not in html  # those of the page itself
    kept = data_of(page)["judgement"]
    assert sorted(map(int, kept["prompts"])) == [*range(6), *range(N - 6, N)] and kept["each"][CLIP]["emoji"]["23"] == 23.0


def test_what_is_not_finite_becomes_null(tmp_path):
    said = judgement()
    said["models"][0]["scores"][FD].update(value=float("nan"), high=float("inf"))
    page = report.write_report(tmp_path, said, {})
    for text in ((tmp_path / "judgement.json").read_text(encoding="utf-8"), page.read_text(encoding="utf-8").split('id="data"')[1]):
        assert "NaN" not in text and "Infinity" not in text
    score = json.loads((tmp_path / "judgement.json").read_text(encoding="utf-8"))["models"][0]["scores"][FD]
    assert score == {"value": None, "low": 9.9, "high": None, "n": N}


def test_a_page_is_whole_or_the_old_one(tmp_path, monkeypatch):
    report.write_report(tmp_path, judgement(), pictures())
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr("os.replace", lambda *names: (_ for _ in ()).throw(OSError("pulled the plug")))
    with pytest.raises(OSError, match="pulled the plug"):
        report.write_report(tmp_path, judgement(seed=1), pictures())
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before  # nor is anything half-written left behind


def test_what_is_wrong_is_said_before_anything_is_written(tmp_path):
    twice = judgement()
    twice["models"].append(copy.deepcopy(twice["models"][1]))
    lacking = {name: value for name, value in judgement().items() if name != "prompts"}
    one = picture((0, 0, 0))
    for said, some, real, message in [
        (judgement(), {"vae": {0: one}}, {}, "pictures of 'vae', which was not judged; there are: emoji, dit"),
        (judgement(), {"dit": {N: one}}, {}, "pictures of 'dit': there is no prompt 24"),
        (judgement(), {}, {-1: one}, "references: there is no prompt -1"),
        (judgement(shown=[99]), {}, {}, "shown: there is no prompt 99"),
        (judgement(each={CLIP: {"dit": [1.0]}}), {}, {}, r"\['dit'\] has 1 values for 24 prompts"),
        (judgement(format=2), {}, {}, "no judgement of format 1: format = 2"),
        (twice, {}, {}, "label is there twice: 'dit'"), (lacking, {}, {}, "lacks 'prompts'"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            report.write_report(tmp_path / "out", said, some, real)
    assert not list(tmp_path.iterdir())


def test_small_pictures_are_exact_and_tell_nothing_about_themselves(tmp_path):
    noise = Image.effect_noise((64, 64), 80).convert("RGB")
    flat, alpha = picture((1, 2, 3)), picture((9, 8, 7)).convert("RGBA")
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "secret")
    (buffer := io.BytesIO()).name = "x.png"
    flat.save(buffer, pnginfo=text)
    near = Image.new("RGB", (64, 64), (100, 100, 100))  # two colours that Pillow's search in a palette takes for one
    near.paste((101, 101, 101), (0, 0, 32, 64))
    given = {0: noise, 1: Image.open(buffer), 2: alpha, 3: near}
    seen = data_of(report.write_report(tmp_path, judgement(), {"dit": given}))["pictures"]["dit"]
    for place, image in given.items():
        found = opened(seen[str(place)])
        assert found.convert("RGB").tobytes() == image.convert("RGB").tobytes()
        assert b"secret" not in base64.b64decode(seen[str(place)].partition(",")[2])


def test_pictures_too_many_for_the_page_are_reduced_alike(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_MOST", 200_000)
    hard, easy = Image.effect_noise((512, 512), 60).convert("RGB"), picture((200, 0, 0), 512)
    few = data_of(report.write_report(tmp_path / "few", judgement(), {"dit": {0: easy}}))
    assert few["side"] == 512 and opened(few["pictures"]["dit"]["0"]).size == (512, 512)
    page = report.write_report(tmp_path / "many", judgement(), {"dit": {0: hard, 1: hard}, "emoji": {0: easy}}, {0: picture((0, 0, 0), 64)})
    many = data_of(page)
    assert page.stat().st_size < 300_000 and many["side"] in (256, 384)
    sizes = [opened(uri).size for group in many["pictures"].values() for uri in group.values()]
    assert sizes == [(many["side"], many["side"])] * 3 and opened(many["references"]["0"]).size == (64, 64)


def test_importing_it_is_light():
    code = "import sys, triptych.app.report; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# --- in a browser ------------------------------------------------------------------------------------------------------------


class Reader:
    """A person with the page open and no network; after every test nothing may have gone wrong or been asked of the outside."""

    def __init__(self, browser, page: Path, width: int = 1280) -> None:
        self.context = browser.new_context(offline=True, viewport={"width": width, "height": 860})
        self.page, self.faults = self.context.new_page(), []
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda message: self.faults.append(message.text))
        self.page.on("request", lambda asked: self.faults.append(asked.url) if not re.match(r"file:|data:", asked.url) else None)
        self.page.goto(page.as_uri())

    def labels(self) -> list[str]:
        return self.page.locator("#scores tbody th").all_inner_texts()

    def cell(self, label: str, column: int) -> str:
        return self.page.locator("#scores tbody tr", has=self.page.locator("th", has_text=label)).locator("td").nth(column).inner_text()

    def sort(self, column: str) -> tuple[list[str], str | None]:
        head = self.page.locator(f'#scores th[data-column="{column}"]')
        head.click()
        return self.labels(), head.get_attribute("aria-sort")

    def done(self) -> None:
        assert self.faults == [] and self.page.evaluate("window.hurt") is None
        assert self.page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # only the table scrolls sideways
        self.context.close()


@pytest.fixture
def reader(browser, tmp_path):
    reader = Reader(browser, report.write_report(tmp_path, judgement(), pictures(), {i: picture((99, 99, 99)) for i in range(3)}))
    yield reader
    reader.done()


def test_the_table_holds_the_numbers_and_sorts_them(reader):
    page, (emoji, dit, gan) = reader.page, COLORS
    assert page.title() == "scenes-objects: emoji, dit, </script>gan"
    head = page.inner_text("header")
    assert all(said in head for said in ("What was asked.", "2026-11-21 03:00 UTC", "5f3c9a7e", "triptych 0.1.0", "95 % interval"))
    assert reader.labels() == [emoji, dit, gan]
    assert reader.cell(emoji, 0).split() == ["10.25", "[9.90,", "10.50]"] and reader.cell(dit, 0).split()[:2] == ["best", "9.50"]
    assert [reader.cell(label, 1).split()[0] for label in COLORS] == ["level", "level", "20.0"]
    assert [reader.cell(label, 2) for label in (dit, gan)] == ["—", "—"] and "best" not in reader.cell(emoji, 2)  # nobody to be better than
    assert [reader.cell(dit, k) for k in (3, 4, 5)] == ["1.31 s", "1.63 GB", "120 M"]
    assert "ceiling 0.97" in page.inner_text('#scores th[data-column="exact"]') and "n = 24" in page.inner_text(f'th[data-column="{FD}"]')
    assert reader.sort(FD) == ([dit, emoji, gan], "ascending")
    assert reader.sort(FD) == ([gan, emoji, dit], "descending")
    assert reader.sort(CLIP) == ([emoji, dit, gan], "descending") and reader.sort(CLIP) == ([gan, dit, emoji], "ascending")
    assert page.locator("#scores th[aria-sort]").count() == 1
    assert reader.sort("exact")[0][0] == emoji and reader.sort("exact")[0][0] == emoji  # those without a number are last, either way round
    assert reader.sort("memory")[0] == [gan, emoji, dit] and reader.sort("parameters")[0] == [gan, emoji, dit]
    page.focus('th[data-column="time"] button')
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert reader.labels() == [dit, emoji, gan]


def test_the_curves_are_drawn(reader):
    figures = reader.page.locator("#curves figure")
    assert figures.locator("h3").all_inner_texts() == [FD, "FD against CLIP score"]
    assert figures.nth(0).locator("polyline").count() == 2 and figures.nth(0).locator("g path").count() == 7  # one point: no line
    assert figures.nth(0).locator(".legend > span").all_inner_texts() == list(COLORS)
    axis = [float(text) for text in figures.nth(0).locator("svg > text").all_text_contents() if re.fullmatch(r"[\d.]+", text)]
    assert len(axis) >= 6
    assert {"1.0", "2.0"} <= set(figures.nth(1).locator("g text").all_text_contents())
    assert figures.nth(1).locator("g title").last.text_content() == "emoji, 2.0: 33.00, 10.00"


def test_a_picture_opens_with_its_prompt_and_numbers(reader):
    page = reader.page
    assert page.locator("#side .row").nth(3).locator(".none").count() == 2  # no real picture, none of the last model
    assert page.locator("#side .row").nth(2).locator("p").first.text_content() == f"prompt 2 {HOSTILE}"
    thumb = page.locator("#side .row").nth(1).locator(".picture").nth(1)
    thumb.focus()
    page.keyboard.press("Enter")
    assert page.is_visible("#large") and page.inner_text("#prompt") == "prompt 1"
    assert page.inner_text("#about") == "emoji, counting, seed 101"
    assert page.locator("#values dt").all_inner_texts() == [CLIP, "exact"]
    assert page.locator("#values dd").all_inner_texts() == ["1.000", "right"]
    red = page.evaluate(
        """async () => { const image = document.getElementById("image"); await image.decode();
            const canvas = document.createElement("canvas"), context = canvas.getContext("2d"); canvas.width = canvas.height = 1;
            context.drawImage(image, 0, 0, 1, 1, 0, 0, 1, 1); return Array.from(context.getImageData(0, 0, 1, 1).data).slice(0, 3); }"""
    )
    assert tuple(red) == COLORS["emoji"]
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#about").startswith("dit,") and page.locator("#values dt").all_inner_texts() == [CLIP]
    for _ in range(2):
        page.keyboard.press("ArrowRight")  # past the last model: the next prompt's real picture, and what is hostile stays text
    assert page.inner_text("#about").startswith("real picture, position")
    assert page.inner_text("#prompt").startswith("prompt 2 </script><img src=x")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#about").startswith("</script>gan, counting") and page.inner_text("#at") == "8 of 14"
    page.keyboard.press("Escape")
    assert not page.is_visible("#large")
    seen_last = "document.activeElement.dataset.place + document.activeElement.dataset.model"
    for _ in range(250):  # the page's policy forbids what `wait_for_function` does where it has to wait
        if page.evaluate(seen_last) == "12":
            break
        page.wait_for_timeout(20)
    assert page.evaluate(seen_last) == "12"


def test_the_category_filter_hides_rows(reader):
    page, rows = reader.page, reader.page.locator("#side .row")
    assert page.locator("#category option").all_inner_texts() == ["all", *CATEGORIES] and page.inner_text("#count") == "4 of 4 prompts"
    page.select_option("#category", "one object")
    assert [rows.nth(i).is_visible() for i in range(4)] == [True, False, False, True] and page.inner_text("#count") == "2 of 4 prompts"
    rows.nth(3).locator(".picture").first.click()
    assert page.inner_text("#at") == "5 of 6"  # only what is to be seen: of row 0 four, of row 3 two
    page.click("#close")
    page.select_option("#category", "")
    assert all(rows.nth(i).is_visible() for i in range(4))


def test_best_and_worst_by_each_judge(reader):
    page = reader.page
    measures = page.locator("#extremes details")
    assert [measures.nth(i).get_attribute("data-measure") for i in range(measures.count())] == [CLIP, "exact"]
    groups = measures.nth(0).locator(".extremes").first.locator(".pictures")
    assert groups.nth(0).locator("b").all_inner_texts() == [f"{i}.00" for i in range(23, 17, -1)]
    assert groups.nth(1).locator("b").all_inner_texts() == [f"{i}.000" if i else "0" for i in range(6)]
    measures.nth(1).locator("summary").click()
    right, wrong = measures.nth(1).locator(".extremes .pictures").all()  # of the one model that has such values
    places = [[int(one.get_attribute("data-place")) for one in group.locator(".picture").all()] for group in (right, wrong)]
    assert all(len(some) == 6 and {place % 2 for place in some} == {1 - k} for k, some in enumerate(places))
    right.locator(".picture").first.click()
    assert page.inner_text("#at") == "1 of 12" and "right" in page.inner_text("#values")
    page.keyboard.press("Escape")


def test_how_it_was_made(reader):
    made = reader.page.inner_text("#made")
    assert "print-0" in made and "steps" in made and "31.2 s" in made
    assert (
        "triptych judge emoji dit '</script>gan' --protocol scenes-objects --data scenes --judges distribution,clip_score,objects" in made
    )
    assert "--n 24 --seed 7 --report DIR" in made


def test_one_model_and_little_known_of_it_on_a_phone(browser, tmp_path):
    model = {"label": "emoji", "scores": {FD: {"value": 3.0}}}
    one = judgement(models=[model], curves=[], each={}, shown=[], eyes={})
    reader = Reader(browser, report.write_report(tmp_path, one, {}), width=390)
    page = reader.page
    assert reader.cell("emoji", 0) == "3.00" and [reader.cell("emoji", k) for k in range(1, 6)] == ["—"] * 5
    assert [page.is_visible(f"#{name}") for name in ("scores", "curves", "side", "extremes", "made")] == [True, False, False, False, True]
    assert page.locator("#parts a").all_inner_texts() == ["Scores", "How it was made"]
    reader.done()


def test_of_many_measures_the_first_are_shown(browser, tmp_path):
    names = [FD, *(f"m{k}" for k in range(10))]
    said = judgement(measures={name: {"judge": "objects", "better": "higher"} for name in names}, each={})
    reader = Reader(browser, report.write_report(tmp_path, said, {}))
    heads = reader.page.locator("#scores thead th:visible")
    assert [one.get_attribute("data-column") for one in heads.all()] == ["model", *names[:6], "time", "memory", "parameters"]
    assert reader.page.locator("#scores tbody tr").first.locator("td:visible").count() == 9
    reader.page.click("text=all 11 measures")
    assert heads.count() == 15 and reader.page.locator("#scores tbody tr").first.locator("td:visible").count() == 14
    reader.page.click("text=only 6 measures")
    assert heads.count() == 10
    reader.done()


def test_no_interval_no_verdict(browser, tmp_path):
    said = judgement()
    del said["models"][0]["scores"][FD]["low"]
    reader = Reader(browser, report.write_report(tmp_path, said, {}))
    assert "best" not in reader.page.inner_text("#scores tbody") and reader.cell("emoji", 0).strip() == "10.25"
    reader.done()
