"""The house: who may import whom, what an import may do, and what shipped code may never contain. Read with `ast`.

app/                                    L7   people and programs
recipes/                                L6   one function = one run
training/  judging  data/  judges/      L5   make and measure
pipeline  guides  eyes  checkpoint  recipe  interop/    L4   join, pull, look, store, describe
text_encoders/ generators/ decoders/ vision/    L3   the panels and their eyes
processes/                              L2   data -> loss, noise -> sample
layers/                                 L1   attention, conv, embed, blocks
contracts  catalog                      L0   the joints; name -> file
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from triptych import catalog

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "triptych"

LEVELS = [
    {"contracts", "catalog"},
    {"layers"},
    {"processes"},
    {"text_encoders", "generators", "decoders", "vision"},
    {"pipeline", "guides", "eyes", "checkpoint", "recipe", "interop"},
    {"training", "judging", "data", "judges"},
    {"recipes"},
    {"app"},
]
# Imports run downwards. These alone run along a level, and none of them runs back.
SIDEWAYS = {
    ("pipeline", "checkpoint"),
    ("pipeline", "eyes"),
    ("pipeline", "guides"),
    ("guides", "eyes"),
    ("pipeline", "interop"),
    ("eyes", "checkpoint"),
    ("eyes", "interop"),
    ("interop", "checkpoint"),
    ("training", "data"),
    ("training", "judges"),
    ("training", "judging"),
    ("judging", "data"),
}
# Names become modules here and nowhere else: the lazy front door, the catalog of families, the recipes, the sources of data.
DYNAMIC_IMPORTS = {"__init__.py", "catalog.py", "recipes/__init__.py", "data/__init__.py"}
# The only statements that act when a module is imported: declarations in the shape of a call.
DECLARATIONS = {("app/cli.py", "app.add_typer"), ("app/cli_data.py", "data_app.add_typer")}
LONGEST = 400
LONGER = {"contracts.py": 500}  # all joints in one file, the first that anybody reads; half of it is docstrings


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def level_of(room: str) -> int:
    return next(i for i, rooms in enumerate(LEVELS) if room in rooms)


def dotted(path: Path) -> str:
    parts = ["triptych", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path, source: ast.AST | None = None) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of every import, also those inside functions and under TYPE_CHECKING."""
    module = dotted(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(source or tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]) if base else ".".join(above)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def wrong_imports(path: Path, source: ast.AST | None = None) -> list[str]:
    here = dotted(path).split(".")
    if len(here) == 1:
        return []  # the front door: names only, looked up when used
    room, wrong = here[1], []
    for line, target in imports_of(path, source):
        parts = target.split(".")
        if parts[0] != "triptych" or target == "triptych.__version__":
            continue
        there = parts[1] if len(parts) > 1 else ""
        if not any(there in rooms for rooms in LEVELS):
            wrong.append(f"{name_of(path)}:{line} goes through the front door ({target}); import from the room itself")
        elif there != room and level_of(there) >= level_of(room) and (room, there) not in SIDEWAYS:
            way = "sideways" if level_of(there) == level_of(room) else "upwards"
            wrong.append(f"{name_of(path)}:{line} imports {way}: L{level_of(room)} {room} -> L{level_of(there)} {there}")
    return wrong


# --- the table ------------------------------------------------------------------------------------------------------------


