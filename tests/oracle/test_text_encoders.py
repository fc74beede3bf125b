"""BERT, GPT-2 and T5's encoder against transformers, through folders that it saved: the same random weights, the same output.

The decoder that T5's task trains is held against T5's too, and the tokenizers against those that write such folders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.text.words import TEXTS
from triptych import catalog, checkpoint
from triptych.contracts import Batch, Prompt, Rng
from triptych.interop import transformers_folder, transformers_text
from triptych.text_encoders.t5 import Config, RelativeBias, SpanCorruption

transformers = pytest.importorskip("transformers")

VOCAB = 61


def randomised(module: nn.Module, seed: int = 1) -> Any:
    """Random weights in every part, biases and norms too, and large enough that every branch is heard in the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in module.named_parameters():
        embeds = any(part in name for part in ("embed", "wte", "wpe", "shared", "relative"))
        scale = 1.0 if embeds else 1.5 * tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 0.3
        drawn = scale * torch.randn(tensor.shape, generator=generator)
        if tensor.ndim == 1 and name.endswith("weight"):
            drawn = 1 + drawn
        if ".q." in name:
            drawn = drawn / 2  # T5 does not scale its logits: with random weights they would choose one key
        tensor.data = drawn
    return module.eval()


def read(folder: Path) -> Any:
    part = transformers_folder.read(folder).parts["text_encoder"]
    module = catalog.build("text_encoders", part.family, part.config, assets=part.assets)
    checkpoint.fill(module, part.tensors, "the folder")
    return module.eval()


def through(theirs: Any, folder: Path) -> Any:
    theirs.save_pretrained(folder)
    return read(folder)


