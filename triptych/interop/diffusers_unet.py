"""diffusers' UNet2DModel and UNet2DConditionModel, in and out of `generators/unet.py`: names and tensors only.

Theirs keep apart what one product makes here: queries, keys and values; all blocks' projections of the time; all words' keys and
values. Their embedding of classes has as many rows as ours: its last is read as "no class", which guidance needs.
In UNet2DConditionModel `attention_head_dim` is the number of heads, in UNet2DModel the channels of one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from triptych.contracts import ConditionSpec, LatentSpace
from triptych.generators.unet import Config
from triptych.layers.unet import per_level

__all__ = ["config_from_diffusers", "config_to_diffusers", "modules_in_diffusers", "tensors_from_diffusers", "tensors_to_diffusers"]

_PLAIN, _WORDS = "UNet2DModel", "UNet2DConditionModel"
_NEEDED: dict[str, dict[str, Any]] = {  # what is missing in their configuration has these values too
    "both": {
        "center_input_sample": False, "time_embedding_type": "positional", "mid_block_scale_factor": 1, "act_fn": "silu",
        "class_embed_type": None,
    },
    _PLAIN: {"mid_block_type": "UNetMidBlock2D", "add_attention": True},
    _WORDS: {
        "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": False, "reverse_transformer_layers_per_block": None,
        "encoder_hid_dim": None, "encoder_hid_dim_type": None, "num_attention_heads": None, "dual_cross_attention": False,
        "addition_embed_type": None, "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0, "time_embedding_act_fn": None,
        "timestep_post_act": None, "time_cond_proj_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3,
        "projection_class_embeddings_input_dim": None, "attention_type": "default", "class_embeddings_concat": False,
        "mid_block_only_cross_attention": None, "cross_attention_norm": None,
    },
}  # fmt: skip
_TIMES = {(True, 0): "openai", (False, 1): "ddpm"}  # (flip_sin_to_cos, freq_shift)
_OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # names before diffusers 0.15, in DDPM's own folders


# --- configurations -----------------------------------------------------------------------------------------------------


def config_from_diffusers(theirs: Mapping[str, Any]) -> tuple[Config, LatentSpace, ConditionSpec]:
    """What `UNet(config, latent=..., condition=...)` needs, from their `config.json`.

    More channels in than out are pictures beside x_t; twice as many out as in are a learnt variance.
    Raises ValueError for another class of theirs, or a setting that our U-Net has no counterpart for.
    """
    kind = theirs.get("_class_name")
    if kind not in (_PLAIN, _WORDS):
        raise ValueError(f"{kind} is no U-Net that can be read; those are {_PLAIN} and {_WORDS}")
    for name, value in (_NEEDED["both"] | _NEEDED[kind]).items():
        _same(kind, name, theirs.get(name, value), value)
    words = kind == _WORDS
    widths = list(theirs["block_out_channels"])
    if any(width % widths[0] for width in widths):
        raise ValueError(f"{kind} with block_out_channels = {widths}: all must be multiples of the first")
    depth = theirs.get("transformer_layers_per_block", 1)
    if not isinstance(depth, int) and not all(isinstance(one, int) for one in depth):
        raise ValueError(f"{kind} with transformer_layers_per_block = {depth}: give one number a level")
    cross = theirs.get("cross_attention_dim", 0) if words else 0
    if not isinstance(cross, int):
        if len(set(cross)) > 1:
            raise ValueError(f"{kind} with cross_attention_dim = {cross}: all levels must hear words of one width")
        cross = cross[0]
    channels, concat, learn_sigma = _channels(kind, theirs["in_channels"], theirs["out_channels"])
    attention, resize = _levels(kind, theirs, words)
    time = (bool(theirs.get("flip_sin_to_cos", True)), theirs.get("freq_shift", 0))
    if time not in _TIMES:
        raise ValueError(f"{kind} with flip_sin_to_cos, freq_shift = {time}: only {' and '.join(map(str, _TIMES))} can be read")
    told, groups = theirs.get("resnet_time_scale_shift", "default"), theirs.get("norm_num_groups", 32)
    form = {"default": "add", "scale_shift": "scale_shift"}.get(told)
    if form is None or groups is None:
        raise ValueError(f"{kind} with resnet_time_scale_shift = {told!r}, norm_num_groups = {groups!r} cannot be read")
    if not words:  # the norm of the middle's attention
        _same(kind, "attn_norm_num_groups", theirs.get("attn_norm_num_groups") or (groups if form == "add" else None), groups)
    asking = [widths[level] for level in {*attention, len(widths) - 1}]
    num_heads, head_width = _heads(kind, theirs.get("attention_head_dim", 8), widths if words else asking, words)
    config = Config(
        width=widths[0], multipliers=tuple(width // widths[0] for width in widths),
        num_res_blocks=_short(theirs.get("layers_per_block", 2)), attention=attention, num_heads=num_heads, head_width=head_width,
        text="cross" if words else "none", depth=_short(depth), pooled=False, form=form, resize=resize,  # type: ignore[arg-type]
        asymmetric=_padding(kind, theirs.get("downsample_padding", 1)), time=_TIMES[time],  # type: ignore[arg-type]
        time_width=_unless(theirs.get("time_embedding_dim") or 0, 4 * widths[0]), norm_groups=groups,
        norm_eps=theirs.get("norm_eps", 1e-5), dropout=theirs.get("dropout", 0.0), learn_sigma=learn_sigma,
    )  # fmt: skip
    size = theirs.get("sample_size")
    if size is None:
        raise ValueError(f"{kind} with sample_size = None: say how large the latents are, one side or (height, width)")
    sides = (size, size) if isinstance(size, int) else tuple(size)
    said = ConditionSpec(width=cross, num_labels=max(0, (theirs.get("num_class_embeds") or 0) - 1), concat=concat)
    return config, LatentSpace(kind="image", shape=(channels, *sides)), said


def config_to_diffusers(config: Config, latent: LatentSpace, condition: ConditionSpec) -> dict[str, Any]:
    """Their `config.json`, `_class_name` included. Raises ValueError for what theirs cannot be told."""
    c, levels, words = config, len(config.multipliers), config.text == "cross" and condition.width > 0
    kind = _WORDS if words else _PLAIN
    cannot = {
        "text = 'keys'": c.text == "keys" and condition.width > 0, "skips = False": not c.skips, "a vector": condition.vector > 0,
        "middle_attention = False": not c.middle_attention, "a pooled text": c.pooled and condition.pooled > 0,
        "resize = 'resnet' beside words": words and c.resize == "resnet",
        "unequal num_res_blocks without words": not words and not isinstance(_short(c.num_res_blocks), int),
    }  # fmt: skip
    for what, asked in cannot.items():
        if asked:
            raise ValueError(f"{what}: diffusers' {kind} has no counterpart")
    widths = [c.width * m for m in c.multipliers]
    if c.multipliers[0] != 1:
        raise ValueError(f"multipliers {c.multipliers}: diffusers' {kind} takes the first level's width for the time's too; begin with 1")
    heads = [width // c.head_width for width in widths] if c.head_width else per_level(c.num_heads, levels, "num_heads")
    asking = [*c.attention, levels - 1]
    attends, plain = ("CrossAttn", "") if words else ("Attn", "")
    down = [f"{attends if i in c.attention else plain}DownBlock2D" for i in range(levels)]
    up = [f"{attends if i in c.attention else plain}UpBlock2D" for i in reversed(range(levels))]
    if c.resize == "resnet":
        down = ["ResnetDownsampleBlock2D" if one == "DownBlock2D" else one for one in down]
        up = ["ResnetUpsampleBlock2D" if one == "UpBlock2D" else one for one in up]
    flip, shift = next(key for key, name in _TIMES.items() if name == c.time)
    values: dict[str, Any] = {
        "_class_name": kind, "sample_size": latent.shape[1] if latent.shape[1] == latent.shape[2] else list(latent.shape[1:]),
        "in_channels": latent.shape[0] + condition.concat, "out_channels": latent.shape[0] * (2 if c.learn_sigma else 1),
        "block_out_channels": widths, "down_block_types": down, "up_block_types": up, "layers_per_block": _short(c.num_res_blocks),
        "flip_sin_to_cos": flip, "freq_shift": shift, "time_embedding_dim": c.time_width or 4 * c.width,
        "downsample_padding": 0 if c.asymmetric else 1, "dropout": c.dropout, "norm_num_groups": c.norm_groups, "norm_eps": c.norm_eps,
        "resnet_time_scale_shift": "default" if c.form == "add" else "scale_shift",
        "num_class_embeds": condition.num_labels + 1 if condition.num_labels else None,
    }  # fmt: skip
    if words:
        depth = per_level(c.depth, levels, "depth")
        return values | {
            "attention_head_dim": list(heads), "cross_attention_dim": condition.width, "transformer_layers_per_block": list(depth),
            "use_linear_projection": True,
        }  # fmt: skip
    single = not c.head_width and all(heads[i] == 1 for i in asking)  # one head, however wide
    wide = {c.head_width} if c.head_width else {widths[i] // heads[i] for i in asking}
    if len(wide) > 1 and not single:
        raise ValueError(f"heads of {sorted(wide)} channels: diffusers' {kind} has one width of heads for all levels; set head_width")
    return values | {
        "attention_head_dim": None if single else wide.pop(), "downsample_type": c.resize, "upsample_type": c.resize,
        "attn_norm_num_groups": c.norm_groups,
    }  # fmt: skip


def _same(kind: str, name: str, given: Any, needed: Any) -> None:
    every = list(given) if isinstance(given, list | tuple) else [given]
    if any(one != needed and (one or needed) for one in every):  # False, 0 and None say the same
        raise ValueError(f"{kind} with {name} = {given!r} cannot be read: only {needed!r} can")


def _channels(kind: str, into: int, out: int) -> tuple[int, int, bool]:
    """The latents' channels, those of pictures beside them, and whether a variance is learnt."""
    if out == 2 * into:
        return into, 0, True
    if into >= out:
        return out, into - out, False
    raise ValueError(f"{kind} with in_channels = {into}, out_channels = {out}: as many out as in, twice as many, or fewer can be read")


