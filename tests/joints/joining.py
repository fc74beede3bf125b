"""Sampling by hand, so that rows can join and leave on the way."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from triptych.contracts import Prompt, Rng, Start, State
from triptych.pipeline import TextToImage

__all__ = ["begun", "finished", "stepped"]


def begun(model: TextToImage, prompts: Sequence[str], seeds: Sequence[int]) -> State:
    """These rows at their start, by the model's own settings."""
    said = [Prompt.of(prompt) for prompt in prompts]
    cond, null = model.text_encoder.encode(said), model.text_encoder.null(said)
    start = Start(shape=model.decoder.latent.shape)
    with torch.no_grad():
        return model.generator.process.begin(model.generator.network, cond, null, model.settings(), start, Rng.of_seeds(seeds))


def stepped(model: TextToImage, state: State) -> State:
    with torch.no_grad():
        return model.generator.process.step(model.generator.network, state)


def finished(model: TextToImage, state: State) -> State:
    while not state.done_B.all():
        state = stepped(model, state)
    return state
