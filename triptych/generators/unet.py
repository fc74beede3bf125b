"""The U-Net of diffusion: a picture grows smaller and larger again, and every map on the way down meets its twin on the way up.

    DDPM    Denoising Diffusion Probabilistic Models, arXiv 2006.11239: the time is added, attention at 16 x 16.
    ADM     Diffusion Models Beat GANs on Image Synthesis, arXiv 2105.05233: AdaGN, residual blocks that resize, 64 channels a head,
            attention at 32, 16 and 8, a class added to the time.
    LDM     High-Resolution Image Synthesis with Latent Diffusion Models, arXiv 2112.10752, and Stable Diffusion 1.x and 2.x:
            transformers in place of attention, which ask the words too.
    GLIDE   arXiv 2112.10741: ADM, with the words as more keys and values of every attention, and their summary added to the time.

What is heard is what panel 1 says: tokens, a pooled vector, a label, another vector, pictures beside x_t; a port that is silent has
no parameters here. The clock is whatever the process says: an index 0..999, 1000 t, or ln(sigma) / 4.

B batch, C channels, H W grid, M words, D width of the words, E width of the time's code, X = all attentions' keys and values.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from triptych.contracts import Condition, ConditionSpec, LatentSpace
from triptych.layers.blocks import RMSNorm
from triptych.layers.conv import Conv, Enlarge, GroupNorm, silu, unpack
from triptych.layers.linear import Linear
from triptych.layers.unet import Clock, DownPath, Heard, Level, Plan, TextKeys, TimeBlock, per_level, together

__all__ = ["UNet", "Config", "SIZES"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """A level is a resolution: the first is x_t's, each further one has half the side.

    width, multipliers: level i is width * multipliers[i] wide.  num_res_blocks: of each level; the way up has one more.
    attention: the levels with attention.  middle_attention: False = the middle, which is as wide as the last level, has none.
    num_heads: of each level, unless head_width, channels a head, is given (not 0).
    text: how tokens are heard, if the text encoder gives any: "cross" = by transformers of `depth` blocks in place of attention
        (LDM), "keys" = as keys and values beside the positions' own (GLIDE), "none" = not.
    pooled: is the text encoder's pooled vector, if it gives one, added to the time?
    form: how blocks hear the time: "add" (DDPM) or "scale_shift" (AdaGN).  resize: by a convolution or inside of a residual block.
    asymmetric: convolutions of stride 2 pad at the right and at the bottom only (DDPM).
    time, time_width: the sines' dialect, see `layers.unet.Clock`, and the width of the code made of them, 0 = 4 * width.
    norm_groups, norm_eps: of group norms.  dropout: in residual blocks.
    skips: False = nothing crosses from the way down to the way up, to measure what the crossing is worth.
    learn_sigma: give 2 C channels, the second half for the variance.
    """

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 2)
    num_res_blocks: int | tuple[int, ...] = 2
    attention: tuple[int, ...] = (1, 2)
    num_heads: int | tuple[int, ...] = 4
    head_width: int = 0
    text: Literal["cross", "keys", "none"] = "cross"
    depth: int | tuple[int, ...] = 1
    pooled: bool = True
    form: Literal["add", "scale_shift"] = "add"
    resize: Literal["conv", "resnet"] = "conv"
    asymmetric: bool = False
    time: Literal["ddpm", "openai"] = "openai"
    time_width: int = 0
    norm_groups: int = 32
    norm_eps: float = 1e-5
    dropout: float = 0.0
    skips: bool = True
    middle_attention: bool = True
    learn_sigma: bool = False


_ADM = Config(
    num_res_blocks=3, head_width=64, text="none", form="scale_shift", resize="resnet", dropout=0.1, learn_sigma=True, pooled=False,
)  # fmt: skip
_LDM = Config(width=320, multipliers=(1, 2, 4, 4), attention=(0, 1, 2), pooled=False)

SIZES = {
    "tiny": Config(width=4, multipliers=(1, 2), num_res_blocks=1, attention=(1,), num_heads=2, time_width=16, norm_groups=2),
    "scenes": Config(
        width=16, multipliers=(1, 1, 2), num_res_blocks=1, attention=(2,), head_width=16, text="keys", time_width=64, norm_groups=8,
    ),
    "scenes-latent": Config(
        width=24, multipliers=(1, 1), num_res_blocks=1, attention=(0,), head_width=12, time_width=64, norm_groups=8,
    ),
    "DDPM-CIFAR10": Config(
        multipliers=(1, 2, 2, 2), attention=(1,), num_heads=1, text="none", pooled=False, asymmetric=True, time="ddpm", norm_eps=1e-6,
        dropout=0.1,
    ),
    "ADM-64": replace(_ADM, width=192, multipliers=(1, 2, 3, 4), attention=(1, 2, 3)),
    "ADM-256": replace(_ADM, width=256, multipliers=(1, 1, 2, 2, 4, 4), num_res_blocks=2, attention=(3, 4, 5), dropout=0.0),
    "GLIDE-64": replace(_ADM, width=512, multipliers=(1, 2, 3, 4), attention=(1, 2, 3), text="keys", pooled=True),
    "LDM-txt2img": replace(_LDM, num_heads=8),
    "SD-1.5": replace(_LDM, num_heads=8),
    "SD-2.1": replace(_LDM, head_width=64),
}  # fmt: skip


class UNet(nn.Module):
    """forward(x_t [B, C, H, W], clock_B, cond) -> [B, C, H, W], or 2 C channels with `learn_sigma`.

    H and W need not be those of `latent`. Where a symmetric convolution halves them they may be any; else they are multiples of 2 to
    the number of levels less one. `cond.concat_BCHW` has the sides of x_t.
    cond may have k times the rows of x_t and the clock: row i of them hears rows i, B + i, ... of it, one answer each in its order.
    Raises ValueError for latents that are no image, and for widths, heads, groups and levels that do not fit.
    """

    role = "denoiser"
    branches = True  # k rows of the condition for each of x_t: what they share is computed once

    def __init__(self, config: Config, *, latent: LatentSpace, condition: ConditionSpec) -> None:
        super().__init__()
        c = self.config = config
        self.latent, self.condition = latent, condition
        if latent.kind != "image":
            raise ValueError(f"a U-Net draws latents of kind 'image', this decoder gives {latent.kind!r}: choose another of the two")
        plan, channels, code = _plan(c, condition), latent.shape[0], c.time_width or 4 * c.width

        self.down = DownPath(plan, channels + condition.concat)
        self.up = _way_up(plan, list(self.down.kept), c.skips)
        self.norm = GroupNorm(c.norm_groups, plan.widths[0], c.norm_eps)
        self.head = Conv(plan.widths[0], channels * (2 if c.learn_sigma else 1), 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]

        parts = [*self.down.modules(), *self.up.modules()]  # in the order in which they are passed
        self.clock = Clock(c.width, code, c.time, [part.modulation_width for part in parts if isinstance(part, TimeBlock)])
        self.label = nn.Embedding(condition.num_labels + 1, code) if condition.num_labels else None
        self.pooled = nn.Sequential(RMSNorm(condition.pooled), Linear(condition.pooled, code)) if c.pooled and condition.pooled else None
        self.vector = Linear(condition.vector, code) if condition.vector else None
        listeners = [one for part in parts for one in getattr(part, "listeners", ())]
        self.text = TextKeys(condition.width, listeners, bias=c.text == "keys") if plan.hears != "none" else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)

    def prepare(self, cond: Condition) -> Condition:
        """Once a request: the words' keys and values, which no step changes, as `prepared_BLX`."""
        if self.text is None or cond.tokens_BLD is None:
            return cond
        return replace(cond, prepared_BLX=self.text(cond.tokens_BLD.to(self.dtype)))

    def forward(self, x_t: Tensor, clock_B: Tensor, cond: Condition) -> Tensor:
        heard = Heard(self.clock(clock_B, self._beside(cond)), self._texts(cond), cond.mask_BL if self.text is not None else None)
        x, skips = self.down(self._entering(x_t, cond), heard)
        for level in self.up:
            for stage in level.stages:  # type: ignore[union-attr]
                skip = skips.pop()
                x = stage(torch.cat(together(x, skip), dim=1) if self.config.skips else x, heard)
            if level.resize is not None:
                x = level.resized(x, heard, skips[-1].shape[2:])  # type: ignore[operator]
        out = self.head(silu(self.norm(x))).to(x_t.dtype)
        return together(out, next(iter(cond.ports().values()), out))[0]  # a port may speak that nobody here hears

    def _entering(self, x_t: Tensor, cond: Condition) -> Tensor:
        """x_t, and below it the pictures that condition."""
        c, (height, width) = self.config, x_t.shape[2:]
        step = 2 ** (len(c.multipliers) - 1)
        if (height % step or width % step) and (c.asymmetric or c.resize == "resnet"):
            raise ValueError(f"latents of {height} x {width} cannot be halved {len(c.multipliers) - 1} times: choose multiples of {step}")
        if self.condition.concat:
            beside = _heard(cond, "concat_BCHW")
            if beside.shape[2:] != x_t.shape[2:]:
                raise ValueError(f"concat_BCHW is {tuple(beside.shape[2:])}, the latents are {height} x {width}: give it their sides")
            x_t = torch.cat(together(x_t, beside.to(x_t.dtype)), dim=1)
        return x_t.to(self.dtype)

    def _beside(self, cond: Condition) -> list[Tensor]:
        """What is added to the time's code, [B, E] each."""
        said = []
        if self.label is not None:
            said.append(self.label(_heard(cond, "label_B")))
        if self.pooled is not None:
            said.append(self.pooled(_heard(cond, "pooled_BD").to(self.dtype)))
        if self.vector is not None:
            said.append(self.vector(_heard(cond, "vector_BK").to(self.dtype)))
        return said

    def _texts(self, cond: Condition) -> Iterator[Any]:
        if self.text is None:
            return itertools.repeat(None)
        prepared_BMX = cond.prepared_BLX
        if prepared_BMX is None:
            prepared_BMX = self.text(_heard(cond, "tokens_BLD").to(self.dtype))
        return iter(self.text.split(prepared_BMX))

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """`nn.Module.compile`, for which weights are as they were."""
        unpack(self)
        super().compile(*args, **kwargs)

    @property
    def dtype(self) -> torch.dtype:
        return self.head.weight.dtype


