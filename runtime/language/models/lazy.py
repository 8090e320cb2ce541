"""A causal language model whose layers get memory only where they run.

The model is built without memory for its weights (on the meta device) and split there; a layer's
weights are read from disk, one by one, when the stage that has it builds it. What the model
computes and does not load, such as the frequencies of rotary embeddings, is real from the start.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary, ref

import torch
from torch import nn

from runtime.checkpoint import CheckpointError, Source, StoredTensor
from runtime.language.models.described import Described, describe
from runtime.language.models.encoder import ENCODERS
from runtime.language.models.errors import ModelError
from runtime.language.models.files.directory import read_config, require_all_is_read
from runtime.language.models.files.names import CONFIG
from runtime.language.models.files.shape import ModelFiles
from runtime.language.models.split.layers import BlockLayer, HeadLayer
from runtime.language.models.split.scores import ScoringLayer
from runtime.language.models.weights.fit import require_fit
from runtime.language.models.weights.memory import Loaded, materialise
from runtime.modules.layers import LayerSpec
from schedcc.io.plain_text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LazyModel:
    """The layers of a model that nobody has loaded yet."""

    name: str
    """What messages call the model."""
    source: Source
    model: PreTrainedModel
    """The unsplit model, without memory for its weights."""
    layers: list[nn.Module]
    """The layers of `model`, for whoever wants to know sizes; not to be run."""
    names: list[dict[str, str]]
    """For each layer, what `model` calls its tensors."""
    _loaded: Loaded = field(default_factory=WeakValueDictionary)
    _before: threading.local = field(default_factory=threading.local)

    def specs(
        self, device: torch.device | str = "cpu", *, scoring: bool = False
    ) -> list[LayerSpec]:
        """The layers for an evaluator: each is loaded to `device` by the stage that builds it.

        Args:
            device: Where the weights go.
            scoring: Whether the last layer gives `PendingLogits`, for `label_scores`.
        """
        specs = [LayerSpec(self.load, index, device) for index in range(len(self.layers))]
        if scoring:
            specs[-1] = LayerSpec(self._load_scoring, device)
        return specs

    def load(self, index: int, device: torch.device | str = "cpu") -> nn.Module:
        """Read one layer, and nothing but its tensors, to `device`.

        Raises:
            ModelError: a tensor cannot be read.
        """
        layer = copy.deepcopy(self.layers[index], self._shared_with_layer_before(index))
        self._materialise(layer, self.source.tensors(index), device)
        self._before.last = index, ref(layer)
        return layer

    def _load_scoring(self, device: torch.device | str) -> nn.Module:
        head = self.load(len(self.layers) - 1, device)
        assert isinstance(head, HeadLayer), "encoders have no head"
        return ScoringLayer(head)

    def load_whole(self) -> PreTrainedModel:
        """Read all layers into `model`.

        Raises:
            ModelError: a tensor cannot be read.
        """
        tensors = {
            self.names[index][name]: stored
            for index in range(len(self.layers))
            for name, stored in self.source.tensors(index).items()
        }
        self._materialise(self.model, tensors, "cpu")
        return self.model

    def _shared_with_layer_before(self, index: int) -> dict[int, Any]:
        """What a copy of a layer is not to copy: blocks of one stage make their masks once.

        Not so where rotary embeddings remember former sequences: then each has its own.
        """
        template = self.layers[index]
        number, found = getattr(self._before, "last", (None, lambda: None))
        before = found() if number == index - 1 else None
        if not isinstance(template, BlockLayer) or not isinstance(before, BlockLayer):
            return {}
        if template.surroundings.remembers:
            return {}
        return {id(template.surroundings): before.surroundings}

    def _materialise(
        self,
        module: nn.Module,
        tensors: Mapping[str, StoredTensor],
        device: torch.device | str,
    ) -> None:
        try:
            materialise(module, tensors, device, self._loaded)
        except CheckpointError as error:
            raise ModelError(
                f"the weights of {self.name} cannot be loaded: {one_line(error)}"
            ) from error


def lazy_causal_lm(files: ModelFiles, dtype: torch.dtype = torch.float32) -> LazyModel:
    """Split a model without loading it; of its files, only the headers are read.

    Its `specs()` are layers for an evaluator, which reads the weights of its own stages alone::

        model = lazy_causal_lm(locate_model("smollm2"), torch.bfloat16)
        evaluator = Evaluator(model.specs(), loss_fn=loss_fn, stages=2)

    The first layer takes token ids `[micro_batch_size, sequence]`, int64, and the last gives logits
    `[micro_batch_size, sequence, vocabulary]`.

    Args:
        files: What `locate_model` finds: `smollm2`, a GGUF file or a Hugging Face directory.
        dtype: Of the weights, once they are loaded.

    Raises:
        ModelError: the model cannot be split, or the weights are damaged, or not the ones that the
            configuration asks for.
    """
    described = describe(files.directory, files.name, dtype)
    if described.is_encoder:
        raise ModelError(f"{files.name} is an encoder, whose tokens see those after them")
    return _lazy(described, files.directory, files.name)


def lazy_encoder(directory: Path, dtype: torch.dtype = torch.float32) -> LazyModel:
    """Split the encoder in a Hugging Face directory without loading it.

    Its layers take a pair (ids, mask) and give embeddings; see `LazyModel` for the rest.

    Raises:
        ModelError: the directory does not hold an encoder of a supported family, or is damaged.
    """
    if not (directory / CONFIG).is_file():
        raise ModelError(
            f"{directory / CONFIG} is no configuration of a model: there is no such file"
        )
    model_type = read_config(directory).get("model_type")
    if model_type not in ENCODERS:
        raise ModelError(
            f"{directory} is of the model family {model_type!r}; the supported families of "
            f"encoders are {', '.join(ENCODERS)}"
        )
    require_all_is_read(directory)
    return _lazy(describe(directory, str(directory), dtype), directory, str(directory))


def _lazy(described: Described, directory: Path, name: str) -> LazyModel:
    try:
        source = described.source(directory)
        require_fit(name, source, described.layers)
    except CheckpointError as error:
        raise ModelError(f"the weights of {name} cannot be loaded: {one_line(error)}") from error
    return LazyModel(name, source, described.model, described.layers, described.names)


def load_whole(files: ModelFiles, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load all layers into one model of transformers, on the CPU.

    Raises:
        ModelError: the weights are damaged, or not the ones that the configuration asks for.
    """
    return lazy_causal_lm(files, dtype).load_whole()
