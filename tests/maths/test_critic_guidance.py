"""A critic's gradient: exact where the truth is a closed form, spoken once beside classifier-free guidance, each row for itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract import tiny
from tests.joints import shot, wgan_gp
from tests.maths.exact import Knows, Mixture, Toy, labels
from triptych import catalog
from triptych.contracts import Condition, Rng, Start
from triptych.eyes import Eyes, as_tensor
from triptych.layers.pixels import pixel_space
from triptych.pipeline import Generator, TextToImage
from triptych.processes import sample
from triptych.processes.ddpm import DDPM
from triptych.processes.ddpm import Config as ChainConfig
from triptych.processes.ddpm import Sampling as ChainSampling
from triptych.processes.edm import EDM
from triptych.processes.edm import Config as EDMConfig
from triptych.processes.edm import Sampling as EDMSampling
from triptych.processes.guidance import ClassifierFree, CriticGuidance, Guide, guided
from triptych.processes.noise import Schedule, linear, spread
from triptych.processes.rectified_flow import Config, RectifiedFlow, Sampling

SHAPE, S = (2, 3), 0.25
COSINE = Schedule(
    alpha=lambda t: torch.cos(torch.pi / 2 * t), sigma=lambda t: torch.sin(torch.pi / 2 * t),
    dalpha=lambda t: -torch.pi / 2 * torch.sin(torch.pi / 2 * t), dsigma=lambda t: torch.pi / 2 * torch.cos(torch.pi / 2 * t),
)  # fmt: skip


def linear_critic(x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
    """label * the sum of all: log p(c | x0) = s a x0 leads N(m, S) to N(m + s a S, S)."""
    assert cond.label_B is not None
    return cond.label_B * x.flatten(1).sum(1)


def curved_critic(x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
    assert cond.label_B is not None
    return -(x - cond.label_B.view(-1, 1, 1)).square().flatten(1).sum(1).sqrt()


def guide(*heard: int, scale: float = 1.0, target: str = "x0", critic: Any = linear_critic, schedule: Schedule | None = None) -> Guide:
    schedule = schedule or linear()
    return Guide(critic=critic, heard=labels(*heard), scale=scale, schedule=schedule, target=target, time=lambda c: c / 1000, variance=S)  # type: ignore[arg-type]


def draw(network: nn.Module, said: list[int], seeds: list[int], target: str = "x0", **how: Any) -> Tensor:
    process = RectifiedFlow(Config(target=target))  # type: ignore[arg-type]
    null, rng = labels(*[1] * len(said)), Rng.of_seeds(seeds)
    return sample(process, network, labels(*said), null, Sampling(**how), Start(shape=SHAPE), rng)


# --- the truth --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["x0", "v"])
@pytest.mark.parametrize("schedule", [linear(), COSINE], ids=["linear", "cosine"])
def test_the_exact_posterior(target: str, schedule: Schedule) -> None:
    """E[x0 | x_t, c] of N(m, S) and a linear score is E[x0 | x_t] of N(m + s a S, S), at every time from data to noise."""
    x = torch.randn(5, *SHAPE, generator=torch.Generator().manual_seed(0))
    clock = torch.tensor([0.0, 1.0, 300.0, 800.0, 1000.0])
    wrapper = CriticGuidance(Toy(target, S, schedule), guide(1, 2, 3, 4, 5, scale=3.0, target=target, schedule=schedule))
    out = wrapper(x, clock, labels(*[2] * 5))
    for i in range(5):
        truth = Toy(target, S, schedule)(x[i : i + 1], clock[i : i + 1], Condition(label_B=torch.tensor([2 + 3.0 * (i + 1) * S])))
        torch.testing.assert_close(out[i : i + 1], truth, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("target", ["x0", "v"])
@pytest.mark.parametrize("w", [0.0, 1.0, 3.0])
def test_the_flow_goes_where_the_posterior_is(target: str, w: float) -> None:
    """Beside classifier-free guidance of scale w, N(m_0 + w (m_c - m_0), S) moves by s a S: the critic's own shift, once."""
    scale, a = 1.5, 2
    network = CriticGuidance(Toy(target, S), guide(a, a, scale=scale, target=target))
    found = draw(network, [3, 4], [0, 1], target, steps=400, guidance=w, sampler="heun")
    x_1 = Rng.of_seeds([0, 1]).normal("start", SHAPE)
    for i, m in enumerate((3, 4)):
        truth = Mixture(m=(1 + w * (m - 1) + scale * a * S,), S=(S,)).flow(x_1[i])
        assert (found[i] - truth).abs().max() < 2e-3


