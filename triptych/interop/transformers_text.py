"""transformers' BERT, GPT-2 and T5 into `text_encoders/bert.py`, `text_encoders/gpt.py` and `text_encoders/t5.py`.

Each function takes `config.json` and the tensors of `model.safetensors`, and gives the family, its Config and the tensors under our names.
Published files hold more than an encoder: heads, T5's decoder and GPT-2's causal masks are left out, by name; any other tensor that we do
not have raises ValueError, as do settings that ours have no counterpart for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..text_encoders import bert, gpt, t5
from .transformers_towers import Told, _only, _Tensors

__all__ = ["bert_from_transformers", "gpt2_from_transformers", "t5_from_transformers"]


def bert_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Told:
    """BertModel, with its pooler or without, or a model with heads on it. The oldest files call a norm's parts gamma and beta."""
    heads, named = ("cls.", "classifier.", "qa_outputs."), {}
    for name, tensor in tensors.items():
        if not name.startswith(heads):
            named[name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")] = tensor
    theirs = _Tensors(named, without="bert.")
    _only(config, hidden_act="gelu", position_embedding_type="absolute", is_decoder=False, add_cross_attention=False)
    theirs.drop("embeddings.position_ids")
    ours = {
        "embedding.weight": theirs.take("embeddings.word_embeddings.weight"),
        "position_LD": theirs.take("embeddings.position_embeddings.weight"),
        "segment_SD": theirs.take("embeddings.token_type_embeddings.weight"),
    }
    theirs.move(ours, "norm", "embeddings.LayerNorm")
    pooler = theirs.get("pooler.dense.weight") is not None
    theirs.move(ours, "pooler", "pooler.dense", there=pooler)
    for i in range(config["num_hidden_layers"]):
        here, there = f"blocks.{i}", f"encoder.layer.{i}"
        theirs.fuse(ours, f"{here}.qkv", [f"{there}.attention.self.{part}" for part in ("query", "key", "value")])
        theirs.move(ours, f"{here}.out", f"{there}.attention.output.dense")
        theirs.move(ours, f"{here}.norm1", f"{there}.attention.output.LayerNorm")
        theirs.move(ours, f"{here}.mlp.0", f"{there}.intermediate.dense")
        theirs.move(ours, f"{here}.mlp.2", f"{there}.output.dense")
        theirs.move(ours, f"{here}.norm2", f"{there}.output.LayerNorm")
    theirs.done()
    chosen = bert.Config(
        vocab=config["vocab_size"], width=config["hidden_size"], depth=config["num_hidden_layers"], num_heads=config["num_attention_heads"],
        mlp_ratio=config["intermediate_size"] / config["hidden_size"], context_length=config["max_position_embeddings"],
        segments=config["type_vocab_size"], pooler=pooler, eps=config["layer_norm_eps"],
    )  # fmt: skip
    return "bert", chosen, ours


def gpt2_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Told:
    """GPT2Model, or GPT2LMHeadModel, whose head is the embedding. Its matrices stand the other way round: [in, out]."""
    masks = (".attn.bias", ".attn.masked_bias")
    mine = {name: tensor for name, tensor in tensors.items() if not name.endswith(masks) and name != "lm_head.weight"}
    theirs = _Tensors(mine, without="transformer.")
    _only(config, scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False)
    activation = config.get("activation_function", "gelu_new")
    if activation not in ("gelu", "gelu_new"):
        raise ValueError(f"activation_function = {activation!r}: only 'gelu' and 'gelu_new' can be read")
    ours = {"embedding.weight": theirs.take("wte.weight"), "position_LD": theirs.take("wpe.weight")}
    theirs.move(ours, "norm", "ln_f")
    for i in range(config["n_layer"]):
        here, there = f"blocks.{i}", f"h.{i}"
        theirs.move(ours, f"{here}.norm1", f"{there}.ln_1")
        theirs.move(ours, f"{here}.norm2", f"{there}.ln_2")
        for layer, yours in {"qkv": "attn.c_attn", "out": "attn.c_proj", "mlp.0": "mlp.c_fc", "mlp.2": "mlp.c_proj"}.items():
            ours[f"{here}.{layer}.weight"] = theirs.take(f"{there}.{yours}.weight").T
            ours[f"{here}.{layer}.bias"] = theirs.take(f"{there}.{yours}.bias")
    theirs.done()
    chosen = gpt.Config(
        vocab=config["vocab_size"], width=config["n_embd"], depth=config["n_layer"], num_heads=config["n_head"],
        mlp_ratio=(config.get("n_inner") or 4 * config["n_embd"]) / config["n_embd"], context_length=config["n_positions"],
        activation=activation, eps=config["layer_norm_epsilon"],
    )  # fmt: skip
    return "gpt", chosen, ours


_T5 = {"relu": "relu", "gated-gelu": "gated_gelu"}


def t5_from_transformers(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Told:
    """T5EncoderModel, or the encoder of a whole T5 (version 1.0 and 1.1)."""
    own = {name: tensor for name, tensor in tensors.items() if not name.startswith(("decoder.", "lm_head."))}
    theirs = _Tensors(own)
    theirs.drop("encoder.embed_tokens.weight")  # the same as "shared", where a file has both
    kind = config.get("feed_forward_proj", "relu")
    if kind not in _T5:
        raise ValueError(f"feed_forward_proj = {kind!r}: only 'relu' and 'gated-gelu' can be read")
    ours = {
        "embedding.weight": theirs.take("shared.weight"),
        "norm.weight": theirs.take("encoder.final_layer_norm.weight"),
        "bias.weight": theirs.take("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
    }
    for i in range(config["num_layers"]):
        here, first, second = f"blocks.{i}", f"encoder.block.{i}.layer.0", f"encoder.block.{i}.layer.1"
        ours[f"{here}.norm1.weight"] = theirs.take(f"{first}.layer_norm.weight")
        ours[f"{here}.norm2.weight"] = theirs.take(f"{second}.layer_norm.weight")
        ours[f"{here}.attention.q.weight"] = theirs.take(f"{first}.SelfAttention.q.weight")
        theirs.fuse(ours, f"{here}.attention.kv", [f"{first}.SelfAttention.{part}" for part in "kv"], bias=False)
        ours[f"{here}.attention.out.weight"] = theirs.take(f"{first}.SelfAttention.o.weight")
        inner = ["wi"] if kind == "relu" else ["wi_0", "wi_1"]
        theirs.fuse(ours, f"{here}.mlp.inner", [f"{second}.DenseReluDense.{part}" for part in inner], bias=False)
        ours[f"{here}.mlp.out.weight"] = theirs.take(f"{second}.DenseReluDense.wo.weight")
    theirs.done()
    chosen = t5.Config(
        vocab=config["vocab_size"], width=config["d_model"], head_width=config["d_kv"], depth=config["num_layers"],
        num_heads=config["num_heads"], mlp_ratio=config["d_ff"] / config["d_model"], activation=_T5[kind],  # type: ignore[arg-type]
        buckets=config["relative_attention_num_buckets"], max_distance=config.get("relative_attention_max_distance", 128),
        context_length=config.get("n_positions", 512), eps=config["layer_norm_epsilon"],
    )  # fmt: skip
    return "t5", chosen, ours
