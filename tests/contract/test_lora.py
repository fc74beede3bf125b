"""Every denoiser of the catalog with attention takes a LoRA: it begins as it was, learns, compiles, and folds."""

from __future__ import annotations

import shutil

import pytest
import torch

from tests.contract import denoisers, tiny
from triptych.contracts import Prompt
from triptych.interop import lora as files
from triptych.layers import lora

ATTENTIVE = [name for name in denoisers.READINGS if "no attention" not in name]


@pytest.mark.parametrize("reading", ATTENTIVE)
@torch.no_grad()
def test_a_reading_begins_as_it_was_and_folds(reading: str) -> None:
    network, (x, clock), cond = denoisers.network(reading).eval(), denoisers.noisy(), denoisers.said(reading)
    before = network(x, clock, cond)
    found = lora.insert(network, 2, 3.0)
    assert torch.equal(network(x, clock, cond), before)
    parts = sum(len(one.base.parts) for _, one in lora.inserted(network))
    assert len(lora.additions(network)) == parts > len(found), "queries, keys and values are three"
    for i, (_, one) in enumerate(lora.inserted(network)):
        one.B.normal_(0, 0.2, generator=torch.Generator().manual_seed(i))
    apart = network(x, clock, cond)
    assert (apart - before).abs().max() > 1e-2
    prepared = network.prepare(cond) if hasattr(network, "prepare") else cond  # type: ignore[operator]
    assert (network(x, clock, prepared) - apart).abs().max() < 1e-5
    lora.fold(network)
    assert (network(x, clock, cond) - apart).abs().max() <= 3e-6 * apart.abs().max()


@pytest.mark.parametrize("reading", ATTENTIVE)
def test_all_of_it_gets_a_gradient_and_nothing_else(reading: str) -> None:
    network, (x, clock), cond = denoisers.network(reading), denoisers.noisy(), denoisers.said(reading)
    lora.insert(network, 2)
    for _, one in lora.inserted(network):
        one.B.data.normal_(0, 0.2)
    network(x, clock, cond).square().mean().backward()
    for name, parameter in network.named_parameters():
        learns = name.endswith((".A", ".B"))
        assert (parameter.grad is not None and bool(parameter.grad.any())) == learns == parameter.requires_grad, name


@pytest.mark.parametrize("reading", ATTENTIVE)
def test_names_lead_to_products_and_back(reading: str, tmp_path) -> None:
    """Written, read, added: the weights of a network that was folded, to the bit; in whichever names it has."""
    network = denoisers.network(reading).eval()
    lora.insert(network, 2, 1.5)
    for _, one in lora.inserted(network):
        one.B.data.normal_(0, 0.2)
    written = files.write(tmp_path / "lora.safetensors", network)
    told, count = files.add(tmp_path / "lora.safetensors", None, other := denoisers.network(reading).eval(), 1.0)
    assert count == written == len(lora.additions(network)) and told["file"] == "lora.safetensors" and len(told["hash"]) == 16
    lora.fold(network)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler: sudo apt-get install g++")
def test_a_compiled_block_learns_the_same() -> None:
    """As the trainer compiles a DiT: block by block."""
    network, (x, clock), cond = denoisers.network("modern"), denoisers.noisy(), denoisers.said("modern")
    lora.insert(network, 2)
    for _, one in lora.inserted(network):
        one.B.data.normal_(0, 0.2)
    grads = []
    for compiled in (False, True):
        if compiled:
            for block in network.blocks:  # type: ignore[union-attr]
                block.compile(dynamic=False)
        network.zero_grad()
        network(x, clock, cond).square().mean().backward()
        grads.append([p.grad for p in network.parameters() if p.grad is not None])
    assert all((a - b).abs().max() <= 1e-5 * a.abs().max() + 1e-8 for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("name", tiny.names("generators"))
def test_a_family_at_its_smallest(name: str, tmp_path) -> None:
    """A model of the catalog, through a file: the picture of the folded network; or the family says that it has no attention."""
    model = tiny.model(generator=name)
    network = model.generator.network
    try:
        lora.insert(network, 1)
    except ValueError as error:
        assert "no attention" in str(error)
        return
    for _, one in lora.inserted(network):
        one.B.data.normal_(0, 0.5)
    files.write(tmp_path / "lora.safetensors", network)
    lora.fold(network)
    other = tiny.model(generator=name)
    plain = other.latents([Prompt(text="a red circle")])
    assert other.add_lora(tmp_path / "lora.safetensors") > 0
    drawn = other.latents([Prompt(text="a red circle")])
    assert torch.equal(drawn, model.latents([Prompt(text="a red circle")])) and not torch.equal(drawn, plain)
