"""Rectified flow from both sides: its losses against closed forms, its drawing against flows whose end is known."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tests.maths.exact import Toy, labels
from triptych.contracts import Latents, Rng, Start, State
from triptych.processes import sample
from triptych.processes.rectified_flow import SIZES, Config, RectifiedFlow, Sampling
from triptych.processes.solvers import SOLVERS

SHAPE = (3, 8, 8)
FLOW = RectifiedFlow(Config())


def draw(seeds: list[int], *, flow: RectifiedFlow = FLOW, network: Toy | None = None, start: Start | None = None, **how: Any) -> Tensor:
    """Row i is said to be N(i + 1, 1/4); the null is N(0, 1/4)."""
    network = network or Toy(flow.config.target)
    cond, null = labels(*[s + 1 for s in seeds]), labels(*[0] * len(seeds))
    return sample(flow, network, cond, null, Sampling(**how), start or Start(shape=SHAPE), Rng.of_seeds(seeds))


def begin(seeds: list[int], network: Toy | None = None, start: Start | None = None, **how: Any) -> State:
    cond, null = labels(*[s + 1 for s in seeds]), labels(*[0] * len(seeds))
    return FLOW.begin(network or Toy(), cond, null, Sampling(**how), start or Start(shape=SHAPE), Rng.of_seeds(seeds))


def finish(state: State, evaluations: int = 10_000) -> State:
    for _ in range(evaluations):
        if state.done_B.all():
            break
        state = FLOW.step(Toy(), state)
    return state


# --- drawing


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("target", ["x0", "v"])
def test_draws_the_data(sampler: str, target: str) -> None:
    """The exact denoiser of N(m, S) takes each noise to m + sqrt(S) noise."""
    flow = RectifiedFlow(Config(target=target))  # type: ignore[arg-type]
    out = draw([0, 1], flow=flow, steps=100, guidance=1.0, sampler=sampler)
    eps, m = Rng.of_seeds([0, 1]).normal("start", SHAPE), torch.tensor([1.0, 2.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(out, m + 0.5 * eps, atol=0.06 if sampler == "euler" else 0.005, rtol=0)


def test_guided_mean() -> None:
    """D is m + gain (x - alpha m), so guidance moves the drawn mean to u + s (c - u), here s c."""
    out = draw([0, 1], steps=100, guidance=3.0)
    eps = Rng.of_seeds([0, 1]).normal("start", SHAPE)
    torch.testing.assert_close(out, torch.tensor([3.0, 6.0]).view(-1, 1, 1, 1) + 0.5 * eps, atol=0.02, rtol=0)


def test_evaluations_are_counted() -> None:
    for sampler, steps, guidance, interval, rows in [
        ("euler", 4, 1.0, (0.0, 1.0), [2] * 4),
        ("dpmpp_2m", 4, 3.0, (0.0, 1.0), [4] * 4),
        ("heun", 3, 1.0, (0.0, 1.0), [2] * 5),
        ("euler", 4, 3.0, (0.4, 0.8), [2, 4, 4, 2]),  # t = 1, 0.75, 0.5, 0.25
    ]:  # fmt: skip
        network = Toy()
        draw([0, 1], network=network, sampler=sampler, steps=steps, guidance=guidance, interval=interval)
        assert network.rows == rows
        assert network.prepared == 2  # the condition and its null, once a request


def test_noise_given_or_drawn() -> None:
    eps = Rng.of_seeds([4, 5]).normal("start", SHAPE)
    assert torch.equal(draw([4, 5]), draw([4, 5], start=Start(shape=SHAPE, noise=eps)))
    other = draw([4, 5], start=Start(shape=SHAPE, noise=eps.flip(0)))
    assert not torch.allclose(draw([4, 5]), other)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_picture_depends_on_its_seed_alone(sampler: str) -> None:
    together = draw([0, 1, 2, 3], sampler=sampler, steps=6)
    for i in range(4):
        assert torch.equal(together[i], draw([i], sampler=sampler, steps=6)[0])
    assert len({float(row.sum()) for row in together}) == 4


REQUESTS: list[dict[str, Any]] = [
    {"sampler": "heun", "steps": 5, "guidance": 3.0},
    {"sampler": "euler", "steps": 9, "guidance": 1.0, "shift": 3.0},
    {"sampler": "dpmpp_2m", "steps": 12, "guidance": 2.0, "interval": (0.2, 0.7)},
]  # fmt: skip


def test_rows_of_different_requests_advance_together() -> None:
    """Three solvers, lengths, shifts and scales in one batch: each row ends where it ends alone, to the last bit."""
    parts = [begin([i], **how) for i, how in enumerate(REQUESTS)]
    batch = parts[0].cat(parts[1:])
    network, steps = Toy(), 0
    while not batch.done_B.all():
        batch, steps = FLOW.step(network, batch), steps + 1
    assert steps == 12 == len(network.rows)  # one evaluation a step for all of them
    assert network.rows[-1] < network.rows[0]  # done rows are not computed
    for i, how in enumerate(REQUESTS):
        assert torch.equal(batch.x[i], draw([i], **how)[0])


def test_join_and_leave() -> None:
    """A request joins a running batch, another leaves it: nobody notices."""
    first = finish(begin([0], **REQUESTS[0]), 3)
    late = finish(begin([1], **REQUESTS[1]), 2)
    batch = finish(first.cat([begin([2], **REQUESTS[2]), late]), 4)
    left = batch.rows(torch.tensor([2, 0]))
    stayed = batch.rows([1])
    joined = finish(stayed.cat([left, begin([3], steps=3)]))
    for row, (seed, how) in enumerate([(2, REQUESTS[2]), (1, REQUESTS[1]), (0, REQUESTS[0]), (3, {"steps": 3})]):
        assert torch.equal(joined.x[row], draw([seed], **how)[0]), (row, how)


def test_done_rows_stay() -> None:
    batch = begin([0], steps=2).cat([begin([1], steps=6)])
    after_two = finish(batch, 2)
    assert after_two.done_B.tolist() == [True, False]
    end = finish(after_two)
    assert torch.equal(end.x[0], after_two.x[0]) and end.index_B.tolist() == [2, 6]
    again = FLOW.step(Toy(), end)
    assert torch.equal(again.x, end.x) and again.index_B.tolist() == [2, 6]


def test_steps_can_be_stochastic() -> None:
    """A table with noise in it: the draws belong to the row's seed and step, in any company."""

    def noisy(seeds: list[int]) -> State:
        state = begin(seeds, sampler="euler", steps=4, guidance=1.0)
        table = state.extra["table"].clone()
        table[:, :-1, 5] = 0.3
        return replace(state, extra=state.extra | {"table": table})

    both = finish(noisy([0]), 1).cat([noisy([1])])
    both = finish(both)
    assert torch.equal(both.x[0], finish(noisy([0])).x[0]) and torch.equal(both.x[1], finish(noisy([1])).x[0])
    first = FLOW.step(Toy(), noisy([0])).x - FLOW.step(Toy(), begin([0], sampler="euler", steps=4, guidance=1.0)).x
    torch.testing.assert_close(first, 0.3 * Rng.of_seeds([0]).normal("step", SHAPE, 0))


