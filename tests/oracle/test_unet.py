"""The U-Net against diffusers' UNet2DModel and UNet2DConditionModel: the same random weights, the same output, there and back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracle.public_folders import randomised
from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.generators.unet import SIZES, UNet
from triptych.interop.diffusers_unet import config_from_diffusers, config_to_diffusers, tensors_from_diffusers, tensors_to_diffusers

diffusers = pytest.importorskip("diffusers")


def settings(theirs: Any) -> dict[str, Any]:
    return {"_class_name": type(theirs).__name__, **theirs.config}


def ours(theirs: Any) -> UNet:
    config, latent, condition = config_from_diffusers(settings(theirs))
    network = UNet(config, latent=latent, condition=condition)
    network.load_state_dict(tensors_from_diffusers(theirs.state_dict(), config))
    return network.eval()


def relative_error(mine: Tensor, yours: Tensor) -> float:
    assert mine.shape == yours.shape and yours.std() > 0.1
    return ((mine - yours).norm() / yours.norm()).item()


DDPM = {
    "sample_size": 16, "block_out_channels": (32, 64, 64), "layers_per_block": 2, "norm_eps": 1e-6, "flip_sin_to_cos": False,
    "freq_shift": 1, "downsample_padding": 0, "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
ADM = {
    "sample_size": (16, 24), "block_out_channels": (24, 48, 72), "layers_per_block": 1, "norm_num_groups": 6, "attention_head_dim": 24,
    "resnet_time_scale_shift": "scale_shift", "downsample_type": "resnet", "upsample_type": "resnet", "attn_norm_num_groups": 6,
    "num_class_embeds": 11, "out_channels": 6, "time_embedding_dim": 40,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
}  # fmt: skip
LDM = {  # as LDM's unconditional models: three channels of latents, heads of one width
    "sample_size": 8, "block_out_channels": (28, 56, 84), "layers_per_block": 1, "norm_num_groups": 14, "attention_head_dim": 28,
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
}  # fmt: skip
PLAIN = {  # theirs, then height and width
    "DDPM": (DDPM, (16, 16)),
    "DDPM, other sides": (DDPM, (8, 20)),
    "ADM": (ADM, (16, 24)),
    "ADM, one level": (
        ADM | {"block_out_channels": (24,), "down_block_types": ("AttnDownBlock2D",), "up_block_types": ("AttnUpBlock2D",)}, (5, 7)),
    "LDM, unequal levels": (LDM, (8, 12)),
    "20 heads in the middle alone, a picture beside": (
        LDM | {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3, "attention_head_dim": 3, "in_channels": 5,
               "block_out_channels": (30, 30, 60), "norm_num_groups": 5}, (8, 12)),
}  # fmt: skip


@pytest.mark.parametrize("case", PLAIN)
@torch.no_grad()
def test_without_words(case: str) -> None:
    values, size = PLAIN[case]
    theirs = randomised(diffusers.UNet2DModel(**values), seed=1)
    network, classes = ours(theirs), theirs.config.num_class_embeds
    latent = network.latent.shape[0]
    x, clock = torch.randn(3, theirs.config.in_channels, *size), torch.tensor([0, 417, 999])
    label = torch.tensor([3, 10, 0]) if classes else None
    beside = x[:, latent:] if theirs.config.in_channels > latent else None
    mine = network(x[:, :latent], clock, Condition(label_B=label, concat_BCHW=beside))
    assert relative_error(mine, theirs(x, clock, class_labels=label).sample) <= 1e-5


SD1 = {
    "sample_size": 8, "block_out_channels": (32, 64, 64), "layers_per_block": 2, "attention_head_dim": 4, "cross_attention_dim": 24,
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), "norm_num_groups": 16,
}  # fmt: skip
WORDS = {
    "SD 1": (SD1, (8, 8)),
    "SD 1, latents of 9 x 5": (SD1, (9, 5)),
    "SD 1 inpainting": (SD1 | {"in_channels": 9}, (4, 12)),
    "SD 2": (SD1 | {"attention_head_dim": (2, 4, 4), "use_linear_projection": True, "upcast_attention": True}, (8, 16)),
    "3, 9 and 1 heads": (SD1 | {"block_out_channels": (18, 36, 18), "norm_num_groups": 3, "attention_head_dim": (3, 9, 1)}, (12, 4)),
    "3 heads, unequal depths": (
        SD1 | {"block_out_channels": (12, 24, 24), "norm_num_groups": 3, "attention_head_dim": 3, "layers_per_block": (1, 3, 2)}, (8, 8)),
    "transformers of 1, 3 and 2 layers": (
        SD1 | {"transformer_layers_per_block": (1, 3, 2), "layers_per_block": 1, "use_linear_projection": True}, (8, 4)),
    "attention below alone, classes": (
        SD1 | {"down_block_types": ("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"), "num_class_embeds": 7, "layers_per_block": 1,
               "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"), "resnet_time_scale_shift": "scale_shift"}, (8, 8)),
}  # fmt: skip


@pytest.mark.parametrize("case", WORDS)
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_with_words(case: str, masked: bool) -> None:
    values, size = WORDS[case]
    theirs = randomised(diffusers.UNet2DConditionModel(**values), seed=2)
    network = ours(theirs)
    x, clock, tokens = torch.randn(2, theirs.config.in_channels, *size), torch.tensor([12.5, 800.0]), torch.randn(2, 7, 24)
    mask = torch.arange(7) < torch.tensor([[4], [7]]) if masked else None
    label = torch.tensor([6, 2]) if theirs.config.num_class_embeds else None
    beside = x[:, 4:] if theirs.config.in_channels > 4 else None
    cond = Condition(tokens_BLD=tokens, mask_BL=mask, label_B=label, concat_BCHW=beside)
    yours = theirs(x, clock, tokens, class_labels=label, encoder_attention_mask=mask).sample
    assert relative_error(network(x[:, :4], clock, cond), yours) <= 1e-5
    assert relative_error(network(x[:, :4], clock, network.prepare(cond)), yours) <= 1e-5


@pytest.mark.parametrize("case", [*PLAIN, *WORDS])
@torch.no_grad()
def test_there_and_back(case: str) -> None:
    """What we write, their class loads by its own strict names, and it is what was read; so is the configuration."""
    kind, (values, _) = (diffusers.UNet2DModel, PLAIN[case]) if case in PLAIN else (diffusers.UNet2DConditionModel, WORDS[case])
    theirs = randomised(kind(**values), seed=3)
    network = ours(theirs)
    back = config_to_diffusers(network.config, network.latent, network.condition)
    again = kind.from_config(back)
    again.load_state_dict(tensors_to_diffusers(network.state_dict(), network.config))
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name].flatten(), tensor.flatten()), name
    config, latent, condition = config_from_diffusers(settings(again))
    assert (config, latent.shape, condition) == (network.config, network.latent.shape, network.condition)


@torch.no_grad()
def test_our_own_leaves_by_the_same_door() -> None:
    classes = ConditionSpec(num_labels=999)
    words = {"SD-1.5": ConditionSpec(width=768), "SD-2.1": ConditionSpec(width=1024), "LDM-txt2img": ConditionSpec(width=1280)}
    for size, condition in (words | {"DDPM-CIFAR10": ConditionSpec(), "ADM-64": classes, "ADM-256": classes}).items():
        latent = LatentSpace(kind="image", shape=(4, 64, 64) if size in words else (3, 32, 32))
        with torch.device("meta"):
            network = UNet(SIZES[size], latent=latent, condition=condition)
            values = config_to_diffusers(SIZES[size], latent, condition)
            theirs = getattr(diffusers, values["_class_name"]).from_config(values)
        given = tensors_to_diffusers(network.state_dict(), network.config)
        assert {k: v.shape for k, v in given.items()} == {k: v.shape for k, v in theirs.state_dict().items()}
        assert config_from_diffusers(settings(theirs))[0] == SIZES[size]


def test_names_of_before_are_read() -> None:
    theirs = randomised(diffusers.UNet2DModel(**DDPM), seed=4)
    renamed = {}
    for name, tensor in theirs.state_dict().items():
        for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
            name = name.replace(f".{new}.", f".{old}.")
        renamed[name] = tensor
    assert not any("to_q" in name for name in renamed)
    read, expected = (tensors_from_diffusers(one, ours(theirs).config) for one in (renamed, theirs.state_dict()))
    assert read.keys() == expected.keys() and all(torch.equal(read[name], expected[name]) for name in read)


@pytest.mark.parametrize(
    "wrong, says",
    [
        ({"_class_name": "UNet1DModel"}, "UNet1DModel is no U-Net"),
        ({"act_fn": "gelu"}, "act_fn = 'gelu'"),
        ({"dual_cross_attention": True}, "dual_cross_attention = True"),
        ({"only_cross_attention": [False, True, False]}, r"only_cross_attention = \[False, True, False\]"),
        ({"addition_embed_type": "text_time"}, "addition_embed_type = 'text_time'"),
        ({"conv_in_kernel": 5}, "conv_in_kernel = 5"),
        ({"block_out_channels": (32, 48, 64)}, r"block_out_channels = \[32, 48, 64\]"),
        ({"freq_shift": 1}, r"\(True, 1\)"),
        ({"up_block_types": ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")}, "CrossAttnDownBlock2D and UpBlock2D at level 1"),
        ({"cross_attention_dim": (24, 24, 32)}, "words of one width"),
        ({"transformer_layers_per_block": ((1, 1), (1, 1), (1, 1))}, "one number a level"),
        ({"out_channels": 5}, "in_channels = 4, out_channels = 5"),
        ({"sample_size": None}, "sample_size = None"),
        ({"norm_num_groups": None}, "norm_num_groups = None"),
    ],
)
def test_refuses_what_it_cannot_say(wrong: dict[str, Any], says: str) -> None:
    values = {"in_channels": 4, "out_channels": 4, "_class_name": "UNet2DConditionModel", **SD1}
    config_from_diffusers(values)
    with pytest.raises(ValueError, match=says):
        config_from_diffusers(values | wrong)


def test_refuses_tensors_that_do_not_fit() -> None:
    theirs = diffusers.UNet2DModel(**DDPM)
    config, state = config_from_diffusers(settings(theirs))[0], theirs.state_dict()
    with pytest.raises(ValueError, match=r"lacks 'down_blocks.0.resnets.0.time_emb_proj.bias'"):
        tensors_from_diffusers({k: v for k, v in state.items() if k != "down_blocks.0.resnets.0.time_emb_proj.bias"}, config)
    with pytest.raises(ValueError, match=r"holds 'down_blocks.0.resnets.9.extra'"):
        tensors_from_diffusers(state | {"down_blocks.0.resnets.9.extra": torch.zeros(1)}, config)
    wider = torch.zeros(32, 99)
    with pytest.raises(ValueError, match="are no one matrix"):
        tensors_from_diffusers(state | {"down_blocks.0.resnets.0.time_emb_proj.weight": wider}, config)


def test_ours_alone_is_refused() -> None:
    latent, words = LatentSpace(kind="image", shape=(4, 8, 8)), ConditionSpec(width=24, pooled=8)
    tiny = SIZES["tiny"]
    for config, says in (
        (replace(tiny, text="keys"), "text = 'keys'"), (replace(tiny, skips=False), "skips = False"),
        (replace(tiny, middle_attention=False), "middle_attention = False"), (tiny, "a pooled text"),
        (replace(tiny, pooled=False, resize="resnet"), "resize = 'resnet' beside words"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            config_to_diffusers(config, latent, words)
