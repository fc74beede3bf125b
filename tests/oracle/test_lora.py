"""LoRAs against PEFT and diffusers: the same file draws the same picture there and here, whoever wrote it, in both dialects.

PSNR of the float pictures at least 60 dB, of one small Stable Diffusion of odd shape. Every comparison is of a picture that the LoRA
has changed: under 30 dB from the one without it.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
peft = pytest.importorskip("peft")

from diffusers.training_utils import _collate_lora_metadata  # noqa: E402
from peft.utils import get_peft_model_state_dict  # noqa: E402

from tests.oracle import public_folders as public  # noqa: E402
from tests.oracle import test_dit as dit  # noqa: E402
from tests.oracle.public_folders import DDIM, psnr  # noqa: E402
from triptych import data  # noqa: E402
from triptych.contracts import Condition  # noqa: E402
from triptych.interop.lora import write  # noqa: E402
from triptych.interop.lora_files import FILE, LoRAFile, to_kohya  # noqa: E402
from triptych.layers import lora  # noqa: E402
from triptych.pipeline import load  # noqa: E402
from triptych.recipe import Data, Family, Lora, Neighbour, Recipe, Source  # noqa: E402
from triptych.training import Report, build_task, train  # noqa: E402

SAID, NOISE = ["a red circle", "two hearts!"], torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
ATTENTION, WORDS = ["to_q", "to_k", "to_v", "to_out.0"], ["q_proj", "k_proj", "v_proj", "out_proj"]
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # of the network, of the text encoder
    "attention": ({"r": 4, "lora_alpha": 4, "target_modules": ATTENTION}, {}),
    "attention, alpha is not the rank": ({"r": 3, "lora_alpha": 8, "target_modules": ATTENTION}, {}),
    "two products alone": ({"r": 2, "lora_alpha": 9, "target_modules": ["attn2.to_q", "attn1.to_v"]}, {}),
    "every product": (
        {"r": 2, "lora_alpha": 3, "target_modules": [*ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj"]}, {}),
    "convolutions": ({"r": 2, "lora_alpha": 3, "target_modules": ["conv1", "conv2", "conv_shortcut", "conv", "conv_in"]}, {}),
    "words too": (
        {"r": 2, "lora_alpha": 2, "target_modules": ATTENTION}, {"r": 3, "lora_alpha": 5, "target_modules": [*WORDS, "fc1", "fc2"]}),
    "ranks and alphas of their own, by their root": (
        {"r": 4, "lora_alpha": 4, "target_modules": ATTENTION, "use_rslora": True, "rank_pattern": {"attn1.to_q": 2},
         "alpha_pattern": {"attn1.to_q": 7, "attn2.to_k": 1}}, {}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    diffusers.utils.logging.disable_progress_bar()
    diffusers.logging.set_verbosity_error()
    yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lora")
    one = {"layers_per_block": 1}  # where levels differ, diffusers cannot weigh several
    public.stable(path, diffusers.DDIMScheduler(**DDIM), **one).save_pretrained(path / "sd")
    return path / "sd"


def theirs(folder: Path) -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def drawn(pipe: Any) -> Tensor:
    how = {"latents": NOISE.clone(), "num_inference_steps": 4, "guidance_scale": 4.0, "height": 16, "width": 24, "output_type": "pt"}
    return 2 * pipe(SAID, **how).images - 1


@torch.no_grad()
def ours(folder: Path, *loras: tuple[Path, float]) -> Tensor:
    model = load(folder)
    for path, weight in loras:
        assert model.add_lora(path, weight) > 0
    return model.decoder.decode(model.latents(SAID, noise=NOISE, steps=4, guidance=4.0))


def made(folder: Path, out: Path, case: str, seed: int = 0) -> Path:
    """A LoRA of random numbers, made by PEFT and saved by diffusers."""
    pipe, draw, layers, saved = theirs(folder), torch.Generator().manual_seed(seed), {}, {}
    for name, how in zip(("unet", "text_encoder"), CASES[case], strict=True):
        if how:
            panel = getattr(pipe, name)
            panel.add_adapter(peft.LoraConfig(**how))
            for key, parameter in panel.named_parameters():
                if "lora_" in key:
                    parameter.data = 0.25 * torch.randn(parameter.shape, generator=draw)
            layers[f"{name}_lora_layers"], saved[name] = get_peft_model_state_dict(panel), panel
    pipe.save_lora_weights(out, **layers, **_collate_lora_metadata(saved))
    return out


@pytest.fixture(scope="module")
def without(folder: Path) -> Tensor:
    return ours(folder)


@pytest.mark.parametrize("case", CASES)
def test_a_file_of_peft(case: str, folder: Path, without: Tensor, tmp_path: Path) -> None:
    """And the same file in kohya's dialect, written here and read by both."""
    out = made(folder, tmp_path / "lora", case)
    pipe = theirs(folder)
    pipe.load_lora_weights(out)
    wanted = drawn(pipe)
    assert psnr(without, wanted) < 30
    assert psnr(ours(folder, (out, 1.0)), wanted) >= 60
    count = to_kohya(out, tmp_path / "kohya.safetensors", base="sd", base_hash="0123")
    with safe_open(tmp_path / "kohya.safetensors", "pt") as file:
        assert {"ss_sd_model_name": "sd", "ss_sd_model_hash": "0123"}.items() <= file.metadata().items()
        assert len(file.keys()) == 3 * count and all(key.startswith(("lora_unet_", "lora_te_")) for key in file.keys())  # noqa: SIM118
    assert psnr(ours(folder, (tmp_path / "kohya.safetensors", 1.0)), wanted) >= 60
    if "root" not in case:  # diffusers takes the most frequent of many alphas for all whose name it does not find again
        pipe = theirs(folder)
        pipe.load_lora_weights(tmp_path / "kohya.safetensors")
        assert psnr(drawn(pipe), wanted) >= 60


