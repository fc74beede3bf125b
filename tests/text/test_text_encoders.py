"""BERT, GPT and T5: what each hides and hears, what their tasks learn from texts, and each of them below a generator."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import triptych
from tests.text.words import TEXTS
from triptych import catalog, checkpoint, recipes
from triptych.contracts import Batch, Prompt, Rng
from triptych.recipe import Data, Family, Neighbour, Optimizer, Recipe, Source, override
from triptych.text_encoders.t5 import SpanCorruption
from triptych.training import GeneratorTask, Report, build_task, train

FAMILIES = {"bert": "masked_words", "gpt": "next_word", "t5": "span_corruption"}


def words(family: str, **changed: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = catalog.configure("text_encoders", family, "tiny", changed)
        panel = catalog.build("text_encoders", family, config)
    panel.learn_vocabulary(TEXTS)
    return panel


def batch_of(texts: list[str], first: int = 0) -> Batch:
    return Batch(index=tuple(range(first, first + len(texts))), prompts=tuple(Prompt(text=text) for text in texts))


# --- what a network hears -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "hears"), [("bert", "all"), ("gpt", "before"), ("t5", "all")])
@torch.no_grad()
def test_who_hears_whom(family: str, hears: str) -> None:
    """The last word is changed; the pooled state always tells."""
    panel = words(family)
    one, other = (panel.encode([text]) for text in ("red circle left of a blue square", "red circle left of a blue cat"))
    same = int((one.ids_BL == other.ids_BL)[0].long().cumprod(0).sum())
    moved = (one.tokens_BLD - other.tokens_BLD[:, : one.tokens_BLD.shape[1]] if one.ids_BL.shape == other.ids_BL.shape else
             one.tokens_BLD[:, :same] - other.tokens_BLD[:, :same])[0, :same].abs().amax(1)  # fmt: skip
    assert same >= 6 and (moved > 1e-4).all() if hears == "all" else (moved < 1e-6).all()
    assert (one.pooled_BD - other.pooled_BD).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_order_of_words_matters(family: str) -> None:
    one, other = words(family).encode(["red circle blue square", "blue circle red square"]).tokens_BLD[:, 1:5].mean(1)
    assert (one - other).abs().max() > 1e-4


@torch.no_grad()
def test_what_is_pooled() -> None:
    said = {family: words(family).encode(TEXTS) for family in FAMILIES}
    last_B = said["gpt"].mask_BL.sum(1) - 1
    mean_BD = torch.stack([row[real].mean(0) for row, real in zip(said["t5"].tokens_BLD, said["t5"].mask_BL, strict=True)])
    torch.testing.assert_close(said["bert"].pooled_BD, said["bert"].tokens_BLD[:, 0])
    torch.testing.assert_close(said["gpt"].pooled_BD, said["gpt"].tokens_BLD[torch.arange(len(TEXTS)), last_B])
    torch.testing.assert_close(said["t5"].pooled_BD, mean_BD)
    pooler = words("bert", pooler=True)
    state = pooler.encode(TEXTS).tokens_BLD[:, 0]
    torch.testing.assert_close(pooler.encode(TEXTS).pooled_BD, pooler.pooler(state).tanh())


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_the_network_alone(family: str) -> None:
    """Without a mask all tokens are real; and there is a longest prompt."""
    panel = words(family)
    cond = panel.encode([TEXTS[3]])
    assert cond.mask_BL.all()
    alone = panel.condition(cond.ids_BL)
    torch.testing.assert_close(alone.tokens_BLD, cond.tokens_BLD)
    torch.testing.assert_close(alone.pooled_BD, cond.pooled_BD)
    with pytest.raises(ValueError, match="49 tokens, where this text encoder reads 48"):
        panel.condition(torch.full((1, 49), 5))


def test_all_three_read_the_same_words_by_the_same_numbers() -> None:
    """But for T5's, which has no first token and keeps the last ids for its sentinels."""
    panels = {family: words(family, vocab=512) for family in FAMILIES}
    assert panels["bert"].assets() == panels["gpt"].assets()
    ids = {family: panel.ids(TEXTS[:1])[0][0].tolist() for family, panel in panels.items()}
    assert ids["bert"] == ids["gpt"] and ids["bert"][0] == 1 and ids["bert"][-1] == ids["t5"][-1] == 2
    t5 = panels["t5"]
    assert t5.sentinels() == list(range(511, 503, -1)) and max(t5.tokenizer.ordinary_V) < len(t5.tokenizer) - 8 < 504
    assert all(set(panel.tokenizer.ordinary_V.tolist()).isdisjoint(range(4)) for panel in panels.values())
    with pytest.raises(ValueError, match="too small"):
        catalog.build("text_encoders", "t5", {"vocab": 300, "sentinels": 100}).learn_vocabulary(TEXTS)
    with pytest.raises(ValueError, match=f"has {len(t5.tokenizer)} tokens, the embedding 310 rows"):
        catalog.build("text_encoders", "t5", {"vocab": 310, "sentinels": 8}, assets=t5.assets())


