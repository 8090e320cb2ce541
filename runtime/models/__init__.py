"""Language models from disk: found, split into pipeline layers, weighed, and loaded by layers."""

from runtime.models.cost import layer_costs
from runtime.models.encoder import lazy_encoder
from runtime.models.errors import ModelError
from runtime.models.families import FAMILIES
from runtime.models.lazy import LazyModel, lazy_causal_lm
from runtime.models.loading import load_causal_lm
from runtime.models.locate import (
    SMOLLM2,
    ModelFiles,
    check_sequence_length,
    check_token_ids,
    locate_model,
)
from runtime.models.split import BlockLayer, EmbeddingLayer, HeadLayer, split_causal_lm
from runtime.models.tokenizer import check_tokenizer, load_tokenizer

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
