"""Whether the weights on disk are those of the layers that a configuration describes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from runtime.checkpoint import Source
from runtime.checkpoint.tensors import dtype_name
from runtime.language.models.errors import ModelError
from runtime.language.models.weights.hugging_face import HuggingFaceCheckpoint

_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "module": "DistributedDataParallel or DeepSpeed",
    "_fsdp_wrapped_module": "FullyShardedDataParallel",
    "_checkpoint_wrapped_module": "torch's checkpoint_wrapper",
    "base_model.model": "peft",
}
"""What wrappers of modules put into the names of their tensors, and whose it is."""
_WRAPPER = re.compile(rf"(?:^|\.)({'|'.join(map(re.escape, _WRAPPERS))})(?=\.)")
_QUANTISED = re.compile(r"\.(qweight|qzeros|scales|g_idx|weight_scale(_inv)?|absmax|quant_map)$")
_ADAPTER = re.compile(r"\.(lora_[AB]|lora_embedding_[AB]|base_layer)\b")


def require_fit(model: str, source: Source, layers: list[nn.Module]) -> None:
    """Refuse weights that are not those of the layers, before any is read.

    Args:
        model: What messages call the model.
        source: The weights.
        layers: Of the whole model, in order; they may be on the meta device.

    Raises:
        ModelError: naming a tensor.
        CheckpointError: a file is missing or damaged.
    """
    source.require_layers(len(layers))
    problem = f"the weights of {model} do not fit its configuration"
    lacking: list[str] = []
    searched: list[str] = []
    whole = source if isinstance(source, HuggingFaceCheckpoint) else None
    adding = [] if whole is None else list(whole.unexpected())
    for index, layer in enumerate(layers):
        stored, state = source.tensors(index), layer.state_dict()
        for name in sorted(stored.keys() & state.keys()):
            found, needed = list(stored[name].spec.shape), list(state[name].shape)
            if found != needed:
                raise ModelError(
                    f"{problem}: {stored[name].stored_as} is {found}, and {needed} is needed"
                )
            dtype, wanted = stored[name].spec.dtype, state[name].dtype
            if dtype.is_floating_point != wanted.is_floating_point:
                raise ModelError(
                    f"{problem}: {stored[name].stored_as} is {dtype_name(dtype)}, and "
                    f"{dtype_name(wanted)} is needed; quantised weights are not supported"
                )
        for name in sorted(state.keys() - stored.keys()):
            lacking.append(f"{name} of layer {index}")
            searched.append("" if whole is None else whole.name_in_files(index, name))
        adding += [stored[name].stored_as for name in sorted(stored.keys() - state.keys())]
    if lacking or adding:
        raise ModelError(f"{problem}: {_difference(lacking, searched, adding)}")


def require_fully_loaded(model: str, report: Mapping[str, set[Any]]) -> None:
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
            count = _count(sorted(names))
            raise ModelError(f"{problem}: the checkpoint {verb} {count}, {min(names)} among them")


def _difference(lacking: list[str], searched: list[str], adding: list[str]) -> str:
    """What differs, for people who know the names in their own files.

    Args:
        lacking: Tensors that are needed and not there.
        searched: Their names in files of the format, or nothing.
        adding: Names in the files that are not needed.
    """
    for name in adding:
        wrapper = _WRAPPER.search(name)
        if wrapper is not None and lacking:
            part = wrapper[1]
            return (
                f"its names have {part!r} in them, such as {name}, which {_WRAPPERS[part]} puts "
                "there: save the state_dict of the module that is wrapped, or rename the tensors"
            )
        if _ADAPTER.search(name):
            return f"it holds an adapter, {name} for example: merge it into the weights"
        if _QUANTISED.search(name):
            return f"{name} is of quantised weights, of which only GGUF is supported"
    sentences = []
    if lacking:
        named = f" ({searched[0]} in its files)" if searched[0] else ""
        sentences.append(f"the checkpoint lacks {_count(lacking)}, {lacking[0]} among them{named}")
    if adding:
        subject = "it also" if lacking else "the checkpoint"
        sentences.append(f"{subject} adds {_count(adding)}, {adding[0]} among them")
    return "; ".join(sentences)


def _count(names: list[str]) -> str:
    return f"{len(names)} tensor{'s' * (len(names) > 1)}"
