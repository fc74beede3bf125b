"""Solvers: how to get from a noisy time to the next one, each a table of coefficients.

With D(x, t) = E[x0 | x_t = x] (the denoised estimate, whatever the network's own target is) a diffusion's ODE is

    dx/dt = p x + q D(x, t),      p = sigma' / sigma,      q = alpha' - alpha p,

linear in x and D. So every linear one-step or multistep method, of any schedule, deterministic or not, is a list of rows, one row
an evaluation:

    x_next      = a x + b D + c D_1 + d anchor + e D_2 + s noise
    anchor_next = A x + B D + C D_1 + E anchor + F D_2              (only where keep = 1; then also D_2 <- D_1 <- D)

The table is float64 [K, 15], K evaluations, with the columns of `COLUMNS`:

    t            the time at which D is evaluated
    a b          of x and of the fresh D
    c d e        of D_1, the anchor, and D_2, which earlier rows kept
    s            of fresh unit-normal noise (0 everywhere: an ODE)
    keep         1: this row's D is remembered, and the anchor renewed
    t_next       the time of x_next
    low          s where the network says that the variance is least (0: it has no say)
    A B C E F    of x, D, D_1, the anchor and D_2 in the new anchor; A = 1 and the rest 0: it is this row's x

Because a row says all there is to say, rows of a batch may stand at different steps of different solvers of different
lengths and still advance together, in one network evaluation: `advance`.

A grid is float64, strictly falling, from the starting time to the last one, which is 0 but for schedules that say otherwise.

    euler, heun          by the schedule's own t: the solvers of flows
    ddim, ancestral      DDIM (arXiv 2010.02502, eq. 12) and DDPM (arXiv 2006.11239, eq. 6, 7), between any two times
    euler_a, heun_edm    by sigma / alpha (arXiv 2206.00364): there Euler without noise is DDIM
    dpmpp_2m(_sde)       DPM-Solver++ (arXiv 2211.01095)
    unipc                UniPC (arXiv 2302.04867)
    langevin             annealed Langevin dynamics (arXiv 1907.05600)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from triptych.processes.noise import Schedule, spread

__all__ = [
    "COLUMNS", "SOLVERS", "advance", "ancestral", "ddim", "ddim_inversion", "dpmpp_2m", "dpmpp_2m_sde", "euler", "euler_a", "heun",
    "heun_edm", "langevin", "posterior", "unipc",
]  # fmt: skip

COLUMNS: tuple[str, ...] = ("t", "a", "b", "c", "d", "s", "keep", "t_next", "e", "low", "A", "B", "C", "E", "F")


# --- by t -------------------------------------------------------------------------------------------------------------------


def euler(schedule: Schedule, grid: Tensor) -> Tensor:
    """x' = x + h v, first order, one evaluation a step. On the linear path this is DDIM: x' = (t'/t) x + (1 - t'/t) D."""
    t, t_next, p, q = _ode(schedule, grid)
    h = t_next - t
    return _table(t=t, a=1 + h * p, b=h * q, t_next=t_next)


def heun(schedule: Schedule, grid: Tensor) -> Tensor:
    """The trapezoid with Euler's step as its guess: second order, two evaluations a step, the last step Euler's (arXiv 2206.00364).

        x~ = x + h v(x, t),       x' = x + h/2 (v(x, t) + v(x~, t'))

    The second row finds x and D(x, t) as anchor and D_1, and the guess x~ as its x.
    """
    t, t_next, p, q = _ode(schedule, grid)
    guess = euler(schedule, grid)
    half = (t_next - t)[:-1] / 2
    mend = _table(
        t=t_next[:-1], a=half * p[1:], b=half * q[1:], c=half * q[:-1], d=1 + half * p[:-1], t_next=t_next[:-1], keep=None,
    )  # fmt: skip
    return _interleaved(guess, mend)


# --- by the levels alone: alpha and sigma at the grid's times ----------------------------------------------------------------


def ddim(schedule: Schedule, grid: Tensor, eta: float = 0.0) -> Tensor:
    """x' = alpha' D + sqrt(sigma'^2 - s^2) eps-hat + s noise, s = eta sqrt(posterior variance): eta 0 is DDIM, 1 is DDPM."""
    t, t_next, alpha, sigma, alpha_next, sigma_next = _levels(schedule, grid)
    s = eta * posterior(schedule, t, t_next)[2].sqrt()
    a = (sigma_next**2 - s**2).clamp(min=0).sqrt() / sigma
    return _table(t=t, a=a, b=alpha_next - alpha * a, s=s, t_next=t_next)


def ancestral(schedule: Schedule, grid: Tensor, variance: str = "fixed_small") -> Tensor:
    """x' ~ q(x' | x, x0 = D), the chain run backwards, over any stride (improved DDPM, arXiv 2102.09672, section 4).

    variance: "fixed_small", the posterior's; "fixed_large", all that the forward step adds; "learned_range": between the two, in the
    logarithm, as the network says. The last step adds no noise.
    """
    t, t_next = _times(grid)
    of_x0, of_x, small, large = posterior(schedule, t, t_next)
    low, high = {"fixed_small": (small, small), "fixed_large": (large, large), "learned_range": (small, large)}[variance]
    there = schedule.sigma(t_next) > 0
    low, high = (torch.where(there, one.sqrt(), 0.0) for one in (low, high))
    return _table(t=t, a=of_x, b=of_x0, s=high, low=low if variance == "learned_range" else None, t_next=t_next)


def posterior(schedule: Schedule, t: Tensor, t_next: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q(x_next | x_t, x0) = N(of_x0 x0 + of_x x_t, small), of any path, and the variance `large` of q(x_t | x_next) (DDPM's eq. 7)."""
    alpha, sigma, alpha_next, sigma_next = schedule.alpha(t), schedule.sigma(t), schedule.alpha(t_next), schedule.sigma(t_next)
    ratio = alpha / alpha_next
    large = sigma**2 - ratio**2 * sigma_next**2
    return alpha_next * large / sigma**2, ratio * sigma_next**2 / sigma**2, large * sigma_next**2 / sigma**2, large


def euler_a(schedule: Schedule, grid: Tensor) -> Tensor:
    """Euler down to less noise than asked, the rest added anew: in S = sigma / alpha, S_up^2 = S'^2 (S^2 - S'^2) / S^2 (k-diffusion).

    With r = S' / S, S_up = S' sqrt(1 - r^2) and S_down = S' r, also where S is infinite. Each step is the chain's own, `ancestral`.
    """
    t, t_next, alpha, sigma, alpha_next, sigma_next = _levels(schedule, grid)
    r = alpha * sigma_next / (alpha_next * sigma)
    return _table(t=t, a=sigma_next / sigma * r, b=alpha_next * (1 - r**2), s=sigma_next * (1 - r**2).sqrt(), t_next=t_next)


def heun_edm(schedule: Schedule, grid: Tensor, begin: Tensor | None = None) -> Tensor:
    """The trapezoid in y = x / alpha by S = sigma / alpha: dy/dS = (y - D) / S (EDM, arXiv 2206.00364, algorithms 1 and 2).

    begin: the times at which the steps really begin, later ones than the grid's, where fresh noise leads back up before each step
    (EDM's churn); only on a path whose alpha stays 1. The row before a step adds its noise.
    From noise alone (alpha = 0, S infinite) no trapezoid can be drawn: there the step stays Euler's.
    """
    t, t_next, alpha, sigma, alpha_next, sigma_next = _levels(schedule, grid)
    ahead = torch.zeros_like(t)
    if begin is not None:
        assert bool((alpha == 1).all()) and bool((begin >= t).all()), "churn goes up, on a path whose alpha stays 1"
        t, there = begin, schedule.sigma(begin)
        ahead[:-1] = (there**2 - sigma**2).clamp(min=0).sqrt()[1:]
        sigma = there
    S, S_next = sigma / alpha, sigma_next / alpha_next
    guess = _table(t=t, a=sigma_next / sigma, b=alpha_next * (1 - S_next / S), t_next=t_next)
    half, there = ((S_next - S) / 2)[:-1], alpha_next[:-1]
    mend = _table(
        t=t_next[:-1], a=half / S_next[:-1], b=-there * half / S_next[:-1], c=-there * half / S[:-1],
        d=there / alpha[:-1] * (1 + half / S[:-1]), s=ahead[:-1], t_next=t[1:], keep=None,
    )  # fmt: skip
    stay = _table(t=t_next[:-1], a=torch.ones_like(half), t_next=t[1:], keep=None)
    return _interleaved(guess, torch.where(alpha[:-1, None] > 0, mend, stay))


def dpmpp_2m(schedule: Schedule, grid: Tensor) -> Tensor:
    """DPM-Solver++ (2M), data prediction: second order, one evaluation a step (arXiv 2211.01095, algorithm 2).

        h = lambda' - lambda,   w = h / (2 h_before)
        x' = (sigma'/sigma) x + (alpha' - alpha sigma'/sigma) ((1 + w) D - w D_1)

    First and last step are of first order (w = 0): nothing came before the one, and the other's h is infinite. From pure
    noise (alpha = 0) the first h is infinite too, and the second step's w is its limit, 0. Order 2 holds for bounded lambda;
    on a grid uniform in t down to 0, lambda's steps near the ends never become small, and the error is h^2 log(1/h).
    """
    t, t_next, alpha, sigma, alpha_next, sigma_next = _levels(schedule, grid)
    a = sigma_next / sigma
    base = alpha_next - alpha * a  # = -alpha' (exp(-h) - 1), also where lambda is infinite
    w = _second(schedule, grid)
    return _table(t=t, a=a, b=base * (1 + w), c=-base * w, t_next=t_next)


def dpmpp_2m_sde(schedule: Schedule, grid: Tensor) -> Tensor:
    """DPM-Solver++ (2M) of the SDE: x' = (sigma'/sigma) e^-h x + alpha' (1 - e^-2h) ((1 + w) D - w D_1) + sigma' sqrt(1 - e^-2h) noise."""
    t, t_next, alpha, sigma, alpha_next, sigma_next = _levels(schedule, grid)
    fade = alpha * sigma_next / (alpha_next * sigma)  # e^-h
    base, w = alpha_next * (1 - fade**2), _second(schedule, grid)
    return _table(
        t=t, a=sigma_next / sigma * fade, b=base * (1 + w), c=-base * w, s=sigma_next * (1 - fade**2).sqrt(), t_next=t_next,
    )  # fmt: skip


def unipc(schedule: Schedule, grid: Tensor) -> Tensor:
    """UniPC, order 2, B(h) = e^-h - 1, data prediction (arXiv 2302.04867, algorithms 5, 6): one evaluation a step.

    Each row first mends the x it was given, by the D that it has just asked there (UniC), keeps the mended one as anchor, and goes on
    from it (UniP). The first two rows and the last step are of the order that their history allows.
    """
    t, t_next, alpha, sigma, alpha_next, sigma_next = _levels(schedule, grid)
    h = _steps(schedule, grid)
    rows = []
    for i in range(len(t)):
        # y: the mended x as a combination of (x, D, D_1, anchor, D_2)
        y = torch.zeros(5, dtype=torch.float64)
        y[0] = 1.0
        if i:
            a, base = sigma[i] / sigma[i - 1], alpha[i] - alpha[i - 1] * sigma[i] / sigma[i - 1]
            w_old, w_new = _corrector(float(h[i - 1]), float(h[i - 2]) if i > 1 else 0.0)
            y = torch.tensor([0.0, base * w_new, base * (1 - w_new - w_old), a, base * w_old], dtype=torch.float64)
        a, base = sigma_next[i] / sigma[i], alpha_next[i] - alpha[i] * sigma_next[i] / sigma[i]
        w = h[i] / (2 * h[i - 1]) if i and bool(torch.isfinite(h[i])) else torch.zeros(())
        x = a * y
        x[1] += base * (1 + w)
        x[2] -= base * w
        rows.append((x, y))
    x_K5, y_K5 = (torch.stack(part) for part in zip(*rows, strict=True))
    columns = dict(zip("abcde", x_K5.unbind(1), strict=True)) | dict(zip("ABCEF", y_K5.unbind(1), strict=True))
    return _table(t=t, t_next=t_next, **columns)


def _corrector(h: float, h_before: float) -> tuple[float, float]:
    """UniC's weights of D_2 - D_1 and of D - D_1, in units of the first-order term: (of the older, of the newer)."""
    if not (math.isfinite(h) and h_before and math.isfinite(h_before)):
        return 0.0, 0.5
    r, z = -h_before / h, -h  # where the older one lies; the paper's h of data prediction
    phi_1 = math.expm1(z)
    b_1 = (phi_1 / z - 1) / phi_1
    b_2 = 2 * ((phi_1 / z - 1) / z - 0.5) / phi_1
    # rho_1 + rho_2 = b_1,  r rho_1 + rho_2 = b_2, and the older one stands divided by r
    older = (b_1 - b_2) / (1 - r)
    return older / r, b_1 - older


def langevin(schedule: Schedule, grid: Tensor, repeats: int, step: float) -> Tensor:
    """Annealed Langevin dynamics (arXiv 1907.05600, algorithm 1) at each time of the grid but the last, to which D itself leads.

        x <- x + a_i / 2 score(x) + sqrt(a_i) noise,   a_i = step sigma_i^2 / sigma_last^2,   score = (D - x) / sigma_i^2

    For a path whose alpha is 1. The last row is NCSN's final denoising (arXiv 2006.09011, section 3.4).
    """
    t, _, _, sigma, _, _ = _levels(schedule, grid)
    part = (step * sigma**2 / sigma[-1] ** 2 / sigma**2).repeat_interleave(repeats)  # a_i / sigma_i^2
    at, level = t.repeat_interleave(repeats), sigma.repeat_interleave(repeats)
    walk = _table(t=at, a=1 - part / 2, b=part / 2, s=level * part.sqrt(), t_next=at)
    return torch.cat([walk, _table(t=t[-1:], b=torch.ones_like(t[-1:]), t_next=grid[-1:])])


def ddim_inversion(schedule: Schedule, grid: Tensor) -> Tensor:
    """DDIM backwards, from the grid's last time up to its first: x' = alpha' D + sigma' eps-hat, eps-hat asked at the time aimed at.

    So the first step leaves a clean x, where no eps could be read from D (and so do the public schedulers).
    """
    t, t_next = (part.flip(0) for part in _times(grid))  # t: where it goes, t_next: whence it comes
    alpha, sigma, alpha_from, sigma_from = schedule.alpha(t), schedule.sigma(t), schedule.alpha(t_next), schedule.sigma(t_next)
    of_eps = sigma - sigma_from * alpha / alpha_from  # x' = (alpha' / alpha) x + of_eps eps,  eps = (x - alpha' D) / sigma'
    return _table(t=t, a=alpha / alpha_from + of_eps / sigma, b=-of_eps * alpha / sigma, t_next=t)


SOLVERS: dict[str, Callable[[Schedule, Tensor], Tensor]] = {"dpmpp_2m": dpmpp_2m, "euler": euler, "heun": heun}  # of flows


# --- running and building tables --------------------------------------------------------------------------------------------


def advance(
    rows_BK: Tensor, x: Tensor, D: Tensor, D_1: Tensor, anchor: Tensor, D_2: Tensor | None = None, noise: Tensor | None = None,
    share: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """One evaluation's update: (x_next, D_1, anchor, D_2), each [B, ...]. Every row of the batch follows its own table row.

    share: where the network has a say in the variance, where between low (0) and s (1) it lies, in the logarithm, [B, ...].
    """
    of = dict(zip(COLUMNS, rows_BK.unbind(1), strict=True))
    D_2 = torch.zeros_like(D) if D_2 is None else D_2

    def combined(*terms: tuple[str, Tensor]) -> Tensor:
        total = torch.zeros_like(x)
        for name, one in terms:
            if bool(of[name].any()):  # the table lies on the CPU: nothing waits
                total = total + spread(of[name], x) * one
        return total

    x_next = combined(("a", x), ("b", D), ("c", D_1), ("d", anchor), ("e", D_2))
    if noise is not None:
        x_next = x_next + _scale(of, x, share) * noise
    mended = combined(("A", x), ("B", D), ("C", D_1), ("E", anchor), ("F", D_2)) if bool((of["A"] != 1).any()) else x
    keep = spread(of["keep"], x) > 0
    return x_next, torch.where(keep, D, D_1), torch.where(keep, mended, anchor), torch.where(keep, D_1, D_2)


def _scale(of: dict[str, Tensor], x: Tensor, share: Tensor | None) -> Tensor:
    s, low = spread(of["s"], x), spread(of["low"], x)
    if share is None or not bool(of["low"].any()):
        return s
    return torch.where(low > 0, low ** (1 - share) * s**share, s)


def _times(grid: Tensor) -> tuple[Tensor, Tensor]:
    assert grid.dtype == torch.float64 and grid.ndim == 1 and len(grid) > 1 and bool((grid.diff() < 0).all()), grid
    return grid[:-1], grid[1:]


def _levels(schedule: Schedule, grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """t, t_next, and alpha, sigma at either."""
    t, t_next = _times(grid)
    return t, t_next, schedule.alpha(t), schedule.sigma(t), schedule.alpha(t_next), schedule.sigma(t_next)


def _steps(schedule: Schedule, grid: Tensor) -> Tensor:
    """h, the steps of lambda; inf where one end is pure."""
    lam = schedule.lam(grid)
    return lam[1:] - lam[:-1]


def _second(schedule: Schedule, grid: Tensor) -> Tensor:
    """w = h / (2 h_before), 0 in the first step and where h is infinite."""
    h = _steps(schedule, grid)
    w = torch.zeros_like(h)
    w[1:] = torch.where(torch.isfinite(h[1:]), h[1:] / (2 * h[:-1]), 0.0)
    return w


def _ode(schedule: Schedule, grid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """t, t_next, and p, q of dx/dt = p x + q D at t."""
    t, t_next = _times(grid)
    p = schedule.dsigma(t) / schedule.sigma(t)
    return t, t_next, p, schedule.dalpha(t) - schedule.alpha(t) * p


def _interleaved(guess: Tensor, mend: Tensor) -> Tensor:
    """guess, mend, guess, mend, ... guess: the last step has no time left to be mended at."""
    pairs = torch.stack([guess[:-1], mend], dim=1).flatten(0, 1)
    return torch.cat([pairs, guess[-1:]])


def _table(**columns: Tensor | None) -> Tensor:
    """Rows that keep their D and their x, where nothing else is said; keep=None: rows that keep nothing."""
    zero = torch.zeros_like(columns["t"])  # type: ignore[arg-type]
    given = {"keep": zero + 1, "A": zero + 1} | columns
    return torch.stack([zero if (one := given.get(name)) is None else one for name in COLUMNS], dim=1)
