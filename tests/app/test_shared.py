"""Panels stored once: a model that names another's panel, what a hostile folder may not name, and taking models into the package."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import triptych
from scripts import embed as script
from triptych import checkpoint

PLACES = ("text_encoder", "generator", "decoder")


@pytest.fixture
def weights(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with one embedded model, "base", and "echo", which has a generator of its own between base's neighbours."""
    home = tmp_path / "package"
    for name in ("base", "echo"):
        shutil.copytree(model, home / name)
    monkeypatch.setattr(checkpoint, "WEIGHTS", home)
    for place in ("text_encoder", "decoder"):
        shutil.rmtree(home / "echo" / place)
    described = json.loads((home / "echo" / "triptych.json").read_text())
    refer(home / "echo", {"text_encoder": "base", "decoder": "base"}, **described)
    return home


def refer(folder: Path, panels: Any, **described: Any) -> Path:
    path = folder / "triptych.json"
    described = described or json.loads(path.read_text())
    path.write_text(json.dumps({**described, "panels": panels}))
    return path


def pixels(model: Any) -> np.ndarray:
    return np.asarray(model.generate(["a red apple"], seeds=[3])[0])


def test_a_model_of_shared_panels_is_the_whole_model(weights: Path, tmp_path: Path) -> None:
    whole, echo = triptych.load("base"), triptych.load("echo")
    assert whole.fingerprints == echo.fingerprints and np.array_equal(pixels(whole), pixels(echo))
    assert checkpoint.panel_folder("echo", "decoder") == weights / "base" / "decoder" and checkpoint.has_panel("echo", "text_encoder")
    assert checkpoint.panel_folder("echo", "generator") == weights / "echo" / "generator" and not checkpoint.has_panel("echo", "vision")
    copied = shutil.copytree(weights / "echo", tmp_path / "elsewhere" / "mine")  # out of the package: the names still lead into it
    assert np.array_equal(pixels(triptych.load(copied)), pixels(whole))
    triptych.load(copied).save(tmp_path / "saved")  # and saved it stands alone
    assert "panels" not in json.loads((tmp_path / "saved" / "triptych.json").read_text())
    assert np.array_equal(pixels(triptych.load(tmp_path / "saved")), pixels(whole))


def test_the_same_weights_drawn_otherwise_cost_nothing(weights: Path) -> None:
    shutil.rmtree(weights / "echo" / "generator")
    refer(weights / "echo", dict.fromkeys(PLACES, "base"), name="echo", format=1, sampling={"steps": 2})
    echo = triptych.load("echo")
    assert echo.sampling == {"steps": 2} and echo.fingerprints == triptych.load("base").fingerprints
    assert [p.name for p in (weights / "echo").iterdir()] == ["triptych.json"]


def test_a_changed_neighbour_is_still_refused(weights: Path) -> None:
    triptych.load("echo")
    encoder = triptych.load("base").text_encoder
    with torch.no_grad():
        next(encoder.parameters()).add_(1)
    said = {"kind": "text_encoders", "name": "bilingual", "config": encoder.config, "card": {}}
    checkpoint.save_panel(weights / "base" / "text_encoder", encoder, **said)
    with pytest.raises(ValueError, match="was trained with text encoder"):
        triptych.load("echo")


def test_a_damaged_neighbour_is_named_where_it_stands(weights: Path) -> None:
    path = weights / "base" / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=str(weights / "base" / "text_encoder")):
        triptych.load("echo")


HOSTILE: list[tuple[Any, str]] = [
    ({"decoder": "../base"}, "'../base'"),
    ({"decoder": "{home}/base"}, "only an embedded model's panel"),
    ({"decoder": "./base"}, "'./base'"),
    ({"decoder": "base/"}, "'base/'"),
    ({"decoder": "base/decoder"}, "'base/decoder'"),
    ({"decoder": "nobody"}, "'nobody'"),
    ({"decoder": ""}, "''"),
    ({"decoder": ["base"]}, "['base']"),
    ({"decoder": {"base": "base"}}, "{'base': 'base'}"),
    ({"decoder": None, "text_encoder": 3}, "None"),
    ({"../decoder": "base"}, "panels.../decoder"),
    ({"decodr": "base"}, "did you mean 'decoder'"),
    (["base"], "'panels' is no object"),
    ("base", "'panels' is no object"),
]


@pytest.mark.parametrize(("panels", "said"), HOSTILE, ids=[str(panels) for panels, _ in HOSTILE])
def test_only_names_of_embedded_models_lead_out_of_a_folder(weights: Path, tmp_path: Path, panels: Any, said: str) -> None:
    folder = shutil.copytree(weights / "echo", tmp_path / "hostile")
    home = str(weights)
    panels = {k: v.format(home=home) if isinstance(v, str) else v for k, v in panels.items()} if isinstance(panels, dict) else panels
    path = refer(folder, panels)
    for look in (triptych.load, lambda f: checkpoint.load_panel(f, "decoder"), lambda f: checkpoint.panel_fingerprint(f, "decoder")):
        with pytest.raises(ValueError) as refused:
            look(folder)
        assert str(path) in str(refused.value) and said in str(refused.value)