@pytest.mark.parametrize(
    ("family", "wrong", "said"),
    [
        ("bert", {"width": 30, "num_heads": 4}, "width 30 does not split into 4 heads"),
        ("bert", {"context_length": 2}, "no room for a word"),
        ("gpt", {"width": 30, "num_heads": 4}, "width 30 does not split into 4 heads"),
        ("gpt", {"context_length": 2}, "no room for a word"),
        ("gpt", {"activation": "relu"}, "activation = 'relu'"),
        ("t5", {"context_length": 1}, "no room for a word"),
        ("t5", {"buckets": 3}, "3 buckets"),
        ("t5", {"max_distance": 16}, "up to distance 16"),
    ],
)
def test_mistakes_are_errors(family: str, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        catalog.build("text_encoders", family, catalog.configure("text_encoders", family, "tiny", wrong))


# --- masked words and spans ---------------------------------------------------------------------------------------------


def test_of_the_hidden_words_80_percent_are_masked_and_10_are_others() -> None:
    panel, rows = words("bert"), 400
    texts = ["red green blue apple cat dog face fire " * 3] * rows
    ids, mask = panel.ids(texts)
    seen: list[torch.Tensor] = []
    states = panel._states
    panel._states = lambda ids_BL, mask_BL: seen.append(ids_BL) or states(ids_BL, mask_BL)
    found = panel.masked_words(texts, Rng.of_seeds(range(rows)))
    share = len(found["loss_M"]) / (rows * (int(mask[0].sum()) - 2))
    masked, changed = (seen[0] == 3).sum() / len(found["loss_M"]), ((seen[0] != ids) & (seen[0] != 3)).sum() / len(found["loss_M"])
    assert abs(share - 0.15) < 0.01 and abs(masked - 0.8) < 0.03 and abs(changed - 0.1) < 0.02
    others = set(seen[0][seen[0] != ids].tolist()) - {3}
    assert min(others) > 3 and max(others) < len(panel.tokenizer) and len(others) > 60
    assert torch.equal(seen[0][:, 0], ids[:, 0]) and torch.equal(seen[0][:, -1], ids[:, -1]), "first and last are no words"


def test_every_row_hides_a_word_if_it_has_one() -> None:
    found = words("bert").masked_words(["red", "", "red apple"], Rng.of_seeds([0, 1, 2]))
    assert found["row_M"].tolist() == [0, 2]


def rebuilt(said: list[int], answer: list[int], sentinels: list[int]) -> list[int]:
    """The text, from what was left and from what was answered."""
    spans: dict[int, list[int]] = {}
    for token in answer[:-1]:
        if token in sentinels:
            spans[token] = last = []
        else:
            last.append(token)
    return [word for token in said for word in spans.get(token, [token])]


@pytest.mark.parametrize(("mask", "span"), [(0.15, 3.0), (0.5, 1.0), (0.5, 2.0), (0.9, 3.0), (0.01, 1.0)])
def test_what_is_cut_out_is_answered(mask: float, span: float) -> None:
    panel = words("t5")
    texts = [*TEXTS, "red", "", "red apple " * 23]
    said, real, answer = SpanCorruption(panel, mask=mask, span=span).corrupted(texts, Rng.of_seeds(range(len(texts))))
    ids, mask_BL = panel.ids(texts)
    sentinels = panel.sentinels()
    for i in range(len(texts)):
        whole, left, spoken = ids[i][mask_BL[i]].tolist(), said[i][real[i]].tolist(), [t for t in answer[i].tolist() if t >= 0]
        length = len(whole) - 1
        if not length:
            assert not spoken and left == whole
            continue
        used = [token for token in left if token in sentinels]
        assert rebuilt(left, spoken, sentinels) == whole and spoken[-1] == left[-1] == 2
        assert used == sentinels[: len(used)] == [token for token in spoken if token in sentinels] and used
        assert not any(a in sentinels and b in sentinels for a, b in pairwise(left)), "spans that touch are one"
        hidden = len(spoken) - 1 - len(used)
        assert hidden == min(max(round(mask * length), 1), length)
        assert len(used) == min(max(round(hidden / span), 1), length - hidden + 1, 8)
        assert not any(a in sentinels and (b in sentinels or b == 2) for a, b in pairwise(spoken)), "no span is empty"


def test_every_way_to_place_spans_is_as_likely_as_another() -> None:
    """One word of six; two that do not touch, one of ten pairs; a span of two, one of five: the first word as well."""
    panel, rows, text = words("t5"), 1200, "red green blue cat face apple"
    whole = panel.ids([text])[0][0].tolist()
    assert len(whole) == 7
    for mask, span, shares in ((0.15, 3.0, [1 / 6] * 6), (0.34, 1.0, [0.4, 0.3, 0.3, 0.3, 0.3, 0.4])):
        _, _, answer = SpanCorruption(panel, mask=mask, span=span).corrupted([text] * rows, Rng.of_seeds(range(rows)))
        often = Counter(answer.flatten().tolist())
        assert all(abs(often[word] / rows - share) < 0.05 for word, share in zip(whole, shares, strict=False)), often
    pairs = [tuple(w for w in row if w in whole[:-1]) for row in SpanCorruption(panel, mask=0.34).corrupted(
        [text] * rows, Rng.of_seeds(range(rows)))[2].tolist()]  # fmt: skip
    assert set(Counter(pairs)) == {(whole[i], whole[i + 1]) for i in range(5)} and min(Counter(pairs).values()) > rows / 5 * 0.75


def test_corruption_is_a_matter_of_the_row_alone() -> None:
    task, rng = SpanCorruption(words("t5")), Rng.of_samples(0, range(len(TEXTS)))
    together, apart = task.corrupted(TEXTS, rng), task.corrupted(TEXTS[5:9], rng.rows(slice(5, 9)))
    for a, b in zip(together, apart, strict=True):
        assert torch.equal(a[5:9, : b.shape[1]], b)
    losses = task.validate(batch_of(TEXTS))["loss"]
    torch.testing.assert_close(losses[5:9], task.validate(batch_of(TEXTS[5:9], 5))["loss"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"mask": 1.5}, {"mask": 0.0}, {"span": 0.5}, {"decoder_depth": 0}])
