"""The U-Net's own: sides, skips, the middle, what it refuses, published sizes, its parts. The rest is in test_denoisers.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.contract.denoisers import BASE, READINGS, WORDS, network, noisy, said
from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.generators.unet import SIZES, UNet
from triptych.layers.conv import Enlarge, GroupNorm, doubled
from triptych.layers.unet import Clock, SpatialAttention, TimeBlock, Transformer


@torch.no_grad()
def test_whole_indices_are_times_too() -> None:
    made, x = network("DDPM"), noisy()[0]
    whole = torch.tensor([0, 500, 999])
    assert torch.equal(made(x, whole, Condition()), made(x, whole.float(), Condition()))


@torch.no_grad()
def test_any_sides_where_convolutions_halve_them() -> None:
    made, cond = network("LDM, unequal depths"), said("LDM, unequal depths")
    assert made(*noisy(size=(9, 5)), cond).shape == (3, 3, 9, 5)
    with pytest.raises(ValueError, match="9 x 5 cannot be halved 1 times: choose multiples of 2"):
        network("DDPM")(*noisy(size=(9, 5)), Condition())


def test_skips_are_what_the_name_says() -> None:
    """Without them nothing but the middle reaches the way up: with a middle of zeros the picture has no say."""
    latent, heard = LatentSpace(kind="image", shape=(3, 16, 16)), {}
    for skips in (True, False):
        torch.manual_seed(0)
        made = UNet(replace(BASE, skips=skips, text="none"), latent=latent, condition=ConditionSpec())
        torch.nn.init.normal_(made.head.weight)
        made.down.mid.stages[1].register_forward_hook(lambda *seen: 0 * seen[-1])  # type: ignore[operator]
        x, clock = noisy()
        heard[skips] = (made(x, clock, Condition()) - made(x.flip(0), clock, Condition())).abs().max().item()
    assert heard[True] > 0.1 and heard[False] == 0


def test_the_middle_has_an_attention_of_its_own() -> None:
    """Left out, its weights are missing, words' keys for it too, and nothing else is."""
    with_it, without = (UNet(
        replace(READINGS["GLIDE"][0], middle_attention=middle), latent=LatentSpace(kind="image", shape=(3, 16, 16)), condition=WORDS
    ) for middle in (True, False))  # fmt: skip
    middle = "down.mid.stages.0.attention."
    every, kept = with_it.state_dict(), without.state_dict()
    assert {name for name in every if name.startswith(middle)} and set(kept) == {name for name in every if not name.startswith(middle)}
    width = with_it.down.kept[-1]
    assert every["text.keys_values.weight"].shape[0] - kept["text.keys_values.weight"].shape[0] == 2 * width
    assert not [m for m in network("a summary alone, no attention").modules() if isinstance(m, SpatialAttention | Transformer)]


def test_everything_inside_is_channels_last() -> None:
    """No map is copied on its way: what enters a convolution lies as the last one left it."""
    made, strides = network("ADM, class"), []
    for name, module in made.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, given, out, name=name: strides.append((name, given[0])))
    made(*noisy(size=(8, 8)), said("ADM, class"))
    assert len(strides) > 10
    assert [name for name, given in strides if not given.is_contiguous(memory_format=torch.channels_last)] == []


