"""Language models from disk: found, split into pipeline layers, weighed, and loaded by layers."""

from runtime.language.extras import require_transformers
from runtime.language.models.cost import layer_costs
from runtime.language.models.errors import ModelError
from runtime.language.models.files.shape import ModelFiles
from runtime.language.models.lazy import LazyModel, lazy_causal_lm, lazy_encoder
from runtime.language.models.loading import load_causal_lm
from runtime.language.models.locate import SMOLLM2, check_sequence_length, locate_model
from runtime.language.models.split.causal import split_causal_lm
from runtime.language.models.split.layers import BlockLayer, EmbeddingLayer, HeadLayer
from runtime.language.models.split.scores import (
    LabelScores,
    PendingLogits,
    ScoringLayer,
    Targets,
    label_scores,
    logits_in_pieces,
    mean_loss,
    target_losses,
)
from runtime.language.models.tokenizers.loading import check_tokenizer, load_tokenizer
from runtime.language.models.tokenizers.vocabulary import check_token_ids, require_known_tokens

require_transformers()

__all__ = [
    "SMOLLM2",
    "BlockLayer",
    "EmbeddingLayer",
    "HeadLayer",
    "LabelScores",
    "LazyModel",
    "ModelError",
    "ModelFiles",
    "PendingLogits",
    "ScoringLayer",
    "Targets",
    "check_sequence_length",
    "check_token_ids",
    "check_tokenizer",
    "label_scores",
    "layer_costs",
    "lazy_causal_lm",
    "lazy_encoder",
    "load_causal_lm",
    "load_tokenizer",
    "locate_model",
    "logits_in_pieces",
    "mean_loss",
    "require_known_tokens",
    "split_causal_lm",
    "target_losses",
]
