"""Power-function averages of the weights (EDM2, arXiv:2312.02696, section 3.1 and appendix C).

An exponential average has a fixed horizon in steps; a power-function average has one that grows with the run: after t steps
the weights of step tau count in proportion to tau^gamma, so a long and a short run are averaged alike. `length` is the
average's relative width, sigma_rel: 0.10 means a standard deviation of a tenth of the run so far.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["Averages", "gamma_of", "mix", "post_hoc"]


def gamma_of(length: float) -> float:
    """The exponent whose profile has relative width `length`: the largest root of the cubic in Algorithm 2 of the paper.

    Raises ValueError outside 0 < length < 0.28, where no gamma > 0 exists.
    """
    if not 0 < length < 12**-0.5:
        raise ValueError(f"an average of relative length {length} does not exist; choose one above 0 and below 0.28, say 0.1")
    inverse = length**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(max(roots[np.isreal(roots)].real))


class Averages:
    """Float32 averages, one set for every length, of the parameters given by name.

    `update(t)` after step t = 1, 2, ...: theta_hat <- beta_t theta_hat + (1 - beta_t) theta with beta_t = (1 - 1/t)^(gamma + 1)
    (equation 6 in discrete form); beta_1 = 0, so nothing of the starting value remains.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], lengths: Sequence[float]) -> None:
        self.parameters = dict(parameters)
        self.lengths = tuple(lengths)
        self._gammas = [gamma_of(length) for length in self.lengths]
        self.sets = [{name: p.detach().float().clone() for name, p in self.parameters.items()} for _ in self.lengths]

    @torch.no_grad()
    def update(self, t: int) -> None:
        weights = [p.detach().float() for p in self.parameters.values()]
        for gamma, averages in zip(self._gammas, self.sets, strict=True):
            if weights:
                torch._foreach_lerp_(list(averages.values()), weights, 1 - (1 - 1 / t) ** (gamma + 1))

    @contextmanager
    def applied(self, which: int = 0) -> Iterator[None]:
        """Inside, the parameters hold average number `which`; outside, again what they held."""
        if not self.sets:
            yield
            return
        live = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, p in self.parameters.items():
                p.data = self.sets[which][name].to(p.dtype)
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = live[name]

    def state(self) -> dict[str, Tensor]:
        """Every average by `LENGTH/NAME`."""
        return {f"{length:g}/{name}": v for length, s in zip(self.lengths, self.sets, strict=True) for name, v in s.items()}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        mine = self.state()
        if mine.keys() != state.keys():
            raise ValueError(f"averages do not match: {sorted(mine.keys() ^ state.keys())[:3]} are on one side only")
        for name, value in mine.items():
            value.copy_(state[name])


def post_hoc(stored: Mapping[tuple[int, float], Mapping[str, Tensor]], want: tuple[int, float]) -> dict[str, Tensor]:
    """An average of a length that was never kept, from those that were: stored[step, length][name] as checkpoints hold them."""
    shares = mix(list(stored), want)
    names = next(iter(stored.values()))
    return {
        name: torch.stack([float(c) * one[name].double() for c, one in zip(shares, stored.values(), strict=True)]).sum(0).float()
        for name in names
    }


def mix(have: Sequence[tuple[int, float]], want: tuple[int, float]) -> np.ndarray:
    """Post hoc: how much of each stored average makes the average that was never stored.

    have: (step, length) of the stored ones; want: the (step, length) wished for, its step no later than the last stored.
    Returns one coefficient for each of `have`: least squares between the profiles (Algorithm 3 of the paper), which is exact
    where the wish is among the stored and good to a few per cent between two stored lengths.
    """
    t, g = np.array([s for s, _ in have], float), np.array([gamma_of(length) for _, length in have])
    t_w, g_w = float(want[0]), gamma_of(want[1])
    return np.linalg.lstsq(_overlap(t[:, None], g[:, None], t, g), _overlap(t, g, t_w, g_w), rcond=None)[0]


def _overlap(t_a: np.ndarray, g_a: np.ndarray, t_b: np.ndarray | float, g_b: np.ndarray | float) -> np.ndarray:
    """Inner product of two profiles p(tau) = (g + 1) tau^g / t^(g + 1) on [0, t] (equation 26)."""
    ratio = np.where(np.less(t_a, t_b), (t_a / t_b) ** g_b, (t_b / t_a) ** g_a)
    return (g_a + 1) * (g_b + 1) * ratio / ((g_a + g_b + 1) * np.maximum(t_a, t_b))
