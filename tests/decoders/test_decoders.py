"""What every decoder of the package promises, and what each of them promises beside."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from triptych import catalog
from triptych.contracts import Batch, Decoder, Rng
from triptych.decoders import autoencoder_kl, identity, upscaler
from triptych.layers.pixels import average_down

FAMILIES = ("identity", "upscaler", "autoencoder_kl")
TASKS = [("upscaler", "upscale", {"stage": 0}), ("upscaler", "upscale", {"stage": 1}), ("autoencoder_kl", "kl", {})]


def _build(name: str):
    torch.manual_seed(0)
    return catalog.build("decoders", name, size="tiny").eval()


def _blobs(count: int, side: int, seed: int = 0) -> torch.Tensor:
    """White pictures with coloured discs and squares."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images = torch.ones(count, 3, side, side)
    for image in images:
        for square in (False, True):
            centre = torch.rand(2, generator=generator) * side
            radius = side * (0.15 + 0.2 * torch.rand(1, generator=generator))
            far = torch.stack([(y - centre[0]).abs(), (x - centre[1]).abs()])
            inside = (far.amax(0) if square else far.square().sum(0).sqrt()) < radius
            image[:, inside] = (torch.rand(3, 1, generator=generator) * 2 - 1).expand(3, int(inside.sum()))
    return images


def _batch(count: int, side: int) -> Batch:
    return Batch(index=tuple(range(count)), images_BCHW=_blobs(count, side))


def _task(name: str, task: str, options: dict):
    panel = _build(name).train()
    return panel, catalog.find("decoders", name).TASKS[task](panel, neighbours={}, **options)


