"""Shapes that depend on values: noticing the operators of torch whose results do.

torch marks its operators: the shape of what `nonzero` returns depends on values, and `item()` hands
a value to Python, which may slice by it
(https://docs.pytorch.org/docs/stable/torch.compiler_dynamic_shapes.html). A layer that uses one may
return another shape for the next micro-batch that looks alike.

The names of operators come from torch's own record of what it executes, as its profiler reads it.
That changes nothing in how they are executed. (A dispatch mode would: some operators take another
way under it, to other last bits.)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch._C._autograd import (
    _disable_profiler_legacy,
    _enable_profiler_legacy,
    _profiler_enabled,
)
from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

_TAGS = {torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output}

_UNMARKED = {
    "aten::resolve_neg",  # what `tolist()` and `numpy()` begin with
    "aten::tensor_split",
    "aten::_pack_padded_sequence",
    "aten::_pad_packed_sequence",
    # Encoders leave padding out in nested tensors, whose sizes come from the mask.
    "aten::_nested_tensor_from_mask",
    "aten::_nested_tensor_from_tensor_list",
    "aten::to_padded_tensor",
}
"""Others that hand values to the host, or take sizes from them."""

_BY_OTHERS = {"aten::index"}
"""Marked, but shown by another name: a selection by a mask asks `nonzero`."""


@dataclass
class Noticed:
    """What was noticed."""

    by_value: bool = True
    """Whether a shape may depend on values; so it is where nothing can be noticed."""


@contextmanager
def noticing() -> Iterator[Noticed]:
    """Inside, on this thread, notice operators whose results have shapes that depend on values."""
    noticed = Noticed()
    if _profiler_enabled():  # somebody else reads torch's record
        yield noticed
        return
    off = [False] * 5
    config: Any = ProfilerConfig  # torch's own annotations lack one of its arguments
    _enable_profiler_legacy(config(ProfilerState.CPU, *off, _ExperimentalConfig()))
    try:
        yield noticed
    finally:
        events = _disable_profiler_legacy()
        names = {event.name() for thread in events for event in thread}
        noticed.by_value = any(map(_depends_on_values, names))


@lru_cache(maxsize=4096)
def _depends_on_values(name: str) -> bool:
    if name in _UNMARKED:
        return True
    namespace, _, operator = name.partition("::")
    if name in _BY_OTHERS or not operator:
        return False
    packet: Any = getattr(getattr(torch.ops, namespace), operator, None)
    overloads: Any = getattr(packet, "overloads", tuple)()
    return any(not _TAGS.isdisjoint(getattr(packet, overload).tags) for overload in overloads)
