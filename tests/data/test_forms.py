"""The same 300 pictures and captions in every form: one index, one order, one first batch; and outside writers agree."""

from __future__ import annotations

import csv
import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from triptych import data
from triptych.data.album import Album
from triptych.data.forms import Reading
from triptych.recipe import Buckets, Data, Source

N = 300
Pair = tuple[str, bytes, str]  # key, the picture's bytes, caption


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    """Pictures of several shapes and formats; captions in two languages, the class among them."""
    rng, made = np.random.default_rng(0), []
    for i in range(N):
        kind, ending = random.Random(i).choice([("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp")])
        height, width = random.Random(i).choice([(40, 40), (48, 32), (30, 60), (33, 41)])
        data = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(data, kind)
        made.append((f"{('dog', 'red_cat')[i % 2]}/p{i:03}.{ending}", data.getvalue(), f"a photo of a {('dog', 'red cat')[i % 2]}"))
    return made


def put(root: Path, pairs: list[Pair], *, text: bool = False) -> None:
    for name, picture, caption in pairs:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture)
        if text:
            (root / name).with_suffix(".txt").write_text(caption + "\n", encoding="utf-8")


def sidecars(root: Path, pairs: list[Pair]) -> None:
    put(root, pairs, text=True)


def classes(root: Path, pairs: list[Pair]) -> None:
    put(root, pairs)


def jsonl(root: Path, pairs: list[Pair]) -> None:
    put(root, pairs)
    lines = [json.dumps({"file_name": name, "text": caption}) for name, _, caption in pairs]
    (root / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def table(root: Path, pairs: list[Pair]) -> None:
    put(root, pairs)
    with open(root / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "caption"), *((name, caption) for name, _, caption in pairs)])