@pytest.mark.parametrize("reading", ["DiT", "PixArt"])
@torch.no_grad()
def test_transformers(reading: str, tmp_path: Path) -> None:
    """diffusers has no loader for these: the names that are written lead to its modules, and with B A added there it says the same."""
    shape = {"num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 2, "sample_size": 8}
    if reading == "DiT":
        theirs, heard = dit.paper(num_embeds_ada_norm=10, **shape), {"class_labels": torch.tensor([3, 7])}
        cond = Condition(label_B=heard["class_labels"])
    else:
        theirs, heard = dit.pixart(cross_attention_dim=24, caption_channels=20, **shape), {"encoder_hidden_states": torch.randn(2, 7, 20)}
        cond = Condition(tokens_BLD=heard["encoder_hidden_states"])
        heard["added_cond_kwargs"] = {"resolution": None, "aspect_ratio": None}  # type: ignore[assignment]
    network, x, clock = dit.ours(theirs), torch.randn(2, 4, 8, 8), torch.tensor([12, 800])
    before = network(x, clock, cond)
    lora.insert(network, 2, 3.0, (*lora.ATTENTION, "up", "down", "modulation", "patch_out"))
    for i, (_, one) in enumerate(lora.inserted(network)):
        one.B.normal_(0, 0.2, generator=torch.Generator().manual_seed(i))
    write(tmp_path / FILE, network)
    file = LoRAFile(tmp_path)
    for name in file.pairs:
        A, B, alpha = file.read(name)
        theirs.get_submodule(name.removeprefix("transformer.")).weight.add_(alpha / len(A) * B @ A)  # type: ignore[union-attr,operator]
    mine, yours = network(x, clock, cond), theirs(x, timestep=clock, **heard).sample
    assert dit.relative_error(mine, yours) <= 1e-5 and dit.relative_error(before, yours) > 0.1


def test_two_with_weights(folder: Path, without: Tensor, tmp_path: Path) -> None:
    one, two = (made(folder, tmp_path / str(seed), case, seed) for seed, case in enumerate(("every product", "words too")))
    pipe = theirs(folder)
    pipe.load_lora_weights(one, adapter_name="one")
    pipe.load_lora_weights(two, adapter_name="two")
    pipe.set_adapters(["one", "two"], [0.8, -0.3])
    wanted = drawn(pipe)
    assert psnr(without, wanted) < 30 and psnr(ours(folder, (one, 0.8), (two, -0.3)), wanted) >= 60


def test_spellings_of_old(folder: Path, tmp_path: Path) -> None:
    """Of 2023: attention processors, with and without a prefix; `lora.down`; a network saved alone; a second text encoder's number."""
    new = made(folder, tmp_path / "new", "words too")
    wanted, tensors = ours(folder, (new, 1.0)), load_file(new / FILE)
    assert not LoRAFile(new).metadata.keys() <= {"format"}
    alphas = {f"{name}.alpha": torch.tensor(LoRAFile(new).read(name)[2]) for name in LoRAFile(new).pairs}

    def spelled(change: Any) -> Tensor:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.safetensors"
        save_file({change(name): tensor.clone() for name, tensor in {**tensors, **alphas}.items()}, path)
        return ours(folder, (path, 1.0))

    def processors(name: str) -> str:
        start, _, end = name.partition(".lora_")
        if not end or "mlp" in start:
            return name
        turned = start.replace(".to_out.0", ".to_out").replace("_proj", "").replace("self_attn.", "self_attn.to_")
        *before, last = turned.split(".")
        between = "" if "self_attn" in start else ".processor"
        return f"{'.'.join(before)}{between}.{last}_lora.{'down' if end.startswith('A') else 'up'}.weight"

    for change in (
        lambda name: name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."),
        lambda name: name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default."),
        lambda name: name.replace("text_encoder.text_model.", "text_encoder."), lambda name: name.removeprefix("unet."), processors,
    ):  # fmt: skip
        assert torch.equal(spelled(change), wanted)


def test_what_is_trained_here_is_drawn_there(folder: Path, without: Tensor, tmp_path: Path) -> None:
    """On the public folder itself, with its own text encoder, decoder and scheduler; and the whole model beside it."""
    sd, public_folder = str(folder), {"text_encoder": Neighbour(model=str(folder)), "decoder": Neighbour(model=str(folder))}
    recipe = Recipe(
        name="ink", panel="generators", family=Family(name="unet"), init=sd, neighbours=public_folder, lora=Lora(rank=3, alpha=6.0),
        data=Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=16), steps=12, batch=4, compile=False,
        precision="float32", optimizer={"lr": 0.05, "warmup": 0.0}, validate_every=100, preview_every=100,  # type: ignore[arg-type]
    )  # fmt: skip
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    train(recipe, out=tmp_path / "run", data=data.build(recipe.data), report=Report(quiet=True))
    assert all(path.read_bytes() == whole for path, whole in before.items()), "what is mapped is not written back"
    pipe = theirs(folder)
    pipe.load_lora_weights(tmp_path / "run" / "lora")
    wanted, here = drawn(pipe), ours(folder, (tmp_path / "run" / "lora", 1.0))
    assert psnr(without, wanted) < 30 and psnr(here, wanted) >= 60
    card = json.loads((tmp_path / "run" / "lora" / "card.json").read_text())
    assert card["base"]["name"] == "sd" and len(card["base"]["fingerprint"]) == 16 and (card["rank"], card["alpha"]) == (3, 6.0)
    assert psnr(ours(tmp_path / "run" / "model"), here) > 30, "the same, with weights rounded to bf16"
    model = load(tmp_path / "run" / "model")
    assert model.sampling["sampler"] == "ddim" and model.sampling["guidance"] == 7.5, "the folder's own"
    to_kohya(tmp_path / "run" / "lora", tmp_path / "ink.safetensors")
    pipe = theirs(folder)
    pipe.load_lora_weights(tmp_path / "ink.safetensors")
    assert psnr(drawn(pipe), wanted) >= 60