@pytest.mark.parametrize("sampler", SOLVERS)
@pytest.mark.parametrize("strength", [1.0, 0.6, 0.05])
def test_start_image(sampler: str, strength: float) -> None:
    """From z0 with noise for the time `strength`, along the exact flow: (x - alpha m) / sqrt(alpha^2 S + sigma^2) is kept."""
    z0 = torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(3))
    start, s = Start(shape=SHAPE, z0=z0, strength=strength), strength
    state = begin([0], start=start, steps=100, sampler=sampler, guidance=1.0)
    assert int(state.total_B) == (2 * round(100 * s) - 1 if sampler == "heun" else round(100 * s))
    assert state.extra["table"][0, 0, 0] == pytest.approx(s)
    x = (1 - s) * z0 + s * Rng.of_seeds([0]).normal("start", SHAPE)
    torch.testing.assert_close(state.x, x)
    expected = 1 + math.sqrt(0.25 / ((1 - s) ** 2 * 0.25 + s * s)) * (x - (1 - s))
    torch.testing.assert_close(finish(state).x, expected, atol=0.06 if sampler == "euler" else 0.01, rtol=0)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_mask_keeps_exactly(sampler: str) -> None:
    z0 = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :, 4:], mask[1, :, 2:6] = 1, 1
    eps, seen = Rng.of_seeds([0, 1]).normal("start", SHAPE), []
    where = mask.expand(-1, *SHAPE) == 1

    def look(state: State, _: object) -> None:
        t = float(state.extra["table"][0, int(state.index_B[0]) - 1, 7])
        seen.append(t)
        torch.testing.assert_close(state.x[~where], ((1 - t) * z0 + t * eps)[~where])  # on its own line to the picture
        assert torch.equal(FLOW.preview(state)[~where], z0[~where])

    cond, null = labels(1, 2), labels(0, 0)
    start = Start(shape=SHAPE, z0=z0, mask=mask)
    out = sample(FLOW, Toy(), cond, null, Sampling(sampler=sampler, steps=5), start, Rng.of_seeds([0, 1]), on_step=look)  # type: ignore[arg-type]
    assert seen[-1] == 0 and len(seen) == (9 if sampler == "heun" else 5)
    assert torch.equal(out[~where], z0[~where])
    free = draw([0, 1], sampler=sampler, steps=5)
    assert torch.equal(out[where], free[where])  # this network looks at each pixel alone


