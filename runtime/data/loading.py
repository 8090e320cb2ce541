"""Loading: values on their way from the caller's memory to the device of a stage.

What is loaded is always a copy: a loader may fill the same memory again for the next item. On a
CPU a large copy is made by a thread, beside what the stage computes meanwhile.
"""

import copy
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch

from runtime.tensors.nested import flatten, transform, unflatten
from runtime.tensors.ownership import Take, copied, fresh


class OnItsWay(Protocol):
    """A value that has set out for the device."""

    def arrived(self) -> Any:
        """The value on the device; what the current stream does from here on finds it there."""

    def settle(self) -> None:
        """Wait until the caller's memory is not read any more."""


def loader_to(device: torch.device, take: Take = fresh) -> Callable[[Any], OnItsWay]:
    """A function that sends a copy of a value, with all its tensors and arrays, to `device`.

    Args:
        device: The device.
        take: Gives memory for copies, if it is a CPU.
    """
    return CudaLoader(device) if device.type == "cuda" else partial(_Copied, take=take)


THREAD = "schedcc loads"

LARGE = 2**20
"""Bytes of a copy that takes much longer than to start a thread for it."""


class CudaLoader:
    """Copies to a GPU on a stream of their own, beside what the current stream computes.

    Only a copy from pinned memory runs beside the host and the kernels of other streams
    (https://docs.pytorch.org/tutorials/intermediate/pinmem_nonblock.html), so everything is copied
    into pinned memory first, which is the loader's own.
    """

    def __init__(self, device: torch.device) -> None:
        """Load to `device`."""
        number = torch.cuda.current_device() if device.index is None else device.index
        self._device = torch.device("cuda", number)
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def __call__(self, value: Any) -> OnItsWay:
        """Start to copy all tensors of `value` that are in the host's memory."""
        with torch.cuda.stream(self._stream):
            copied = transform(value, self._copy)
            copies_done = self._stream.record_event()
        return _CudaCopies(copied, self._device, copies_done)

    def _copy(self, tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor):
            return _own(tensor)
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

        def used_here(tensor: Any) -> Any:
            if not isinstance(tensor, torch.Tensor):
                return tensor
            if tensor.device == self.device:
                # The memory belongs to the copying stream, which knows nothing of this use.
                tensor.record_stream(stream)
            return tensor.to(self.device, non_blocking=True)

        return transform(self.value, used_here)

    def settle(self) -> None:
        """What is in the host's memory was copied into pinned memory at once."""


class _Copied:
    """On a CPU a copy is made at once, or by a thread."""

    def __init__(self, value: Any, take: Take) -> None:
        """Copy the tensors of `value` just as they lie in memory, and its arrays."""
        self._thread: threading.Thread | None = None
        self._take = take
        if type(value) is list and all(
            type(part) is torch.Tensor and part.is_cpu for part in value
        ):
            self._value: Any = self._copied(value)  # what most micro-batches are
            return
        leaves, nesting = flatten(value)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        copies = iter(self._copied([t if t.is_cpu else t.cpu() for t in tensors]))
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                leaves[number] = next(copies)
            else:
                leaves[number] = _own(leaf)
        self._value = unflatten(leaves, nesting)

    def arrived(self) -> Any:
        """The copy."""
        self.settle()
        return self._value

    def settle(self) -> None:
        """Wait for the thread."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _copied(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        if sum(t.nbytes for t in tensors if t.layout is torch.strided and not t.is_nested) < LARGE:
            return copied(tensors, self._take)
        parts: list[tuple[Any, Any]] = []
        copies = copied(
            tensors, self._take, lambda there, here: parts.append((there.numpy(), here.numpy()))
        )
        # Not by torch, which would make threads of its own for each thread that it is called from.
        self._thread = threading.Thread(target=_copy, args=(parts,), name=THREAD, daemon=True)
        self._thread.start()
        return copies


def _copy(parts: list[tuple[Any, Any]]) -> None:
    while parts:
        np.copyto(*parts.pop())


def _own(leaf: Any) -> Any:
    """A copy of what is no tensor, if it may be changed."""
    if isinstance(leaf, _UNCHANGING):
        return leaf
    try:
        return copy.deepcopy(leaf)
    except Exception:  # an open file, say: nothing that a loader would fill anew
        return leaf


_UNCHANGING = (bool, int, float, complex, str, bytes, type(None), np.generic)
