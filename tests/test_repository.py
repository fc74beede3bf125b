"""The tree as a whole: what it weighs, what its documents promise, and that it names no machine."""

from __future__ import annotations

import re
import subprocess
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MB = 1_000_000
DOCUMENTS = ["README.md", "README.zh.md", "docs/survey.md", "docs/survey.zh.md"]
# what a tree that is no git checkout may hold beside the project's own files
NOT_OURS = {".git", ".venv", "runs", "out", "cache", "build", "dist", "node_modules", "__pycache__"}


@cache
def tracked() -> tuple[Path, ...]:
    """The project's files: git's list in a checkout, else all that is neither an environment, a cache nor output."""
    asked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True) if (ROOT / ".git").exists() else None
    if asked and asked.returncode == 0 and asked.stdout:
        found = [ROOT / name for name in asked.stdout.split("\0") if name]
    else:
        found = [p for p in ROOT.rglob("*") if not _ignored(p.relative_to(ROOT))]
    return tuple(sorted(p for p in found if p.is_file()))


def _ignored(path: Path) -> bool:
    return any(part in NOT_OURS or part.endswith(("_cache", ".egg-info")) or part == ".hypothesis" for part in path.parts)


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def size_of(files: list[Path]) -> float:
    return sum(p.stat().st_size for p in files) / MB


# --- weight -----------------------------------------------------------------------------------------------------------------


def test_the_tree_is_small() -> None:
    assert size_of(list(tracked())) < 40 * 1.048576, "all files together stay under 40 MiB"


def test_embedded_weights_are_small() -> None:
    weights = [p for p in tracked() if p.suffix == ".safetensors"]
    heavy = {str(p.relative_to(ROOT)): round(p.stat().st_size / MB, 1) for p in weights if p.stat().st_size > 15 * MB}
    assert not heavy, f"no file of weights over 15 MB: {heavy}"
    home = ROOT / "triptych" / "weights"
    embedded = [p for p in weights if p.is_relative_to(home)]
    shares: dict[str, list[Path]] = {"emoji": [], "triptych-*": [], "*": []}  # the default, the eyes, and all other systems together
    for path in embedded:
        model = path.relative_to(home).parts[0]
        shares["triptych-*" if model.startswith("triptych-") else model if model in shares else "*"].append(path)
    allowed = {"emoji": 16, "triptych-*": 10, "*": 8}
    for name, files in shares.items():
        assert size_of(files) <= allowed[name], f"{name}: {size_of(files):.2f} MB of weights where {allowed[name]} are allowed"
    from scripts import embed

    assert allowed == embed.BUDGETS, "what is taken into the package is held to the same"


def test_embedded_models_share_what_is_the_same() -> None:
    from triptych import checkpoint

    held: dict[str, str] = {}
    for name in checkpoint.embedded():
        for place in (p for p in checkpoint.PLACES if (checkpoint.locate(name) / p).is_dir()):
            fingerprint = checkpoint.panel_fingerprint(name, place)
            assert fingerprint not in held, f"{name}/{place} is {held[fingerprint]} once more; embed it with scripts/embed.py"
            held[fingerprint] = f"{name}/{place}"
        for place in checkpoint.load_model_file(name).get("panels", {}):
            assert checkpoint.has_panel(name, place), f"{name}: {place}"


def test_pictures_are_small() -> None:
    pictures = [p for p in tracked() if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".gif", ".webp"}]
    heavy = {str(p.relative_to(ROOT)): f"{p.stat().st_size // 1000} kB" for p in pictures if p.stat().st_size >= 300_000}
    assert not heavy, f"no picture of 300 kB or more: {heavy}"


def test_nothing_pickled() -> None:
    assert not [p for p in tracked() if p.suffix in {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".bin", ".npy"}]


# --- text -------------------------------------------------------------------------------------------------------------------


def test_no_machine_is_named() -> None:
    # spelled in pieces, so that this file does not find itself
    places = ["/" + "work/", "/" + "root/", "/" + r"home/\w", "/" + r"Users/\w", "file:" + "//", r"--(extra-)?" + "index-url"]
    machines = re.compile("|".join(places))
    wrong = []
    for path in tracked():
        if path.suffix in {".png", ".jpg", ".safetensors"}:
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if machines.search(line):
                wrong.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}")
    assert not wrong, "\n".join(wrong)


def test_architecture_fits_on_two_screens() -> None:
    assert len(text("ARCHITECTURE.md").splitlines()) < 150


def test_architecture_names_every_room() -> None:
    said = text("ARCHITECTURE.md")
    rooms = [p.stem for p in (ROOT / "triptych").glob("*.py") if p.stem != "__init__"]
    rooms += [p.parent.name for p in (ROOT / "triptych").glob("*/__init__.py")]
    assert not [room for room in rooms if room not in said]