def test_both_targets_draw_the_same() -> None:
    """Also where the score is no longer linear."""
    drawn = [draw(CriticGuidance(Toy(t, S), guide(5, 1, target=t, critic=curved_critic)), [3, 4], [0, 1], t) for t in ("x0", "v")]
    torch.testing.assert_close(*drawn, atol=1e-5, rtol=1e-5)
    assert (drawn[0] - draw(Toy("x0", S), [3, 4], [0, 1])).abs().max() > 0.05


# --- the wrapper ------------------------------------------------------------------------------------------------------------


def test_it_is_the_network_to_whoever_asks() -> None:
    inner = nn.Linear(1, 1)
    network = Toy()
    network.inner = inner
    wrapper = CriticGuidance(network, guide(1))
    assert wrapper.role == "denoiser" and [p is q for p, q in zip(wrapper.parameters(), network.parameters(), strict=True)] == [True] * 2
    assert wrapper.prepare(labels(1)).label_B is not None and network.prepared == 1
    bare = nn.Identity()
    said = labels(1)
    assert CriticGuidance(bare, guide(1)).prepare(said) is said


def test_classifier_free_guidance_is_of_the_innermost() -> None:
    network, scale, interval = Toy(), torch.tensor([3.0]), torch.tensor([[0.0, 1000.0]])
    found = guided(CriticGuidance(CriticGuidance(network, guide(1)), guide(2)), labels(0), scale, interval)
    assert isinstance(found, CriticGuidance) and isinstance(found.network, CriticGuidance)
    assert isinstance(found.network.network, ClassifierFree) and found.network.network.network is network
    assert [found.guide.heard.label_B, found.network.guide.heard.label_B] == [torch.tensor([2]), torch.tensor([1])]
    assert isinstance(guided(network, labels(0), scale, interval), ClassifierFree)


def test_scale_zero_is_the_network_itself() -> None:
    network = CriticGuidance(Toy(), guide(5, 1, scale=0.0, critic=curved_critic))
    assert torch.equal(draw(network, [3, 4], [0, 1]), draw(Toy(), [3, 4], [0, 1]))


def test_a_row_is_its_own() -> None:
    together = draw(CriticGuidance(Toy("x0", S), guide(5, 1, 7, critic=curved_critic)), [3, 4, 2], [0, 1, 2])
    for i, (said, heard) in enumerate([(3, 5), (4, 1), (2, 7)]):
        alone = draw(CriticGuidance(Toy("x0", S), guide(heard, critic=curved_critic)), [said], [i])
        assert torch.equal(together[i : i + 1], alone)


def test_other_rows_than_the_critic_heard_of() -> None:
    wrapper = CriticGuidance(Toy(), guide(1, 2, 3))
    with pytest.raises(ValueError, match="words of 3 rows, and 2 came"):
        wrapper(torch.zeros(2, *SHAPE), torch.tensor([500.0, 500.0]), labels(1, 2))


