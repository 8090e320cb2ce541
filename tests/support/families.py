"""Tiny configurations of the families of causal language models that are used most, as data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 61
WINDOW = 8
"""What sliding windows and chunks of attention are, where there are some."""

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA = _COMMON | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GPT = {k: v for k, v in _COMMON.items() if k != "num_hidden_layers"} | {
    "n_embd": 32,
    "n_layer": 4,
    "n_head": 4,
    "n_positions": 64,
}
_DEEPSEEK = _LLAMA | {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
}
_MAMBA = _COMMON | {"hidden_size": 32, "state_size": 8}
_SLIDING = {"sliding_window": WINDOW}
_ALTERNATING = _SLIDING | {"layer_types": ["sliding_attention", "full_attention"] * 2}
_HEAD = {"head_dim": 8}

FAMILIES: dict[str, dict[str, Any]] = {
    "arcee": _LLAMA,
    "bloom": _COMMON | {"hidden_size": 32, "n_layer": 4, "n_head": 4},
    "codegen": _GPT | {"rotary_dim": 4},
    "cohere": _LLAMA,
    "cohere2": _LLAMA | _HEAD | _ALTERNATING,
    "deepseek_v2": _DEEPSEEK,
    "deepseek_v3": _DEEPSEEK,
    "exaone4": _LLAMA | _ALTERNATING,
    "falcon": _COMMON | {"hidden_size": 32, "num_attention_heads": 4, "alibi": True},
    "falcon_mamba": _MAMBA,
    "gemma": _LLAMA | _HEAD,
    "gemma2": _LLAMA | _HEAD | _ALTERNATING | {"query_pre_attn_scalar": 8},
    "gemma3_text": _LLAMA | _HEAD | _ALTERNATING | {"query_pre_attn_scalar": 8},
    "glm": _LLAMA | _HEAD,
    "glm4": _LLAMA | _HEAD,
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": _COMMON
    | {
        "hidden_size": 32,
        "num_layers": 4,
        "num_heads": 4,
        "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 2]],
        "window_size": WINDOW,
    },
    "gpt_neox": {k: v for k, v in _LLAMA.items() if k != "num_key_value_heads"},
    "gpt_oss": _LLAMA | _HEAD | _LOCAL_EXPERTS | _ALTERNATING | {"rope_parameters": None},
    "gptj": _GPT | {"rotary_dim": 4},
    "granite": _LLAMA
    | {
        "embedding_multiplier": 12.0,
        "logits_scaling": 8.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 0.1,
    },
    "granitemoe": _LLAMA | _LOCAL_EXPERTS,
    "helium": _LLAMA | _HEAD,
    "jamba": _LLAMA
    | {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
    },
    "llama": _LLAMA | {"tie_word_embeddings": True},
    "llama4_text": _LLAMA
    | _HEAD
    | {
        "intermediate_size_mlp": 48,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 2,
        "attention_chunk_size": WINDOW,
    },
    "mamba": _MAMBA,
    "mistral": _LLAMA | _SLIDING,
    "mixtral": _LLAMA | _LOCAL_EXPERTS,
    "mpt": _COMMON
    | {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2},
    "nemotron": _LLAMA | _HEAD,
    "olmo": _LLAMA,
    "olmo2": _LLAMA,
    "olmo3": _LLAMA | _ALTERNATING,
    "olmoe": _LLAMA | {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": _COMMON
    | {
        "hidden_size": 32,
        "num_attention_heads": 4,
        "ffn_dim": 48,
        "max_position_embeddings": 64,
        "word_embed_proj_dim": 16,
    },
    "phi": _LLAMA,
    "phi3": _LLAMA | _SLIDING,
    "phimoe": _LLAMA | _LOCAL_EXPERTS,
    "qwen2": _LLAMA,
    "qwen2_moe": _LLAMA | _EXPERTS | {"shared_expert_intermediate_size": 16},
    "qwen3": _LLAMA | {"head_dim": 16},
    "qwen3_moe": _LLAMA | _HEAD | _EXPERTS,
    "recurrent_gemma": _COMMON
    | {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 4,
        "lru_width": 32,
        "attention_window_size": WINDOW,
    },
    "smollm3": _LLAMA,
    "stablelm": _LLAMA,
    "starcoder2": _LLAMA | _SLIDING,
    "xglm": _COMMON
    | {
        "d_model": 32,
        "ffn_dim": 48,
        "num_layers": 4,
        "attention_heads": 4,
        "max_position_embeddings": 64,
    },
}
"""By `model_type`: families that split, with all that makes them different from others."""

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bert": (
        _COMMON | {"hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 48},
        "is an encoder",
    ),
    "rwkv": (
        _COMMON | {"hidden_size": 32, "context_length": 64},
        "its forward does not run without them",
    ),
    "zamba2": (
        _COMMON
        | {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_attention_heads": 4,
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "n_mamba_heads": 8,
            "chunk_size": 8,
            "layers_block_type": ["mamba", "hybrid"] * 2,
            "num_mem_blocks": 1,
        },
        "layer 0 is also given what is computed from tokens",
    ),
}
"""Families that cannot be split, and why."""


def family_model(family: str, **changes: Any) -> PreTrainedModel:
    """A tiny model of a family, whose random weights make every part of it count."""
    settings = FAMILIES[family] if family in FAMILIES else REFUSED[family][0]
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**(settings | changes))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # norms are ones, and biases zeros, until they are trained
                nn.init.normal_(parameter, 1.0, 0.3)
    return model
