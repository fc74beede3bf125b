"""Take a trained model into the package: triptych/weights/NAME, with what another embedded model holds bit for bit named, not copied.

    python scripts/embed.py RUN/model NAME                          the model of a run, under a name
    python scripts/embed.py RUN/model ddim --set sampler=ddim       the same weights drawn otherwise: nothing is stored twice
    python scripts/embed.py RUN/model NAME --replace                instead of what was embedded under this name
    python scripts/embed.py RUN/model sd-clip --only text_encoder   one panel, for models that stand on it

A panel is shared where its fingerprint (of its files: configuration, weights, vocabulary) is an embedded model's. Cards keep all that
they say but for the paths of one machine. What would exceed the budget of its kind is refused, and nothing is written; so is a change
of a panel in which other embedded models stand.
"""

from __future__ import annotations

import argparse
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from triptych import checkpoint, pipeline

MB = 1_000_000
BUDGETS = {"emoji": 16, "triptych-*": 10, "*": 8}  # MB of weights: the default, the eyes, and all other models together
_PLAIN = "abcdefghijklmnopqrstuvwxyz0123456789-"


def embed(
    source: str | Path, name: str, *, sampling: Mapping[str, Any] | None = None, replace: bool = False, only: str | None = None
) -> dict[str, str]:
    """Write triptych/weights/NAME; returns place -> the embedded model whose panel is shared.

    sampling: defaults that take the place of the model's own.  only: the one panel that is taken. Raises ValueError for a model that
    does not load, a name that is taken or none, a budget exceeded, or a panel that others share and that would change.
    """
    source, home = Path(source), checkpoint.WEIGHTS / name
    if not name or set(name) - set(_PLAIN):
        raise ValueError(f"{name!r} is no name: small letters, digits and hyphens")
    if home.exists() and not replace:
        raise ValueError(f"{home} is there already; give --replace, or another name")
    places = [place for place in checkpoint.PLACES if checkpoint.has_panel(source, place) and only in (None, place)]
    if not places:
        raise ValueError(f"{source} holds no {only or 'panel'}")
    model = _loaded(source, places)
    if sampling:
        if not isinstance(model, pipeline.TextToImage):
            raise ValueError(f"{source} draws nothing: there is no sampling to set")
        model.settings(**sampling)
    prints = {place: checkpoint.panel_fingerprint(source, place) for place in places}
    shared = {place: holder for place in places if (holder := _holder(place, prints[place], name)) is not None}
    own = [place for place in places if place not in shared]
    for place, others in _borrowers(name).items():
        if place not in own or prints[place] != checkpoint.panel_fingerprint(name, place):
            raise ValueError(f"{name} holds the {place} of {', '.join(others)}: it can neither change nor go; embed those first")
    _check_budget(name, sum(_weight(checkpoint.panel_folder(source, place)) for place in own))

    temporary = checkpoint.WEIGHTS / f".{name}.tmp-{uuid.uuid4().hex[:8]}"
    try:
        for place in own:
            shutil.copytree(checkpoint.panel_folder(source, place), temporary / place)
            card = temporary / place / "card.json"
            told = _without_paths(json.loads(card.read_text(encoding="utf-8")))
            checkpoint.write_atomically(card, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())
        described = checkpoint.load_model_file(source) if only is None else {}
        more = {key: value for key, value in described.items() if key not in ("format", "name", "sampling", "panels")}
        settings = {**described.get("sampling", {}), **(sampling or {})}
        checkpoint.export_model(temporary, name=name, sampling=settings, panels={}, shared=shared, **more)
        written = _loaded(temporary, places)
        if any(checkpoint.panel_fingerprint(temporary, place) != prints[place] for place in places):
            raise ValueError(f"{source} changed while it was read; run again")
        assert type(written) is type(model)
        checkpoint._swap_in(temporary, home)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return shared


def _loaded(source: str | Path, places: Sequence[str]) -> Any:
    """The model, or of one that neither draws nor sees its single panel."""
    return pipeline.load(source) if {"generator", "vision"} & {*places} else checkpoint.load_panel(source, places[0])


def _holder(place: str, fingerprint: str, name: str) -> str | None:
    """The embedded model that holds this very panel itself."""
    others = [other for other in checkpoint.embedded() if other != name and (checkpoint.WEIGHTS / other / place).is_dir()]
    return next((other for other in others if checkpoint.panel_fingerprint(other, place) == fingerprint), None)


def _borrowers(name: str) -> dict[str, list[str]]:
    """place -> the embedded models that stand in the panel of this one."""
    found: dict[str, list[str]] = {}
    for other in checkpoint.embedded():
        for place, holder in checkpoint.load_model_file(other).get("panels", {}).items():
            if holder == name:
                found.setdefault(place, []).append(other)
    return found


# --- budgets ----------------------------------------------------------------------------------------------------------------


def budget_of(name: str) -> str:
    """The key of BUDGETS under which a model's weights count."""
    return name if name in BUDGETS else "triptych-*" if name.startswith("triptych-") else "*"


def _check_budget(name: str, weight: float) -> None:
    kind = budget_of(name)
    others = {other: _weight(checkpoint.WEIGHTS / other) for other in checkpoint.embedded() if other != name and budget_of(other) == kind}
    total = weight + sum(others.values())
    if total > BUDGETS[kind]:
        said = ", ".join(f"{other} {size:.2f}" for other, size in others.items()) or "nothing else"
        raise ValueError(f"{name} would add {weight:.2f} MB: {total:.2f} MB of weights where {BUDGETS[kind]} are allowed ({said})")


def _weight(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors")) / MB


def _without_paths(value: Any) -> Any:
    """Folders of runs are of one machine alone: what is kept of RUN/model is the run's name."""
    if isinstance(value, dict):
        return {key: _without_paths(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_paths(one) for one in value]
    if not isinstance(value, str) or not value.startswith(("/", "~", "runs/")):
        return value
    path = Path(value)
    return path.parent.name if path.name in ("model", "best") else path.name


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model's folder, as RUN/model")
    parser.add_argument("name", help="under which it is embedded")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a default of sampling, as steps=20")
    parser.add_argument("--replace", action="store_true", help="instead of what is embedded under this name")
    parser.add_argument("--only", choices=list(checkpoint.PLACES), help="take this panel alone")
    args = parser.parse_args(argv)
    sampling = {key: yaml.safe_load(value) for key, _, value in (one.partition("=") for one in args.set)}
    try:
        shared = embed(args.model, args.name, sampling=sampling, replace=args.replace, only=args.only)
    except ValueError as error:
        raise SystemExit(f"embed: {error}") from None
    home = checkpoint.WEIGHTS / args.name
    for place in (place for place in checkpoint.PLACES if checkpoint.has_panel(args.name, place)):
        print(f"{place}: " + (f"that of {shared[place]}" if place in shared else f"{_weight(home / place):.2f} MB"))


if __name__ == "__main__":
    main()
