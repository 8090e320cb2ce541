"""Loading: values on their way from the caller's memory to the device of a stage.

What is loaded is always a copy: a loader may fill the same memory again for the next item.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch.utils import _pytree as pytree

from runtime.ownership import copied


class OnItsWay(Protocol):
    """A value that has set out for the device."""

    def arrived(self) -> Any:
        """The value on the device; what the current stream does from here on finds it there."""


def loader_to(device: torch.device) -> Callable[[Any], OnItsWay]:
    """A function that sends a copy of a value, with all its tensors and arrays, to `device`."""
    return CudaLoader(device) if device.type == "cuda" else _Copied


class CudaLoader:
    """Copies to a GPU on a stream of their own, beside what the current stream computes.

    Only a copy from pinned memory runs beside the host and the kernels of other streams
    (https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html), so everything is copied
    into pinned memory first, which is the loader's own.
    """

    def __init__(self, device: torch.device) -> None:
        """Load to `device`."""
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, value: Any) -> OnItsWay:
        """Start to copy all tensors of `value` that are in the host's memory."""
        value = pytree.tree_map_only(np.ndarray, np.ndarray.copy, value)
        with torch.cuda.stream(self._stream):
            copied = pytree.tree_map_only(torch.Tensor, self._copy, value)
            copies_done = self._stream.record_event()
        return _CudaCopies(copied, self._device, copies_done)

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cpu":
            self._stream.wait_stream(torch.cuda.current_stream(self._device))
            return tensor.clone()
        pinned = tensor.clone().pin_memory() if tensor.is_pinned() else tensor.pin_memory()
        return pinned.to(self._device, non_blocking=True)


@dataclass(frozen=True)
class _CudaCopies:
    value: Any
    device: torch.device
    done: torch.cuda.Event

    def arrived(self) -> Any:
        """Let the current stream wait for the copies, and keep their memory until it is done."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(self.done)

        def used_here(tensor: torch.Tensor) -> torch.Tensor:
            if tensor.device == self.device:
                # The memory belongs to the copying stream, which knows nothing of this use.
                tensor.record_stream(stream)
            return tensor.to(self.device, non_blocking=True)

        return pytree.tree_map_only(torch.Tensor, used_here, self.value)


class _Copied:
    """On a CPU a copy is made at once."""

    def __init__(self, value: Any) -> None:
        """Copy the tensors of `value` just as they lie in memory, and its arrays."""
        leaves, structure = pytree.tree_flatten(value)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        copies = iter(copied([t if t.is_cpu else t.cpu() for t in tensors]))
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                leaves[number] = next(copies)
            elif isinstance(leaf, np.ndarray):
                leaves[number] = leaf.copy()
        self._value = pytree.tree_unflatten(leaves, structure)

    def arrived(self) -> Any:
        """The copy."""
        return self._value
