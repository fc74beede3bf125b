"""DiT against diffusers' DiTTransformer2DModel and PixArtTransformer2DModel: the same random weights, the same output."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.generators.dit import SIZES, DiT
from triptych.interop.diffusers_dit import config_from_diffusers, tensors_from_diffusers

diffusers = pytest.importorskip("diffusers")


def ours(theirs: nn.Module) -> DiT:
    config, latent, condition = config_from_diffusers({"_class_name": type(theirs).__name__, **theirs.config})
    network = DiT(config, latent=latent, condition=condition)
    network.load_state_dict(tensors_from_diffusers(theirs.state_dict(), config))
    return network.eval()


def randomised(theirs: nn.Module, seed: int) -> nn.Module:
    """Random weights everywhere, gates and biases too, and large enough that every branch is heard in the output."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in theirs.parameters():
        scale = 1.5 * parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.data = scale * torch.randn(parameter.shape, generator=generator)
    return theirs.eval()


def paper(**settings: Any) -> nn.Module:
    theirs = diffusers.DiTTransformer2DModel(norm_eps=1e-6, **settings)
    theirs = randomised(theirs, seed=1)
    for block in theirs.transformer_blocks:
        block.norm1.emb.load_state_dict(theirs.transformer_blocks[0].norm1.emb.state_dict())  # DiT has one for all blocks
        block.norm1.emb.time_proj.downscale_freq_shift = 0  # and frequencies as in its own code: see interop/diffusers_dit.py
    return theirs


def pixart(**settings: Any) -> nn.Module:
    return randomised(diffusers.PixArtTransformer2DModel(use_additional_conditions=False, **settings), seed=2)


def relative_error(mine: torch.Tensor, yours: torch.Tensor) -> float:
    assert mine.shape == yours.shape and yours.std() > 0.1
    return ((mine - yours).norm() / yours.norm()).item()


PAPER = {  # heads, head width, C in, C out, depth, side, patch
    "learnt sigma, depth 3": (4, 16, 4, 8, 3, 16, 2),
    "3 heads, patch 4": (3, 20, 3, None, 2, 12, 4),
    "1 head, patch 1, side 5": (1, 8, 1, 2, 1, 5, 1),
}
SETTINGS = ("num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "sample_size", "patch_size")


@pytest.mark.parametrize("numbers", PAPER.values(), ids=PAPER)
def test_paper(numbers: tuple[int | None, ...]) -> None:
    settings = dict(zip(SETTINGS, numbers, strict=True))
    theirs = paper(num_embeds_ada_norm=10, **settings)
    side = settings["sample_size"]
    x, clock, label = torch.randn(3, settings["in_channels"], side, side), torch.tensor([0, 417, 999]), torch.tensor([3, 10, 0])
    with torch.no_grad():
        mine = ours(theirs)(x, clock, Condition(label_B=label))
        yours = theirs(x, clock, class_labels=label).sample
    assert relative_error(mine, yours) <= 1e-5


@pytest.mark.parametrize("trained, size", [(16, (16, 16)), (16, (24, 8)), (12, (4, 20))])
@pytest.mark.parametrize("prepared", [False, True])
def test_pixart(trained: int, size: tuple[int, int], prepared: bool) -> None:
    theirs = pixart(
        num_attention_heads=3, attention_head_dim=24, in_channels=4, out_channels=8, num_layers=3, sample_size=trained, patch_size=2,
        cross_attention_dim=72, caption_channels=40,
    )  # fmt: skip
    x, clock, tokens = torch.randn(2, 4, *size), torch.tensor([12.5, 800.0]), torch.randn(2, 7, 40)
    mask = torch.arange(7) < torch.tensor([[4], [7]])
    network, cond = ours(theirs), Condition(tokens_BLD=tokens, mask_BL=mask)
    with torch.no_grad():
        mine = network(x, clock, network.prepare(cond) if prepared else cond)
        sizes = {"resolution": None, "aspect_ratio": None}
        yours = theirs(x, tokens, clock, encoder_attention_mask=mask.float(), added_cond_kwargs=sizes).sample
    assert relative_error(mine, yours) <= 1e-5


def test_mapping_refuses_what_it_cannot_say() -> None:
    theirs = paper(num_attention_heads=2, attention_head_dim=8, in_channels=1, num_layers=2, sample_size=4, num_embeds_ada_norm=3)
    settings = {"_class_name": "DiTTransformer2DModel", **theirs.config}
    with pytest.raises(ValueError, match="attention_bias = False"):
        config_from_diffusers(settings | {"attention_bias": False})
    with pytest.raises(ValueError, match="is no DiT"):
        config_from_diffusers(settings | {"_class_name": "UNet2DModel"})
    theirs.transformer_blocks[1].norm1.emb.timestep_embedder.linear_1.weight.data += 1
    with pytest.raises(ValueError, match="one embedding of time and class"):
        tensors_from_diffusers(theirs.state_dict(), config_from_diffusers(settings)[0])


@pytest.mark.parametrize(
    "size, millions, published",
    [("DiT-S/2", 32.96, 33), ("DiT-B/2", 130.51, 130), ("DiT-L/2", 458.10, 458), ("DiT-XL/2", 675.13, 675), ("PixArt-XL/2", 610.86, 600)],
)
def test_published_sizes(size: str, millions: float, published: float) -> None:
    """Parameters as the papers give them (DiT table 4; PixArt-alpha: 0.6 B). DiT's own code counts its fixed table of places too."""
    paper_says = ConditionSpec(width=4096, context_length=120) if size.startswith("PixArt") else ConditionSpec(num_labels=1000)
    with torch.device("meta"):
        network = DiT(SIZES[size], latent=LatentSpace(kind="image", shape=(4, 32, 32)), condition=paper_says)
        cond = Condition(tokens_BLD=torch.empty(2, 120, 4096)) if paper_says.width else Condition(label_B=torch.zeros(2, dtype=torch.int64))
        assert network(torch.empty(2, 4, 32, 32), torch.empty(2), cond).shape == (2, 8, 32, 32)
    fixed = 256 * SIZES[size].width if size.startswith("DiT") else 0
    count = (sum(parameter.numel() for parameter in network.parameters()) + fixed) / 1e6
    assert abs(count - millions) < 0.01
    assert abs(count - published) / published < 0.02


def test_default_fits_its_budget() -> None:
    """The embedded default: at most 6.05 M parameters, hearing text of width 160."""
    spec = ConditionSpec(width=160, context_length=64, pooled=160)
    network = DiT(SIZES["emoji"], latent=LatentSpace(kind="image", shape=(3, 32, 32)), condition=spec)
    assert sum(parameter.numel() for parameter in network.parameters()) <= 6.05e6