def test_a_circle_of_names_is_refused(weights: Path) -> None:
    shutil.rmtree(weights / "base" / "decoder")
    for theirs in ("echo", "base"):  # of each other, and of itself
        path = refer(weights / "base", {"decoder": theirs})
        for name in ("base", "echo"):
            with pytest.raises(ValueError, match="has no decoder of its own") as refused:
                triptych.load(name)
            assert str(path) in str(refused.value) or str(weights / "echo" / "triptych.json") in str(refused.value)


def test_a_place_that_the_other_lacks_and_one_that_is_there_twice(weights: Path, model: Path) -> None:
    path = refer(weights / "echo", {"text_encoder": "base", "decoder": "base", "vision": "base"})
    with pytest.raises(ValueError, match=r"panels\.vision = 'base', but the embedded base has no vision") as refused:
        checkpoint.load_panel("echo", "vision")
    assert str(path) in str(refused.value)
    refer(weights / "echo", {"text_encoder": "base", "decoder": "base"})
    shutil.copytree(model / "decoder", weights / "echo" / "decoder")
    with pytest.raises(ValueError, match="take one of them away"):
        triptych.load("echo")


def test_verbs_see_shared_panels(weights: Path, run: Callable) -> None:
    assert "decoder identity" in run("list", "--json").json["models"]["echo"]
    shown = run("show", "echo", "--json").json["panels"]
    assert shown["decoder"]["of"] == "base" and "of" not in shown["generator"] and "that of base" in run("show", "echo").out
    drawn = [run("generate", "a cat", "--seed", "1", "--model", name, "-o", f"{name}.png", "--json").json for name in ("base", "echo")]
    assert drawn[0]["panels"] == drawn[1]["panels"]
    assert run("doctor", "--json").json["checks"]["weights"]["ok"]
    refer(weights / "echo", {"decoder": "../base"})
    found = run("doctor", "--json").json["checks"]["weights"]
    assert not found["ok"] and "echo/decoder" in found["found"]
    assert run("generate", "a cat", "--model", "echo").code == 4


# --- into the package -------------------------------------------------------------------------------------------------------


def test_embedding_shares_what_is_the_same(weights: Path, model: Path, tmp_path: Path) -> None:
    for folder in weights.iterdir():
        shutil.rmtree(folder)
    assert script.embed(model, "base") == {}
    run = shutil.copytree(model, tmp_path / "run" / "model")
    described = json.loads((run / "generator" / "card.json").read_text())
    where = f"/{'home'}/me/runs/first/model"
    (run / "generator" / "card.json").write_text(json.dumps({**described, "recipe": {"init": where, "data": "a/b", "steps": 3}}))
    assert script.embed(run, "faster", sampling={"steps": 2}) == dict.fromkeys(PLACES, "base")
    assert np.array_equal(
        pixels(triptych.load("faster")), np.asarray(triptych.load("base").generate(["a red apple"], seeds=[3], steps=2)[0])
    )
    other = triptych.load(run)
    with torch.no_grad():
        next(other.generator.network.parameters()).add_(1)
    other.save(tmp_path / "other")
    (tmp_path / "other" / "generator" / "card.json").write_text(
        json.dumps({**json.loads((tmp_path / "other" / "generator" / "card.json").read_text()), "recipe": {"init": where}})
    )
    shared = script.embed(tmp_path / "other", "third")
    assert shared == {"text_encoder": "base", "decoder": "base"} and (weights / "third" / "generator").is_dir()
    assert json.loads((weights / "third" / "generator" / "card.json").read_text())["recipe"]["init"] == "first"
    assert triptych.load("third").fingerprints == triptych.load(tmp_path / "other").fingerprints
    assert sorted(p.name for p in weights.iterdir()) == ["base", "faster", "third"] == checkpoint.embedded()
    with pytest.raises(ValueError, match="third is there already"):
        script.embed(tmp_path / "other", "third")
    script.embed(tmp_path / "other", "third", replace=True)
    with pytest.raises(ValueError, match="base holds the generator of faster: it can neither change nor go"):
        script.embed(tmp_path / "other", "base", replace=True)


def test_a_budget_is_kept(weights: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = triptych.load(model)
    with torch.no_grad():
        next(other.generator.network.parameters()).add_(1)
    other.save(tmp_path / "other")
    monkeypatch.setitem(script.BUDGETS, "*", 0.001)
    with pytest.raises(ValueError, match=r"third would add 0\.\d\d MB: .* MB of weights where 0.001 are allowed"):
        script.embed(tmp_path / "other", "third")
    assert not (weights / "third").exists() and checkpoint.embedded() == ["base", "echo"]
    script.embed(tmp_path / "other", "triptych-mine")  # another budget


@pytest.mark.parametrize("name", ["", "../x", "Base", "a/b", ".x", "a b"])
def test_a_name_is_a_name(weights: Path, model: Path, name: str) -> None:
    with pytest.raises(ValueError, match="is no name"):
        script.embed(model, name)


def test_what_does_not_load_is_not_embedded(weights: Path, model: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "broken")
    (broken / "generator" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="damaged"):
        script.embed(broken, "broken")
    with pytest.raises(ValueError, match="no setting 'stepps'"):
        script.embed(model, "wrong", sampling={"stepps": 3})
    with pytest.raises(SystemExit, match="embed: "):
        script.main([str(broken), "broken"])
    assert checkpoint.embedded() == ["base", "echo"] and not [p for p in weights.iterdir() if p.name.startswith(".")]
