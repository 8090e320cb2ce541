"""Small models with random weights, written to disk in the ways that models come; and SmolLM2."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING as MODEL_CLASSES
from transformers import (
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from runtime.language.models import load_causal_lm, load_tokenizer, locate_model

VOCABULARY = 261
POSITIONS = 64
_LLAMA_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
CONFIGS = {
    "llama": lambda: LlamaConfig(**_LLAMA_SHAPE, tie_word_embeddings=True),
    "mistral": lambda: MistralConfig(**_LLAMA_SHAPE, sliding_window=None),
    "qwen2": lambda: Qwen2Config(**_LLAMA_SHAPE),
    "qwen3": lambda: Qwen3Config(**_LLAMA_SHAPE, head_dim=32),
    "gemma": lambda: GemmaConfig(**_LLAMA_SHAPE, head_dim=16),
    "phi": lambda: PhiConfig(**_LLAMA_SHAPE),
    "phi3": lambda: Phi3Config(**_LLAMA_SHAPE, pad_token_id=0),
    "gpt_neox": lambda: GPTNeoXConfig(
        **{k: v for k, v in _LLAMA_SHAPE.items() if k != "num_key_value_heads"}
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=64,
        n_layer=3,
        n_head=4,
        n_positions=POSITIONS,
        bos_token_id=1,
        eos_token_id=1,
    ),
}
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tiny_model(family: str, *, seed: int = 0, **config_changes: Any) -> PreTrainedModel:
    """A model of the family, with random weights."""
    torch.manual_seed(seed)
    config = CONFIGS[family]()
    for key, value in config_changes.items():
        setattr(config, key, value)
    config._attn_implementation = "sdpa"
    return MODEL_CLASSES[type(config)](config).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and a few merges: `ab`, two spaces, and `12`, which single digits never reach."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("a", "b"), ("Ġ", "Ġ"), ("1", "2")]
    tokens = ["<s>", "</s>", *alphabet, *("".join(merge) for merge in merges)]
    backend = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    *,
    storage: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    word_rule: str | None = "smollm",
    extra_metadata: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray] | None = None,
    write_tokenizer: Callable[[gguf.GGUFWriter], None] | None = None,
) -> Path:
    """Write a Llama or Qwen model as llama.cpp's converter does.

    The tokenizer is the tiny one, byte-level and with `word_rule`, if none else is written.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, config.model_type)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.model_type == "qwen3":
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    for key, value in (extra_metadata or {}).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
        add.get(type(value), writer.add_string)(key, value)
    if write_tokenizer is not None:
        write_tokenizer(writer)
    else:
        _write_tiny_tokenizer(writer, word_rule)
    tensors = {
        _gguf_name(name): _llama_cpp_rows(name, value.detach().numpy(), config)
        for name, value in model.named_parameters()
    }
    for name, values in (tensors | (extra_tensors or {})).items():
        kind = storage if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_tiny_tokenizer(writer: gguf.GGUFWriter, word_rule: str | None) -> None:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    writer.add_tokenizer_model("gpt2")
    if word_rule is not None:
        writer.add_tokenizer_pre(word_rule)
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b", "Ġ Ġ", "1 2"])
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)


def write_sentencepiece(writer: gguf.GGUFWriter) -> None:
    """Bytes, a space and `a`, and the three special tokens of Llama."""
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    writer.add_tokenizer_model("llama")
    writer.add_token_list([*special, *bytes_, "▁", "a"])
    writer.add_token_scores([0.0] * 259 + [-1.0, -2.0])
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _gguf_name(parameter: str) -> str:
    stem, _, suffix = parameter.rpartition(".")
    if stem in GGUF_NAMES:
        return f"{GGUF_NAMES[stem]}.{suffix}"
    _, _, block, part = stem.split(".", 3)
    return f"blk.{block}.{GGUF_NAMES[part]}.{suffix}"


def _llama_cpp_rows(parameter: str, values: np.ndarray, config: Any) -> np.ndarray:
    """Interleave the two halves of every head's rows, which llama.cpp wants of Llama alone."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    part = parameter.split(".")[-2]
    if config.model_type != "llama" or part not in heads:
        return values
    by_head = np.split(values, heads[part])
    return np.concatenate(
        [np.stack(np.split(head, 2), axis=1).reshape(head.shape) for head in by_head]
    )


@cache
def smollm2() -> PreTrainedModel:
    """The one real model; loading it takes seconds."""
    return load_causal_lm(locate_model("smollm2"))


@cache
def smollm2_tokenizer() -> PreTrainedTokenizerFast:
    return load_tokenizer(locate_model("smollm2"))


def saved_llama(directory: Path) -> Path:
    """A directory, in which a tiny Llama and a tokenizer for it have been saved."""
    tiny_model("llama").save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return directory