def test_preview_is_the_last_belief() -> None:
    state = begin([0], steps=3, guidance=1.0, sampler="dpmpp_2m")
    state = FLOW.step(Toy(), state)
    torch.testing.assert_close(FLOW.preview(state), torch.ones(1, *SHAPE))  # at t = 1 D is the mean of the data
    state = finish(state)
    assert torch.equal(FLOW.preview(state), state.x)


def test_result_meets_autograd() -> None:
    weight = torch.ones(1, requires_grad=True)
    (draw([0], steps=1) * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (Start(shape=SHAPE, noise=torch.zeros(2, *SHAPE)), r"noise .*\(2, 3, 8, 8\).*\(1, 3, 8, 8\)"),
        (Start(shape=SHAPE, strength=0.5), "z0"),
        (Start(shape=SHAPE, mask=torch.ones(1, 1, 8, 8)), "z0"),
        (Start(shape=SHAPE, z0=torch.zeros(1, 3, 4, 4)), r"z0 .*\(1, 3, 4, 4\).*\(1, 3, 8, 8\)"),
        (Start(shape=SHAPE, z0=torch.zeros(1, *SHAPE), mask=torch.ones(1, 8, 8)), r"mask .*\(1, 8, 8\).*\(1, 1, 8, 8\)"),
        (Start(shape=SHAPE, z0=torch.zeros(1, *SHAPE), strength=0.0), "strength = 0.0"),
        (Start(shape=SHAPE, z0=torch.zeros(1, *SHAPE), strength=1.5), "strength = 1.5"),
    ],
)
def test_wrong_start(start: Start, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        begin([0], start=start)


# --- settings


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"steps": 0}, r"steps = 0: must be in 1\.\.1000"),
        ({"steps": 2.5}, "whole number"),
        ({"guidance": -1.0}, r"guidance = -1.0: must be in 0.0\.\.50.0"),
        ({"guidance": float("nan")}, "guidance = nan"),
        ({"sampler": "magic"}, "dpmpp_2m, euler, heun"),
        ({"shift": 0.0}, "shift = 0.0"),
        ({"interval": (0.5, 1.5)}, "interval = 1.5"),
        ({"interval": (0.8, 0.2)}, "low then high"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Sampling(**wrong)
    with pytest.raises(ValidationError):
        TypeAdapter(Sampling).validate_python(wrong)


def test_settings_from_json() -> None:
    read = TypeAdapter(Sampling).validate_python({"steps": 8, "interval": [0.1, 0.9], "sampler": "heun"})
    assert read == Sampling(steps=8, interval=(0.1, 0.9), sampler="heun")
    with pytest.raises(ValueError, match="target = 'eps'"):
        Config(target="eps")  # type: ignore[arg-type]


# --- learning


def batch(count: int = 4, size: int = 40) -> Latents:
    """Rows of N(label, 1/4)."""
    said = labels(*range(1, count + 1))
    z = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7)) / 2 + torch.arange(1, count + 1).view(-1, 1, 1, 1)
    return Latents(z=z, cond=said, null=labels(*[0] * count))


def always(t: float, **config: Any) -> RectifiedFlow:
    """A flow that is only ever asked about one time."""
    return RectifiedFlow(Config(mean=math.log(t / (1 - t)), std=0.0, uniform=0.0, **config))


@pytest.mark.parametrize("t", [0.02, 0.2, 0.5, 0.9])
@pytest.mark.parametrize("target", ["x0", "v"])
def test_loss_of_the_truth(t: float, target: str) -> None:
    """What the best network cannot know: Var(x0 | x_t) = S sigma^2 / (alpha^2 S + sigma^2), and that / t^2 for v."""
    posterior = 0.25 * t * t / ((1 - t) ** 2 * 0.25 + t * t)
    held = max(t, 0.05) if target == "x0" else t
    losses = always(t, target=target).losses(Toy(target), batch(), "main", 0, Rng.of_samples(0, range(4)))
    assert losses["x0_mse"] == pytest.approx(posterior, rel=0.05)
    assert losses["v_mse"] == pytest.approx(posterior / held**2, rel=0.05)
    assert losses["loss"] == losses["v_mse"]
    by_x0 = always(t, target=target, loss="x0").losses(Toy(target), batch(), "main", 0, Rng.of_samples(0, range(4)))
    assert by_x0["loss"] == by_x0["x0_mse"] == losses["x0_mse"]


