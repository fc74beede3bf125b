"""Diffusion, from DDPM to Stable Diffusion: every system trained small, with the same steps, on the same pictures.

    triptych train --all diffusion             # one after another; run again, it goes on where it stopped
    triptych train ddpm                        # one of them

Pictures are 32 x 32: drawn scenes for systems that hear no words, scenes and emoji where words are the point. A budget is 8,000 steps
of 64 pictures; the classifier that guides, the autoencoder and the text tower have their own, and `sd` (64 x 64) learns longer. What was
reached stands in each card.
"""

from __future__ import annotations

from typing import Any

from ..recipe import Data, Family, Guide, Neighbour, Optimizer, Recipe, Source

__all__ = [
    "kl", "ddpm", "improved_ddpm", "edm", "ncsn", "adm_classifier", "adm", "adm_clip", "pixel_text", "ldm", "ldm_joint", "layout",
    "inpainting", "semantic", "super_resolution", "sd_clip", "sd",
]  # fmt: skip

SCENES = (Source(name="scenes"),)
EVERY = (Source(name="scenes", options={"all_compositions": True}),)  # where classes are heard: one never shown says nothing
PAIRS = (Source(name="emoji", weight=2.0, options={"single_share": 0.8}), Source(name="scenes"))
PIXELS = {"decoder": Neighbour(family=Family(name="identity", size="32"))}
SILENT = Neighbour(family=Family(name="label", size="unconditional"))
LATENTS = {"decoder": Neighbour(model="kl")}
WORDS = {"text_encoder": Neighbour(model="emoji")}
SAID = (
    "a red circle left of a blue square", "红色的圆", "three green triangles", "a large yellow star above a ring", "火箭", "red apple",
    "a purple heart", "smiling cat with heart-eyes",
)  # fmt: skip
SLIM = {"width": 12, "head_width": 12, "norm_groups": 6}  # all of these together are to fit into 8 MB
ADM = SLIM | {"form": "scale_shift", "resize": "resnet", "attention": (1, 2), "learn_sigma": True, "text": "none"}
BY_V = Family(name="ddpm", size="ddpm", config={"target": "v"})  # by eps, the colours of super-resolution drifted
# Drawn where eps is guessed under a cosine schedule. At t = 1 eps says next to nothing of x0, and what it says wrong tints the picture, so
# the chain starts below. N = 100, seed 0, FD from t = 1 and so: improved-ddpm 113, 80; adm 112, 75; adm-clip 102, 75; pixel-text 119, 90.
COSINE = {"sampler": "ddpm", "steps": 50, "threshold": "static", "spacing": "leading"}


def _system(name: str, process: Family, *, unet: dict[str, Any] | None = None, size: str = "scenes", **changes: Any) -> Recipe:
    """What all of them share: the U-Net, the pictures, the steps."""
    shared: dict[str, Any] = {
        "neighbours": {"text_encoder": SILENT, **PIXELS},
        "data": Data(sources=SCENES, size=32),
        "dropout": 0.0,
        "preview_prompts": ("",) * 8,
        "steps": 8000,
    }
    return Recipe(
        name=name, panel="generators", family=Family(name="unet", size=size, config=unet or {}), process=process,
        optimizer=Optimizer(lr=2e-3, warmup=0.02, decay=0.4),
        batch=64, ema=0.08, validate_every=500, preview_every=1000, save_every=250,
        **{**shared, **changes},
    )  # fmt: skip


# --- panel 3 of latent systems ------------------------------------------------------------------------------------------------


def kl() -> Recipe:
    """Panel 3 of every latent system here: 64 x 64 pictures to 16 x 16 x 4 latents, and 32 x 32 ones to 8 x 8 x 4.

    One core, shared with other work, 13 minutes: 56,000 pictures. Held-out pictures come back at 30.5 dB.
    """
    return Recipe(
        name="kl",
        panel="decoders",
        family=Family(name="autoencoder_kl", size="small"),
        task="kl",
        data=Data(sources=PAIRS, size=64),
        optimizer=Optimizer(lr=1e-3, warmup=0.03, decay=0.6),
        steps=3500, batch=16, validate_every=250, preview_every=500, save_every=250,
    )  # fmt: skip


# --- pixels, no words ---------------------------------------------------------------------------------------------------------


def ddpm() -> Recipe:
    """DDPM (arXiv 2006.11239): noise is what is predicted, a chain of 1,000 steps what draws. DDIM draws with the same weights."""
    return _system("ddpm", Family(name="ddpm", size="ddpm"), sampling={"sampler": "ddpm", "steps": 250, "threshold": "static"})


def improved_ddpm() -> Recipe:
    """Improved DDPM (arXiv 2102.09672): the cosine schedule, and a variance that is learnt too, so that few steps suffice."""
    process = Family(name="ddpm", size="improved")
    return _system("improved-ddpm", process, unet={"learn_sigma": True}, sampling=COSINE)


