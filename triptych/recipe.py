"""What is trained, on what, how, for how long, and what it must reach: one plain dataclass, checked before data is touched.

A shipped recipe is a function in `triptych/recipes/` that returns a `Recipe`; a person's own is a YAML file with the same
fields. Both take `--set a.b=c`. An unknown or wrong field is an error that names its path, the value and the nearest right name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from .catalog import names, nearest

__all__ = [
    "Buckets", "Data", "Family", "Guide", "Lora", "Neighbour", "Optimizer", "Recipe", "Source", "from_mapping", "from_yaml", "override",
    "to_mapping", "to_yaml",
]  # fmt: skip

_strict = ConfigDict(extra="forbid")
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Bound = Annotated[str, Field(pattern=r"^(<=|>=) *-?[0-9.]+(e-?[0-9]+)?$")]

_NEIGHBOURS = {"text_encoder": "text_encoders", "decoder": "decoders"}  # places that --set fills by one word, and their families' kind


@dataclass(frozen=True, kw_only=True, config=_strict)
class Family:
    """A family by its catalog name: a named size, with single fields of its Config replaced."""

    name: str
    size: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_strict)
class Neighbour:
    """Another panel that this training needs: taken from a model, or made new. Frozen unless `trained`."""

    model: str | None = None  # an embedded model's name or a folder; its panel of this place is taken
    family: Family | None = None  # or a family, built with the recipe's seed
    trained: bool = False


@dataclass(frozen=True, kw_only=True, config=_strict)
class Source:
    """One source of the mixture. weight: its share of the draws (shares are normalised)."""

    name: str  # "emoji", "scenes", "folder", "texts"
    weight: Annotated[float, Field(gt=0)] = 1.0
    options: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, config=_strict)
class Buckets:
    """Pictures of many shapes, each in one near its own, about as large as data.size squared: batches are of one shape each.

    step: sides are multiples of it (what the panels divide by).  slimmest: how many times as long as wide.
    upscale: enlarge what is smaller than its bucket; else it stays out, and is counted.
    """

    step: Annotated[int, Field(ge=1, le=256)] = 8
    slimmest: Annotated[float, Field(ge=1, le=16)] = 2.0
    upscale: bool = False


@dataclass(frozen=True, kw_only=True, config=_strict)
class Data:
    """sources: drawn from by weight.  size: the pictures' side in pixels (0 = texts alone).

    ports: what else is said of each row than its words ("label", "low_resolution", "hole"...), in this order; they have no weight.
    buckets: of a person's own pictures; None = each stands whole in a square.
    """

    sources: tuple[Source, ...] = (Source(name="emoji"),)
    size: Annotated[int, Field(ge=0, le=4096)] = 32
    ports: tuple[Source, ...] = ()
    buckets: Buckets | None = None


@dataclass(frozen=True, kw_only=True, config=_strict)
class Optimizer:
    """Warm-up, flat, decay. lr: peak. warmup, decay: fractions of the steps. clip: of the gradient's norm, 0 = off."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup: Fraction = 0.02
    decay: Fraction = 0.3
    clip: Annotated[float, Field(ge=0)] = 1.0


@dataclass(frozen=True, kw_only=True, config=_strict)
class Guide:
    """What pulls when the exported model draws: eyes that hear words, by a model's name, or without them the critic of
    `neighbours.guide`. scale: how strongly."""

    scale: Annotated[float, Field(ge=0)]
    eyes: str | None = None


@dataclass(frozen=True, kw_only=True, config=_strict)
class Lora:
    """Thin matrices beside the products of a generator that has learnt, in place of its weights (arXiv 2106.09685); it needs `init`.

    rank: how thin.  alpha: how much they weigh, alpha / rank; None = the rank.
    targets: ends of products' paths ("qkv", "mlp.up"); none = the projections of all attentions.
    """

    rank: Positive
    alpha: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, config=_strict)
class Recipe:
    """One run.

    panel: which panel is trained ("text_encoders", "generators", "decoders", "vision").
    task: of the family's TASKS; "" = its first.  task_options: arguments of that task.
    neighbours: by place: "text_encoder", "generator", "decoder", "guide".
    expect: measure, held-out or a judge's, -> what it must reach, checked at the end and told in the card: {"loss": "<= 0.3"}.
    """

    name: str
    panel: Literal["text_encoders", "generators", "decoders", "vision"]
    family: Family
    task: str = ""
    task_options: dict[str, Any] = Field(default_factory=dict)
    process: Family | None = None  # generators only; None where `init` is a folder of diffusers: that of its scheduler
    neighbours: dict[str, Neighbour] = Field(default_factory=dict)
    data: Data = Field(default_factory=Data)
    optimizer: Optimizer = Field(default_factory=Optimizer)
    steps: Positive = 1000
    batch: Positive = 64
    seed: int = 0
    init: str | None = None  # a model to start from, ours or diffusers': its panel of this place, with a fresh optimizer
    lora: Lora | None = None  # learn beside the weights of `init`, which stay as they are
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: bool = True  # torch.compile the training step, where a C++ compiler is at hand
    ema: Annotated[float, Field(ge=0, le=0.28)] = 0.1  # relative length of the power-function average, 0 = off
    dropout: Fraction = 0.1  # how often the condition is dropped (classifier-free guidance)
    validate_every: Positive = 1000
    preview_every: Positive = 1000
    save_every: Positive = 1000
    keep: Positive = 2  # checkpoints kept
    preview_prompts: tuple[str, ...] = ()
    sampling: dict[str, Any] = Field(default_factory=dict)  # the exported model's defaults: steps, guidance, sampler...
    guide: Guide | None = None  # of the exported model
    judges: tuple[str, ...] = ()  # look at drawn pictures while training ("objects", "distribution"...); the first says which are best
    judge_every: Positive = 1000  # steps; also at the end
    judge_pictures: Positive = 64  # drawn for them at a time, always of the same words and seeds
    eyes: str | None = None  # a model's name or folder, through which they look; None = the embedded ones, where they are needed
    detector: str | None = None  # the same for "objects"
    expect: dict[str, Bound] = Field(default_factory=dict)


