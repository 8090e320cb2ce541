"""Sentence encoders as the layers of a pipeline, with a mask that travels along.

::

    (ids, mask) ─> EncoderEmbeddingLayer ─> EncoderBlockLayer ─> ... ─> PoolingLayer ─> embeddings
                                 (hidden, mask)           (hidden, mask)

Sequences of different lengths are padded into one micro-batch, and every layer but the first needs
to know what is padding: an activation is a pair.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from runtime.language.models.errors import ModelError
from runtime.language.models.files.directory import MOST_BYTES, read_object, require_inside
from runtime.language.models.files.names import CONFIG, ENCODER_STEPS
from runtime.language.models.files.shape import SequenceLimits
from schedcc.io.bounded import content_of
from schedcc.io.plain_text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

ENCODERS = ("bert",)
"""By `model_type`: embeddings and equal blocks of attention in both directions, with a mask."""
UNUSED = ("bert.pooler", "pooler", "cls")
"""Parts of checkpoints of encoders that evaluation has no use for."""
_BLOCKS = "encoder.layer"

Activation = tuple[torch.Tensor, torch.Tensor]
"""Hidden state [micro_batch, sequence, hidden], and mask [micro_batch, sequence]: 0 is padding."""


class EncoderEmbeddingLayer(nn.Module):
    """Embed tokens and positions; the mask passes by."""

    def __init__(self, embeddings: nn.Module, limits: SequenceLimits) -> None:
        super().__init__()
        self.embeddings, self.limits = embeddings, limits

    def forward(self, inputs: Activation) -> Activation:
        """Map ids and mask, int64 [micro_batch, sequence], to a hidden state and the mask.

        Raises:
            ModelError: the sequence is too long for the model.
        """
        input_ids, mask = inputs
        self.limits.check(input_ids.shape[1])
        return self.embeddings(input_ids=input_ids), mask


class EncoderBlockLayer(nn.Module):
    """One block: self-attention to all tokens but padding, and a feed-forward network."""

    def __init__(self, block: nn.Module, config: PreTrainedConfig) -> None:
        super().__init__()
        self.block, self.config = block, config

    def forward(self, inputs: Activation) -> Activation:
        """Map a hidden state and its mask to the next hidden state and the same mask."""
        from transformers.masking_utils import create_bidirectional_mask

        hidden, mask = inputs
        attended = create_bidirectional_mask(self.config, hidden, mask)
        return self.block(hidden, attention_mask=attended), mask


class PoolingLayer(nn.Module):
    """Average the tokens of each sequence, without padding, to an embedding of length 1.

    As sentence-transformers' `Pooling` (mean of tokens) and `Normalize` do.
    """

    def forward(self, inputs: Activation) -> torch.Tensor:
        """Map a hidden state and its mask to embeddings [micro_batch, hidden]."""
        hidden, mask = inputs
        weights = mask.unsqueeze(-1).expand(hidden.shape).to(hidden.dtype)
        mean = (hidden * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        return functional.normalize(mean, p=2.0, dim=1)


def require_mean_pooling(directory: Path) -> None:
    """Refuse what sentence-transformers would do after the blocks, if `PoolingLayer` does not.

    A directory of bare weights says nothing of it, and is taken to be meant.

    Raises:
        ModelError: naming the step.
    """
    path = directory / ENCODER_STEPS
    if not path.is_file():
        return
    try:
        modules = json.loads(content_of(path, MOST_BYTES).decode())
        steps = [(entry["type"].rpartition(".")[2], str(entry["path"])) for entry in modules]
    except (OSError, RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is damaged: {one_line(error)}") from error
    kinds = [kind for kind, _ in steps]
    if kinds != ["Transformer", "Pooling", "Normalize"]:
        raise ModelError(
            f"{path} names the steps {', '.join(kinds)}, and only Transformer, Pooling, Normalize "
            "are supported"
        )
    require_inside(path, steps[1][1])
    pooling = read_object(directory / steps[1][1] / CONFIG)
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value]
    if modes != ["pooling_mode_mean_tokens"]:
        raise ModelError(
            f"{directory / steps[1][1]} sets {', '.join(modes) or 'no mode of pooling'}, and only "
            "the mean of the tokens (pooling_mode_mean_tokens) is supported"
        )


def split_encoder(model: PreTrainedModel) -> list[nn.Module]:
    """Split an encoder into embeddings, blocks and pooling, in the order of their use.

    The layers hold the model's own parameters, in evaluation mode.
    """
    config: Any = model.config
    limits = SequenceLimits(config.name_or_path, config.max_position_embeddings)
    blocks: Any = model.get_submodule(_BLOCKS)
    layers: list[nn.Module] = [
        EncoderEmbeddingLayer(model.get_submodule("embeddings"), limits),
        *(EncoderBlockLayer(block, config) for block in blocks),
        PoolingLayer(),
    ]
    for layer in layers:
        layer.eval()
    return layers


def names_in_encoder(layers: list[nn.Module]) -> list[dict[str, str]]:
    """What the model calls the tensors of each layer that `split_encoder` made of it."""
    return [
        {name: name.replace("block.", f"{_BLOCKS}.{index - 1}.", 1) for name in layer.state_dict()}
        for index, layer in enumerate(layers)
    ]
