"""A fresh process: load a saved transformer with diffusers, draw one guided picture, write a PNG.   FOLDER OUT.png STEPS"""

from __future__ import annotations

import sys

import numpy as np
import torch
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler
from PIL import Image


@torch.no_grad()
def main(folder: str, out: str, steps: int) -> None:
    transformer = DiTTransformer2DModel.from_pretrained(folder)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps))
    latents = torch.randn(1, transformer.config.in_channels, transformer.config.sample_size, transformer.config.sample_size)
    labels = torch.tensor([transformer.config.num_embeds_ada_norm, 3])
    for t in scheduler.timesteps:
        velocity_uncond, velocity = transformer(torch.cat([latents] * 2), timestep=t[None].expand(2), class_labels=labels).sample.chunk(2)
        latents = scheduler.step(velocity_uncond + 3.0 * (velocity - velocity_uncond), t, latents).prev_sample
    pixels = ((latents[0, :3].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(out)


main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
