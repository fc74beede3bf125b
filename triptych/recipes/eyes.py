"""The eyes that come with the package: what judges look through.

triptych train eyes-clip                  # pictures and words of two languages
triptych train eyes-detr                  # what there is in a scene, where, of which colour
"""

from __future__ import annotations

from ..recipe import Data, Family, Neighbour, Optimizer, Recipe, Source

__all__ = ["eyes_clip", "eyes_detr", "eyes_mae"]

VARY = {"jitter": 0.12, "halvings": 1, "noise": 0.15}
DRAWINGS = (Source(name="emoji", weight=3.0, options={"single_share": 0.5}), Source(name="scenes"), Source(name="openclipart"))


def eyes_clip() -> Recipe:
    """A CLIP of 64 x 64 pictures with a text encoder of its own, which starts from the default's. Needs Debian's openclipart-png, -svg.

    One core, shared with other work, 90 minutes: 499,000 pairs. Of held-out combinations the right picture is among the nearest five of all
    3,635 for 98.8 %, in English and in Chinese; of single ideas never seen for 3 and 9 % (docs/results/eyes.json).
    """
    return Recipe(
        name="eyes-clip",
        panel="vision",
        family=Family(name="clip", size="eyes"),
        task_options={"vary": VARY, "masked_weight": 0.1},
        neighbours={"text_encoder": Neighbour(model="emoji", trained=True)},
        data=Data(sources=DRAWINGS, size=64),
        optimizer=Optimizer(lr=1e-3, weight_decay=0.05, warmup=0.05, decay=0.5),
        steps=2600, batch=192, validate_every=500, save_every=250,
    )  # fmt: skip


def eyes_detr() -> Recipe:
    """A DETR of scenes, 128 x 128: 48 kinds of things, and the colour of those that were drawn in one.

    One core, shared with other work, 75 minutes: 277,000 pictures, in three runs, the first without `recolor` and `ink` (the card tells
    each; docs/decisions/0011 why they came). Of 500 held-out scenes of one to three things 98.4 % are read right in all respects.
    """
    from ..data.graph import CLASSES

    return Recipe(
        name="eyes-detr",
        panel="vision",
        family=Family(name="detr", size="scenes", config={"labels": list(CLASSES)}),
        task_options={"nothing": 0.3, "vary": {"halvings": 2, "noise": 0.15}, "recolor": 0.5},
        data=Data(sources=(Source(name="scenes"),), size=128),
        optimizer=Optimizer(lr=5e-4, weight_decay=1e-4, warmup=0.03, decay=0.5, clip=0.5),
        steps=17000, batch=16, validate_every=500, save_every=500,
    )  # fmt: skip


def eyes_mae() -> Recipe:
    """An MAE as large as the CLIP's image tower, on the same pictures without words: the other candidate for measuring distances.

    One core, shared with other work, 25 minutes: 288,000 pictures. It sees damage better than the CLIP and a wrong colour not at all.
    """
    return Recipe(
        name="eyes-mae",
        panel="vision",
        family=Family(name="mae", size="eyes"),
        data=Data(sources=DRAWINGS, size=64),
        optimizer=Optimizer(lr=1e-3, weight_decay=0.05, warmup=0.05, decay=0.5),
        steps=1500, batch=192, validate_every=500, preview_every=500, save_every=500,
        preview_prompts=("",),
    )  # fmt: skip
