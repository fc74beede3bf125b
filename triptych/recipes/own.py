"""A person's own pictures, and the smallest run there is."""

from __future__ import annotations

from ..recipe import Data, Family, Neighbour, Optimizer, Recipe, Source

__all__ = ["own", "tiny"]


def own() -> Recipe:
    """The embedded generator, fine-tuned on your folder of captioned pictures.

    triptych train own --data DIR            # about 5 minutes on two cores
    triptych generate "..." --model RUN/model
    """
    return Recipe(
        name="own",
        panel="generators",
        family=Family(name="dit", size="emoji"),
        process=Family(name="rectified_flow", config={"target": "x0", "loss": "x0", "mean": 2.5, "std": 1.5, "uniform": 0.2}),
        init="emoji",
        neighbours={"text_encoder": Neighbour(model="emoji"), "decoder": Neighbour(model="emoji")},
        data=Data(sources=(Source(name="folder", options={"path": "my-pictures"}),), size=32),
        optimizer=Optimizer(lr=3e-4, warmup=0.05),
        steps=400, batch=32, validate_every=100, preview_every=200, save_every=200,
        sampling={"steps": 20, "guidance": 2.5},
    )  # fmt: skip


def tiny() -> Recipe:
    """Three tiny panels on drawn scenes: shows in under a minute that everything runs. It does not draw well.

    triptych train tiny
    """
    return Recipe(
        name="tiny",
        panel="generators",
        family=Family(name="dit", size="tiny"),
        process=Family(name="rectified_flow"),
        task_options={"vocabulary_texts": 5000},
        neighbours={
            "text_encoder": Neighbour(family=Family(name="bilingual", size="tiny"), trained=True),
            "decoder": Neighbour(family=Family(name="identity", size="tiny")),
        },
        data=Data(sources=(Source(name="scenes", options={"cutouts": False}),), size=16),
        optimizer=Optimizer(lr=2e-3),
        steps=200, batch=32, compile=False, validate_every=100, preview_every=100, save_every=100,
        preview_prompts=("a red circle", "三个绿色的三角形"),
    )  # fmt: skip
