"""Training with diffusers' classes: the loop of its flow-matching examples (train_dreambooth_flux.py and its kin), plainly.

Random times by `compute_density_for_timestep_sampling` (logit-normal), the velocity as target, autocast for bf16 as accelerate
does it, gradients clipped to 1, `torch.optim.AdamW`. Latents and text states are given: nothing is encoded here.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from diffusers import ModelMixin
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor

from benchmarks.setting import Inputs

__all__ = ["training"]


def training(transformer: ModelMixin, model: str, given: Inputs, bf16: bool) -> Callable[[], Tensor]:
    """One step on the given batch; returns the loss."""
    transformer.train()
    optimizer = torch.optim.AdamW(transformer.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.0)
    latents, mask = given.noise_PCHW.clamp(-1, 1), given.mask_PL.float()
    added = {"resolution": None, "aspect_ratio": None}

    def run() -> Tensor:
        noise = torch.randn_like(latents)
        u = compute_density_for_timestep_sampling(weighting_scheme="logit_normal", batch_size=len(latents), logit_mean=0.0, logit_std=1.0)
        sigmas = u.view(-1, 1, 1, 1)
        noisy = (1.0 - sigmas) * latents + sigmas * noise
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            if model == "paper":
                predicted = transformer(noisy, timestep=1000 * u, class_labels=given.label_P, return_dict=False)[0]
            else:
                predicted = transformer(
                    noisy, encoder_hidden_states=given.tokens_PLD, encoder_attention_mask=mask, timestep=1000 * u, added_cond_kwargs=added,
                    return_dict=False,
                )[0]  # fmt: skip
        weighting = compute_loss_weighting_for_sd3(weighting_scheme="none", sigmas=sigmas)
        target = noise - latents
        loss = torch.mean((weighting.float() * (predicted.float() - target.float()) ** 2).reshape(target.shape[0], -1), 1).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(transformer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.detach()

    return run
