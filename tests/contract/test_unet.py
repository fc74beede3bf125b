"""What every reading of the U-Net keeps to: shapes, gradients, independence of rows, one preparation a request, learning, sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load, save

from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.generators.unet import SIZES, Config, UNet
from triptych.layers.conv import Enlarge, GroupNorm, doubled
from triptych.layers.unet import Clock, SpatialAttention, TimeBlock, Transformer

WORDS = ConditionSpec(width=24, context_length=8, pooled=16)
BASE = Config(width=8, multipliers=(1, 2), num_res_blocks=1, attention=(1,), num_heads=2, time_width=16, norm_groups=4, pooled=False)
ADM = replace(BASE, form="scale_shift", resize="resnet", head_width=4, learn_sigma=True, text="none", attention=(0, 1))
READINGS = {
    "tiny": (SIZES["tiny"], WORDS),
    "DDPM": (replace(BASE, asymmetric=True, time="ddpm", text="none", num_heads=1), ConditionSpec()),
    "ADM, class": (ADM, ConditionSpec(num_labels=5)),
    "GLIDE": (replace(ADM, text="keys", pooled=True, num_heads=1, head_width=0), WORDS),
    "LDM, unequal depths": (
        replace(BASE, num_res_blocks=(1, 2), num_heads=(1, 4), depth=(1, 2), attention=(0, 1)), ConditionSpec(width=24)),
    "pictures and a vector beside, no skips": (replace(BASE, skips=False), ConditionSpec(width=24, vector=7, concat=2)),
    "a summary alone, no attention": (
        replace(BASE, attention=(), middle_attention=False, text="none", pooled=True, num_heads=3), ConditionSpec(pooled=16)),
}  # fmt: skip
each_reading = pytest.mark.parametrize("reading", READINGS)
hearing_words = pytest.mark.parametrize("reading", [name for name, (_, said) in READINGS.items() if said.width])


def network(reading: str, awake: bool = True) -> UNet:
    """`awake`: the layers that start at zero are moved, so that every part is heard."""
    config, condition = READINGS[reading]
    torch.manual_seed(0)
    made = UNet(config, latent=LatentSpace(kind="image", shape=(3, 16, 16)), condition=condition)
    if awake:
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made


def said(reading: str, batch: int = 3, length: int = 6, size: tuple[int, int] = (16, 16)) -> Condition:
    spec, draw = READINGS[reading][1], torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(batch, *shape, generator=draw)

    mask = torch.arange(length) < 1 + torch.arange(batch)[:, None] % length
    return Condition(
        tokens_BLD=normal(length, spec.width) if spec.width else None, mask_BL=mask if spec.width else None,
        pooled_BD=normal(spec.pooled) if spec.pooled else None, vector_BK=normal(spec.vector) if spec.vector else None,
        label_B=torch.arange(batch) % (spec.num_labels + 1) if spec.num_labels else None,
        concat_BCHW=normal(spec.concat, *size) if spec.concat else None,
    )  # fmt: skip


def noisy(batch: int = 3, size: tuple[int, int] = (16, 16)) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(2)
    return torch.randn(batch, 3, *size, generator=draw), 1000 * torch.rand(batch, generator=draw)


@each_reading
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (32, 4)])
def test_shapes(reading: str, size: tuple[int, int]) -> None:
    x, clock = noisy(size=size)
    out = network(reading)(x, clock, said(reading, size=size))
    assert out.shape == (3, 6 if READINGS[reading][0].learn_sigma else 3, *size)
    assert out.dtype == torch.float32 and out.isfinite().all() and out.std() > 0.01


@each_reading
def test_starts_silent(reading: str) -> None:
    assert not network(reading, awake=False)(*noisy(), said(reading)).any()


@each_reading
def test_every_parameter_gets_a_gradient(reading: str) -> None:
    made = network(reading)
    made(*noisy(), said(reading)).square().sum().backward()
    assert [name for name, p in made.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()] == []


@each_reading
@torch.no_grad()
def test_every_port_is_heard(reading: str) -> None:
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    out = made(x, clock, cond)
    assert (made(x, clock + 100, cond) - out).abs().max() > 1e-3
    for name, port in cond.ports().items():
        other = ~port if port.dtype == torch.bool else port.flip(0) + (port.dtype != torch.int64)
        assert (made(x, clock, replace(cond, **{name: other})) - out).abs().max() > 1e-4, name


@each_reading
@torch.no_grad()
def test_rows_are_independent(reading: str) -> None:
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    together = made(x, clock, cond)
    for row in range(3):
        alone = made(x[row : row + 1], clock[row : row + 1], cond.rows(slice(row, row + 1)))
        torch.testing.assert_close(alone, together[row : row + 1], rtol=1e-5, atol=1e-5)


@hearing_words
@torch.no_grad()
def test_padding_is_not_heard(reading: str) -> None:
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    assert cond.tokens_BLD is not None and cond.mask_BL is not None
    noise = torch.where(cond.mask_BL[..., None], cond.tokens_BLD, 1e3)
    longer = replace(cond, tokens_BLD=F.pad(noise, (0, 0, 0, 4), value=9.0), mask_BL=F.pad(cond.mask_BL, (0, 4)))
    torch.testing.assert_close(made(x, clock, longer), made(x, clock, cond), rtol=1e-5, atol=1e-5)


@hearing_words
@torch.no_grad()
def test_prepared_once_is_the_same(reading: str) -> None:
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    prepared, expected = made.prepare(cond), made(x, clock, cond)
    assert prepared.prepared_BLX is not None and prepared.prepared_BLX.shape[:2] == (3, 6)
    torch.testing.assert_close(made(x, clock, prepared), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(made(x, clock, replace(prepared, tokens_BLD=None)), expected, rtol=0, atol=1e-6)
    silent = replace(cond, mask_BL=torch.zeros(3, 6, dtype=torch.bool))
    assert made(x, clock, silent).isfinite().all()


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


@pytest.mark.parametrize("reading", ["tiny", "ADM, class", "GLIDE"])
def test_overfits_one_batch(reading: str) -> None:
    made, (x, clock), cond = network(reading, awake=False), noisy(), said(reading)
    target = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    optimizer = torch.optim.Adam(made.parameters(), lr=1e-2)
    for _ in range(200):
        loss = (made(x, clock, cond)[:, :3] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2 * target.square().mean().item()


@each_reading
@torch.no_grad()
def test_saved_and_loaded_is_bit_equal(reading: str) -> None:
    made = network(reading)
    with torch.device("meta"):
        again = network(reading, awake=False)
    again.load_state_dict(load(save(made.state_dict())), assign=True)
    assert torch.equal(again(*noisy(), said(reading)), made(*noisy(), said(reading)))


@each_reading
def test_bf16(reading: str) -> None:
    """Autocast leaves parameters and gradients in float32; weights in bf16 alone work too."""
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    exact = made(x, clock, cond)
    with torch.autocast("cpu", torch.bfloat16):
        out = made(x, clock, cond)
    out.square().mean().backward()
    assert {p.grad.dtype for p in made.parameters() if p.grad is not None} == {torch.float32}
    with torch.no_grad():
        low = made.to(torch.bfloat16)(x, clock, cond)
    for rough in (out, low):
        assert rough.dtype == torch.float32
        assert ((rough - exact).norm() / exact.norm()).item() < 0.05


@pytest.mark.parametrize("reading", ["tiny", "GLIDE"])
@torch.no_grad()
def test_compiles_as_one_graph(reading: str) -> None:
    made, (x, clock), cond = network(reading), noisy(), said(reading)
    traced = torch.compile(made, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(traced(x, clock, cond), made(x, clock, cond), rtol=1e-4, atol=1e-4)


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
