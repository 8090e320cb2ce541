"""Shared memory: segments of memory that other processes on this host can write into.

A segment is a file without a name (`memfd_create(2)`), which is gone when nobody holds it any more;
its descriptor travels over the socket that connects two processes. The process that has made it
maps it; the other one writes to the file, so that the memory is that of one process only. It does
not count against the size of `/dev/shm`.
"""

import mmap
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

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
        self.released = 0
        """How many have been forgotten so far."""

    def allocate(self, nbytes: int) -> torch.Tensor:
        """Memory in a segment of its own, uint8 `[nbytes]`."""
        descriptor = os.memfd_create("schedcc")
        try:
            os.ftruncate(descriptor, max(nbytes, 1))
            mapped = mmap.mmap(descriptor, max(nbytes, 1))
        except OSError:
            os.close(descriptor)
            raise
        memory = torch.frombuffer(mapped, dtype=torch.uint8)
        address, segment = memory.data_ptr(), Segment(next(self._numbers), descriptor)
        self._segments[address] = segment
        weakref.finalize(mapped, self._release, address, segment).atexit = False
        return memory[:nbytes]

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
        if self._segments.get(address) is segment:  # or the address is in use again
            del self._segments[address]
        self.released += 1


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
