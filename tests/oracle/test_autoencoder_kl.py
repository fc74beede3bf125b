"""decoders/autoencoder_kl.py against diffusers.AutoencoderKL with the same random weights."""

from __future__ import annotations

import pytest
import torch

from triptych.decoders.autoencoder_kl import SIZES, AutoencoderKL, Config, kl_to_unit_normal
from triptych.interop.diffusers_vae import config_from_diffusers, config_to_diffusers, tensors_from_diffusers, tensors_to_diffusers

diffusers = pytest.importorskip("diffusers")

ODD = {
    "unequal multipliers": Config(width=8, multipliers=(1, 3, 2), num_res_blocks=1, z_channels=3, norm_groups=4, image_size=32, std=(2.5,)),
    "one level": Config(width=12, multipliers=(2,), num_res_blocks=2, z_channels=1, norm_groups=3, image_size=8, mean=(0.25,)),
    "no quant convs": Config(width=16, multipliers=(1, 1, 2, 4), z_channels=5, norm_groups=16, quant_convs=False, image_size=32),
}


def _pair(config: Config):
    torch.manual_seed(0)
    ours = AutoencoderKL(config).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():  # no bias stays zero, no gain stays one
            noise = torch.randn(parameter.shape)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + ("norm" in name and name.endswith("weight")))
            else:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
    theirs = diffusers.AutoencoderKL(**config_to_diffusers(config, ours.state_dict())).eval()
    theirs.load_state_dict(tensors_to_diffusers(ours.state_dict()), strict=True)
    return ours, theirs


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("name", ODD)
@torch.no_grad()
def test_same_weights_same_numbers(name, dtype, bound):
    config = ODD[name]
    ours, theirs = _pair(config)
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    image = torch.rand(2, 3, 3 * ours.factor, 5 * ours.factor, dtype=dtype) * 2 - 1
    mean, logvar = ours.posterior(image)
    expected = theirs.encode(image).latent_dist
    assert _relative(mean, expected.mean) <= bound
    assert _relative(logvar, expected.logvar) <= bound
    assert _relative(kl_to_unit_normal(mean, logvar), expected.kl()) <= bound
    z = torch.randn(2, config.z_channels, 3, 5, dtype=dtype)
    raw = z * config.std[0] + config.mean[0]
    assert _relative(ours.reconstruct(raw), theirs.decode(raw).sample) <= bound
    assert torch.allclose(ours.decode(z), theirs.decode(raw).sample.clamp(-1, 1), atol=10 * bound)


@torch.no_grad()
def test_statistics_are_their_scale_and_shift():
    ours, theirs = _pair(ODD["one level"])
    image = torch.rand(2, 3, 8, 8) * 2 - 1
    expected = (theirs.encode(image).latent_dist.mode() - theirs.config.shift_factor) * theirs.config.scaling_factor
    torch.testing.assert_close(ours.encode(image), expected)


def test_logvar_is_clamped_as_theirs():
    ours, theirs = _pair(ODD["one level"])
    with torch.no_grad():
        ours.quant.bias.copy_(torch.tensor([0.0, 100.0]))
        theirs.quant_conv.bias.copy_(torch.tensor([0.0, 100.0]))
        image = torch.rand(1, 3, 8, 8)
        assert torch.equal(ours.posterior(image)[1], theirs.encode(image).latent_dist.logvar)
        assert ours.posterior(image)[1].max() == 20.0


@pytest.mark.parametrize("vintage", ["new", "old names", "single file"])
def test_weights_come_in(vintage):
    config = ODD["unequal multipliers"]
    ours, theirs = _pair(config)
    tensors = dict(theirs.state_dict())
    if vintage != "new":
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
        for name in [n for n in tensors if "attentions" in n]:
            tensor = tensors.pop(name)
            for new, before in old.items():
                name = name.replace(f".{new}.", f".{before}.")
            tensors[name] = tensor[:, :, None, None] if vintage == "single file" and tensor.ndim == 2 else tensor
    read = config_from_diffusers(theirs.config)
    again = AutoencoderKL(read)
    again.load_state_dict(tensors_from_diffusers(tensors, read, list(again.state_dict())))
    assert all(torch.allclose(a, b) for a, b in zip(again.state_dict().values(), ours.state_dict().values(), strict=True))
    tensors.pop("encoder.conv_in.weight")
    with pytest.raises(ValueError, match=r"encoder\.conv_in\.weight"):
        tensors_from_diffusers(tensors, read, list(again.state_dict()))


def test_statistics_of_single_channels_survive_the_way_out_and_in():
    ours = AutoencoderKL(SIZES["tiny"])
    ours.latent_mean.copy_(torch.tensor([0.5, -1.0]))
    ours.latent_std.copy_(torch.tensor([2.0, 3.0]))
    out = config_to_diffusers(ours.config, ours.state_dict())
    assert (out["latents_mean"], out["latents_std"]) == ([0.5, -1.0], [2.0, 3.0])
    back = config_from_diffusers(diffusers.AutoencoderKL(**out).config)
    assert (back.mean, back.std) == ((0.5, -1.0), (2.0, 3.0))


@pytest.mark.parametrize(("size", "count", "shape"), [("sd", 83_653_863, (4, 64, 64)), ("flux", 83_819_683, (16, 128, 128))])
def test_published_sizes(size, count, shape):
    with torch.device("meta"):
        ours = AutoencoderKL(SIZES[size])
        statistics = {"latent_mean": torch.zeros(1, device="cpu"), "latent_std": torch.ones(1, device="cpu")}
        theirs = diffusers.AutoencoderKL(**config_to_diffusers(SIZES[size], statistics))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters()) == count
    assert ours.latent.shape == shape
    assert {n: t.shape for n, t in tensors_to_diffusers(ours.state_dict()).items()} == {n: t.shape for n, t in theirs.state_dict().items()}


def test_what_cannot_be_read_is_said():
    with pytest.raises(ValueError, match="no multiple of 64"):
        config_from_diffusers({"block_out_channels": (64, 96)})
    with pytest.raises(ValueError, match="act_fn"):
        config_from_diffusers({"block_out_channels": (64,), "act_fn": "relu"})