def test_a_public_folder_is_trained_whole_too(folder: Path, tmp_path: Path) -> None:
    """Without a LoRA, all of its network; and what does not fit it is said before anything is learnt."""
    stands = {place: Neighbour(model=str(folder)) for place in ("text_encoder", "decoder")}
    recipe = Recipe(
        name="whole", panel="generators", family=Family(name="unet"), init=str(folder), neighbours=stands, steps=2, batch=2, compile=False,
        data=Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=16),
    )  # fmt: skip
    before = {path: path.read_bytes() for path in folder.rglob("*.safetensors")}
    train(recipe, out=tmp_path, data=data.build(recipe.data), report=Report(quiet=True))
    assert all(path.read_bytes() == whole for path, whole in before.items()) and not (tmp_path / "lora").exists()
    assert psnr(ours(tmp_path / "model"), ours(folder)) < 60
    other = Neighbour(family=Family(name="clip", size="tiny"))
    for changed, said in (
        ({"family": Family(name="dit")}, "holds a unet, and family.name = 'dit'"),
        ({"family": Family(name="unet", size="SD-1.5")}, "family: width = 320, and"),
        ({"neighbours": {**stands, "text_encoder": other}}, "was trained for words of width 20, and its neighbours give 32"),
        ({"panel": "decoders", "family": Family(name="autoencoder_kl"), "neighbours": {}}, "its generator can be trained on"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(said)):
            build_task(dataclasses.replace(recipe, **changed))


def test_a_mapped_file_stays_as_it_is(folder: Path, tmp_path: Path) -> None:
    """Weights of a public folder are mapped from its files: adding writes to memory alone, and to one model alone."""
    copy = shutil.copytree(folder, tmp_path / "sd")
    out, whole = made(copy, tmp_path / "lora", "every product"), (copy / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    before = ours(copy)
    assert psnr(ours(copy, (out, 1.0)), before) < 30
    assert (copy / "unet/diffusion_pytorch_model.safetensors").read_bytes() == whole and torch.equal(ours(copy), before)
