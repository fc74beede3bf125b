"""Training with diffusers' classes: the loop of its flow-matching examples (train_dreambooth_flux.py and its kin), plainly.

Random times by `compute_density_for_timestep_sampling` (logit-normal), the velocity as target, autocast for bf16 as accelerate
does it, gradients clipped to 1, `torch.optim.AdamW`. Latents and text states are given: nothing is encoded here.

`Loop` is that of train_unconditional.py and train_text_to_image.py: `DDPMScheduler`, noise as the target, a constant learning rate behind
a warmup, `EMAModel`; without accelerate, whose part on one machine is autocast.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDPMScheduler, ModelMixin
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel, compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from torch import Tensor

from benchmarks.setting import Inputs

__all__ = ["Loop", "training"]


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


class Loop:
    """The examples' loop, step by step. `step(latents, words)` learns from a batch and returns its loss.

    words: hidden states of a text encoder, [B, L, D], or None. Numbers are the examples' defaults.
    """

    def __init__(self, unet: ModelMixin, *, bf16: bool = False, lr: float = 1e-4, warmup: int = 500, schedule: Any = "linear") -> None:
        self.unet, self.bf16 = unet.train(), bf16
        self.noise_scheduler: Any = DDPMScheduler(num_train_timesteps=1000, beta_schedule=schedule)
        self.optimizer = torch.optim.AdamW(unet.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8)
        self.lr_scheduler = get_scheduler("constant_with_warmup", optimizer=self.optimizer, num_warmup_steps=warmup)
        self.ema = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4)

    def step(self, latents: Tensor, words: Tensor | None = None) -> Tensor:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, self.noise_scheduler.config.num_train_timesteps, (len(latents),), device=latents.device).long()
        noisy_latents = self.noise_scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            if words is None:
                model_pred = self.unet(noisy_latents, timesteps, return_dict=False)[0]
            else:
                model_pred = self.unet(noisy_latents, timesteps, words, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(model_pred.float(), noise.float(), reduction="mean")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.lr_scheduler.step()
        self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())
        return loss.detach()
