"""What a model's folder promises: what was saved is what is loaded, and what is wrong in it is refused by name and runs nothing."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import triptych
from tests.contract import tiny
from triptych import checkpoint
from triptych.pipeline import Generator, TextToImage

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("text_encoder", "generator", "decoder")
PLACE = {"text_encoders": "text_encoder", "generators": "generator", "decoders": "decoder", "processes": "process", "vision": "vision"}


# --- saved and loaded ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "name"), tiny.families("text_encoders", "generators", "decoders", "processes"))
def test_what_is_loaded_is_what_was_saved(tmp_path: Path, kind: str, name: str) -> None:
    """Weights are stored as bfloat16, so the first save rounds them; from then on every copy is equal to the last bit."""
    made = tiny.model(**{PLACE[kind]: name})
    made.save(tmp_path / "a", name="mine")
    one = triptych.load(tmp_path / "a")
    one.save(tmp_path / "b")
    two = triptych.load(tmp_path / "b")
    assert two.name == "mine" and two.sampling == made.sampling and two.generator.process.config == made.generator.process.config
    assert one.fingerprints == two.fingerprints and all(one.fingerprints.values())
    for place in PLACES:
        for file in (tmp_path / "a" / place).iterdir():
            assert file.read_bytes() == (tmp_path / "b" / place / file.name).read_bytes(), f"{place}/{file.name}"
    for before, after in ((made, one), (one, two)):
        for was, now in zip(panels(before), panels(after), strict=True):
            assert type(was) is type(now) and was.config == now.config and not now.training
            for key, tensor in was.state_dict().items():
                kept = now.state_dict()[key]
                rounded = tensor.bfloat16() if tensor.is_floating_point() else tensor
                assert kept.dtype == tensor.dtype and torch.equal(kept, rounded.to(kept.dtype)), key
            assert not any(p.requires_grad for p in now.parameters())
    assert torch.equal(one.latents(tiny.PROMPTS[:3]), two.latents(tiny.PROMPTS[:3]))
    pictures = [np.stack([np.asarray(image) for image in model.generate(tiny.PROMPTS[:3])]) for model in (one, two)]
    assert np.array_equal(*pictures) and pictures[0].std() > 2


def panels(model: TextToImage) -> list[nn.Module]:
    return [model.text_encoder, model.generator.network, model.decoder]  # type: ignore[list-item]


@pytest.mark.parametrize("name", tiny.names("vision"))
def test_eyes_are_kept_beside_a_model(tmp_path: Path, name: str) -> None:
    model = tiny.model()
    model.save(tmp_path)
    panel = tiny.awake(tiny.build("vision", name, condition=model.text_encoder.gives)).eval()
    first = checkpoint.save_panel(tmp_path / "vision", panel, kind="vision", name=name, config=panel.config, card={})
    loaded = checkpoint.load_panel(tmp_path, "vision")
    again = checkpoint.save_panel(tmp_path / "vision", loaded, kind="vision", name=name, config=loaded.config, card={})
    assert first == again == loaded.card["fingerprint"]
    assert all(torch.equal(a, panel.state_dict()[key].bfloat16().float()) for key, a in loaded.state_dict().items())


def test_a_weight_that_is_not_finite_is_never_saved(tmp_path: Path) -> None:
    model = tiny.model()
    name, parameter = next(iter(model.generator.network.named_parameters()))
    parameter.data.view(-1)[0] = torch.nan
    with pytest.raises(ValueError, match=f"{name}.*not finite"):
        model.save(tmp_path / "m")
    assert not (tmp_path / "m" / "generator").exists() and not (tmp_path / "m" / "triptych.json").exists()


# --- joined -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp("models") / name for name in ("one", "other")]
    for seed, folder in enumerate(folders):
        tiny.model(seed=seed).save(folder)
    return folders


@pytest.mark.parametrize("place", PLACES)
def test_panels_of_two_trainings_refuse_each_other(two_models: list[Path], tmp_path: Path, place: str) -> None:
    """In memory and on disk, by a ValueError that names both sides."""
    one, other = (triptych.load(folder) for folder in two_models)
    parts = {"text_encoder": one.text_encoder, "generator": one.generator, "decoder": one.decoder}
    parts[place] = {"text_encoder": other.text_encoder, "generator": other.generator, "decoder": other.decoder}[place]
    generator: Generator = parts["generator"]  # type: ignore[assignment]
    trained = generator.network.card["neighbours"]  # type: ignore[union-attr,index]
    sides = (trained["text_encoder"], parts["text_encoder"].card["fingerprint"])  # type: ignore[union-attr,index,attr-defined]
    if place == "decoder":
        sides = (trained["latent"], other.decoder.latent.fingerprint)
    with pytest.raises(ValueError, match="trained") as refused:
        TextToImage(**parts)  # type: ignore[arg-type]
    own = generator.network.card["fingerprint"]  # type: ignore[union-attr,index]
    assert all(side in str(refused.value) for side in (*sides, own)) and sides[0] != sides[1]
    mixed = shutil.copytree(two_models[0], tmp_path / "mixed")
    shutil.rmtree(mixed / place)
    shutil.copytree(two_models[1] / place, mixed / place)
    with pytest.raises(ValueError, match=sides[1]):
        triptych.load(mixed)


@pytest.mark.parametrize("ours", tiny.names("decoders"))
@pytest.mark.parametrize("theirs", tiny.names("decoders"))
def test_decoders_of_one_space_swap_freely_and_others_do_not(tmp_path: Path, ours: str, theirs: str) -> None:
    tiny.model(decoder=ours).save(tmp_path)
    model, decoder = triptych.load(tmp_path), tiny.awake(tiny.build("decoders", theirs)).eval()
    space, other = model.decoder.latent.fingerprint, decoder.latent.fingerprint
    assert space == other or ours != theirs
    if space == other:
        joined = TextToImage(model.text_encoder, model.generator, decoder)
        assert joined.generate(["a"], steps=1)[0].size == (decoder.image_size, decoder.image_size)
    else:
        with pytest.raises(ValueError) as refused:
            TextToImage(model.text_encoder, model.generator, decoder)
        assert space in str(refused.value) and other in str(refused.value)


# --- damaged or wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(two_models: list[Path], tmp_path: Path) -> Path:
    """A model of one's own to break; its decoder has weights too."""
    return shutil.copytree(two_models[0], tmp_path / "model")