def parquet_table(root: Path, pairs: list[Pair]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    put(root, pairs)
    columns = {"file_name": [name for name, _, _ in pairs], "text": [caption for *_, caption in pairs]}
    parquet.write_table(pa.table(columns), root / "metadata.parquet")


def kohya(root: Path, pairs: list[Pair]) -> None:
    """Its keys are paths of whatever machine, without their ending; tags stand beside."""
    put(root, pairs)
    told = {f"D:/pictures/train/{name.rsplit('.', 1)[0]}": {"caption": caption, "tags": "x, y"} for name, _, caption in pairs}
    (root / "meta_lat.json").write_text(json.dumps(told), encoding="utf-8")


def coco(root: Path, pairs: list[Pair]) -> None:
    put(root / "images", pairs)
    images = [{"id": i, "file_name": name} for i, (name, *_) in enumerate(pairs)]
    said = [{"id": 9 * i, "image_id": i, "caption": caption} for i, (*_, caption) in enumerate(pairs)]
    random.Random(0).shuffle(said)
    (root / "captions.json").write_text(json.dumps({"images": images, "annotations": said}), encoding="utf-8")


def shards(root: Path, pairs: list[Pair]) -> None:
    """By our own hand, words before pictures, some as JSON."""
    for k in range(3):
        with tarfile.open(root / f"{k:05}.tar", "w") as tar:
            for i, (name, picture, caption) in enumerate(pairs[k::3]):
                key, ending = name.rsplit(".", 1)
                words = (f"{key}.json", json.dumps({"text": caption}).encode()) if i % 2 else (f"{key}.txt", caption.encode())
                for member, content in (words, (f"{key}.{ending}", picture), (f"{key}.cls", b"3")):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def webdataset_shards(root: Path, pairs: list[Pair]) -> None:
    """By webdataset's own writer."""
    import webdataset

    with webdataset.ShardWriter(str(root / "%05d.tar"), maxcount=100, verbose=0) as sink:
        for name, picture, caption in pairs:
            key, ending = name.rsplit(".", 1)
            sink.write({"__key__": key, ending: picture, "txt": caption})


def parquet(root: Path, pairs: list[Pair]) -> None:
    """By datasets' own writer."""
    import datasets

    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    rows = {"image": [{"bytes": picture, "path": name} for name, picture, _ in pairs], "text": [caption for *_, caption in pairs]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(root / "train-00000-of-00001.parquet")


WRITERS: dict[str, tuple[Callable[[Path, list[Pair]], None], dict[str, Any], str]] = {
    "sidecars": (sidecars, {}, "sidecars"), "classes": (classes, {"form": "classes"}, "classes"), "jsonl": (jsonl, {}, "table"),
    "csv": (table, {}, "table"), "parquet table": (parquet_table, {}, "table"), "kohya": (kohya, {}, "kohya"), "coco": (coco, {}, "coco"),
    "shards": (shards, {}, "shards"), "webdataset": (webdataset_shards, {}, "shards"), "parquet": (parquet, {}, "parquet"),
}  # fmt: skip


def spec(path: Path, **options: Any) -> Data:
    return Data(sources=(Source(name="folder", options={"path": str(path), **options}),), size=32)


@pytest.fixture(scope="module")
def first(pairs: list[Pair], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[tuple], Any, Any]:
    """The index, the order and the first batch of the plainest form."""
    root = tmp_path_factory.mktemp("first")
    sidecars(root, pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        dataset = data.build(spec(root))
        index = [(one.digest, one.captions, one.held) for one in Album(root, Reading()).each()]
        return index, [dataset.row(3, n).key for n in range(2 * N)], dataset.batch(3, 0, 16)


@pytest.mark.parametrize("form", WRITERS)
def test_every_form_is_the_same_album(form: str, pairs: list[Pair], first: tuple, tmp_path: Path) -> None:
    write, options, said = WRITERS[form]
    root = tmp_path / "own"
    root.mkdir()
    write(root, pairs)
    album = Album(root, Reading(**options))
    assert album.form == said and len(album) == N and not album.faults
    index, order, batch = first
    assert [(one.digest, one.captions, one.held) for one in album.each()] == index
    dataset = data.build(spec(root, **options))
    assert [dataset.row(3, n).key for n in range(2 * N)] == order
    mine = dataset.batch(3, 0, 16)
    assert mine.keys == batch.keys and mine.images_BCHW.equal(batch.images_BCHW)
    assert [prompt.text for prompt in mine.prompts] == [prompt.text for prompt in batch.prompts]


def test_pictures_alone_are_the_same_pictures(pairs: list[Pair], first: tuple, tmp_path: Path) -> None:
    for form in ("sidecars", "shards", "parquet"):
        root = tmp_path / form
        root.mkdir()
        WRITERS[form][0](root, pairs)
        album = Album(root, Reading(captions=False))
        assert [(one.digest, one.captions) for one in album.each()] == [(digest, ()) for digest, *_ in first[0]]


def test_datasets_reads_the_same_pairs(pairs: list[Pair], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's own reader of imagefolder and of Parquet, offline: the same captions by the same pictures."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    for form in ("jsonl", "parquet"):
        root = tmp_path / form
        root.mkdir()
        WRITERS[form][0](root, pairs)
        kind, files = ("imagefolder", {"data_dir": str(root)}) if form == "jsonl" else ("parquet", {"data_files": str(root / "*.parquet")})
        theirs = datasets.load_dataset(kind, split="train", cache_dir=str(tmp_path / "hf"), **files)
        seen = sorted((np.asarray(row["image"].convert("RGB")).tobytes(), row["text"]) for row in theirs)
        album = Album(root, Reading())
        assert seen == sorted((_pixels(album.bytes(i)), album.captions(i)[0]) for i in range(len(album)))


def test_webdataset_reads_the_same_pairs(pairs: list[Pair], tmp_path: Path) -> None:
    import webdataset

    shards(tmp_path, pairs)
    theirs = webdataset.WebDataset(sorted(map(str, tmp_path.glob("*.tar"))), shardshuffle=False)
    seen = sorted(next(row[e] for e in ("png", "jpg", "webp") if e in row) for row in theirs)
    album = Album(tmp_path, Reading())
    assert seen == sorted(album.bytes(i) for i in range(len(album)))


def _pixels(picture: bytes) -> bytes:
    return np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).tobytes()


# --- captions ---------------------------------------------------------------------------------------------------------------


def test_several_captions_take_turns_by_epoch(pairs: list[Pair], tmp_path: Path) -> None:
    put(tmp_path, pairs[:40])
    for name, *_ in pairs[:40]:
        (tmp_path / name).with_suffix(".txt").write_text(f"{name} one\n\n{name} two\n{name} three\n")
    dataset = data.build(spec(tmp_path, lines=True))
    n = len(dataset)
    epochs = [{(row := dataset.row(0, e * n + i)).key: row.prompt.text for i in range(n)} for e in range(6)]
    assert all(len(one) == n for one in epochs)
    heard = [{epoch[key] for epoch in epochs} for key in epochs[0]]
    assert min(map(len, heard)) >= 1 and sum(map(len, heard)) > 2 * n  # of three captions more than two in six epochs
    assert {dataset.row(0, i).prompt.text for i in range(n)} == {dataset.row(0, i).prompt.text for i in range(n)}
    joined = data.build(spec(tmp_path))
    assert "one" in joined.row(0, 0).prompt.text and "three" in joined.row(0, 0).prompt.text


def test_a_word_of_ones_own(pairs: list[Pair], tmp_path: Path) -> None:
    put(tmp_path, pairs[:30], text=True)
    (tmp_path / pairs[0][0]).with_suffix(".txt").write_text("[trigger] on a hill")
    dataset = data.build(spec(tmp_path, trigger="sks robot"))
    texts = set(dataset.texts(len(dataset)))
    assert texts <= {"sks robot on a hill", "sks robot, a photo of a dog", "sks robot, a photo of a red cat"} and len(texts) >= 2
    assert set(data.build(spec(tmp_path, captions=False, trigger="sks robot")).texts(20)) == {"sks robot"}


def test_another_column_and_lists_of_captions(pairs: list[Pair], tmp_path: Path) -> None:
    put(tmp_path, pairs[:6])
    rows = [{"file_name": name, "en": caption, "zh": [f"第{i}张", "\ud83d半", ""]} for i, (name, _, caption) in enumerate(pairs[:6])]
    lines = map(json.dumps, rows)
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert {one.captions[1] for one in Album(tmp_path, Reading(column="zh")).each()} == {"?半"}
    assert {one.captions for one in Album(tmp_path, Reading(column="en")).each()} == {(caption,) for *_, caption in pairs[:6]}
    with pytest.raises(ValueError, match="has none of the columns text, caption, captions, prompt, description; name the one"):
        Album(tmp_path, Reading())
    with pytest.raises(ValueError, match="needs 'file_name' and 'fr'"):
        Album(tmp_path, Reading(column="fr"))


@pytest.mark.parametrize(("how", "message"), [
    ({"form": "folders"}, "no form 'folders'"), ({"template": "a photo"}, "write {class} there"),
    ({"form": "coco"}, "one JSON of this form"), ({"form": "shards"}, "holds no .tar"), ({"form": "parquet"}, "holds no .parquet"),
    ({"form": "classes"}, "lies in no class"),
])  # fmt: skip
def test_wrong_forms_are_named(how: dict[str, Any], message: str, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=message):
        Album(tmp_path, Reading(**how))


# --- buckets ----------------------------------------------------------------------------------------------------------------


def test_buckets(pairs: list[Pair], tmp_path: Path) -> None:
    """Batches of one shape, near the picture's own; an epoch of a bucket is a permutation, and nothing is enlarged."""
    shards(tmp_path, pairs)
    dataset = data.build(Data(sources=spec(tmp_path).sources, size=32, buckets=Buckets(step=4)))
    batches = [dataset.batch(5, step, 8) for step in range(2 * N // 8 + 8)]
    shapes = {tuple(batch.images_BCHW.shape[2:]) for batch in batches}
    assert len(shapes) >= 3 and all(batch.images_BCHW.shape[0] == 8 for batch in batches)
    assert dataset.shapes == len(shapes) and data.build(Data(sources=spec(tmp_path).sources, size=32)).shapes == 1
    assert batches[17].keys == data.build(Data(sources=spec(tmp_path).sources, size=32, buckets=Buckets(step=4))).batch(5, 17, 8).keys
    told = dataset.sources[0].describe()["buckets"]
    for shape in shapes:
        seen = [key for batch in batches if tuple(batch.images_BCHW.shape[2:]) == shape for key in batch.keys]
        count = told[f"{shape[1]}x{shape[0]}"]
        assert sorted(seen[:count]) == sorted(set(seen)) and len(set(seen)) == count  # the first epoch; and the second begins anew
        assert len(set(seen[count : 2 * count])) == min(count, len(seen) - count)
    small = data.build(Data(sources=spec(tmp_path).sources, size=64, buckets=Buckets(step=8, upscale=True)))
    assert len(small) == len(dataset)
    with pytest.raises(ValueError, match="smaller than their bucket"):
        data.build(Data(sources=spec(tmp_path).sources, size=64, buckets=Buckets(step=8)))