def edm() -> Recipe:
    """EDM (arXiv 2206.00364): preconditioned, noise drawn log-normally, Heun's method."""
    return _system("edm", Family(name="edm"), sampling={"steps": 18})


def ncsn() -> Recipe:
    """NCSN (arXiv 1907.05600, 2006.09011): denoising score matching at fifty sizes of noise, annealed Langevin dynamics."""
    return _system("ncsn", Family(name="ncsn", size="scenes"), sampling={"repeats": 10, "threshold": "static"})


# --- a class, words, guides ---------------------------------------------------------------------------------------------------


def _one_thing() -> Data:
    return Data(
        sources=(Source(name="scenes", options={"form": "one", "all_compositions": True}),),
        size=32,
        ports=(Source(name="label", options={"of": "color shape"}),),
    )


def _classes() -> list[str]:
    from ..data.ports import class_names

    return list(class_names("color shape", cutouts=False))


def adm_classifier() -> Recipe:
    """The classifier of noised pictures whose gradient guides ADM (arXiv 2105.05233, section 4): half a U-Net, attention pool."""
    return Recipe(
        name="adm-classifier",
        panel="vision",
        family=Family(name="noisy_classifier", size="scenes", config={"num_classes": len(_classes()), "multipliers": (1, 1, 2)}),
        task_options={"process": "ddpm", "process_config": {"beta_schedule": "cosine"}},
        neighbours=PIXELS,
        data=_one_thing(),
        optimizer=Optimizer(lr=1e-3, weight_decay=0.05, warmup=0.02, decay=0.5),
        steps=4000, batch=64, validate_every=500, save_every=250,
    )  # fmt: skip


def adm() -> Recipe:
    """ADM (arXiv 2105.05233): AdaGN, blocks that resize, attention at two scales, a class; and its classifier as a guide."""
    words, guide = Neighbour(family=Family(name="label", config={"labels": _classes()})), Neighbour(model="adm-classifier")
    return _system(
        "adm", Family(name="ddpm", size="improved"), unet=ADM, data=_one_thing(),
        neighbours={"text_encoder": words, "guide": guide, **PIXELS},
        preview_prompts=("red circle", "蓝色方块", "green star", "yellow heart", "purple ring", "红色三角形", "orange cross", "diamond"),
        guide=Guide(scale=2.0), sampling=COSINE,
    )  # fmt: skip


def adm_clip() -> Recipe:
    """ADM without a class, and a CLIP for a guide: words are heard by the guide alone (arXiv 2112.10741, section 2.4)."""
    return _system(
        "adm-clip", Family(name="ddpm", size="improved"), unet=ADM,
        guide=Guide(scale=30.0, eyes="triptych-eyes-v1"), sampling=COSINE,
    )  # fmt: skip


def pixel_text() -> Recipe:
    """Text to pixels with classifier-free guidance (arXiv 2112.10741, 2207.12598): GLIDE's two ways in, for words and for their summary.

    Drawn by the chain, with a static threshold, for a dynamic one greys pictures that are mostly white.
    """
    return _system(
        "pixel-text", Family(name="ddpm", size="improved", config={"loss": "simple", "variance": "fixed_small"}),
        neighbours={**WORDS, **PIXELS}, data=Data(sources=PAIRS, size=32), dropout=0.1, preview_prompts=SAID,
        sampling=COSINE | {"guidance": 3.0},
    )  # fmt: skip


# --- latents ------------------------------------------------------------------------------------------------------------------


def _latent(name: str, *, target: str = "eps", **changes: Any) -> Recipe:
    """A U-Net with cross-attention on 8 x 8 x 4 latents, noised as Stable Diffusion's are; it hears words one by one, and no summary.

    target: what the network guesses; eps as latent diffusion and SD 1.x have it, v as SD 2.x has it.
    """
    process = Family(name="ddpm", size="sd", config={} if target == "eps" else {"target": target})
    shared: dict[str, Any] = {
        "neighbours": {**WORDS, **LATENTS}, "data": Data(sources=PAIRS, size=32), "dropout": 0.1, "preview_prompts": SAID,
        "sampling": {"sampler": "ddim", "steps": 50, "guidance": 3.0},
    }  # fmt: skip
    unet = {"width": 20, "head_width": 10, "norm_groups": 4, "pooled": False} | changes.pop("unet", {})
    return _system(name, process, size="scenes-latent", unet=unet, **{**shared, **changes})


def ldm() -> Recipe:
    """Latent diffusion (arXiv 2112.10752) with panel 1 frozen, as Stable Diffusion has it."""
    return _latent("ldm")


def ldm_joint() -> Recipe:
    """Latent diffusion with panel 1 trained together with panel 2, as LDM did: a small BERT that nobody taught words before."""
    words = Family(name="bert", size="scenes", config={"vocab": 1024, "width": 48, "num_heads": 4, "depth": 2})
    return _latent("ldm-joint", neighbours={"text_encoder": Neighbour(family=words, trained=True), **LATENTS})


