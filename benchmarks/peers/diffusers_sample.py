"""Guided sampling with diffusers' classes: the denoising loop of its DiT and PixArt pipelines, without what is not computing.

One concatenated pass of both branches a step, `FlowMatchEulerDiscreteScheduler` with the sigmas that its flow pipelines pass
(1, 1 - 1/N, ... 1/N), the velocity as the network's answer. Left out: progress bar, callbacks, VAE, safety. The text's states are
given, as `prompt_embeds` are, and concatenated once.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ModelMixin
from torch import Tensor

from benchmarks.setting import Inputs, Setting

__all__ = ["evaluation", "trajectory"]

Network = Callable[[Tensor, Tensor], Tensor]


@torch.no_grad()
def _network(transformer: ModelMixin, model: str, given: Inputs, dtype: torch.dtype) -> Network:
    """(latents of both branches, timestep) -> velocity."""
    if model == "paper":
        labels = torch.cat([given.null_label_P, given.label_P])
        return lambda x, t: transformer(x, timestep=t, class_labels=labels, return_dict=False)[0]
    embeds = torch.cat([given.null_tokens_PLD, given.tokens_PLD]).to(dtype)
    mask = torch.cat([given.null_mask_PL, given.mask_PL]).to(dtype)
    added = {"resolution": None, "aspect_ratio": None}
    return lambda x, t: transformer(
        x, encoder_hidden_states=embeds, encoder_attention_mask=mask, timestep=t, added_cond_kwargs=added, return_dict=False
    )[0]


def evaluation(transformer: ModelMixin, model: str, given: Inputs, dtype: torch.dtype, setting: Setting) -> Callable[[], Tensor]:
    """One pass over both branches at t = 0.5; returns (null, conditioned) velocities below one another."""
    network = _network(transformer, model, given, dtype)
    x = torch.cat([given.noise_PCHW] * 2).to(dtype)
    t = torch.tensor(500.0).expand(len(x))

    @torch.no_grad()
    def run() -> Tensor:
        return network(x, t)

    return run


def trajectory(transformer: ModelMixin, model: str, given: Inputs, dtype: torch.dtype, setting: Setting) -> Callable[[], Tensor]:
    """From noise to latents, scheduler included; returns latents."""

    @torch.no_grad()
    def run() -> Tensor:
        network = _network(transformer, model, given, dtype)
        scheduler = FlowMatchEulerDiscreteScheduler()
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / setting.steps, setting.steps))
        scheduler.set_begin_index(0)
        latents = given.noise_PCHW.to(dtype)
        for t in scheduler.timesteps:
            latent_model_input = torch.cat([latents] * 2)
            current_timestep = t[None].expand(latent_model_input.shape[0])
            velocity_uncond, velocity_text = network(latent_model_input, current_timestep).chunk(2)
            velocity = velocity_uncond + setting.guidance * (velocity_text - velocity_uncond)
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
        return latents

    return run