def words(length: int) -> tuple[Tensor, Tensor]:
    """Four rows of different lengths, padded at the end with what stands for nothing; and where they are real."""
    ids = torch.randint(1, VOCAB, (4, length), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(length) < torch.tensor([length, 1, length - 2, (length + 1) // 2])[:, None]
    return ids, mask


def relative_error(mine: Tensor, yours: Tensor) -> float:
    assert mine.shape == yours.shape and yours.std() > 0.05
    return ((mine - yours).norm() / yours.norm()).item()


# --- BERT ---------------------------------------------------------------------------------------------------------------

BERTS = {
    "3 heads of 5": {"hidden_size": 15, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 22},
    "one head, three segments, a large eps": {"hidden_size": 14, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 97,
                                              "type_vocab_size": 3, "layer_norm_eps": 1e-3},
    "7 heads of 3, one layer": {"hidden_size": 21, "num_hidden_layers": 1, "num_attention_heads": 7, "intermediate_size": 8},
}  # fmt: skip


@pytest.mark.parametrize("settings", BERTS.values(), ids=BERTS)
@torch.no_grad()
def test_bert(settings: dict[str, Any], tmp_path: Path) -> None:
    theirs = randomised(transformers.BertModel(transformers.BertConfig(vocab_size=VOCAB, max_position_embeddings=11, **settings)))
    mine, (ids, mask) = through(theirs, tmp_path), words(11)
    said, yours = mine.condition(ids, mask), theirs(ids, attention_mask=mask.long())
    assert relative_error(said.tokens_BLD[mask], yours.last_hidden_state[mask]) <= 1e-5 and not said.tokens_BLD[~mask].any()
    assert relative_error(said.pooled_BD, yours.pooler_output) <= 1e-5
    assert relative_error(mine.condition(ids).tokens_BLD, theirs(ids).last_hidden_state) <= 1e-5


@torch.no_grad()
def test_bert_without_a_pooler_and_with_heads(tmp_path: Path) -> None:
    """The pooled state is [CLS]'s then; the head of a published model is left out; and so are its oldest names read."""
    config = transformers.BertConfig(vocab_size=VOCAB, max_position_embeddings=9, **BERTS["3 heads of 5"])
    theirs, (ids, mask) = randomised(transformers.BertForMaskedLM(config)), words(9)
    mine = through(theirs, tmp_path)
    yours = theirs.bert(ids, attention_mask=mask.long()).last_hidden_state
    said = mine.condition(ids, mask)
    assert not mine.config.pooler and torch.equal(said.pooled_BD, said.tokens_BLD[:, 0])
    assert relative_error(said.pooled_BD, yours[:, 0]) <= 1e-5
    tensors = load_file(tmp_path / "model.safetensors")
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for k, t in tensors.items()}
    save_file(old, tmp_path / "model.safetensors")
    assert any("gamma" in name for name in old)
    assert torch.equal(read(tmp_path).condition(ids, mask).tokens_BLD, said.tokens_BLD)


@torch.no_grad()
def test_berts_head_is_theirs(tmp_path: Path) -> None:
    config = transformers.BertConfig(vocab_size=VOCAB, **BERTS["3 heads of 5"])
    theirs = randomised(transformers.BertForMaskedLM(config))
    mine = through(theirs, tmp_path)
    task = catalog.find("text_encoders", "bert").TASKS["masked_words"](mine)
    head = theirs.cls.predictions
    given = {"inner.weight": head.transform.dense.weight, "inner.bias": head.transform.dense.bias, "bias_V": head.bias,
             "norm.weight": head.transform.LayerNorm.weight, "norm.bias": head.transform.LayerNorm.bias}  # fmt: skip
    checkpoint.fill(task.head, given, "their head")
    ids, _ = words(7)
    states = mine.condition(ids).tokens_BLD
    assert relative_error(task.head(states, mine.embedding.weight), theirs(ids).logits) <= 1e-5


# --- GPT-2 --------------------------------------------------------------------------------------------------------------

GPTS = {
    "3 heads of 4": {"n_embd": 12, "n_layer": 3, "n_head": 3},
    "one head, a narrow middle, exact GELU": {"n_embd": 15, "n_layer": 2, "n_head": 1, "n_inner": 7, "activation_function": "gelu"},
    "5 heads of 3, a large eps": {"n_embd": 15, "n_layer": 1, "n_head": 5, "n_inner": 101, "layer_norm_epsilon": 1e-2},
}  # fmt: skip


@pytest.mark.parametrize("settings", GPTS.values(), ids=GPTS)
@torch.no_grad()
def test_gpt(settings: dict[str, Any], tmp_path: Path) -> None:
    config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=10, bos_token_id=0, eos_token_id=0, **settings)
    theirs = randomised(transformers.GPT2Model(config))
    mine, (ids, mask) = through(theirs, tmp_path), words(10)
    said, yours = mine.condition(ids, mask), theirs(ids, attention_mask=mask.long()).last_hidden_state
    assert relative_error(said.tokens_BLD[mask], yours[mask]) <= 1e-5 and not said.tokens_BLD[~mask].any()
    last = yours[torch.arange(4), mask.sum(1) - 1]
    assert relative_error(said.pooled_BD, last) <= 1e-5 and relative_error(mine.condition(ids[:1]).pooled_BD, last[:1]) <= 1e-5
    assert mine.config.activation == settings.get("activation_function", "gelu_new")


@torch.no_grad()
def test_gpt_with_its_head_guesses_as_theirs(tmp_path: Path) -> None:
    """The file of a language model; and the causal masks that the oldest files hold are no weights."""
    config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=10, bos_token_id=0, eos_token_id=0, **GPTS["3 heads of 4"])
    theirs, (ids, _) = randomised(transformers.GPT2LMHeadModel(config)), words(8)
    mine = through(theirs, tmp_path)
    states = mine.condition(ids).tokens_BLD
    assert relative_error(states @ mine.embedding.weight.T, theirs(ids).logits) <= 1e-5
    old = {k.removeprefix("transformer."): t for k, t in load_file(tmp_path / "model.safetensors").items()}
    save_file(old | {"h.0.attn.bias": torch.ones(1, 1, 10, 10).tril()}, tmp_path / "model.safetensors")
    assert torch.equal(read(tmp_path).condition(ids).tokens_BLD, states)


# --- T5 -----------------------------------------------------------------------------------------------------------------

T5S = {
    "3 heads of 5 in 12, ReLU": {"d_model": 12, "d_kv": 5, "d_ff": 31, "num_layers": 3, "num_heads": 3},
    "gated, one head wider than all": {"d_model": 10, "d_kv": 16, "d_ff": 13, "num_layers": 2, "num_heads": 1,
                                       "feed_forward_proj": "gated-gelu"},
    "few buckets, near and far": {"d_model": 14, "d_kv": 2, "d_ff": 20, "num_layers": 2, "num_heads": 5, "layer_norm_epsilon": 1e-3,
                                  "relative_attention_num_buckets": 6, "relative_attention_max_distance": 9},
}  # fmt: skip


