"""Pipeline buffers at run time: three places each, and the memory that receives fill."""

from collections.abc import Callable
from typing import Any

import torch

from runtime.tensors.activation import Signature
from runtime.tensors.ownership import MemoryPool, Slabs
from schemas import Place

KEPT = 4
"""Pieces of memory for received activations that are kept, at least."""


class Buffer:
    """One of the alternating buffers of a stage: what its places hold."""

    def __init__(self) -> None:
        """Begin with empty places."""
        self._values: dict[Place, Any] = {}

    def __getitem__(self, place: Place) -> Any:
        return self._values.get(place)

    def __setitem__(self, place: Place, value: Any) -> None:
        self._values[place] = value

    def take(self, place: Place) -> Any:
        """The value of a place, which lets go of it."""
        return self._values.pop(place, None)

    def clear(self, *places: Place) -> None:
        """Let go of the values in `places`."""
        for place in places:
            self._values.pop(place, None)


class BufferPool:
    """The buffers of a rank's stages, kept from one run to the next."""

    def __init__(
        self,
        allocate: Callable[[int], torch.Tensor],
        release: Callable[[torch.Tensor], None] = lambda _: None,
    ) -> None:
        """Create a pool; buffers come into being when named.

        Args:
            allocate: As of `MemoryPool`.
            release: As of `MemoryPool`.
        """
        self.memory = MemoryPool(allocate, release, kept=KEPT)
        self.small = Slabs()
        """For what is small, beside the activations."""
        self._buffers: dict[tuple[int, int], Buffer] = {}

    def __getitem__(self, key: tuple[int, int]) -> Buffer:
        """The buffer of a stage with a number."""
        if key not in self._buffers:
            self._buffers[key] = Buffer()
        return self._buffers[key]

    def clear(self) -> None:
        """Let go of all values; the memory for receives stays."""
        for buffer in self._buffers.values():
            buffer.clear(*Place)

    def expect(self, stages: int, num_buffers: int) -> None:
        """Keep as much memory as receives need: twice what is in the buffers of so many stages.

        As much again may be on its way, or still be referred to by what layers return.

        Args:
            stages: Those of the rank that receive.
            num_buffers: Of each of them.
        """
        self.memory.keep(max(KEPT, 2 * stages * num_buffers))

    def receive_memory(self, signature: Signature) -> list[torch.Tensor]:
        """Memory for an activation, one uint8 tensor for each of its blocks, aligned like it."""
        return signature.memory_in(self.memory.take(signature.extent))
