"""Load a causal language model from disk, for evaluation on the CPU or to be moved from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from runtime.checkpoint import CheckpointError
from runtime.language.models.errors import ModelError
from runtime.language.models.files.directory import is_by_layers
from runtime.language.models.files.shape import ModelFiles
from runtime.language.models.lazy import load_whole
from runtime.language.models.quiet import LOCAL, quiet_transformers
from runtime.language.models.weights.fit import require_fully_loaded
from runtime.language.models.weights.hugging_face import read_weights
from schedcc.io.plain_text import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def load_causal_lm(files: ModelFiles, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """Load the whole model in evaluation mode, from local files only, as transformers does.

    A pipeline needs it only to compare with: its stages load their own layers.

    Raises:
        ModelError: the weights are damaged, or not the ones that the configuration asks for.
    """
    if is_by_layers(files.directory) or _has_overruled(files):
        return load_whole(files, dtype)
    from transformers import AutoModelForCausalLM

    loader: Any = AutoModelForCausalLM
    try:
        with quiet_transformers():
            loaded: tuple[PreTrainedModel, Mapping[str, set[Any]]] = loader.from_pretrained(
                files.directory,
                dtype=dtype,
                **LOCAL,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:
        # Damaged files surface as exceptions of safetensors, pickle, json, torch and the system.
        raise ModelError(
            f"the weights of {files.name} cannot be loaded: {one_line(error)}"
        ) from error
    model, report = loaded
    require_fully_loaded(files.name, report)
    return model  # `from_pretrained` has put it into evaluation mode


def _has_overruled(files: ModelFiles) -> bool:
    """Whether two files hold a tensor of one name: transformers takes the last, not the index's."""
    try:
        return bool(read_weights(files.directory)[1])
    except CheckpointError as error:
        raise ModelError(
            f"the weights of {files.name} cannot be loaded: {one_line(error)}"
        ) from error