def test_every_room_stands_on_a_level() -> None:
    rooms = {p.stem for p in PACKAGE.glob("*.py")} | {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert rooms - {"__init__"} <= set.union(*LEVELS), "a new room needs a level in LEVELS and in ARCHITECTURE.md"


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_imports_run_downwards(path: Path) -> None:
    wrong = wrong_imports(path)
    assert not wrong, "\n".join(wrong)


def test_the_table_catches_what_it_should() -> None:
    def judge(file: str, line: str) -> list[str]:
        return wrong_imports(PACKAGE / file, ast.parse(line))

    assert judge("generators/dit.py", "def f():\n    from ..decoders import identity")
    assert judge("layers/blocks.py", "from triptych.generators.dit import DiT")
    assert judge("data/emoji.py", "from ..training import train")
    assert judge("processes/noise.py", "import triptych")
    assert judge("pipeline.py", "from .app import cli")
    assert not judge("training/loop.py", "from ..data import build\nfrom .. import catalog, __version__")
    assert not judge("generators/dit.py", "from ..layers import blocks\nfrom ..processes.noise import alpha\nimport torch")


def test_sideways_imports_run_one_way() -> None:
    assert not {(b, a) for a, b in SIDEWAYS} & SIDEWAYS
    assert all(level_of(a) == level_of(b) for a, b in SIDEWAYS)


# --- what an import does ----------------------------------------------------------------------------------------------------


def run(code: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=_environment(), timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


def test_import_is_light(tmp_path: Path) -> None:
    heavy = "('torch', 'numpy', 'PIL', 'pydantic', 'typer', 'rich', 'tokenizers', 'safetensors')"
    assert run(f"import sys, triptych; print([m for m in {heavy} if m in sys.modules])", tmp_path).strip() == "[]"


def test_command_line_answers_help_without_torch(tmp_path: Path) -> None:
    code = "import sys, triptych.app.cli; print('torch' in sys.modules)"
    assert run(code, tmp_path).strip() == "False"


def test_public_names() -> None:
    import triptych

    assert triptych.__all__ == ["Prompt", "TextToImage", "__version__", "load", "register"]
    assert all(getattr(triptych, name) is not None for name in triptych.__all__)
    with pytest.raises(AttributeError, match="nothing_here"):
        triptych.nothing_here  # noqa: B018


def test_imports_do_nothing(tmp_path: Path) -> None:
    """Importing every module prints nothing, writes nothing, and leaves torch's generator, threads and default dtype alone."""
    modules = [dotted(p) for p in files() if not p.stem.startswith("__main__")]
    code = (
        "import importlib, torch\n"
        "def state():\n"
        "    drawn = torch.random.get_rng_state().tolist()\n"
        "    return drawn, torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()\n"
        f"before = state()\nfor name in {modules!r}: importlib.import_module(name)\n"
        "assert state() == before, (before, state())\n"
    )
    assert run(code, tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_modules_define_and_do_not_act(path: Path) -> None:
    wrong = []
    for node in tree_of(path).body:
        acts = isinstance(node, (ast.For, ast.While, ast.With)) or (isinstance(node, ast.Expr) and not isinstance(node.value, ast.Constant))
        said = spelled(node.value.func) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) else ""
        if acts and (name_of(path), said) not in DECLARATIONS:
            wrong.append(f"{name_of(path)}:{node.lineno} works at import")
    wrong += [f"{name_of(path)}:{n.lineno} `global`" for n in ast.walk(tree_of(path)) if isinstance(n, ast.Global)]
    assert not wrong, "\n".join(wrong)


# --- what shipped code never contains ------------------------------------------------------------------------------------

UNSAFE_MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}
UNSAFE_CALLS = {
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package", "yaml.load", "yaml.unsafe_load",
    "os.system", "os.popen",
}  # fmt: skip


def spelled(node: ast.AST) -> str:
    """`a.b.c` for an attribute of an attribute of a name, else ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = spelled(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


def unsafe(path: Path, source: ast.AST | None = None) -> list[str]:
    source = source or tree_of(path)
    every = imports_of(path, source)
    wrong = [f"{name_of(path)}:{line} imports {target}" for line, target in every if target.split(".")[0] in UNSAFE_MODULES]
    for node in ast.walk(source):
        where = f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and spelled(node) in UNSAFE_CALLS:
            wrong.append(f"{where} uses {spelled(node)}")
        if not isinstance(node, ast.Call):
            continue
        called = spelled(node.func)
        if called in UNSAFE_NAMES:
            wrong.append(f"{where} calls {called}")
        if called.endswith("import_module") and name_of(path) not in DYNAMIC_IMPORTS:
            wrong.append(f"{where} imports by name: only the catalog does")
        for keyword in node.keywords:
            true = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if keyword.arg in ("shell", "allow_pickle") and true:
                wrong.append(f"{where} {keyword.arg}=True")
    return wrong


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_no_code_from_files(path: Path) -> None:
    wrong = unsafe(path)
    assert not wrong, "\n".join(wrong)


def test_unsafe_code_is_seen() -> None:
    for line in (
        "import pickle", "from pickle import loads", "import torch\ntorch.load('x')", "eval('1')", "__import__('os')",
        "import yaml\nf = yaml.load",
        "import subprocess\nsubprocess.run('ls', shell=True)", "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import importlib\nimportlib.import_module(name)",
    ):  # fmt: skip
        assert unsafe(PACKAGE / "pipeline.py", ast.parse(line)), line
    assert not unsafe(PACKAGE / "pipeline.py", ast.parse("model.eval()\ntorch.compile(model)\nre.compile('x')"))


def test_dynamic_imports_stay_inside_the_package() -> None:
    for name in DYNAMIC_IMPORTS:
        for node in ast.walk(tree_of(PACKAGE / name)):
            if isinstance(node, ast.Call) and spelled(node.func).endswith("import_module"):
                said = ast.unparse(node.args[0])
                assert said.startswith(("f'triptych.", "f'{__name__}.")), f"{name}: {said}"


# --- files ------------------------------------------------------------------------------------------------------------------


def test_no_drawer_for_everything() -> None:
    drawers = {"utils", "util", "helpers", "helper", "misc", "common", "tools"}
    assert not [name_of(p) for p in PACKAGE.rglob("*") if p.stem.strip("_") in drawers]


def test_files_are_short() -> None:
    lengths = {name_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in files()}
    long = {name: n for name, n in lengths.items() if n > LONGER.get(name, LONGEST)}
    assert not long, f"over {LONGEST} lines: {long}"
    assert set(LONGER) <= set(lengths)


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_modules_say_what_they_are(path: Path) -> None:
    assert ast.get_docstring(tree_of(path)), f"{name_of(path)} has no docstring"


# --- families ---------------------------------------------------------------------------------------------------------------

FAMILIES = [(kind, name) for kind in catalog.KINDS for name in catalog.names(kind)]


@pytest.mark.parametrize(("kind", "name"), FAMILIES, ids=["/".join(f) for f in FAMILIES])
def test_family_file(kind: str, name: str) -> None:
    module = importlib.import_module(f"triptych.{kind}.{name}")
    assert module.__doc__
    assert isinstance(getattr(module, module.__all__[0]), type), "the first name of __all__ is the family's class"
    assert dataclasses.is_dataclass(module.Config) and module.Config.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(field.kw_only for field in dataclasses.fields(module.Config))
    assert "tiny" in module.SIZES
    assert all(isinstance(config, module.Config) for config in module.SIZES.values())
    assert all(isinstance(task, type) for task in getattr(module, "TASKS", {}).values())


BUILDABLE = [(kind, name) for kind, name in FAMILIES if kind in ("generators", "decoders")]  # from a Config and plain neighbours


@pytest.mark.parametrize(("kind", "name"), BUILDABLE, ids=["/".join(f) for f in BUILDABLE])
def test_every_size_can_be_built(kind: str, name: str) -> None:
    """On the meta device: shapes only, no memory, so the published sizes too."""
    import torch

    from triptych.contracts import ConditionSpec
    from triptych.layers.pixels import pixel_space

    spec = ConditionSpec(vocab=1000, width=64, context_length=16, pooled=64, num_labels=1000, vector=8)
    neighbours = {"latent": pixel_space(32), "condition": spec} if kind == "generators" else {}
    for size in catalog.find(kind, name).SIZES:
        with torch.device("meta"):
            panel = catalog.build(kind, name, size=size, **neighbours)
        assert all(p.is_meta for p in panel.parameters()), f"{name} {size}: a parameter was made on a device of its own choice"