def layout() -> Recipe:
    """Boxes to pictures: a transformer reads them, cross-attention hears it (arXiv 2112.10752, section 4.3.1). The authors never showed
    how their boxes were made; these are the scenes', or a COCO file's (data source `coco`).

    It guesses v: by eps, with the same budget, things stood at places that followed the seed, not the boxes (32 % of pictures all right,
    and by v 48 %; `scripts/measure_diffusion.py --models layout` of either, embedded; N = 500).
    """
    from ..data.ports import class_names

    labels = list(class_names("color shape"))
    known = {"labels": labels, "num_labels": len(labels), "vocab": len(labels) + 33 * 33 + 1, "width": 48}
    words = Family(name="layout", size="scenes", config=known)
    data = Data(sources=EVERY, size=32, ports=(Source(name="boxes", options={"of": "color shape"}),))
    heard = {"text_encoder": Neighbour(family=words, trained=True), **LATENTS}
    return _latent("layout", target="v", neighbours=heard, data=data)


def inpainting() -> Recipe:
    """A part drawn anew: the masked picture's latents and the mask stand beside x_t (arXiv 2112.10752, section 4.5). It guesses v: of 500
    pictures 13 % came out all right, by eps 7 % (`scripts/measure_diffusion.py --models inpainting` of either, embedded)."""
    words = Family(name="picture", size="masked", config={"size": 8, "channels": 4})
    data = Data(sources=SCENES, size=32, ports=(Source(name="hole"),))
    sampling = {"sampler": "ddim", "steps": 50}
    return _latent("inpainting", target="v", neighbours={"text_encoder": Neighbour(family=words), **LATENTS}, data=data, sampling=sampling)


def semantic() -> Recipe:
    """A map of who covers which pixel, to pixels: classes are mixed into few channels that stand beside x_t (section 4.3.2)."""
    from ..data.ports import class_names

    labels = ("background|背景", *class_names("color shape"))
    words = Family(name="picture", size="semantic", config={"labels": list(labels), "num_classes": len(labels)})
    return _system(
        "semantic", BY_V, unet=SLIM,
        neighbours={"text_encoder": Neighbour(family=words, trained=True), **PIXELS},
        data=Data(sources=EVERY, size=32, ports=(Source(name="semantic_map", options={"of": "color shape"}),)),
        dropout=0.1, sampling={"sampler": "ddim", "steps": 50, "threshold": "static"},
    )  # fmt: skip


def super_resolution() -> Recipe:
    """8 x 8 to 32 x 32, the small picture spoilt as BSRGAN spoils it: it stands enlarged beside x_t (SR3, arXiv 2104.07636)."""
    return _system(
        "super-resolution", BY_V, unet=SLIM,
        neighbours={"text_encoder": Neighbour(family=Family(name="picture", size="low_resolution")), **PIXELS},
        data=Data(sources=PAIRS, size=32, ports=(Source(name="low_resolution", options={"factor": 4, "degradation": "bsr"}),)),
        sampling={"sampler": "ddim", "steps": 50, "threshold": "static"},
    )  # fmt: skip


# --- Stable Diffusion ---------------------------------------------------------------------------------------------------------


def sd_clip() -> Recipe:
    """Stable Diffusion's panel 1: the text tower of a CLIP, 77 tokens, trained against pictures."""
    words = Family(name="clip", config={"vocab": 2048, "width": 64, "depth": 3, "num_heads": 4, "pad": "end"})  # as SD hears it
    return Recipe(
        name="sd-clip",
        panel="vision",
        family=Family(name="clip", size="small"),
        task="contrastive",
        task_options={"masked_weight": 0.0},  # its words are learnt from pictures alone
        neighbours={"text_encoder": Neighbour(family=words, trained=True)},
        data=Data(sources=PAIRS, size=32),
        optimizer=Optimizer(lr=1e-3, weight_decay=0.05, warmup=0.05, decay=0.5),
        steps=2500, batch=96, validate_every=500, save_every=250,
    )  # fmt: skip


def sd() -> Recipe:
    """Stable Diffusion (arXiv 2112.10752), small: CLIP's words, 64 x 64 pictures as 16 x 16 x 4 latents, DDPM training, DDIM sampling.

    It guesses eps, as SD 1.x does. By v (`--set process.config.target=v`), as SD 2.x has it, single things come out clearer to the eye, but
    no measure is better beyond its interval: FD 8.3 against 6.6, CLIP score 62.6 against 64.0, everything right in 2.2 % against 1.8 %
    (`scripts/measure_diffusion.py --models sd` of either, embedded; N = 500).
    """
    return _latent(
        "sd", unet={"width": 24, "multipliers": (1, 2), "attention": (0, 1), "head_width": 12, "norm_groups": 8},
        neighbours={"text_encoder": Neighbour(model="sd-clip"), **LATENTS}, data=Data(sources=PAIRS, size=64), steps=12000,
    )  # fmt: skip
