"""DDPM's learning: what each target and loss teaches, the variance, min-SNR, importance sampling; and its settings."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.maths.exact import Knows, labels, said_of
from tests.training.test_generator import Struck, recipe
from tests.training.toy import differences
from triptych.contracts import Condition, Latents, Rng
from triptych.processes.ddpm import DDPM, SIZES, TARGETS, Config, Sampling
from triptych.recipe import Family
from triptych.training import Report, train

D64 = torch.float64


def batch(count: int = 4, size: int = 40, S: float = 0.25) -> Latents:
    """Rows of N(label, S)."""
    said = labels(*range(1, count + 1))
    z = math.sqrt(S) * torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))
    return Latents(z=z + torch.arange(1, count + 1).view(-1, 1, 1, 1), cond=said, null=labels(*[0] * count))


def rng(count: int = 4) -> Rng:
    return Rng.of_samples(0, range(count))


class Only:
    """A process that is only ever asked about one step."""

    def __init__(self, process: DDPM, k: int) -> None:
        self.process, self.k = process, k

    def losses(self, network: nn.Module, data: Latents) -> dict[str, Tensor]:
        count = len(data.z)
        eps = rng(count).normal("noise", data.z.shape[1:])
        return self.process._losses(network, data, torch.full((count,), self.k), eps, rng(count))


# --- learning ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("k", [2, 40, 700, 1000])
def test_loss_of_the_truth(k: int, target: str) -> None:
    """What the best network cannot know: Var(x0 | x_t), in the units of what it says; less is not to be had, and more is worse."""
    process = DDPM(Config(target=target))  # type: ignore[arg-type]
    t = torch.tensor(k / 1000, dtype=D64)
    alpha, sigma = float(process.schedule.alpha(t)), float(process.schedule.sigma(t))
    unknown = 0.25 * sigma**2 / (alpha**2 * 0.25 + sigma**2)
    of_x0, _, small, _ = (float(part[k - 1]) for part in process.chain)
    best = {
        "x0": unknown, "eps": unknown * alpha**2 / sigma**2, "v": unknown / sigma**2, "mean": of_x0**2 * unknown,
        "previous": of_x0**2 * unknown + small,
    }[target]  # fmt: skip
    found = Only(process, k).losses(Knows(process), batch())
    assert float(found["loss"].mean()) == pytest.approx(best, rel=0.05)
    assert float(found["x0_mse"].mean()) == pytest.approx(unknown, rel=0.05)

    class Off(Knows):
        """Wrong by a tenth of what cannot be known, always to the same side."""

        def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
            return super().forward(x, clock_B, cond) + math.sqrt(0.1 * best)

    assert float(Only(process, k).losses(Off(process), batch())["loss"].mean()) == pytest.approx(1.1 * best, rel=0.05)


@pytest.mark.parametrize("target", TARGETS)
def test_targets_say_the_same(target: str) -> None:
    """However it is said, it is understood as the same x0, at every step and for an answer that is not the truth."""
    process, g = DDPM(Config(target=target)), torch.Generator().manual_seed(0)  # type: ignore[arg-type]
    x, D = torch.randn(2, 6, 3, 2, 2, generator=g, dtype=D64)
    t_B = torch.tensor([1, 2, 10, 500, 999, 1000], dtype=D64) / 1000
    understood, share = process.read(said_of(process, D, x, t_B), x, t_B)
    torch.testing.assert_close(understood, D, atol=1e-9, rtol=1e-9)
    assert share is None


@pytest.mark.parametrize("target", TARGETS)
def test_min_snr(target: str) -> None:
    """min(SNR, 5) of the error in x0, whatever the network says (arXiv 2303.09556): eps divides by SNR, v by SNR + 1."""
    plain, process = (DDPM(Config(target=target, min_snr=gamma)) for gamma in (0.0, 5.0))  # type: ignore[arg-type]
    for k in (10, 300, 900):
        t = torch.tensor(k / 1000, dtype=D64)
        snr = float((process.schedule.alpha(t) / process.schedule.sigma(t)) ** 2)
        weighted, free = (Only(one, k).losses(Knows(one), batch()) for one in (process, plain))
        if target != "previous":  # whose loss is not of x0 alone
            torch.testing.assert_close(weighted["loss"], min(snr, 5.0) * weighted["x0_mse"], rtol=2e-3, atol=0)
        known = {"x0": 1.0, "eps": snr, "v": snr + 1}
        if target in known:
            torch.testing.assert_close(weighted["loss"], min(snr, 5.0) / known[target] * free["loss"], rtol=1e-4, atol=0)


class Learner(nn.Module):
    """Says eps and a variance, each by a number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.variance = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        return torch.cat([self.mean * x, self.variance * torch.ones_like(x)], dim=1)


