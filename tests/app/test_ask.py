"""What stands beside the words: a class, boxes, pictures, given by a person or made from the words; and sheets of models that need it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triptych import catalog
from triptych.app import pictures
from triptych.app.ask import Given, Unreadable, asked, reads
from triptych.contracts import Prompt
from triptych.data import ports, scenes
from triptych.data.read_scene import scene_of
from triptych.pipeline import Generator, TextToImage
from triptych.text_encoders import label, layout, picture


def laid_out(labels: tuple[str, ...]) -> layout.LayoutTransformer:
    n = len(labels)
    return layout.LayoutTransformer(layout.Config(vocab=n + 17 * 17 + 1, num_labels=n, labels=labels, width=32, depth=1, num_heads=2))


KINDS = {
    "classes": lambda: label.ClassLabel(label.SIZES["tiny"]),
    "scenes": lambda: label.ClassLabel(label.Config(labels=ports.class_names())),
    "numbers": lambda: label.ClassLabel(label.Config(num_labels=48)),
    "nothing": lambda: label.ClassLabel(label.Config()),
    "layout": lambda: laid_out(ports.class_names("color shape")),
    "animals": lambda: laid_out(tuple(f"animal {i}" for i in range(80))),  # as many as all colours of all shapes
    "enlarge": lambda: picture.PicturePort(picture.Config(size=8)),
    "map": lambda: picture.PicturePort(picture.Config(kind="semantic", size=8, labels=("background|背景", *ports.class_names()))),
    "repair": lambda: picture.PicturePort(picture.Config(kind="masked", size=8)),
}


def drawer(kind: str) -> TextToImage:
    torch.manual_seed(0)
    encoder, decoder = KINDS[kind](), catalog.build("decoders", "identity", size="tiny")
    network = catalog.build("generators", "unet", size="tiny", latent=decoder.latent, condition=encoder.gives)
    with torch.no_grad():
        for parameter in [*encoder.parameters(), *network.parameters()]:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    process = catalog.build("processes", "ddpm", size="tiny")
    return TextToImage(encoder.eval(), Generator(network.eval(), process), decoder, name=kind, sampling={"steps": 2})


@pytest.fixture(scope="session")
def drawers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("drawers")
    for kind in KINDS:
        drawer(kind).save(folder / kind, name=kind)
    return {kind: folder / kind for kind in KINDS}


def one(kind: str, text: str, given: Given | None = None, seed: int = 0) -> tuple[Prompt, str]:
    (prompt,), (line,) = asked(drawer(kind), [text], [seed], given)
    return prompt, line


def test_what_a_mask_keeps_is_kept() -> None:
    model, generator = drawer("repair"), torch.Generator().manual_seed(0)
    side = model.size[0]
    image, mask = torch.rand(3, side, side, generator=generator) * 2 - 1, torch.zeros(1, side, side)
    mask[:, : side // 2] = 1
    seen: list[Any] = []
    said = [Prompt(image_CHW=image, mask_1HW=mask), Prompt()]
    kept, free = (np.asarray(one) for one in model.generate(said, seeds=[0, 0], on_step=lambda i, n, preview: seen.append(preview())))
    given = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    for one in (kept, np.asarray(seen[0][0])):  # previews too
        assert np.abs(one[side // 2 :].astype(int) - given[side // 2 :]).max() <= 1
        assert np.abs(one[: side // 2].astype(int) - given[: side // 2]).max() > 1
    assert np.abs(free.astype(int) - given).max() > 1


# --- what is made from the words --------------------------------------------------------------------------------------------


def test_words_are_enough_for_those_who_read_words(model: Path) -> None:
    from triptych import load

    here = load(model)
    assert reads(here) == {"text"}
    given = Prompt(text="a cat", boxes_N5=torch.zeros(0, 5))
    prompts, made = asked(here, ["a cat", given], [0, 1])
    assert prompts[0].text == "a cat" and prompts[1] is given and made == ["", ""]


def test_nobody_listens() -> None:
    prompt, line = one("nothing", "a red circle")
    assert prompt.text == "a red circle" and line == "unconditional: hears no words"
    led = drawer("nothing")
    led.guide = {"eyes": "triptych-eyes-v1", "scale": 30.0}
    assert asked(led, ["a red circle"], [0])[1] == ["unconditional: its guide alone hears the words"]


def test_a_class_from_words() -> None:
    assert one("classes", "two red squares")[0].label == 1 and one("classes", "two red squares")[1] == "class 1 (square)"
    assert one("classes", "三角形")[0].label == 2
    prompt, line = one("classes", "democracy")
    assert prompt.label is None and line == "no class in the words"
    judged = Prompt(text="whatever is said", truth=scene_of("a blue star left of a red heart", 0))
    (prompt,), (line,) = asked(drawer("scenes"), [judged], [0])
    assert prompt.label == scenes.CLASSES.index("star") and line == "class 3 (star)"
    prompt, line = one("numbers", "a blue star left of a red heart")  # nobody knows what its classes are
    assert prompt.label is None and line == "no class in the words"


def test_boxes_from_words_are_those_of_training() -> None:
    text = "a red circle left of a blue square"
    prompt, line = one("layout", text, seed=5)
    scene = scene_of(text, 5)
    assert scene is not None
    wanted = ports.Boxes(of="color shape")(type("Row", (), {"prompt": Prompt(truth=scene), "key": "x"})(), None)  # type: ignore[arg-type]
    assert torch.equal(prompt.boxes_N5, wanted.boxes_N5) and line == "2 boxes made from the words"  # type: ignore[arg-type]
    judged = Prompt(text="whatever is said", truth=scene, boxes_N5=scenes.boxes(scene))  # a judge's: in the scenes' own numbers
    (again,), _ = asked(drawer("layout"), [judged], [0])
    assert torch.equal(again.boxes_N5, wanted.boxes_N5)  # type: ignore[arg-type]
    with pytest.raises(Unreadable, match=r"'democracy' describes no scene.*--boxes"):
        one("layout", "democracy")
    with pytest.raises(Unreadable, match=r"names none of this model's classes.*--boxes \"animal 0 0.1"):
        one("animals", text)  # 80 classes, and 80 are colours times shapes: that says nothing


def test_a_map_from_words_is_that_of_training() -> None:
    text = "a red circle left of a blue square"
    prompt, line = one("map", text, seed=2)
    wanted = ports.SemanticMap(size=8)(type("Row", (), {"prompt": Prompt(truth=scene_of(text, 2)), "key": "x"})(), None)  # type: ignore[arg-type]
    assert torch.equal(prompt.image_CHW, wanted.image_CHW) and line == "a map made from the words"  # type: ignore[arg-type]
    with pytest.raises(Unreadable, match="--image"):
        one("map", "民主")


def test_a_small_and_a_holed_picture_from_words() -> None:
    text = "a large red circle"
    prompt, line = one("enlarge", text)
    assert prompt.image_CHW is not None and prompt.image_CHW.shape == (3, 2, 2) and line == "the words' scene drawn, reduced to 2 x 2"
    whole = torch.from_numpy(scenes.render(scene_of(text, 0), 128).copy()).permute(2, 0, 1).float() / 127.5 - 1  # type: ignore[arg-type]
    assert (prompt.image_CHW - whole.unflatten(1, (2, 64)).unflatten(3, (2, 64)).mean((2, 4))).abs().max() < 0.01
    prompt, line = one("repair", text)
    assert prompt.image_CHW is not None and prompt.mask_1HW is not None and prompt.image_CHW.shape == (3, 8, 8)
    assert prompt.mask_1HW.shape == (1, 8, 8) and prompt.mask_1HW.sum() == 16 and prompt.mask_1HW[0, 2:6, 2:6].all()
    assert line == "the words' scene drawn, a hole of 4 x 4 in the middle of 8 x 8"


def test_words_that_are_no_scene_are_drawn_by_the_default_model(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from triptych.app import ask

    monkeypatch.setattr("triptych.app.models.DEFAULT_MODEL", str(model))
    for cache in (ask._default, ask._by_default):
        cache.cache_clear()
    (first, other), lines = asked(drawer("enlarge"), ["democracy", "democracy"], [0, 1])
    assert lines == [f"drawn by {model} from the words, reduced to 2 x 2"] * 2
    assert not torch.equal(first.image_CHW, other.image_CHW)  # type: ignore[arg-type]
    for cache in (ask._default, ask._by_default):
        cache.cache_clear()


# --- what is given ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(here: Path) -> Path:
    """Left half red, right half blue, wider than high."""
    pixels = np.zeros((20, 40, 3), dtype=np.uint8)
    pixels[:, :20, 0], pixels[:, 20:, 2] = 255, 255
    Image.fromarray(pixels).save(here / "photo.png")
    return here / "photo.png"


def test_a_class_by_number_and_by_name() -> None:
    for text in ("3", "star", "Star", "星形"):
        assert one("classes", "a red circle", Given.of(label=text))[0].label == 3
    assert one("numbers", "", Given.of(label="47"))[0].label == 47
    for text, said in (("48", "0..47"), ("starr", "did you mean 'star'"), ("-1", "no class")):
        with pytest.raises(ValueError, match=said):
            one("classes" if text == "starr" else "numbers", "", Given.of(label=text))
    with pytest.raises(ValueError, match="the classes have no names: say a number"):
        one("numbers", "", Given.of(label="star"))


def test_boxes_as_typed(here: Path) -> None:
    prompt, line = one("layout", "", Given.of(boxes="red circle 0.1,0.2,0.5,0.6; 黑色心形 0.5,0.5,1,1 ;"))
    names = ports.class_names("color shape")
    classes = [next(i for i, every in enumerate(names) if name in every.split("|")) for name in ("red circle", "黑色心形")]
    wanted = torch.tensor([[classes[0], 0.3, 0.4, 0.4, 0.4], [classes[1], 0.75, 0.75, 0.5, 0.5]])
    assert prompt.boxes_N5 is not None and torch.allclose(prompt.boxes_N5, wanted) and not line
    found = {"objects": [{"label": "red circle", "class": 0, "box": {"x": 0.3, "y": 0.4, "width": 0.4, "height": 0.4}}]}
    (here / "b.json").write_text(json.dumps(found))  # as `triptych detect --json` prints
    read = one("layout", "", Given.of(boxes="b.json"))[0].boxes_N5
    assert read is not None and torch.allclose(read, wanted[:1])
    assert one("layout", "", Given.of(boxes=""))[0].boxes_N5.shape == (0, 5)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("circle", "no class with left,top,right,bottom"),
        ("circle 0.1,0.2,0.3", "no class with"),
        ("circle 0.1, 0.2, 0.3, 0.4", "without spaces"),
        ("circle 0.5,0.2,0.1,0.6", "left before right"),
        ("circle 0.1,0.2,0.5,1.6", "0.1,0.2,0.5,1.6"),
        ("circle 0.1,nan,0.5,0.6", "four numbers"),
        ("no.json", "no.json"),
    ],
)
def test_boxes_that_cannot_be_read(here: Path, text: str, said: str) -> None:
    with pytest.raises((ValueError, OSError)) as refused:
        Given.of(boxes=text)
    assert said in str(refused.value)


@pytest.mark.parametrize("text", ["{", "[1]", '[{"label": "a"}]', '[{"label": "a", "box": {"x": "0"}}]', "3", "\xff", "[" * 100_000])
def test_files_of_boxes_that_are_none(here: Path, text: str) -> None:
    from triptych.app.errors import Failure

    (here / "b.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(Failure, match=r"b\.json") as refused:
        Given.of(boxes="b.json")
    assert refused.value.code == "bad_data"


def test_a_picture_as_given(photo: Path) -> None:
    prompt, line = one("enlarge", "", Given.of(image=str(photo)))
    assert prompt.image_CHW.shape == (3, 2, 2) and line == "a picture of 40 x 20, reduced to 2 x 2"  # type: ignore[union-attr]
    assert prompt.image_CHW[0, 0].tolist() == [1, -1] and prompt.image_CHW[2, 0].tolist() == [-1, 1]  # type: ignore[index]
    prompt, line = one("map", "", Given.of(image=str(photo)))
    assert prompt.image_CHW.shape == (3, 8, 8) and set(prompt.image_CHW.unique().tolist()) == {-1.0, 1.0} and not line  # type: ignore[union-attr]
    Image.new("1", (40, 40), 1).save("mask.png")
    prompt, line = one("repair", "", Given.of(image=str(photo), mask="mask.png"))
    assert prompt.mask_1HW.all() and not line  # type: ignore[union-attr]
    prompt, line = one("repair", "", Given.of(image=str(photo)))
    assert line == "a hole of 4 x 4 in the middle of 8 x 8"


def test_what_is_not_read_is_refused(photo: Path) -> None:
    with pytest.raises(ValueError, match="--boxes, --label: enlarge does not read that; it reads image"):
        one("enlarge", "", Given.of(label="3", boxes="circle 0,0,1,1"))
    with pytest.raises(ValueError, match="nothing does not read that; it reads nothing"):
        one("nothing", "", Given.of(image=str(photo)))


# --- the command line -------------------------------------------------------------------------------------------------------


def test_generate_says_what_it_made(run: Callable, drawers: dict[str, Path]) -> None:
    ran = run("generate", "a red circle", "a blue star", "-n", 2, "--seed", 1, "--model", drawers["layout"], "-o", "l/")
    assert ran.code == 0 and len(ran.out.split()) == 4
    assert ran.err.splitlines() == ["'a blue star': 1 box made from the words", "'a red circle': 1 box made from the words"]
    ran = run("generate", "democracy", "--model", drawers["layout"], "--seed", 1)
    assert ran.code == 2 and "--boxes" in ran.err and not list(Path().glob("out/*"))
    ran = run("generate", "x", "--boxes", "circle 0,0,1,1", "--model", drawers["enlarge"], "--seed", 1)
    assert ran.code == 2 and "does not read that" in ran.err
    assert run("generate", "x", "--image", "no.png", "--model", drawers["enlarge"]).code == 2


def test_without_words_and_again_from_the_record(run: Callable, drawers: dict[str, Path], photo: Path) -> None:
    def again(old: str, *more: str | Path) -> Any:
        return run("generate", "--from", old, "-o", f"again-{old}", *more)

    def same(old: str) -> bool:
        return Image.open(old).tobytes() == Image.open(f"again-{old}").tobytes()

    for label_ in ("0", "star"):
        assert run("generate", "--label", label_, "--seed", 1, "--model", drawers["classes"], "-o", f"{label_}.png").code == 0
    assert Image.open("0.png").tobytes() != Image.open("star.png").tobytes()
    assert again("star.png", "--model", drawers["classes"]).code == 0 and same("star.png")
    boxes = ("--boxes", "red circle 0.1,0.2,0.5,0.6")
    assert run("generate", *boxes, "--seed", 1, "--model", drawers["layout"], "-o", "box.png").code == 0
    record = pictures.read("box.png")
    assert record is not None and record["given"] == {"boxes": [["red circle", 0.3, 0.4, 0.4, 0.39999999999999997]]}
    assert again("box.png", "--model", drawers["layout"]).code == 0 and same("box.png")
    assert run("generate", "--image", photo, "--seed", 1, "--model", drawers["enlarge"], "-o", "up.png").code == 0
    ran = again("up.png", "--model", drawers["enlarge"])
    assert ran.code == 3 and "photo.png" in ran.err and "--image" in ran.err
    Image.new("RGB", (40, 20)).save("other.png")
    ran = again("up.png", "--model", drawers["enlarge"], "--image", "other.png")
    assert ran.code == 3 and "is another" in ran.err
    assert again("up.png", "--model", drawers["enlarge"], "--image", photo).code == 0 and same("up.png")


@pytest.mark.parametrize("given", [{"label": 3}, {"boxes": "x"}, {"boxes": [["a", "b"]]}, {"boxes": [["a", 0, 0, 9, 9]]}, {"boxes": [3]}])
def test_a_hostile_record(run: Callable, drawers: dict[str, Path], given: dict[str, Any]) -> None:
    assert run("generate", "--boxes", "red circle 0.1,0.2,0.5,0.6", "--seed", 1, "--model", drawers["layout"], "-o", "box.png").code == 0
    record = pictures.read("box.png")
    assert record is not None
    pictures.write(Image.open("box.png"), "bad.png", {**record, "given": given})
    assert run("generate", "--from", "bad.png", "--model", drawers["layout"], "-o", "c.png").code == 3


def test_compare_many(run: Callable, drawers: dict[str, Path], model: Path, here: Path) -> None:
    drawers = {kind: folder for kind, folder in drawers.items() if kind not in ("scenes", "animals")}
    listed = ",".join(str(folder) for folder in drawers.values())
    ran = run(
        "compare", "a red circle left of a blue square", "democracy", "--models", listed, "--model", model, "-o", "sheet.png", "--json"
    )
    assert ran.code == 0, ran.err
    notes, scene, none = ran.json["notes"], "made from the words", "not drawn: the words describe no scene"
    assert notes[model.name] == [] and notes["nothing"] == ["unconditional: hears no words"]
    assert notes["layout"] == [f"2 boxes {scene}", none] and notes["map"] == [f"a map {scene}", none]
    assert notes["enlarge"] == ["drawn by emoji from the words, reduced to 2 x 2", "the words' scene drawn, reduced to 2 x 2"]
    assert ran.json["models"] == [model.name, *drawers] and "layout: 2 boxes" in ran.err
    with Image.open("sheet.png") as sheet:
        assert sheet.width == 8 * 168 + 16 and sheet.height > 2 * (160 + 60)
        grey = sum(n for n, color in sheet.getcolors(2**20) or () if color == (208, 208, 208))
    assert grey >= 2 * 160 * 160, "two models needed a scene"
    assert run("compare", "a", "--models", listed, "--all").code == 2


def test_compare_two_side_by_side(run: Callable, drawers: dict[str, Path], model: Path) -> None:
    ran = run("compare", "a", "b", "c", "--model", model, "--model", drawers["nothing"], "-o", "s.png", "--steps", 1)
    assert ran.code == 0 and ran.err == "nothing: unconditional: hears no words\n"
    with Image.open("s.png") as sheet:
        assert sheet.width == 3 * (2 * 168 + 16)


def test_judges_ask_as_people_do(run: Callable, drawers: dict[str, Path]) -> None:
    from triptych.app.judge import drawing

    here = drawer("map")
    scene = scene_of("a red circle", 0)
    (picture_,) = drawing(here, {})([Prompt(text="a red circle", truth=scene)], [0])
    assert picture_.size == (8, 8)


def test_a_guide_of_the_models_own(run: Callable, model: Path, here: Path) -> None:
    """It pulls without being asked for, is recorded, and can be made stronger or taken away."""
    import shutil

    from triptych.eyes import EYES

    own = shutil.copytree(model, here / "own")
    described = json.loads((own / "triptych.json").read_text())
    (own / "triptych.json").write_text(json.dumps({**described, "guide": {"eyes": EYES, "scale": 20.0}}))
    base = ["generate", "a red apple", "--seed", "1", "--steps", "2", "--model", own, "-o"]
    for name, more in (("on", []), ("off", ["--guide-scale", "0"]), ("more", ["--guide-scale", "90"])):
        assert run(*base, f"{name}.png", *more).code == 0
    assert run(*base[:-2], model, "-o", "plain.png").code == 0
    drawn = {name: Image.open(f"{name}.png").tobytes() for name in ("on", "off", "more", "plain")}
    assert drawn["off"] == drawn["plain"] and len(set(drawn.values())) == 3
    told = {name: (pictures.read(f"{name}.png") or {}).get("guide") for name in drawn}
    assert told["plain"] is None and [told[name]["scale"] for name in ("on", "off", "more")] == [20.0, 0.0, 90.0]  # type: ignore[index]
    for name in ("on", "off", "more"):
        assert run("generate", "--from", f"{name}.png", "--model", own, "-o", f"{name}-again.png").code == 0
        assert Image.open(f"{name}-again.png").tobytes() == drawn[name], name
    assert run(*base[:-2], model, "-o", "x.png", "--guide-scale", "3").code == 2
