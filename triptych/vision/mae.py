"""MAE: hide three quarters of a picture and rebuild them from the rest (He et al., arXiv 2111.06377).

    224 x 224 -> 196 patches, 49 of them seen -> ViT encoder -> 49 + 147 mask tokens -> decoder, 8 blocks of 512 with 16 heads
              -> 16 * 16 * 3 = 768 numbers a patch -> squared error on the hidden ones, each patch normalised by its own mean and deviation

The encoder never meets a mask token, so it costs a quarter, and works unchanged on whole pictures afterwards. Places are told by
fixed sines, kept as buffers. The decoder is thrown away, or shows what was understood (`rebuild`).

BEiT's target (arXiv 2106.08254) is the other choice: which token a picture tokenizer sees at a hidden place (task "masked_tokens").

Shape legend: B batch, C channels, H W grid, L patches, D width, P = 3 * patch_size^2 numbers of a patch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ..contracts import Batch, ConditionSpec, Prompt, Rng
from ..layers.embed import sincos_2d, unpatchify
from ..layers.encoder import EncoderBlock
from ..layers.one_phase import OnePhase
from ..layers.pixels import average_down

__all__ = ["MAE", "Config", "MaskedPixels", "MaskedTokens", "SIZES", "TASKS"]


@dataclass(frozen=True, kw_only=True)
class Config:
    """image_size, patch_size: sides in pixels, the former a multiple of the latter.  eps: of the LayerNorms.

    decoder_depth: 0 = the decoder is thrown away.  mask: share of the patches that is hidden.
    normalise: patches are predicted after subtracting their mean and dividing by their deviation (section 4.1), which gives better
    features; without it, better pictures.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_mlp_ratio: float = 4.0
    mask: float = 0.75
    normalise: bool = True
    eps: float = 1e-6


SIZES = {
    "tiny": Config(image_size=16, patch_size=4, width=32, depth=1, num_heads=2, decoder_width=32, decoder_depth=1, decoder_heads=2),
    "small": Config(image_size=64, patch_size=8, width=192, depth=6, num_heads=3, decoder_width=128, decoder_depth=2, decoder_heads=4),
    "eyes": Config(image_size=64, patch_size=8, width=160, depth=4, num_heads=5, decoder_width=128, decoder_depth=2, decoder_heads=4),
    "MAE-B/16": Config(),
    "MAE-L/16": Config(width=1024, depth=24, num_heads=16),
    "MAE-H/14": Config(patch_size=14, width=1280, depth=32, num_heads=16),
}


