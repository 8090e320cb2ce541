"""A causal language model whose layers get memory only where they run.

The model is built without memory for its weights (on the meta device) and split there; a layer's
weights are read from disk, one by one, when the stage that has it builds it. What the model
computes and does not load, such as the frequencies of rotary embeddings, is real from the start.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from runtime.checkpoint import CheckpointError, Source, StoredTensor, open_layers
from runtime.language.models.configuration import require_known, require_own_code
from runtime.language.models.directory import is_by_layers
from runtime.language.models.errors import ModelError, one_line
from runtime.language.models.families import family_of
from runtime.language.models.fit import require_fit
from runtime.language.models.hugging_face import HuggingFaceCheckpoint
from runtime.language.models.locate import ModelFiles
from runtime.language.models.quiet import LOCAL, quiet_transformers
from runtime.language.models.split import ATTENTION, split_causal_lm
from runtime.modules.layers import LayerSpec

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Loaded = WeakValueDictionary[tuple[Path, str], nn.Parameter]
"""The parameters that a process has, by what they were read from: tied ones are one."""


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
    _loaded: Loaded = field(default_factory=WeakValueDictionary)

    def specs(self, device: torch.device | str = "cpu") -> list[LayerSpec]:
        """The layers for an evaluator: each is loaded to `device` by the stage that builds it."""
        return [LayerSpec(self.load, index, device) for index in range(len(self.layers))]

    def load(self, index: int, device: torch.device | str = "cpu") -> nn.Module:
        """Read one layer, and nothing but its tensors, to `device`.

        Raises:
            ModelError: a tensor cannot be read.
        """
        layer = copy.deepcopy(self.layers[index])
        self._materialise(index, layer, device)
        return layer

    def load_in_place(self) -> None:
        """Read all layers into `model`.

        Raises:
            ModelError: a tensor cannot be read.
        """
        for index, layer in enumerate(self.layers):
            self._materialise(index, layer, "cpu")

    def _materialise(self, index: int, layer: nn.Module, device: torch.device | str) -> None:
        try:
            materialise(layer, self.source.tensors(index), device, self._loaded)
        except CheckpointError as error:
            raise ModelError(
                f"the weights of {self.name} cannot be loaded: {one_line(error)}"
            ) from error


def lazy_causal_lm(files: ModelFiles, dtype: torch.dtype = torch.float32) -> LazyModel:
    """Split a model without loading it; of its files, only the headers are read.

    Raises:
        ModelError: the weights are damaged, or not the ones that the configuration asks for.
    """
    from transformers import AutoModelForCausalLM

    model = without_memory(files.directory, files.name, AutoModelForCausalLM, dtype)
    layers = split_causal_lm(model)
    try:
        source = open_model(files, tied=bool(model.config.tie_word_embeddings))
        require_fit(files.name, source, layers)
    except CheckpointError as error:
        raise ModelError(
            f"the weights of {files.name} cannot be loaded: {one_line(error)}"
        ) from error
    return LazyModel(files.name, source, model, layers)


def load_whole(files: ModelFiles, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load all layers into one model of transformers, on the CPU.

    Raises:
        ModelError: the weights are damaged, or not the ones that the configuration asks for.
    """
    lazy = lazy_causal_lm(files, dtype)
    lazy.load_in_place()
    return lazy.model


def without_memory(directory: Path, name: str, loader: Any, dtype: torch.dtype) -> PreTrainedModel:
    """The model that a configuration describes, in evaluation mode, its parameters on meta.

    Args:
        directory: Holds the configuration.
        name: What messages call the model.
        loader: A class of transformers such as `AutoModelForCausalLM`.
        dtype: Of the parameters.

    Raises:
        ModelError: transformers does not accept the configuration, or the model has code of its
            own, which is not run.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    try:
        with quiet_transformers():
            config: PreTrainedConfig = AutoConfig.from_pretrained(directory, **LOCAL)
            require_known(name, config)
            with init_empty_weights(include_buffers=False):
                model: Any = loader.from_config(
                    config, dtype=dtype, attn_implementation=ATTENTION, trust_remote_code=False
                )
    except ModelError:
        raise
    except Exception as error:
        # Configurations are checked by the code of each family, which raises what it likes.
        raise ModelError(
            f"the configuration of {name} cannot be used: {one_line(error)}"
        ) from error
    require_own_code(name, config, loader, model)
    evaluated: PreTrainedModel = model.eval()
    return evaluated


def open_model(files: ModelFiles, *, tied: bool) -> Source:
    """The weights of a model, in Hugging Face's format or this package's.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    if is_by_layers(files.directory):
        return open_layers(files.directory)
    family = family_of(files.name, files.model_type)
    return HuggingFaceCheckpoint(files.directory, family, files.num_blocks, tied=tied)


def materialise(
    layer: nn.Module,
    tensors: Mapping[str, StoredTensor],
    device: torch.device | str,
    loaded: Loaded,
) -> None:
    """Give a layer its weights, read one after the other; what is real already only moves.

    Args:
        layer: On the meta device, but for what is not loaded; it says which dtypes are wanted.
        tensors: By the names in the layer's `state_dict()`.
        device: Where the weights go.
        loaded: What this process has already.

    Raises:
        CheckpointError: a tensor cannot be read.
    """
    with torch.no_grad():
        for prefix, module in layer.named_modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                stored = tensors[f"{prefix}.{name}" if prefix else name]
                module.register_parameter(name, _parameter(stored, parameter, device, loaded))
            for name, buffer in list(module.named_buffers(recurse=False)):
                place = f"{prefix}.{name}" if prefix else name
                value = tensors[place].read() if place in tensors else buffer
                module._buffers[name] = value.to(device, buffer.dtype, copy=True)


def _parameter(
    stored: StoredTensor, wanted: nn.Parameter, device: torch.device | str, loaded: Loaded
) -> nn.Parameter:
    key = (stored.file, stored.stored_as)
    found = loaded.get(key)
    if found is not None and found.dtype == wanted.dtype:
        return found
    content = torch.empty(wanted.shape, dtype=wanted.dtype, device=device)
    content.copy_(stored.read())  # not `to`, which keeps the mapped file where it need not convert
    parameter = nn.Parameter(content, requires_grad=wanted.requires_grad)
    loaded[key] = parameter
    return parameter
