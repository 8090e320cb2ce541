"""Pipeline buffers at run time: three places each, and the memory that receives fill.

Memory for received activations is allocated once and reused: it grows to the largest activation
that a buffer has seen and does not depend on the number of micro-batches.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from runtime.activation import Signature, tensors_of
from schemas import Place

ALIGNMENT = 64
"""Bytes: each tensor of an activation begins at a multiple, which suits every dtype."""

Allocate = Callable[[int], torch.Tensor]
"""Gives memory of so many bytes, uint8."""


class Buffer:
    """One of the alternating buffers of a stage."""

    def __init__(self, allocate: Allocate) -> None:
        """Create an empty buffer whose received activations live in what `allocate` gives."""
        self._allocate = allocate
        self._values: dict[Place, Any] = {}
        self._memory: torch.Tensor | None = None
        self._address: int | None = None
        self._shaped_for: Signature | None = None
        self._shaped: list[torch.Tensor] = []

    def __getitem__(self, place: Place) -> Any:
        return self._values.get(place)

    def __setitem__(self, place: Place, value: Any) -> None:
        self._values[place] = value

    def clear(self, *places: Place) -> None:
        """Let go of the values in `places`."""
        for place in places:
            self._values.pop(place, None)

    def receive_memory(self, signature: Signature) -> list[torch.Tensor]:
        """Memory for an activation, one uint8 tensor of the right size for each of its tensors."""
        if signature is not self._shaped_for:  # mostly it is that of the micro-batch before
            rooms = [-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in signature.tensors]
            memory = self._at_least(sum(rooms))
            self._shaped = [
                room[: tensor.nbytes]
                for tensor, room in zip(signature.tensors, torch.split(memory, rooms), strict=True)
            ]
            self._shaped_for = signature
        return self._shaped

    def own(self, output: Any) -> Any:
        """`output`, with a copy of every tensor that lies in the buffer's receive memory.

        A stage may return its input, or a view of it; the next receive would overwrite it.
        """
        if not any(map(self._holds, tensors_of(output))):
            return output
        return pytree.tree_map_only(
            torch.Tensor, lambda tensor: tensor.clone() if self._holds(tensor) else tensor, output
        )

    def _holds(self, tensor: torch.Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() == self._address

    def _at_least(self, nbytes: int) -> torch.Tensor:
        """The memory of the buffer, `nbytes` of it."""
        if self._memory is None or self._memory.numel() < nbytes:
            self._memory, self._shaped = None, []  # let go before there is more
            self._memory = self._allocate(nbytes)
            self._address = self._memory.untyped_storage().data_ptr()
        return self._memory[:nbytes]


class BufferPool:
    """The buffers of a stage, kept from one run to the next."""

    def __init__(self, allocate: Allocate) -> None:
        """Create a pool in memory that `allocate` gives; buffers come into being when named."""
        self._allocate = allocate
        self._buffers: dict[int, Buffer] = {}

    def __getitem__(self, number: int) -> Buffer:
        if number not in self._buffers:
            self._buffers[number] = Buffer(self._allocate)
        return self._buffers[number]

    def clear(self) -> None:
        """Let go of all values; the memory for receives stays."""
        for buffer in self._buffers.values():
            buffer.clear(*Place)
