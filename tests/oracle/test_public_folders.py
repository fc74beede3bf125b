"""Folders that diffusers saved, end to end: the same picture as its own pipeline draws, from the same noise. And ours, read there.

PSNR of the float pictures at least 60 dB, of 8-bit ones 55. DiT is compared with the frequencies of its own code, and DDIM that clips
with `use_clipped_model_output`: interop/diffusers_dit.py and interop/diffusers_schedulers.py say why.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from tests.oracle import public_folders as public  # noqa: E402
from tests.oracle.public_folders import DDIM, SD, psnr  # noqa: E402
from triptych.app.cli import main  # noqa: E402
from triptych.contracts import Rng  # noqa: E402
from triptych.decoders.autoencoder_kl import AutoencoderKL  # noqa: E402
from triptych.decoders.autoencoder_kl import Config as KLConfig  # noqa: E402
from triptych.generators.unet import Config as UNetConfig  # noqa: E402
from triptych.generators.unet import UNet  # noqa: E402
from triptych.interop.diffusers_export import export  # noqa: E402
from triptych.interop.diffusers_schedulers import NO_PNDM, scheduler_from_diffusers  # noqa: E402
from triptych.layers.conv import Conv  # noqa: E402
from triptych.pipeline import Generator, TextToImage, load, load_generator  # noqa: E402
from triptych.processes.ddpm import DDPM  # noqa: E402
from triptych.processes.ddpm import Config as DDPMConfig  # noqa: E402
from triptych.text_encoders.bilingual import SIZES as BILINGUAL  # noqa: E402
from triptych.text_encoders.bilingual import BilingualTransformer  # noqa: E402
from triptych.text_encoders.clip import CLIPText  # noqa: E402
from triptych.text_encoders.clip import Config as CLIPConfig  # noqa: E402

FLOAT, BYTES = 60.0, 55.0
SAID = ["a red circle", "two hearts!", "an apple on a blue square, left"]
AGAINST = ["star", "", "rings and a circle"]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    diffusers.utils.logging.disable_progress_bar()
    diffusers.logging.set_verbosity_error()
    yield


def saved(pipe: Any, folder: Path) -> Path:
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder)
    return folder


def noise_of(model: Any, count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    shape = (count, model.decoder.latent.shape[0], *size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(model: Any, theirs: Tensor, prompts: list[Any], noise: Tensor, **how: Any) -> None:
    """The float pictures through panels 2 and 3, and the 8-bit ones through `generate`. theirs: in [-1, 1]."""
    drawn = model.decoder.decode(model.latents(prompts, noise=noise, **how))
    assert psnr(drawn, theirs) >= FLOAT
    images = model.generate(prompts, noise=noise, **how)
    bytes_ = torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images]).float() / 127.5 - 1
    rounded = ((theirs + 1) * 127.5).round() / 127.5 - 1
    assert psnr(bytes_, rounded) >= BYTES


def packed(panel: torch.nn.Module) -> bool:
    return any(isinstance(layer, Conv) and layer.weight.is_mkldnn for layer in panel.modules())


def off(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


# --- Stable Diffusion -------------------------------------------------------------------------------------------------------

ONE = {
    "ddim": lambda: diffusers.DDIMScheduler(**DDIM),
    "ddpm": lambda: diffusers.DDPMScheduler(**SD, clip_sample=False, steps_offset=1),
    "euler": lambda: diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1),
    "euler, linspace": lambda: diffusers.EulerDiscreteScheduler(**SD),
    "euler_a": lambda: diffusers.EulerAncestralDiscreteScheduler(**SD, steps_offset=1),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**SD, steps_offset=1),
    "dpmpp_2m": lambda: diffusers.DPMSolverMultistepScheduler(**SD),
    "dpmpp_2m, trailing": lambda: diffusers.DPMSolverMultistepScheduler(**SD, timestep_spacing="trailing"),
    "dpmpp_2m_sde": lambda: diffusers.DPMSolverMultistepScheduler(**SD, algorithm_type="sde-dpmsolver++"),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**SD, timestep_spacing="leading", steps_offset=1),
}
NOISY = {  # where their noise of each step is drawn
    "ddpm": "scheduling_ddpm", "euler_a": "scheduling_euler_ancestral_discrete", "dpmpp_2m_sde": "scheduling_dpmsolver_multistep",
}  # fmt: skip


@pytest.fixture
def hand_over(monkeypatch: pytest.MonkeyPatch) -> Any:
    """hand_over(module): from now on that scheduler draws in each step the noise that ours draws there for seeds 0, 1, ..."""

    def to(module: str, count: int) -> None:
        step = iter(range(1000))

        def drawn(shape: Any, **_: Any) -> Tensor:
            return Rng.of_seeds(range(count)).normal("step", tuple(shape)[1:], [next(step)] * count)

        monkeypatch.setattr(f"diffusers.schedulers.{module}.randn_tensor", drawn)

    return to


@pytest.mark.parametrize("case", ONE)
@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_stable_diffusion_1(case: str, count: int, tmp_path: Path, hand_over: Any) -> None:
    """Every scheduler, read from the folder; guidance off for one picture, on with negative prompts for three."""
    sampler = case.split(",")[0]
    pipe = public.stable(tmp_path, ONE[case]())
    model = load(saved(pipe, tmp_path / "sd"))
    assert model.sampling["sampler"] == sampler and model.size == (16, 24)
    prompts, noise = SAID[:count], noise_of(model, count, (8, 12))
    guidance, against = (5.0, AGAINST[:count]) if count > 1 else (1.0, None)
    if sampler in NOISY:
        hand_over(NOISY[sampler], count)
    theirs = pipe(
        prompts, negative_prompt=against, latents=noise.clone(), num_inference_steps=5, guidance_scale=guidance, height=16, width=24,
        output_type="pt",
    ).images  # fmt: skip
    same(model, 2 * theirs - 1, prompts, noise, negative=against, guidance=guidance, steps=5)
    if torch.backends.mkldnn.is_available():
        assert packed(model.generator.network) and packed(model.decoder), "what was loaded is kept as it is read"


@pytest.mark.parametrize(("count", "size"), [(1, (12, 8)), (3, (8, 8))])
@pytest.mark.parametrize("zero", [False, True])
@torch.no_grad()
def test_stable_diffusion_2(zero: bool, count: int, size: tuple[int, int], tmp_path: Path) -> None:
    """v-prediction, "!" as padding, other sides than the folder's; with zero terminal SNR on trailing steps."""
    end = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"} if zero else {}
    pipe = public.stable(tmp_path, diffusers.DDIMScheduler(**DDIM, prediction_type="v_prediction", **end), version=2)
    model = load(saved(pipe, tmp_path / "sd"))
    assert model.generator.process.config.target == "v" and model.text_encoder.config.pad == pipe.tokenizer.pad_token_id
    assert model.generator.process.config.zero_terminal_snr == zero
    prompts, noise = SAID[:count], noise_of(model, count, size)
    how = {"num_inference_steps": 5, "height": 2 * size[0], "width": 2 * size[1], "output_type": "pt"}
    for guidance in (1.0, 7.5):
        theirs = pipe(prompts, latents=noise.clone(), guidance_scale=guidance, **how).images
        same(model, 2 * theirs - 1, prompts, noise, guidance=guidance, steps=5)


