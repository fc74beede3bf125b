"""COCO files written here: boxes stay on what they name, and what is wrong is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from triptych import data
from triptych.data.coco import cut
from triptych.recipe import Data, Source

RED, BLUE = (200, 20, 20), (20, 20, 200)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """40 pictures of 96 x 64 with a red box (category 7) and, beyond the middle square, a blue one (category 3)."""
    (tmp_path / "pictures").mkdir()
    images, annotations = [], []
    for i in range(40):
        pixels = np.full((64, 96, 3), 255, dtype=np.uint8)
        left, top = 20 + i % 20, 10 + i % 30
        pixels[top : top + 16, left : left + 24] = RED
        pixels[50:60, 0:20] = BLUE  # of its 20 columns 4 are in the middle square
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"{i:03}.png")
        images.append({"id": 100 + i, "file_name": f"{i:03}.png", "width": 96, "height": 64})
        annotations.append({"id": 2 * i, "image_id": 100 + i, "category_id": 7, "bbox": [left, top, 24, 16], "iscrowd": 0})
        annotations.append({"id": 2 * i + 1, "image_id": 100 + i, "category_id": 3, "bbox": [0, 50, 20, 10], "iscrowd": 0})
        annotations.append({"id": 900 + i, "image_id": 100 + i, "category_id": 7, "bbox": [0, 0, 90, 60], "iscrowd": 1})
    categories = [{"id": 7, "name": "red thing"}, {"id": 3, "name": "blue thing"}]
    write(tmp_path, {"images": images, "annotations": annotations, "categories": categories})
    words = [{"image_id": 100 + i, "caption": f" picture  {i}, {which}"} for i in range(60) for which in ("so", "or so")]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": words}))
    return tmp_path


def write(folder: Path, value: dict[str, Any]) -> None:
    (folder / "instances.json").write_text(json.dumps(value))


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "instances.json").read_text())


def spec(folder: Path, size: int = 32, **options: Any) -> Data:
    options = {"path": str(folder / "pictures"), "annotations": str(folder / "instances.json"), **options}
    return Data(sources=(Source(name="coco", options=options),), size=size)


def test_boxes_lie_on_what_they_name(folder: Path) -> None:
    dataset = data.build(spec(folder, size=64, least=0.1))
    source = dataset.sources[0]
    assert source.labels == ("blue thing", "red thing")  # by id
    batch = dataset.batch(0, 0, 16)
    for image, prompt in zip(batch.images_BCHW, batch.prompts, strict=True):
        assert prompt.text == "" and prompt.boxes_N5.dtype == torch.float32 and len(prompt.boxes_N5) == 2
        for label, cx, cy, w, h in prompt.boxes_N5.tolist():
            left, top, right, bottom = (round(64 * v) for v in (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
            inside = image[:, top:bottom, left:right]
            wanted = torch.tensor(RED if label == 1 else BLUE)[:, None, None] / 127.5 - 1
            assert inside.numel() and (inside - wanted).abs().median() < 0.02
    assert all(len(prompt.boxes_N5) == 1 for prompt in data.build(spec(folder)).batch(0, 0, 16).prompts)  # a fifth is too little
    assert data.build(spec(folder, least=0.1, most=1)).row(0, 0).prompt.boxes_N5[:, 0].tolist() == [1.0]


def test_cutting_against_brute_force() -> None:
    g = np.random.default_rng(0)
    for _ in range(200):
        width, height = (int(v) for v in g.integers(10, 40, 2))
        w, h = (int(v) for v in g.integers(1, 12, 2))
        left, top = int(g.integers(0, width)), int(g.integers(0, height))
        covered = np.zeros((height + 12, width + 12), dtype=bool)
        covered[top : top + h, left : left + w] = True
        side = min(width, height)
        x0, y0 = (width - side) // 2, (height - side) // 2
        if (width - side) % 2 or (height - side) % 2:
            continue
        square = covered[y0 : y0 + side, x0 : x0 + side]
        found = cut([(0.0, left, top, w, h)], width, height, 0.25)
        if square.sum() < 0.25 * w * h:
            assert len(found) == 0 and found.shape == (0, 5)
            continue
        ys, xs = np.nonzero(square)
        wanted = [0, (xs.min() + xs.max() + 1) / 2, (ys.min() + ys.max() + 1) / 2, np.ptp(xs) + 1, np.ptp(ys) + 1]
        np.testing.assert_allclose(found[0].numpy() * [1, side, side, side, side], wanted, rtol=1e-5)


def test_captions_splits_and_order(folder: Path) -> None:
    described = spec(folder, captions=str(folder / "captions.json"))
    train, held = data.build(described), data.build(described, split="held_out")
    assert train.sources[0].count + held.sources[0].count == 40 and held.sources[0].count >= 1
    keys = [{d.row(0, i).key for i in range(len(d))} for d in (train, held)]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == 40
    texts = [train.row(0, i).prompt.text for i in range(200)]
    assert texts == [data.build(described).row(0, i).prompt.text for i in range(200)] == train.texts(200)
    assert all(text.startswith("picture ") and "  " not in text for text in texts) and len(set(texts)) > len(train)
    report = data.describe(described)["sources"][0]["train"]
    assert report["classes"] == 2 and report["boxes"] == 2 * report["pictures"] and report["broken"] == {}
    alone = data.build(spec(folder, size=0))
    assert alone.batch(0, 0, 3).images_BCHW is None and len(alone.row(0, 0).prompt.boxes_N5) == 1
    assert data.contact_sheet(train.batch(0, 0, 4)).size[0] > 100


def test_the_name_of_a_picture_is_its_content(folder: Path) -> None:
    before = {data.build(spec(folder)).row(0, i).key for i in range(30)}
    Image.new("RGB", (96, 64), "green").save(folder / "pictures" / "000.png")
    after = {data.build(spec(folder)).row(0, i).key for i in range(30)}
    assert before != after


def broken(folder: Path, change: str) -> str:
    """Change the instances file; returns what must be said."""
    value = read(folder)
    entry = {"images": value["images"][4], "annotations": value["annotations"][5]}
    if change == "gone":
        (folder / "pictures" / "003.png").unlink()
        return "not in .*: 003.png"
    if change == "outside":
        entry["images"]["file_name"] = "../secret.png"
        said = "images.4: file_name '../secret.png' leads out"
    elif change == "category":
        entry["annotations"]["category_id"] = 99
        said = "annotations.5: category_id 99 is nowhere"
    elif change == "image":
        entry["annotations"]["image_id"] = 5
        said = "annotations.5: image_id 5 is nowhere"
    elif change == "bbox":
        entry["annotations"]["bbox"] = [1, 2, float("nan"), 3]
        said = "annotations.5: bbox .* is no"
    elif change == "width":
        entry["images"]["width"] = "96"
        said = "images.4: width is '96', expected a whole number"
    elif change == "size":
        for image in value["images"]:
            image["height"] = 65
        said = "40 of 40 pictures cannot be read: .*it is 96 x 64, its annotation says 96 x 65"
    else:
        del value["categories"]
        said = "no list of objects 'categories'"
    if change == "size":
        data.build(spec(folder))  # nothing that was kept then hides it
    write(folder, value)
    return said


@pytest.mark.parametrize("change", ["gone", "outside", "category", "image", "bbox", "width", "size", "categories"])
def test_what_is_wrong_is_named(folder: Path, change: str) -> None:
    said = broken(folder, change)
    with pytest.raises(ValueError, match=said):
        data.build(spec(folder))


def test_files_that_cannot_be_read(folder: Path) -> None:
    with pytest.raises(ValueError, match="needs the options 'path'"):
        data.build(Data(sources=(Source(name="coco"),)))
    with pytest.raises(ValueError, match=r"nowhere\.json cannot be read"):
        data.build(spec(folder, annotations=str(folder / "nowhere.json")))
    (folder / "bad.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"bad\.json is not JSON"):
        data.build(spec(folder, annotations=str(folder / "bad.json")))
    (folder / "pictures" / "007.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"1 of 40 pictures cannot be read: 007.png \(no PNG, JPEG, WEBP or GIF"):
        data.build(spec(folder))