def test_gradients_are_made_where_none_are_wanted() -> None:
    """Nothing is left behind that requires a gradient, and the network is not differentiated."""

    class Watched(Toy):
        def forward(self, x_t: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
            assert not torch.is_grad_enabled()
            return super().forward(x_t, clock_B, cond)

    with torch.no_grad():
        out = CriticGuidance(Watched(), guide(2, critic=curved_critic))(torch.ones(1, *SHAPE), torch.tensor([500.0]), labels(1))
    assert not out.requires_grad and torch.isfinite(out).all()


# --- what eyes see of latents -----------------------------------------------------------------------------------------------


@pytest.fixture
def eyes() -> Eyes:
    words = tiny.build("text_encoders", "bilingual").eval()
    return Eyes(tiny.awake(tiny.build("vision", "clip", condition=words.gives)).eval(), words, name="tiny eyes")


@pytest.mark.parametrize("side", [8, 16, 24])
def test_the_gradient_of_a_clip_reaches_the_pixels(eyes: Eyes, side: int) -> None:
    """Through enlarging or averaging and CLIP, against finite differences; the clamp behind the resizing leaves most of it alive."""
    space, rng = pixel_space(side, 3, 0.5, 0.6), Rng.of_seeds([3, 4])
    assert eyes.text_encoder is not None
    heard = eyes.text_encoder.encode(tiny.PROMPTS[:2])
    asked = replace(guide(1), critic=eyes.vision, heard=heard, see=lambda z: eyes.preprocess(space.restore(z)))  # type: ignore[arg-type]
    z = space.standardise(0.5 * rng.uniform("z", space.shape) + torch.tensor([0.5, -0.9]).view(2, 1, 1, 1))  # the first near white
    up = asked.gradient(z)
    assert (up != 0).float().mean() > 0.9
    direction = torch.nn.functional.normalize(rng.normal("way", space.shape).flatten(1)).view_as(z)
    step = 0.02
    scores = [eyes.vision(asked.see(z + s * direction), torch.zeros(2), heard).detach() for s in (step, -step)]
    torch.testing.assert_close((scores[0] - scores[1]) / (2 * step), (up * direction).flatten(1).sum(1), atol=2e-4, rtol=0.05)


def test_latents_that_are_no_pixels_are_decoded(eyes: Eyes) -> None:
    """Through the decoder's own weights; its gradient is its own, and leaves nothing behind."""
    model, said = tiny.model(decoder="autoencoder_kl"), ["a red circle", "two hearts"]
    assert not model.decoder.latent.fingerprint.startswith("pixels-")
    plain, pulled = (model.generate(said, guide=eyes, guide_scale=scale) for scale in (0.0, 100.0))
    sight, drawn = eyes.sight(), [torch.cat([as_tensor(one) for one in images]) for images in (plain, pulled)]
    before, after = ((sight.image(images) * sight.text(said)).sum(1) for images in drawn)
    assert (after > before).all(), (before, after)
    assert all(p.grad is None for panel in (model.decoder, eyes.vision) for p in panel.parameters())  # type: ignore[attr-defined]


def test_what_cannot_be_guided_says_so(eyes: Eyes) -> None:
    model = tiny.model(decoder="identity")
    network = shot.Shot(shot.SIZES["tiny"], latent=model.decoder.latent, condition=model.text_encoder.gives)
    other = TextToImage(model.text_encoder, Generator(network, wgan_gp.WGAN(wgan_gp.SIZES["tiny"])), model.decoder)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="needs a denoiser's process"):
        other.generate(["a red circle"], guide=eyes, guide_scale=1.0)
    with pytest.raises(ValueError, match="no gradient leads"):
        replace(guide(1), see=lambda x0: x0.detach()).gradient(torch.zeros(1, *SHAPE))


def test_the_clock_runs_back() -> None:
    process = catalog.build("processes", "rectified_flow", size="tiny")
    t = torch.linspace(0, 1, 11)
    torch.testing.assert_close(process.time(process.clock(t)), t)


# --- a critic of noised pictures ----------------------------------------------------------------------------------------------


