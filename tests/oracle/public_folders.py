"""Small random pipelines of diffusers, one of each public kind, of odd shapes, in folders: what the tests of public folders begin with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from torch import Tensor, nn
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from triptych.text_encoders import _clip_bpe

WORDS = ["a red circle left of a blue square", "a green star on white", "two hearts!", "an apple, 3 rings"]
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
UNET = {  # unequal depths, 3 heads
    "sample_size": (8, 12), "block_out_channels": (12, 24, 24), "norm_num_groups": 3, "attention_head_dim": 3, "cross_attention_dim": 20,
    "layers_per_block": (1, 2, 1), "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip


def randomised(module: nn.Module, seed: int) -> Any:
    """Random weights everywhere, those that start at zero too; large enough that every branch is heard, and nothing grows."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            parameter.data = drawn * parameter[0].numel() ** -0.5
        else:
            parameter.data = 0.3 * drawn + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return module.eval()


def clip_files(folder: Path, pad: str | None = None) -> int:
    """vocab.json and merges.txt; how many tokens they hold."""
    model = json.loads(_clip_bpe.learn(WORDS, 600))["model"]
    vocabulary = model["vocab"]
    if pad is not None and pad != "!":
        vocabulary[pad] = len(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))
    return len(vocabulary)


def vae(factor: int = 2, **settings: Any) -> Any:
    levels = {1: 1, 2: 2, 4: 3, 8: 4}[factor]
    widths = (8, 16, 8, 16)[:levels]
    values: dict[str, Any] = {
        "block_out_channels": widths, "down_block_types": ("DownEncoderBlock2D",) * levels, "norm_num_groups": 4, "latent_channels": 4,
        "up_block_types": ("UpDecoderBlock2D",) * levels, "sample_size": 16,
    }  # fmt: skip
    theirs = diffusers.AutoencoderKL(**values | settings)
    return randomised(theirs, 5)


def stable(folder: Path, scheduler: Any, *, version: int = 1, **unet: Any) -> Any:
    """StableDiffusionPipeline; version 2 has GELU, linear projections and "!" as padding."""
    count = clip_files(folder / "files")
    pad = "!" if version == 2 else "<|endoftext|>"
    tokenizer = CLIPTokenizer.from_pretrained(folder / "files", model_max_length=77, pad_token=pad)
    text = CLIPTextConfig(
        vocab_size=count, hidden_size=20, intermediate_size=48, num_hidden_layers=2, num_attention_heads=5, bos_token_id=count - 2,
        eos_token_id=count - 1, pad_token_id=tokenizer.pad_token_id, hidden_act="gelu" if version == 2 else "quick_gelu",
    )  # fmt: skip
    two = {"use_linear_projection": True, "attention_head_dim": (2, 3, 4)} if version == 2 else {}
    network = diffusers.UNet2DConditionModel(**{**UNET, **two, **unet})
    without: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    panels = {"vae": vae(), "text_encoder": randomised(CLIPTextModel(text), 3), "unet": randomised(network, 4)}
    return diffusers.StableDiffusionPipeline(**panels, tokenizer=tokenizer, scheduler=scheduler, **without)


def latent_diffusion(folder: Path, scheduler: Any) -> Any:
    """LDMTextToImagePipeline; heads of its text encoder that are wider than the network."""
    words = sorted({word for text in WORDS for word in text.replace("!", " !").replace(",", " ,").split()})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz", *words, "##s", "##ar"]
    (folder / "files").mkdir(parents=True, exist_ok=True)
    (folder / "files" / "vocab.txt").write_text("\n".join(dict.fromkeys(tokens)) + "\n")
    tokenizer = BertTokenizer.from_pretrained(folder / "files", model_max_length=77)
    text = LDMBertConfig(
        vocab_size=len(tokenizer), encoder_layers=2, encoder_ffn_dim=44, encoder_attention_heads=3, head_dim=8, d_model=20
    )  # fmt: skip
    network = diffusers.UNet2DConditionModel(**{**UNET, "sample_size": 8})
    return diffusers.LDMTextToImagePipeline(
        vqvae=vae(8, scaling_factor=0.3), bert=randomised(LDMBertModel(text), 3), tokenizer=tokenizer, unet=randomised(network, 4),
        scheduler=scheduler,
    )  # fmt: skip


def pixels(scheduler: Any, kind: str = "DDPMPipeline", **settings: Any) -> Any:
    network = diffusers.UNet2DModel(**{
        "sample_size": (8, 12), "block_out_channels": (8, 16, 24), "layers_per_block": 1, "norm_num_groups": 4, "norm_eps": 1e-6,
        "flip_sin_to_cos": False, "freq_shift": 1, "downsample_padding": 0, "attention_head_dim": None,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), **settings,
    })  # fmt: skip
    network = randomised(network, 6)
    network.conv_out.weight.data *= 0.3  # pictures, not black and white alone
    return getattr(diffusers, kind)(unet=network, scheduler=scheduler)


def classes(scheduler: Any, **settings: Any) -> Any:
    """DiTPipeline of 1,000 classes, for it counts on them; time's frequencies as in DiT's own code (see interop/diffusers_dit.py)."""
    network = diffusers.DiTTransformer2DModel(**{
        "num_attention_heads": 3, "attention_head_dim": 8, "in_channels": 4, "out_channels": 8, "num_layers": 3, "sample_size": 6,
        "num_embeds_ada_norm": 1000, "norm_eps": 1e-6, **settings,
    })  # fmt: skip
    network = randomised(network, 7)
    for block in network.transformer_blocks:
        block.norm1.emb.load_state_dict(network.transformer_blocks[0].norm1.emb.state_dict())  # DiT has one for all blocks
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    return diffusers.DiTPipeline(transformer=network, vae=vae(2, scaling_factor=0.5), scheduler=scheduler)


def psnr(ours: Tensor, theirs: Tensor) -> float:
    """In dB, of pictures in [-1, 1]; theirs must be one."""
    assert ours.shape == theirs.shape and float(theirs.std()) > 0.05 and float(theirs.abs().mean()) < 0.95, theirs.std()
    return float(10 * torch.log10(4 / (ours - theirs).square().mean().clamp(min=1e-14)))
