"""The text encoders of diffusers' folders: CLIP's text tower as Stable Diffusion asks it (also out), LDM's own BERT, their tokenizers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from triptych.interop.transformers_towers import _Tensors, clip_text_from_transformers
from triptych.interop.weights import read_bytes, read_json
from triptych.text_encoders import _clip_bpe, clip, ldm_bert

__all__ = ["clip_modules_in_transformers", "clip_text_to_transformers", "read_clip", "read_ldm_bert"]

_FILES = ("tokenizer.json", "vocab.json", "merges.txt", "vocab.txt")
_END = "<|endoftext|>"
_LDM_NEEDED = {"activation_function": "gelu", "scale_embedding": False}

Told = tuple[str, Any, dict[str, bytes], Mapping[str, Tensor]]


def read_clip(config: Mapping[str, Any], tensors: Mapping[str, Tensor], root: Path, folder: Path) -> Told:
    """(family, Config, files, tensors) of a CLIPTextModel that fills prompts up with its tokenizer's padding and hears it."""
    if config.get("use_attention_mask"):
        raise ValueError("use_attention_mask = True: a text encoder that masks its padding, and a network that hears it, cannot be read")
    family, chosen, ours = clip_text_from_transformers(config, tensors)
    files, said = _files(root, folder)
    _length(folder, said, chosen.context_length)
    token, pad = _padding(folder, files, said)
    return family, replace(chosen, pad=pad), files if token == _END else _heard_in_texts(files, token, pad), ours


def read_ldm_bert(config: Mapping[str, Any], tensors: Mapping[str, Tensor], root: Path, folder: Path) -> Told:
    """(family, Config, files, tensors) of an LDMBertModel. Its layer for guessing words is left behind."""
    for name, value in _LDM_NEEDED.items():
        if config.get(name, value) != value:
            raise ValueError(f"{name} = {config[name]!r}: only {value!r} can be read")
    chosen = ldm_bert.Config(
        vocab=config["vocab_size"], width=config["d_model"], depth=config["encoder_layers"], num_heads=config["encoder_attention_heads"],
        head_width=config["head_dim"], mlp_ratio=config["encoder_ffn_dim"] / config["d_model"],
        context_length=config["max_position_embeddings"], pad="pad",
    )  # fmt: skip
    theirs = _Tensors({name: tensor for name, tensor in tensors.items() if not name.startswith("to_logits.")}, without="model.")
    ours = {"embedding.weight": theirs.take("embed_tokens.weight"), "position_LD": theirs.take("embed_positions.weight")}
    theirs.move(ours, "norm", "layer_norm")
    layers = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm", "out": "self_attn.out_proj", "mlp.0": "fc1", "mlp.2": "fc2"}
    for i in range(chosen.depth):
        here, there = f"blocks.{i}", f"layers.{i}"
        theirs.fuse(ours, f"{here}.qkv", [f"{there}.self_attn.{part}_proj" for part in "qkv"], bias=False)
        for mine, yours in layers.items():
            theirs.move(ours, f"{here}.{mine}", f"{there}.{yours}")
    theirs.done()
    files, said = _files(root, folder)
    _length(folder, said, chosen.context_length)
    if "tokenizer.json" not in files and "vocab.txt" in files:
        files = {"tokenizer.json": _wordpiece(files["vocab.txt"], bool(said.get("do_lower_case", True)))}
    return "ldm_bert", chosen, files, ours


