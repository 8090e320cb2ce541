"""Language models from disk: found, split into pipeline layers, weighed, and loaded by layers."""

from runtime.language.models.cost import layer_costs
from runtime.language.models.encoder import lazy_encoder
from runtime.language.models.errors import ModelError
from runtime.language.models.families import FAMILIES
from runtime.language.models.lazy import LazyModel, lazy_causal_lm
from runtime.language.models.loading import load_causal_lm
from runtime.language.models.locate import (
    SMOLLM2,
    ModelFiles,
    check_sequence_length,
    check_token_ids,
    locate_model,
)
from runtime.language.models.split import BlockLayer, EmbeddingLayer, HeadLayer, split_causal_lm
from runtime.language.models.tokenizers.loading import check_tokenizer, load_tokenizer

__all__ = [
    "FAMILIES",
    "SMOLLM2",
    "BlockLayer",
    "EmbeddingLayer",
    "HeadLayer",
    "LazyModel",
    "ModelError",
    "ModelFiles",
    "check_sequence_length",
    "check_token_ids",
    "check_tokenizer",
    "layer_costs",
    "lazy_causal_lm",
    "lazy_encoder",
    "load_causal_lm",
    "load_tokenizer",
    "locate_model",
    "split_causal_lm",
]