@pytest.mark.parametrize("k", [1, 2, 500])
def test_hybrid_teaches_the_variance_alone(k: int) -> None:
    """L_hybrid = L_simple + 0.001 T L_vlb: the mean learns from the first, the variance from the second; L_vlb teaches both."""
    grads, values = {}, {}
    for loss in ("simple", "hybrid", "vlb"):
        network, process = Learner(), DDPM(Config(variance="learned_range", loss=loss))  # type: ignore[arg-type]
        values[loss] = Only(process, k).losses(network, batch())
        values[loss]["loss"].mean().backward()
        grads[loss] = {name: p.grad for name, p in network.named_parameters()}
    assert not grads["simple"]["variance"]
    assert torch.equal(grads["hybrid"]["mean"], grads["simple"]["mean"])
    torch.testing.assert_close(grads["hybrid"]["variance"], 0.001 * grads["vlb"]["variance"])
    assert grads["vlb"]["mean"] and grads["vlb"]["variance"]
    torch.testing.assert_close(values["vlb"]["loss"], 1000 * values["vlb"]["vlb"])
    torch.testing.assert_close(values["hybrid"]["loss"], values["simple"]["loss"] + values["hybrid"]["vlb"])


def test_the_best_variance_is_the_true_one() -> None:
    """The share that the bound likes best is that of Var(x_{t-1} | x_t), which the exact denoiser leaves open."""
    process, k = DDPM(Config(variance="learned_range", loss="vlb", beta_start=0.01, beta_end=0.5, num_timesteps=20)), 5
    t = torch.tensor(k / 20, dtype=D64)
    alpha, sigma = process.schedule.alpha(t), process.schedule.sigma(t)
    of_x0, _, small, large = (part[k - 1] for part in process.chain)
    true = small + of_x0**2 * 0.25 * sigma**2 / (alpha**2 * 0.25 + sigma**2)
    share = float((true.log() - small.log()) / (large.log() - small.log()))
    assert 0.1 < share < 0.9
    at = [float(Only(process, k).losses(Knows(process, share=2 * s - 1), batch())["vlb"].mean()) for s in (share - 0.1, share, share + 0.1)]
    assert at[1] < min(at[0], at[2])


def test_validation_belongs_to_the_row() -> None:
    data, process = batch(), DDPM(Config(variance="learned_range", loss="hybrid", target="previous"))
    network = Knows(process, share=0.1)
    whole = process.validate(network, data, Rng.of_samples(0, [5, 6, 7, 8]))
    part = Latents(z=data.z[2:3], cond=data.cond.rows([2]), null=data.null.rows([2]))
    alone = process.validate(network, part, Rng.of_samples(0, [7]))  # type: ignore[arg-type]
    assert set(whole) == {"loss", "x0_mse", "vlb"}
    for name, value in whole.items():
        assert value.shape == (4,) and len(set(value.tolist())) == 4
        torch.testing.assert_close(value[2:3], alone[name])
    other = process.validate(network, part, Rng.of_samples(0, [8]))  # type: ignore[arg-type]
    assert not torch.equal(other["loss"], alone["loss"])


def test_given_noise_is_used() -> None:
    process, data = DDPM(Config()), batch()
    eps = rng().normal("noise", data.z.shape[1:])
    losses = [process.losses(Knows(process), one, "main", 0, rng())["loss"] for one in (data, replace(data, noise=eps))]
    assert torch.equal(*losses)
    assert process.losses(Knows(process), replace(data, noise=eps.flip(0)), "main", 0, rng())["loss"] != losses[0]