def test_targets_are_judged_alike() -> None:
    """The same belief, said as x0 or as v, has the same losses and the same direction term."""
    of = {
        target: always(0.4, target=target, direction=0.5).losses(Toy(target), batch(), "main", 0, Rng.of_samples(0, range(4)))
        for target in ("x0", "v")
    }
    for name in ("loss", "x0_mse", "v_mse", "direction"):
        torch.testing.assert_close(of["x0"][name], of["v"][name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(of["x0"]["loss"], of["x0"]["v_mse"] + 0.5 * of["x0"]["direction"])


def test_direction_vanishes_for_the_velocity_itself() -> None:
    class Oracle(Toy):
        def forward(self, x_t: Tensor, clock_B: Tensor, cond: Any) -> Tensor:
            return data.z

    data = batch()
    losses = always(0.4, direction=1.0).losses(Oracle(), data, "main", 0, Rng.of_samples(0, range(4)))
    assert losses["loss"] == pytest.approx(0, abs=1e-6)


def test_training_times() -> None:
    """The empirical distribution is the mixture's, within Kolmogorov's bound (p = 1e-4), also after the shift."""
    n = 20_000
    u = torch.rand(n, 2, generator=torch.Generator().manual_seed(0))
    for config in (Config(), Config(mean=-0.5, std=0.7, uniform=0.3), Config(uniform=1.0), Config(mean=0.4, shift=3.0)):
        t = RectifiedFlow(config).times(u).double().sort().values
        assert t[0] >= 0 and t[-1] <= 1
        t = t / (config.shift - (config.shift - 1) * t)  # the shift undone
        normal = torch.special.ndtr((torch.logit(t) - config.mean) / config.std)
        cdf = config.uniform * t + (1 - config.uniform) * normal
        assert (cdf - torch.arange(1, n + 1) / n).abs().max() < 2.2 / math.sqrt(n)


def test_training_draws_belong_to_the_sample() -> None:
    """Row i's loss depends on its sample number, not on its place; two samples differ."""
    data, flow = batch(), RectifiedFlow(Config())
    whole = flow.validate(Toy(), data, Rng.of_samples(0, [5, 6, 7, 8]))
    part = Latents(z=data.z[2:3], cond=data.cond.rows([2]), null=data.null.rows([2]))
    alone = flow.validate(Toy(), part, Rng.of_samples(0, [7]))
    for name in ("loss", "x0_mse", "v_mse"):
        assert whole[name].shape == (4,) and len(set(whole[name].tolist())) == 4
        torch.testing.assert_close(whole[name][2:3], alone[name])
    again = flow.validate(Toy(), data, Rng.of_samples(0, [5, 6, 7, 8]))
    assert torch.equal(whole["loss"], again["loss"])


def test_validation_is_the_expected_loss() -> None:
    """The truth's losses, over the training times: an integral done by hand."""
    flow, count = RectifiedFlow(Config(target="v")), 64
    z, said = torch.randn(count, 1, 16, 16, generator=torch.Generator().manual_seed(1)) / 2, labels(*[0] * count)
    data = Latents(z=z, cond=said, null=said)
    found = flow.validate(Toy("v"), data, Rng.of_samples(0, range(count)))
    t = flow.times(torch.rand(100_000, 2, generator=torch.Generator().manual_seed(2)))
    best = 0.25 / ((1 - t) ** 2 * 0.25 + t * t)
    assert found["loss"].mean() == pytest.approx(float(best.mean()), rel=0.03)


def test_given_noise_is_used() -> None:
    data = batch()
    eps = Rng.of_samples(0, range(4)).normal("noise", data.z.shape[1:])
    given = replace(data, noise=eps)
    rng = Rng.of_samples(0, range(4))
    assert torch.equal(FLOW.losses(Toy(), data, "main", 0, rng)["loss"], FLOW.losses(Toy(), given, "main", 0, rng)["loss"])
    assert FLOW.losses(Toy(), replace(data, noise=eps.flip(0)), "main", 0, rng)["loss"] != FLOW.losses(Toy(), data, "main", 0, rng)["loss"]


def test_only_the_loss_is_descended() -> None:
    class Learner(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x_t: Tensor, clock_B: Tensor, cond: Any) -> Tensor:
            return super().forward(x_t, clock_B, cond) + self.bias

    network = Learner()
    losses = FLOW.losses(network, batch(), "main", 0, Rng.of_samples(0, range(4)))
    assert [name for name, value in losses.items() if value.requires_grad] == ["loss"]
    losses["loss"].backward()
    assert network.bias.grad is not None and network.bias.grad.isfinite()
    assert FLOW.plan(0) == ("main",) and not list(FLOW.prepare(network)) and "tiny" in SIZES
