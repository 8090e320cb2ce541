"""Shared memory: segments of memory that other processes on this host can write into.

A segment is a file without a name (`memfd_create(2)`), which is gone when nobody holds it any more;
its descriptor travels over the socket that connects two processes. The process that has made it
maps it; the other one writes to the file, so that the memory is that of one process only. It does
not count against the size of `/dev/shm`.

A mapping needs no descriptor. So a segment whose memory somebody else keeps can be forgotten: then
it costs no descriptor anywhere, and its memory lasts as long as a tensor lies in it.
"""

import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Segment:
    """A segment that this process has made."""

    number: int
    """Which one of this process."""
    descriptor: int


@dataclass(frozen=True)
class Extent:
    """Where tensors lie: in one segment, each at an offset."""

    segment: Segment
    offsets: tuple[int, ...]
    """In bytes."""


class SharedMemory:
    """The segments that a process has made and still uses."""

    def __init__(self) -> None:
        """Begin without any."""
        self._numbers = count(1)
        self._segments: dict[int, Segment] = {}
        """By address; a segment is forgotten when no tensor lies in it any more."""
        self._forget: dict[int, weakref.finalize[..., Any]] = {}
        """By the segment's number."""
        self.released = 0
        """How many have been forgotten so far."""

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Memory in a segment of its own, uint8 `[nbytes]`.

        Raises:
            MemoryError: there is no room for it.
            OSError: it cannot be made.
        """
        room = max(nbytes, 1)
        descriptor = os.memfd_create("schedcc")
        try:
            os.ftruncate(descriptor, room)
            mapped = _mapped(descriptor, room)
        except BaseException:
            os.close(descriptor)
            raise
        memory = torch.from_numpy(mapped)  # which keeps `mapped`, as long as a tensor lies there
        address, segment = memory.data_ptr(), Segment(next(self._numbers), descriptor)
        self._segments[address] = segment
        forget = weakref.finalize(mapped, self._release, address, segment)
        forget.atexit = False
        self._forget[segment.number] = forget
        return memory[:nbytes]

    def release(self, tensor: torch.Tensor) -> None:
        """Forget the segment in which `tensor` lies, though tensors in it may live on.

        Nothing is received there any more, and it costs no descriptor on either side. A tensor
        that lies in no segment of this process is none of this method's business.
        """
        segment = self._segments.get(tensor.untyped_storage().data_ptr())
        if segment is not None:
            self._forget[segment.number]()

    def close(self) -> None:
        """Forget all segments; tensors that lie in them may live on."""
        for forget in list(self._forget.values()):
            forget()

    def extent(self, tensors: Sequence[torch.Tensor]) -> Extent | None:
        """Where `tensors` lie; `None` unless that is one segment of this process."""
        addresses = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        if len(addresses) != 1:
            return None
        (address,) = addresses
        segment = self._segments.get(address)
        if segment is None:
            return None
        return Extent(segment, tuple(tensor.data_ptr() - address for tensor in tensors))

    def numbers(self) -> set[int]:
        """Those of the segments in use."""
        return {segment.number for segment in list(self._segments.values())}

    def _release(self, address: int, segment: Segment) -> None:
        os.close(segment.descriptor)
        self._forget.pop(segment.number, None)
        if self._segments.get(address) is segment:  # or the address is in use again
            del self._segments[address]
        self.released += 1


def _mapped(descriptor: int, nbytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The memory of a segment; unlike `mmap.mmap`, without another descriptor for it."""
    path = f"/proc/self/fd/{descriptor}"
    try:
        whole = torch.from_file(path, shared=True, size=nbytes, dtype=torch.uint8)
    except RuntimeError as error:
        raise MemoryError(f"{nbytes} bytes of shared memory cannot be mapped: {error}") from error
    mapped: np.ndarray[Any, np.dtype[np.uint8]] = whole.numpy()
    return mapped


def write(descriptor: int, offset: int, payload: torch.Tensor) -> None:
    """Write a uint8 tensor into a segment.

    Raises:
        OSError: the segment cannot be written.
    """
    rest = memoryview(payload.numpy())  # type: ignore[arg-type]
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def supported() -> bool:
    """Whether this system has segments, and this process may make them: Linux has."""
    try:
        os.close(os.memfd_create("schedcc"))
    except (AttributeError, OSError):
        return False
    return True
