"""How much arithmetic each layer of a split model does.

The costs of layers balance the stages of a pipeline: only their ratios matter.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from runtime.language.models.split.layers import BlockLayer, EmbeddingLayer

DEFAULT_SEQUENCE_LENGTH = 512
"""Tokens of a window, unless `pipeval` is told otherwise."""


def layer_costs(layers: Iterable[nn.Module], sequence_length: int) -> list[float]:
    """Count the multiply-adds of each layer per token, in sequences of `sequence_length` tokens.

    A block costs `matrix parameters + (sequence_length + 1) x heads x head width`: every token
    passes through every matrix once, and its attention compares it with, and then sums over, the
    `(sequence_length + 1) / 2` tokens on average that are not after it. Of experts, whose matrices
    are stacked, a token passes through those that it is routed to. The head costs
    `hidden x vocabulary`. Norms, activations and the lookups of an embedding are not counted.

    Source: Kaplan et al. (2020), "Scaling Laws for Neural Language Models", section 2.1 and
    table 1, `2 N + 2 n_layer n_ctx d_attn` floating-point operations, two for each multiply-add.
    """
    return [
        float(_matrix_parameters(layer) + _attention_width(layer) * (sequence_length + 1))
        for layer in layers
    ]


def _matrix_parameters(layer: nn.Module) -> float:
    if isinstance(layer, EmbeddingLayer):
        return _matrices(layer, 0)
    return _matrices(layer, _routed(layer))


def _matrices(layer: nn.Module, routed: int) -> float:
    # Parameters, not kinds of module: linear layers have more than one class (GPT-2's differ).
    count = 0.0
    for module in layer.modules():
        if isinstance(module, nn.Embedding):
            continue
        for parameter in module.parameters(recurse=False):
            if parameter.dim() == 2:
                count += parameter.numel()
            elif parameter.dim() == 3 and routed:
                count += parameter.numel() * min(1.0, routed / parameter.shape[0])
    return count


def _config(layer: nn.Module) -> Any:
    lm: Any = layer.surroundings.lm if isinstance(layer, BlockLayer) else None
    return None if lm is None else lm.config


def _routed(layer: nn.Module) -> int:
    """How many experts a token is routed to."""
    return getattr(_config(layer), "num_experts_per_tok", 0) or 0


def _attention_width(layer: nn.Module) -> int:
    config = _config(layer)
    heads = getattr(config, "num_attention_heads", None)
    if heads is None:
        return 0  # it has no attention, or nobody knows of it
    head_dim = getattr(config, "head_dim", None)
    return int(config.hidden_size if head_dim is None else heads * head_dim)
