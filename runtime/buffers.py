"""Pipeline buffers at run time: three places each, and the memory that receives fill.

Memory for received activations is allocated once and reused: it grows to the largest activation
that a buffer has seen and does not depend on the number of micro-batches.
"""

from typing import Any

import torch
from torch.utils import _pytree as pytree

from runtime.activation import Signature, tensors_of
from schemas import Place


class Buffer:
    """One of the alternating buffers of a stage."""

    def __init__(self, device: torch.device) -> None:
        """Create an empty buffer whose received activations live on `device`."""
        self._device = device
        self._values: dict[Place, Any] = {}
        self._storages: list[torch.Tensor] = []
        self._addresses: set[int] = set()
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
            self._shaped = [
                self._storage(number, tensor.nbytes)[: tensor.nbytes]
                for number, tensor in enumerate(signature.tensors)
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
        return tensor.untyped_storage().data_ptr() in self._addresses

    def _storage(self, number: int, nbytes: int) -> torch.Tensor:
        """The memory for tensor `number` of an activation, with room for at least `nbytes`."""
        if number == len(self._storages):
            self._storages.append(self._allocate(nbytes))
        elif self._storages[number].numel() < nbytes:
            self._storages[number] = self._allocate(nbytes)
        self._addresses = {storage.untyped_storage().data_ptr() for storage in self._storages}
        return self._storages[number]

    def _allocate(self, nbytes: int) -> torch.Tensor:
        return torch.empty(nbytes, dtype=torch.uint8, device=self._device)


class BufferPool:
    """The buffers of a stage, kept from one run to the next."""

    def __init__(self, device: torch.device) -> None:
        """Create a pool on `device`; buffers come into being when they are named."""
        self._device = device
        self._buffers: dict[int, Buffer] = {}

    def __getitem__(self, number: int) -> Buffer:
        if number not in self._buffers:
            self._buffers[number] = Buffer(self._device)
        return self._buffers[number]

    def clear(self) -> None:
        """Let go of all values; the memory for receives stays."""
        for buffer in self._buffers.values():
            buffer.clear(*Place)
