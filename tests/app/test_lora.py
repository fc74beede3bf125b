"""LoRAs on the command line: trained, drawn with, told in the record, drawn again, and written in the other dialect."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from triptych import load
from triptych.app import pictures
from triptych.app.lora import parse
from triptych.interop.lora import write
from triptych.layers import lora


@pytest.fixture
def styles(model: Path, here: Path) -> list[str]:
    """Two LoRAs of the small model, in files where the command is run."""
    for i, name in enumerate(("ink.safetensors", "gold.safetensors")):
        network = load(model).generator.network
        torch.manual_seed(i)
        lora.insert(network, 2, 3.0)
        for _, one in lora.inserted(network):
            one.B.data.normal_(0, 1.0)
        write(here / name, network)
    return ["ink.safetensors", "gold.safetensors"]


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_how_it_is_spelled(here: Path) -> None:
    (here / "odd:2").write_bytes(b"")
    for text, wanted in (
        ("a.safetensors", ("a.safetensors", None)), ("a.safetensors:0.8", ("a.safetensors", 0.8)), ("a:-0.3", ("a", -0.3)),
        ("C:\\a.safetensors", ("C:\\a.safetensors", None)), ("odd:2", ("odd:2", None)), ("odd:2:0.5", ("odd:2", 0.5)),
    ):  # fmt: skip
        assert parse(text) == wanted


def test_weights_show_and_are_told(run: Callable, model: Path, styles: list[str]) -> None:
    base = ["generate", "a red apple", "--model", model, "--seed", "7", "-o"]
    ran = run(*base, "plain.png")
    assert ran.code == 0 and "loras" not in (pictures.read("plain.png") or {})
    far = []
    for i, weight in enumerate((0.0, 0.2, 1.0)):
        ran = run(*base, f"{i}.png", "--lora", f"{styles[0]}:{weight}", "--json")
        assert ran.code == 0 and ran.json["loras"][0]["weight"] == weight and styles[0] in ran.err
        far.append(np.abs(pixels(f"{i}.png") - pixels("plain.png")).mean())
    assert far[0] == 0 < far[1] < far[2]
    assert run(*base, "both.png", "--lora", styles[0], "--lora", f"{styles[1]}:-0.5").code == 0
    record = pictures.read("both.png")
    assert record is not None and [(one["file"], one["weight"]) for one in record["loras"]] == [(styles[0], 1.0), (styles[1], -0.5)]
    assert (pixels("both.png") != pixels("2.png")).any()
    direct = load(model)
    counts = direct.add_lora(styles[0]), direct.add_lora(styles[1], -0.5)
    assert counts[0] == counts[1] > 0 and [one["hash"] for one in direct.loras] == [one["hash"] for one in record["loras"]]
    drawn = np.asarray(direct.generate(["a red apple"], seeds=[7])[0].convert("RGB")).astype(int)
    assert (drawn == pixels("both.png")).all()


def test_from_draws_the_same_pixels(run: Callable, model: Path, styles: list[str], here: Path) -> None:
    asked = ["generate", "a cat", "--model", model, "--seed", "3", "-o", "old.png", "--lora", f"{styles[0]}:0.7", "--lora", styles[1]]
    assert run(*asked).code == 0
    again = ["generate", "--from", "old.png", "--model", model, "-o"]
    assert run(*again, "new.png").code == 0 and (pixels("new.png") == pixels("old.png")).all()
    assert pictures.read("new.png") == pictures.read("old.png")
    shutil.move(styles[0], here / "elsewhere.safetensors")
    ran = run(*again, "missing.png")
    hash_ = (pictures.read("old.png") or {})["loras"][0]["hash"]
    assert ran.code == 4 and styles[0] in ran.err and hash_ in ran.err and "--lora FILE" in ran.err and not Path("missing.png").exists()
    assert run(*again, "found.png", "--lora", "elsewhere.safetensors").code == 0
    assert (pixels("found.png") == pixels("old.png")).all()
    assert run(*again, "off.png", "--lora", "elsewhere.safetensors:0").code == 0
    assert run("generate", "a cat", "--model", model, "--seed", "3", "-o", "one.png", "--lora", styles[1]).code == 0
    assert (pixels("off.png") == pixels("one.png")).all(), "what is typed goes before what is remembered"
    shutil.copy(styles[1], styles[0])
    ran = run(*again, "other.png")
    assert ran.code == 4 and "is another" in ran.err


@pytest.mark.parametrize("loras", [[3], [{"file": "x"}], [{"file": "x", "hash": 3, "weight": 1}], {"file": "x"}])
def test_a_record_that_is_none(run: Callable, model: Path, loras: object) -> None:
    run("generate", "x", "--seed", "1", "--model", model, "-o", "old.png")
    with Image.open("old.png") as image:
        text = json.loads(image.info["triptych"])
        evil = image.copy()
    from PIL import PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt("triptych", json.dumps({**text, "loras": loras}))
    evil.save("evil.png", pnginfo=chunks)
    ran = run("generate", "--from", "evil.png", "--model", model)
    assert ran.code == 3 and "loras" in ran.err and len(ran.err.splitlines()) == 1


def test_a_record_leads_nowhere_else(run: Callable, model: Path, styles: list[str], here: Path) -> None:
    """A stranger's picture may name a path: only the name is heard, beside the picture and here."""
    run("generate", "x", "--seed", "1", "--model", model, "-o", "old.png", "--lora", styles[0])
    record = pictures.read("old.png")
    assert record is not None
    (here / "deep").mkdir()
    shutil.move(styles[0], here / "deep" / styles[0])
    record["loras"][0]["file"] = str(here / "deep" / styles[0])
    pictures.write(Image.new("RGB", (8, 8)), "evil.png", record)
    assert run("generate", "--from", "evil.png", "--model", model, "-o", "x.png").code == 4


