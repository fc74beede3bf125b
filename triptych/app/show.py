"""`triptych list` and `triptych show`: what there is, and what is inside it."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
from pathlib import Path
from typing import Any, get_args, get_type_hints

from .. import catalog, checkpoint, data, recipe, recipes
from ..catalog import nearest
from . import say
from .errors import Failure, blame

__all__ = ["families", "run", "run_list"]


# --- list ---------------------------------------------------------------------------------------------------------------


def run_list(as_json: bool) -> None:
    """Print names by kind, each with its first line."""
    value: dict[str, Any] = {
        "models": {name: _model_line(name) for name in checkpoint.embedded()},
        "recipes": {name: _first(recipes.describe(name)) for name in recipes.names()},
        "families": families(),
        "samplers": _samplers(),
        "data": list(data.SOURCES),
    }
    lines: list[str] = []
    grouped = {f"recipes: {group}": {name: value["recipes"][name] for name in names} for group, names in recipes.groups().items()}
    for kind, named in {"models": value["models"], **grouped, **value["families"]}.items():
        lines += [kind.replace("_", " "), *(f"  {name:<22} {_short(line)}".rstrip() for name, line in named.items() or [("none", "")]), ""]
    lines += ["samplers", *(f"  {process:<22} {', '.join(names)}" for process, names in value["samplers"].items()), ""]
    lines += ["data", f"  {', '.join(value['data'])}"]
    say.result(value, "\n".join(lines), as_json)


def families() -> dict[str, dict[str, str]]:
    """kind -> family -> the first line of its file."""
    return {kind: {name: _first(_docstring(kind, name)) for name in catalog.names(kind)} for kind in catalog.KINDS}


def _docstring(kind: str, name: str) -> str:
    spec = importlib.util.find_spec(f"triptych.{kind}.{name}")
    if spec is None or spec.origin is None:
        return catalog.find(kind, name).__doc__ or ""  # registered from outside
    return ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""


def _samplers() -> dict[str, list[str]]:
    found = {}
    for name in catalog.names("processes"):
        sampling = getattr(catalog.family("processes", name), "Sampling", None)
        named = get_args(get_type_hints(sampling).get("sampler")) if sampling else ()
        if named:
            found[name] = list(named)
    return found


def _model_line(name: str) -> str:
    """Each panel's family, the generator's with its process."""
    said = []
    for place in (place for place in checkpoint.PLACES if checkpoint.has_panel(name, place)):
        family, _, whole = checkpoint.load_config(name, place)
        process = f" by {whole['process']['family']}" if place == "generator" and "process" in whole else ""
        said.append(f"{place.replace('_', ' ')} {family}{process}")
    return ", ".join(said)


def _short(line: str, width: int = 116) -> str:
    return line if len(line) <= width else line[: width - 1].rstrip(" ,;:") + "…"


def _first(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())


# --- show ---------------------------------------------------------------------------------------------------------------


def run(name: str, *, trace: bool, as_json: bool) -> None:
    """Show a model, a recipe or a family. KIND/NAME says which where a name is of several. Raises ValueError for no such name."""
    found = _meanings(name)
    if not found:
        known = [*checkpoint.embedded(), *recipes.names(), *(f for kind in catalog.KINDS for f in catalog.names(kind))]
        raise ValueError(f"nothing is called {name!r}; {nearest(name, sorted(set(known)))}")
    kind, bare = found[0]
    if trace and kind != "models":
        raise ValueError(f"--trace follows a prompt through a model, and {name!r} is one of {kind}; give a model's name or folder")
    if len(found) > 1:
        say.note(f"note: also called so: {', '.join('/'.join(other) for other in found[1:])}")
    if kind == "models":
        _trace(bare, as_json) if trace else _show_model(bare, as_json)
    elif kind == "recipes":
        shown = recipes.get(bare)
        comment = "".join(f"# {line}".rstrip() + "\n" for line in recipes.describe(bare).splitlines())
        say.result(recipe.to_mapping(shown), comment + recipe.to_yaml(shown).rstrip(), as_json)
    else:
        _show_family(kind, bare, as_json)


def _meanings(name: str) -> list[tuple[str, str]]:
    """All (kind, name) that a name may mean, a model before a recipe before a family."""
    wanted, slash, bare = name.partition("/")
    known = {"models": checkpoint.embedded(), "recipes": recipes.names(), **{kind: catalog.names(kind) for kind in catalog.KINDS}}
    if slash and bare in known.get(wanted, []):
        return [(wanted, bare)]
    folder = [("models", name)] if name not in known["models"] and Path(name).is_dir() else []
    return [*[(kind, name) for kind, names in known.items() if name in names], *folder]


def _show_model(name: str, as_json: bool) -> None:
    with blame("bad_checkpoint", f"model {name}"):
        folder = checkpoint.locate(name)
        described = checkpoint.load_model_file(name)
        panels: dict[str, Any] = {}
        for place in (p for p in checkpoint.PLACES if checkpoint.has_panel(name, p)):
            family, config, whole = checkpoint.load_config(name, place)
            tensors, stands = checkpoint.load_tensors(name, place), checkpoint.panel_folder(name, place)
            panels[place] = {
                "family": family, **({"of": described["panels"][place]} if place in described.get("panels", {}) else {}),
                "parameters": sum(t.numel() for t in tensors.values()),
                "bytes": (stands / "model.safetensors").stat().st_size, "config": dataclasses.asdict(config),
                **({"process": whole["process"]} if "process" in whole else {}), "card": _card(stands),
            }  # fmt: skip
    if not panels:
        raise Failure("bad_checkpoint", f"{folder} holds no panel; a model has {', '.join(checkpoint.PLACES)}, each in its folder")
    called, sampling = described.get("name") or folder.name, described.get("sampling", {})
    value = {"name": called, "folder": str(folder), "sampling": sampling, "panels": panels}
    total, size = sum(p["parameters"] for p in panels.values()), sum(p["bytes"] for p in panels.values())
    lines = [f"{value['name']}: {total:,} parameters, {size / 1e6:.1f} MB, in {folder}", _yaml({"sampling": value["sampling"]})]
    for place, panel in panels.items():
        whose = f", that of {panel['of']}" if "of" in panel else ""
        lines += ["", f"{place}: {panel['family']}, {panel['parameters']:,} parameters, {panel['bytes'] / 1e6:.1f} MB{whose}"]
        lines += ["  " + line for line in _yaml({k: panel[k] for k in ("config", "process", "card") if k in panel}).splitlines()]
    say.result(value, "\n".join(lines), as_json)


def _card(panel: Path) -> dict[str, Any]:
    import json

    return json.loads((panel / "card.json").read_text(encoding="utf-8"))  # its shape was checked by load_tensors


def _yaml(value: Any) -> str:
    import json

    import yaml

    return yaml.safe_dump(json.loads(json.dumps(value, default=str)), sort_keys=False, allow_unicode=True, width=120).rstrip()


# --- a family -----------------------------------------------------------------------------------------------------------


def _show_family(kind: str, name: str, as_json: bool) -> None:
    module = catalog.find(kind, name)
    counted = {size: _parameters(kind, name, config) for size, config in module.SIZES.items()}
    sizes = {size: {"parameters": counted[size], "config": dataclasses.asdict(config)} for size, config in module.SIZES.items()}
    about, tasks = inspect.cleandoc(module.__doc__ or ""), sorted(getattr(module, "TASKS", {}))
    settings = _settings(module)
    value = {"kind": kind, "name": name, "about": about, "sizes": sizes, "tasks": tasks, **({"sampling": settings} if settings else {})}
    lines = [f"{kind}/{name}", "", about, "", "sizes"]
    for size, told in sizes.items():
        weight = "" if told["parameters"] is None else f"{told['parameters']:>15,} parameters"
        changed = {k: v for k, v in told["config"].items() if v != getattr(module.Config(), k, None)}
        lines.append(f"  {size:<14}{weight}  {', '.join(f'{k}={v}' for k, v in changed.items())}".rstrip())
    if any(counted.values()) and kind in ("generators", "vision"):
        lines += ["", "  counted for 4 x 32 x 32 latents and words of width 384"]
    lines += ["", "tasks", f"  {', '.join(tasks)}"] if tasks else []
    if settings:
        lines += ["", "settings of drawing", *(f"  {k:<14}{one['default']!s:<14}{one['help']}".rstrip() for k, one in settings.items())]
    say.result(value, "\n".join(lines), as_json)


def _settings(module: Any) -> dict[str, dict[str, Any]]:
    """A process's, or a decoder's, settings of drawing: default, range or choices, and the line of help that each has."""
    sampling: Any = getattr(module, "Sampling", None)
    found: dict[str, dict[str, Any]] = {}
    for one in dataclasses.fields(sampling) if dataclasses.is_dataclass(sampling) else ():
        choices, spans = get_args(get_type_hints(sampling)[one.name]), one.metadata.get("range")
        named = [choice for choice in choices if isinstance(choice, str)]
        within = f" ({spans[0]:g}..{spans[1]:g})" if spans else f" ({', '.join(named)})" if named else ""
        default = one.default if one.default is not dataclasses.MISSING else ""
        found[one.name] = {"default": default, "help": f"{one.metadata.get('help', '')}{within}".strip(), "range": spans, "choices": named}
    return found


def _parameters(kind: str, name: str, config: Any) -> int | None:
    """Parameters of a size, without memory for one. None for what is no panel, or hears what this cannot guess."""
    if kind not in checkpoint.PLACES.values():
        return None
    import torch

    from ..contracts import ConditionSpec, LatentSpace

    spaces = [
        LatentSpace(kind="image", shape=(4, 32, 32)),
        LatentSpace(kind="grid", shape=(16, 16), vocab=8192),
        LatentSpace(kind="scales", shape=(680,), scales=(1, 2, 3, 4, 5, 6, 8, 10, 13, 16), vocab=4096),
        LatentSpace(kind="vector", shape=(768,)),
    ]
    words = ConditionSpec(vocab=8192, width=384, context_length=77, pooled=384)
    takes = inspect.signature(catalog.family(kind, name)).parameters
    for latent in spaces if "latent" in takes else spaces[:1]:
        offered = {"latent": latent, "condition": words}
        try:
            with torch.device("meta"):
                built = catalog.build(kind, name, config, **{k: v for k, v in offered.items() if k in takes})
        except ValueError:  # not for this kind of latent
            continue
        return sum(p.numel() for p in built.parameters())
    return None


# --- a trace ------------------------------------------------------------------------------------------------------------


def _trace(name: str, as_json: bool, prompt: str = "a red apple") -> None:
    from .models import load_model
    from .trace import trace

    stages = trace(load_model(name, "cpu"), prompt)
    widths = [max(len(s[column]) for s in stages) for column in ("stage", "what")]
    lines = [f"{s['stage']:<{widths[0]}}  {s['what']:<{widths[1]}}  {s['shapes']}" for s in stages]
    say.result({"prompt": prompt, "stages": stages}, "\n".join(lines), as_json)