def test_refuses() -> None:
    image, words = LatentSpace(kind="image", shape=(3, 16, 16)), WORDS
    with pytest.raises(ValueError, match="this decoder gives 'grid'"):
        UNet(BASE, latent=LatentSpace(kind="grid", shape=(16, 16)), condition=words)
    for wrong, says in (
        ({"norm_groups": 3}, "8 wide, no multiple of norm_groups = 3"), ({"num_heads": 3}, "does not split into 3 heads"),
        ({"head_width": 6}, "16 wide, no multiple of head_width = 6"), ({"attention": (2,)}, r"attention at levels \(2,\) of 2"),
        ({"num_res_blocks": (1, 1, 1)}, "num_res_blocks = .1, 1, 1.: give one number"),
        ({"width": 2, "norm_groups": 1}, "even width of at least 4"),
        ({"attention": (), "middle_attention": False, "text": "keys"}, "no attention to hear it: give levels in attention"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says):
            UNet(replace(BASE, **wrong), latent=image, condition=words)
    with pytest.raises(ValueError, match=r"hear tokens_BLD.*speaks on .'label_B'"):
        network("LDM, unequal depths")(*noisy(), Condition(label_B=torch.zeros(3, dtype=torch.int64)))
    beside = said("pictures and a vector beside, no skips", size=(8, 8))
    with pytest.raises(ValueError, match=r"concat_BCHW is \(8, 8\), the latents are 16 x 16"):
        network("pictures and a vector beside, no skips")(*noisy(), beside)


# --- published sizes ----------------------------------------------------------------------------------------------------

COUNTS = {  # parameters of the networks that were published: diffusers' classes with their configurations count the same
    "DDPM-CIFAR10": (ConditionSpec(), (3, 32, 32), 35_746_307),
    "LDM-txt2img": (ConditionSpec(width=1280), (4, 32, 32), 872_300_484),
    "SD-1.5": (ConditionSpec(width=768, context_length=77), (4, 64, 64), 859_520_964),
    "SD-2.1": (ConditionSpec(width=1024, context_length=77), (4, 96, 96), 865_910_724),
}  # fmt: skip
MILLIONS = {"ADM-64": (999, 64, 296), "ADM-256": (999, 256, 554)}  # as ADM's paper gives them; our last class is "no class"


@pytest.mark.parametrize("size", COUNTS)
def test_published_sizes(size: str) -> None:
    said, shape, count = COUNTS[size]
    with torch.device("meta"):
        made = UNet(SIZES[size], latent=LatentSpace(kind="image", shape=shape), condition=said)
        cond = Condition(tokens_BLD=torch.empty(2, 77, said.width)) if said.width else Condition()
        assert made(torch.empty(2, *shape), torch.empty(2), cond).shape == (2, *shape)
    assert sum(parameter.numel() for parameter in made.parameters()) == count


@pytest.mark.parametrize("size", MILLIONS)
def test_adm_is_as_large_as_its_paper_says(size: str) -> None:
    labels, side, millions = MILLIONS[size]
    with torch.device("meta"):
        made = UNet(SIZES[size], latent=LatentSpace(kind="image", shape=(3, side, side)), condition=ConditionSpec(num_labels=labels))
        out = made(torch.empty(2, 3, side, side), torch.empty(2), Condition(label_B=torch.zeros(2, dtype=torch.int64)))
    assert out.shape == (2, 6, side, side)
    assert round(sum(parameter.numel() for parameter in made.parameters()) / 1e6) == millions


@pytest.mark.parametrize("size, shape", [("scenes", (3, 32, 32)), ("scenes-latent", (4, 8, 8))])
def test_trained_sizes_are_small(size: str, shape: tuple[int, ...]) -> None:
    said = ConditionSpec(width=160, context_length=64, pooled=160)
    made = UNet(SIZES[size], latent=LatentSpace(kind="image", shape=shape), condition=said)
    assert 200_000 < sum(parameter.numel() for parameter in made.parameters()) < 300_000


# --- the parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side, channels", [((5, 3), 8), ((2, 3), 8)])
def test_enlarging_is_a_convolution_of_repeated_pixels(side: tuple[int, int], channels: int) -> None:
    """By sums of weights where pixels are many (15 of 8 channels), by the definition where they are few; with their gradients."""
    up, x = Enlarge(channels), torch.randn(2, channels, *side, requires_grad=True)
    assert up.conv.bias is not None
    repeated = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = F.conv2d(repeated, up.conv.weight, up.conv.bias, padding=1)
    size = (2 * side[0], 2 * side[1])
    torch.testing.assert_close(up(x, size), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(doubled(x), repeated)
    inputs, weight = (x, up.conv.weight, up.conv.bias), torch.randn_like(expected)
    for mine, true in zip(*(torch.autograd.grad((y * weight).sum(), inputs) for y in (up(x, size), expected)), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-4, atol=1e-4)
    cut = (size[0] - 1, size[1])
    assert up(x, cut).shape[2:] == cut


def test_group_norm_has_the_same_gradient() -> None:
    """In bf16, channels together: against torch's own, channels apart."""
    norm, x = GroupNorm(4, 16, eps=1e-5), torch.randn(3, 16, 6, 10)
    torch.nn.init.normal_(norm.weight)
    weight, found = torch.randn_like(x).to(torch.bfloat16), []
    for layout in (torch.channels_last, torch.contiguous_format):
        given = x.to(torch.bfloat16).contiguous(memory_format=layout).requires_grad_()
        y = norm(given)
        assert y.is_contiguous(memory_format=layout)
        found.append(torch.autograd.grad((y * weight).sum(), (given, norm.weight, norm.bias)))
    for mine, true in zip(*found, strict=True):
        torch.testing.assert_close(mine, true, rtol=2e-2, atol=1e-2)


@pytest.mark.parametrize("sides", [(6, 10), (32, 33)])
@pytest.mark.parametrize("channels", [16, 96])
@torch.no_grad()
def test_group_norm_of_narrow_groups(channels: int, sides: tuple[int, int]) -> None:
    """In bf16 and without gradients: the layout stays, and the numbers are those of channels that lie apart but for the last bit."""
    norm, x = GroupNorm(4, channels, eps=1e-5), torch.randn(3, channels, *sides).to(torch.bfloat16)
    torch.nn.init.normal_(norm.weight)
    y = norm(x.contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, F.group_norm(x, 4, norm.weight, norm.bias, 1e-5), rtol=8e-3, atol=1e-3)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("dtype, near", [(torch.float64, 1e-10), (torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_compiled_group_norm_is_the_same(dtype: torch.dtype, near: float, layout: torch.memory_format) -> None:
    """Forwards and backwards, of channels far from zero too; torch's own is asked where nothing is compiled."""
    norm = GroupNorm(4, 12, eps=1e-5).to(torch.promote_types(dtype, torch.float32))
    x = torch.randn(3, 12, 6, 10) + 3 * torch.randn(12, 1, 1)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    weight, found = torch.randn_like(x).to(dtype), []
    for one in (torch.compile(norm, backend="aot_eager", fullgraph=True), lambda x: F.group_norm(x, 4, *norm.parameters(), 1e-5)):
        given = x.to(dtype).contiguous(memory_format=layout).requires_grad_()
        y = one(given)
        found.append((y, *torch.autograd.grad((y * weight).sum(), (given, norm.weight, norm.bias))))
    for mine, true in zip(*found, strict=True):
        assert mine.dtype is true.dtype
        torch.testing.assert_close(mine, true, rtol=near, atol=near * float(true.detach().abs().max()))


def test_times_are_told_as_published() -> None:
    clock = torch.tensor([0.0, 1.0, 999.0])
    openai, ddpm = (Clock(8, 4, dialect, [1])._sines(clock) for dialect in ("openai", "ddpm"))
    assert openai[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0] and ddpm[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    angles = torch.tensor([1.0, 10_000 ** (-1 / 3), 10_000 ** (-2 / 3), 1e-4])  # over half - 1 = 3
    torch.testing.assert_close(ddpm[1], torch.cat([angles.sin(), angles.cos()]))
    assert ddpm[2, 0].item() == pytest.approx(torch.sin(torch.tensor(999.0)).item(), abs=1e-4)


@pytest.mark.parametrize("resample", [None, "down", "up"])
def test_a_block_starts_as_its_shortcut(resample: str | None) -> None:
    block, x = TimeBlock(8, 8, form="scale_shift", groups=2, eps=1e-5, resample=resample), torch.randn(2, 8, 4, 6)  # type: ignore[arg-type]
    expected = {None: x, "down": F.avg_pool2d(x, 2), "up": doubled(x)}[resample]
    torch.testing.assert_close(block(x, torch.randn(2, 16)), expected)