@pytest.mark.parametrize(
    ("asked", "code", "said"),
    [("nowhere.safetensors", 4, "nowhere.safetensors is missing"), ("ink.safetensors:nan", 4, "must be a number")],
)
def test_what_cannot_be_added_is_said(run: Callable, model: Path, styles: list[str], asked: str, code: int, said: str) -> None:
    ran = run("generate", "x", "--model", model, "--lora", asked, "-o", "x.png")
    assert ran.code == code and said in ran.err and len(ran.err.splitlines()) == 1 and not Path("x.png").exists()


def test_train_then_draw_then_give_away(run: Callable, model: Path, here: Path) -> None:
    """`train --lora`, `generate --lora RUN/lora`, and the other dialect, which this network has no names in."""
    recipe = f"""
name: mine
panel: generators
family: {{name: dit, size: tiny}}
process: {{name: rectified_flow}}
init: {model}
neighbours: {{text_encoder: {{model: {model}}}, decoder: {{model: {model}}}}}
data: {{sources: [{{name: scenes, options: {{cutouts: false}}}}], size: 16}}
steps: 2
batch: 2
compile: false
"""
    Path("mine.yaml").write_text(recipe)
    ran = run("train", "mine.yaml", "--lora", "2", "--out", "run")
    assert ran.code == 0, ran.err
    assert "--lora run/lora" in ran.err
    assert sorted(p.name for p in Path("run/lora").iterdir()) == ["card.json", "pytorch_lora_weights.safetensors"]
    assert "lora:\n  rank: 2" in Path("run/recipe.yaml").read_text()
    assert run("generate", "x", "--model", model, "--lora", "run/lora", "--seed", "1", "-o", "a.png").code == 0
    assert (pictures.read("a.png") or {})["loras"][0]["file"] == "pytorch_lora_weights.safetensors"
    ran = run("export", "run/lora", "--format", "kohya", "-o", "k.safetensors")
    assert ran.code == 4 and "has no name there" in ran.err
    ran = run("export", "run/model", "--format", "kohya", "-o", "k.safetensors")
    assert ran.code == 2 and "is a whole model" in ran.err
    ran = run("train", "mine.yaml", "--lora", "99", "--out", "other")
    assert ran.code == 2 and "a LoRA of rank 99 is more than" in ran.err
    ran = run("train", "tiny", "--lora", "2", "--out", "third")
    assert ran.code == 2 and "a LoRA adds to a model that has learnt; give --init" in ran.err


def test_the_other_dialect_tells_the_base(run: Callable, here: Path) -> None:
    from safetensors import safe_open

    (here / "lora").mkdir()
    name = "unet.mid_block.attentions.0.proj_in.lora_"
    save_file({f"{name}A.weight": torch.ones(2, 4), f"{name}B.weight": torch.ones(4, 2)}, here / "lora/pytorch_lora_weights.safetensors")
    (here / "lora/card.json").write_text(json.dumps({"base": {"name": "sd", "fingerprint": "0123"}}))
    value = run("export", "lora", "--format", "kohya", "-o", "k.safetensors", "--json").json
    assert value == {"file": "k.safetensors", "format": "kohya", "products": 1}
    with safe_open("k.safetensors", "pt") as file:
        told, ends = file.metadata(), ("alpha", "lora_down.weight", "lora_up.weight")
        assert sorted(file.keys()) == [f"lora_unet_mid_block_attentions_0_proj_in.{end}" for end in ends]
    assert {"ss_network_dim": "2", "ss_network_alpha": "2", "ss_sd_model_name": "sd", "ss_sd_model_hash": "0123"}.items() <= told.items()
    for source, out, code, why in (
        ("lora", "k.safetensors", 2, "is there already"), ("lora", "k.bin", 2, "written as .safetensors"),
        ("k.safetensors", "l.safetensors", 4, "is in that dialect"), ("nowhere", "l.safetensors", 4, "is missing"),
    ):  # fmt: skip
        ran = run("export", source, "--format", "kohya", "-o", out)
        assert (ran.code, why in ran.err) == (code, True), ran.err
