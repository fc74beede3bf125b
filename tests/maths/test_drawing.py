"""Drawing with every process of a denoiser: the right pictures, each a function of its own seed and settings in whatever company."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.maths.exact import Knows, labels
from triptych.contracts import Condition, LatentSpace, Rng, Start, State
from triptych.layers.pixels import pixel_space
from triptych.processes import ddpm, edm, ncsn, sample
from triptych.processes.ddpm import DDPM, SAMPLERS
from triptych.processes.edm import EDM
from triptych.processes.ncsn import NCSN

SHAPE = (3, 8, 8)
CHAIN, NOISES, LEVELS = DDPM(ddpm.Config()), EDM(edm.Config()), NCSN(ncsn.Config(levels=6, sigma_max=8.0))
LEARNED = DDPM(ddpm.Config(variance="learned_range"))
WAYS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{f"ddpm-{name}": (CHAIN, {"sampler": name}) for name in SAMPLERS},
    "ddpm-eta": (CHAIN, {"sampler": "ddim", "eta": 0.6, "spacing": "leading"}),
    "ddpm-learned": (LEARNED, {"sampler": "ddpm", "spacing": "linspace"}),
    **{f"edm-{name}": (NOISES, {"sampler": name}) for name in edm.SAMPLERS},
    "edm-churn": (NOISES, {"sampler": "heun", "churn": 3.0}),
    "ncsn": (LEVELS, {"repeats": 2}),
}
NOISY = ("ddpm-ddpm", "ddpm-euler_a", "ddpm-dpmpp_2m_sde", "ddpm-eta", "ddpm-learned", "edm-euler_a", "edm-dpmpp_2m_sde", "edm-churn")
every = pytest.mark.parametrize("way", WAYS)


def settings(way: str, steps: int, **how: Any) -> tuple[Any, Any]:
    """The process and its Sampling; NCSN's number of steps is that of its levels."""
    process, chosen = WAYS[way]
    return process, process.Sampling(**chosen, **({} if way == "ncsn" else {"steps": steps}), **how)


def knows(process: Any) -> Knows:
    return Knows(process, share=-0.2 if process is LEARNED else None)


def draw(
    way: str,
    seeds: list[int],
    steps: int = 6,
    start: Start | None = None,
    network: nn.Module | None = None,
    on_step: Any = None,
    **how: Any,
) -> Tensor:
    """Row i is said to be N(seed + 1, 1/4); the null is N(0, 1/4)."""
    process, how_ = settings(way, steps, **how)
    cond, null = labels(*[s + 1 for s in seeds]), labels(*[0] * len(seeds))
    return sample(process, network or knows(process), cond, null, how_, start or Start(shape=SHAPE), Rng.of_seeds(seeds), on_step)


def begin(way: str, seeds: list[int], steps: int = 6, start: Start | None = None, **how: Any) -> State:
    process, how_ = settings(way, steps, **how)
    cond, null = labels(*[s + 1 for s in seeds]), labels(*[0] * len(seeds))
    return process.begin(knows(process), cond, null, how_, start or Start(shape=SHAPE), Rng.of_seeds(seeds))


def finish(process: Any, state: State, evaluations: int = 10_000, network: nn.Module | None = None) -> State:
    for _ in range(evaluations):
        if state.done_B.all():
            break
        state = process.step(network or knows(process), state)
    return state


def flow(process: Any, table: Tensor, x: Tensor, m: Tensor) -> Tensor:
    """Where the exact ODE of N(m, 1/4) takes x from the table's first time: the standardised x does not change on the way."""
    alpha, sigma = process.schedule.alpha(table[0, 0]), process.schedule.sigma(table[0, 0])
    return m + 0.5 * (x - alpha * m) / (alpha**2 * 0.25 + sigma**2).sqrt()


def inside(value: float, low: float, high: float) -> None:
    assert low < value < high, value