class Decoder(nn.Module):
    """Tokens of the seen patches by rank, to a state for every patch in its place."""

    place_LD: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        c, width = config, config.decoder_width
        self.first = nn.Linear(c.width, width)
        self.mask_D = nn.Parameter(torch.randn(width) * 0.02)
        self.register_buffer("place_LD", _places(width, c.image_size // c.patch_size))
        hidden = round(width * c.decoder_mlp_ratio)
        self.blocks = nn.ModuleList(EncoderBlock(width, c.decoder_heads, hidden, eps=c.eps) for _ in range(c.decoder_depth))
        self.norm = nn.LayerNorm(width, eps=c.eps)
        self.last = nn.Linear(width, 3 * c.patch_size**2)

    def forward(self, seen_BLD: Tensor, rank_BL: Tensor) -> Tensor:
        """[B, 1 + kept, D], the class token first, to [B, L, decoder_width], normalised; `last` makes the patches of it."""
        x_BLD = self.first(seen_BLD)
        hidden_BLD = self.mask_D.expand(len(x_BLD), 1 + rank_BL.shape[1] - x_BLD.shape[1], -1)
        patches_BLD = _taken(torch.cat([x_BLD[:, 1:], hidden_BLD], dim=1), rank_BL)
        x_BLD = torch.cat([x_BLD[:, :1], patches_BLD], dim=1) + self.place_LD
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)[:, 1:]


class MAE(nn.Module):
    """`condition` is what a text encoder beside it gives; an MAE does not listen.

    All methods take pixels as the network was trained on them: float32 [B, 3, image_size, image_size].
    noise_BL: one number a patch; the patches with the smallest are seen.
    Raises ValueError if sizes do not split, everything or nothing would be hidden, or for pictures of another size.
    """

    place_LD: Tensor

    def __init__(self, config: Config, *, condition: ConditionSpec | None = None) -> None:
        super().__init__()
        c = self.config = config
        if c.image_size % c.patch_size:
            raise ValueError(f"image_size {c.image_size} is no multiple of patch_size {c.patch_size}")
        for width in (c.width, c.decoder_width):
            if width % 4:
                raise ValueError(f"width {width}: the sines of row and column need a multiple of 4")
        self.image_size, self.side = c.image_size, c.image_size // c.patch_size
        if not 0 < self.kept(self.side**2) < self.side**2:
            raise ValueError(f"mask {c.mask} of {self.side**2} patches leaves {self.kept(self.side**2)} to see; hide some, and leave some")
        self.patches = nn.Conv2d(3, c.width, c.patch_size, c.patch_size)
        self.class_D = nn.Parameter(torch.randn(c.width) * 0.02)
        self.register_buffer("place_LD", _places(c.width, self.side))
        hidden = round(c.width * c.mlp_ratio)
        self.blocks = nn.ModuleList(EncoderBlock(c.width, c.num_heads, hidden, eps=c.eps) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width, eps=c.eps)
        self.decoder = Decoder(c) if c.decoder_depth else None
        for layer in self.modules():
            if isinstance(layer, (nn.Linear, nn.Conv2d)):
                nn.init.xavier_uniform_(layer.weight.flatten(1))  # a view: the convolution starts as the linear layer that it is
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def kept(self, patches: int) -> int:
        """How many of so many patches are seen."""
        return int(patches * (1 - self.config.mask))

    # --- looking ----------------------------------------------------------------------------------------------------------

    def features(self, pixels_BCHW: Tensor) -> Tensor:
        """Nothing hidden: all tokens behind the last norm, the class token first, [B, 1 + L, D]."""
        return self._encoder(self._placed(pixels_BCHW))

    def pooled(self, pixels_BCHW: Tensor) -> Tensor:
        """The mean of the patches' tokens, [B, D]: no loss ever asked the class token for a summary."""
        return self.features(pixels_BCHW)[:, 1:].mean(dim=1)

    def encode(self, pixels_BCHW: Tensor, noise_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(tokens of the patches that are seen, the class token first, [B, 1 + kept, D]; the rank of every patch, int64 [B, L]).

        The tokens stand by rank: those of the patches with rank 0, 1, ... kept - 1. The others are hidden.
        """
        x_BLD = self._placed(pixels_BCHW)
        order_BL = noise_BL.argsort(dim=1)
        seen_BLD = _taken(x_BLD, order_BL[:, : self.kept(x_BLD.shape[1])])
        return self._encoder(seen_BLD), order_BL.argsort(dim=1)

    def _placed(self, pixels_BCHW: Tensor) -> Tensor:
        H, W = pixels_BCHW.shape[-2:]
        if not H == W == self.image_size:
            raise ValueError(f"a picture of {W} x {H}; this MAE looks at {self.image_size} x {self.image_size}: resize it")
        return rearrange(self.patches(pixels_BCHW), "b d h w -> b (h w) d") + self.place_LD[1:]

    def _encoder(self, x_BLD: Tensor) -> Tensor:
        first_BLD = (self.class_D + self.place_LD[0]).expand(len(x_BLD), 1, -1)
        x_BLD = torch.cat([first_BLD, x_BLD], dim=1)
        for block in self.blocks:
            x_BLD = block(x_BLD)
        return self.norm(x_BLD)

    # --- rebuilding -------------------------------------------------------------------------------------------------------

    def decode(self, pixels_BCHW: Tensor, noise_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(the decoder's last state of every patch [B, L, decoder_width], normalised; which were hidden, bool [B, L])."""
        seen_BLD, rank_BL = self.encode(pixels_BCHW, noise_BL)
        return self._decoder()(seen_BLD, rank_BL), rank_BL >= seen_BLD.shape[1] - 1

    def _decoder(self) -> Decoder:
        if self.decoder is None:
            raise ValueError("this MAE has no decoder (decoder_depth = 0): it gives features, and rebuilds nothing")
        return self.decoder

    def predict(self, pixels_BCHW: Tensor, noise_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(what the decoder says of every patch [B, L, P], the channel fastest; which patches were hidden, bool [B, L])."""
        x_BLD, hidden_BL = self.decode(pixels_BCHW, noise_BL)
        return self._decoder().last(x_BLD), hidden_BL

    def loss_B(self, pixels_BCHW: Tensor, noise_BL: Tensor) -> Tensor:
        """Mean squared error over the hidden patches of each row, [B]."""
        said_BLP, hidden_BL = self.predict(pixels_BCHW, noise_BL)
        target_BLP, mean, std = self._targets(pixels_BCHW)
        error_BL = (said_BLP - (target_BLP - mean) / std).square().mean(-1)
        return (error_BL * hidden_BL).sum(1) / hidden_BL.sum(1)

    def _targets(self, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor | float, Tensor | float]:
        """(patches [B, L, P], and the mean and deviation [B, L, 1] that they are predicted without)."""
        patch = self.config.patch_size
        x_BLP = rearrange(pixels_BCHW, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)
        if not self.config.normalise:
            return x_BLP, 0.0, 1.0
        var, mean = torch.var_mean(x_BLP, dim=-1, keepdim=True)
        return x_BLP, mean, (var + 1e-6).sqrt()

    @torch.no_grad()
    def rebuild(self, pixels_BCHW: Tensor, noise_BL: Tensor) -> tuple[Tensor, Tensor]:
        """(the picture with its hidden patches at 0, the picture with its hidden patches as they are imagined), BCHW each.

        Where patches were learnt normalised, the true mean and deviation of each are given back to it, as in the paper's figures.
        """
        said_BLP, hidden_BL = self.predict(pixels_BCHW, noise_BL)
        target_BLP, mean, std = self._targets(pixels_BCHW)
        patch, grid, hidden_BL1 = self.config.patch_size, (self.side, self.side), hidden_BL[..., None]
        masked_BLP = target_BLP.masked_fill(hidden_BL1, 0.0)
        rebuilt_BLP = torch.where(hidden_BL1, said_BLP * std + mean, target_BLP)
        return unpatchify(masked_BLP, patch, grid), unpatchify(rebuilt_BLP, patch, grid)


def _places(width: int, side: int) -> Tensor:
    """[1 + L, width]: the sines of column and row; the class token's place is zero."""
    sines_LD = sincos_2d(width, (side, side), (side, side), torch.get_default_device())
    return torch.cat([torch.zeros(1, width), sines_LD])


def _taken(x_BLD: Tensor, index_BM: Tensor) -> Tensor:
    """Row b of the result holds tokens index_BM[b] of row b."""
    return x_BLD.gather(1, index_BM[..., None].expand(-1, -1, x_BLD.shape[-1]))


class MaskedPixels(OnePhase):
    """The paper's task. Pictures in [-1, 1], averaged down to `image_size`; a network trained here has mean and deviation 0.5."""

    def __init__(self, panel: MAE, *, neighbours: Mapping[str, Any] | None = None) -> None:
        self.panel = panel
        self.modules = nn.ModuleDict({"vision": panel})

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        return {"loss": self.panel.loss_B(*_shown(self.panel, batch, rng)).mean()}

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """loss [B], with masks that depend on the row's number alone."""
        return {"loss": self.panel.loss_B(*_shown(self.panel, batch, Rng.of_samples(0, batch.index)))}

    def preview(self, prompts: Sequence[Prompt], batch: Batch) -> Tensor | None:
        """Masked, rebuilt, original of each row, one after the other."""
        pixels, noise = _shown(self.panel, batch, Rng.of_samples(0, batch.index))
        return rearrange([*self.panel.rebuild(pixels, noise), pixels], "three b c h w -> (b three) c h w").clamp(-1, 1)


class MaskedTokens(OnePhase):
    """BEiT's target in MAE's frame: the token that neighbours["decoder"] sees at each hidden place, by cross entropy.

    The decoder's latents are a grid of tokens with one token a patch. The head [decoder_width -> V] belongs to the task, not to
    the panel: it is thrown away with it. Patches are hidden one by one as in MAE; BEiT hides blocks, 40 % of the picture.
    Raises ValueError for a decoder of another kind, or a grid unlike the patches'.
    """

    def __init__(self, panel: MAE, *, neighbours: Mapping[str, Any]) -> None:
        if "decoder" not in neighbours:
            raise ValueError("masked tokens are a tokenizer's: set neighbours.decoder to a model whose latents are a grid of tokens")
        self.panel, self.tokenizer = panel, neighbours["decoder"]
        latent = self.tokenizer.latent
        if latent.kind != "grid":
            raise ValueError(f"the decoder's latents are of kind {latent.kind!r}; masked tokens need a 'grid'")
        if tuple(latent.shape) != (panel.side, panel.side):
            tokens, patches = (" x ".join(map(str, shape)) for shape in (latent.shape, (panel.side, panel.side)))
            raise ValueError(f"the tokenizer gives {tokens} tokens, the picture has {patches} patches: one token a patch is needed")
        self.head = nn.Linear(panel.config.decoder_width, latent.vocab)
        self.modules = nn.ModuleDict({"vision": panel, "head": self.head})

    def panels(self) -> dict[str, nn.Module]:
        return {"vision": self.panel}

    def trainable(self, phase: str) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.modules.named_parameters() if not name.startswith("vision.decoder.last.")}

    def _rows(self, batch: Batch, rng: Rng) -> dict[str, Tensor]:
        pixels_BCHW, noise_BL = _shown(self.panel, batch, rng)
        with torch.no_grad():
            token_BL = rearrange(self.tokenizer.encode(batch.images_BCHW), "b h w -> b (h w)")
        x_BLD, hidden_BL = self.panel.decode(pixels_BCHW, noise_BL)
        logits_BLV = self.head(x_BLD).float()
        loss_BL = F.cross_entropy(rearrange(logits_BLV, "b l v -> b v l"), token_BL, reduction="none")
        right_BL, many_B = (logits_BLV.argmax(-1) == token_BL) & hidden_BL, hidden_BL.sum(1)
        return {"loss": (loss_BL * hidden_BL).sum(1) / many_B, "right": right_BL.sum(1) / many_B}

    def losses(self, batch: Batch, phase: str, step: int, rng: Rng) -> dict[str, Tensor]:
        """loss, and the share of hidden tokens that is named right."""
        return {name: rows_B.mean() for name, rows_B in self._rows(batch, rng).items()}

    @torch.no_grad()
    def validate(self, batch: Batch) -> dict[str, Tensor]:
        return self._rows(batch, Rng.of_samples(0, batch.index))


TASKS = {"masked_pixels": MaskedPixels, "masked_tokens": MaskedTokens}


def _shown(panel: MAE, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor]:
    """The batch's pictures, and the noise that says which patches of them are hidden."""
    if batch.images_BCHW is None:
        raise ValueError("a picture is to be rebuilt, and this data has texts alone (data.size = 0?)")
    pixels_BCHW = average_down(batch.images_BCHW, panel.image_size)
    return pixels_BCHW, rng.uniform("mask", (panel.side**2,)).to(pixels_BCHW.device)
