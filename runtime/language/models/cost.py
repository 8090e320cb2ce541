"""How much arithmetic each layer of a split model does.

The costs of layers balance the stages of a pipeline: only their ratios matter.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from runtime.language.models.split import BlockLayer


def layer_costs(layers: Iterable[nn.Module], sequence_length: int) -> list[float]:
    """Count the multiply-adds of each layer per token, in sequences of `sequence_length` tokens.

    A block costs `matrix parameters + (sequence_length + 1) x heads x head width`: every token
    passes through every matrix once, and its attention compares it with, and then sums over, the
    `(sequence_length + 1) / 2` tokens on average that are not after it. The head costs
    `hidden x vocabulary`. Norms, activations and the lookups of an embedding are not counted.

    Source: Kaplan et al. (2020), "Scaling Laws for Neural Language Models", section 2.1 and
    table 1, `2 N + 2 n_layer n_ctx d_attn` floating-point operations, two for each multiply-add.
    """
    return [
        float(_matrix_parameters(layer) + _attention_width(layer) * (sequence_length + 1))
        for layer in layers
    ]


def _matrix_parameters(layer: nn.Module) -> int:
    # Parameters, not kinds of module: linear layers have more than one class (GPT-2's differ).
    return sum(
        parameter.numel()
        for module in layer.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.dim() == 2
    )


def _attention_width(layer: nn.Module) -> int:
    return layer.attention_width if isinstance(layer, BlockLayer) else 0