def certify(panel: Path) -> None:
    """Make the card say what the files are now: an editor who knows how, not an accident."""
    card = json.loads((panel / "card.json").read_text())
    card["fingerprint"] = checkpoint.panel_fingerprint(panel.parent, panel.name)
    (panel / "card.json").write_text(json.dumps(card))


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as refused:
        triptych.load(folder)
    return str(refused.value)


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_config(panel: Path, change: Callable[[dict[str, Any]], None]) -> str:
    edit_json(panel / "config.json", change)
    certify(panel)
    return str(panel / "config.json")


@pytest.mark.parametrize("place", PLACES)
def test_a_config_that_names_what_is_not_there(folder: Path, place: str) -> None:
    panel = folder / place
    family = json.loads((panel / "config.json").read_text())["family"]
    for wrong in (family + "x", "os", "../" + family, "triptych.generators.dit", "__init__", "noise"):
        path = edit_config(panel, lambda config, wrong=wrong: config.update(family=wrong))
        said = refusal(folder)
        assert path in said and repr(wrong) in said and family in said, "the file, the wrong name and the right ones"
    for wrong in ({"family": 3}, {"family": None}, {"config": []}, {"config": None}):
        path = edit_config(panel, lambda config, wrong=wrong: config.update({"family": family, **wrong}))
        assert path in refusal(folder)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("place", PLACES)
def test_a_config_with_wrong_fields(folder: Path, place: str) -> None:
    panel, whole = folder / place, triptych.load(folder)
    text, fields = (panel / "config.json").read_text(), json.loads((panel / "config.json").read_text())["config"]
    neighbours = {"latent": whole.decoder.latent, "condition": whole.text_encoder.gives} if place == "generator" else {}

    def load(**changed: Any) -> str:
        (panel / "config.json").write_text(text)
        edit_config(panel, lambda config: config["config"].update(changed))
        try:
            checkpoint.load_panel(folder, place, **neighbours)
        except ValueError as refused:
            assert str(panel) in str(refused), changed
            return str(refused)
        return ""

    for name in fields:
        for wrong in ("?", None, {"_target_": "os.system"}, [[]]):
            assert name in load(**{name: wrong}), (name, wrong)
        for perhaps in (0, -3, -(2**70), float("nan")):  # right for a mean; what is wrong is refused, whatever it breaks
            load(**{name: perhaps})
    for name in ("_target_", "__class__", "assets"):
        said = load(**{name: "os.system"})
        assert str(panel / "config.json") in said and repr(name) in said and sorted(fields)[0] in said


WRONG_PROCESSES: list[Any] = [None, [], {"family": "os", "config": {}}, {"family": 3}, {"config": {"no": 1}}, {"config": [1]}]


@pytest.mark.parametrize("wrong", WRONG_PROCESSES, ids=str)
def test_a_config_with_a_wrong_process(folder: Path, wrong: Any) -> None:
    def change(config: dict[str, Any]) -> None:
        config["process"] = {**config["process"], **wrong} if isinstance(wrong, dict) else wrong

    assert edit_config(folder / "generator", change) in refusal(folder)