# --- the right pictures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [way for way in WAYS if way != "ncsn"])
def test_draws_the_data(way: str) -> None:
    """An ODE takes each noise where the exact flow does; what adds noise has the data's mean and variance."""
    process, m = WAYS[way][0], torch.tensor([1.0, 2.0]).view(-1, 1, 1, 1)
    state = begin(way, [0, 1], 60, start=Start(shape=(3, 40, 40)))
    out = finish(process, state).x
    if way in NOISY:
        for row, mean in zip(out, (1.0, 2.0), strict=True):
            inside(float(row.mean()) - mean, -0.05, 0.05)
            inside(float(row.var()), 0.25 * 0.78, 0.25 * 1.1)
    else:
        off = (out - flow(process, state.extra["table"][0], state.x, m)).square().mean().sqrt()
        assert float(off) < (0.05 if way.endswith(("ddim", "euler")) else 0.004)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "ncsn"])
def test_guided_mean(way: str) -> None:
    """D is affine in the mean with the same gain in both branches: guidance 3 draws about 3 c - 2 u, here three times the label."""
    out = draw(way, [0, 1], 40, guidance=3.0, start=Start(shape=(3, 32, 32)))
    torch.testing.assert_close(out.mean((1, 2, 3)), torch.tensor([3.0, 6.0]), atol=0.06, rtol=0)


@pytest.mark.parametrize("target", ddpm.TARGETS)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_target_draws_the_same(sampler: str, target: str) -> None:
    process = DDPM(ddpm.Config(target=target))  # type: ignore[arg-type]
    how = ddpm.Sampling(sampler=sampler, steps=8)  # type: ignore[arg-type]
    out = [sample(p, Knows(p), labels(2), labels(0), how, Start(shape=SHAPE), Rng.of_seeds([0])) for p in (process, CHAIN)]
    torch.testing.assert_close(*out, atol=2e-3, rtol=0)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("target", ["v", "x0"])
def test_from_noise_alone(sampler: str, target: str) -> None:
    """Zero terminal SNR: all samplers begin where nothing is known of x0, and stay finite and right."""
    process = DDPM(ddpm.Config(target=target, zero_terminal_snr=True))  # type: ignore[arg-type]
    how = ddpm.Sampling(sampler=sampler, steps=60)  # type: ignore[arg-type]
    out = sample(process, Knows(process), labels(2), labels(0), how, Start(shape=(3, 40, 40)), Rng.of_seeds([0]))
    inside(float(out.mean()), 1.95, 2.05)
    inside(float(out.var()), 0.2, 0.28)


def test_evaluations_are_counted() -> None:
    for way, steps, how, rows in [
        ("ddpm-ddim", 4, {}, [2] * 4),
        ("ddpm-unipc", 4, {"guidance": 3.0}, [4] * 4),
        ("ddpm-heun", 3, {}, [2] * 5),
        ("ddpm-ddim", 4, {"guidance": 3.0, "interval": (0.4, 0.8)}, [2, 4, 4, 2]),  # t = 1, 0.75, 0.5, 0.25
        ("edm-churn", 3, {}, [2] * 5),
        ("edm-euler", 3, {"guidance": 3.0, "interval": (0.5, 0.7)}, [2, 4, 2]),  # t = 1, 0.61, 0.22
        ("ncsn", 0, {"guidance": 3.0, "interval": (0.3, 0.7)}, [2] * 4 + [4] * 6 + [2] * 3),  # 6 levels twice, and D
    ]:
        network = knows(WAYS[way][0])
        draw(way, [0, 1], steps, network=network, **how)
        assert network.rows == rows, (way, network.rows)


# --- a row is its own -------------------------------------------------------------------------------------------------------


@every
def test_picture_depends_on_its_seed_alone(way: str) -> None:
    """Alone and in a batch of eight, to the last bit."""
    together = draw(way, list(range(8)), guidance=2.0)
    for i in (0, 3, 7):
        assert torch.equal(together[i], draw(way, [i], guidance=2.0)[0])
    assert len({float(row.sum()) for row in together}) == 8


REQUESTS: dict[str, list[tuple[str, int, dict[str, Any]]]] = {
    "ddpm": [
        *((f"ddpm-{name}", 3 + i, {"guidance": 1.0 + i % 3, "spacing": ddpm.SPACINGS[i % 3]}) for i, name in enumerate(SAMPLERS)),
        ("ddpm-eta", 5, {"interval": (0.2, 0.7), "guidance": 2.0}),
    ],
    "edm": [("edm-churn", 6, {"guidance": 2.0}), ("edm-unipc", 9, {"sigma_min": 0.01}), ("edm-euler_a", 4, {"guidance": 3.0})],
    "ncsn": [("ncsn", 0, {"guidance": 3.0}), ("ncsn", 0, {"step": 1e-4}), ("ncsn", 0, {"interval": (0.3, 0.6), "guidance": 2.0})],
}  # fmt: skip


