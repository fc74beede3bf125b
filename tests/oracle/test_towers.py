"""ViT, ResNet and CLIP against transformers, through folders that it saved: the same random weights, the same output.

CLIP's ResNet tower has no counterpart there: its pooling is checked against torch's multi-head attention, its convolutions by
what each means. The hybrid's stem is checked against BiT's, and the tokenizer against CLIPTokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from triptych import catalog, checkpoint
from triptych.contracts import ConditionSpec
from triptych.interop import transformers_folder
from triptych.vision.clip import CLIP, SIZES, AttentionPool, Bottleneck, Config, ModifiedResNet

transformers = pytest.importorskip("transformers")


def randomised(module: nn.Module, seed: int = 1) -> Any:
    """Random weights everywhere, biases and running statistics too, and large enough that every branch is heard in the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        scale = 1.2 * tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.3
        drawn = scale * torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            drawn = 1 + drawn.abs()
        elif "norm" in name and name.endswith("weight"):
            drawn = 1 + drawn
        elif name.endswith("logit_scale"):
            drawn = torch.tensor(1.3)
        tensor.data = drawn
    return module.eval()


def saved(theirs: Any, folder: Path) -> transformers_folder.Reading:
    theirs.save_pretrained(folder)
    return transformers_folder.read(folder)


def built(part: transformers_folder.Part, kind: str, **neighbours: Any) -> Any:
    if kind == "text_encoders":
        neighbours["assets"] = part.assets
    module = catalog.build(kind, part.family, part.config, **neighbours)
    checkpoint.fill(module, part.tensors, "the folder")
    return module.eval()


def relative_error(mine: Tensor, yours: Tensor) -> float:
    assert mine.shape == yours.shape and yours.std() > 0.05
    return ((mine - yours).norm() / yours.norm()).item()


# --- ViT ----------------------------------------------------------------------------------------------------------------

VIT = {
    "3 heads, patch 5": {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 50, "image_size": 15,
                         "patch_size": 5},
    "no qkv bias, wide pooler": {"hidden_size": 20, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 31,
                                 "image_size": 24, "patch_size": 3, "qkv_bias": False, "pooler_output_size": 33},
    "quick GELU, one patch": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 8, "intermediate_size": 64,
                              "image_size": 7, "patch_size": 7, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
}  # fmt: skip