class Classifier:
    """log p(y | x_t) in closed form, of y = x0 + N(0, R) and x0 ~ N(m, S): a Gaussian about E[x0 | x_t]."""

    def __init__(self, schedule: Schedule, time: Any, m: float, R: float) -> None:
        self.schedule, self.time, self.m, self.R = schedule, time, m, R
        self.clocks: list[Tensor] = []

    def __call__(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        assert cond.label_B is not None
        self.clocks.append(clock_B)
        t = spread(self.time(clock_B), x)
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        total = alpha**2 * S + sigma**2
        D, unknown = self.m + alpha * S / total * (x - alpha * self.m), S * sigma**2 / total
        return -((spread(cond.label_B, x) - D) ** 2 / (2 * (unknown + self.R))).flatten(1).sum(1)


def noisy(process: Any, *heard: int, target: str, scale: float = 1.0, m: float = 1.0, R: float = 0.1) -> Guide:
    critic: Any = Classifier(process.schedule, process.time, m, R)
    return Guide(
        critic=critic, heard=labels(*heard), scale=scale, schedule=process.schedule, target=target, time=process.time, noisy=True,  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("target", ["eps", "x0", "v"])
@pytest.mark.parametrize("clock", [0, 1, 300, 800, 990])
def test_the_exact_posterior_by_a_noisy_classifier(clock: int, target: str) -> None:
    """E[x0 | x_t, y], by Bayes, at every time and in whatever the network says: D + Var (y - D) / (Var + R)."""
    process = DDPM(ChainConfig(target=target))  # type: ignore[arg-type]
    x, clock_B = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.full((2,), float(clock))
    wrapper = CriticGuidance(Knows(process, S), noisy(process, 3, -1, target=target))
    t_B = process.time(clock_B)
    found, _ = process.read(wrapper(x, clock_B, labels(1, 1)), x, t_B)
    D, _ = process.read(Knows(process, S)(x, clock_B, labels(1, 1)), x, t_B)
    alpha, sigma = process.schedule.alpha(t_B)[0], process.schedule.sigma(t_B)[0]
    unknown = S * sigma**2 / (alpha**2 * S + sigma**2)
    truth = D + unknown * (torch.tensor([3.0, -1.0]).view(-1, 1, 1) - D) / (unknown + 0.1)
    torch.testing.assert_close(found, truth, atol=1e-4 / float(alpha), rtol=1e-4)


def test_adm_s_formula() -> None:
    """eps' = eps - sqrt(1 - abar) s grad log p(y | x_t) (arXiv 2105.05233, algorithm 2); what is said of the variance stays."""
    process = DDPM(ChainConfig(variance="learned_range"))
    x, clock_B = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([100.0, 700.0])
    guide = noisy(process, 3, -1, target="eps", scale=2.5)
    plain = Knows(process, S, share=0.3)(x, clock_B, labels(1, 1))
    found = CriticGuidance(Knows(process, S, share=0.3), guide)(x, clock_B, labels(1, 1))
    asked = x.clone().requires_grad_()
    up = torch.autograd.grad(guide.critic(asked, clock_B, labels(3, -1)).sum(), asked)[0]
    sigma = spread(process.schedule.sigma(process.time(clock_B)), x)
    torch.testing.assert_close(found[:, : SHAPE[0]], plain[:, : SHAPE[0]] - 2.5 * sigma * up)
    assert torch.equal(found[:, SHAPE[0] :], plain[:, SHAPE[0] :]) and up.abs().max() > 0.1


def test_who_is_asked_when() -> None:
    """A noisy critic hears the clock at x_t, a clean one is told 0 about x0-hat."""
    process = DDPM(ChainConfig())
    x, clock_B = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([100.0, 700.0])
    for said, heard in ((True, clock_B), (False, torch.zeros(2))):
        guide = replace(noisy(process, 3, -1, target="eps"), noisy=said)
        CriticGuidance(Knows(process, S), guide)(x, clock_B, labels(1, 1))
        assert torch.equal(guide.critic.clocks[0], heard)  # type: ignore[attr-defined]


def test_noise_alone_says_nothing() -> None:
    """Zero terminal SNR: where alpha is 0 no classifier can know, and none moves anything."""
    process = DDPM(ChainConfig(target="v", zero_terminal_snr=True))
    guide = replace(noisy(process, 3, target="v"), critic=curved_critic)  # type: ignore[arg-type]
    x, clock_B = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0)), torch.tensor([999.0])
    found = CriticGuidance(Knows(process, S), guide)(x, clock_B, labels(1))
    assert found.isfinite().all() and torch.equal(found, Knows(process, S)(x, clock_B, labels(1)))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_drawing_goes_to_the_posterior(sampler: str) -> None:
    """N(1, S) seen through N(0, R): pictures have Bayes' mean and variance, for a classifier that knows every noise."""
    process = DDPM(ChainConfig())
    network = CriticGuidance(Knows(process, S), noisy(process, 3, -1, target="eps"))
    how, rng = ChainSampling(sampler=sampler, steps=150), Rng.of_seeds([0, 1])  # type: ignore[arg-type]
    drawn = sample(process, network, labels(1, 1), labels(0, 0), how, Start(shape=(4, 50, 50)), rng)
    for row, y in zip(drawn, (3.0, -1.0), strict=True):
        assert float(row.mean()) == pytest.approx((S * y + 0.1 * 1) / (S + 0.1), abs=0.03)
        assert float(row.var()) == pytest.approx(S * 0.1 / (S + 0.1), rel=0.15)


def test_beside_classifier_free_guidance_and_preconditioning() -> None:
    """EDM's network stands within both: what is guided says x0. The noisy classifier leads to the same posterior."""
    process = EDM(EDMConfig())
    network = CriticGuidance(Knows(process, S), noisy(process, 3, -1, target="x0"))
    how, rng = EDMSampling(steps=60), Rng.of_seeds([0, 1])
    drawn = sample(process, network, labels(1, 1), labels(0, 0), how, Start(shape=(4, 50, 50)), rng)
    for row, y in zip(drawn, (3.0, -1.0), strict=True):
        assert float(row.mean()) == pytest.approx((S * y + 0.1 * 1) / (S + 0.1), abs=0.03)
        assert float(row.var()) == pytest.approx(S * 0.1 / (S + 0.1), rel=0.1)
    apart = sample(
        process, CriticGuidance(Knows(process, S), noisy(process, 3, -1, target="x0", scale=0.0)), labels(2, 2), labels(1, 1),
        EDMSampling(steps=60, guidance=2.0), Start(shape=(4, 50, 50)), rng,
    )  # fmt: skip
    assert float(apart.mean()) == pytest.approx(3, abs=0.03)  # 2 c - u