@pytest.mark.parametrize("kind", REQUESTS)
def test_rows_of_different_requests_advance_together(kind: str) -> None:
    """All samplers, lengths, spacings and scales in one batch: each row ends where it ends alone, to the last bit."""
    requests = REQUESTS[kind]
    process, parts = WAYS[requests[0][0]][0], [begin(way, [i], steps, **how) for i, (way, steps, how) in enumerate(requests)]
    state = finish(process, parts[0].cat(parts[1:]))
    for i, (way, steps, how) in enumerate(requests):
        assert torch.equal(state.x[i], draw(way, [i], steps, **how)[0]), (way, how)


@pytest.mark.parametrize("kind", REQUESTS)
def test_join_and_leave(kind: str) -> None:
    """Requests join a running batch, others leave it: nobody notices."""
    requests = REQUESTS[kind][-3:]
    process, parts = WAYS[requests[0][0]][0], [begin(way, [i], steps, **how) for i, (way, steps, how) in enumerate(requests)]
    running = finish(process, finish(process, parts[0], 3).cat([finish(process, parts[1], 2)]), 1)
    left = running.rows([0])
    joined = finish(process, running.rows([1]).cat([parts[2], left]))
    for row, i in enumerate((1, 2, 0)):
        way, steps, how = requests[i]
        assert torch.equal(joined.x[row], draw(way, [i], steps, **how)[0]), (way, how)


# --- pictures to start from -------------------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("strength", [1.0, 0.6, 0.1])
def test_start_image(way: str, strength: float) -> None:
    """From z0 with the noise of the first row that is left, onwards with that share of the rows."""
    process, z0 = WAYS[way][0], torch.rand(1, *SHAPE, generator=torch.Generator().manual_seed(3))
    state = begin(way, [0], 60, start=Start(shape=SHAPE, z0=z0, strength=strength))
    table, eps = state.extra["table"][0], Rng.of_seeds([0]).normal("start", SHAPE)
    first = float(table[0, 0])
    assert first == pytest.approx(strength, abs=0.06) or way == "ncsn"
    if strength < 1:
        torch.testing.assert_close(state.x, process.corrupt(z0, torch.tensor([first]), eps))
        assert len(table) <= len(begin(way, [0], 60).extra["table"][0]) * (strength + 0.1) or way == "ncsn"
    out = finish(process, state).x
    assert out.isfinite().all()
    if way not in NOISY and way != "ncsn":
        loose = 0.05 if way.endswith(("ddim", "euler")) else 0.01
        assert float((out - flow(process, table, state.x, torch.ones(1))).square().mean().sqrt()) < loose


@every
def test_mask_keeps_exactly(way: str) -> None:
    process, z0 = WAYS[way][0], torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(3)) * 2 - 1
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, :, 4:], mask[1, :, 2:6] = 1, 1
    eps, where, seen = Rng.of_seeds([0, 1]).normal("start", SHAPE), mask.expand(-1, *SHAPE) == 1, []

    def look(state: State, _: object) -> None:
        t = state.extra["table"][:, int(state.index_B[0]) - 1, 7]
        seen.append(float(t[0]))
        torch.testing.assert_close(state.x[~where], process.corrupt(z0, t, eps)[~where])  # on its own line to the picture
        assert torch.equal(process.preview(state)[~where], z0[~where])

    out = draw(way, [0, 1], start=Start(shape=SHAPE, z0=z0, mask=mask), on_step=look)
    assert seen[-1] == 0 and torch.equal(out[~where], z0[~where])
    assert torch.equal(out[where], draw(way, [0, 1])[where])  # this network looks at each pixel alone


