"""ADM's classifier: what is in a picture that is still half noise, so that its gradient can lead a diffusion model there
(Dhariwal & Nichol, arXiv 2105.05233, section 4: the half of the U-Net that grows smaller, and at 8 x 8 an attention pool).

    x_t [B, C, H, W], clock_B -> the way down and the middle of `generators/unet.py` -> norm, silu, attention pool -> logits_BK

It sees x_t as the generator does: latents standardised by the decoder's mean and deviation, noised by the generator's process, the
time told by that process's clock. For pictures the mean and the deviation stand in its own Config, so that a saved classifier says
which generators it can lead, and sees pictures alone too; training beside a decoder checks that they are the decoder's.

Shape legend: B batch, C channels, H W grid, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import catalog
from ..contracts import Batch, Condition, ConditionSpec, Decoder, Rng
from ..layers.conv import GroupNorm
from ..layers.linear import Linear
from ..layers.one_phase import OnePhase
from ..layers.pixels import average_down
from ..layers.unet import AttentionPool, Clock, DownPath, Heard, Plan, TimeBlock, per_level

__all__ = ["NoisyClassifier", "Config", "NoisyClassification", "SIZES", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """image_size, channels: of what it sees.  mean, std: of its values; pictures in [-1, 1] are standardised by them.

    width, multipliers, num_res_blocks, attention, head_width, norm_groups, dropout: as of the U-Net, with AdaGN and blocks that resize.
    """

    num_classes: int = 1000
    image_size: int = 64
    channels: int = 3
    mean: float = 0.0
    std: float = 1.0
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    num_res_blocks: int | tuple[int, ...] = 2
    attention: tuple[int, ...] = (1, 2, 3)
    head_width: int = 64
    norm_groups: int = 32
    dropout: float = 0.0


SIZES = {
    "tiny": Config(
        num_classes=10, image_size=16, mean=0.5, std=0.6, width=8, multipliers=(1, 2), num_res_blocks=1, attention=(1,), head_width=8,
        norm_groups=4,
    ),
    "scenes": Config(
        num_classes=48, image_size=32, mean=0.5, std=0.6, width=16, multipliers=(1, 2, 2), num_res_blocks=1, attention=(2,), head_width=16,
        norm_groups=8,
    ),
    "ADM-64": Config(num_res_blocks=4),
    "ADM-128": Config(image_size=128, multipliers=(1, 1, 2, 3, 4), attention=(2, 3, 4)),
    "ADM-256": Config(image_size=256, multipliers=(1, 1, 2, 2, 4, 4), attention=(3, 4, 5)),
}  # fmt: skip


class NoisyClassifier(nn.Module):
    """forward(x_t, clock_B, cond) -> log p(cond.label_B | x_t) [B]: a critic whose gradient by x_t is classifier guidance's.

    `condition` is what a text encoder beside it gives; of it a label alone is heard.
    Raises ValueError for a picture size that the levels do not halve, widths that do not split, and x_t of another size.
    """

    role = "critic"

    def __init__(self, config: Config, *, condition: ConditionSpec | None = None) -> None:
        super().__init__()
        c = self.config = config
        self.image_size, levels = c.image_size, len(c.multipliers)
        side, left = divmod(c.image_size, 2 ** (levels - 1))
        if left or not side:
            raise ValueError(f"image_size {c.image_size} cannot be halved {levels - 1} times: take a multiple of {2 ** (levels - 1)}")
        widths = tuple(c.width * m for m in c.multipliers)
        if c.head_width < 1 or any(widths[i] % c.head_width for i in {*c.attention, levels - 1} if i < levels):
            raise ValueError(f"levels {widths} wide do not split into heads of head_width = {c.head_width}: change one of them")
        plan = Plan(
            widths=widths, num_res_blocks=per_level(c.num_res_blocks, levels, "num_res_blocks"), attention=c.attention,
            num_heads=tuple(max(1, width // c.head_width) for width in widths), depth=(1,) * levels, form="scale_shift", resize="resnet",
            groups=c.norm_groups, dropout=c.dropout,
        )  # fmt: skip
        self.down = DownPath(plan, c.channels)
        blocks = [part for part in self.down.modules() if isinstance(part, TimeBlock)]
        self.clock = Clock(c.width, 4 * c.width, "openai", [block.modulation_width for block in blocks])
        self.norm = GroupNorm(c.norm_groups, widths[-1])
        self.pool = AttentionPool(widths[-1], widths[-1] // c.head_width, (side, side))
        self.head = Linear(widths[-1], c.num_classes)

    def forward(self, x_t: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        if cond.label_B is None:
            raise ValueError(f"a noisy classifier scores labels, and the condition says none: it speaks on {sorted(cond.ports())}")
        log_p_BK = self.classify(x_t, clock_B).float().log_softmax(dim=1)
        log_p_BK = F.pad(log_p_BK, (0, 1))  # of "no class", the number behind the last, nothing is known: 0, and no gradient
        return log_p_BK.gather(1, cond.label_B[:, None].to(log_p_BK.device))[:, 0]

    def classify(self, x_t: Tensor, clock_B: Tensor | None = None) -> Tensor:
        """Logits [B, K]. Without a clock the picture is taken for clean: time 0."""
        return self.head(self.pooled(x_t, clock_B))

    def pooled(self, x_t: Tensor, clock_B: Tensor | None = None) -> Tensor:
        """What the head reads, [B, D]."""
        return self.pool(self._map(x_t, clock_B))

    def features(self, x_t: Tensor, clock_B: Tensor | None = None) -> Tensor:
        """The positions of the smallest map, [B, L, D]."""
        return self._map(x_t, clock_B).flatten(2).transpose(1, 2)

    def _map(self, x_t: Tensor, clock_B: Tensor | None) -> Tensor:
        shape = (self.config.channels, self.image_size, self.image_size)
        if tuple(x_t.shape[1:]) != shape:
            raise ValueError(f"x_t is {tuple(x_t.shape[1:])}, this classifier sees {shape}")
        clock_B = x_t.new_zeros(len(x_t)) if clock_B is None else clock_B
        x, _ = self.down(x_t.to(self.norm.weight.dtype), Heard(self.clock(clock_B), iter(())))
        return F.silu(self.norm(x))

    def preprocess(self, images_BCHW: Tensor) -> Tensor:
        """Pictures in [-1, 1], at least `image_size` large, to what it sees of them without noise."""
        return (average_down(images_BCHW, self.image_size) - self.config.mean) / self.config.std


class NoisyClassification(OnePhase):
    """Cross entropy of each noised picture's class, which is `Prompt.label`; times and noises are the rows' own.

    neighbours: "decoder", where there is one, makes x0; else the panel's own mean and deviation do.
    process, process_config: the family that noises, and its Config's fields: the generator's.
    Raises ValueError for a decoder of another latent space, a process that does not noise, and labels that the head has not.
    """

    def __init__(
        self, panel: nn.Module, *, neighbours: Mapping[str, Any] | None = None, process: str = "ddpm",
        process_config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.panel: Any = panel
        self.modules = nn.ModuleDict({"vision": panel})
        self.process = catalog.build("processes", process, process_config)
        if not hasattr(self.process, "corrupt"):
            raise ValueError(f"process {process} has no noise of its own to add; take ddpm or rectified_flow")
        self.decoder: Decoder | None = (neighbours or {}).get("decoder")
        c = self.panel.config
        if self.decoder is not None:
            latent, shape = self.decoder.latent, (c.channels, c.image_size, c.image_size)
            if tuple(latent.shape) != shape:
                raise ValueError(f"the decoder's latents are {tuple(latent.shape)}, the classifier sees {shape}: set channels, image_size")
            if c.channels == 3 and ({*latent.mean}, {*latent.std}) != ({c.mean}, {c.std}):
                raise ValueError(f"the decoder's mean {latent.mean} and std {latent.std} are not the classifier's, {c.mean} and {c.std}")

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """loss, and the share whose first guess is right."""
        rows = self._rows(batch, rng.uniform("t"), rng, 0)
        return {"loss": rows["loss"].mean(), "right": rows["right"].mean()}

    @torch.no_grad()
    def validate(self, batch: Batch, draws: int = 4) -> dict[str, Tensor]:
        """[B] each: loss and right, over times that are stratified and noises that depend on the row's number alone."""
        rng = Rng.of_samples(0, batch.index)
        every = [self._rows(batch, (k + rng.uniform("t", step=k)) / draws, rng, k) for k in range(draws)]
        return {name: torch.stack([rows[name] for rows in every]).mean(0) for name in every[0]}

    def _rows(self, batch: Batch, u_B: Tensor, rng: Rng, draw: int) -> dict[str, Tensor]:
        if batch.images_BCHW is None:
            raise ValueError("classification needs pictures; this data has texts alone (data.size = 0?)")
        with torch.no_grad():
            x0 = (self.decoder.encode if self.decoder is not None else self.panel.preprocess)(batch.images_BCHW).float()
        steps = getattr(self.process.config, "num_timesteps", 0)
        t_B = ((u_B * steps).floor() + 1) / steps if steps else u_B
        t_B, eps = t_B.to(x0.device), rng.normal("noise", x0.shape[1:], draw).to(x0.device)
        label_B = torch.tensor([self._label(prompt.label) for prompt in batch.prompts], device=x0.device)
        logits_BK = self.panel.classify(self.process.corrupt(x0, t_B, eps), self.process.clock(t_B)).float()
        right_B = (logits_BK.detach().argmax(dim=1) == label_B).float()
        return {"loss": F.cross_entropy(logits_BK, label_B, reduction="none"), "right": right_B}

    def _label(self, label: int | None) -> int:
        classes = self.panel.config.num_classes
        if label is None or not 0 <= label < classes:
            raise ValueError(f"a picture has label {label}, the head has {classes} classes, 0..{classes - 1}: set num_classes")
        return label


TASKS = {"noisy_classification": NoisyClassification}