_adapter = TypeAdapter(Recipe)


def from_mapping(values: Mapping[str, Any]) -> Recipe:
    """Checked. Raises ValueError naming each wrong field's path, its value and what is allowed."""
    try:
        return _adapter.validate_python(dict(values))
    except ValidationError as error:
        raise ValueError("; ".join(_explain(e) for e in error.errors())) from None


def from_yaml(path: str | Path) -> Recipe:
    """A recipe from a YAML file. Raises ValueError for YAML that is broken or no mapping."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no recipe: expected fields such as 'name' and 'panel'; see `triptych show RECIPE`")
    return from_mapping(values)


def to_mapping(recipe: Recipe) -> dict[str, Any]:
    return _adapter.dump_python(recipe, mode="json")


def to_yaml(recipe: Recipe) -> str:
    """What `triptych show RECIPE` prints, and `triptych train FILE.yaml` reads."""
    import yaml

    return yaml.safe_dump(to_mapping(recipe), sort_keys=False, allow_unicode=True, width=120)


def override(recipe: Recipe, settings: Sequence[str]) -> Recipe:
    """`["optimizer.lr=1e-4", "data.size=64"]`. The value is read as YAML. Raises ValueError for a path that is not there.

    "text_encoder=bert/scenes" puts a new one of that family and size there, which learns with the panel, "text_encoder=RUN/model" a
    model's, frozen. So does "decoder=", where a new one is frozen too (a family without weights: identity).
    """
    import yaml

    values = to_mapping(recipe)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting!r} lacks '='; write a.b=value")
        if path.strip() in _NEIGHBOURS:
            _child(values["neighbours"], path.strip(), path)
            values["neighbours"][path.strip()] = _neighbour(path.strip(), text.strip())
            continue
        at: Any = values
        *parents, last = path.strip().split(".")
        for part in parents:
            at = at[int(part)] if isinstance(at, list) and part.isdigit() and int(part) < len(at) else _child(at, part, path)
        if isinstance(at, list) and last.isdigit() and int(last) < len(at):
            at[int(last)] = yaml.safe_load(text)
            continue
        if not isinstance(at, dict):
            raise ValueError(f"--set {path}: there is nothing to set below {'.'.join(parents)}")
        value = yaml.safe_load(text)
        if isinstance(value, str):  # YAML 1.1 reads 1e-4 as a string; a person means a number
            try:
                value = float(value)
            except ValueError:
                pass
        at[last] = value
    return from_mapping(values)


def _neighbour(place: str, said: str) -> dict[str, Any]:
    if not said:
        raise ValueError(f"--set {place}= names nothing: give a family, as FAMILY/SIZE, or a model")
    name, _, size = said.partition("/")
    if name in names(_NEIGHBOURS[place]):
        return {"family": {"name": name, "size": size or None}, "trained": place == "text_encoder"}
    return {"model": said}


def _child(at: Any, part: str, path: str) -> Any:
    if isinstance(at, dict) and at.get(part) is None and part in at:
        at[part] = {}
    if not isinstance(at, dict) or part not in at:
        known = list(at) if isinstance(at, dict) else []
        raise ValueError(f"--set {path}: no field {part!r}; {nearest(part, known)}")
    return at[part]


def _explain(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        *parents, wrong = error["loc"]
        return f"{path}: no such field; {nearest(str(wrong), _fields_at(parents))}"
    return f"{path} = {error['input']!r}: {error['msg']}"


def _fields_at(path: Sequence[Any]) -> list[str]:
    here: Any = Recipe
    by_name = {
        "family": Family, "process": Family, "neighbours": Neighbour, "data": Data, "buckets": Buckets, "sources": Source, "ports": Source,
        "optimizer": Optimizer, "guide": Guide, "lora": Lora,
    }  # fmt: skip
    for part in path:
        here = by_name.get(part, here)
    return [f.name for f in dataclasses.fields(here)]