@pytest.mark.parametrize("length", [7, 40])
@pytest.mark.parametrize("settings", T5S.values(), ids=T5S)
@torch.no_grad()
def test_t5(settings: dict[str, Any], length: int, tmp_path: Path) -> None:
    theirs = randomised(transformers.T5EncoderModel(transformers.T5Config(vocab_size=VOCAB, **settings)))
    mine, (ids, mask) = through(theirs, tmp_path), words(length)
    said, yours = mine.condition(ids, mask), theirs(ids, attention_mask=mask.long()).last_hidden_state
    assert relative_error(said.tokens_BLD[mask], yours[mask]) <= 1e-5 and not said.tokens_BLD[~mask].any()
    mean = (yours * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert relative_error(said.pooled_BD, mean) <= 1e-5 and relative_error(mine.condition(ids).pooled_BD[:1], mean[:1]) <= 1e-5


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "farthest"), [(32, 128), (7, 20), (4, 5), (64, 1000), (9, 9)])
def test_buckets_of_distances(causal: bool, buckets: int, farthest: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-1500, 1501)
    yours = T5Attention._relative_position_bucket(distance, bidirectional=not causal, num_buckets=buckets, max_distance=farthest)
    mine = RelativeBias(Config(buckets=buckets, max_distance=farthest, num_heads=1), causal=causal).bucket(distance)
    assert torch.equal(mine, yours) and mine.max() < buckets


@pytest.mark.parametrize("settings", [T5S["3 heads of 5 in 12, ReLU"], T5S["gated, one head wider than all"]], ids=["1.0", "1.1"])
def test_the_decoder_of_the_task_is_theirs(settings: dict[str, Any], tmp_path: Path) -> None:
    """The loss of span corruption is that of the whole T5 on the same texts, with the embedding as its head."""
    panel = catalog.build("text_encoders", "t5", {"vocab": 400, "sentinels": 9, "context_length": 30})
    panel.learn_vocabulary(TEXTS)
    config = transformers.T5Config(vocab_size=400, num_decoder_layers=2, pad_token_id=0, decoder_start_token_id=0, **settings)
    theirs = randomised(transformers.T5ForConditionalGeneration(config))
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(panel.assets()["tokenizer.json"])
    part = transformers_folder.read(tmp_path).parts["text_encoder"]
    mine = catalog.build("text_encoders", "t5", {**vars(part.config), "sentinels": 9}, assets=part.assets)
    checkpoint.fill(mine, part.tensors, "the folder")
    task = SpanCorruption(mine, decoder_depth=2)
    names = {"layer.0.layer_norm": "norm1", "layer.0.SelfAttention": "attention", "layer.1.layer_norm": "norm_cross",
             "layer.1.EncDecAttention": "cross", "layer.2.layer_norm": "norm2", "layer.2.DenseReluDense": "mlp", ".o.": ".out.",
             ".wo.": ".out.", ".wi.": ".inner.", "final_layer_norm": "norm", "block.": "blocks."}  # fmt: skip
    given: dict[str, Tensor] = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        if name.startswith("decoder."):
            name = name.removeprefix("decoder.")
            name = "bias.weight" if "relative" in name else name
            for old, new in names.items():
                name = name.replace(old, new)
            given[name] = tensor
    for i in range(2):
        for where in ("attention", "cross"):
            given[f"blocks.{i}.{where}.kv.weight"] = torch.cat([given.pop(f"blocks.{i}.{where}.{x}.weight") for x in "kv"])
        if "feed_forward_proj" in settings:
            given[f"blocks.{i}.mlp.inner.weight"] = torch.cat([given.pop(f"blocks.{i}.mlp.wi_{x}.weight") for x in "01"])
    checkpoint.fill(task.decoder, given, "their decoder")
    rng, prompts = Rng.of_seeds(range(len(TEXTS))), tuple(Prompt(text=text) for text in TEXTS)
    said, mask, answer = task.corrupted(prompts, rng)
    with torch.no_grad():
        loss = task.losses(Batch(index=tuple(range(len(TEXTS))), prompts=prompts), "main", 0, rng)["loss"]
        yours = theirs(input_ids=said, attention_mask=mask.long(), labels=answer)
    assert loss.item() == pytest.approx(yours.loss.item(), rel=1e-5) and loss > 1


# --- the published sizes ------------------------------------------------------------------------------------------------


def t5_config(width: int, hidden: int, heads: int, depth: int, kind: str = "relu", head_width: int = 64) -> Any:
    return transformers.T5Config(
        vocab_size=32128, d_model=width, d_ff=hidden, num_heads=heads, num_layers=depth, d_kv=head_width, feed_forward_proj=kind
    )


def gpt_config(width: int, depth: int, heads: int) -> Any:
    return transformers.GPT2Config(n_embd=width, n_layer=depth, n_head=heads)


def bert_config(width: int, depth: int, heads: int) -> Any:
    return transformers.BertConfig(hidden_size=width, num_hidden_layers=depth, num_attention_heads=heads, intermediate_size=4 * width)


