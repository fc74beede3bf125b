"""Files of LoRAs that are damaged, made on purpose, or for another model: one line that names file and tensor, and no weight moves."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.contract import tiny
from triptych.app.cli import main
from triptych.interop.lora_files import LoRAFile, to_kohya
from triptych.layers import lora
from triptych.pipeline import TextToImage

KEY = "generator.blocks.1.attention.qkv.2.lora_A.weight"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model's own LoRA, in a folder beside the model."""
    from triptych.interop.lora import write

    folder, model = tmp_path_factory.mktemp("hostile"), tiny.model(generator="dit")
    model.save(folder / "model")
    lora.insert(model.generator.network, 2)
    for _, one in lora.inserted(model.generator.network):
        one.B.data.normal_(0, 0.3)
    write(folder / "lora.safetensors", model.generator.network)
    return folder / "lora.safetensors"


@pytest.fixture(scope="module")
def model(whole: Path) -> TextToImage:
    from triptych.pipeline import load_generator

    return load_generator(whole.parent / "model")


def refused(model: TextToImage, path: Path, *said: str) -> None:
    """In one line; nothing of the model has changed, and nothing is drawn by the command."""
    before = [p.detach().clone() for p in model.generator.network.parameters()]
    with pytest.raises(ValueError) as error:
        model.add_lora(path)
    line = str(error.value)
    assert "\n" not in line and all(one in line for one in said), line
    assert all(torch.equal(a, b) for a, b in zip(before, model.generator.network.parameters(), strict=True)) and not model.loras


def changed(whole: Path, path: Path, change: Callable[[dict[str, Tensor]], Any], metadata: dict[str, str] | None = None) -> Path:
    tensors = {key: tensor.clone() for key, tensor in load_file(whole).items()}
    change(tensors)
    save_file(tensors, path, metadata)
    return path


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/triptych-was-run",)


def test_it_is_whole_before_it_is_broken(whole: Path, tmp_path: Path) -> None:
    assert tiny.model(generator="dit").add_lora(whole) == len(LoRAFile(whole).pairs)


# --- no LoRA at all -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora.bin", "lora.pt", "lora.ckpt", "lora.safetensors"])
@pytest.mark.parametrize("kind", ["pickle", "torch.save"])
def test_a_pickle(kind: str, name: str, model: TextToImage, tmp_path: Path) -> None:
    path = tmp_path / name
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"w": Bomb()}, protocol=4))
    else:
        torch.save({"w": torch.zeros(2)}, path)
    refused(model, path, str(path), *(["a pickle can run code", "save_lora_weights"] if kind != "pickle" or name[-3:] != "ors" else []))
    assert not Path("/tmp/triptych-was-run").exists()


def test_a_folder_of_pickles_and_an_empty_one(model: TextToImage, tmp_path: Path) -> None:
    refused(model, tmp_path, "pytorch_lora_weights.safetensors is missing")
    (tmp_path / "pytorch_lora_weights.bin").write_bytes(pickle.dumps(Bomb()))
    refused(model, tmp_path, "pytorch_lora_weights.bin", "a pickle can run code")
    refused(model, tmp_path / "nowhere.safetensors", "nowhere.safetensors is missing")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_truncated(share: float, whole: Path, model: TextToImage, tmp_path: Path) -> None:
    data = whole.read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[: int(share * len(data))])
    refused(model, tmp_path / "cut.safetensors", str(tmp_path / "cut.safetensors"))


