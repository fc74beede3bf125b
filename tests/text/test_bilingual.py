"""The bilingual text encoder: rows are their own, words of both languages are learnt, nothing is cut in silence."""

from __future__ import annotations

import warnings

import pytest
import torch

from tests.text.words import TEXTS
from triptych import catalog
from triptych.contracts import Batch, Prompt, Rng, TextEncoder
from triptych.text_encoders.bilingual import SIZES, BilingualTransformer, Config, MaskedWords, PromptTooLong


@pytest.fixture(scope="module")
def panel() -> BilingualTransformer:
    torch.manual_seed(0)
    panel = catalog.build("text_encoders", "bilingual", size="tiny")
    panel.learn_vocabulary(TEXTS)
    return panel


def batch_of(texts: list[str], first: int = 0) -> Batch:
    return Batch(index=tuple(range(first, first + len(texts))), prompts=tuple(Prompt(text=text) for text in texts))


def test_it_is_a_text_encoder(panel):
    assert isinstance(panel, TextEncoder)
    gives, cond = panel.gives, panel.encode(["red apple", Prompt(text="三个绿色的三角形")])
    assert cond.ids_BL.dtype == torch.int64 and cond.mask_BL.dtype == torch.bool
    assert cond.tokens_BLD.shape == (2, cond.ids_BL.shape[1], gives.width) and cond.pooled_BD.shape == (2, gives.pooled)
    assert cond.ids_BL.shape[1] == cond.mask_BL.sum(1).max() <= gives.context_length, "trimmed to the longest prompt"
    assert int(cond.ids_BL.max()) < gives.vocab
    assert all(port.isfinite().all() for port in (cond.tokens_BLD, cond.pooled_BD))
    assert cond.ports().keys() == {"ids_BL", "tokens_BLD", "mask_BL", "pooled_BD"}


@torch.no_grad()
def test_a_row_depends_neither_on_batch_mates_nor_on_padding(panel):
    together = panel.encode(TEXTS)
    ids_BL, mask_BL = panel.ids(TEXTS)
    tail = ids_BL.new_zeros(len(TEXTS), panel.config.context_length - ids_BL.shape[1])
    padded = panel.condition(torch.cat([ids_BL, tail], 1), torch.cat([mask_BL, tail.bool()], 1))
    for i, text in enumerate(TEXTS):
        alone = panel.encode([text])
        length = alone.ids_BL.shape[1]
        for company in (together, padded):
            assert torch.equal(company.ids_BL[i, :length], alone.ids_BL[0])
            torch.testing.assert_close(company.tokens_BLD[i, :length], alone.tokens_BLD[0], atol=2e-6, rtol=0)
            torch.testing.assert_close(company.pooled_BD[i], alone.pooled_BD[0], atol=2e-6, rtol=0)
            assert not company.tokens_BLD[i, length:].any(), "padding says nothing"


@torch.no_grad()
def test_the_order_of_words_matters(panel):
    one, other = panel.encode(["red circle blue square", "blue circle red square"]).pooled_BD
    assert (one - other).abs().max() > 1e-4


@torch.no_grad()
def test_null_is_the_empty_prompt(panel):
    null, empty = panel.null(["red apple", "火箭"]), panel.encode(["", ""])
    for name, port in null.ports().items():
        torch.testing.assert_close(port, empty.ports()[name])
    dropped = panel.encode(["red apple", "火箭"]).drop({"tokens_BLD": torch.tensor([True, False])}, null)
    torch.testing.assert_close(dropped.tokens_BLD[1, :2], empty.tokens_BLD[1])


def test_an_over_long_prompt_is_said(panel):
    room = panel.config.context_length - 2
    with pytest.warns(PromptTooLong, match=r"not read: '绿 Circle'"):
        cond = panel.encode(["red " * room + "绿 Circle"])
    assert cond.ids_BL.shape == (1, panel.config.context_length) and cond.ids_BL[0, -1] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        panel.encode(["red " * room])


def test_without_a_vocabulary_the_way_out_is_named():
    panel = BilingualTransformer(SIZES["tiny"])
    assert panel.assets() == {} and not panel.has_vocabulary
    with pytest.raises(ValueError, match="learn_vocabulary"):
        panel.encode(["red"])


def test_mistakes_are_errors(panel):
    with pytest.raises(ValueError, match="0 prompts"):
        panel.encode([])
    with pytest.raises(ValueError, match="build a new encoder"):
        panel.learn_vocabulary(TEXTS)
    with pytest.raises(ValueError, match="width 30"):
        BilingualTransformer(Config(width=30, num_heads=4))
    with pytest.raises(ValueError, match="context_length 2"):
        BilingualTransformer(Config(context_length=2))
    with pytest.raises(ValueError, match="300 rows"):
        BilingualTransformer(Config(vocab=300), assets=panel.assets())