def _levels(kind: str, theirs: Mapping[str, Any], words: bool) -> tuple[tuple[int, ...], str]:
    """The levels with attention, and how they resize. The way up mirrors the way down."""
    down, up = list(theirs["down_block_types"]), list(theirs["up_block_types"])[::-1]
    resize = "conv" if words else theirs.get("downsample_type", "conv")
    _same(kind, "upsample_type", theirs.get("upsample_type", "conv") if not words else "conv", resize)
    asks, plain = ("CrossAttn" if words else "Attn"), ("Resnet{}sampleBlock2D" if resize == "resnet" else "{}Block2D")
    attention = []
    for level, pair in enumerate(zip(down, up, strict=True)):
        with_attention = (f"{asks}DownBlock2D", f"{asks}UpBlock2D")
        downs, ups = {plain.format("Down")}, {plain.format("Up")}
        if level == len(down) - 1:
            downs.add("DownBlock2D")  # nothing is resized there
        if level == 0:
            ups.add("UpBlock2D")
        without = set(itertools.product(downs, ups))
        if pair == with_attention:
            attention.append(level)
        elif pair not in without:
            raise ValueError(f"{kind} with {pair[0]} and {pair[1]} at level {level}: {with_attention} or {sorted(without)[0]} can be read")
    return tuple(attention), resize