GATED = "gated-gelu"
PUBLISHED = {  # what stands in the published config.json
    "bert": {"base": bert_config(768, 12, 12), "large": bert_config(1024, 24, 16)},
    "gpt": {"gpt2": gpt_config(768, 12, 12), "gpt2-medium": gpt_config(1024, 24, 16), "gpt2-large": gpt_config(1280, 36, 20),
            "gpt2-xl": gpt_config(1600, 48, 25)},
    "t5": {"small": t5_config(512, 2048, 8, 6), "base": t5_config(768, 3072, 12, 12), "large": t5_config(1024, 4096, 16, 24),
           "3b": t5_config(1024, 16384, 32, 24, head_width=128), "11b": t5_config(1024, 65536, 128, 24, head_width=128),
           "v1.1-small": t5_config(512, 1024, 6, 8, GATED), "v1.1-base": t5_config(768, 2048, 12, 12, GATED),
           "v1.1-large": t5_config(1024, 2816, 16, 24, GATED), "xl": t5_config(2048, 5120, 32, 24, GATED),
           "xxl": t5_config(4096, 10240, 64, 24, GATED)},
}  # fmt: skip
READERS = {
    "bert": transformers_text.bert_from_transformers, "gpt": transformers_text.gpt2_from_transformers,
    "t5": transformers_text.t5_from_transformers,
}  # fmt: skip
CLASSES = {"bert": "BertModel", "gpt": "GPT2Model", "t5": "T5EncoderModel"}
SAID = {"base": 110e6, "large": 340e6, "gpt2": 124e6, "gpt2-medium": 355e6, "gpt2-large": 774e6, "gpt2-xl": 1558e6, "xxl": 4.7e9}


@pytest.mark.parametrize(("family", "size"), [(family, size) for family, sizes in PUBLISHED.items() for size in sizes])
def test_published_sizes(family: str, size: str) -> None:
    """As many parameters as theirs, tensor by tensor, and as told where the sizes were published (to 2 %)."""
    config = PUBLISHED[family][size]
    with torch.device("meta"):
        mine, theirs = catalog.build("text_encoders", family, size=size), getattr(transformers, CLASSES[family])(config)
        said = mine.condition(torch.zeros(2, 5, dtype=torch.int64))
    count = sum(p.numel() for p in mine.parameters())
    assert count == sum(p.numel() for p in theirs.parameters()) and said.pooled_BD.shape == (2, mine.config.width)
    assert (family == "t5" and size != "xxl") or count == pytest.approx(SAID[size], rel=0.02)
    told = READERS[family](config.to_dict(), theirs.state_dict())
    assert {name: t.shape for name, t in told[2].items()} == {name: t.shape for name, t in mine.state_dict().items()}
    assert {**vars(told[1]), "mlp_ratio": 0} == {**vars(mine.config), "mlp_ratio": 0}


# --- tokenizers ---------------------------------------------------------------------------------------------------------


def wordpiece() -> Any:
    from tokenizers.implementations import BertWordPieceTokenizer

    made = BertWordPieceTokenizer(lowercase=True)
    made.train_from_iterator(TEXTS, vocab_size=150, show_progress=False)
    return transformers.BertTokenizerFast(tokenizer_object=made._tokenizer)


def byte_pairs() -> Any:
    from tokenizers.implementations import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    made.train_from_iterator(TEXTS, vocab_size=300, show_progress=False, special_tokens=["<|endoftext|>"])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    )


def unigrams() -> Any:
    from tokenizers.implementations import SentencePieceUnigramTokenizer
    from tokenizers.processors import TemplateProcessing

    made = SentencePieceUnigramTokenizer()
    special = ["<pad>", "</s>", "<unk>"]
    made.train_from_iterator(TEXTS, vocab_size=120, show_progress=False, special_tokens=special, unk_token="<unk>")
    made._tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", made.token_to_id("</s>"))])
    extra = [f"<extra_id_{k}>" for k in reversed(range(5))]
    made.add_special_tokens(extra)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made._tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", additional_special_tokens=extra
    )


SAYINGS = [
    "red apple",
    "A Red  circle, left of a blue square!",
    "三个绿色的三角形",
    "zebra",
    "",
    "a [MASK] and </s> <extra_id_0> <|endoftext|>",
]