def test_links_lead_somewhere() -> None:
    wrong = []
    for path in (p for p in tracked() if p.suffix == ".md"):
        body = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.S)
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)|src=\"([^\"]+)\"", body):
            link = target[0] or target[1]
            if "://" not in link and not (path.parent / link).exists():
                wrong.append(f"{path.relative_to(ROOT)} -> {link}")
    assert not wrong, "\n".join(wrong)


def test_versions_agree() -> None:
    import triptych

    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert project["version"] == triptych.__version__
    assert f"## {triptych.__version__}" in text("CHANGELOG.md")


def test_constraints_pin_what_the_project_needs() -> None:
    pinned = dict(line.split("==") for line in text("constraints.txt").splitlines() if line and not line.startswith("#"))
    project = tomllib.loads(text("pyproject.toml"))["project"]
    needs = project["dependencies"] + project["optional-dependencies"]["test"] + project["optional-dependencies"]["dev"]
    for need in needs:
        name, relation, version = re.fullmatch(r"([\w-]+)(==|>=)([\w.]+)", need).groups()  # type: ignore[union-attr]
        here = next((v for k, v in pinned.items() if k.lower() == name), None)
        assert here is not None, f"{name} is not in constraints.txt"
        numbers = [tuple(int(n) for n in re.findall(r"\d+", v)) for v in (here, version)]
        assert numbers[0] == numbers[1] if relation == "==" else numbers[0] >= numbers[1], f"{need}, but constraints.txt says {here}"


# --- commands -------------------------------------------------------------------------------------------------------------


def commands(name: str) -> list[str]:
    """Every `triptych ...` and `make ...` of a document: lines of code blocks and code in running text."""
    body = text(name)
    blocks = re.findall(r"```[a-z]*\n(.*?)```", body, flags=re.S)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", body, flags=re.S))
    lines = [line for block in blocks for line in block.splitlines()] + inline
    return [re.split(r"\s{2,}#|\s#\s", line.strip())[0].strip() for line in lines if re.match(r"(triptych|make) ", line.strip())]


def test_both_readmes_have_the_same_commands() -> None:
    assert commands("README.md") == commands("README.zh.md")
    assert len([c for c in commands("README.md") if c.startswith("make ")]) >= 2


def test_both_surveys_have_the_same_commands() -> None:
    assert commands("docs/survey.md") == commands("docs/survey.zh.md")


ALL_COMMANDS = sorted({(name, command) for name in DOCUMENTS for command in commands(name)})


@pytest.mark.parametrize(("document", "command"), ALL_COMMANDS, ids=[f"{d}: {c}" for d, c in ALL_COMMANDS])
def test_documented_command_exists(document: str, command: str) -> None:
    """The verb, the options, and the names of recipes, as they stand in the document. Nothing is run."""
    import shlex

    program, *words = shlex.split(command)
    if program == "make":
        targets = set(re.findall(r"^([a-z]+):", text("Makefile"), flags=re.M))
        assert words[0] in targets, f"{document}: make has no target {words[0]!r}"
        return
    at: object = _cli()
    while hasattr(at, "commands"):
        known = at.commands  # type: ignore[attr-defined]
        if not words or words[0].startswith(("-", "[")):
            break
        assert words[0] in known, f"{document}: triptych has no verb {words[0]!r}; there are {sorted(known)}"
        verb, *words = words
        at = known[verb]
    options = {"--help", "--version"}
    for parameter in getattr(at, "params", []):
        options |= {*parameter.opts, *parameter.secondary_opts}
    for word in words:
        word = word.strip("[]")
        if re.match(r"-{1,2}[a-zA-Z]", word):
            assert word.split("=")[0] in options, f"{document}: {command!r} uses {word}; there are {sorted(options)}"
    if getattr(at, "name", "") == "train" and words and re.fullmatch(r"[a-z][a-z0-9-]*", words[0]):
        from triptych import recipes

        assert words[0] in recipes.names(), f"{document}: no recipe {words[0]!r}; there are {recipes.names()}"


def _cli() -> object:
    import typer

    from triptych.app import cli

    return typer.main.get_command(cli.app)


# tests named in the survey are real tests
@pytest.mark.parametrize("name", ["docs/survey.md", "docs/survey.zh.md"])
def test_survey_names_real_tests(name: str) -> None:
    for file, test in re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text(name)):
        assert (ROOT / file).is_file(), f"{name}: no {file}"
        assert not test or f"def {test}(" in text(file), f"{name}: no {test} in {file}"
