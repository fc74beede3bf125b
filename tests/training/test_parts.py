"""Averages, optimizers, schedule, report: each against its formula."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.training import toy
from triptych.recipe import Optimizer
from triptych.training import Report
from triptych.training.ema import Averages, gamma_of, mix, post_hoc
from triptych.training.optim import Optimizers, hidden_matrices, rate
from triptych.training.report import Metrics

# --- averages


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.2])
def test_gamma_has_the_relative_length_asked_for(length: float) -> None:
    g = gamma_of(length)  # standard deviation of the density (g + 1) tau^g on [0, 1]
    mean, square = (g + 1) / (g + 2), (g + 1) / (g + 3)
    assert math.sqrt(square - mean**2) == pytest.approx(length, rel=1e-9)


def test_lengths_that_do_not_exist_are_refused() -> None:
    for length in (0.0, 0.3):
        with pytest.raises(ValueError, match="choose one above 0"):
            gamma_of(length)


def walk(steps: int, lengths: tuple[float, ...]) -> tuple[torch.Tensor, Averages, dict[tuple[int, float], dict[str, torch.Tensor]]]:
    """A random walk of one parameter: its path [T, 7], its averages, and those kept every quarter."""
    generator = torch.Generator().manual_seed(0)
    path = torch.randn(steps, 7, generator=generator).cumsum(0) / steps**0.5
    p = nn.Parameter(torch.full((7,), 99.0))
    averages, kept = Averages({"p": p}, lengths), {}
    for t in range(1, steps + 1):
        p.data.copy_(path[t - 1])
        averages.update(t)
        if t % (steps // 8) == 0:
            kept |= {(t, length): {"p": s["p"].clone()} for length, s in zip(lengths, averages.sets, strict=True)}
    return path, averages, kept


def closed_form(path: torch.Tensor, length: float) -> torch.Tensor:
    """sum of ((t/T)^(g+1) - ((t-1)/T)^(g+1)) theta_t: what the recursion telescopes to."""
    edges = torch.linspace(0, 1, len(path) + 1, dtype=torch.float64) ** (gamma_of(length) + 1)
    return (edges.diff()[:, None] * path.double()).sum(0)


def test_averages_are_the_closed_form() -> None:
    path, averages, _ = walk(400, (0.1, 0.05))
    for length, held in zip(averages.lengths, averages.sets, strict=True):
        torch.testing.assert_close(held["p"].double(), closed_form(path, length), rtol=0, atol=2e-6)


def test_an_average_that_was_never_kept_is_made_from_those_that_were() -> None:
    path, _, kept = walk(400, (0.1, 0.05))
    exact = mix(list(kept), (400, 0.1))
    assert exact[list(kept).index((400, 0.1))] == pytest.approx(1, abs=1e-6)
    for length in (0.06, 0.08, 0.14):
        made = post_hoc(kept, (400, length))["p"]
        wrong = (made.double() - closed_form(path, length)).norm() / (path[-1] - path[0]).double().norm()
        assert wrong < 0.02, length


def test_applied_is_only_for_a_while_and_exact() -> None:
    p = nn.Parameter(torch.ones(3))
    averages = Averages({"p": p}, (0.1,))
    averages.update(1)
    p.data.fill_(5)
    averages.update(2)
    with averages.applied():
        assert p.eq(averages.sets[0]["p"]).all() and not p.eq(5).any()
    assert p.eq(5).all()


# --- optimizers


def test_the_rate_warms_up_stays_and_decays() -> None:
    how = Optimizer(warmup=0.1, decay=0.3)
    rates = [rate(step, 100, how) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:70] == [1.0] * 61
    assert rates[70:] == pytest.approx([(30 - i) / 30 for i in range(30)]) and rates[-1] > 0
    assert {rate(step, 10, Optimizer(warmup=0, decay=0)) for step in range(10)} == {1.0}


def test_nothing_of_one_dimension_decays() -> None:
    module = nn.Linear(4, 3)
    optimizers = Optimizers(dict(module.named_parameters()), Optimizer(lr=0.1, weight_decay=0.5))
    weight, bias = module.weight.detach().clone(), module.bias.detach().clone()
    module.weight.grad, module.bias.grad = torch.zeros(3, 4), torch.zeros(3)
    optimizers.step(1.0)
    torch.testing.assert_close(module.weight, weight * (1 - 0.1 * 0.5))
    assert module.bias.equal(bias)


def test_muon_takes_the_matrices_within_stacks_alone() -> None:
    module = toy.Denoiser()
    assert hidden_matrices(module) == {layer.weight for layer in module.stack}
    parts = Optimizers(dict(module.named_parameters()), Optimizer(name="muon"), hidden_matrices(module)).parts
    counts = {type(part).__name__: sum(len(g["params"]) for g in part.param_groups) for part in parts}
    assert counts == {"Muon": 2, "AdamW": len(list(module.parameters())) - 2}


def test_muon_turns_the_gradient_into_a_matrix_without_preferred_directions() -> None:
    stack = nn.ModuleList([nn.Linear(24, 24, bias=False)])
    weight = stack[0].weight
    before = weight.detach().clone()
    weight.grad = torch.diag(torch.logspace(0, -1.5, 24))
    Optimizers(dict(stack.named_parameters()), Optimizer(name="muon", lr=1.0), hidden_matrices(stack)).step(1.0)
    singular = torch.linalg.svdvals(weight.detach() - before) / (0.2 * 24**0.5)  # scaled to AdamW's root mean square
    assert singular.min() > 0.6 and singular.max() < 1.4


def test_clipping_shortens_and_never_lengthens() -> None:
    module = nn.Linear(4, 3, bias=False)
    optimizers = Optimizers(dict(module.named_parameters()), Optimizer(clip=1.0))
    for length, expected in ((8.0, 1.0), (0.5, 0.5)):
        module.weight.grad = torch.full((3, 4), length / 12**0.5)
        assert float(optimizers.clip()) == pytest.approx(length)
        assert float(module.weight.grad.norm()) == pytest.approx(expected, rel=1e-4)


# --- what is said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_and_a_bar() -> None:
    for stream in (io.StringIO(), Terminal()):
        report = Report(stream=stream)
        report.begin("toy", 0, 3, 8)
        for step in (1, 2, 3):
            assert report.step(step, 0.5) > 0
        report.say("held out: fine")
        report.end()
        text = stream.getvalue()
        assert "pictures/s" in text and "ETA" in text and "held out: fine" in text
        assert ("step 3/3" in text) is not stream.isatty()


def test_metrics_are_cut_back_and_never_hold_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"step": 2, "to')
    metrics = Metrics(path, upto=2)
    metrics.write(3, "train", {"loss": float("nan"), "lr": 0.1})
    metrics.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[2]["loss"] is None and lines[2]["lr"] == 0.1