@pytest.mark.parametrize("place", PLACES)
def test_tensors_that_are_not_those_of_the_config(folder: Path, place: str) -> None:
    path = folder / place / "model.safetensors"
    tensors = load_file(path)
    first = sorted(tensors)[len(tensors) // 2]

    def stored(changed: dict[str, torch.Tensor]) -> str:
        save_file(changed, path)
        certify(path.parent)
        said = refusal(folder)
        assert str(path) in said
        return said

    missing = stored({name: tensor for name, tensor in tensors.items() if name != first})
    assert f"lacks tensor {first!r}" in missing and str(list(tensors[first].shape)) in missing
    assert "'evil.weight'" in stored({**tensors, "evil.weight": torch.zeros(1)})
    shaped = stored({**tensors, first: torch.zeros(*tensors[first].shape, 2)})
    assert repr(first) in shaped and str(list(tensors[first].shape)) in shaped and str([*tensors[first].shape, 2]) in shaped
    stored({})


@pytest.mark.parametrize("place", PLACES)
def test_files_that_are_cut_or_flipped(folder: Path, place: str) -> None:
    """By accident: the card no longer agrees. On purpose, with the card made to agree: the file is still no such file."""
    panel, draw = folder / place, random.Random(0)
    own_card = (panel / "card.json").read_bytes()
    for path in sorted(panel.iterdir()):
        whole = path.read_bytes()
        if path.name == "card.json":
            continue
        for at in [0, 7, len(whole) // 2, len(whole) - 1, *(draw.randrange(len(whole)) for _ in range(6))]:
            flipped = bytearray(whole)
            flipped[at] ^= 1 << draw.randrange(8)
            for damaged in (bytes(flipped), whole[:at]):
                path.write_bytes(damaged)
                said = refusal(folder)
                assert str(panel) in said and ("damaged" in said or path.name in said)
                if path.suffix == ".safetensors" and damaged == whole[:at]:
                    certify(panel)
                    assert str(path) in refusal(folder)
                    (panel / "card.json").write_bytes(own_card)
        path.unlink()
        assert str(panel) in refusal(folder)
        path.write_bytes(whole)
    triptych.load(folder)
    edit_json(panel / "card.json", lambda card: card.update(fingerprint="0" * 16))
    assert "damaged or was edited" in (said := refusal(folder)) and "0" * 16 in said and str(panel) in said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["config.json", "card.json", "../triptych.json"])
def test_json_that_is_none(folder: Path, place: str, name: str) -> None:
    path = folder / place / name
    endless = (b'{"a":' * 100_000, b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b" " * (2**24 + 1))
    for wrong in (b"", b"{", b"[]", b"3", b"\xff\xfe{}", *endless):
        path.write_bytes(wrong)
        certify(folder / place) if name == "config.json" else None
        assert path.name in refusal(folder), wrong[:20]
    if name == "card.json":
        path.unlink()
        assert str(path) in refusal(folder)


def test_wrong_values_in_triptych_json_and_card(folder: Path) -> None:
    whole = (folder / "triptych.json").read_text()
    for wrong in ([1], "steps", 3, None):
        edit_json(folder / "triptych.json", lambda model, wrong=wrong: model.update(sampling=wrong))
        assert "triptych.json" in refusal(folder)
    (folder / "triptych.json").write_text(whole)
    edit_json(folder / "generator" / "card.json", lambda card: card.update(neighbours=["?"]))
    assert "card.json" in refusal(folder)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="neither a folder nor embedded"):
        triptych.load(tmp_path / "nothing")
    with pytest.raises(ValueError, match="missing"):
        triptych.load(tmp_path)


# --- hostile ------------------------------------------------------------------------------------------------------------

PWNED = "__import__('os').system('touch PWNED')"


class Bomb:
    """Unpickled, it leaves a file named PWNED."""

    def __reduce__(self) -> Any:
        return os.system, ("touch PWNED",)


