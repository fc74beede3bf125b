"""Guidance: a denoiser around a denoiser, with the denoiser's own signature.

    out = u + s (c - u),   c = network(x | cond),   u = network(x | null),   s = 1: off

(Ho & Salimans, Classifier-Free Diffusion Guidance, arXiv 2207.12598, in the form where s = 1 is the plain model.) x0, eps and
v are affine in one another at a given x_t, so it is the same rule for every target. Guidance at the noisiest times costs
variety and at the cleanest does nothing: it can be kept to an interval of times (Kynkäänniemi et al., arXiv 2404.07724), and
outside of it the second branch is not evaluated.

A critic guides by its gradient. Where log p(c | x0) = s score(x0), and the data are about N(m, v),

    x0' = x0-hat + r^2 s grad score(x0-hat),   r^2 = Var[x0 | x_t] = sigma^2 v / (alpha^2 v + sigma^2)

which is exact for such data and a linear score, and the first term of the truth elsewhere (Song et al., Pseudoinverse-Guided
Diffusion Models for Inverse Problems, ICLR 2023). GLIDE (arXiv 2112.10741, section 2.4) asks a CLIP that was trained on noisy
pictures, at x_t; ours knows clean ones, and is asked about x0-hat. Nothing is differentiated but the critic and what leads to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, Critic
from triptych.processes.noise import Schedule, Target, spread

__all__ = ["ClassifierFree", "CriticGuidance", "Guide", "guided"]


class ClassifierFree(nn.Module):
    """`network`, guided. One batched pass: all rows with their condition, and below them the guided rows with their null.

    null: what the unconditional branch hears, or a negative prompt: B rows, with the ports of the condition.
    scale_B: float, 1 = off.
    interval_B2: guidance acts where interval[0] <= clock <= interval[1]: times in the clock's unit, `process.clock(t)`.

    scale_B, interval_B2 and the clock may lie on the CPU while x is elsewhere: then nothing waits for the device.
    """

    role = "denoiser"

    def __init__(self, network: nn.Module, null: Condition, scale_B: Tensor, interval_B2: Tensor) -> None:
        super().__init__()
        self.network, self.null, self.scale_B, self.interval_B2 = network, null, scale_B, interval_B2

    def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        """x [B, ...] -> [B, ...] in at least float32: the difference of two branches is small and is multiplied."""
        low, high = self.interval_B2.unbind(1)
        guided_B = (self.scale_B != 1) & (low <= clock_B) & (clock_B <= high)
        clock, count = clock_B.to(x.device), len(x)
        if not guided_B.any():
            return _wide(self.network(x, clock, cond))
        if guided_B.all():
            both = self.network(torch.cat([x, x]), torch.cat([clock, clock]), cond.cat([self.null]))
            c, u = _wide(both).split(count)
            return u + self._scale(guided_B, x) * (c - u)
        which = guided_B.nonzero().flatten()
        both = self.network(
            torch.cat([x, x[which]]), torch.cat([clock, clock[which]]), cond.cat([self.null.rows(which)])
        )  # fmt: skip
        c, u = _wide(both).split([count, len(which)])
        return c.index_copy(0, which.to(x.device), u + self._scale(which, x) * (c[which] - u))

    def _scale(self, which: Tensor, x: Tensor) -> Tensor:
        return self.scale_B[which].to(x.device).view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True, kw_only=True, eq=False)
class Guide:
    """A critic and all that must be known to follow it: log p(c | x0) = scale * critic(see(x0), 0, heard).

    heard: what the critic listens to, B rows: those of the pictures that are drawn together.
    see: latents [B, ...] to what the critic looks at; it can be differentiated.
    variance: of the data, v: 1 for standardised latents.
    schedule, target, time: of the process: its noise, what its network says, and t_B of a clock_B.
    """

    critic: Critic
    heard: Condition
    scale: float
    schedule: Schedule
    target: Target
    time: Callable[[Tensor], Tensor]
    see: Callable[[Tensor], Tensor] = lambda x0: x0
    variance: float = 1.0

    @property
    def rows(self) -> int:
        return len(next(iter(self.heard.ports().values())))

    def gradient(self, x0: Tensor) -> Tensor:
        """Of log p(c | x0) by x0, [B, ...]. A row's score is a function of that row, so the gradient of their sum is each row's own.

        Raises ValueError where `see` hands no gradient back.
        """
        with torch.enable_grad():
            x0 = x0.detach().requires_grad_()
            seen = self.see(x0)
            if not seen.requires_grad:
                raise ValueError("no gradient leads from what the critic sees to the latents: a decoder that samples cannot be guided")
            score_B = self.critic(seen, torch.zeros(len(x0)), self.heard)  # the clock of a clean picture
            return self.scale * torch.autograd.grad(score_B.sum(), x0)[0]


class CriticGuidance(nn.Module):
    """`network`, which a critic guides: the same target, about a nearby x0. Its parameters are the network's; `prepare` is too.

    Raises ValueError for another number of rows than the guide's critic hears words for.
    """

    role = "denoiser"

    def __init__(self, network: nn.Module, guide: Guide) -> None:
        super().__init__()
        self.network, self.guide = network, guide

    def around(self, denoiser: nn.Module) -> CriticGuidance:
        """The same guide, of another denoiser."""
        return CriticGuidance(denoiser, self.guide)

    def prepare(self, cond: Condition) -> Condition:
        return self.network.prepare(cond) if hasattr(self.network, "prepare") else cond  # type: ignore[operator]

    def forward(self, x: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        """x [B, ...] -> [B, ...] in at least float32."""
        guide, t_B = self.guide, self.guide.time(clock_B)
        if len(x) != guide.rows:
            raise ValueError(
                f"the critic was told the words of {guide.rows} rows, and {len(x)} came; "
                "make one guide for the rows that are drawn together, and let them take the same steps"
            )
        out = _wide(self.network(x, clock_B, cond))
        up = guide.gradient(guide.schedule.convert(out, x, t_B, source=guide.target, to="x0"))
        t = spread(t_B, out)
        alpha, sigma = guide.schedule.alpha(t), guide.schedule.sigma(t)
        by_sigma = sigma * guide.variance / (alpha**2 * guide.variance + sigma**2)  # r^2 / sigma, which t = 0 does not mind
        x0, eps = sigma * by_sigma * up, -alpha * by_sigma * up  # how far they move where x_t = alpha x0 + sigma eps stays
        return out + {"x0": x0, "eps": eps, "v": guide.schedule.velocity(x0, t_B, eps)}[guide.target]


def guided(network: nn.Module, null: Condition, scale_B: Tensor, interval_B2: Tensor) -> nn.Module:
    """Classifier-free guidance of the innermost network, and around it whatever wraps the network: what a process's step evaluates.

    A critic is to speak once, about what both branches say together; inside it would hear each branch, and be multiplied.
    """
    if isinstance(network, CriticGuidance):
        return network.around(guided(network.network, null, scale_B, interval_B2))
    return ClassifierFree(network, null, scale_B, interval_B2)


def _wide(out: Tensor) -> Tensor:
    return out.to(torch.promote_types(out.dtype, torch.float32))