@pytest.mark.parametrize("header", [2**62, 2**40, 17 * 2**20])
def test_a_header_beyond_reason(header: int, model: TextToImage, tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", header) + b"{")
        file.truncate(18 * 2**20)  # a hole, of no weight on the disk
    refused(model, path, str(path), str(header))


def test_flipped_bits_of_the_header(whole: Path, model: TextToImage, tmp_path: Path) -> None:
    """Each of 40, drawn by lot: refused in one line, or it was one that says nothing (a space, the metadata)."""
    draw, data = random.Random(0), whole.read_bytes()
    header, found = struct.unpack("<Q", data[:8])[0], 0
    for _ in range(40):
        bit, broken = draw.randrange(8 * (8 + header)), bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        (tmp_path / "flipped.safetensors").write_bytes(broken)
        try:
            tiny.model(generator="dit").add_lora(tmp_path / "flipped.safetensors")
        except ValueError as error:
            found += 1
            assert "flipped.safetensors" in str(error) and "\n" not in str(error)
    assert found >= 25


# --- tensors ------------------------------------------------------------------------------------------------------------------

B = KEY.replace("lora_A", "lora_B")
TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], tuple[str, ...]]] = {
    "an A without its B": (lambda t: t.pop(B), (KEY, "its B (lora_up) is missing")),
    "a B without its A": (lambda t: t.pop(KEY), (B, "its A (lora_down) is missing")),
    "an alpha alone": (lambda t: t.update({"generator.patch_in.alpha": torch.tensor(1.0)}), ("generator.patch_in.alpha", "missing")),
    "ranks that disagree": (lambda t: t.update({KEY: torch.zeros(3, 32)}), (KEY, "of rank 3", B, "of rank 2")),
    "a width that is another": (lambda t: t.update({KEY: torch.zeros(2, 33)}), (KEY, "[33]", "[32]", "trained on another model")),
    "rows that are others": (lambda t: t.update({B: torch.zeros(96, 2)}), (B, "[96]", "[32]", "trained on another model")),
    "a vector": (lambda t: t.update({KEY: torch.zeros(2)}), (KEY, "[2]", "no A and B of one product")),
    "nothing in it": (lambda t: t.update({KEY: torch.zeros(0, 32), B: torch.zeros(32, 0)}), (KEY, "[0, 32]")),
    "a window where there is none": (
        lambda t: t.update({KEY: torch.zeros(2, 32, 3, 3), B: torch.zeros(32, 2, 1, 1)}), (KEY, "[32, 3, 3]", "[32]")),
    "B with a window": (lambda t: t.update({KEY: torch.zeros(2, 32, 1, 1), B: torch.zeros(32, 2, 3, 3)}), (B, "no A and B")),
    "not a number": (lambda t: t[KEY].view(-1)[3].fill_(float("nan")), (KEY, "is not finite")),
    "infinite": (lambda t: t[B].view(-1)[0].fill_(float("-inf")), (B, "is not finite")),
    "products that overflow": (lambda t: (t[KEY].fill_(1e30), t[B].fill_(1e30)), (KEY, B, "a weight would not be finite")),
    "whole numbers": (lambda t: t.update({KEY: torch.zeros(2, 32, dtype=torch.int64)}), (KEY, "only floating numbers")),
    "bytes": (lambda t: t.update({KEY: torch.zeros(2, 32, dtype=torch.int8)}), (KEY, "I8")),
    "an alpha that is two": (lambda t: t.update({KEY.replace("lora_A.weight", "alpha"): torch.ones(2)}), ("alpha", "[2]", "one number")),
    "an alpha that is none": (
        lambda t: t.update({KEY.replace("lora_A.weight", "alpha"): torch.tensor(float("nan"))}), ("alpha", "not be finite")),
    "something else": (lambda t: t.update({"payload": torch.zeros(3)}), ("'payload' is no part of a LoRA",)),
    "a DoRA": (lambda t: t.update({KEY.replace("lora_A.weight", "lora_magnitude_vector"): torch.ones(32)}), ("belongs to a DoRA",)),
    "a LoHa": (lambda t: t.update({"lora_unet_mid_block.hada_w1_a": torch.ones(2, 2)}), ("belongs to a LoHa",)),
    "a LoCon of three": (
        lambda t: t.update({"lora_unet_mid_block.lora_mid.weight": torch.ones(2, 2, 3, 3)}), ("a LoCon of three matrices",)),
    "said twice": (lambda t: t.update({KEY.replace("lora_A.weight", "lora_down.weight"): t[KEY].clone()}), ("says what", KEY)),
    "no tensor": (lambda t: t.clear(), ("holds no tensor",)),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(case: str, whole: Path, model: TextToImage, tmp_path: Path) -> None:
    change, said = TENSORS[case]
    path = changed(whole, tmp_path / "lora.safetensors", change)
    refused(model, path, str(path), *said)


def test_modules_that_are_not_there(whole: Path, model: TextToImage, tmp_path: Path) -> None:
    def renamed(tensors: dict[str, Tensor]) -> None:
        for key in list(tensors):
            if key.startswith("generator.blocks.1.attention.qkv.2"):
                tensors[key.replace("qkv.2", "qkw.2")] = tensors.pop(key)

    path = changed(whole, tmp_path / "lora.safetensors", renamed)
    refused(model, path, str(path), "qkw.2", "which this model does not have", "did you mean 'generator.blocks.1.attention.qkv.2'?")
    foreign = {f"unet.mid_block.attentions.0.proj_in.lora_{one}.weight": torch.ones(2, 2) for one in "AB"}
    save_file(foreign, tmp_path / "sd.safetensors")
    refused(model, tmp_path / "sd.safetensors", "unet.mid_block.attentions.0.proj_in.lora_A.weight", "does not have")
    save_file({f"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{one}.weight": torch.ones(2, 2) for one in "AB"},
              tmp_path / "te.safetensors")  # fmt: skip
    refused(model, tmp_path / "te.safetensors", "text_encoder.text_model", "does not have")


METADATA: dict[str, tuple[Any, str]] = {
    "no JSON": ("{", "is not JSON"), "nested": ("[" * 100_000, "is not JSON"), "a list": ("[1]", "expected an object"),
    "DoRA": ({"generator.use_dora": True}, "generator.use_dora = 'True'"),
    "PiSSA": ({"generator.init_lora_weights": "pissa"}, "'pissa'"),
    "an alpha of words": ({"generator.lora_alpha": "much"}, "generator.lora_alpha = 'much' is no number"),
    "an alpha without end": ({"generator.lora_alpha": float("inf")}, "no number"),
    "a huge alpha": ({"generator.lora_alpha": 1e300}, "would not be finite"),
    "patterns": ({"generator.alpha_pattern": {"(a+)+$": 3}}, "'(a+)+$' is a pattern"),
    "patterns of words": ({"generator.alpha_pattern": {"qkv": "x"}}, "holds no modules and numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", METADATA)
def test_metadata_beyond_reason(case: str, whole: Path, model: TextToImage, tmp_path: Path) -> None:
    said, why = METADATA[case]
    text = said if isinstance(said, str) else json.dumps(said)
    path = changed(whole, tmp_path / "lora.safetensors", lambda tensors: None, {"lora_adapter_metadata": text})
    refused(model, path, str(path), why)


# --- what is written ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_in_the_other_dialect(whole: Path, tmp_path: Path) -> None:
    for source, said in ((whole, "has no name there"), (tmp_path / "no", "is missing")):
        with pytest.raises(ValueError, match=said):
            to_kohya(source, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_the_command_ends_with_its_code(whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(whole, tmp_path / "lora.safetensors", lambda tensors: tensors.pop(KEY))
    asked = ["generate", "a", "-m", str(whole.parent / "model"), "--lora", str(path), "-o", str(tmp_path / "a.png")]
    assert main(asked) == 4 and not (tmp_path / "a.png").exists()
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and str(path) in line and B in line
