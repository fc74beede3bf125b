"""Eyes from the command line: tiny real ones with random weights, saved as folders; every number checked against its definition."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import triptych
from tests.contract import tiny
from triptych.app import look
from triptych.app import search as searching
from triptych.data import picture
from triptych.data.picture import opened as open_picture
from triptych.data.scenes import CLASSES
from triptych.eyes import Eyes, Pixels, as_tensor
from triptych.vision.clip import CLIP
from triptych.vision.detr import DETR, SIZES, Seen

VERBS = ["classify", "search", "score", "detect"]
LABELS = ["circle", "blue square", "星形", "红色的圆形"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of eyes: clip, vit (classes of its own), mae, detr."""
    root = tmp_path_factory.mktemp("eyes")
    words = tiny.build("text_encoders", "bilingual").eval()
    Eyes(tiny.build("vision", "clip", seed=8, condition=words.gives).eval(), words, name="small-clip").save(root / "clip")
    Eyes(tiny.build("vision", "vit").eval(), name="small-vit", labels=[f"kind {k}" for k in range(9)]).save(root / "vit")
    pixels = Pixels(height=16, width=16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    Eyes(tiny.build("vision", "mae").eval(), name="small-mae", pixels=pixels).save(root / "mae")
    Eyes(detector(), name="small-detr").save(root / "detr")
    return root


def detector() -> DETR:
    """Every query sees a blue ring, each at its own place, 0.1 wide and 0.2 high."""
    panel = tiny.build("vision", "detr", config=replace(SIZES["tiny"], labels=tuple(CLASSES))).eval()
    with torch.no_grad():
        heads = (panel.class_head, panel.attribute_heads[0], panel.box_head[-1])
        for head in heads:
            head.weight.zero_()
            head.bias.fill_(-20.0)
        panel.class_head.bias[[list(CLASSES).index("ring"), -1]] = torch.tensor([0.0, -3.0])
        panel.attribute_heads[0].bias[4] = 20.0
        panel.box_head[-1].bias.copy_(torch.tensor([0.0, 0.0, *torch.logit(torch.tensor([0.1, 0.2]))]))
        panel.anchor_Q2.copy_(torch.logit(torch.tensor(MIDDLES))[:, [1, 0]])
    return panel


MIDDLES = [[x, y] for x in (0.2, 0.5, 0.8) for y in (0.3, 0.7)]  # x, y of the detector's six queries


@pytest.fixture
def pics(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight scenes in a folder with a subfolder; and a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    (here / "pics" / "more").mkdir(parents=True)
    for i, image in enumerate(tiny.batch(8).images_BCHW):
        pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(here / "pics" / ("more" if i > 4 else ".") / f"{i}.png")
    return here / "pics"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures each call of encode_image looked at."""
    seen: list[int] = []
    real = CLIP.encode_image

    def encode_image(self: CLIP, pixels_BCHW: torch.Tensor) -> torch.Tensor:
        seen.append(len(pixels_BCHW))
        return real(self, pixels_BCHW)

    monkeypatch.setattr(CLIP, "encode_image", encode_image)
    return seen


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def embedded(eyes: Eyes, path: Path) -> torch.Tensor:
    with Image.open(path) as image:
        return unit(eyes.encode_image(eyes.preprocess([image])))[0]


# --- the command line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_help_has_examples(run: Callable, verb: str) -> None:
    ran = run(verb, "-h")
    assert ran.code == 0 and not ran.err and f"Usage: triptych {verb}" in ran.out and "--json" in ran.out
    assert ran.out.count(f"\n  triptych {verb} ") >= 2 and verb in run("--help").out


@pytest.mark.parametrize("verb", VERBS)
def test_a_mistyped_option_names_the_verb(run: Callable, verb: str) -> None:
    assert f"see `triptych {verb} --help`" in run(verb, "--nope").err


@pytest.mark.parametrize(
    "code, argv, said",
    [
        (2, ["classify", "no.png", "--labels", "a,b", "--model", "clip"], "no.png"),
        (2, ["classify", "pics", "--labels", "a,b", "--model", "clip"], "is a folder"),
        (2, ["classify", "pics/0.png", "--model", "clip"], "--labels cat,dog"),
        (2, ["classify", "pics/0.png", "--labels", "cat", "--model", "clip"], "two or more"),
        (2, ["classify", "pics/0.png", "--labels", "cat, ,cat", "--model", "clip"], "'cat' twice"),
        (2, ["classify", "pics/0.png", "--labels", "@no.txt", "--model", "clip"], "no.txt"),
        (2, ["classify", "pics/0.png", "--labels", "a,b", "--template", "a photo", "--model", "clip"], "{}"),
        (2, ["classify", "pics/0.png", "--labels", "a,b", "--model", "vit"], "hears no words: leave --labels away"),
        (2, ["classify", "pics/0.png", "--labels", "a,b", "--model", "mae"], "hears no words; take a CLIP"),
        (2, ["classify", "pics/0.png", "--labels", "a,b", "--model", "clip", "--device", "gpu"], "auto"),
        (2, ["classify", "pics/0.png", "--labels", "a,b", "--model", "nobody"], "nobody"),
        (2, ["classify", "pics/0.png", "--labels", "a,b", "--model", "emoji"], "no eyes"),
        (3, ["classify", "broken.png", "--labels", "a,b", "--model", "clip"], "broken.png"),
        (4, ["classify", "pics/0.png", "--labels", "a,b", "--model", "damaged"], "damaged"),
        (2, ["score", "pics/0.png", " ", "--model", "clip"], "empty text"),
        (2, ["score", "pics/0.png", "a", "--model", "vit"], "hears no words"),
        (3, ["score", "broken.png", "a", "--model", "clip"], "broken.png"),
        (2, ["search", "a star", "nowhere", "--model", "clip"], "nowhere"),
        (2, ["search", "", "pics", "--model", "clip"], "nothing to search"),
        (2, ["search", "gone.png", "pics", "--model", "clip"], "gone.png"),
        (2, ["search", "a star", "pics", "--model", "clip", "-n", "0"], "-n"),
        (2, ["search", "a star", "pics", "--model", "clip", "-o", "broken.png"], "there already"),
        (2, ["search", "a star", "pics", "--model", "clip", "-o", "a.gif"], ".gif"),
        (2, ["search", "a star", "pics", "--model", "vit"], "hears no words"),
        (2, ["search", "pics/0.png", "pics", "--model", "vit"], "cannot encode image"),
        (3, ["search", "a star", "clip", "--model", "clip"], "holds no picture"),
        (2, ["detect", "pics/0.png", "--model", "clip"], "cannot detect"),
        (2, ["detect", "pics/0.png", "--model", "detr", "--threshold", "2"], "--threshold"),
        (3, ["detect", "broken.png", "--model", "detr"], "broken.png"),
        (2, ["show", "clip", "--rebuild", "pics/0.png"], "take an MAE"),
        (2, ["show", "mae", "--rebuild", "pics/0.png", "--trace"], "--rebuild"),
        (2, ["show", "mae", "-o", "a.png"], "--rebuild"),
        (3, ["show", "mae", "--rebuild", "broken.png"], "broken.png"),
    ],
)
def test_mistakes(run: Callable, saved: Path, pics: Path, here: Path, code: int, argv: list[str], said: str) -> None:
    for folder in saved.iterdir():
        (here / folder.name).symlink_to(folder)
    (here / "damaged" / "vision").mkdir(parents=True)
    (here / "broken.png").write_bytes((pics / "0.png").read_bytes()[:90])
    before = sorted(here.rglob("*"))
    ran = run(*argv, "--json")
    assert ran.code == ran.json["error"]["exit_code"] == code and said in ran.json["error"]["message"]
    ran = run(*argv)
    assert not ran.out and len(ran.err.splitlines()) == 1 and "fault" not in ran.err
    assert sorted(here.rglob("*")) == before  # nothing is written


# --- pictures -----------------------------------------------------------------------------------------------------------


def test_pictures_are_upright_and_on_white(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    red = Image.new("RGB", (4, 2), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # lay on its side
    red.save(here / "turned.png", exif=exif)
    assert open_picture(here / "turned.png").size == (2, 4)
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(here / "clear.png")
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([9, 9, 9])
    palette.save(here / "clear.gif", transparency=0)
    Image.fromarray(np.full((2, 2), 128 * 256, dtype=np.uint16)).save(here / "deep.png")
    Image.new("CMYK", (2, 2), (0, 0, 0, 0)).save(here / "ink.jpg")
    for name, value in {"clear.png": 255, "clear.gif": 255, "deep.png": 128, "ink.jpg": 255}.items():
        opened = open_picture(here / name)
        assert opened.mode == "RGB" and opened.getpixel((0, 0)) == (value,) * 3, name
    monkeypatch.setattr(picture, "MOST_PIXELS", 7)
    with pytest.raises(ValueError, match="than 7"):
        open_picture(here / "turned.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2)
    with pytest.raises(ValueError, match="bomb"):
        open_picture(here / "turned.png")


def test_a_picture_that_needs_another_program_is_refused(here: Path) -> None:
    (here / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n")
    with pytest.raises(ValueError, match="no PNG, JPEG, WEBP or GIF"):
        open_picture(here / "a.png")


# --- classify -----------------------------------------------------------------------------------------------------------


def test_labels_are_weighed_by_the_softmax_of_cosines(run: Callable, saved: Path, pics: Path) -> None:
    eyes = triptych.load(saved / "clip")
    value = run("classify", pics / "0.png", pics / "1.png", "--labels", "circle, blue square，星形,红色的圆形", "--model", saved / "clip",
                "--json").json  # fmt: skip
    assert value["labels"] == LABELS and value["eyes"] == "small-clip" and value["fingerprint"] == eyes.fingerprint
    for i, one in enumerate(value["pictures"]):
        cosine_K = unit(eyes.encode_text(LABELS)) @ embedded(eyes, pics / f"{i}.png")
        wanted = dict(zip(LABELS, (eyes.vision.scale() * cosine_K).softmax(0).tolist(), strict=True))
        found = {row["label"]: row["probability"] for row in one["classes"]}
        assert found == pytest.approx(wanted, abs=1e-6) and sum(found.values()) == pytest.approx(1)
        assert list(found.values()) == sorted(found.values(), reverse=True)
    lines = run("classify", pics / "0.png", "--labels", ",".join(LABELS), "--model", saved / "clip").out.splitlines()
    best = value["pictures"][0]["classes"][0]
    assert lines[0] == str(pics / "0.png") and lines[1].split(maxsplit=1) == [f"{best['probability']:.2%}", best["label"]]


def test_templates_are_an_ensemble_of_unit_vectors(run: Callable, saved: Path, pics: Path) -> None:
    eyes, templates = triptych.load(saved / "clip"), ["a {} left of a star", "{}", "三个{}"]
    parts = [unit(eyes.encode_text([template.replace("{}", label) for label in LABELS])) for template in templates]
    text_KE = unit(sum(parts) / len(parts))
    assert torch.allclose(look.label_vectors(eyes.sight(), LABELS, templates), text_KE, atol=1e-6)
    wanted = (eyes.vision.scale() * text_KE @ embedded(eyes, pics / "3.png")).softmax(0)
    asked = [word for template in templates for word in ("--template", template)]
    value = run("classify", pics / "3.png", "--labels", ",".join(LABELS), *asked, "--model", saved / "clip", "--json").json
    found = {row["label"]: row["probability"] for row in value["pictures"][0]["classes"]}
    assert [found[label] for label in LABELS] == pytest.approx(wanted.tolist(), abs=1e-6) and value["templates"] == templates


def test_labels_from_a_file(run: Callable, saved: Path, pics: Path, here: Path) -> None:
    (here / "labels.txt").write_text("# animals, and others\n猫, smiling\n\n  rocket \n", encoding="utf-8")
    value = run("classify", pics / "0.png", "--labels", "@labels.txt", "--model", saved / "clip", "--json").json
    assert value["labels"] == ["猫, smiling", "rocket"]


def test_eyes_with_classes_of_their_own(run: Callable, saved: Path, pics: Path) -> None:
    eyes = triptych.load(saved / "vit")
    rows = run("classify", pics / "0.png", "--model", saved / "vit", "--json").json["pictures"][0]["classes"]
    likely_K = eyes.classify(eyes.preprocess([Image.open(pics / "0.png")]))[0].softmax(0)
    names = [*eyes.labels, "class 9"]  # nobody named the last
    assert [row["label"] for row in rows] == [names[k] for k in likely_K.topk(5).indices]
    assert [row["probability"] for row in rows] == pytest.approx(likely_K.topk(5).values.tolist(), abs=1e-6)


def test_words_that_were_not_read_are_told(run: Callable, saved: Path, pics: Path) -> None:
    ran = run("classify", pics / "0.png", "--labels", f"star,{'star ' * 90}", "--model", saved / "clip", "--json")
    assert ran.code == 0 and "not read" in ran.err and "not read" in ran.json["warnings"][0]


# --- score --------------------------------------------------------------------------------------------------------------


def test_the_score_is_a_hundred_cosines(run: Callable, saved: Path, pics: Path) -> None:
    eyes = triptych.load(saved / "clip")
    cosines = (unit(eyes.encode_text(LABELS)) @ embedded(eyes, pics / "2.png")).tolist()
    assert min(cosines) < 0 < max(cosines)  # both sides of max(., 0) are tried
    ran = run("score", pics / "2.png", *LABELS, "--model", saved / "clip", "--json")
    assert [row["text"] for row in ran.json["scores"]] == LABELS and ran.json["measure"] == "clip_score(small-clip)"
    assert [row["score"] for row in ran.json["scores"]] == pytest.approx([max(100 * c, 0) for c in cosines], abs=1e-4)
    ran = run("score", pics / "2.png", "circle", "--model", saved / "clip")
    assert ran.out.splitlines()[1].split() == [f"{max(100 * cosines[0], 0):.2f}", "circle"]
    assert "small-clip" in ran.err and "other eyes" in ran.err


# --- search -------------------------------------------------------------------------------------------------------------


def test_a_picture_is_nearest_to_itself_and_looked_at_once(
    run: Callable, saved: Path, pics: Path, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(searching, "BATCH", 3)
    argv = ["search", pics / "more" / "6.png", pics, "--model", saved / "clip", "-n", "3", "--json"]
    first = run(*argv).json
    assert first["found"][0] == {"path": str(pics / "more" / "6.png"), "cosine": pytest.approx(1, abs=1e-5)}
    assert len(first["found"]) == 3 and first["searched"] == first["looked_at"] == 8 and counted == [1, 3, 3, 2]
    counted.clear()
    again = run(*argv).json
    assert counted == [1] and again["looked_at"] == 0 and again["found"] == first["found"]  # the query alone

    os.utime(pics / "0.png", ns=(1, 1))
    (pics / "1.png").unlink()
    Image.new("RGB", (30, 9), "red").save(pics / "new.png")
    counted.clear()
    changed = run(*argv).json
    assert changed["looked_at"] == 2 and changed["searched"] == 8 and sum(counted) == 3


def test_words_find_by_cosine(run: Callable, saved: Path, pics: Path, counted: list[int], here: Path) -> None:
    eyes = triptych.load(saved / "clip")
    files = sorted(pics.rglob("*.png"))
    wanted = {str(path): float(unit(eyes.encode_text(["红色的圆形"]))[0] @ embedded(eyes, path)) for path in files}
    counted.clear()
    ran = run("search", "红色的圆形", pics, "--model", saved / "clip", "-o", "sheet.png", "--json")
    found = {one["path"]: one["cosine"] for one in ran.json["found"]}
    assert found == pytest.approx(wanted, abs=1e-5) and list(found) == sorted(wanted, key=lambda path: -wanted[path])
    assert ran.json["query"] == {"words": "红色的圆形"} and counted == [8]
    with Image.open(here / "sheet.png") as sheet:
        assert ran.json["sheet"] == "sheet.png" and sheet.width > 5 * 160
    counted.clear()
    assert run("search", "红色的圆形", pics, "--model", saved / "clip").out.splitlines()[0].endswith(next(iter(found))) and not counted


def test_other_eyes_and_damage_look_again(run: Callable, saved: Path, pics: Path, counted: list[int], here: Path) -> None:
    argv = ["search", "star", pics, "--json", "--model"]
    assert run(*argv, saved / "clip").json["looked_at"] == 8
    eyes = triptych.load(saved / "clip")
    Eyes(eyes.vision, eyes.text_encoder, name="other", pixels=Pixels(height=16, width=16, mean=(0.1, 0.5, 0.5))).save(here / "other")
    assert run(*argv, here / "other").json["looked_at"] == 8  # the same weights, other pixels
    assert run(*argv, saved / "clip").json["looked_at"] == 0
    for kept in (here / "cache").rglob("*.safetensors"):
        kept.write_bytes(kept.read_bytes()[:-9])
    assert run(*argv, saved / "clip").json["looked_at"] == 8


def test_an_interrupted_search_keeps_what_it_saw(run: Callable, saved: Path, pics: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def opening(path: Path) -> Image.Image:
        opened.append(path)
        if len(opened) == 6:
            raise KeyboardInterrupt
        return open_picture(path)

    monkeypatch.setattr(searching, "BATCH", 1)
    monkeypatch.setattr(searching, "opened", opening)
    argv = ["search", "star", pics, "--model", saved / "clip", "--json"]
    assert run(*argv).code == 130
    assert run(*argv).json["looked_at"] == 4  # of five that were opened the last was not looked at


def test_broken_pictures_are_named_and_skipped(run: Callable, saved: Path, pics: Path) -> None:
    (pics / "no.jpg").write_text("no picture")
    (pics / "more" / "half.png").write_bytes((pics / "0.png").read_bytes()[:90])
    for _ in range(2):
        ran = run("search", "star", pics, "--model", saved / "clip", "--json", "-n", "99")
        assert ran.code == 0 and ran.json["searched"] == len(ran.json["found"]) == 8
        assert {one["path"] for one in ran.json["skipped"]} == {str(pics / "no.jpg"), str(pics / "more" / "half.png")}
        assert "skipped 2 of 10" in ran.err and "no.jpg" in ran.err and "half.png" in ran.err
    for path in pics.rglob("*.png"):
        path.write_bytes(b"")
    ran = run("search", "star", pics, "--model", saved / "clip")
    assert ran.code == 3 and "none of the 10" in ran.err


def test_a_cache_that_cannot_be_written_is_no_obstacle(run: Callable, saved: Path, pics: Path, here: Path) -> None:
    (here / "cache").write_text("a file where the cache's folder should be")
    ran = run("search", "star", pics, "--model", saved / "clip")
    assert ran.code == 0 and len(ran.out.splitlines()) == 8 and "looks again" in ran.err


# --- detect -------------------------------------------------------------------------------------------------------------


def test_boxes_are_drawn_where_things_are(run: Callable, saved: Path, here: Path) -> None:
    Image.new("RGB", (300, 200), "white").save(here / "a.jpg")
    ran = run("detect", "a.jpg", "--model", saved / "detr", "--json")
    assert ran.code == 0 and ran.json["path"] == "a-detected.png" and ran.json["size"] == [300, 200] and ran.json["threshold"] == 0.5
    found = ran.json["objects"]
    assert len(found) == 6 and {(one["label"], one["attributes"]["color"]) for one in found} == {("ring", "blue")}
    assert all(one["probability"] == pytest.approx(1 / (1 + np.exp(-3)), abs=1e-3) for one in found)
    boxes = sorted([one["box"][side] for side in ("x", "y", "width", "height")] for one in found)
    assert np.abs(np.array(boxes) - [[*middle, 0.1, 0.2] for middle in MIDDLES]).max() < 0.01  # weights are kept as bf16
    with Image.open(here / "a-detected.png") as drawn:
        assert drawn.size == (300, 200)
        color = drawn.getpixel((round(0.2 * 300), round((0.3 + 0.1) * 200)))
        for x, y, width, height in boxes:
            left, right, bottom = round((x - width / 2) * 300), round((x + width / 2) * 300), round((y + height / 2) * 200)
            for place in [(left, bottom - 8), (right, bottom - 8), (round(x * 300), bottom)]:
                assert drawn.getpixel(place) == color != (255, 255, 255)
            assert drawn.getpixel((round(x * 300), round(y * 200))) == (255, 255, 255) == drawn.getpixel((left - 3, bottom - 8))


def test_nothing_is_overwritten(run: Callable, saved: Path, here: Path) -> None:
    Image.new("RGB", (40, 30), "white").save(here / "a.png")
    argv = ["detect", "a.png", "--model", saved / "detr"]
    assert [run(*argv).out.splitlines()[-1] for _ in range(3)] == ["a-detected.png", "a-detected-2.png", "a-detected-3.png"]
    assert run(*argv, "-o", "b.png").code == 0 and run(*argv, "-o", "b.png").code == 2
    assert run(*argv, "-o", "found/").out.splitlines()[-1] == str(Path("found/a-detected.png"))


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Make the detector say this: (class, its probability, colour's number, box) of each query."""

    def say(*rows: tuple[str, float, int, list[float]]) -> None:
        logits, colors = torch.full((1, len(rows), len(CLASSES) + 1), -30.0), torch.zeros(1, len(rows), 11)
        for q, (name, p, color, _) in enumerate(rows):
            logits[0, q, [list(CLASSES).index(name), -1]] = torch.tensor([p, 1 - p]).log()
            colors[0, q, color] = 9.0
        seen = Seen(logits_BQK=logits, boxes_BQ4=torch.tensor([[row[3] for row in rows]]), attributes=(colors,))
        monkeypatch.setattr(DETR, "forward", lambda self, pixels_BCHW, *_: seen)

    yield say


def test_what_is_seen_is_said_the_likeliest_first(run: Callable, saved: Path, here: Path, says: Callable) -> None:
    Image.new("RGB", (64, 64), "white").save(here / "a.png")
    says(("star", 0.6, 10, [0.5, 0.5, 0.2, 0.2]), ("circle", 0.97, 0, [0.12, 0.3, 0.2, 0.2]), ("heart", 0.3, 1, [0.9, 0.9, 0.5, 0.5]))
    ran = run("detect", "a.png", "--model", saved / "detr")
    assert ran.out.splitlines()[:2] == ["0.97 red circle  x 0.12 y 0.30 w 0.20 h 0.20", "0.60 star  x 0.50 y 0.50 w 0.20 h 0.20"]
    assert len(ran.out.splitlines()) == 3 and "0.5" in ran.err and "--threshold" in ran.err
    value = run("detect", "a.png", "--model", saved / "detr", "--threshold", "0.25", "--json").json
    assert [(one["label"], one["attributes"]["color"]) for one in value["objects"]] == [
        ("circle", "red"),
        ("star", None),
        ("heart", "orange"),
    ]
    value = run("detect", "a.png", "--model", saved / "detr", "--threshold", "0.99", "--json").json
    assert value["objects"] == [] and Path(value["path"]).exists()


def test_boxes_at_the_border_stay_in_the_picture(run: Callable, saved: Path, here: Path, says: Callable) -> None:
    says(("star", 0.9, 0, [0.0, 0.0, 1.9, 1.9]), ("ring", 0.9, 0, [1.0, 1.0, 0.0, 0.0]), ("heart", 0.9, 0, [1.0, 0.01, 0.4, 0.1]))
    for size in [(64, 64), (3, 200), (1, 1)]:
        Image.new("RGB", size, "white").save(here / "b.png")
        assert run("detect", "b.png", "--model", saved / "detr").code == 0


def test_a_detector_without_attributes_takes_names_from_its_folder(run: Callable, here: Path) -> None:
    panel = tiny.build("vision", "detr", config=replace(SIZES["tiny"], num_classes=3, attributes=())).eval()
    Eyes(panel, name="bare", labels=("cat", "dog")).save(here / "bare")
    Image.effect_noise((40, 30), 60).save(here / "a.png")
    found = run("detect", "a.png", "--model", "bare", "--threshold", "0", "--json").json["objects"]
    eyes = triptych.load("bare")
    logits, boxes = eyes.detect(eyes.preprocess([open_picture("a.png")]))
    wanted = sorted(zip(logits[0].softmax(-1)[:, :3].tolist(), boxes[0].tolist(), strict=True), key=lambda row: -max(row[0]))
    assert [one["probability"] for one in found] == pytest.approx([max(likely) for likely, _ in wanted], abs=1e-6)
    assert [one["label"] for one in found] == [("cat", "dog", "class 2")[np.argmax(likely)] for likely, _ in wanted]
    assert [list(one["box"].values()) for one in found] == [pytest.approx(box, abs=1e-6) for _, box in wanted]
    Eyes(panel, name="cuts", pixels=Pixels(height=32, width=32, fit="crop", shorter=40)).save(here / "cuts")
    ran = run("detect", "a.png", "--model", "cuts")
    assert ran.code == 2 and "the middle of a picture alone" in ran.err


# --- rebuild ------------------------------------------------------------------------------------------------------------


def test_masked_rebuilt_original_side_by_side(run: Callable, saved: Path, here: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(here / "a.png")
    ran = run("show", saved / "mae", "--rebuild", "a.png", "--seed", "3", "--json")
    assert ran.code == 0 and ran.json["seed"] == 3 and ran.json["path"] == "a-rebuilt.png" and ran.json["eyes"] == "small-mae"
    masked, rebuilt, original = _thirds(here / "a-rebuilt.png")
    assert np.abs(original - pixels.astype(int)).max() <= 1  # mean and deviation undone
    hidden = np.array([[_patch(masked, i, j).std(axis=(0, 1)).max() == 0 for j in range(4)] for i in range(4)])
    assert hidden.sum() == 12
    for i in range(4):
        for j in range(4):
            if hidden[i, j]:
                assert np.abs(_patch(masked, i, j) - [102, 127.5, 153]).max() <= 1  # the mean, which is 0 to the network
                assert np.abs(_patch(rebuilt, i, j) - _patch(original, i, j)).max() > 3
            else:
                assert (_patch(masked, i, j) == _patch(original, i, j)).all() and (_patch(rebuilt, i, j) == _patch(original, i, j)).all()

    run("show", saved / "mae", "--rebuild", "a.png", "--seed", "3", "-o", "same.png")
    run("show", saved / "mae", "--rebuild", "a.png", "--seed", "4", "-o", "other.png")
    assert (here / "same.png").read_bytes() == (here / "a-rebuilt.png").read_bytes()
    assert (_thirds(here / "other.png")[0] != masked).any()


def _thirds(path: Path) -> list[np.ndarray]:
    with Image.open(path) as sheet:
        every = np.asarray(sheet.convert("RGB")).astype(int)
    return [every[6:262, 6 + i * 262 : 262 + i * 262][8::16, 8::16] for i in range(3)]


def _patch(picture: np.ndarray, i: int, j: int) -> np.ndarray:
    return picture[4 * i : 4 * i + 4, 4 * j : 4 * j + 4]


def test_the_helper_agrees_with_the_eyes(pics: Path) -> None:
    with Image.open(pics / "0.png") as image:
        assert torch.equal(as_tensor(open_picture(pics / "0.png")), as_tensor(image))


def test_probe(run: Callable, saved: Path, here: Path) -> None:
    """Two colours are told apart, the same colour under two names is not; a broken picture is named."""
    random = np.random.default_rng(0)
    for name, color in {"red": (200, 0, 0), "blue": (0, 0, 200)}.items():
        for i in range(15):
            pixels = np.full((16, 16, 3), color, dtype=np.float64) + random.uniform(-40, 40, (16, 16, 3))
            for folder in (f"two/{name}", f"one/{'ab'[i % 2]}") if name == "red" else (f"two/{name}",):
                (here / folder).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(here / folder / f"{i}.png")
    (here / "two/red/broken.png").write_bytes(b"\x89PNG")
    ran = run("probe", "two", "--model", saved / "clip", "--method", "ridge", "--json")
    assert ran.code == 0 and ran.json["labels"] == ["blue", "red"] and ran.json["n"] == 30
    assert list(ran.json["skipped"]) == ["two/red/broken.png"]
    assert any(key.startswith("accuracy") and value == 1 for key, value in ran.json.items())
    ran = run("probe", "one", "--model", saved / "clip", "--method", "ridge", "--json")
    assert 0.1 < next(value for key, value in ran.json.items() if key.startswith("accuracy")) < 0.9
    assert run("probe", "two/red", "--model", saved / "clip").code == 2
    assert run("probe", "two", "--model", saved / "clip", "--method", "tiny").code == 2