def test_options_that_are_none_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} {next(iter(options.values()))}"):
        SpanCorruption(words("t5"), **options)  # type: ignore[arg-type]


# --- each alone, on texts -----------------------------------------------------------------------------------------------


def of_texts(family: str, **changed: Any) -> Recipe:
    """A few dozen steps on scene sentences in two languages, which need neither font nor CLDR."""
    fields: dict[str, Any] = {
        "name": f"{family}-words", "panel": "text_encoders", "family": Family(name=family, size="tiny"), "task": FAMILIES[family],
        "task_options": {"vocabulary_texts": 500},
        "data": Data(sources=(Source(name="texts", options={"emoji_share": 0}),), size=0), "optimizer": Optimizer(lr=1e-2, warmup=0.1),
        "steps": 60, "batch": 32, "compile": False, "precision": "float32", "validate_every": 60, "preview_every": 100, "save_every": 60,
    }  # fmt: skip
    return Recipe(**{**fields, **changed})


@pytest.fixture(scope="module", params=FAMILIES)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp("words") / request.param
    torch.set_num_threads(1)
    assert train(of_texts(request.param), out=out, report=Report(quiet=True), device="cpu").reason == "finished"
    return request.param, out


BOUNDS = {"bert": (0.7, 0.08), "gpt": (0.45, 0.3), "t5": (0.45, 0.08)}  # of the first loss; held-out words guessed


def test_it_learns_from_texts_alone(run: tuple[str, Path]) -> None:
    family, out = run
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    held = [line for line in lines if line["kind"] == "held_out"]
    share, right = BOUNDS[family]
    assert sum(losses[-5:]) / 5 < share * losses[0], [round(loss, 2) for loss in losses]
    assert held[-1]["right"] > right


