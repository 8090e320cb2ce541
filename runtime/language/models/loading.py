"""Load a causal language model from disk, for evaluation on the CPU or to be moved from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from runtime.checkpoint import CheckpointError
from runtime.language.models.directory import is_by_layers
from runtime.language.models.errors import ModelError, one_line
from runtime.language.models.hugging_face import read_weights
from runtime.language.models.lazy import load_whole
from runtime.language.models.locate import ModelFiles
from runtime.language.models.quiet import LOCAL, quiet_transformers
from runtime.language.models.split import ATTENTION

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
                attn_implementation=ATTENTION,
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
    require_fit(files.name, report)
    return model  # `from_pretrained` has put it into evaluation mode


def _has_overruled(files: ModelFiles) -> bool:
    """Whether two files hold a tensor of one name: transformers takes the last, not the index's."""
    try:
        return bool(read_weights(files.directory)[1])
    except CheckpointError as error:
        raise ModelError(
            f"the weights of {files.name} cannot be loaded: {one_line(error)}"
        ) from error


def require_fit(model: str, report: Mapping[str, set[Any]]) -> None:
    """Refuse what transformers would only warn of: it makes up weights, or leaves some out.

    Args:
        model: what messages call the model.
        report: of `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)`.

    Raises:
        ModelError: naming a weight.
    """
    problem = f"the weights of {model} do not fit its configuration"
    for name, stored, needed in sorted(report["mismatched_keys"]):
        raise ModelError(f"{problem}: {name} is {list(stored)}, and {list(needed)} is needed")
    for verb, names in (("lacks", report["missing_keys"]), ("adds", report["unexpected_keys"])):
        if names:
            count = f"{len(names)} tensor{'s' * (len(names) > 1)}"
            raise ModelError(f"{problem}: the checkpoint {verb} {count}, {min(names)} among them")
