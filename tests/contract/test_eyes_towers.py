"""What ViT, ResNet and CLIP promise beside what every family does: towers in all their kinds, the shared classification task, and
CLIP's text tower."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.contract import tiny
from triptych import catalog, checkpoint
from triptych.contracts import Batch, Condition, ConditionSpec, Prompt, Rng
from triptych.recipe import Family, Optimizer, Recipe
from triptych.text_encoders.clip import CLIPText, NextWord, PromptTooLong
from triptych.training import Report, train
from triptych.vision._classify import Classification
from triptych.vision.clip import Contrastive

SPEC = ConditionSpec(pooled=12, width=8)
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit", {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "num_classes": 6}),
    "vit with pooler": ("vit", {"image_size": 15, "patch_size": 5, "width": 16, "depth": 1, "num_heads": 4, "pooler": 9, "num_classes": 6}),
    "hybrid": ("vit", {"image_size": 32, "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "stem": (1,), "num_classes": 6}),
    "resnet, basic": ("resnet", {"image_size": 32, "stem_width": 8, "widths": (8, 12), "depths": (1, 2), "block": "basic",
                                 "num_classes": 6}),
    "resnet, groups": ("resnet", {"image_size": 32, "stem_width": 8, "widths": (16, 32), "depths": (1, 1), "norm_groups": 4,
                                  "num_classes": 6}),
    "clip, plain": ("clip", {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "embed": 10}),
    "clip, published": ("clip", {"image_size": 16, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "embed": 10, "tower": "clip",
                                 "activation": "quick_gelu"}),
    "clip, resnet": ("clip", {"image_size": 32, "patch_size": 32, "width": 4, "depth": (1, 1, 1, 1), "num_heads": 4, "embed": 10,
                              "tower": "resnet"}),
}  # fmt: skip


def tower(which: str) -> Any:
    family, fields = TOWERS[which]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return tiny.awake(catalog.build("vision", family, fields, condition=SPEC)).eval()


def seen(panel: Any, rows: int = 3) -> Tensor:
    return torch.randn(rows, 3, panel.image_size, panel.image_size, generator=torch.Generator().manual_seed(1))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("which", TOWERS)
@torch.no_grad()
def test_a_tower_gives_tokens_and_one_vector(which: str) -> None:
    panel = tower(which)
    pixels = seen(panel)
    answers = {"features": panel.features, "pooled": panel.pooled}
    answers |= {"encode_image": panel.encode_image} if hasattr(panel, "encode_image") else {"classify": panel.classify}
    shapes = {"features": 3, "pooled": 2, "encode_image": 2, "classify": 2}
    for name, ask in answers.items():
        out = ask(pixels)
        assert len(out) == 3 and out.ndim == shapes[name] and out.dtype == torch.float32 and out.isfinite().all() and out.std() > 0, name
        for i in range(3):
            close(ask(pixels[i : i + 1]), out[i : i + 1])
    if "encode_image" in answers:
        assert panel.encode_image(pixels).shape == (3, 10) and not torch.allclose(panel.encode_image(pixels).norm(dim=1), torch.ones(3))
    else:
        assert panel.classify(pixels).shape == (3, 6)


@pytest.mark.parametrize("which", TOWERS)
def test_a_tower_is_kept(which: str, tmp_path: Path) -> None:
    panel = tower(which)
    family, _ = TOWERS[which]
    checkpoint.save_panel(tmp_path / "vision", panel, kind="vision", name=family, config=panel.config, card={}, dtype=torch.float32)
    again = checkpoint.load_panel(tmp_path, "vision", condition=SPEC)
    assert again.config == panel.config and torch.equal(again.features(seen(panel)), panel.features(seen(panel)))


@pytest.mark.parametrize("which", TOWERS)
def test_every_part_of_a_tower_learns(which: str) -> None:
    panel = tower(which).train()
    pixels = seen(panel, 6)
    if TOWERS[which][0] == "clip":
        said = Condition(pooled_BD=torch.randn(6, 12))
        (panel.scale() * panel(pixels, None, said)).square().sum().backward()
    else:
        Classification(panel).losses(batch(pixels, range(6)), "main", 0, Rng.of_seeds(range(6)))["loss"].backward()
    silent = [name for name, p in panel.named_parameters() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()]
    assert not silent


def test_only_batch_norm_looks_at_the_batch() -> None:
    """With groups a row in training is the row alone, and so it is in the hybrid, whose stem has them."""
    for which, alone in (("resnet, groups", True), ("hybrid", True), ("resnet, basic", False)):
        panel = tower(which).train()
        pixels = seen(panel)
        with torch.no_grad():
            assert torch.allclose(panel.pooled(pixels)[:1], panel.pooled(pixels[:1]), atol=1e-5) == alone, which


def test_what_does_not_fit_is_refused() -> None:
    for family, fields, match in (
        ("vit", {"image_size": 30}, "no multiple of patch_size 16"),
        ("vit", {"width": 30, "num_heads": 4}, "does not split into 4 heads"),
        ("resnet", {"depths": (1, 2)}, "4 widths and 2 depths"),
        ("resnet", {"widths": (6, 8, 8, 8)}, "width 6 does not split"),
        ("resnet", {"norm_groups": 32, "stem_width": 48}, "width 48 does not split"),
        ("clip", {"width": 30, "num_heads": 4}, "does not split into 4 heads"),
    ):
        with pytest.raises(ValueError, match=match):
            catalog.build("vision", family, fields, condition=SPEC)
    with pytest.raises(ValueError, match="24 x 16; this ViT looks at 16 x 16"):
        tower("vit").features(torch.zeros(1, 3, 16, 24))
    with pytest.raises(ValueError, match="no head"):
        catalog.build("vision", "resnet", {**TOWERS["resnet, basic"][1], "num_classes": 0}).classify(torch.zeros(1, 3, 32, 32))


# --- classification -----------------------------------------------------------------------------------------------------


def batch(images: Tensor, labels: Sequence[int | str]) -> Batch:
    return Batch(index=tuple(range(len(images))), images_BCHW=images, prompts=tuple(map(Prompt.of, labels)))


def test_labels_and_names_are_classes() -> None:
    panel = tower("vit")
    task = Classification(panel, classes=("cat", "dog", "owl"))
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1  # averaged down to 16 x 16
    rng = Rng.of_seeds(range(3))
    named, numbered = (task.losses(batch(images, said), "main", 0, rng) for said in (["dog", "owl", "cat"], [1, 2, 0]))
    assert torch.equal(named["loss"], numbered["loss"])
    logits = panel.classify(torch.nn.functional.avg_pool2d(images, 2))
    close(named["loss"], torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2, 0])))
    held_out = task.validate(batch(images, [1, 2, 0]))
    assert held_out.keys() == {"loss", "right", "right_5"} and (held_out["right_5"] >= held_out["right"]).all()
    close(held_out["loss"].mean(), named["loss"])
    assert Classification(panel, smoothing=0.3).losses(batch(images, [1, 2, 0]), "main", 0, rng)["loss"] != named["loss"]
    for said, match in ((["fox"] * 3, "'fox' has no label"), ([1, 6, 0], "label 6, the head has 6"), ([-1, 0, 0], "count from 0")):
        with pytest.raises(ValueError, match=match):
            task.losses(batch(images, said), "main", 0, rng)
    with pytest.raises(ValueError, match="7 classes are named, the head has 6"):
        Classification(panel, classes=tuple("abcdefg"))
    with pytest.raises(ValueError, match="no head"):
        Classification(catalog.build("vision", "resnet", {"widths": (8,), "depths": (1,)}))
    with pytest.raises(ValueError, match="texts alone"):
        task.losses(Batch(index=(0,), prompts=(Prompt(label=0),)), "main", 0, rng)


class Stripes:
    """Endless 32 x 32 pictures: class 0 changes along the rows, class 1 along the columns; brightness and place are drawn."""

    def batch(self, seed: int, step: int, batch_size: int) -> Batch:
        index = tuple(range(step * batch_size, (step + 1) * batch_size))
        rng = Rng.of_samples(seed, index)
        phase_B, label_B = rng.uniform("phase") * 6.28, (rng.uniform("label") > 0.5).long()
        wave_B1HW = (torch.arange(32) * 0.8 + phase_B[:, None, None, None]).sin().expand(-1, 3, 32, 32)
        images = torch.where(label_B[:, None, None, None] == 0, wave_B1HW.transpose(2, 3), wave_B1HW)
        return Batch(index=index, images_BCHW=images, prompts=tuple(Prompt(label=int(n)) for n in label_B), keys=tuple(map(str, index)))

    def examples(self, n: int, seed: int = 0) -> Batch:
        return self.batch(seed + 1, 0, n)


@pytest.mark.parametrize("which", ["vit", "resnet, basic"])
def test_the_one_trainer_trains_a_classifier(which: str, tmp_path: Path) -> None:
    family, fields = TOWERS[which]
    recipe = Recipe(
        name="stripes", panel="vision", family=Family(name=family, config=fields), task="classify", steps=40, batch=16, compile=False,
        precision="float32", validate_every=40, save_every=40, optimizer=Optimizer(lr=3e-3),
    )  # fmt: skip
    train(recipe, out=tmp_path, data=Stripes(), held_out=Stripes(), report=Report(quiet=True), device="cpu")  # type: ignore[arg-type]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["right"] for line in lines if line["kind"] == "held_out"][-1] >= 0.9
    trained = checkpoint.load_panel(tmp_path / "model", "vision")
    shown = Stripes().batch(7, 0, 32)
    assert Classification(trained).validate(shown)["right"].mean() >= 0.9


# --- CLIP's text tower --------------------------------------------------------------------------------------------------

TEXTS = ["a red circle", "a blue circle", "a red square left of a blue star", "红色的圆形", "三个绿色的三角形", "Don't walk"]


def words(**changed: Any) -> CLIPText:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        panel = catalog.build("text_encoders", "clip", {"vocab": 600, "width": 16, "depth": 2, "num_heads": 2, **changed})
    panel.learn_vocabulary(TEXTS * 2)
    return tiny.awake(panel).eval()  # type: ignore[return-value]


@torch.no_grad()
def test_words_hear_only_what_was_said_before() -> None:
    panel = words()
    one, other = (panel.encode([text]) for text in ("a red circle", "a red star"))
    assert one.tokens_BLD is not None and other.tokens_BLD is not None and one.ids_BL is not None and other.ids_BL is not None
    same = int((one.ids_BL[0, :3] == other.ids_BL[0, :3]).sum())
    assert same == 3 and torch.allclose(one.tokens_BLD[0, :same], other.tokens_BLD[0, :same], atol=1e-6)
    assert not torch.allclose(one.tokens_BLD[0, same], other.tokens_BLD[0, same], atol=1e-3)
    torch.testing.assert_close(one.pooled_BD, one.tokens_BLD[:, -1])  # the state of [end]
    null = panel.null(["a", "b"])
    assert null.ids_BL is not None and null.ids_BL.tolist() == [[panel.tokenizer.start, panel.tokenizer.end]] * 2  # type: ignore[union-attr]


@torch.no_grad()
def test_where_a_prompt_ends() -> None:
    """By a token's number, whatever stands behind it; or at the highest number, as OpenAI's code has it."""
    by_number, by_height = words(end=7), words()
    ids = torch.tensor([[1, 5, 7, 9, 7], [1, 7, 3, 3, 3]])
    for panel, places in ((by_number, (2, 1)), (by_height, (3, 1))):
        said = panel.condition(ids)
        assert said.tokens_BLD is not None and said.pooled_BD is not None
        for i, at in enumerate(places):
            assert torch.equal(said.pooled_BD[i], said.tokens_BLD[i, at])


def test_a_prompt_that_is_too_long_says_what_was_not_read() -> None:
    panel = words(context_length=6)
    with pytest.warns(PromptTooLong, match=r"reads 4; not read: 'Star behind'") as caught:
        cond = panel.encode(["a red  circle blue Star behind"])
    assert caught[0].filename == __file__ and cond.ids_BL is not None and cond.ids_BL.shape == (1, 6)
    assert cond.ids_BL[0, -1] == panel.tokenizer.end  # type: ignore[union-attr]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        panel.encode(["a red circle", "\ud83d", "<|endoftext|>"[:3]])
    with pytest.raises(ValueError, match="7 tokens, where this text encoder reads 6"):
        panel.condition(torch.zeros(1, 7, dtype=torch.int64))


def test_nothing_in_a_prompt_is_a_command() -> None:
    panel = words()
    ids = panel.ids(["a <|endoftext|> red <|startoftext|>"])[0][0].tolist()
    assert panel.tokenizer is not None
    assert ids[0] == ids.count(panel.tokenizer.start) * panel.tokenizer.start and ids.index(panel.tokenizer.end) == len(ids) - 1
    assert panel.ids(["RED Circle"])[0].tolist() == panel.ids(["red\n circle "])[0].tolist()


def test_a_vocabulary_is_learnt_once_and_kept() -> None:
    panel = words()
    again = catalog.build("text_encoders", "clip", panel.config, assets=panel.assets())
    assert torch.equal(again.ids(TEXTS)[0], panel.ids(TEXTS)[0])
    with pytest.raises(ValueError, match="has a vocabulary"):
        panel.learn_vocabulary(TEXTS)
    empty = catalog.build("text_encoders", "clip", dataclasses.replace(panel.config, vocab=500))
    assert not empty.has_vocabulary and empty.assets() == {}
    for do, match in (
        (lambda: empty.encode(["a"]), "no vocabulary yet"),
        (lambda: empty.learn_vocabulary(TEXTS), "500 is too small"),
        (lambda: panel.encode([]), "0 prompts"),
        (lambda: catalog.build("text_encoders", "clip", empty.config, assets=panel.assets()), "embedding 500 rows"),
        (lambda: catalog.build("text_encoders", "clip", assets={"vocab.json": b"{}"}), "this is no tokenizer"),
        (lambda: catalog.build("text_encoders", "clip", assets={"vocab.json": b"{}", "merges.txt": b""}), "no <|startoftext|>"),
        (lambda: catalog.build("text_encoders", "clip", {"context_length": 2}), "no room for a word"),
    ):
        with pytest.raises(ValueError, match=match.replace("|", r"\|")):
            do()


def test_next_words_are_guessed_and_padding_is_not() -> None:
    panel = words()
    task = NextWord(panel)
    together = task.validate(Batch(index=(0, 1, 2), prompts=tuple(map(Prompt.of, ["a red circle", "", TEXTS[2]]))))
    for i, text in enumerate(["a red circle", "", TEXTS[2]]):
        close(task.validate(Batch(index=(0,), prompts=(Prompt(text=text),)))["loss"][0], together["loss"][i])


def test_clips_own_words_find_their_pictures() -> None:
    """The published pair, small: pictures and words from nothing, six of each."""
    text = words().train().requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        eyes: nn.Module = catalog.build("vision", "clip", TOWERS["clip, published"][1], condition=text.gives)
    with pytest.raises(ValueError, match="no masked_words"):
        Contrastive(eyes, neighbours={"text_encoder": text})  # type: ignore[arg-type]
    task = Contrastive(eyes, neighbours={"text_encoder": text}, masked_weight=0.0)  # type: ignore[arg-type]
    shown = batch(torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1, TEXTS)
    optimizer = torch.optim.AdamW(task.trainable("main").values(), lr=3e-3)
    for step in range(60):
        optimizer.zero_grad()
        task.losses(shown, "main", step, Rng.of_seeds(range(6)))["loss"].backward()
        optimizer.step()
        task.after_step("main", step)
    assert task.validate(shown)["image_to_text_1"].mean() == 1.0
