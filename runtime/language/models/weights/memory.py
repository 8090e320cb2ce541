"""Give layers that were built without memory their weights, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from torch import nn

from runtime.checkpoint import StoredTensor

Loaded = WeakValueDictionary[tuple[Path, str], nn.Parameter]
"""The parameters that a process has, by what they were read from: tied ones are one."""


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
                stored_buffer = tensors.get(place)
                if stored_buffer is not None:
                    value = stored_buffer.read().to(device, buffer.dtype, copy=True)
                else:
                    value = buffer.to(device)
                module._buffers[name] = value


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