def clip_text_to_transformers(
    config: clip.Config, ours: Mapping[str, Tensor], *, start: int, end: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and tensors of a CLIPTextModel. start, end: the tokenizer's ids. `config.pad` must be a token, not "mask"."""
    assert config.pad != "mask", "who exports has refused it"
    c, prefix = config, "text_model."
    described = {
        "architectures": ["CLIPTextModel"], "model_type": "clip_text_model", "vocab_size": c.vocab, "hidden_size": c.width,
        "intermediate_size": round(c.width * c.mlp_ratio), "num_hidden_layers": c.depth, "num_attention_heads": c.num_heads,
        "max_position_embeddings": c.context_length, "hidden_act": c.activation, "layer_norm_eps": c.eps, "projection_dim": c.width,
        "bos_token_id": start, "eos_token_id": end, "pad_token_id": end if c.pad == "end" else c.pad,
    }  # fmt: skip
    theirs = {
        f"{prefix}embeddings.token_embedding.weight": ours["embedding.weight"],
        f"{prefix}embeddings.position_embedding.weight": ours["position_LD"],
    }
    for part in ("weight", "bias"):
        for mine, yours in clip_modules_in_transformers(c).items():
            parts = ours[f"{mine}.{part}"].chunk(len(yours))
            theirs |= {f"{prefix}{name}.{part}": tensor for name, tensor in zip(yours, parts, strict=True)}
    return described, theirs


def clip_modules_in_transformers(config: clip.Config) -> dict[str, list[str]]:
    """Path of a product or a norm -> the paths in a CLIPTextModel's tower of those whose rows stand in it, one below the other."""
    layers = {"out": "self_attn.out_proj", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2", "norm1": "layer_norm1", "norm2": "layer_norm2"}
    found = {"norm": ["final_layer_norm"]}
    for i in range(config.depth):
        here, there = f"blocks.{i}", f"encoder.layers.{i}"
        found[f"{here}.qkv"] = [f"{there}.self_attn.{x}_proj" for x in "qkv"]
        found |= {f"{here}.{mine}": [f"{there}.{yours}"] for mine, yours in layers.items()}
    return found


def _files(root: Path, folder: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """A tokenizer's files, and what its own configuration says."""
    files = {name: read_bytes(root, folder / name) for name in _FILES if (folder / name).is_file()}
    if not files:
        raise ValueError(f"{folder} holds no {', '.join(_FILES[:-1])} or {_FILES[-1]}")
    said: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            said |= read_json(root, folder / name)
    if "auto_map" in said:
        raise ValueError(f"{folder / 'tokenizer_config.json'}: auto_map names code, and no code of a folder is ever run")
    return files, said


def _length(folder: Path, said: Mapping[str, Any], context_length: int) -> None:
    longest = said.get("model_max_length", context_length)
    if isinstance(longest, int) and longest < context_length:
        where = folder / "tokenizer_config.json"
        raise ValueError(f"{where}: model_max_length = {longest}, and the text encoder reads {context_length}: make them one number")


def _padding(folder: Path, files: Mapping[str, bytes], said: Mapping[str, Any]) -> tuple[str, int]:
    """The token that prompts are filled up with. Raises ValueError for one that the vocabulary does not have."""
    token = said.get("pad_token") or _END
    token = str(token.get("content") if isinstance(token, dict) else token)
    if "tokenizer.json" in files:
        whole = json.loads(files["tokenizer.json"])
        ids = dict(whole["model"]["vocab"]) | {one["content"]: one["id"] for one in whole.get("added_tokens", ())}
    else:
        ids = json.loads(files["vocab.json"])
    if not isinstance(ids.get(token), int):
        raise ValueError(f"{folder}: pad_token = {token!r} is no token of its vocabulary")
    return token, ids[token]


def _heard_in_texts(files: Mapping[str, bytes], token: str, number: int) -> dict[str, bytes]:
    """SD 2 fills prompts up with "!", and its tokenizer therefore reads every "!" of a text as that token, id 0, and not as "!</w>"."""
    whole = json.loads(_clip_bpe.Tokenizer(files).json_bytes)
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    others = [one for one in whole.get("added_tokens", ()) if one["content"] != token]
    whole["added_tokens"] = sorted([*others, {"id": number, "content": token, **plain}], key=lambda one: one["id"])
    return {"tokenizer.json": json.dumps(whole, ensure_ascii=False).encode("utf-8")}


def _wordpiece(vocabulary: bytes, lower_case: bool) -> bytes:
    """BERT's tokenizer.json, of a vocab.txt with a token a line (arXiv 1810.04805; WordPiece, arXiv 1609.08144)."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

    tokens = vocabulary.decode("utf-8").splitlines()
    rust = Tokenizer(models.WordPiece({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]", max_input_chars_per_word=100))
    rust.normalizer = normalizers.BertNormalizer(lowercase=lower_case)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.add_special_tokens([AddedToken(name, special=True) for name in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if name in tokens])
    return rust.to_str().encode("utf-8")