# --- which steps are drawn --------------------------------------------------------------------------------------------------


def practised(process: DDPM, sizes: Tensor) -> None:
    """Ten losses of every step k, of which the mean square is sizes[k]^2; and older ones that are to be forgotten."""
    steps, wide = torch.arange(1, len(sizes) + 1), torch.tensor([0.1, math.sqrt(2 - 0.01)])
    for i in range(14):  # every other step's losses vary, and their mean says too little
        factors = torch.where(steps % 2 == 0, wide[i % 2], 1.0)
        process.history.note(steps, torch.full((len(sizes),), 100.0) if i < 4 else sizes * factors)
        process.history.commit()


def test_steps_are_drawn_by_the_size_of_their_loss() -> None:
    """sqrt(E[L^2]) of the last ten (arXiv 2102.09672, eq. 18), but for a thousandth; the weights make up for it."""
    process, sizes, n = (
        DDPM(Config(num_timesteps=8, timesteps="importance")),
        torch.tensor([4.0, 1.0, 0.5, 2.0, 0.1, 0.0, 0.3, 1.1]),
        200_000,
    )
    practised(process, sizes)
    expected = 0.999 * sizes / sizes.sum() + 0.001 / 8
    torch.testing.assert_close(process.history.shares().float(), expected)
    k_B, weight_B = process.history.draw((torch.arange(n) + 0.5) / n)
    torch.testing.assert_close(k_B.bincount(minlength=9)[1:] / n, expected, atol=2 / n + 1e-5, rtol=0)
    for each in (torch.arange(8.0), sizes**2, torch.ones(8)):  # whatever the loss of each step is, its mean is not moved
        assert float((weight_B * each[k_B - 1]).mean()) == pytest.approx(float(each.mean()), rel=1e-3)


