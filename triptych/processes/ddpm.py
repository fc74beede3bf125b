"""DDPM: a chain of T small steps of Gaussian noise, and a network that undoes them one at a time.

    q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t),   q(x_t | x0) = N(sqrt(abar_t) x0, 1 - abar_t)
    q(x_{t-1} | x_t, x0) = N(c0 x0 + c1 x_t, beta~_t)         (Ho et al., arXiv 2006.11239, eq. 4, 6, 7)

The network may say any of five things of which x0 is an affine function: eps, x0, v, the posterior's mean, or x_{t-1} itself (whose
best guess is that mean). Improved DDPM (Nichol & Dhariwal, arXiv 2102.09672) lets it say the variance too, in the logarithm between
beta~ (0) and beta (1), eq. 15, which only the variational bound teaches (L_hybrid = L_simple + 0.001 L_vlb, with the mean held
fixed), and draws t by the size of its loss (eq. 18). min-SNR: Hang et al., arXiv 2303.09556. Sampling goes through the tables of
`solvers`: the chain itself (also strided), DDIM (Song et al., arXiv 2010.02502), or a solver of its ODE or SDE.

Step n of the papers, 0 ... T - 1, is t = (n + 1) / T here, and n is the network's clock.
Shapes: z, x, noise [B, *shape], float32; t [B] in [0, 1]; K = T.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, Latents, LatentSpace, Rng
from triptych.processes import drawing, noise, solvers
from triptych.processes.drawing import THRESHOLDS, one_of, within
from triptych.processes.guidance import guided
from triptych.processes.noise import spread

__all__ = ["DDPM", "Config", "SIZES", "Sampling"]

TARGETS = ("eps", "x0", "v", "mean", "previous")
VARIANCES = ("fixed_small", "fixed_large", "learned_range")
SAMPLERS = ("ddpm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc")
SPACINGS = ("trailing", "leading", "linspace")


@dataclass(frozen=True, kw_only=True)
class Config:
    """beta_schedule, beta_start, beta_end, rescale, zero_terminal_snr: of `noise.betas` and `noise.variance_preserving`.

    target: what the network says.  variance: of the chain drawn backwards; "learned_range" asks for 2 C channels.
    loss: "simple" (the target's mean square), "hybrid" (simple + vlb_weight T L_t for the variance alone), "vlb" (T L_t for all).
    min_snr: gamma of min-SNR weights, 0 = off.  timesteps: in training, all alike or by importance.
    offset: of "leading" timesteps, and last: what stands behind the last of them, clean data ("one") or the first noise ("first"):
    habits of public checkpoints.
    """

    num_timesteps: int = 1000
    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    rescale: bool = False
    zero_terminal_snr: bool = False
    target: Literal["eps", "x0", "v", "mean", "previous"] = "eps"
    variance: Literal["fixed_small", "fixed_large", "learned_range"] = "fixed_large"
    loss: Literal["simple", "hybrid", "vlb"] = "simple"
    vlb_weight: float = 0.001
    min_snr: float = 0.0
    timesteps: Literal["uniform", "importance"] = "uniform"
    offset: int = 0
    last: Literal["one", "first"] = "one"

    def __post_init__(self) -> None:
        within("num_timesteps", self.num_timesteps, 2, 100_000)
        one_of("target", self.target, TARGETS)
        one_of("variance", self.variance, VARIANCES)
        one_of("loss", self.loss, ("simple", "hybrid", "vlb"))
        one_of("timesteps", self.timesteps, ("uniform", "importance"))
        one_of("last", self.last, ("one", "first"))
        within("vlb_weight", self.vlb_weight, 0.0, 1.0)
        within("min_snr", self.min_snr, 0.0, 1000.0)
        within("offset", self.offset, 0, 1)
        if self.loss == "hybrid" and self.variance != "learned_range":
            raise ValueError("loss = hybrid teaches a variance, and none is learnt; set variance = learned_range, or loss = simple")
        if self.zero_terminal_snr and self.target in ("eps", "mean", "previous"):
            raise ValueError(f"at zero terminal SNR {self.target} says nothing of x0; set target = v or x0")


SIZES = {
    "tiny": Config(),
    "ddpm": Config(),
    "improved": Config(beta_schedule="cosine", variance="learned_range", loss="hybrid"),
    "adm-256": Config(variance="learned_range", loss="hybrid", rescale=True),
    "sd": Config(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, variance="fixed_small", offset=1, last="first"),
    "sd-2-v": Config(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, variance="fixed_small", offset=1, last="first", target="v"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a picture is drawn. Raises ValueError, with the allowed range."""

    steps: int = field(
        default=50, metadata={"range": (1, 1000), "whole": True, "help": "steps from noise to picture (heun asks twice a step)"}
    )
    guidance: float = field(default=1.0, metadata={"range": (0.0, 50.0), "help": "how strongly the condition pulls; 1.0 = off"})
    sampler: Literal["ddpm", "ddim", "euler", "euler_a", "heun", "dpmpp_2m", "dpmpp_2m_sde", "unipc"] = field(
        default="ddim", metadata={"one_of": SAMPLERS, "help": "ddpm = the chain itself; euler_a and dpmpp_2m_sde add noise as well"}
    )
    eta: float = field(default=0.0, metadata={"range": (0.0, 1.0), "help": "noise that ddim adds: 0 = none, 1 = as the chain does"})
    spacing: Literal["trailing", "leading", "linspace"] = field(
        default="trailing", metadata={"one_of": SPACINGS, "help": "which of the training's timesteps are visited"}
    )
    interval: tuple[float, float] = field(default=(0.0, 1.0), metadata={"range": (0.0, 1.0), "help": "times t in which guidance acts"})
    threshold: Literal["none", "static", "dynamic"] = field(
        default="none", metadata={"one_of": THRESHOLDS, "help": "keep each guess of the picture in the range of pixels (pixel models only)"}
    )

    def __post_init__(self) -> None:
        drawing.check(self)
        if self.eta and self.sampler != "ddim":
            raise ValueError(f"eta = {self.eta} is ddim's; sampler = {self.sampler} has noise of its own or none: set eta = 0")


class DDPM(drawing.Denoising):
    """The process. Learns nothing of its own, except, with importance, how large each t's loss was of late."""

    Sampling = Sampling
    abilities = drawing.Denoising.abilities | {"likelihood"}

    def __init__(self, config: Config) -> None:
        c = self.config = config
        betas = noise.betas(c.beta_schedule, c.num_timesteps, c.beta_start, c.beta_end, c.rescale)
        self.schedule = noise.variance_preserving(betas, c.zero_terminal_snr)
        times = torch.arange(c.num_timesteps + 1, dtype=torch.float64) / c.num_timesteps
        self.chain = solvers.posterior(self.schedule, times[1:], times[:-1])  # of each single step, float64 [K] each
        self.history = _History(c.num_timesteps)

    # --- learning

    def prepare(self, network: nn.Module, teacher: nn.Module | None = None) -> nn.ModuleDict:
        return nn.ModuleDict({"history": self.history} if self.config.timesteps == "importance" else {})

    def after_step(self, network: nn.Module, phase: str, step: int) -> None:
        if self.config.timesteps == "importance":
            self.history.commit()

    def clock(self, t: Tensor) -> Tensor:
        """The papers' step number, 0 ... T - 1; whole for times of the chain."""
        n = t * self.config.num_timesteps - 1
        return torch.where((n - n.round()).abs() < 1e-3, n.round(), n)

    def time(self, clock: Tensor) -> Tensor:
        """The time t of a clock."""
        return (clock + 1) / self.config.num_timesteps

    def losses(self, network: nn.Module, batch: Latents, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """loss, and for the log x0_mse (and vlb in bits a number). `batch.cond` is heard as it is: dropout happened before.

        By importance a step is drawn as often as its loss is large, and its loss weighs the less (arXiv 2102.09672, eq. 18).
        """
        if self.config.timesteps == "uniform":
            return super().losses(network, batch, phase, step, rng)
        eps = rng.normal("noise", batch.z.shape[1:]) if batch.noise is None else batch.noise
        k_B, weight_B = self.history.draw(rng.uniform("t"))
        rows = self._losses(network, batch, k_B, eps, rng)
        self.history.note(k_B, rows["loss"].detach())
        rows["loss"] = rows["loss"] * weight_B.to(rows["loss"].device)
        return drawing.averaged(rows)

    def rows(self, network: nn.Module, batch: Latents, u_B: Tensor, eps: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Losses of each row, at the steps of which u are the quantiles where all are alike."""
        T = self.config.num_timesteps
        return self._losses(network, batch, (u_B * T).long().clamp(max=T - 1) + 1, eps, rng)

    def _losses(self, network: nn.Module, batch: Latents, k_B: Tensor, eps: Tensor, rng: Rng) -> dict[str, Tensor]:
        """Per row, at the steps k in 1..T."""
        c, x0 = self.config, batch.z.float()
        t_B, eps = (k_B / c.num_timesteps).to(x0.device), eps.to(x0.device).float()
        x_t = self.corrupt(x0, t_B, eps)
        out = network(x_t, self.clock(t_B), batch.cond).float()
        said, share = self._split(out, x_t)
        error_B = (said - self._wanted(x0, x_t, t_B, eps, rng)).square().flatten(1).mean(1)
        D = self._believed(said, x_t, t_B)
        rows = {"loss": error_B * self._snr_weight(t_B), "x0_mse": (D - x0).square().flatten(1).mean(1).detach()}
        if c.loss != "simple":
            held = D if c.loss == "vlb" else D.detach()
            vlb_B = self.vlb_term(x0, x_t, held, t_B, share, getattr(network, "latent", None))
            scale = c.num_timesteps * (c.vlb_weight if c.loss == "hybrid" else 1.0)
            rows |= {"loss": scale * vlb_B + (rows["loss"] if c.loss == "hybrid" else 0), "vlb": vlb_B.detach()}
        return rows

    def _wanted(self, x0: Tensor, x_t: Tensor, t_B: Tensor, eps: Tensor, rng: Rng) -> Tensor:
        target = self.config.target
        if target in ("eps", "x0"):
            return eps if target == "eps" else x0
        if target == "v":
            return self.schedule.velocity(x0, t_B, eps)
        of_x0, of_x, small, _ = self._at(t_B, x_t)
        mean = of_x0 * x0 + of_x * x_t
        return mean if target == "mean" else mean + small.sqrt() * rng.normal("previous", x0.shape[1:]).to(x0.device)

    def _believed(self, said: Tensor, x_t: Tensor, t_B: Tensor) -> Tensor:
        """D from what the network says."""
        target = self.config.target
        if target in ("mean", "previous"):
            of_x0, of_x, *_ = self._at(t_B, x_t)
            return (said - of_x * x_t) / of_x0
        return self.schedule.convert(said, x_t, t_B, source=target, to="x0")  # type: ignore[arg-type]

    def _at(self, t_B: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        """The single step's posterior at each row's t: of_x0, of_x, beta~, beta."""
        n_B = self.clock(t_B).round().long().clamp(0, self.config.num_timesteps - 1)
        return tuple(spread(part.to(n_B.device)[n_B], like) for part in self.chain)

    def _snr_weight(self, t_B: Tensor) -> Tensor:
        """min(SNR, gamma), in units of the target's own error (arXiv 2303.09556, section 3.4)."""
        if not self.config.min_snr:
            return torch.ones_like(t_B)
        snr_B = torch.exp(2 * self.schedule.lam(t_B))
        of_mean = self._at(t_B, t_B)[0] ** 2
        per = {"x0": torch.ones_like(snr_B), "eps": snr_B, "v": snr_B + 1}.get(self.config.target, of_mean)
        return snr_B.clamp(max=self.config.min_snr) / per

    def _split(self, out: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is said of x0, and the share of the variance in 0..1, where it is learnt (eq. 15; the network speaks in -1..1)."""
        channels = x_t.shape[1]
        if self.config.variance != "learned_range":
            return (out, None) if out.shape[1] == channels else (out[:, :channels], None)  # DiT's variance, where nobody asks for it
        if out.shape[1] != 2 * channels:
            raise ValueError(f"variance = learned_range needs {2 * channels} channels, the network says {out.shape[1]}; set learn_sigma")
        return out[:, :channels], (out[:, channels:] + 1) / 2

    # --- likelihood

    def vlb_term(self, x0: Tensor, x_t: Tensor, D: Tensor, t_B: Tensor, share: Tensor | None, latent: LatentSpace | None) -> Tensor:
        """L_t of each row, in bits a number: KL(q(x_{t-1} | x_t, x0) || p), or of the first step -log p(x0 | x_1) (eq. 5, 13)."""
        of_x0, of_x, small, large = self._at(t_B, x_t)
        first = small == 0
        floor = spread(self.chain[2][1].to(x_t.device).expand(len(x_t)), x_t)  # beta~ of the first step is 0: the second's stands in
        low, high = torch.where(first, floor, small).log(), large.log()
        log_var = {"fixed_small": low, "fixed_large": high}.get(self.config.variance)
        if log_var is None:
            assert share is not None
            log_var = low + share * (high - low)
        log_var = log_var.expand_as(x0)
        away = of_x0 * (x0 - D)
        kl = 0.5 * (log_var - low + torch.exp(low - log_var) + away**2 * torch.exp(-log_var) - 1)
        nll = _bin_nll(x0, of_x0 * D + of_x * x_t, log_var, latent)
        return torch.where(first, nll, kl).flatten(1).mean(1) / math.log(2)

    @torch.no_grad()
    def log_likelihood(self, network: nn.Module, z: Tensor, cond: Condition, rng: Rng) -> dict[str, Tensor]:
        """The bound on -log p, in bits a number (bits per dimension, of pixels): bits [B] = prior [B] + the sum of terms [B, K].

        All T steps are asked, each once, with a noise of its own. Pixels count as their 256 bins; other latents as densities.
        """
        z, latent = z.float(), getattr(network, "latent", None)
        terms = []
        for k in range(1, self.config.num_timesteps + 1):
            t_B = torch.full((len(z),), k / self.config.num_timesteps, device=z.device)
            x_t = self.corrupt(z, t_B, rng.normal("likelihood", z.shape[1:], step=k).to(z.device))
            D, share = self.read(network(x_t, self.clock(t_B), cond).float(), x_t, t_B)
            terms.append(self.vlb_term(z, x_t, D, t_B, share, latent))
        one = torch.ones(len(z), device=z.device)
        alpha, var = spread(self.schedule.alpha(one), z), spread(self.schedule.sigma(one), z) ** 2
        prior_B = (0.5 * ((alpha * z) ** 2 + var - 1 - var.log())).flatten(1).mean(1) / math.log(2)
        terms_BK = torch.stack(terms, dim=1)
        return {"bits": prior_B + terms_BK.sum(1), "prior": prior_B, "terms": terms_BK}

    # --- drawing

    def timesteps(self, how: Sampling) -> Tensor:
        """Step numbers visited, falling, float64: fractions only where `linspace` and Euler's kin meet (arXiv 2305.08891, table 2)."""
        T, n = self.config.num_timesteps, how.steps
        within("steps", n, 1, T)
        points = n + 1 if how.sampler in ("dpmpp_2m", "dpmpp_2m_sde", "unipc") else n  # these leave one place for the end
        if how.spacing == "leading":
            found = torch.arange(points - 1, points - 1 - n, -1, dtype=torch.float64) * (T // points) + self.config.offset
        elif how.spacing == "trailing":
            found = torch.round(T - torch.arange(n, dtype=torch.float64) * (T / n)) - 1
        else:
            found = torch.linspace(0, T - 1, points, dtype=torch.float64).flip(0)[:n] if points > 1 else torch.zeros(1).double()
            found = found if how.sampler in ("euler", "euler_a", "heun") else found.round()
        if found[0] > T - 1 or bool((found.diff() >= 0).any()):
            raise ValueError(f"steps = {n}: spacing = {how.spacing} finds no {n} different ones of {T}; take fewer, or spacing = trailing")
        return found

    def table(self, how: Sampling, strength: float = 1.0) -> Tensor:
        """The rows of these settings, [K, 15]; of a picture with strength < 1 the last share of them."""
        every = (self.timesteps(how) + 1) / self.config.num_timesteps
        every = every[len(every) - max(1, round(len(every) * strength)) :]
        end = 1 / self.config.num_timesteps if self.config.last == "first" and how.sampler == "ddim" else 0.0
        end = end if every[0] > end else 0.0  # from the first noise itself there is only clean data to go to
        grid = torch.cat([every[every > end], torch.tensor([end], dtype=torch.float64)])
        if how.sampler == "ddpm":
            return solvers.ancestral(self.schedule, grid, self.config.variance)
        if how.sampler in ("ddim", "euler"):  # by sigma / alpha Euler is DDIM
            return solvers.ddim(self.schedule, grid, how.eta if how.sampler == "ddim" else 0.0)
        name = "heun_edm" if how.sampler == "heun" else how.sampler
        return getattr(solvers, name)(self.schedule, grid)

    def amplitude(self, how: Sampling, table: Tensor) -> float:
        """1; Euler's kin begin by sigma in public libraries, and so here."""
        by_sigma = how.sampler in ("euler", "euler_a", "heun") and how.spacing != "leading"
        return float(self.schedule.sigma(table[0, 0])) if by_sigma else 1.0

    def read(self, out: Tensor, x_t: Tensor, t_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """D, and where the variance is learnt its share, held to 0..1."""
        said, share = self._split(out, x_t)
        return self._believed(said, x_t, t_B), None if share is None else share.clamp(0, 1)

    @torch.no_grad()
    def invert(self, network: nn.Module, z: Tensor, cond: Condition, how: Sampling) -> Tensor:
        """The noise from which DDIM without guidance draws z: DDIM backwards, [B, ...] (arXiv 2010.02502, section 4.3)."""
        grid = torch.cat([(self.timesteps(how) + 1) / self.config.num_timesteps, torch.zeros(1, dtype=torch.float64)])
        denoiser = guided(network, cond, torch.ones(len(z)), torch.zeros(len(z), 2))
        x = z.float()
        for row in solvers.ddim_inversion(self.schedule, grid).float():
            t_B = row[0].expand(len(x))
            D, _ = self.read(denoiser(x, self.clock(t_B), cond), x, t_B)
            x = row[1] * x + row[2] * D
        return x


class _History(nn.Module):
    """The last ten losses of every step; buffers, so that a run goes on as if it had not stopped."""

    losses_KL: Tensor
    count_K: Tensor

    def __init__(self, steps: int, length: int = 10, uniform: float = 0.001) -> None:
        super().__init__()
        self.uniform = uniform
        self.register_buffer("losses_KL", torch.zeros(steps, length, dtype=torch.float64))
        self.register_buffer("count_K", torch.zeros(steps, dtype=torch.int64))
        self.pending: tuple[Tensor, Tensor] | None = None

    def note(self, k_B: Tensor, loss_B: Tensor) -> None:
        self.pending = (k_B.detach().cpu(), loss_B.detach().cpu().double())

    def commit(self) -> None:
        if self.pending is not None:
            for k, loss in zip(*(part.tolist() for part in self.pending), strict=True):
                self.losses_KL[k - 1] = torch.cat([self.losses_KL[k - 1, 1:], self.losses_KL.new_tensor([loss])])
                self.count_K[k - 1] += 1
        self.pending = None

    def draw(self, u_B: Tensor) -> tuple[Tensor, Tensor]:
        """Steps k in 1..T by their quantiles u, and what makes up for drawing some more often."""
        share_K = self.shares()
        k_B = torch.searchsorted(share_K.cumsum(0), u_B.double().to(share_K.device)).clamp(max=len(share_K) - 1)
        return k_B.to(u_B.device) + 1, (1 / (len(share_K) * share_K[k_B])).float().to(u_B.device)

    def shares(self) -> Tensor:
        """How often each step is drawn, float64 [K]: by sqrt(E[L^2]), once ten losses of every step are known; before, all alike."""
        steps, length = self.losses_KL.shape
        if bool((self.count_K < length).any()):
            return torch.full((steps,), 1 / steps, dtype=torch.float64, device=self.losses_KL.device)
        size_K = self.losses_KL.square().mean(1).sqrt()
        return (1 - self.uniform) * size_K / size_K.sum() + self.uniform / steps


def _bin_nll(x: Tensor, mean: Tensor, log_var: Tensor, latent: LatentSpace | None) -> Tensor:
    """-log of a normal's mass in the 8-bit bin of each pixel (eq. 13), or of its density where x are no pixels."""
    if latent is None or not latent.fingerprint.startswith("pixels-"):
        return 0.5 * (math.log(2 * math.pi) + log_var + (x - mean) ** 2 * torch.exp(-log_var))
    _, std = latent._stats(x)
    half, pixel, scale = 1 / 255 / std, latent.restore(x), torch.exp(-0.5 * log_var)
    above, below = (x + half - mean) * scale, (x - half - mean) * scale
    normal = torch.distributions.Normal(torch.zeros_like(x), 1.0)
    mass = torch.where(pixel > 0.999, 1 - normal.cdf(below), normal.cdf(above) - torch.where(pixel < -0.999, 0.0, normal.cdf(below)))
    return -mass.clamp(min=1e-12).log()
