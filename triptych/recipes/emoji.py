"""The embedded default, panel by panel, in the order in which its panels are trained.

    triptych train emoji-words                                  # panel 1, on text alone
    triptych train emoji-pairs                                  # panel 1, against pictures, with an image tower
    triptych train emoji                                        # panel 2
    triptych train emoji-upscaler && triptych train emoji-upscaler-256      # panel 3

Each run writes RUN/model/; `--set text_encoder=RUN/model` hands it to the next. Without that a recipe takes the
neighbours of the embedded model, so that any one panel can be trained again alone.
"""

from __future__ import annotations

from ..recipe import Data, Family, Neighbour, Optimizer, Recipe, Source

__all__ = ["emoji", "emoji_autoencoder", "emoji_pairs", "emoji_upscaler", "emoji_upscaler_256", "emoji_words"]

PROMPTS = (
    "smiling cat with heart-eyes", "red apple", "火箭", "a blue circle left of a red square", "三个绿色的三角形",
    "fire engine", "熊猫脸", "flag: Japan",
)  # fmt: skip


def emoji_words() -> Recipe:
    """Panel 1 alone, on text without pictures: masked words over names, keywords and scene sentences in both languages.

    Two cores, 6 minutes: 384,000 texts. Of the hidden words in texts about held-out ideas 52 % were guessed.
    """
    return Recipe(
        name="emoji-words",
        panel="text_encoders",
        family=Family(name="bilingual", size="emoji"),
        task="masked_words",
        data=Data(sources=(Source(name="texts"),), size=0),
        optimizer=Optimizer(lr=2e-3, weight_decay=0.01, warmup=0.05),
        steps=1500, batch=256, validate_every=250, save_every=500,
    )  # fmt: skip


def emoji_pairs() -> Recipe:
    """Panel 1 against pictures: contrastive, with an image tower of its own; masked words go on beside it.

    Two cores, 4 minutes: 67,200 pairs. Among 96 pictures of held-out ideas and scenes the right one was first for 42 % of the texts.
    """
    return Recipe(
        name="emoji-pairs",
        panel="vision",
        family=Family(name="clip", size="small"),
        task="contrastive",
        neighbours={"text_encoder": Neighbour(model="emoji", trained=True)},
        data=Data(sources=(Source(name="emoji", weight=3.0), Source(name="scenes")), size=32),
        optimizer=Optimizer(lr=1e-3, weight_decay=0.05, warmup=0.05),
        steps=700, batch=96, validate_every=250, save_every=500,
    )  # fmt: skip


def emoji() -> Recipe:
    """Panel 2, and panel 1 with it: the modern DiT on 32 x 32 pictures (64 tokens), rectified flow.

    Words decide what is drawn only where the picture is nearly all noise. With logit-normal times of mean 0 and the velocity's loss
    534,000 pictures brought 22 % of the names; with the times and the loss below 448,000 more brought 97 %. The grain that is left then
    goes in a short run of its own, with panel 1 frozen and times of all kinds (98.7 %):

    triptych train emoji --init RUN/model --set text_encoder=RUN/model \\
        --set process.config.loss=v --set process.config.mean=0.8 --set process.config.uniform=0.3 \\
        --set optimizer.lr=6e-4 --set optimizer.decay=0.9 --set steps=1300 --set ema=0.1

    Two cores, shared with other work: 110 pictures a second, 67 and 12 minutes. The embedded model's cards tell each of its five runs, and
    docs/results/emoji.json what was reached.
    """
    return Recipe(
        name="emoji",
        panel="generators",
        family=Family(name="dit", size="emoji"),
        process=Family(name="rectified_flow", config={"target": "x0", "loss": "x0", "mean": 2.5, "std": 1.5, "uniform": 0.2}),
        neighbours={
            "text_encoder": Neighbour(model="emoji", trained=True),
            "decoder": Neighbour(family=Family(name="identity", size="32")),
        },
        data=Data(sources=(Source(name="emoji", weight=2.6, options={"single_share": 0.8}), Source(name="scenes")), size=32),
        optimizer=Optimizer(name="muon", lr=1e-3, warmup=0.02, decay=0.4),
        steps=7000, batch=64, ema=0.06, validate_every=500, preview_every=1000, save_every=250,
        preview_prompts=PROMPTS,
        sampling={"steps": 20, "guidance": 2.0},
    )  # fmt: skip


def emoji_upscaler() -> Recipe:
    """Panel 3, first step: 32 to the artwork's own 128, small pictures corrupted as generated ones are.

    One core, 15 minutes: 24,000 pictures. On held-out artwork and scenes 31.4 dB, where bicubic enlargement has 24.8.
    """
    return Recipe(
        name="emoji-upscaler",
        panel="decoders",
        family=Family(name="upscaler", size="emoji"),
        task="upscale",
        task_options={"stage": 0},
        data=Data(sources=(Source(name="emoji", weight=3.0), Source(name="scenes")), size=128),
        optimizer=Optimizer(lr=2e-3),
        steps=1500, batch=16, validate_every=250, preview_every=500, save_every=500,
    )  # fmt: skip


def emoji_upscaler_256() -> Recipe:
    """Panel 3, second step: 128 to 256, learnt on drawn scenes, which have a true large version. One core, 13 minutes: 2,400 pictures."""
    return Recipe(
        name="emoji-upscaler-256",
        panel="decoders",
        family=Family(name="upscaler", size="emoji"),
        task="upscale",
        task_options={"stage": 1},
        init="emoji",
        data=Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=256),
        optimizer=Optimizer(lr=2e-3),
        steps=300, batch=8, validate_every=100, preview_every=300, save_every=300,
    )  # fmt: skip


def emoji_autoencoder() -> Recipe:
    """A KL autoencoder over the artwork, 64 x 64 to 8 x 8 x 8: the panel 3 of latent diffusion, small.

    One core, 6 minutes: 24,000 pictures. Held-out pictures come back at 23.5 dB, soft but whole.
    """
    return Recipe(
        name="emoji-autoencoder",
        panel="decoders",
        family=Family(name="autoencoder_kl", size="emoji"),
        task="kl",
        data=Data(sources=(Source(name="emoji", weight=3.0), Source(name="scenes")), size=64),
        optimizer=Optimizer(lr=5e-4, warmup=0.05),
        steps=1500, batch=16, validate_every=250, preview_every=500, save_every=500,
    )  # fmt: skip