def published(family: str, folder: Path, **more: Any) -> tuple[Any, Any]:
    """A small model of theirs beside a tokenizer of theirs, read as ours; and that tokenizer."""
    words = {"bert": wordpiece, "gpt": byte_pairs, "t5": unigrams}[family]()
    config = {"bert": bert_config, "gpt": gpt_config, "t5": lambda *_: t5_config(16, 20, 2, 1)}[family](16, 1, 2)
    config.vocab_size = len(words) + 3  # published embeddings have rows that no token has
    words.save_pretrained(folder)
    return through(randomised(getattr(transformers, CLASSES[family])(config)), folder), words


@pytest.mark.parametrize("family", CLASSES)
def test_published_vocabularies(family: str, tmp_path: Path) -> None:
    mine, theirs = published(family, tmp_path)
    ids, mask = mine.ids(SAYINGS[:4])
    for text, row, real in zip(SAYINGS, ids, mask, strict=False):
        wanted = theirs(text).input_ids
        assert row[real].tolist() == ([theirs.bos_token_id, *wanted, theirs.eos_token_id] if family == "gpt" else wanted), text
    null = mine.null(["a", "b"]).ids_BL.tolist()
    wanted = {"bert": theirs("").input_ids, "gpt": 2 * [theirs.eos_token_id], "t5": [theirs.eos_token_id]}[family]
    assert null == [wanted] * 2
    inside = mine.ids(SAYINGS[-1:])[0][0].tolist()
    special = set(theirs.all_special_ids) - {theirs.unk_token_id if family != "gpt" else -1}
    assert not special & set(inside[(family != "t5") : -1]), "a prompt said a special token"
    again = catalog.build("text_encoders", family, mine.config, assets=mine.assets())
    assert torch.equal(again.ids(SAYINGS)[0], mine.ids(SAYINGS)[0])


def test_what_is_hidden_and_what_stands_for_it(tmp_path: Path) -> None:
    """[MASK] and the sentinels of published vocabularies; a word that replaces another is never special."""
    bert, words = published("bert", tmp_path / "bert")
    assert bert.tokenizer.mask == words.mask_token_id and not set(bert.tokenizer.ordinary_V.tolist()) & set(words.all_special_ids)
    found = bert.masked_words(TEXTS, Rng.of_seeds(range(len(TEXTS))))
    assert set(found["row_M"].tolist()) == set(range(len(TEXTS)))
    t5, words = published("t5", tmp_path / "t5")
    t5 = catalog.build("text_encoders", "t5", {**vars(t5.config), "sentinels": 5}, assets=t5.assets())
    assert t5.sentinels() == [words.convert_tokens_to_ids(f"<extra_id_{k}>") for k in range(5)]
    said, _, answer = SpanCorruption(t5, mask=0.5, span=1.0).corrupted(TEXTS, Rng.of_seeds(range(len(TEXTS))))
    assert (said == t5.sentinels()[0]).any(1).all() and (answer[:, 0] == t5.sentinels()[0]).all()


def test_vocabularies_that_cannot_be_read(tmp_path: Path) -> None:
    mine, _ = published("bert", tmp_path)
    (tmp_path / "tokenizer.json").rename(tmp_path / "vocab.txt")
    with pytest.raises(ValueError, match=r"of vocab\.txt no tokenizer can be read.*AutoTokenizer"):
        read(tmp_path)
    with pytest.raises(ValueError, match="no </s>"):
        catalog.build("text_encoders", "t5", {"vocab": 500}, assets=mine.assets())
    with pytest.raises(ValueError, match="no tokenizer"):
        catalog.build("text_encoders", "gpt", assets={"tokenizer.json": b"{}"})
    with pytest.raises(ValueError, match=r"spiece\.model"):
        catalog.build("text_encoders", "t5", assets={"spiece.model": b"\0"})
    with pytest.raises(ValueError, match="the embedding 20 rows"):
        catalog.build("text_encoders", "bert", {"vocab": 20}, assets=mine.assets())


@pytest.mark.parametrize(
    ("family", "config", "said"),
    [
        ("bert", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
        ("bert", {"position_embedding_type": "relative_key"}, "only 'absolute'"),
        ("gpt", {"activation_function": "silu"}, "activation_function = 'silu'"),
        ("gpt", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("t5", {"feed_forward_proj": "gated-silu"}, "feed_forward_proj = 'gated-silu'"),
        ("t5", {"num_layers": 2}, "lacks 'encoder.block.1.layer.0.layer_norm.weight'"),
        ("t5", {"num_layers": 0}, "holds 'encoder.block.0.layer"),
    ],
)
def test_settings_that_cannot_be_read(family: str, config: dict[str, Any], said: str, tmp_path: Path) -> None:
    published(family, tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    with pytest.raises(ValueError, match=said):
        transformers_folder.read(tmp_path)