def _plan(c: Config, condition: ConditionSpec) -> Plan:
    """The levels' shape. Raises ValueError where there are not as many numbers as levels, or a width does not split into heads."""
    levels = len(c.multipliers)
    widths = tuple(c.width * m for m in per_level(c.multipliers, levels, "multipliers"))
    heads = tuple(width // c.head_width for width in widths) if c.head_width else per_level(c.num_heads, levels, "num_heads")
    asking = {*c.attention, *([levels - 1] if c.middle_attention else [])}
    for level in asking if c.head_width else ():
        if level < levels and widths[level] % c.head_width:
            raise ValueError(f"level {level} is {widths[level]} wide, no multiple of head_width = {c.head_width}: change one of them")
    if condition.width and c.text != "none" and not asking:
        raise ValueError(f"text = {c.text!r}, and there is no attention to hear it: give levels in attention, or set text = none")
    return Plan(
        widths=widths, num_res_blocks=per_level(c.num_res_blocks, levels, "num_res_blocks"), attention=c.attention, num_heads=heads,
        depth=per_level(c.depth, levels, "depth"), hears=c.text if condition.width else "none", form=c.form, resize=c.resize,
        asymmetric=c.asymmetric, groups=c.norm_groups, eps=c.norm_eps, dropout=c.dropout, middle_attention=c.middle_attention,
    )  # fmt: skip


def _way_up(plan: Plan, kept: list[int], skips: bool) -> nn.ModuleList:
    """Levels from the smallest map to the largest; each stage takes the map that was kept last."""
    levels, channels = [], plan.widths[-1]
    for i in reversed(range(len(plan.widths))):
        width, stages = plan.widths[i], []
        for _ in range(plan.num_res_blocks[i] + 1):
            crossing = kept.pop()
            stages.append(plan.stage(channels + (crossing if skips else 0), i))
            channels = width
        resize = None
        if i:
            resize = plan.block(width, width, "up") if plan.resize == "resnet" else Enlarge(width)
        levels.append(Level(stages, resize))
    return nn.ModuleList(levels)


def _heard(cond: Condition, port: str) -> Tensor:
    value = getattr(cond, port)
    if value is None:
        raise ValueError(f"this U-Net was built to hear {port}, and the condition is silent there: it speaks on {sorted(cond.ports())}")
    return value