@pytest.mark.parametrize("settings", VIT.values(), ids=VIT)
@torch.no_grad()
def test_vit(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = randomised(transformers.ViTModel(transformers.ViTConfig(**settings)))
    reading = saved(theirs, tmp_path)
    mine = built(reading.parts["vision"], "vision")
    pixels = torch.randn(3, 3, settings["image_size"], settings["image_size"])
    yours = theirs(pixels)
    assert relative_error(mine.features(pixels), yours.last_hidden_state) <= 1e-5
    assert relative_error(mine.pooled(pixels), yours.pooler_output) <= 1e-5
    assert mine.image_size == settings["image_size"]
    with pytest.raises(ValueError, match="no head"):
        mine.classify(pixels)


@torch.no_grad()
def test_vit_classifier(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**VIT["3 heads, patch 5"], id2label={0: "cat", 1: "dog", 2: "owl"})
    theirs = randomised(transformers.ViTForImageClassification(config))
    reading = saved(theirs, tmp_path)
    pixels = torch.randn(2, 3, 15, 15)
    assert relative_error(built(reading.parts["vision"], "vision").classify(pixels), theirs(pixels).logits) <= 1e-5
    assert reading.labels == ("cat", "dog", "owl")


PUBLISHED = {"ViT-B/16": (197, 768, 12, 86_567_656), "ViT-L/16": (197, 1024, 24, 304_326_632), "ViT-H/14": (257, 1280, 32, 632_045_800)}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_vit(size: str) -> None:
    """Table 1 of the paper: 86 M, 307 M and 632 M parameters (ImageNet's head of 1000 included, the paper rounds L up)."""
    length, width, depth, count = PUBLISHED[size]
    with torch.device("meta"):
        network = catalog.build("vision", "vit", size=size)
        pixels = torch.empty(2, 3, 224, 224)
        patches = network.patches(pixels)
        assert patches.flatten(2).shape == (2, width, length - 1)
        assert network.features(pixels).shape == (2, length, width) and network.classify(pixels).shape == (2, 1000)
    assert sum(p.numel() for p in network.parameters()) == count and len(network.blocks) == depth
    assert width // network.blocks[0].num_heads == (80 if size == "ViT-H/14" else 64)
    if size == "ViT-B/16":  # a patch of 16 x 16 x 3 has as many values as a token
        assert network.patches.weight[0].numel() == 768 and network.blocks[0].num_heads == 12


# --- the hybrid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [32, 37, 50])
@torch.no_grad()
def test_the_hybrids_stem_is_bit(side: int) -> None:
    config = transformers.BitConfig(
        embedding_size=12, hidden_sizes=[64, 96, 160], depths=[2, 1, 2], layer_type="bottleneck", global_padding="same", num_groups=4,
        embedding_dynamic_padding=True,
    )  # fmt: skip
    theirs = randomised(transformers.BitModel(config))
    mine = catalog.build("vision", "resnet", {"stem_width": 12, "widths": (64, 96, 160), "depths": (2, 1, 2), "norm_groups": 4}).eval()
    given = {}
    for name, tensor in theirs.state_dict().items():
        name = name.replace("embedder.convolution", "stem.conv").replace("embedder.norm", "stem.norm").replace("encoder.", "")
        name = name.replace(".layers.", ".").replace("downsample", "shortcut")
        for n in (1, 2, 3):
            name = name.replace(f".conv{n}.", f".convs.{n - 1}.conv.").replace(f".norm{n}.", f".convs.{n - 1}.norm.")
        given[name] = tensor
    # Theirs ends with a norm of the pre-activation kind, which a bottleneck of this kind has no use for.
    checkpoint.fill(mine, {name: tensor for name, tensor in given.items() if not name.startswith("norm.")}, "bit")
    pixels = torch.randn(2, 3, side, side)
    yours = theirs(pixels, output_hidden_states=True).hidden_states[1:]
    for one, other in zip(mine.pyramid(pixels), yours, strict=True):
        assert relative_error(one, other) <= 1e-5


def test_the_hybrid_reads_a_map_of_14_x_14() -> None:
    """R50 with its fourth stage moved into the third (section 4.1): as many tokens as B/16, 98.7 M parameters."""
    with torch.device("meta"):
        network = catalog.build("vision", "vit", size="R50+ViT-B/16")
        pixels = torch.empty(1, 3, 224, 224)
        assert network.stem.pyramid(pixels)[-1].shape == (1, 1024, 14, 14) and network.patches.kernel_size == (1, 1)
        assert network.features(pixels).shape == (1, 197, 768)
    assert sum(p.numel() for p in network.parameters()) == 98_659_112


@torch.no_grad()
def test_a_small_hybrid_is_its_stem_and_its_vit() -> None:
    hybrid = randomised(catalog.build("vision", "vit", {"image_size": 48, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2,
                                                       "stem": (1, 1)}))  # fmt: skip
    pixels = torch.randn(2, 3, 48, 48)
    patches_BLD = rearrange(hybrid.patches(hybrid.stem.pyramid(pixels)[-1]), "b d h w -> b (h w) d")
    assert patches_BLD.shape == (2, 36, 16)
    x_BLD = torch.cat([hybrid.class_D.expand(2, 1, -1), patches_BLD], dim=1) + hybrid.position_LD
    torch.testing.assert_close(hybrid.features(pixels), hybrid.norm(hybrid.blocks[0](x_BLD)))
    with pytest.raises(ValueError, match="stride of its stem's stages, 8"):
        catalog.build("vision", "vit", {"image_size": 48, "patch_size": 4, "stem": (1, 1)})


# --- ResNet -------------------------------------------------------------------------------------------------------------

RESNET = {
    "basic, 3 stages": {"embedding_size": 6, "hidden_sizes": [10, 14, 9], "depths": [2, 1, 3], "layer_type": "basic"},
    "bottleneck": {"embedding_size": 8, "hidden_sizes": [12, 20, 28, 32], "depths": [2, 2, 1, 1], "layer_type": "bottleneck"},
    "version 1, early stride": {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [1, 2], "layer_type": "bottleneck",
                                "downsample_in_bottleneck": True, "downsample_in_first_stage": True},
}  # fmt: skip


@pytest.mark.parametrize("settings", RESNET.values(), ids=RESNET)
@pytest.mark.parametrize("size", [(64, 64), (71, 50)])
@torch.no_grad()
def test_resnet(settings: dict[str, Any], size: tuple[int, int], tmp_path: Path) -> None:
    theirs = randomised(transformers.ResNetModel(transformers.ResNetConfig(**settings)))
    mine = built(saved(theirs, tmp_path).parts["vision"], "vision")
    pixels = torch.randn(3, 3, *size)
    yours = theirs(pixels, output_hidden_states=True)
    assert relative_error(mine.features(pixels), rearrange(yours.last_hidden_state, "b c h w -> b (h w) c")) <= 1e-5
    assert relative_error(mine.pooled(pixels), yours.pooler_output.flatten(1)) <= 1e-5
    for one, other in zip(mine.pyramid(pixels), yours.hidden_states[1:], strict=True):
        assert relative_error(one, other) <= 1e-5


@torch.no_grad()
def test_resnet_in_training_mode_and_its_head(tmp_path: Path) -> None:
    theirs = randomised(transformers.ResNetForImageClassification(transformers.ResNetConfig(**RESNET["bottleneck"], num_labels=5)))
    mine = built(saved(theirs, tmp_path).parts["vision"], "vision")
    pixels = torch.randn(4, 3, 64, 64)
    assert relative_error(mine.classify(pixels), theirs(pixels).logits) <= 1e-5
    assert relative_error(mine.train().classify(pixels), theirs.train()(pixels).logits) <= 1e-5  # by the batch's own statistics
    assert relative_error(mine.eval().classify(pixels), theirs.eval()(pixels).logits) <= 1e-5  # which moved the running ones


@pytest.mark.parametrize(
    "size, count, blocks",
    [("resnet18", 11_689_512, 8), ("resnet34", 21_797_672, 16), ("resnet50", 25_557_032, 16), ("resnet101", 44_549_160, 33)],
)
def test_published_resnet(size: str, count: int, blocks: int) -> None:
    """Table 1 of the paper, and the parameters of the implementations in use: ResNet-50 25.6 M, 23.5 M without its head."""
    with torch.device("meta"):
        network = catalog.build("vision", "resnet", size=size)
        maps = network.pyramid(torch.empty(1, 3, 224, 224))
    assert [tuple(one.shape[1:]) for one in maps] == [(c, s, s) for c, s in zip(network.config.widths, (56, 28, 14, 7), strict=True)]
    assert sum(p.numel() for p in network.parameters()) == count and sum(map(len, network.stages)) == blocks
    if size == "resnet50":
        assert count - sum(p.numel() for p in network.head.parameters()) == 23_508_032


# --- CLIP ---------------------------------------------------------------------------------------------------------------

TEXT = {"vocab_size": 99, "eos_token_id": 98, "bos_token_id": 97, "pad_token_id": 98}
CLIPS = {
    "as published": (
        {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 40, "max_position_embeddings": 13},
        {"hidden_size": 20, "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 33, "image_size": 21, "patch_size": 7},
    ),
    "GELU, end before the highest id": (
        {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 1, "intermediate_size": 64, "max_position_embeddings": 9,
         "hidden_act": "gelu", "eos_token_id": 50},
        {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16, "patch_size": 16,
         "hidden_act": "gelu", "layer_norm_eps": 1e-3},
    ),
    "eos_token_id 2: the highest id ends": (
        {"hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 50, "max_position_embeddings": 20,
         "eos_token_id": 2},
        {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48, "image_size": 10, "patch_size": 2},
    ),
}  # fmt: skip


@pytest.mark.parametrize("text, vision", CLIPS.values(), ids=CLIPS)
@torch.no_grad()
def test_clip(text: dict[str, Any], vision: dict[str, Any], tmp_path: Path) -> None:
    config = transformers.CLIPConfig(text_config={**TEXT, **text}, vision_config=vision, projection_dim=14)
    theirs = randomised(transformers.CLIPModel(config))
    reading = saved(theirs, tmp_path)
    words = built(reading.parts["text_encoder"], "text_encoders")
    eyes = built(reading.parts["vision"], "vision", condition=words.gives)
    pixels = torch.randn(3, 3, vision["image_size"], vision["image_size"])
    length = text["max_position_embeddings"]
    ids = torch.randint(3, 48, (4, length), generator=torch.Generator().manual_seed(0))
    end = 98 if text.get("eos_token_id", 98) == 2 else text.get("eos_token_id", 98)
    for row, last in enumerate((2, 5, length - 1, 3)):
        ids[row, last:] = end  # theirs pads with the token that ends
    if end == 50:
        ids[0, -1] = 98  # a higher id behind the end is not taken for it
    yours, said = theirs(input_ids=ids, pixel_values=pixels), words.condition(ids)
    assert relative_error(said.tokens_BLD, yours.text_model_output.last_hidden_state) <= 1e-5
    assert relative_error(eyes.features(pixels), yours.vision_model_output.last_hidden_state) <= 1e-5
    image_BE, text_BE = eyes.encode_image(pixels), eyes.encode_text(said)
    assert relative_error(image_BE, theirs.get_image_features(pixels).pooler_output) <= 1e-5
    assert relative_error(text_BE, theirs.get_text_features(ids).pooler_output) <= 1e-5
    image_BE, text_BE = F.normalize(image_BE, dim=-1), F.normalize(text_BE, dim=-1)
    assert relative_error(image_BE, yours.image_embeds) <= 1e-5 and relative_error(text_BE, yours.text_embeds) <= 1e-5
    assert relative_error(eyes.scale() * image_BE @ text_BE.T, yours.logits_per_image) <= 1e-5
    score_B = eyes(pixels, None, said.rows([0, 1, 2])) * eyes.scale()
    torch.testing.assert_close(score_B, yours.logits_per_image.diagonal(), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_text_tower_alone(tmp_path: Path) -> None:
    """As Stable Diffusion keeps it."""
    theirs = randomised(transformers.CLIPTextModel(transformers.CLIPTextConfig(**TEXT, **CLIPS["as published"][0])))
    reading = saved(theirs, tmp_path)
    assert set(reading.parts) == {"text_encoder"}
    ids = torch.tensor([[97, 4, 8, 98, 98]])
    yours, mine = theirs(ids), built(reading.parts["text_encoder"], "text_encoders").condition(ids)
    assert relative_error(mine.tokens_BLD, yours.last_hidden_state) <= 1e-5
    assert relative_error(mine.pooled_BD, yours.pooler_output) <= 1e-5


def test_published_clip() -> None:
    """The parameters of OpenAI's models, both towers: ViT-B/32, ViT-B/16, ViT-L/14 and RN50."""
    published = {
        "ViT-B/32": ("ViT-B/32", 50, 151_277_313), "ViT-B/16": ("ViT-B/32", 197, 149_620_737), "ViT-L/14": ("ViT-L/14", 257, 427_616_513),
        "RN50": ("ViT-B/32", 49, 102_007_137),
    }  # fmt: skip
    for size, (words, length, count) in published.items():
        with torch.device("meta"):
            text = catalog.build("text_encoders", "clip", size=words)
            eyes = catalog.build("vision", "clip", size=size, condition=text.gives)
            pixels = torch.empty(2, 3, 224, 224)
            assert eyes.features(pixels).shape == (2, length, 2048 if size == "RN50" else eyes.config.width)
            assert eyes.encode_image(pixels).shape == (2, {"RN50": 1024, "ViT-L/14": 768}.get(size, 512))
            said = text.condition(torch.zeros(2, 77, dtype=torch.int64))
            assert eyes(pixels, None, said).shape == (2,)
        assert sum(p.numel() for panel in (text, eyes) for p in panel.parameters()) == count, size


# --- CLIP's ResNet, by definition ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("positions, width, heads", [(4, 24, 3), (9, 32, 1), (1, 16, 8)])
@torch.no_grad()
def test_attention_pooling(positions: int, width: int, heads: int) -> None:
    """Against torch's own multi-head attention, as OpenAI's code calls it: the mean is the one query."""
    pool = randomised(AttentionPool(positions, width, heads))
    out = randomised(nn.Linear(width, 10), seed=2)
    x_BLD = torch.randn(3, positions, width)
    x_LBD = rearrange(torch.cat([x_BLD.mean(1, keepdim=True), x_BLD], dim=1) + pool.position_LD, "b l d -> l b d")
    yours, _ = F.multi_head_attention_forward(
        query=x_LBD[:1], key=x_LBD, value=x_LBD, embed_dim_to_check=width, num_heads=heads, in_proj_weight=pool.qkv.weight,
        in_proj_bias=pool.qkv.bias, bias_k=None, bias_v=None, add_zero_attn=False, dropout_p=0.0, out_proj_weight=torch.eye(width),
        out_proj_bias=torch.zeros(width), training=False, need_weights=False,
    )  # fmt: skip
    assert relative_error(out(pool(x_BLD)), out(yours[0])) <= 1e-5


@torch.no_grad()
def test_strides_are_averages() -> None:
    """Shifted by less than the stride, an average keeps its mean; and a block of stride 2 is one of stride 1 on averaged parts."""
    block = randomised(Bottleneck(6, 4, 2))
    x = torch.randn(2, 6, 8, 8)
    y = F.relu(block.norm1(F.conv2d(x, block.conv1.weight)))
    y = F.relu(block.norm2(F.conv2d(y, block.conv2.weight, padding=1)))
    mean = lambda z: rearrange(z, "b c (h p) (w q) -> b c h w (p q)", p=2, q=2).mean(-1)  # noqa: E731
    y = block.norm3(F.conv2d(mean(y), block.conv3.weight))
    torch.testing.assert_close(block(x), F.relu(y + block.shortcut[1](F.conv2d(mean(x), block.shortcut[0].weight))))
    assert not any(conv.stride != (1, 1) for conv in block.modules() if isinstance(conv, nn.Conv2d))


@torch.no_grad()
def test_modified_resnet_and_its_projection() -> None:
    network = ModifiedResNet(8, (2, 1, 1, 2)).eval()
    convs = [layer for layer in network.stem if isinstance(layer, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels, conv.stride[0]) for conv in convs] == [(3, 4, 2), (4, 4, 1), (4, 8, 1)]
    sides, x = [], network.stem(torch.randn(1, 3, 64, 64))
    for stage in network.stages:
        x = stage(x)
        sides.append((x.shape[1], x.shape[-1]))
    assert sides == [(32, 16), (64, 8), (128, 4), (256, 2)]
    config = Config(tower="resnet", image_size=64, patch_size=32, width=8, depth=(1, 1, 1, 1), num_heads=4, embed=12)
    clip = randomised(CLIP(config, condition=ConditionSpec(pooled=6)))
    pixels = torch.randn(2, 3, 64, 64)
    assert clip.features(pixels).shape == (2, 4, 256) and clip.pooled(pixels).shape == (2, 256)
    torch.testing.assert_close(clip.encode_image(pixels), F.linear(clip.pool(clip.features(pixels)), clip.image_projection.weight,
                                                                  clip.image_projection.bias))  # fmt: skip
    for wrong in ({"depth": 4}, {"patch_size": 16}, {"num_heads": 7}):
        with pytest.raises(ValueError, match=r"ResNet tower|heads"):
            catalog.build("vision", "clip", {**config.__dict__, **wrong}, condition=ConditionSpec(pooled=6))
    with pytest.raises(ValueError, match="is a ResNet's"):
        CLIP(Config(depth=(1, 1, 1, 1)), condition=ConditionSpec(pooled=6))


# --- the tokenizer ------------------------------------------------------------------------------------------------------

SAID = ["a photo of a cat", "A  Photo,of\nthe CAT's 2024 hats!!", "", "红色的圆形 ❤️ naïve café", "it's we'll don't", "a" * 40]


def tokenizer_files(folder: Path) -> tuple[Path, Any]:
    """A small tokenizer of ours as vocab.json and merges.txt, and theirs of the same."""
    from triptych.text_encoders import _clip_bpe

    model = json.loads(_clip_bpe.learn(SAID * 2, 700))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    return folder, transformers.CLIPTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


def test_the_tokenizer_is_theirs(tmp_path: Path) -> None:
    folder, theirs = tokenizer_files(tmp_path)
    pair = {name: (folder / name).read_bytes() for name in ("vocab.json", "merges.txt")}
    theirs.save_pretrained(folder / "theirs")
    for assets in (pair, {"tokenizer.json": (folder / "theirs" / "tokenizer.json").read_bytes()}):
        mine = catalog.build("text_encoders", "clip", {"vocab": 700, "width": 8, "depth": 1, "num_heads": 1}, assets=assets)
        ids_BL, mask_BL = mine.ids(SAID)
        yours = theirs(SAID, padding=True, return_tensors="pt")
        assert torch.equal(ids_BL, yours["input_ids"]) and torch.equal(mask_BL, yours["attention_mask"].bool())
        again = catalog.build("text_encoders", "clip", mine.config, assets=mine.assets())
        assert torch.equal(again.ids(SAID)[0], ids_BL)


@torch.no_grad()
def test_clip_with_words(tmp_path: Path) -> None:
    """The whole way of a folder: prompts and pictures to the same logits."""
    _, tokenizer = tokenizer_files(tmp_path)
    text, vision = CLIPS["as published"]
    text = {**text, "vocab_size": 700, "max_position_embeddings": 40, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(text_config={**text, "bos_token_id": 0}, vision_config=vision, projection_dim=8)
    theirs = randomised(transformers.CLIPModel(config))
    tokenizer.save_pretrained(tmp_path)
    reading = saved(theirs, tmp_path)
    words = built(reading.parts["text_encoder"], "text_encoders")
    eyes = built(reading.parts["vision"], "vision", condition=words.gives)
    pixels, prompts = torch.randn(2, 3, 21, 21), SAID[:4]
    image_BE, text_BE = eyes.encode_image(pixels), eyes.encode_text(words.encode(prompts))
    yours = theirs(**tokenizer(prompts, padding=True, return_tensors="pt"), pixel_values=pixels).logits_per_text
    assert relative_error(eyes.scale() * F.normalize(text_BE, dim=-1) @ F.normalize(image_BE, dim=-1).T, yours) <= 1e-5


# --- folders ------------------------------------------------------------------------------------------------------------


def test_how_pictures_are_prepared(tmp_path: Path) -> None:
    """(height, width, fit, shorter, longer, mean, std, filter)"""
    theirs = transformers.ViTModel(transformers.ViTConfig(**VIT["3 heads, patch 5"]))
    half = (0.5,) * 3
    assert saved(theirs, tmp_path).preprocessing == (15, 15, "stretch", 0, 0, half, half, "bicubic")  # nothing said: as published
    said = {"size": {"shortest_edge": 20}, "crop_size": {"height": 15, "width": 15}, "do_center_crop": True, "resample": 2}
    write = lambda values: (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))  # noqa: E731
    write(said | {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 4]})
    assert transformers_folder.read(tmp_path).preprocessing == (15, 15, "crop", 20, 0, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0), "bilinear")
    write({"size": 224, "crop_size": 224, "do_center_crop": True, "do_normalize": False})
    assert transformers_folder.read(tmp_path).preprocessing == (224, 224, "crop", 224, 0, (0.0,) * 3, (1.0,) * 3, "bicubic")
    write({"size": {"shortest_edge": 224}, "crop_pct": 0.875})
    assert transformers_folder.read(tmp_path).preprocessing[:4] == (224, 224, "crop", 256)
    write({"size": {"shortest_edge": 800, "longest_edge": 1333}})
    assert transformers_folder.read(tmp_path).preprocessing[2:5] == ("shorter", 800, 1333)
    write({"size": {"height": 20, "width": 30}})
    with pytest.raises(ValueError, match="only squares"):
        transformers_folder.read(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {"size": {"height": 8, "width": 8}}}))
    assert transformers_folder.read(tmp_path).preprocessing[:3] == (8, 8, "stretch")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    theirs = transformers.ViTModel(transformers.ViTConfig(**VIT["3 heads, patch 5"]))
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    weights = (tmp_path / "model.safetensors").read_bytes()

    def refused(match: str, **changed: Any) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(ValueError, match=match):
            transformers_folder.read(tmp_path)

    refused("model_type 'vitt' cannot be read; did you mean 'vit'", model_type="vitt")
    refused("lacks 'layers.3", num_hidden_layers=4)
    refused("holds 'layers.2", num_hidden_layers=2)
    refused("hidden_act = 'relu'", hidden_act="relu")
    refused("num_channels = 1", num_channels=1)
    refused("only squares", image_size=[15, 20])
    (tmp_path / "model.safetensors").write_bytes(weights[:-5])
    refused("not a whole safetensors file")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    refused("a pickle, which can run code")
    (tmp_path / "config.json").write_text("[1]")
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(ValueError, match="expected an object"):
        transformers_folder.read(tmp_path)


def test_weights_in_several_files(tmp_path: Path) -> None:
    theirs = transformers.ViTModel(transformers.ViTConfig(**VIT["3 heads, patch 5"]))
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="8KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = (transformers_folder.read(tmp_path / name).parts["vision"] for name in ("one", "many"))
    assert one.config == many.config and all(torch.equal(tensor, many.tensors[name]) for name, tensor in one.tensors.items())


def test_sizes_here_are_the_configurations_there() -> None:
    """transformers' defaults are ViT-B/16, ResNet-50 and CLIP ViT-B/32."""
    config = transformers.CLIPVisionConfig()
    mine = SIZES["ViT-B/32"]
    assert (mine.width, mine.depth, mine.num_heads, mine.patch_size) == (
        config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.patch_size)  # fmt: skip
    assert (mine.width * mine.mlp_ratio, mine.activation, mine.eps) == (config.intermediate_size, config.hidden_act, config.layer_norm_eps)
