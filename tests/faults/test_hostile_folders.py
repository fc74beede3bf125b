"""Folders of diffusers that somebody damaged, or made on purpose: one line that names file and tensor, before any tensor is used.

And nothing in a folder is ever run: an audit hook watches a whole `load` and `generate`.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import diffusers
from safetensors.torch import load_file, save_file

from tests.oracle import public_folders as public
from triptych.app.cli import main
from triptych.interop.weights import Weights
from triptych.pipeline import load

UNET, TEXT = "unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("public")
    diffusers.utils.logging.disable_progress_bar()
    public.stable(folder, diffusers.DDIMScheduler(**public.DDIM)).save_pretrained(folder / "sd")
    shutil.copytree(folder / "files", folder / "sd" / "tokenizer", dirs_exist_ok=True)
    return folder / "sd"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "sd")


def refused(folder: Path, monkeypatch: pytest.MonkeyPatch, *said: str) -> str:
    """`load` refuses in one line that says all of `said`, and no number of any tensor was read."""

    def read(*_: Any) -> Any:
        raise AssertionError("a tensor was read before the folder was found whole")

    monkeypatch.setattr(Weights, "_tensor", read)
    with pytest.raises(ValueError) as error:
        load(folder)
    line = str(error.value)
    assert "\n" not in line and all(one in line for one in said), line
    assert main(["generate", "a", "-m", str(folder), "-o", str(folder / "a.png")]) in (2, 4)
    assert not (folder / "a.png").exists()
    return line


def edit(folder: Path, name: str, **values: Any) -> None:
    """A JSON file with other values; None takes one away."""
    path = folder / name
    told = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: value for key, value in told.items() if value is not None}))


def retensor(folder: Path, name: str, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
    change(tensors)
    save_file(tensors, folder / name)


# --- what carries code ------------------------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/triptych-was-run",)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "weights.pt"])
def test_a_pickle(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / UNET).unlink()
    (folder / "unet" / name).write_bytes(pickle.dumps(Bomb()))
    refused(folder, monkeypatch, f"unet/{name}", "a pickle can run code", "save_pretrained(FOLDER)")


@pytest.mark.parametrize("kind", ["pickle", "torch.save", "nothing"])
def test_a_renamed_pickle(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if kind == "torch.save":
        torch.save({"w": torch.zeros(2)}, folder / UNET)
    else:
        (folder / UNET).write_bytes(pickle.dumps({"w": Bomb()}, protocol=4) if kind == "pickle" else b"")
    refused(folder, monkeypatch, UNET, "a pickle by another name" if kind != "pickle" else "safetensors")


CODE: dict[str, tuple[str, dict[str, Any], str]] = {
    "a pipeline of its own": ("model_index.json", {"_class_name": ["pipeline", "MyPipeline"]}, "of its own code is never run"),
    "an unknown pipeline": ("model_index.json", {"_class_name": "StableDiffusionXLPipeline"}, "a StableDiffusionXLPipeline cannot be read"),
    "a module's name": ("model_index.json", {"unet": ["my_unet", "UNet2DConditionModel"]}, "unet is my_unet.UNet2DConditionModel"),
    "an unknown class": ("model_index.json", {"unet": ["diffusers", "UNetMotionModel"]}, "unet is diffusers.UNetMotionModel"),
    "an unknown part": ("model_index.json", {"adapter": ["diffusers", "T2IAdapter"]}, "part 'adapter'"),
    "a part that is not there": ("model_index.json", {"vae": None}, "names no 'vae'"),
    "auto_map": ("unet/config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    "auto_map of words": ("text_encoder/config.json", {"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    "auto_map of a tokenizer": ("tokenizer/tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}, "auto_map"),
    "another class inside": ("unet/config.json", {"_class_name": "evil.Network"}, "evil.Network"),
    "a VQModel": ("vae/config.json", {"_class_name": "VQModel"}, "a VQModel cannot be read"),
    "another scheduler inside": ("scheduler/scheduler_config.json", {"_class_name": "os.system"}, "a os.system cannot be read"),
}


@pytest.mark.parametrize("case", CODE)
def test_names_of_code(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, values, said = CODE[case]
    edit(folder, name, **values)
    refused(folder, monkeypatch, str(folder / name), said)


# --- what is broken ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("name", [UNET, TEXT, VAE])
def test_truncated(name: str, share: float, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: int(share * len(data))])
    refused(folder, monkeypatch, name)


def test_words_of_latent_diffusion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own text encoder too: a missing, a surplus and a misshapen tensor; and the decoder of its name."""
    folder, name = tmp_path / "ldm", "bert/model.safetensors"
    public.latent_diffusion(tmp_path, diffusers.DDIMScheduler(**public.DDIM)).save_pretrained(folder)
    shutil.copy(folder / name, tmp_path / "whole")
    changes: dict[str, Callable[[dict[str, torch.Tensor]], Any]] = {
        "layers.1.fc2.bias": lambda t: t.pop("model.layers.1.fc2.bias"),
        "layers.7.fc2.bias": lambda t: swapped(t, "layers.7.fc2.bias", (2,)),
        "layer_norm.weight": lambda t: swapped(t, "model.layer_norm.weight", (3,)),
    }  # fmt: skip
    for said, change in changes.items():
        shutil.copy(tmp_path / "whole", folder / name)
        retensor(folder, name, change)
        refused(folder, monkeypatch, str(folder / name), said)
    shutil.copy(tmp_path / "whole", folder / name)
    edit(folder, "model_index.json", vqvae=["diffusers", "VQModel"])
    refused(folder, monkeypatch, "vqvae is diffusers.VQModel: only AutoencoderKL")