def test_less_strength_than_the_last_noise() -> None:
    """EDM's t = 0.2 lies below sigma_min: one step to clean data is all there is."""
    z0 = torch.rand(1, *SHAPE)
    assert len(begin("edm-heun", [0], 18, start=Start(shape=SHAPE, z0=z0, strength=0.2)).extra["table"][0]) == 1
    process = DDPM(ddpm.Config(last="first"))
    how = ddpm.Sampling(steps=10, spacing="leading")
    for strength in (0.1, 0.3):  # of which the last visits the first noise itself
        table = process.table(how, strength)
        assert table[-1, 7] == (0 if strength == 0.1 else 0.001)


# --- back to the noise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_invert_and_draw(spacing: str) -> None:
    """DDIM from the noise that DDIM backwards found gives the picture again, the better the more steps; the noise is the flow's."""
    z, errors = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(3)), []
    for steps in (25, 100, 400):
        how = ddpm.Sampling(sampler="ddim", steps=steps, spacing=spacing)  # type: ignore[arg-type]
        found = CHAIN.invert(Knows(CHAIN), z, labels(1, 1), how)
        back = sample(CHAIN, Knows(CHAIN), labels(1, 1), labels(0, 0), how, Start(shape=SHAPE, noise=found), Rng.of_seeds([0, 1]))
        errors.append(float((back - z).square().mean().sqrt()))
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2] and errors[2] < 0.02, errors
    assert float((flow(CHAIN, CHAIN.table(how), found, torch.ones(1)) - z).square().mean().sqrt()) < 0.02


# --- learnt variance, thresholds --------------------------------------------------------------------------------------------


def test_a_learnt_variance_is_not_guided() -> None:
    """The condition's branch says it; the null's, which says another, is not heard."""

    class Speaks(Knows):
        def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
            out = super().forward(x, clock_B, cond)
            out[:, 3:] = cond.label_B.view(-1, 1, 1, 1) / 2 - 0.3  # type: ignore[union-attr]
            return out

    class Fixed(Knows):
        def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
            out = super().forward(x, clock_B, cond)
            out[:, 3:] = 0.2
            return out

    drawn = [draw("ddpm-learned", [0], network=kind(LEARNED, share=0.0), guidance=3.0) for kind in (Speaks, Fixed)]
    torch.testing.assert_close(*drawn)
    assert (drawn[0] - draw("ddpm-learned", [0], guidance=3.0)).abs().max() > 1e-3


@pytest.mark.parametrize("way", ["ddpm-ddim", "ddpm-dpmpp_2m", "edm-heun", "ncsn"])
def test_thresholds(way: str) -> None:
    """Each guess is kept in the range of pixels, row by row: a row's own choice is not its neighbours'."""
    process, space = WAYS[way][0], pixel_space(8, 3, 0.1, 0.5)
    network = knows(process)
    network.latent = space  # type: ignore[assignment]
    out = {one: draw(way, [2, 0], network=network, guidance=4.0, threshold=one) for one in ("none", "static", "dynamic")}
    assert space.restore(out["none"]).abs().max() > 2
    for one in ("static", "dynamic"):
        assert space.restore(out[one]).abs().max() < 1 + 1e-5
    assert not torch.allclose(out["static"], out["dynamic"], atol=1e-2)
    alone = [begin(way, [i], guidance=4.0, threshold=one) for i, one in enumerate(("none", "static", "dynamic"))]
    together = finish(process, alone[0].cat(alone[1:]), network=network).x
    for i, one in enumerate(("none", "static", "dynamic")):
        assert torch.equal(together[i : i + 1], draw(way, [i], network=network, guidance=4.0, threshold=one))


def test_thresholds_are_of_pictures() -> None:
    with pytest.raises(ValueError, match="leave threshold = none"):
        draw("ddpm-ddim", [0], threshold="static")
    network = knows(CHAIN)
    network.latent = LatentSpace(kind="vector", shape=(3,))  # type: ignore[assignment]
    with pytest.raises(ValueError, match="draws none"):
        draw("ddpm-ddim", [0], threshold="dynamic", network=network)


@every
def test_preview_is_the_last_belief(way: str) -> None:
    process, state = WAYS[way][0], begin(way, [0], 8)
    state = process.step(knows(process), state)
    guess = process.preview(state)
    assert guess.shape == (1, *SHAPE) and (guess - 1).abs().mean() < 0.3  # of much noise little more is believed than the mean
    state = finish(process, state)
    assert torch.equal(process.preview(state), state.x)
    assert math.isfinite(float(state.x.sum()))