@torch.no_grad()
def test_weights_and_assets_restore_it(panel):
    other = BilingualTransformer(panel.config, assets=panel.assets())
    other.load_state_dict(panel.state_dict(), strict=True)
    for name, port in other.encode(TEXTS).ports().items():
        assert torch.equal(port, panel.encode(TEXTS).ports()[name])
    assert other.assets() == panel.assets() and list(panel.assets()) == ["tokenizer.json"]


def test_the_head_is_the_embedding_and_the_default_is_small():
    with torch.device("meta"):
        panel = catalog.build("text_encoders", "bilingual", size="emoji")
    assert sum(p.numel() for p in panel.parameters()) <= 1_450_000
    assert sum(p.shape[0] == panel.config.vocab for p in panel.parameters()) == 1


def test_masking_is_a_matter_of_the_row_alone(panel):
    whole, half = TEXTS, TEXTS[5:9]
    rng = Rng.of_samples(0, range(len(whole)))
    together, apart = panel.masked_words(whole, rng), panel.masked_words(half, rng.rows(slice(5, 9)))
    inside = (together["row_M"] >= 5) & (together["row_M"] < 9)
    assert torch.equal(together["row_M"][inside] - 5, apart["row_M"])
    torch.testing.assert_close(together["loss_M"][inside], apart["loss_M"], atol=1e-5, rtol=0)
    assert set(together["row_M"].tolist()) == set(range(len(whole))), "every prompt with words has one hidden"


def test_the_share_of_hidden_words(panel):
    texts = ["red green blue apple cat dog face fire " * 3] * 200
    words = len(panel.tokenizer.encode(texts[:1])[0])
    share = len(panel.masked_words(texts, Rng.of_seeds(range(200)), 0.15)["row_M"]) / (200 * words)
    assert abs(share - 0.15) < 0.02


def test_prompts_without_words_have_no_loss_and_do_no_harm(panel):
    task = MaskedWords(panel)
    loss = task.losses(batch_of(["", " "]), "main", 0, Rng.of_seeds([0, 1]))["loss"]
    loss.backward()
    assert loss == 0 and all(p.grad is None or p.grad.isfinite().all() for p in panel.parameters())
    held = task.validate(batch_of(["", "red apple"]))
    assert held["loss"].shape == (2,) and held["loss"][0] == 0 and held["loss"][1] > 0
    panel.zero_grad()


def test_every_parameter_has_a_gradient(panel):
    MaskedWords(panel).losses(batch_of(TEXTS), "main", 0, Rng.of_seeds(range(len(TEXTS))))["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for p in panel.parameters())
    panel.zero_grad()


def test_words_of_both_languages_are_learnt():
    torch.manual_seed(0)
    panel = catalog.build("text_encoders", "bilingual", size="tiny")

    class Texts:
        def texts(self, n: int) -> list[str]:
            return TEXTS[:n]

    task = catalog.find("text_encoders", "bilingual").TASKS["masked_words"](panel, neighbours={}, mask=0.15)
    task.prepare_data(Texts())
    batch = batch_of([text for text in TEXTS if len(panel.tokenizer.encode([text])[0]) > 3])
    first = task.validate(batch)
    assert first["loss"].shape == first["right"].shape == (len(batch.prompts),)
    assert torch.equal(first["loss"], task.validate(batch)["loss"]), "the masking of validation never changes"
    optimizer = torch.optim.AdamW(task.trainable("main").values(), lr=1e-2)
    for step in range(120):
        optimizer.zero_grad()
        task.losses(batch, "main", step, Rng.of_samples(1, range(step * 64, step * 64 + len(batch.prompts))))["loss"].backward()
        optimizer.step()
    last = task.validate(batch)
    chinese = torch.tensor([not prompt.text.isascii() for prompt in batch.prompts])
    for rows in (chinese, ~chinese):
        assert last["loss"][rows].mean() < 0.35 * first["loss"][rows].mean()
        assert last["right"][rows].mean() > first["right"][rows].mean() + 0.3
    assert task.plan(0) == ("main",) and list(task.panels()) == ["text_encoder"] and task.preview([], batch) is None


def test_a_share_that_is_none_is_refused(panel):
    with pytest.raises(ValueError, match=r"mask 1\.5"):
        MaskedWords(panel, mask=1.5)