def test_before_ten_of_each_all_are_alike() -> None:
    process, u = DDPM(Config(num_timesteps=4, timesteps="importance", loss="simple")), (torch.arange(400) + 0.5) / 400
    plain = DDPM(Config(num_timesteps=4))
    for count in range(10):
        k_B, weight_B = process.history.draw(u)
        assert torch.equal(k_B, plain.history.draw(u)[0]) and torch.equal(weight_B, torch.ones(400)), count
        process.history.note(torch.tensor([1, 2, 3, 4]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
        process.history.commit()
    assert process.history.draw(u)[0].bincount()[1:].tolist() == pytest.approx([40, 80, 120, 160], abs=1)


def test_losses_are_noted_when_a_step_was_taken() -> None:
    """Of each row, without its weight; what was not stepped is forgotten."""
    process, data = DDPM(Config(num_timesteps=4, timesteps="importance")), batch()
    network = Knows(process)
    process.losses(network, data, "main", 0, rng())
    process.losses(network, data, "main", 1, Rng.of_samples(1, range(4)))  # the first was skipped
    process.after_step(network, "main", 1)
    k_B = process.history.draw(Rng.of_samples(1, range(4)).uniform("t"))[0]
    eps = Rng.of_samples(1, range(4)).normal("noise", data.z.shape[1:])
    rows = process._losses(network, data, k_B, eps, Rng.of_samples(1, range(4)))["loss"].double()
    for k in range(1, 5):
        noted = process.history.losses_KL[k - 1][-max(1, int((k_B == k).sum())) :]
        assert int(process.history.count_K[k - 1]) == int((k_B == k).sum())
        torch.testing.assert_close(noted, rows[k_B == k] if (k_B == k).any() else torch.zeros(1, dtype=D64))
    practised(process, torch.tensor([4.0, 1.0, 2.0, 1.0]))
    k_B, weight_B = process.history.draw(rng().uniform("t"))
    rows = process._losses(network, data, k_B, rng().normal("noise", data.z.shape[1:]), rng())["loss"]
    assert len(set(weight_B.tolist())) > 1  # what is descended is weighted
    torch.testing.assert_close(process.losses(network, data, "main", 2, rng())["loss"], (rows * weight_B).mean())
    again = DDPM(process.config)
    again.prepare(network).load_state_dict(process.prepare(network).state_dict())
    u = torch.linspace(0, 0.999, 50)
    assert torch.equal(again.history.draw(u)[0], process.history.draw(u)[0]) and again.history.draw(u)[0].bincount()[1] > 20
    assert not list(DDPM(Config()).prepare(network).buffers())


def test_a_stop_in_the_middle_changes_no_bit(tmp_path: Path) -> None:
    """The losses that are remembered are part of a checkpoint: a killed training goes on as if it had not been."""
    config = {"num_timesteps": 4, "beta_start": 0.1, "beta_end": 0.6, "timesteps": "importance"}
    of = recipe(process=Family(name="ddpm", config=config), batch=24, steps=6, preview_prompts=(), sampling={"steps": 2, "sampler": "ddpm"})
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert train(of, out=whole, report=Report(quiet=True)).reason == "finished"
    with pytest.raises(RuntimeError, match="struck"):
        train(of, out=part, report=Struck(quiet=True))
    train(of, out=part, resume=True, report=Report(quiet=True))
    assert differences(whole, part, 6) == []
    stored = [load_file(file) for file in (whole / "checkpoints" / "step-000006").glob("*.safetensors")]
    (counts,) = [tensor for one in stored for name, tensor in one.items() if name.endswith("history.count_K")]
    assert int(counts.sum()) == 6 * 24 and bool((counts >= 10).all())  # enough that the last steps were drawn by it


# --- settings ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"target": "noise"}, "target = 'noise': must be one of eps, x0, v, mean, previous"),
        ({"loss": "hybrid"}, "set variance = learned_range"),
        ({"zero_terminal_snr": True}, "set target = v or x0"),
        ({"num_timesteps": 1}, r"num_timesteps = 1: must be in 2\.\.100000"),
        ({"beta_schedule": "square"}, "linear, scaled_linear, cosine"),
        ({"num_timesteps": 20, "rescale": True}, "betas from 0.005 to 1: .*raise num_timesteps"),
        ({"beta_start": 0.3, "beta_end": 0.2}, "betas from 0.3 to 0.2: must rise"),
    ],
)
def test_wrong_configurations(config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DDPM(Config(**config))


@pytest.mark.parametrize(
    ("how", "config", "says"),
    [
        ({"steps": 0}, {}, r"steps = 0: must be in 1\.\.1000"),
        ({"steps": 11}, {"num_timesteps": 10}, r"steps = 11: must be in 1\.\.10"),
        ({"steps": 10, "spacing": "leading", "sampler": "unipc"}, {"num_timesteps": 10}, "spacing = leading finds no 10 .* of 10"),
        ({"steps": 10, "spacing": "leading"}, {"num_timesteps": 10, "offset": 1}, "spacing = trailing"),
        ({"steps": 10, "spacing": "linspace", "sampler": "dpmpp_2m"}, {"num_timesteps": 10}, "spacing = linspace finds no"),
        ({"eta": 0.5, "sampler": "euler"}, {}, "eta = 0.5 is ddim's"),
        ({"sampler": "plms"}, {}, "sampler = 'plms'"),
        ({"spacing": "uniform"}, {}, "trailing, leading, linspace"),
        ({"threshold": "soft"}, {}, "none, static, dynamic"),
    ],
)
def test_wrong_settings(how: dict[str, Any], config: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        DDPM(Config(**config)).table(Sampling(**how))


def test_a_variance_that_is_not_said() -> None:
    with pytest.raises(ValueError, match="needs 6 channels, the network says 3; set learn_sigma"):
        Only(DDPM(SIZES["improved"]), 5).losses(Knows(DDPM(Config())), batch())
    D, share = DDPM(Config()).read(torch.ones(1, 6, 2, 2), torch.ones(1, 3, 2, 2), torch.tensor([0.5]))  # DiT's, which nobody asks for
    assert share is None and D.shape == (1, 3, 2, 2)
