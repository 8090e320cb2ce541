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

from runtime.checkpoint import CheckpointError
from runtime.language.models.directory import read_object, require_all_is_read
from runtime.language.models.errors import ModelError, one_line
from runtime.language.models.families import ENCODERS, SequenceLimits
from runtime.language.models.fit import require_fit
from runtime.language.models.hugging_face import HuggingFaceCheckpoint
from runtime.language.models.lazy import LazyModel, without_memory

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

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


def lazy_encoder(directory: Path, dtype: torch.dtype = torch.float32) -> LazyModel:
    """Split the encoder in a Hugging Face directory without loading it.

    Its layers take a pair (ids, mask) and give embeddings; see `LazyModel` for the rest.

    Raises:
        ModelError: the directory does not hold an encoder of a supported family, or is damaged.
    """
    from transformers import AutoModel

    path = directory / "config.json"
    if not path.is_file():
        raise ModelError(f"{path} is no configuration of a model: there is no such file")
    model_type = read_object(path).get("model_type")
    if not isinstance(model_type, str) or model_type not in ENCODERS:
        raise ModelError(
            f"{directory} is of the model family {model_type!r}; the supported families of "
            f"encoders are {', '.join(sorted(ENCODERS))}"
        )
    require_all_is_read(directory)
    require_mean_pooling(directory)
    model = without_memory(directory, str(directory), AutoModel, dtype)
    layers = split_encoder(model)
    family, num_blocks = ENCODERS[model_type], len(layers) - 2
    try:
        source = HuggingFaceCheckpoint(directory, family, num_blocks, tied=False)
        require_fit(str(directory), source, layers)
    except CheckpointError as error:
        raise ModelError(f"{directory} cannot be loaded: {one_line(error)}") from error
    return LazyModel(str(directory), source, model, layers)


def require_mean_pooling(directory: Path) -> None:
    """Refuse what sentence-transformers would do after the blocks, if `PoolingLayer` does not.

    A directory of bare weights says nothing of it, and is taken to be meant.

    Raises:
        ModelError: naming the step.
    """
    path = directory / "modules.json"
    if not path.is_file():
        return
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        steps = [(entry["type"].rpartition(".")[2], entry["path"]) for entry in modules]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is damaged: {one_line(error)}") from error
    kinds = [kind for kind, _ in steps]
    if kinds != ["Transformer", "Pooling", "Normalize"]:
        raise ModelError(
            f"{path} names the steps {', '.join(kinds)}, and only Transformer, Pooling, Normalize "
            "are supported"
        )
    pooling = read_object(directory / steps[1][1] / "config.json")
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
    family, num_blocks = ENCODERS[config.model_type], config.num_hidden_layers
    limits = SequenceLimits(config.name_or_path, config.max_position_embeddings, None)

    def part(layer: int) -> nn.Module:
        (path,) = family.parts(layer, num_blocks).values()
        return model.get_submodule(path)

    layers: list[nn.Module] = [
        EncoderEmbeddingLayer(part(0), limits),
        *(EncoderBlockLayer(part(layer), config) for layer in range(1, num_blocks + 1)),
        PoolingLayer(),
    ]
    for layer in layers:
        layer.eval()
    return layers
