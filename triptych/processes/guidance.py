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

A critic that was trained on noised pictures is asked at x_t itself (classifier guidance, Dhariwal & Nichol, arXiv 2105.05233, eq. 14):

    eps' = eps-hat - sigma s grad log p(y | x_t),   and so   x0' = x0-hat + sigma^2 / alpha s grad

Imagen's dynamic thresholding (arXiv 2205.11487, section 2.3) keeps x0-hat in the range of pictures however strong the guidance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, Critic, LatentSpace
from triptych.processes.noise import Schedule, Target, spread

__all__ = ["ClassifierFree", "CriticGuidance", "Guide", "guided", "innermost", "thresholded"]


class ClassifierFree(nn.Module):
    """`network`, guided. One batched pass: all rows with their condition, and below them the guided rows with their null.

    Channels beyond those of x, of a learnt variance, are the conditional branch's as they are (as DiT does).
    null: what the unconditional branch hears, or a negative prompt: B rows, with the ports of the condition.
    scale_B: float, 1 = off.
    interval_B2: guidance acts where interval[0] <= clock <= interval[1]: times in the clock's unit, `process.clock(t)`.

    A network with `branches` is given x once with both conditions, and computes once what its rows share. Other rows of x are given twice.

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
            heard = cond.cat([self.null])
            once = getattr(self.network, "branches", False) and bool(heard.ports())
            both = self.network(x, clock, heard) if once else self.network(torch.cat([x, x]), torch.cat([clock, clock]), heard)
            c, u = _wide(both).split(count)
            return self._apart(c, u, guided_B, x)
        which = guided_B.nonzero().flatten()
        both = self.network(
            torch.cat([x, x[which]]), torch.cat([clock, clock[which]]), cond.cat([self.null.rows(which)])
        )  # fmt: skip
        c, u = _wide(both).split([count, len(which)])
        return c.index_copy(0, which.to(x.device), self._apart(c[which], u, which, x))

    def _apart(self, c: Tensor, u: Tensor, which: Tensor, x: Tensor) -> Tensor:
        """u + s (c - u), of the channels of x."""
        scale, channels = self.scale_B[which].to(x.device).view(-1, *[1] * (x.ndim - 1)), x.shape[1]
        if c.shape[1] == channels:
            return u + scale * (c - u)
        return torch.cat([u[:, :channels] + scale * (c - u)[:, :channels], c[:, channels:]], dim=1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Guide:
    """A critic and all that must be known to follow it: log p(c | x0) = scale * critic(see(x0), 0, heard); of one that is `noisy`,
    log p(c | x_t) = scale * critic(see(x_t), clock, heard).

    heard: what the critic listens to, B rows: those of the pictures that are drawn together; nothing, where it listens to nobody.
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
    noisy: bool = False

    @property
    def rows(self) -> int | None:
        """How many it can guide together; None = any number."""
        return next((len(port) for port in self.heard.ports().values()), None)

    def gradient(self, x: Tensor, clock_B: Tensor | None = None) -> Tensor:
        """Of log p(c | x) by x, [B, ...]. A row's score is a function of that row, so the gradient of their sum is each row's own.

        clock_B: None = of a clean picture.
        Raises ValueError where `see` hands no gradient back.
        """
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            seen = self.see(x)
            if not seen.requires_grad:
                raise ValueError("no gradient leads from what the critic sees to the latents: a decoder that samples cannot be guided")
            score_B = self.critic(seen, torch.zeros(len(x)) if clock_B is None else clock_B, self.heard)
            return self.scale * torch.autograd.grad(score_B.sum(), x)[0]


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
        if guide.rows not in (None, len(x)):
            raise ValueError(
                f"the critic was told the words of {guide.rows} rows, and {len(x)} came; "
                "make one guide for the rows that are drawn together, and let them take the same steps"
            )
        whole = _wide(self.network(x, clock_B, cond))
        out, variance = whole[:, : x.shape[1]], whole[:, x.shape[1] :]
        t = spread(t_B, out)
        alpha, sigma = guide.schedule.alpha(t), guide.schedule.sigma(t)
        if guide.noisy:
            up, by_sigma = guide.gradient(x, clock_B), torch.where(alpha > 0, sigma / alpha, 0.0)  # alpha = 0: noise alone says nothing
        else:
            up = guide.gradient(guide.schedule.convert(out, x, t_B, source=guide.target, to="x0"))
            by_sigma = sigma * guide.variance / (alpha**2 * guide.variance + sigma**2)  # r^2 / sigma, which t = 0 does not mind
        x0, eps = sigma * by_sigma * up, -alpha * by_sigma * up  # how far they move where x_t = alpha x0 + sigma eps stays
        moved = out + {"x0": x0, "eps": eps, "v": guide.schedule.velocity(x0, t_B, eps)}[guide.target]
        return torch.cat([moved, variance], dim=1) if variance.shape[1] else moved


def guided(
    network: nn.Module, null: Condition, scale_B: Tensor, interval_B2: Tensor, around: Callable[[nn.Module], nn.Module] | None = None
) -> nn.Module:
    """Classifier-free guidance of the innermost network, and around it whatever wraps the network: what a process's step evaluates.

    around: what the process puts around the network itself (preconditioning), inside of all guidance.
    A critic is to speak once, about what both branches say together; inside it would hear each branch, and be multiplied.
    """
    if isinstance(network, CriticGuidance):
        return network.around(guided(network.network, null, scale_B, interval_B2, around))
    return ClassifierFree(around(network) if around else network, null, scale_B, interval_B2)


def innermost(network: nn.Module) -> nn.Module:
    """The network itself, within its guides."""
    return innermost(network.network) if isinstance(network, CriticGuidance) else network


def thresholded(x0: Tensor, latent: LatentSpace, percentile_B: Tensor) -> Tensor:
    """x0-hat, kept in the range of pictures, [-1, 1] after `latent.restore`; row by row by its percentile: 0 = not, 1 = clipped.

    In between: s is that percentile of |x0-hat|, at least 1; clipped to [-s, s] and divided by s (Imagen's dynamic thresholding).
    """
    raw = latent.restore(x0)
    size = raw.abs().flatten(1)
    out = []
    for row, sizes, was, p in zip(raw, size, x0, percentile_B.tolist(), strict=True):
        if p == 0:
            out.append(was)
            continue
        s = sizes.quantile(p).clamp(min=1.0) if p < 1 else sizes.new_ones(())
        out.append(latent.standardise((row.clamp(-s, s) / s)[None])[0])
    return torch.stack(out)


def _wide(out: Tensor) -> Tensor:
    return out.to(torch.promote_types(out.dtype, torch.float32))