def _heads(kind: str, given: Any, widths: Sequence[int], words: bool) -> tuple[int | tuple[int, ...], int]:
    """(num_heads, head_width) from the most misnamed of their settings."""
    if not words:
        if given is not None and any(width % given for width in widths):
            raise ValueError(f"{kind} with attention_head_dim = {given}: it does not divide the widths {list(widths)}")
        return (1, 0) if given is None else (Config.num_heads, given)
    heads = _short(given)
    if isinstance(heads, int):
        return heads, 0
    wide = {width // n if width % n == 0 else 0 for width, n in zip(widths, heads, strict=True)}
    return (Config.num_heads, wide.pop()) if len(wide) == 1 and 0 not in wide else (heads, 0)


def _padding(kind: str, given: int) -> bool:
    if given not in (0, 1):
        raise ValueError(f"{kind} with downsample_padding = {given}: only 1 (all around) and 0 (right and bottom) can be read")
    return given == 0


def _short(numbers: int | Sequence[int]) -> Any:
    """One number for many that are equal."""
    if isinstance(numbers, int):
        return numbers
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def _unless(value: int, default: int) -> int:
    return 0 if value == default else value


# --- tensors ------------------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """One of our tensors, and those of theirs whose rows stand in it, one below the other."""

    ours: str
    theirs: list[str]


def tensors_from_diffusers(theirs: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Their state dict under our names; attention weights of either vintage, products as 1 x 1 convolutions or as matrices.

    Raises ValueError naming the first tensor that is missing, left over or of no use beside its neighbours.
    """
    given = dict(theirs)
    for name in [name for name in given if ".attentions." in name]:
        *start, last, part = name.split(".")
        if last in _OLD:
            given[".".join([*start, _OLD[last], part])] = given.pop(name)
    ours: dict[str, Tensor] = {}
    for place in _places(config, given):
        missing = [name for name in place.theirs if name not in given]
        if missing:
            raise ValueError(f"the checkpoint lacks {missing[0]!r}, which the configuration asks for")
        parts = [given.pop(name) for name in place.theirs]
        if _is_matrix(place.ours):
            parts = [part.flatten(1) for part in parts]
        if len({part.shape[1:] for part in parts}) > 1:
            raise ValueError(f"{place.theirs[0]!r} and {place.theirs[-1]!r} of shapes {[tuple(p.shape) for p in parts]} are no one matrix")
        ours[place.ours] = parts[0] if len(parts) == 1 else torch.cat(parts)
    if given:
        raise ValueError(f"the checkpoint holds {sorted(given)[0]!r}, which the configuration does not know")
    return ours


def tensors_to_diffusers(ours: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """Our state dict under their names, products as matrices (`use_linear_projection`)."""
    theirs: dict[str, Tensor] = {}
    widths = _rows(config)
    for place in _places(config, ours):
        whole = ours[place.ours]
        rows = [len(whole) // len(place.theirs)] * len(place.theirs)
        if place.ours.startswith(("clock.modulation.", "text.")):
            rows = widths[place.ours.split(".")[0]]
        theirs.update(zip(place.theirs, whole.split(rows), strict=True))
    return theirs


def modules_in_diffusers(config: Config, ours: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """Path of a module with a weight -> the paths of theirs whose rows stand in it, one below the other. ours: the state dict."""
    weights = [place for place in _places(config, ours) if place.ours.endswith(".weight")]
    return {place.ours.removesuffix(".weight"): [name.removesuffix(".weight") for name in place.theirs] for place in weights}


def _is_matrix(name: str) -> bool:
    return name.endswith(".weight") and ".attention." in name and ".norm" not in name


class _Blocks(NamedTuple):
    """Residual blocks and transformer blocks in the order in which they are passed: (our prefix, their prefix, width)."""

    residual: list[tuple[str, str, int]]
    attentions: list[tuple[str, str, int, int]]  # and how many transformer blocks


def _blocks(c: Config) -> _Blocks:
    levels, found = len(c.multipliers), _Blocks([], [])
    blocks, depth = per_level(c.num_res_blocks, levels, "num_res_blocks"), per_level(c.depth, levels, "depth")

    def level(ours: str, theirs: str, i: int, stages: int, attends: Sequence[bool], sampler: str) -> None:
        width = c.width * c.multipliers[i]
        for j in range(stages):
            found.residual.append((f"{ours}.stages.{j}.block", f"{theirs}.resnets.{j}", width))
            if attends[j]:
                found.attentions.append((f"{ours}.stages.{j}.attention", f"{theirs}.attentions.{j}", width, depth[i]))
        if sampler and c.resize == "resnet":
            found.residual.append((f"{ours}.resize", f"{theirs}.{sampler}.0", width))

    for i in range(levels):
        level(f"down.levels.{i}", f"down_blocks.{i}", i, blocks[i], [i in c.attention] * blocks[i], "downsamplers" * (i < levels - 1))
    level("down.mid", "mid_block", levels - 1, 2, [True, False], "")
    for at, i in enumerate(reversed(range(levels))):
        level(f"up.{at}", f"up_blocks.{at}", i, blocks[i] + 1, [i in c.attention] * (blocks[i] + 1), "upsamplers" * (i > 0))
    return found


def _rows(c: Config) -> dict[str, list[int]]:
    """How the rows of what one product makes are shared out."""
    found, twice = _blocks(c), 2 if c.form == "scale_shift" else 1
    return {
        "clock": [twice * width for _, _, width in found.residual],
        "text": [width for *_, width, depth in found.attentions for _ in range(2 * depth)],
    }


def _places(c: Config, present: Mapping[str, Tensor]) -> Iterator[_Place]:
    """Every tensor of ours. A shortcut, an embedding of classes and biases of products are where the state dict at hand has them."""
    found, levels = _blocks(c), len(c.multipliers)
    words = any(name.startswith("text.") or ".attn2." in name for name in present)

    def both(ours: str, *theirs: str) -> Iterator[_Place]:
        for part in ("weight", "bias"):
            yield _Place(f"{ours}.{part}", [f"{one}.{part}" for one in theirs])

    yield from both("down.stem", "conv_in")
    yield from both("norm", "conv_norm_out")
    yield from both("head", "conv_out")
    yield from both("clock.first", "time_embedding.linear_1")
    yield from both("clock.second", "time_embedding.linear_2")
    yield from both("clock.modulation", *(f"{theirs}.time_emb_proj" for _, theirs, _ in found.residual))
    if "class_embedding.weight" in present or "label.weight" in present:
        yield _Place("label.weight", ["class_embedding.weight"])
    for ours, theirs, _ in found.residual:
        for part in ("norm1", "conv1", "norm2", "conv2"):
            yield from both(f"{ours}.{part}", f"{theirs}.{part}")
        if f"{ours}.shortcut.weight" in present or f"{theirs}.conv_shortcut.weight" in present:
            yield from both(f"{ours}.shortcut", f"{theirs}.conv_shortcut")
    if c.resize == "conv":
        for i in range(levels - 1):
            yield from both(f"down.levels.{i}.resize.conv", f"down_blocks.{i}.downsamplers.0.conv")
            yield from both(f"up.{i}.resize.conv", f"up_blocks.{i}.upsamplers.0.conv")
    if not words:
        for ours, theirs, *_ in found.attentions:
            yield from both(f"{ours}.norm", f"{theirs}.group_norm")
            yield from both(f"{ours}.qkv", *(f"{theirs}.to_{x}" for x in "qkv"))
            yield from both(f"{ours}.out", f"{theirs}.to_out.0")
        return
    each = [(f"{o}.blocks.{k}", f"{t}.transformer_blocks.{k}") for o, t, _, depth in found.attentions for k in range(depth)]
    yield _Place("text.keys_values.weight", [f"{theirs}.attn2.to_{x}.weight" for _, theirs in each for x in "kv"])
    for ours, theirs, *_ in found.attentions:
        for mine, yours in (("norm", "norm"), ("enter", "proj_in"), ("leave", "proj_out")):
            yield from both(f"{ours}.{mine}", f"{theirs}.{yours}")
    for ours, theirs in each:
        yield _Place(f"{ours}.qkv.weight", [f"{theirs}.attn1.to_{x}.weight" for x in "qkv"])
        yield _Place(f"{ours}.cross_query.weight", [f"{theirs}.attn2.to_q.weight"])
        names = {"out": "attn1.to_out.0", "cross_out": "attn2.to_out.0", "up": "ff.net.0.proj", "down": "ff.net.2"}
        for mine, yours in ({f"norm{n}": f"norm{n}" for n in (1, 2, 3)} | names).items():
            yield from both(f"{ours}.{mine}", f"{theirs}.{yours}")