def test_flipped_bits_of_the_header(folder: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 60 bits, drawn by lot: refused in one line, or it was one that says nothing (a space, the metadata)."""
    draw, data = random.Random(0), (whole / UNET).read_bytes()
    header, found = struct.unpack("<Q", data[:8])[0], 0
    for _ in range(60):
        bit = draw.randrange(8 * (8 + header))
        broken = bytearray(data)
        broken[bit // 8] ^= 1 << bit % 8
        (folder / UNET).write_bytes(broken)
        try:
            load(folder)
        except ValueError as error:
            found += 1
            assert "unet" in str(error) and "\n" not in str(error)
    assert found > 50


def test_a_number_that_is_none(folder: Path) -> None:
    """Data has no checksum in such a folder; a flipped bit of an exponent is found where it makes no number."""
    name = "mid_block.resnets.0.conv1.weight"
    retensor(folder, UNET, lambda tensors: tensors[name].view(-1)[3].fill_(float("nan")))
    with pytest.raises(ValueError, match="is not finite") as error:
        load(folder)
    assert name in str(error.value) and str(folder / UNET) in str(error.value)


def swapped(tensors: dict[str, torch.Tensor], name: str, shape: tuple[int, ...]) -> None:
    tensors[name] = torch.zeros(shape)


TENSORS: dict[str, tuple[str, Callable[[dict[str, torch.Tensor]], Any], str]] = {
    "a wrong shape": (UNET, lambda t: swapped(t, "conv_in.weight", (12, 4, 5, 5)), "conv_in.weight"),
    "a wrong shape in what is joined": (
        UNET, lambda t: swapped(t, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight", (12, 11)), "attn1.to_"),
    "more rows in what is joined": (
        UNET, lambda t: swapped(t, "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight", (24, 12)), "attn1.to_"),
    "a missing one": (UNET, lambda t: t.pop("conv_out.bias"), "conv_out.bias"),
    "a surplus one": (UNET, lambda t: swapped(t, "payload.weight", (3,)), "payload.weight"),
    "words: a wrong shape": (TEXT, lambda t: swapped(t, "final_layer_norm.weight", (21,)), "final_layer_norm.weight"),
    "words: a missing one": (TEXT, lambda t: t.pop("encoder.layers.1.mlp.fc1.bias"), "encoder.layers.1.mlp.fc1.bias"),
    "words: a surplus one": (TEXT, lambda t: swapped(t, "encoder.layers.9.mlp.fc1.bias", (3,)), "encoder.layers.9.mlp.fc1.bias"),
    "decoder: a wrong shape": (VAE, lambda t: swapped(t, "post_quant_conv.weight", (4, 3, 1, 1)), "post_quant_conv.weight"),
    "decoder: a missing one": (VAE, lambda t: t.pop("decoder.conv_in.bias"), "decoder.conv_in.bias"),
    "decoder: a surplus one": (VAE, lambda t: swapped(t, "encoder.payload", (3,)), "encoder.payload"),
    "numbers of another kind": (UNET, lambda t: t.update({"conv_in.bias": torch.zeros(12, dtype=torch.int8)}), "conv_in.bias"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, change, said = TENSORS[case]
    retensor(folder, name, change)
    refused(folder, monkeypatch, str(folder / name), said)


@pytest.mark.parametrize("broken", ["[1, 2]", "{", '{"a": NaN', "\xff", "[" * 100_000])
@pytest.mark.parametrize(
    "name", ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"]
)
def test_json_that_is_none(name: str, broken: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).write_bytes(broken.encode("latin-1"))
    refused(folder, monkeypatch, str(folder / name))


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "tokenizer"])
def test_a_tokenizer_that_is_none(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "tokenizer":
        shutil.rmtree(folder / name)
    else:
        (folder / name).write_text('{"model": {"vocab": {}}, "added_tokens": 3}')
    refused(folder, monkeypatch, "tokenizer" if name == "tokenizer" else "token")


# --- numbers beyond reason --------------------------------------------------------------------------------------------------

HUGE: dict[str, tuple[str, dict[str, Any]]] = {
    "width": ("unet/config.json", {"block_out_channels": [10**9, 10**9, 10**9]}),
    "a width that a machine might hold": ("unet/config.json", {"block_out_channels": [12 * 2**14, 12 * 2**14, 12 * 2**14]}),
    "depth": ("unet/config.json", {"layers_per_block": 10**9}),
    "transformers": ("unet/config.json", {"transformer_layers_per_block": [1, 10**7, 1]}),
    "words": ("text_encoder/config.json", {"num_hidden_layers": 10**8}),
    "vocabulary": ("text_encoder/config.json", {"vocab_size": 2**40}),
    "size": ("unet/config.json", {"sample_size": 10**6}),
    "levels": ("vae/config.json", {"block_out_channels": [8] * 100_000}),
    "not a number": ("vae/config.json", {"scaling_factor": float("nan")}),
    "zero": ("vae/config.json", {"scaling_factor": 0.0}),
    "timesteps": ("scheduler/scheduler_config.json", {"num_train_timesteps": 10**12}),
    "words for numbers": ("unet/config.json", {"block_out_channels": ["12", "24", "24"]}),
    "no width": ("unet/config.json", {"block_out_channels": [0, 0, 0]}),
}


@pytest.mark.parametrize("case", HUGE)
def test_numbers_beyond_reason(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything of that size is made."""
    resource = pytest.importorskip("resource")
    name, values = HUGE[case]
    edit(folder, name, **values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(folder, monkeypatch, str(folder / name.split("/")[0]))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KB


# --- ways out of the folder -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["../secret.safetensors", "/etc/passwd", "..", "sub/part.safetensors", "part.bin"])
def test_an_index_that_leads_elsewhere(target: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(load_file(folder / UNET))
    shutil.copy(folder / UNET, folder / "secret.safetensors")
    (folder / UNET).unlink()
    index = folder / f"{UNET}.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, target)}))
    refused(folder, monkeypatch, str(index), repr(target))


def test_an_index_that_does_not_fit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = list(load_file(folder / UNET))
    (folder / UNET).rename(folder / "unet" / "part.safetensors")
    (folder / f"{UNET}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys([*names, "more"], "part.safetensors")}))
    refused(folder, monkeypatch, "part.safetensors", "'more'")
    (folder / f"{UNET}.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names[1:], "part.safetensors")}))
    refused(folder, monkeypatch, "part.safetensors", repr(names[0]))


@pytest.mark.parametrize("name", [UNET, "unet/config.json", "model_index.json", "tokenizer/tokenizer.json", "unet"])
def test_a_link_out_of_the_folder(name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    refused(folder, monkeypatch, "leads out of")


# --- nothing is run ---------------------------------------------------------------------------------------------------------

WATCHED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
folder = Path(sys.argv[1]).resolve()
import triptych.app.cli, triptych.pipeline, triptych.interop.diffusers_folder, triptych.interop.weights
wrong = []

def watch(event, args):
    if event in ("exec", "compile", "import"):
        named = [str(getattr(one, "co_filename", one)) for one in args if one is not None]
        if any(str(folder) in one or one.startswith(("evil", "unet", "pipeline")) for one in named):
            wrong.append((event, named))
    if event.split(".")[0] in ("socket", "subprocess", "pickle", "urllib", "http") or event in ("os.system", "os.exec", "os.fork"):
        wrong.append((event, [str(one)[:80] for one in args]))
    if event == "open" and str(args[0]).startswith(str(folder)) and str(args[0]).endswith((".py", ".bin", ".pt", ".so")):
        wrong.append((event, args[0]))

sys.addaudithook(watch)
model = triptych.pipeline.load(folder)
model.generate(["a red circle"], steps=2)
assert not any(str(folder) in one for one in sys.path)
print(wrong)
"""


def test_nothing_is_run(folder: Path) -> None:
    """A folder that can be read, with code and pickles beside everything: they lie there."""
    for place in (".", "unet", "text_encoder", "tokenizer", "scheduler", "vae"):
        for name in ("evil.py", "__init__.py", "pipeline.py", "unet.py", "modeling.py"):
            (folder / place / name).write_text("raise SystemExit('was run')")
        (folder / place / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
        (folder / place / "extra.pt").write_bytes(pickle.dumps(Bomb()))
    told = subprocess.run(
        [sys.executable, "-c", WATCHED, str(folder)], capture_output=True, text=True, cwd=folder, timeout=300,
        env={"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"},
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "[]"
    assert not Path("/tmp/triptych-was-run").exists()
