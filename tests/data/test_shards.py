"""Shards that were cut, flipped or made on purpose: what is lost is named with shard, member and offset, and the rest is used."""

from __future__ import annotations

import io
import json
import os
import random
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from triptych.data import store
from triptych.data.album import Album
from triptych.data.forms import Reading
from triptych.data.forms.shards import BLOCK, index_of

N = 24


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def png(i: int, side: int = 12) -> bytes:
    data = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(data, "png")
    return data.getvalue()


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "own" / "00000.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for i in range(N):
            add(tar, f"p{i:03}.png", png(i))
            add(tar, f"p{i:03}.txt", f"picture {i}".encode())
    return path


def looked(shard: Path) -> Album:
    return Album(shard.parent, Reading(), strict=False)


def test_the_index_is_written_once_beside_the_shard(shard: Path) -> None:
    album = looked(shard)
    beside = shard.with_name("00000.tar.index.json")
    members = json.loads(beside.read_text())["members"]
    assert len(album) == N and len(members) == 2 * N and not album.faults
    content = shard.read_bytes()
    assert all(content[offset : offset + size] == (png(int(name[1:4])) if name.endswith("png") else f"picture {int(name[1:4])}".encode())
               for name, offset, size, _ in members)  # fmt: skip
    before = beside.stat().st_mtime_ns
    assert len(looked(shard)) == N and beside.stat().st_mtime_ns == before


def test_a_folder_that_cannot_be_written_to(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root every folder can: the place beside the shard is taken by a folder of that name."""
    shard.with_name("00000.tar.index.json").mkdir()
    assert len(looked(shard)) == N and list(store.cache_folder().glob("shard-*.index.json"))


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("at", [0.11, 0.5, 0.9, 0.97])
def test_a_shard_that_was_cut(shard: Path, at: float, indexed: bool) -> None:
    if indexed:
        index_of(shard)
    members = index_of(shard)[0]
    if not indexed:
        shard.with_name("00000.tar.index.json").unlink()
    cut = int(at * members[-1].offset)
    with open(shard, "r+b") as file:
        file.truncate(cut)
    album = looked(shard)
    whole = sum(one.offset + one.size <= cut for one in members if one.name.endswith("png"))
    assert whole - 1 <= len(album) <= whole and [album.captions(i)[0] for i in range(len(album))]
    assert all(fault.name.startswith("00000.tar") for fault in album.faults)
    if indexed:  # it knows what there was
        assert len(album) + album.wrong == N
        assert any("is gone" in fault.reason or "too early" in fault.reason for fault in album.faults)
    elif cut % BLOCK and not any(one.offset + one.size <= cut < one.offset + one.size + BLOCK for one in members):
        assert album.faults, (at, cut)
    if album.wrong:
        with pytest.raises(ValueError, match=r"cannot be used: 00000\.tar/p\d+\.png"):
            Album(shard.parent, Reading())


def flips(shard: Path, seed: int) -> int:
    content = bytearray(shard.read_bytes())
    rng = random.Random(seed)
    at = rng.randrange(len(content) - 2 * BLOCK)
    content[at] ^= 1 << rng.randrange(8)
    shard.write_bytes(content)
    os.utime(shard, ns=(seed, seed))
    return at


@pytest.mark.parametrize("seed", range(20))
def test_a_bit_that_was_flipped(shard: Path, seed: int) -> None:
    """Used and named are all that was written; nothing that is used is another picture than it was."""
    known = {png(i): f"picture {i}" for i in range(N)}
    looked(shard)
    at = flips(shard, seed)
    album = looked(shard)
    assert len(album) + album.wrong == N, (at, album.faults)
    assert len(album) >= N - 1
    assert all(known[album.bytes(i)] == album.captions(i)[0] for i in range(len(album)))


def test_another_shard_of_the_same_name_is_read_anew(shard: Path) -> None:
    looked(shard)
    with tarfile.open(shard, "w") as tar:
        for i in range(5):
            add(tar, f"q{i}.png", png(100 + i, 20))
            add(tar, f"q{i}.txt", b"another")
    album = looked(shard)
    assert len(album) == 5 and not album.faults


def test_members_that_would_do_harm_are_passed_over(tmp_path: Path) -> None:
    root = tmp_path / "own"
    root.mkdir()
    with tarfile.open(root / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("../out.png", "/etc/out.png", "c:/out.png", ".hidden.png", "a.pkl", "a.pyd", "a.pickle", "pipe:ls.png"):
            add(tar, name, png(0))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            link = tarfile.TarInfo(f"link{kind[0]}.png")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
        long = "d/" * 80 + "x"
        for i in range(3):
            add(tar, f"{long}{i}.png", png(i))
            add(tar, f"{long}{i}.json", json.dumps({"caption": ["one", "two"]}).encode())
        add(tar, "none.png", png(7))
        add(tar, "only.txt", b"words without a picture")
        add(tar, "bad.png", b"\x80\x04\x95no picture")
        add(tar, "bad.txt", b"words")
        add(tar, "latin.png", png(8))
        add(tar, "latin.txt", "né".encode("latin-1"))
    album = Album(root, Reading(), strict=False)
    assert [one.captions for one in album.each()] == [("one", "two")] * 3
    said = {fault.name: fault.reason for fault in album.faults}
    assert "has no words" in said["x.tar/none.png"] and "no picture" in said["x.tar/only"] and "not UTF-8" in said["x.tar/latin.png"]
    assert "no PNG" in said["x.tar/bad.png"] and "at " in said["x.tar/bad.png"] and len(said) == album.wrong == 4


def test_no_tar_at_all(tmp_path: Path) -> None:
    for name, content in {"zeros.tar": bytes(10_000), "empty.tar": b"", "noise.tar": random.Random(0).randbytes(50_000)}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match="holds no picture"):
        Album(tmp_path, Reading(), strict=False)
