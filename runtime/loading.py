"""Loading: values on their way from the caller's memory to the device of a stage."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from runtime.activation import tensors_of


class OnItsWay(Protocol):
    """A value that has set out for the device."""

    def arrived(self) -> Any:
        """The value on the device; what the current stream does from here on finds it there."""


def loader_to(device: torch.device) -> Callable[[Any], OnItsWay]:
    """A function that sends a value, tensors in nested tuples, lists and dicts, to `device`."""
    return CudaLoader(device) if device.type == "cuda" else _Moved


class CudaLoader:
    """Copies to a GPU on a stream of their own, beside what the current stream computes.

    Only a copy from pinned memory runs beside the host and the kernels of other streams
    (https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html), so what is not pinned
    yet is pinned first.
    """

    def __init__(self, device: torch.device) -> None:
        """Load to `device`."""
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, value: Any) -> OnItsWay:
        """Start to copy all tensors of `value` that are in the host's memory."""
        with torch.cuda.stream(self._stream):
            copied = pytree.tree_map_only(torch.Tensor, self._copy, value)
            copies_done = self._stream.record_event()
        return _CudaCopies(copied, self._device, copies_done)

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != "cpu":
            return tensor  # computed on another stream, which this one does not wait for
        pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
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


@dataclass(frozen=True)
class _Moved:
    """On a CPU there is nothing to move ahead of need."""

    value: Any

    def arrived(self) -> Any:
        """The value; tensors elsewhere are moved to the CPU."""
        if all(tensor.is_cpu for tensor in tensors_of(self.value)):
            return self.value
        return pytree.tree_map_only(torch.Tensor, torch.Tensor.cpu, self.value)
