"""What every text encoder that reads words promises beyond `test_catalog.py`: padding, prompts too long, vocabularies, files."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.contract import tiny
from tests.text.words import TEXTS
from triptych import catalog, checkpoint
from triptych.contracts import Batch, Prompt, Rng, TextEncoder
from triptych.text_encoders._prompts import PromptTooLong, Tokenized

READERS = [name for name in tiny.names("text_encoders") if issubclass(catalog.family("text_encoders", name), Tokenized)]
LEARNERS = [(name, task) for name in READERS for task in getattr(catalog.find("text_encoders", name), "TASKS", {})]

pytestmark = pytest.mark.filterwarnings("error::UserWarning")


def panel_of(name: str) -> Any:
    return tiny.awake(tiny.build("text_encoders", name)).eval()


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


def test_there_are_readers() -> None:
    assert {"bert", "bilingual", "clip", "gpt", "ldm_bert", "t5"} <= set(READERS)


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_shapes(name: str) -> None:
    panel = panel_of(name)
    assert isinstance(panel, TextEncoder)
    gives, cond = panel.gives, panel.encode(["red apple", Prompt(text="三个绿色的三角形")])
    length = cond.ids_BL.shape[1]
    assert cond.ports().keys() == {"ids_BL", "tokens_BLD", "mask_BL", "pooled_BD"}
    assert (
        cond.ids_BL.dtype == torch.int64 and cond.mask_BL.dtype == torch.bool and 0 <= cond.ids_BL.min() <= cond.ids_BL.max() < gives.vocab
    )
    assert cond.tokens_BLD.shape == (2, length, gives.width) and cond.pooled_BD.shape == (2, gives.pooled)
    assert length == cond.mask_BL.sum(1).max() <= gives.context_length, "trimmed to the longest prompt"
    assert cond.tokens_BLD.isfinite().all() and cond.pooled_BD.isfinite().all()
    assert not cond.mask_BL.all(), "the two differ in length"


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_neither_padding_nor_what_stands_in_it_nor_the_rows_beside_change_a_row(name: str) -> None:
    panel = panel_of(name)
    together, (ids_BL, mask_BL) = panel.encode(TEXTS), panel.ids(TEXTS)
    room = panel.gives.context_length - ids_BL.shape[1]
    assert room > 0 and not mask_BL.all()
    long_mask = torch.cat([mask_BL, mask_BL.new_zeros(len(TEXTS), room)], 1)
    padded = panel.condition(torch.cat([ids_BL, ids_BL.new_zeros(len(TEXTS), room)], 1), long_mask)
    companies = [together, padded]
    if getattr(panel.config, "end", 0) is not None:  # CLIP's [end] is the highest id of the row, whatever else stands in it
        junk = torch.randint(4, 300, (len(TEXTS), panel.gives.context_length), generator=torch.Generator().manual_seed(0))
        companies.append(panel.condition(torch.where(long_mask, padded.ids_BL, junk), long_mask))
    for i, text in enumerate(TEXTS):
        alone = panel.encode([text])
        length = alone.ids_BL.shape[1]
        for company in companies:
            assert torch.equal(company.ids_BL[i, :length], alone.ids_BL[0])
            close(company.tokens_BLD[i, :length], alone.tokens_BLD[0])
            close(company.pooled_BD[i], alone.pooled_BD[0])
            assert not company.tokens_BLD[i, length:].any(), "padding says nothing"


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_null_is_the_empty_prompt(name: str) -> None:
    panel = panel_of(name)
    null, empty = panel.null(["red apple", "火箭", ""]), panel.encode(["", "", ""])
    assert null.ports().keys() == empty.ports().keys() and len(null.ids_BL) == 3
    for port, value in null.ports().items():
        torch.testing.assert_close(value, empty.ports()[port])
    said = panel.encode(["red apple", "火箭"])
    assert (said.pooled_BD - null.pooled_BD[:2]).abs().amax(1).min() > 1e-4
    dropped = said.drop({"tokens_BLD": torch.tensor([True, False])}, panel.null(["", ""]))
    torch.testing.assert_close(dropped.tokens_BLD[1, : empty.ids_BL.shape[1]], empty.tokens_BLD[1])


@pytest.mark.parametrize("name", READERS)
def test_the_empty_prompt_is_read_once_until_a_weight_changes(name: str) -> None:
    panel, read = panel_of(name), []
    condition = panel.condition
    panel.condition = lambda *said: read.append(len(said[0])) or condition(*said)
    with torch.no_grad():
        first, again = panel.null(["a"]), panel.null(["b", "c"])
        assert read == [1] and torch.equal(again.tokens_BLD[1], first.tokens_BLD[0])
        with torch.autocast("cpu", torch.bfloat16):
            panel.null(["a"])
        assert len(read) == 2, "another precision"
        panel.embedding.weight.add_(1.0)  # as an optimizer does
        other = panel.null(["a"])
        assert len(read) == 3 and not torch.equal(other.tokens_BLD, first.tokens_BLD)
        panel.load_state_dict({key: value.clone() for key, value in panel.state_dict().items()}, assign=True)
        torch.testing.assert_close(panel.null(["a"]).tokens_BLD, other.tokens_BLD)
        assert len(read) == 4, "other tensors"
    assert panel.null(["a"]).tokens_BLD.requires_grad and len(read) == 5, "in learning nothing is kept"


@pytest.mark.parametrize("name", READERS)
def test_a_prompt_that_is_too_long_says_what_was_not_read(name: str) -> None:
    panel = panel_of(name)
    words, most = panel.tokenizer, panel.config.context_length
    frame, each = len(panel.ids([""])[0][0]), len(words.encode(["red"])[0])
    fitting = "red " * ((most - frame) // each)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert panel.ids([fitting])[0].shape[1] <= most
    with pytest.warns(PromptTooLong, match=r"not read: '.*Green Circle'") as caught:
        cond = panel.encode([fitting + "red " * each + "Green Circle", "red"])
    assert caught[0].filename == __file__ and cond.ids_BL.shape == (2, most) and cond.ids_BL[0, -1] == words.end


@pytest.mark.parametrize("name", READERS)
def test_a_vocabulary_is_needed_and_learnt_once(name: str) -> None:
    config = catalog.find("text_encoders", name).SIZES["tiny"]
    panel = catalog.build("text_encoders", name, config)
    assert panel.assets() == {} and not panel.has_vocabulary
    for say in (panel.encode, panel.null, panel.ids):
        with pytest.raises(ValueError, match=re.escape("learn_vocabulary(texts)")):
            say(["red"])
    panel.learn_vocabulary(iter(TEXTS))
    assert panel.has_vocabulary and list(panel.assets()) == ["tokenizer.json"]
    again = catalog.build("text_encoders", name, config, assets=panel.assets())
    assert torch.equal(again.ids(TEXTS)[0], panel.ids(TEXTS)[0]) and again.assets() == panel.assets()
    with pytest.raises(ValueError, match="build a new encoder"):
        panel.learn_vocabulary(TEXTS)
    with pytest.raises(ValueError, match="0 prompts"):
        panel.encode([])
    with pytest.raises(ValueError, match="tokenizer"):
        catalog.build("text_encoders", name, config, assets={"tokenizer.json": b"\xff"})


@pytest.mark.parametrize("name", READERS)
@torch.no_grad()
def test_nothing_in_a_prompt_is_a_command(name: str) -> None:
    panel = panel_of(name)
    special = {getattr(panel.tokenizer, role, None) for role in ("start", "end", "pad", "mask")} | {*getattr(panel, "sentinels", list)()}
    edge = panel.ids([""])[0].shape[1] - 1
    for text in ("[MASK] [PAD] [BOS] [EOS] [CLS]", "</s> <pad> <extra_id_0>", "<|endoftext|>"):
        said = panel.ids([text])[0][0].tolist()
        assert len(said) > 8 and not special & set(said[edge:-1])


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_is_loaded_says_the_same_to_the_last_bit(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    panel = panel_of(name)
    if dtype != torch.float32:
        panel.load_state_dict({key: tensor.to(dtype).float() for key, tensor in panel.state_dict().items()})
    save = {"kind": "text_encoders", "name": name, "config": panel.config, "card": {}, "dtype": dtype}
    checkpoint.save_panel(tmp_path / "text_encoder", panel, **save)
    loaded = checkpoint.load_panel(tmp_path, "text_encoder")
    assert type(loaded) is type(panel) and loaded.config == panel.config
    for said, again in ((panel.encode(TEXTS), loaded.encode(TEXTS)), (panel.null(TEXTS), loaded.null(TEXTS))):
        assert all(torch.equal(port, again.ports()[key]) for key, port in said.ports().items())


@pytest.mark.parametrize("name", READERS)
def test_who_listens_reaches_every_parameter(name: str) -> None:
    """Tokens or the pooled state alone, as a generator and a CLIP hear them."""
    panel = panel_of(name).train()
    for port in ("tokens_BLD", "pooled_BD"):
        panel.zero_grad(set_to_none=True)
        heard = panel.encode(TEXTS).ports()[port]
        (heard * torch.randn(heard.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
        silent = [key for key, p in panel.named_parameters() if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()]
        assert not silent, f"{port}: {silent}"


@pytest.mark.parametrize(("name", "task"), LEARNERS)
def test_its_task_learns_a_few_texts_by_heart(name: str, task: str) -> None:
    panel = tiny.build("text_encoders", name)
    made = catalog.find("text_encoders", name).TASKS[task](panel, neighbours={})
    batch = Batch(index=tuple(range(8)), prompts=tuple(Prompt(text=text) for text in TEXTS[:8]))
    first, parts = made.validate(batch), made.panels()
    assert first["loss"].shape == first["right"].shape == (8,) and list(parts) == ["text_encoder"] and parts["text_encoder"] is panel
    optimizer = torch.optim.AdamW(made.trainable("main").values(), lr=1e-2)
    for step in range(50):
        optimizer.zero_grad()
        made.losses(batch, "main", step, Rng.of_samples(0, batch.index))["loss"].backward()
        if step == 0:
            assert all(p.grad is not None and p.grad.any() for p in made.trainable("main").values())
        optimizer.step()
    last = made.validate(batch)
    assert last["loss"].mean() < 0.2 * first["loss"].mean() and last["right"].mean() > 0.8
    empty = made.losses(Batch(index=(0,), prompts=(Prompt(text=""),)), "main", 0, Rng.of_seeds([0]))["loss"]
    empty.backward()
    assert empty.isfinite()
