"""What pictures cost before they are learnt from: looking at them once, waiting for them, memory. Beside WebDataset and `datasets`.

    python -m benchmarks.data [indexing|waiting|memory|all] [--quick] [--threads N]

indexing  pictures a second from a place that nobody has seen to one that can be trained from: ours reads, unpacks and hashes every picture
          once. `datasets` copies them into its own files and unpacks none; WebDataset has no index: one pass over its shards, unpacking
waiting   how much of a training step is spent waiting for its batch: the step of recipe `ddpm` (compiled, bf16 where there is), batches
          of 64 pictures of 32 and of 64 pixels, made while the step before is computed. The peers' loaders unpack and fit each picture
          whenever it comes, as their documentation shows, in a thread of their own like ours; ours does it once
memory    what a process has grown by behind opening 1,000 and 100,000 pictures, in shards of 5,000, and drawing 100 batches of them: memory
          of its own, and with it pages of files that it has mapped, which the system may take back at any time

Pictures are noise of 64 x 64 as PNG. Leave the machine alone meanwhile. Figures go to docs/results/data_speed.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import facts
from benchmarks.race import load
from triptych import data
from triptych.data.index import as_images
from triptych.data.picture import fitted
from triptych.layers.memory import forget_peak, keep_freed_memory, peak
from triptych.recipe import Data, Source

__all__ = ["indexing", "main", "memory", "waiting"]

ROOT = Path(__file__).resolve().parent.parent
FORMS = ("sidecars", "shards", "parquet")
BATCH = 64
SHARD = 5000  # pictures


# --- pictures in every form ---------------------------------------------------------------------------------------------------


def _pairs(n: int, side: int = 64) -> Iterator[tuple[str, bytes, str]]:
    draw = np.random.default_rng(0)
    for i in range(n):
        out = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(out, "png", compress_level=1)
        yield f"p{i:06}", out.getvalue(), f"picture number {i}"


def _write(root: Path, form: str, n: int, side: int = 64) -> None:
    root.mkdir(parents=True)
    if form == "sidecars":
        for name, picture, caption in _pairs(n, side):
            (root / f"{name}.png").write_bytes(picture)
            (root / f"{name}.txt").write_text(caption)
    elif form == "shards":
        pairs = _pairs(n, side)
        for number in range(-(-n // SHARD)):
            with tarfile.open(root / f"{number:05}.tar", "w") as tar:
                for name, picture, caption in islice(pairs, SHARD):
                    for ending, content in (("png", picture), ("txt", caption.encode())):
                        info = tarfile.TarInfo(f"{name}.{ending}")
                        info.size = len(content)
                        tar.addfile(info, io.BytesIO(content))
    elif form == "parquet":
        import datasets

        features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
        rows = [{"image": {"bytes": picture, "path": name}, "text": caption} for name, picture, caption in _pairs(n, side)]
        datasets.Dataset.from_list(rows, features=features).to_parquet(root / "train.parquet")


def _spec(root: Path, size: int) -> Data:
    return Data(sources=(Source(name="folder", options={"path": str(root)}),), size=size)


@contextlib.contextmanager
def _place() -> Iterator[Path]:
    """A folder of its own, and caches in it: ours and theirs begin with nothing."""
    before = {name: os.environ.get(name) for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_DATASETS_OFFLINE")}
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"XDG_CACHE_HOME": f"{folder}/cache", "HF_HOME": f"{folder}/hf", "HF_DATASETS_OFFLINE": "1"}
        try:
            yield Path(folder)
        finally:
            for name, value in before.items():
                os.environ.pop(name)
                if value is not None:
                    os.environ[name] = value


# --- indexing -----------------------------------------------------------------------------------------------------------------


def indexing(n: int, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """pictures/s of each form, by each side, medians of rounds."""
    from triptych.data.album import Album
    from triptych.data.forms import Reading

    found: dict[str, Any] = {"n": n, "forms": {}}
    with _place() as folder:
        for form in FORMS:
            root = folder / form
            _write(root, form, n)

            def ours(root: Path = root) -> None:
                shutil.rmtree(folder / "cache", ignore_errors=True)
                (root / "00000.tar.index.json").unlink(missing_ok=True)
                assert len(Album(root, Reading())) == n

            lanes = {"ours": ours, "peer": lambda form=form, root=root: _indexed_by_peer(form, root, folder, n)}
            seconds: dict[str, list[float]] = {name: [] for name in lanes}
            for _ in range(rounds):
                for name, run in lanes.items():
                    begun = time.perf_counter()
                    run()
                    seconds[name].append(time.perf_counter() - begun)
            rates = {name: n / statistics.median(some) for name, some in seconds.items()}
            found["forms"][form] = {**rates, "peer is": _peer(form), "ratio": rates["ours"] / rates["peer"]}
            say(f"{form}: ours {rates['ours']:.0f} pictures/s, {_peer(form)} {rates['peer']:.0f}")
    return found


def _peer(form: str) -> str:
    return {"sidecars": "datasets, imagefolder", "shards": "webdataset, one pass", "parquet": "datasets, parquet"}[form]


def _indexed_by_peer(form: str, root: Path, folder: Path, n: int) -> None:
    if form == "shards":
        import webdataset

        assert sum(1 for _ in webdataset.WebDataset(str(root / "00000.tar"), shardshuffle=False).decode("pil")) == n
        return
    import datasets

    datasets.disable_progress_bars()
    shutil.rmtree(folder / "hf", ignore_errors=True)
    files = {"data_dir": str(root)} if form == "sidecars" else {"data_files": str(root / "*.parquet")}
    kind = "imagefolder" if form == "sidecars" else "parquet"
    assert len(datasets.load_dataset(kind, split="train", cache_dir=str(folder / "hf"), **files)) == n


# --- waiting ------------------------------------------------------------------------------------------------------------------


def waiting(n: int, steps: int, sizes: tuple[int, ...], say: Callable[[str], None], *, compiled: bool = True) -> dict[str, Any]:
    """Shares of the time of a step, in which nothing was computed for want of a batch."""
    from triptych.recipes.diffusion import ddpm
    from triptych.training.build import build_task
    from triptych.training.report import Report
    from triptych.training.run import Run

    found: dict[str, Any] = {"n": n, "batch": BATCH, "steps": steps, "shares": {}}
    with _place() as folder:
        for form in FORMS:
            _write(folder / form, form, n)
        for size in sizes:
            lanes: dict[str, Callable[[], Iterator[Any]]] = {}
            for form in FORMS:
                dataset = data.build(_spec(folder / form, size))
                lanes[f"ours, {form}"] = lambda dataset=dataset: (dataset.batch(0, step, BATCH) for step in range(10**9))
                lanes[_peer(form)] = lambda form=form, size=size: _theirs(form, folder / form, folder, size)
            base = data.build(_spec(folder / "sidecars", size))
            recipe = replace(ddpm(), data=_spec(folder / "sidecars", size), batch=BATCH, steps=10**6, compile=compiled)
            run = Run(recipe, build_task(recipe), base, None, "cpu", Report(quiet=True))
            for _ in range(3):  # compiling is over
                run.update(base.batch(0, 0, BATCH))
            for name, lane in lanes.items():
                waited, whole = _waited(lane(), run, base, steps)
                found["shares"][f"{size} px, {name}"] = {"share": waited / whole, "step_s": whole / steps, "waited_s": waited / steps}
                say(f"{size} px, {name}: {100 * waited / whole:.2f} % of {1000 * whole / steps:.0f} ms")
    return found


def _waited(batches: Iterator[Any], run: Any, base: Any, steps: int) -> tuple[float, float]:
    """(seconds of waiting, of all) over some steps; as the trainer does it, the next batch is made while this one is learnt from."""
    known = base.batch(0, 0, BATCH)
    waited, begun = 0.0, 0.0
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches)
        for step in range(steps + 2):
            if step == 2:
                waited, begun = 0.0, time.perf_counter()
            before = time.perf_counter()
            batch = coming.result()
            waited += time.perf_counter() - before
            coming = pool.submit(next, batches)
            run.update(replace(known, images_BCHW=batch if isinstance(batch, torch.Tensor) else batch.images_BCHW))
        whole = time.perf_counter() - begun
        coming.result()
    return waited, whole


def _theirs(form: str, root: Path, folder: Path, size: int) -> Iterator[torch.Tensor]:
    """Batches by their own loader, without end: shuffled, unpacked and fitted as ours are."""
    if form == "shards":
        import webdataset

        rows = webdataset.WebDataset(str(root / "00000.tar"), shardshuffle=False).repeat().shuffle(1000)
        some: list[np.ndarray] = []
        for row in rows:
            some.append(fitted(row["png"], size))
            if len(some) == BATCH:
                yield as_images(some)
                some = []
        return
    import datasets

    files = {"data_dir": str(root)} if form == "sidecars" else {"data_files": str(root / "*.parquet")}
    kind = "imagefolder" if form == "sidecars" else "parquet"
    table = datasets.load_dataset(kind, split="train", cache_dir=str(folder / "hf"), **files)
    table, epoch = table.cast_column("image", datasets.Image(decode=False)), 0
    while True:
        shuffled = table.shuffle(seed=epoch)
        for first in range(0, len(shuffled) - BATCH + 1, BATCH):
            rows = shuffled[first : first + BATCH]["image"]
            yield as_images([fitted(row["bytes"] or Path(row["path"]), size) for row in rows])
        epoch += 1


# --- memory -------------------------------------------------------------------------------------------------------------------


def memory(counts: tuple[int, ...], say: Callable[[str], None]) -> dict[str, Any]:
    """Megabytes that a process of its own grows by, by the number of pictures: its own, and with mapped files at their peak."""
    found: dict[str, Any] = {}
    with _place() as folder:
        for n in counts:
            _write(folder / str(n), "shards", n, 16)
            for what in ("looking", "drawing"):
                command = [sys.executable, "-m", "benchmarks.data", "--one", str(folder / str(n))]
                ran = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
                own, all_ = map(float, ran.stdout.split())
                found[f"{n}, {what}"] = {"own_MB": own, "peak_with_mapped_files_MB": all_}
                say(f"{n} pictures, {what}: {own:.1f} MB of its own, at its peak {all_:.1f} MB with mapped files")
    return found


def _one(root: str) -> None:
    """Open a place and draw from it; the first time its index is made."""
    data.build(Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=16)).batch(0, 0, 4)  # what is imported is there
    forget_peak()
    before, own = peak() or 0, _own()
    dataset = data.build(_spec(Path(root), 16))
    for step in range(100):
        dataset.batch(0, step, BATCH)
    print((_own() - own) / 2**20, ((peak() or 0) - before) / 2**20)


def _own() -> int:
    """Bytes of this process that are in no file (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", nargs="?", default="all", choices=["indexing", "waiting", "memory", "all"])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if asked.one:
        _one(asked.one)
        return
    keep_freed_memory()
    torch.set_num_threads(asked.threads)
    out = (asked.out or ROOT / ("out/benchmarks" if asked.quick else "docs/results")) / "data_speed.json"
    found = json.loads(out.read_text()) if out.exists() else {}
    found |= {"quick": asked.quick, "machine": facts(), "threads": asked.threads, "load": round(load(), 2)}

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    parts: dict[str, Callable[[], Any]] = {
        "indexing": lambda: indexing(200 if asked.quick else 5000, 1 if asked.quick else 3, say),
        "waiting": lambda: waiting(200 if asked.quick else 5000, 3 if asked.quick else 60, (32,) if asked.quick else (32, 64), say),
        "memory": lambda: memory((100, 1000) if asked.quick else (1000, 100_000), say),
    }
    for name in parts if asked.part == "all" else [asked.part]:
        found[name] = parts[name]()
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    say(f"written: {out}")


if __name__ == "__main__":
    main()