def test_what_is_exported_is_the_encoder_alone(run: tuple[str, Path]) -> None:
    family, out = run
    assert [path.name for path in (out / "model").iterdir() if path.is_dir()] == ["text_encoder"]
    panel = checkpoint.load_panel(out / "model", "text_encoder")
    assert type(panel) is catalog.family("text_encoders", family) and panel.has_vocabulary
    assert panel.encode(["a red circle"]).pooled_BD.isfinite().all()  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "parameters"), [("bert-words", 0.54), ("gpt-words", 0.54), ("t5-words", 0.53), ("clip-words", 2.6)])
def test_the_recipes_train_the_encoder_alone(name: str, parameters: float) -> None:
    recipe = recipes.get(name)
    task = build_task(recipe)
    assert list(task.panels()) == ["text_encoder"] and recipe.data.size == 0 and recipe.name == name
    panel = task.panels()["text_encoder"]
    assert sum(p.numel() for p in panel.parameters()) / 1e6 == pytest.approx(parameters, rel=0.03)
    assert type(task) is catalog.find("text_encoders", recipe.family.name).TASKS[recipe.task]


# --- below a generator --------------------------------------------------------------------------------------------------

SHORT = ["steps=3", "batch=4", "save_every=3", "task_options.vocabulary_texts=300", "sampling.steps=2", "preview_prompts=[a red circle]"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_generator_is_trained_with_it(family: str, tmp_path: Path) -> None:
    """Built new and trained along, chosen as the command line chooses it."""
    recipe = override(recipes.get("tiny"), [*SHORT, f"text_encoder={family}/tiny"])
    chosen = [f"neighbours.text_encoder.family.{field}" for field in (f"name={family}", "size=tiny")]
    assert recipe == override(recipes.get("tiny"), [*SHORT, *chosen])
    task = build_task(recipe)
    assert isinstance(task, GeneratorTask) and type(task.text_encoder) is catalog.family("text_encoders", family)
    before = {name: p.detach().clone() for name, p in task.text_encoder.named_parameters()}  # type: ignore[attr-defined]
    train(recipe, out=tmp_path, task=task, report=Report(quiet=True), device="cpu")
    moved = {name for name, p in task.text_encoder.named_parameters() if not torch.equal(p, before[name])}  # type: ignore[attr-defined]
    assert moved == before.keys()
    model = triptych.load(tmp_path / "model")
    assert type(model.text_encoder) is type(task.text_encoder) and model.generate(["a red circle"], seeds=[0])[0].size == (8, 8)


def test_one_word_for_a_neighbour() -> None:
    """A decoder is never trained along; a place that the recipe has not is no place."""
    changed = override(recipes.get("tiny"), ["decoder=identity/tiny"])
    assert changed.neighbours["decoder"] == Neighbour(family=Family(name="identity", size="tiny"))
    assert override(recipes.get("tiny"), ["decoder=kl"]).neighbours["decoder"] == Neighbour(model="kl")
    with pytest.raises(ValueError, match="names nothing: give a family"):
        override(recipes.get("tiny"), ["text_encoder="])
    with pytest.raises(ValueError, match="--set text_encoder: no field 'text_encoder'"):
        override(recipes.get("kl"), ["text_encoder=bert"])


def test_a_generator_listens_to_one_that_was_trained_before(run: tuple[str, Path], tmp_path: Path) -> None:
    """Frozen, from the run's folder; it stays as it was, bit for bit, in the generator's own model."""
    family, out = run
    recipe = override(recipes.get("tiny"), [*SHORT, f"text_encoder={out / 'model'}"])
    where = [f"neighbours.text_encoder.{field}" for field in ("family=null", f"model={out / 'model'}", "trained=false")]
    assert recipe == override(recipes.get("tiny"), [*SHORT, *where])
    assert train(recipe, out=tmp_path, report=Report(quiet=True), device="cpu").reason == "finished"
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert (tmp_path / "model/text_encoder" / name).read_bytes() == (out / "model/text_encoder" / name).read_bytes()
    model = triptych.load(tmp_path / "model")
    assert type(model.text_encoder) is catalog.family("text_encoders", family)
    assert model.generator.network.card["neighbours"]["text_encoder"] == checkpoint.panel_fingerprint(out / "model", "text_encoder")
    assert model.generate(["a red circle"], seeds=[0])[0].size == (8, 8)