def hostile_folders(good: Path, into: Path) -> list[str]:
    """Every way that the formats of others have been made to run something, each in a folder that is otherwise in order."""
    bomb = pickle.dumps(Bomb())
    torch_file = io.BytesIO()
    torch.save({"weight": Bomb()}, torch_file)

    def config(change: Callable[[dict[str, Any]], None], place: str = "generator") -> Callable[[Path], None]:
        return lambda model: edit_json(model / place / "config.json", change)

    def put(place: str, name: str, content: bytes) -> Callable[[Path], None]:
        return lambda model: (model / place / name).write_bytes(content) and None

    ways: dict[str, Callable[[Path], None]] = {
        "family-is-code": config(lambda c: c.update(family=PWNED)),
        "family-is-a-path": config(lambda c: c.update(family="../../PWNED")),
        "family-is-a-module": config(lambda c: c.update(family="triptych.PWNED:Bomb")),
        "kind-is-code": config(lambda c: c.update(kind=PWNED)),
        "target": config(lambda c: c.update(_target_="os.system", _args_=["touch PWNED"])),
        "target-in-config": config(lambda c: c["config"].update(_target_="os.system", args="touch PWNED")),
        "auto-map": config(lambda c: c.update(auto_map={"AutoModel": "PWNED.Bomb"}, trust_remote_code=True)),
        "field-is-code": config(lambda c: c["config"].update(width=PWNED)),
        "literal-is-code": config(lambda c: c["config"].update(norm=PWNED)),
        "process-is-code": config(lambda c: c["process"].update(family=PWNED)),
        "process-field-is-code": config(lambda c: c["process"]["config"].update(target=PWNED)),
        "decoder-field-is-code": config(lambda c: c["config"].update({next(iter(c["config"])): PWNED}), "decoder"),
        "words-are-code": put("text_encoder", "tokenizer.json", json.dumps({"model": {"type": PWNED}}).encode()),
        "words-are-a-pickle": put("text_encoder", "tokenizer.json", bomb),
        "weights-are-a-pickle": put("generator", "model.safetensors", bomb),
        "weights-are-a-torch-file": put("generator", "model.safetensors", torch_file.getvalue()),
        "config-is-yaml": put("generator", "config.json", b"!!python/object/apply:os.system ['touch PWNED']"),
        "card-is-yaml": put("decoder", "card.json", b"!!python/object/apply:os.system ['touch PWNED']"),
        "a-torch-file-beside": put("generator", "pytorch_model.bin", torch_file.getvalue()),
        "code-beside": put("generator", "dit.py", f"{PWNED}\n".encode()),
        "code-beside-the-words": put("text_encoder", "tokenizer.py", f"{PWNED}\n".encode()),
        "code-in-the-model": lambda model: (model / "sitecustomize.py").write_text(f"{PWNED}\n") and None,
        "a-link-to-a-secret": lambda model: (model / "text_encoder" / "notes.txt").symlink_to(into.parent / "nowhere"),
        "sampling-is-code": lambda model: edit_json(model / "triptych.json", lambda m: m.update(sampling={"sampler": PWNED})),
        "name-is-a-path": lambda model: edit_json(model / "triptych.json", lambda m: m.update(name="../../PWNED")),
    }  # fmt: skip
    for name, spoil in ways.items():
        model = shutil.copytree(good, into / name)
        spoil(model)
        for place in PLACES:
            if name != "card-is-yaml":
                certify(model / place)
    return list(ways)


def test_nothing_in_a_folder_is_ever_run(two_models: list[Path], tmp_path: Path) -> None:
    """Loading hostile folders, watched by an audit hook: no process, no socket, no unpickling, no code of theirs."""
    hostile = tmp_path / "hostile"
    good = shutil.copytree(two_models[0], tmp_path / "good")
    ways = hostile_folders(good, hostile)
    for way in ("field-is-code", "process-field-is-code", "family-is-code"):  # the same turns unwatched: what they import is imported
        shutil.copytree(hostile / way, tmp_path / f"warm-{way}")
    found = watch(good, hostile, tmp_path)
    assert found["events"] == []
    assert not list(tmp_path.rglob("PWNED")), "something ran"
    harmless = {"kind-is-code", "target", "auto-map", "a-torch-file-beside", "code-beside", "code-in-the-model", "name-is-a-path"}
    harmless |= {"code-beside-the-words", "a-link-to-a-secret"}  # nobody reads them, or they are refused by the card: both are well
    assert set(found["results"]) == set(ways)
    assert {way for way, result in found["results"].items() if result == "loaded"} <= harmless


def watch(good: Path, hostile: Path, where: Path, *options: str) -> dict[str, Any]:
    script, log = Path(__file__).with_name("watched.py"), where / "log.json"
    done = subprocess.run(
        [sys.executable, str(script), str(good), str(hostile), str(log), *options], capture_output=True, text=True, cwd=where, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(log.read_text())


def test_the_watch_sees_what_it_watches(two_models: list[Path], tmp_path: Path) -> None:
    """The hook of the test above, turned on a loader that does unpickle."""
    model = shutil.copytree(two_models[0], tmp_path / "hostile" / "one")
    (model / "bomb").write_bytes(pickle.dumps(Bomb()))
    seen = {event for event, _ in watch(two_models[0], tmp_path / "hostile", tmp_path, "--unpickle")["events"]}
    assert {"pickle.find_class", "os.system"} <= seen and (tmp_path / "PWNED").exists()