@torch.no_grad()
def test_pndm_is_drawn_by_ddim(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Said in a line and on the card; and the user's sampler goes before the folder's."""
    pipe = public.stable(tmp_path, diffusers.PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1))
    model = load(saved(pipe, tmp_path / "sd"))
    assert NO_PNDM in caplog.text and model.generator.network.card["notes"] == [NO_PNDM]
    assert model.sampling["sampler"] == "ddim" and model.sampling["steps"] == 50 and model.sampling["guidance"] == 7.5
    noise = noise_of(model, 1, (8, 12))
    for sampler, kind in (("ddim", diffusers.DDIMScheduler), ("dpmpp_2m", diffusers.DPMSolverMultistepScheduler)):
        settings = {"clip_sample": False, "set_alpha_to_one": False} if sampler == "ddim" else {}
        pipe.scheduler = kind.from_config(pipe.scheduler.config, timestep_spacing="leading", **settings)  # as PNDM's, said aloud
        theirs = pipe(SAID[:1], latents=noise.clone(), num_inference_steps=6, height=16, width=24, output_type="pt").images
        same(model, 2 * theirs - 1, SAID[:1], noise, steps=6, sampler=sampler)


OLD_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


@torch.no_grad()
def test_a_folder_as_first_published(tmp_path: Path) -> None:
    """What Stable Diffusion 1's own files say, and leave unsaid; the names of 2022 in its autoencoder and text encoder."""
    pipe = public.stable(tmp_path, diffusers.PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1))
    folder = saved(pipe, tmp_path / "sd")
    model, noise = load(folder), torch.randn(1, 4, 8, 12)
    before = model.decoder.decode(model.latents(SAID[:1], noise=noise, steps=3))

    def only(name: str, *keys: str, **more: Any) -> None:
        told = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({key: told[key] for key in ("_class_name", *keys) if key in told} | more))

    only(
        "unet/config.json", "act_fn", "attention_head_dim", "block_out_channels", "center_input_sample", "cross_attention_dim",
        "down_block_types", "downsample_padding", "flip_sin_to_cos", "freq_shift", "in_channels", "layers_per_block",
        "mid_block_scale_factor", "norm_eps", "norm_num_groups", "out_channels", "sample_size", "up_block_types",
    )  # fmt: skip
    only(
        "vae/config.json", "act_fn", "block_out_channels", "down_block_types", "in_channels", "latent_channels", "layers_per_block",
        "norm_num_groups", "out_channels", "sample_size", "up_block_types",
    )  # fmt: skip
    only(
        "scheduler/scheduler_config.json", "beta_end", "beta_schedule", "beta_start", "num_train_timesteps", "set_alpha_to_one",
        "skip_prk_steps", "steps_offset", "trained_betas", clip_sample=False,
    )  # fmt: skip
    tensors = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    for new, old in ((new, old) for old, new in OLD_VAE.items()):
        tensors = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "vae" / "diffusion_pytorch_model.safetensors")
    tensors = {f"text_model.{name}": tensor for name, tensor in load_file(folder / "text_encoder" / "model.safetensors").items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(tensors, folder / "text_encoder" / "model.safetensors")
    (folder / "tokenizer" / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(tmp_path / "files" / name, folder / "tokenizer")
    model = load(folder)
    assert torch.equal(model.decoder.decode(model.latents(SAID[:1], noise=noise, steps=3)), before)


@torch.no_grad()
def test_variants_and_shards(tmp_path: Path) -> None:
    """An fp16 variant, shards with an index, and bf16 weights on request; a hub's links into its blobs."""
    pipe = public.stable(tmp_path, diffusers.DDIMScheduler(**DDIM))
    folder = saved(pipe, tmp_path / "snapshots" / "sd")
    model, noise = load(folder), torch.randn(1, 4, 8, 8)
    whole = model.latents(SAID[:1], noise=noise, steps=2)
    shutil.rmtree(folder / "unet")
    pipe.unet.save_pretrained(folder / "unet", max_shard_size="40KB")
    shards = sorted((folder / "unet").glob("*.safetensors"))
    assert len(shards) > 2 and torch.equal(load(folder).latents(SAID[:1], noise=noise, steps=2), whole)
    (tmp_path / "blobs").mkdir()
    shards[0].rename(tmp_path / "blobs" / "0123")
    shards[0].symlink_to(tmp_path / "blobs" / "0123")
    assert torch.equal(load(folder).latents(SAID[:1], noise=noise, steps=2), whole)
    shutil.rmtree(folder / "unet")
    pipe.unet.half().save_pretrained(folder / "unet", variant="fp16")
    assert off(load(folder).latents(SAID[:1], noise=noise, steps=2), whole) < 0.02
    model = load(folder, precision="bf16")
    for panel in (model.generator.network, model.text_encoder, model.decoder):
        assert {p.dtype for p in panel.parameters()} == {torch.bfloat16}
    assert off(model.latents(SAID[:1], noise=noise, steps=2), whole) < 0.2


# --- the other kinds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("guidance", [1.0, 6.0])
@pytest.mark.parametrize("vocabulary", ["tokenizer.json", "vocab.txt"])
@torch.no_grad()
def test_latent_diffusion(vocabulary: str, guidance: float, count: int, tmp_path: Path) -> None:
    pipe = public.latent_diffusion(tmp_path, diffusers.DDIMScheduler(**DDIM))
    folder = saved(pipe, tmp_path / "ldm")
    if vocabulary == "vocab.txt":
        (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
        shutil.copy(tmp_path / "files" / "vocab.txt", folder / "tokenizer")
    model = load(folder)
    said = [*SAID, "Stars, unknown: zzz #3"]
    ours, theirs = model.text_encoder.encode(said), pipe.tokenizer(said, padding="max_length", max_length=77)
    assert ours.ids_BL.tolist() == theirs["input_ids"] and ours.mask_BL is None
    prompts, noise = SAID[:count], noise_of(model, count, (4, 6))
    drawn = pipe(
        prompts, latents=noise.clone(), num_inference_steps=4, guidance_scale=guidance, height=32, width=48, output_type="pt"
    ).images  # fmt: skip
    same(model, 2 * drawn - 1, prompts, noise, guidance=guidance, steps=4)


def started(monkeypatch: pytest.MonkeyPatch, module: str, noise: Tensor) -> None:
    """Pipelines that take no latents draw these."""
    monkeypatch.setattr(f"diffusers.pipelines.{module}.randn_tensor", lambda *_, **__: noise.clone())


PIXELS = {
    "the chain, clipped": ("DDPMPipeline", lambda: diffusers.DDPMScheduler(variance_type="fixed_large"), {}),
    "cosine": ("DDPMPipeline", lambda: diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False), {}),
    "x0, dynamic": (
        "DDPMPipeline", lambda: diffusers.DDPMScheduler(prediction_type="sample", thresholding=True, sample_max_value=100.0), {}),
    "learnt variance": (
        "DDPMPipeline", lambda: diffusers.DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace"), {"out_channels": 6}),
    "DDIM": ("DDIMPipeline", lambda: diffusers.DDIMScheduler(prediction_type="sample", clip_sample=False), {"sample_size": 8}),
    "DDIM, clipped": ("DDIMPipeline", lambda: diffusers.DDIMScheduler(prediction_type="sample"), {"sample_size": 8}),
}  # fmt: skip


@pytest.mark.parametrize("case", PIXELS)
@pytest.mark.parametrize("count", [1, 3])
@torch.no_grad()
def test_unconditional(case: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hand_over: Any) -> None:
    kind, scheduler, settings = PIXELS[case]
    pipe = public.pixels(scheduler(), kind, **settings)
    model = load(saved(pipe, tmp_path / "ddpm"))
    chain = kind == "DDPMPipeline"
    assert model.size == ((8, 12) if chain else (8, 8)) and model.sampling["steps"] == (1000 if chain else 50)
    noise = noise_of(model, count, model.size)
    if chain:
        started(monkeypatch, "ddpm.pipeline_ddpm", noise)
        hand_over("scheduling_ddpm", count)
        theirs = pipe(batch_size=count, num_inference_steps=6, output_type="pt").images
    else:
        started(monkeypatch, "ddim.pipeline_ddim", noise)
        clipped = case.endswith("clipped")
        theirs = pipe(batch_size=count, num_inference_steps=6, use_clipped_model_output=clipped, output_type="pt").images
    theirs = theirs if isinstance(theirs, Tensor) else torch.from_numpy(theirs).permute(0, 3, 1, 2)
    same(model, 2 * theirs - 1, [""] * count, noise, steps=6)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("learnt", [False, True])
@torch.no_grad()
def test_dit(learnt: bool, guidance: float, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Class numbers are prompts, and their names too; the learnt variance is neither guided nor listened to."""
    settings = {} if learnt else {"out_channels": 4, "patch_size": 1}
    pipe = public.classes(diffusers.DDIMScheduler(clip_sample=False), **settings)
    folder = saved(pipe, tmp_path / "dit")
    index = json.loads((folder / "model_index.json").read_text())  # the published folder says so
    (folder / "model_index.json").write_text(json.dumps(index | {"id2label": {i: f"kind {i}, sort {i}" for i in range(1000)}}))
    model = load(folder)
    labels = [207, 3, 999][:count]
    noise = noise_of(model, count, (6, 6))
    started(monkeypatch, "dit.pipeline_dit", noise)
    theirs = pipe(labels, num_inference_steps=5, guidance_scale=guidance, output_type="pt").images
    theirs = theirs if isinstance(theirs, Tensor) else torch.from_numpy(theirs).permute(0, 3, 1, 2)
    same(model, 2 * theirs - 1, labels, noise, guidance=guidance, steps=5)
    named = model.latents([f"a sort {label}" for label in labels], noise=noise, steps=2)
    assert torch.equal(named, model.latents(labels, noise=noise, steps=2))


def test_the_command_draws_classes_and_nothing(tmp_path: Path) -> None:
    """`generate` with a class's number, of a DiT; with no words, of an unconditional model."""
    for name, pipe, asked in (
        ("dit", public.classes(diffusers.DDIMScheduler(clip_sample=False)), ["--label", "207"]),
        ("ddpm", public.pixels(diffusers.DDPMScheduler()), [""]),
    ):
        folder = saved(pipe, tmp_path / name)
        assert main(["generate", *asked, "--model", str(folder), "--steps", "2", "-o", str(tmp_path / f"{name}.png")]) == 0
        assert (tmp_path / f"{name}.png").exists()


def test_a_decoder_alone(tmp_path: Path) -> None:
    theirs = public.vae(4, scaling_factor=0.4, shift_factor=0.1)
    theirs.save_pretrained(tmp_path)
    decoder, z = load(tmp_path), torch.randn(2, 4, 3, 5)
    with torch.no_grad():
        assert psnr(decoder.decode(z), theirs.decode(z / 0.4 + 0.1).sample.clamp(-1, 1)) >= FLOAT
    with pytest.raises(ValueError, match="holds a AutoencoderKL alone"):
        load_generator(tmp_path)


# --- schedulers that cannot be read -----------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, str]] = {
    "another class": (lambda: diffusers.LMSDiscreteScheduler(), "a LMSDiscreteScheduler cannot be read"),
    "karras": (lambda: diffusers.EulerDiscreteScheduler(use_karras_sigmas=True), "use_karras_sigmas = True"),
    "lu": (lambda: diffusers.DPMSolverMultistepScheduler(use_lu_lambdas=True), "use_lu_lambdas = True"),
    "order 3": (lambda: diffusers.DPMSolverMultistepScheduler(solver_order=3), "solver_order = 3"),
    "bh1": (lambda: diffusers.UniPCMultistepScheduler(solver_type="bh1"), "solver_type = 'bh1'"),
    "betas": (lambda: diffusers.DDIMScheduler(trained_betas=[0.1, 0.2], clip_sample=False), "trained_betas"),
    "sigmoid": (lambda: diffusers.DDPMScheduler(beta_schedule="sigmoid", clip_sample=False), "beta_schedule = 'sigmoid'"),
    "clipped latents": (lambda: diffusers.DDIMScheduler(), "latents have no range"),
    "eps at no signal": (lambda: diffusers.DDIMScheduler(rescale_betas_zero_snr=True, clip_sample=False), "says nothing of x0"),
    "offset": (lambda: diffusers.DDIMScheduler(steps_offset=7, clip_sample=False), "offset = 7"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_schedulers_that_cannot_be_read(case: str, tmp_path: Path) -> None:
    make, said = REFUSED[case]
    make().save_pretrained(tmp_path)
    path = tmp_path / "scheduler_config.json"
    with pytest.raises(ValueError) as error:
        scheduler_from_diffusers(json.loads(path.read_text()), path, latent=True)
    assert said in str(error.value) and str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_setting_of_tomorrow_is_refused_where_it_is_set(tmp_path: Path) -> None:
    path = tmp_path / "scheduler_config.json"
    theirs = {"_class_name": "DDIMScheduler", "clip_sample": False, "skip_prk_steps": True, "use_new_idea": False}
    scheduler_from_diffusers(theirs, path, latent=True)
    with pytest.raises(ValueError, match="use_new_idea = True"):
        scheduler_from_diffusers(theirs | {"use_new_idea": True}, path, latent=True)


# --- memory -----------------------------------------------------------------------------------------------------------------

MEASURE = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from triptych.interop import diffusers_folder
import triptych.generators.unet, triptych.interop.weights, safetensors
def peak():
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) * 1024
reader, before = diffusers_folder._Reader(Path(sys.argv[1]), getattr(torch, sys.argv[2]), {}), peak()
network = reader.unet()[0].filled(getattr(torch, sys.argv[2]))
print(peak() - before, sum(p.nbytes for p in network.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read there")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_of_loading(dtype: str, tmp_path: Path) -> None:
    """200 MB of U-Net, attention's share as in Stable Diffusion: at most 1.3 times the weights, and what reading them takes."""
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(
            block_out_channels=(96, 192, 384), norm_num_groups=16, attention_head_dim=6, cross_attention_dim=256,
            down_block_types=("CrossAttnDownBlock2D",) * 3, up_block_types=("CrossAttnUpBlock2D",) * 3, sample_size=8,
        )  # fmt: skip
    theirs.to_empty(device="cpu")
    for parameter in theirs.parameters():
        parameter.data.fill_(0.01)
    theirs.save_pretrained(tmp_path / "unet")
    told = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), dtype], capture_output=True, text=True, check=True, env={"OMP_NUM_THREADS": "1"}
    )  # fmt: skip
    peak, weights = map(int, told.stdout.split())
    assert weights * (2 if dtype == "bfloat16" else 1) > 180e6
    assert peak <= 1.3 * weights + 24e6, (peak / 1e6, weights / 1e6)


# --- ours, read there -------------------------------------------------------------------------------------------------------


def ours(target: str = "eps", pad: Any = "end", **sampling: Any) -> TextToImage:
    """CLIP text, a U-Net of unequal levels, an autoencoder whose latents have a mean, and DDPM: as they come out of training."""
    torch.manual_seed(8)
    text = CLIPText(CLIPConfig(vocab=600, width=24, depth=2, num_heads=3, pad=pad))
    text.learn_vocabulary(public.WORDS)
    decoder = AutoencoderKL(KLConfig(
        width=8, multipliers=(1, 2), num_res_blocks=1, z_channels=4, norm_groups=4, image_size=16, mean=(0.2, -0.1, 0.0, 0.3),
        std=(0.7, 1.1, 0.9, 1.3),
    ))  # fmt: skip
    config = UNetConfig(
        width=12, multipliers=(1, 2, 1), num_res_blocks=(1, 2, 1), attention=(0, 2), num_heads=3, depth=(1, 1, 2), pooled=False,
        norm_groups=3,
    )  # fmt: skip
    network = UNet(config, latent=decoder.latent, condition=text.gives)
    process = DDPM(DDPMConfig(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, target=target, offset=1))  # type: ignore[arg-type]
    panels = public.randomised(text, 1), Generator(public.randomised(network, 2), process), public.randomised(decoder, 3)
    decoder.latent_mean.copy_(torch.tensor([0.2, -0.1, 0.0, 0.3]))
    return TextToImage(*panels, name="ours", sampling={"steps": 5, "guidance": 3.0} | sampling, size=(16, 24))


def exported(model: TextToImage, folder: Path, **asked: Any) -> str:
    panels = model.text_encoder, model.generator.network, model.generator.process, model.decoder
    return export(*panels, model.settings(**asked), model.size, folder)


@pytest.mark.parametrize("case", ["ddim", "ddim, trailing", "euler", "dpmpp_2m", "unipc", "heun"])
@torch.no_grad()
def test_ours_in_diffusers(case: str, tmp_path: Path) -> None:
    """The same picture there, and the same model when it comes back."""
    sampler, _, spacing = case.partition(", ")
    model = ours("v" if case == "unipc" else "eps", sampler=sampler, spacing=spacing or "leading")
    call = exported(model, tmp_path / "out")
    assert call.endswith("num_inference_steps=5, guidance_scale=3)")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    ids = pipe.tokenizer(SAID, padding="max_length", max_length=77)["input_ids"]
    assert ids == model.text_encoder.encode(SAID).ids_BL.tolist()  # type: ignore[union-attr]
    noise = noise_of(model, 3, (8, 12))
    for guidance in (1.0, 3.0):
        how = {"latents": noise.clone(), "num_inference_steps": 5, "guidance_scale": guidance, "height": 16, "width": 24}
        theirs = 2 * pipe(SAID, **how, output_type="pt").images - 1
        same(model, theirs, SAID, noise, guidance=guidance)
        same(load(tmp_path / "out"), theirs, SAID, noise, guidance=guidance, steps=5)
    back, picture = load(tmp_path / "out"), torch.rand(2, 3, 16, 24) * 2 - 1
    assert back.size == (16, 24) and off(back.decoder.encode(picture), model.decoder.encode(picture)) < 1e-5
    moments = pipe.vae.encode(picture).latent_dist
    assert off(moments.mean, model.decoder.encode(picture)) < 1e-5
    logvar = model.decoder.posterior(picture)[1] - 2 * model.decoder.latent_std.log()[:, None, None]  # type: ignore[union-attr]
    assert off(moments.logvar, logvar) < 1e-5


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@torch.no_grad()
def test_our_pixels_in_diffusers(sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hand_over: Any) -> None:
    model = load(
        saved(public.pixels(diffusers.DDPMScheduler(clip_sample=sampler == "ddpm", prediction_type="sample")), tmp_path / "theirs")
    )
    model.sampling |= {"sampler": sampler, "spacing": "trailing", "steps": 5}
    assert exported(model, tmp_path / "out").endswith("(num_inference_steps=5)")
    pipe = (diffusers.DDPMPipeline if sampler == "ddpm" else diffusers.DDIMPipeline).from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    noise = noise_of(model, 2, (8, 12))
    started(monkeypatch, f"{sampler}.pipeline_{sampler}", noise)
    hand_over(f"scheduling_{sampler}", 2)
    theirs = pipe(batch_size=2, num_inference_steps=5, output_type="np").images
    same(model, 2 * torch.from_numpy(theirs).permute(0, 3, 1, 2) - 1, ["", ""], noise)


def test_what_cannot_be_exported(tmp_path: Path) -> None:
    cases: list[tuple[TextToImage, dict[str, Any], str]] = [
        (ours(pad="mask"), {}, "text_encoder: its padding is masked"),
        (ours(), {"interval": (0.0, 0.5)}, "the process: interval"),
        (ours(), {"sampler": "ddim", "spacing": "linspace"}, "the process: sampler = ddim with spacing = linspace"),
        (load("emoji"), {}, "generator: 'dit' cannot be exported"),
    ]
    text = BilingualTransformer(BILINGUAL["tiny"])
    text.learn_vocabulary(public.WORDS)
    model = ours()
    small, known = UNetConfig(width=8, multipliers=(1, 2), norm_groups=4, num_heads=2, attention=(1,)), {"latent": model.decoder.latent}
    network = UNet(replace(small, text="keys"), condition=model.text_encoder.gives, **known)
    cases.append(
        (TextToImage(model.text_encoder, Generator(network, model.generator.process), model.decoder), {}, "generator: text = 'keys'")
    )
    network = UNet(small, condition=text.gives, **known)
    cases.append((TextToImage(text, Generator(network, model.generator.process), model.decoder), {}, "text_encoder 'bilingual'"))
    for model, asked, said in cases:
        with pytest.raises(ValueError, match=re.escape(said)):
            exported(model, tmp_path / "out", **asked)
        assert not (tmp_path / "out").exists() and not list(tmp_path.iterdir())


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From a folder of ours, and from one of theirs; then pictures of it by `triptych generate`."""
    ours(sampler="dpmpp_2m", spacing="trailing").save(tmp_path / "model", name="mine")
    assert main(["export", str(tmp_path / "model"), "--format", "diffusers", "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["folder"] == str(tmp_path / "out") and "StableDiffusionPipeline" in told["call"]
    assert main(["generate", "a red circle", "-m", str(tmp_path / "out"), "--steps", "2", "-o", str(tmp_path / "a.png")]) == 0
    assert (tmp_path / "a.png").exists()
    assert main(["export", str(tmp_path / "model"), "--out", str(tmp_path / "out")]) != 0 and "is there already" in capsys.readouterr().err
    assert main(["export", "emoji", "--out", str(tmp_path / "new")]) != 0 and "'dit' cannot be exported" in capsys.readouterr().err
