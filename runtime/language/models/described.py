"""What a configuration says of a model: its layers, without weights, and their names in files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from runtime.checkpoint import Source, open_layers
from runtime.language.models.encoder import (
    ENCODERS,
    UNUSED,
    names_in_encoder,
    require_mean_pooling,
    split_encoder,
)
from runtime.language.models.files.directory import is_by_layers, read_config
from runtime.language.models.skeleton import without_memory
from runtime.language.models.split.causal import names_in_model, split_causal_lm
from runtime.language.models.weights.hugging_face import HuggingFaceCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Described:
    """A model as its configuration describes it, without weights."""

    model: PreTrainedModel
    """On the meta device."""
    layers: list[nn.Module]
    names: list[dict[str, str]]
    """For each layer, what `model` calls its tensors."""
    is_encoder: bool

    def source(self, directory: Path) -> Source:
        """The weights in a directory, by layers or in Hugging Face's format.

        Raises:
            CheckpointError: they are missing or damaged.
        """
        return open_layers(directory) if is_by_layers(directory) else self.weights(directory)

    def weights(self, directory: Path) -> HuggingFaceCheckpoint:
        """The weights that a Hugging Face directory holds for it."""
        if self.is_encoder:
            return HuggingFaceCheckpoint(
                directory, self.model, self.names, last="pooling", unused=UNUSED
            )
        return HuggingFaceCheckpoint(directory, self.model, self.names)


def describe(directory: Path, name: str, dtype: torch.dtype = torch.float32) -> Described:
    """Build a model without memory, as the configuration in a directory says, and split it.

    Raises:
        ModelError: the configuration is missing or damaged, or the model cannot be split.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    if read_config(directory).get("model_type") in ENCODERS:
        require_mean_pooling(directory)
        model = without_memory(directory, name, AutoModel, dtype)
        layers = split_encoder(model)
        return Described(model, layers, names_in_encoder(layers), is_encoder=True)
    model = without_memory(directory, name, AutoModelForCausalLM, dtype)
    layers = split_causal_lm(model)
    return Described(model, layers, names_in_model(model, layers), is_encoder=False)
