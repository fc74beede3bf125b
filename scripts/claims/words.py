"""Text encoders that claims teach before anything is drawn, the U-Net that hears them, and what is asked of its pictures.

A text encoder is taught once, by the one trainer, in RUNS/NAME-STEPS-SEED, where it goes on if it was stopped, and generators take it from
there frozen: claims that need the same one share it, as they share arms (`chains.py`). All of them hear as many texts, names of emoji and
sentences of scenes; a CLIP's tower hears as many captions, each with its picture.

Shape legend: N pictures.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scripts.claims import chains
from triptych import catalog, checkpoint
from triptych.recipe import Family, Neighbour, Recipe
from triptych.recipes import diffusion, words

__all__ = ["CAPTIONS", "PLACE", "bert", "clip", "gpt", "listening", "sizes", "t5", "taught", "told", "unlearnt"]

PLACE = "text_encoder"
WIDTH, HEADS, DEPTH = 112, 4, 2  # of SIZES["scenes"] of bert, gpt and t5
CAPTIONS = words.bert_words().batch  # texts of a step


# --- text encoders ------------------------------------------------------------------------------------------------------------


def t5(width: int = WIDTH) -> Recipe:
    """T5's encoder, two layers of any width; 112 is the size "scenes"."""
    recipe = words.t5_words()
    return replace(recipe, family=replace(recipe.family, config={"width": width, "head_width": width // HEADS}))


def bert() -> Recipe:
    return words.bert_words()


def gpt() -> Recipe:
    return words.gpt_words()


def clip() -> Recipe:
    """The recipe `sd-clip` with a text tower of the others' size, whose padding nobody hears; its words are learnt from pictures alone."""
    config = {"vocab": 2048, "width": WIDTH, "depth": DEPTH, "num_heads": HEADS, "context_length": 48}
    return replace(diffusion.sd_clip(), neighbours={PLACE: Neighbour(family=Family(name="clip", config=config), trained=True)})


def taught(name: str, recipe: Recipe, args: Any, report: dict[str, Any] | None = None) -> Path:
    """Teach it args.words steps of CAPTIONS texts, or what is left of them; its model. The report's `encoders` are told of it."""
    steps = 2 if args.quick else args.words * CAPTIONS // recipe.batch
    few = {**recipe.task_options, "vocabulary_texts": 300}
    model, _, held_out = chains.learnt(name, recipe, args, steps, task_options=few)
    panel = checkpoint.load_panel(model, PLACE)
    if report is not None:
        report.setdefault("encoders", {})[name] = {**chains.costs(panel.card, held_out, "texts"), **sizes(panel)}
    return model


def sizes(panel: Any) -> dict[str, int]:
    """parameters, and how many of them are not the table of the words."""
    every = sum(p.numel() for p in panel.parameters())
    return {"parameters": every, "inner": every - panel.embedding.weight.numel()}


def unlearnt(name: str, recipe: Recipe, known: Path, args: Any) -> Path:
    """The text encoder of the recipe as it was before it learnt anything, with the words of one that did: same tokens, new weights."""
    folder = args.runs / f"{name}-{args.seed}"
    if not checkpoint.has_panel(known, PLACE):
        raise ValueError(f"{known} holds no text encoder whose words could be taken")
    if not (folder / PLACE / "card.json").is_file():
        assets = checkpoint.load_panel(known, PLACE).assets()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            panel = catalog.build(recipe.panel, recipe.family.name, dict(recipe.family.config), size=recipe.family.size, assets=assets)
        said = {"recipe": None, "note": "as it was built: nothing learnt but its vocabulary"}
        checkpoint.save_panel(folder / PLACE, panel, kind=recipe.panel, name=recipe.family.name, config=panel.config, card=said)
    return folder


# --- what hears them ------------------------------------------------------------------------------------------------------------


def listening(model: str | Path, width: int = 16, *, trained: bool = False) -> Recipe:
    """The recipe `pixel-text` on scenes alone, 32 x 32, predicting v: a U-Net of this width that hears this model's text encoder."""
    heard = {**diffusion.pixel_text().neighbours, PLACE: Neighbour(model=str(model), trained=trained)}
    return chains.changed(diffusion.pixel_text(), process=chains.CLEAR, unet={"width": width}, data=diffusion.ddpm().data, neighbours=heard)


# --- in words -------------------------------------------------------------------------------------------------------------------


def told(report: Mapping[str, Any]) -> tuple[str, str]:
    """How long text encoders learnt before, as rows say it, in English and Chinese."""
    took = [one["minutes"] for one in report["encoders"].values()]
    spans, texts = f"{min(took):.1f}-{max(took):.1f}", f"{report['words'] * CAPTIONS:,}"
    return f"text encoders taught before, {texts} texts each ({spans} minutes)", f"文本编码器先各学 {texts} 条文本（{spans} 分钟）"