# --- every decoder ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_shapes_and_ranges(name):
    decoder = _build(name)
    assert isinstance(decoder, Decoder)
    assert dataclasses.is_dataclass(decoder.Sampling)
    images = _blobs(3, 2 * decoder.image_size)
    with torch.no_grad():
        z = decoder.encode(images)
        out = decoder.decode(z)
    assert z.shape == (3, *decoder.latent.shape) and z.isfinite().all()
    assert out.shape == (3, 3, decoder.image_size, decoder.image_size)
    assert out.isfinite().all() and out.abs().max() <= 1
    assert decoder.decode(100 * z).abs().max() <= 1


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_deterministic_and_rows_apart(name):
    decoder = _build(name)
    images = _blobs(4, decoder.image_size)
    z = decoder.encode(images)
    assert torch.equal(z, decoder.encode(images))
    assert torch.equal(decoder.decode(z), decoder.decode(z))
    changed = images.clone()
    changed[1:] = -1
    assert torch.equal(decoder.encode(changed)[0], z[0])
    torch.testing.assert_close(decoder.encode(images[2:3])[0], z[2], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoder.decode(z[2:3])[0], decoder.decode(z)[2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_smaller_picture_stays_or_is_refused(name):
    """Where nothing depends on the size, `factor` says so: latents are that many times smaller than whatever picture."""
    decoder = _build(name)
    if hasattr(decoder, "factor"):
        z = decoder.encode(torch.zeros(1, 3, 4, 8))
        assert z.shape[2:] == (4 // decoder.factor, 8 // decoder.factor)
        assert decoder.decode(z).shape == (1, 3, 4, 8)
        return
    with pytest.raises(ValueError, match="4 x 4"):
        decoder.encode(torch.zeros(1, 3, 4, 4))


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_channels_last_gives_the_same(name):
    decoder = _build(name)
    images = _blobs(2, decoder.image_size)
    z = decoder.encode(images)
    image = decoder.decode(z)
    decoder.to(memory_format=torch.channels_last)
    torch.testing.assert_close(decoder.encode(images.to(memory_format=torch.channels_last)), z, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoder.decode(z.to(memory_format=torch.channels_last)), image, atol=1e-5, rtol=1e-5)


# --- identity and upscaler ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_identity_gives_every_8_bit_picture_back():
    decoder = identity.Identity(identity.Config(size=16))
    levels = torch.arange(256).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    back = decoder.decode(decoder.encode(levels / 127.5 - 1))
    assert torch.equal(((back + 1) * 127.5).round().long(), levels)
    assert sum(p.numel() for p in decoder.parameters()) == 0
    assert decoder.decode(torch.zeros(1, 3, 5, 9)).shape == (1, 3, 5, 9)


def test_upscaler_shares_the_space_of_the_identity():
    small, large = identity.Identity(identity.Config()), upscaler.Upscaler(upscaler.Config())
    assert small.latent.fingerprint == large.latent.fingerprint and small.latent.shape == large.latent.shape
    image = _blobs(2, 128)
    assert torch.equal(small.encode(image), large.encode(image))


@torch.no_grad()
def test_upscaler_starts_as_bicubic_enlargement():
    decoder = upscaler.Upscaler(upscaler.SIZES["emoji"])
    z = decoder.encode(_blobs(2, 128))
    low = decoder.latent.restore(z).clamp(-1, 1)
    bicubic = F.interpolate(low, scale_factor=4, mode="bicubic", align_corners=False).clamp(-1, 1)
    torch.testing.assert_close(decoder.decode(z), bicubic)
    large = F.interpolate(bicubic, scale_factor=2, mode="bicubic", align_corners=False).clamp(-1, 1)
    torch.testing.assert_close(decoder.decode(z, how=upscaler.Sampling(size=256)), large)
    assert sum(p.numel() for p in decoder.parameters()) <= 600_000


@torch.no_grad()
def test_upscaler_draws_the_side_that_is_asked():
    decoder, seen = _build("upscaler"), []
    z = torch.randn(1, 3, 8, 8)
    for side in decoder.sides:
        assert decoder.decode(z, how=upscaler.Sampling(size=side)).shape == (1, 3, side, side)
    decoder.decode(z, how=upscaler.Sampling(size=32), on_step=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]
    assert decoder.decode(torch.randn(1, 3, 8, 12)).shape == (1, 3, 16, 24)
    assert torch.equal(decoder.decode(z, how=upscaler.Sampling(size=8)), decoder.latent.restore(z).clamp(-1, 1))
    with pytest.raises(ValueError, match="8, 16, 32, not 64"):
        decoder.decode(z, how=upscaler.Sampling(size=64))


def test_upscaler_refuses_what_cannot_be():
    with pytest.raises(ValueError, match="not 100"):
        upscaler.Upscaler(upscaler.Config(image_size=100))
    with pytest.raises(ValueError, match="2 factors, 1 widths"):
        upscaler.Upscaler(upscaler.Config(widths=(64,)))
    with pytest.raises(ValueError, match="stages 0 to 1"):
        upscaler.Upscale(_build("upscaler"), stage=2)


def test_upscale_corrupts_each_row_by_its_own_draws():
    _, task = _task("upscaler", "upscale", {"stage": 0, "noise": 0.1, "blur": 0.5})
    true = _blobs(3, 16)
    rng = Rng.of_samples(0, range(3))
    low = task._corrupted(true, rng)
    torch.testing.assert_close(task._corrupted(true[1:2], rng.rows(slice(1, 2)))[0], low[1])
    assert not torch.equal(task._corrupted(true, Rng.of_samples(1, range(3))), low)
    _, clean = _task("upscaler", "upscale", {"stage": 0, "noise": 0.0, "blur": 0.0})
    torch.testing.assert_close(clean._corrupted(true, rng), average_down(true, 8))


# --- the KL autoencoder -------------------------------------------------------------------------------------------------


def test_kl_closed_form():
    mean, logvar = torch.randn(5, 3, 4, 4, dtype=torch.float64), torch.randn(5, 3, 4, 4, dtype=torch.float64) * 3
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(torch.zeros_like(mean), 1.0)).sum(dim=(1, 2, 3))
    torch.testing.assert_close(autoencoder_kl.kl_to_unit_normal(mean, logvar), expected)


@torch.no_grad()
def test_kl_fingerprint_is_of_what_encodes():
    panel = _build("autoencoder_kl")
    first = panel.latent.fingerprint
    panel.decoder.head.bias.add_(1.0)
    assert panel.latent.fingerprint == first
    panel.encoder.stem.bias[0] += 1.0
    second = panel.latent.fingerprint
    assert second != first
    panel.latent_std.mul_(2.0)
    assert panel.latent.fingerprint not in (first, second)


@torch.no_grad()
def test_kl_fingerprint_survives_storing_in_bfloat16():
    panel = _build("autoencoder_kl")
    panel.latent_mean.copy_(torch.tensor([0.1234567, -0.7654321]))
    stored = {name: tensor.bfloat16() for name, tensor in panel.state_dict().items()}
    loaded = catalog.build("decoders", "autoencoder_kl", size="tiny")
    loaded.load_state_dict(stored)
    assert loaded.latent.fingerprint == panel.latent.fingerprint
    assert loaded.to(torch.bfloat16).latent.fingerprint == panel.latent.fingerprint


@torch.no_grad()
def test_kl_latents_are_standardised_by_what_training_measures():
    class Pictures:
        def batch(self, seed, step, size):
            return Batch(index=tuple(range(step * size, (step + 1) * size)), images_BCHW=_blobs(size, 16, seed=step))

    panel, task = _task("autoencoder_kl", "kl", {})
    task.finish(Pictures())
    z = torch.cat([panel.encode(Pictures().batch(0, step, 32).images_BCHW) for step in range(16)])
    torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(2), atol=1e-4, rtol=0)
    raw = panel.posterior(Pictures().batch(0, 0, 2).images_BCHW)[0]
    torch.testing.assert_close(panel.latent.standardise(raw), z[:2])
    torch.testing.assert_close(panel.decode(z[:2]), panel.reconstruct(raw).clamp(-1, 1), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_kl_takes_pictures_that_are_not_square():
    panel = _build("autoencoder_kl")
    assert panel.encode(torch.zeros(1, 3, 32, 50)).shape == (1, 2, 8, 12)
    assert panel.decode(torch.zeros(1, 2, 8, 12)).shape == (1, 3, 16, 24)
    with pytest.raises(ValueError, match="multiples of 2"):
        panel.posterior(torch.zeros(1, 3, 16, 17))


def test_kl_refuses_what_cannot_be():
    with pytest.raises(ValueError, match=r"24 channels.*16 groups"):
        autoencoder_kl.AutoencoderKL(autoencoder_kl.Config(width=24, norm_groups=16))
    with pytest.raises(ValueError, match="no multiple of 8"):
        autoencoder_kl.AutoencoderKL(autoencoder_kl.Config(image_size=100))
    with pytest.raises(ValueError, match="2 latent statistics for 4"):
        autoencoder_kl.AutoencoderKL(autoencoder_kl.Config(mean=(0.0, 1.0)))


def test_small_sizes_stay_small():
    assert sum(p.numel() for p in autoencoder_kl.AutoencoderKL(autoencoder_kl.SIZES["emoji"]).parameters()) <= 800_000


# --- every task ---------------------------------------------------------------------------------------------------------


def _train(task, batch: Batch, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW(task.trainable("main").values(), lr=3e-3)
    seen = []
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = task.losses(batch, "main", step, Rng.of_samples(0, [step * len(batch.index) + i for i in batch.index]))["loss"]
        loss.backward()
        optimizer.step()
        task.after_step("main", step)
        seen.append(loss.item())
    return seen


@pytest.mark.parametrize(("name", "task", "options"), TASKS)
def test_task_overfits_a_batch(name, task, options):
    _, task = _task(name, task, options)
    batch = _batch(4, 32)
    before = task.validate(batch)
    losses = _train(task, batch, 60)
    after = task.validate(batch)
    assert sum(losses[-5:]) < (0.9 if name == "upscaler" else 0.6) * sum(losses[:5])
    assert after["loss"].mean() < before["loss"].mean() and after["psnr"].mean() > before["psnr"].mean()
    if name == "upscaler":
        assert after["psnr"].mean() > after["psnr_bicubic"].mean()
        assert torch.equal(after["psnr_bicubic"], before["psnr_bicubic"])


@pytest.mark.parametrize(("name", "task", "options"), TASKS)
def test_gradients_reach_what_is_trained_and_nothing_else(name, task, options):
    panel, task = _task(name, task, options)
    batch = _batch(2, 32)
    _train(task, batch, 1)  # the last convolution of an upscaler starts at zero and hides the others for one step
    panel.zero_grad(set_to_none=True)
    task.losses(batch, "main", 1, Rng.of_samples(0, range(2)))["loss"].backward()
    trained = task.trainable("main")
    assert trained
    for key, parameter in task.modules.named_parameters():
        if key in trained:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), key
            silent = key.endswith("attention.key.bias")  # softmax does not feel a constant added to all scores
            assert silent or parameter.grad.abs().max() > 0, key
        else:
            assert parameter.grad is None, key


@pytest.mark.parametrize(("name", "task", "options"), TASKS)
def test_task_is_a_function_of_its_draws(name, task, options):
    _, task = _task(name, task, options)
    batch = _batch(3, 32)
    rng = Rng.of_samples(0, range(3))
    assert torch.equal(task.losses(batch, "main", 0, rng)["loss"], task.losses(batch, "main", 0, rng)["loss"])
    whole, row = task.validate(batch), task.validate(Batch(index=(1,), images_BCHW=batch.images_BCHW[1:2]))
    for key, values in whole.items():
        assert values.shape == (3,)
        torch.testing.assert_close(values[1], row[key][0], atol=1e-4, rtol=1e-4)
    assert set(task.panels()) == {"decoder"} and task.plan(0) == ("main",)
    strip = task.preview((), batch)
    assert strip.shape[:2] == (3, 3) and strip.isfinite().all() and strip.abs().max() <= 1
