"""Ownership of memory: who may write to it, and when.

One rule for every path, in the docs as well (docs/how-to/evaluating.md, *Memory*):

    Memory that a caller's code can reach is not written to by the runtime while anyone but the
    runtime refers to it; and what the runtime keeps after a call is its own: either nobody else
    refers to it, or it is a copy.

So the memory of a received activation is used again only when neither a layer, nor a hook, a metric
or an output refers to it any more; and an output that its layer still refers to (a buffer that the
layer fills anew each time) is copied before the next micro-batch can change it. References are
counted on the storage that tensors share, so views and arrays of numpy count too.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any

import torch
from torch import nn

from runtime.tensors.activation import ALIGNMENT, ActivationError, describe, special
from runtime.tensors.nested import transform
from runtime.tensors.structure import NOTHING, StructureError, put_together, take_apart

Take = Callable[[int, int, torch.device], torch.Tensor]
"""`(nbytes, lead, device) -> memory`, uint8, at an address that is `lead` modulo `ALIGNMENT`."""


def fresh(nbytes: int, lead: int, device: torch.device) -> torch.Tensor:
    """Memory that torch allocates, see `Take`."""
    return torch.empty(lead + nbytes, dtype=torch.uint8, device=device)[lead:]


def references(tensor: torch.Tensor) -> int:
    """How many refer to the memory of a tensor: tensors (and what came from them), or a storage."""
    storage = tensor.untyped_storage()
    count: int = torch._C._storage_Use_Count(storage._cdata)
    # Python has one object for a storage: who holds it is counted there, not by torch.
    return count - 1 + sys.getrefcount(storage) - _HERE


_HERE = 0
_HERE = references(torch.empty(1)) - 1
"""References to that object inside `references` itself."""


class Owner:
    """Makes the outputs of stages the runtime's own."""

    def __init__(self, modules: Iterable[nn.Module], ours: Callable[[int], int]) -> None:
        """Own what `modules` return.

        Args:
            modules: The layers of each stage.
            ours: `address -> references` that the runtime has anyway to the storage there.
        """
        self._ours = ours
        # What torch compiles may put its outputs into the same memory again without a reference.
        parts = chain.from_iterable(module.modules() for module in modules)
        self._copies_all = any(map(_is_compiled, parts))

    def own(self, holder: list[Any]) -> Any:
        """The value, in memory that nobody else refers to: as it is, or else copied.

        Args:
            holder: Holds nothing but the value, and nothing else may hold it: it is emptied, so
                that what still refers to the memory is known to be somebody else.
        """
        value = holder.pop()
        if type(value) is torch.Tensor and not special(value):  # what most outputs are
            alias = value.detach()
            del value
            return alias if self._is_alone(alias, 1) else copied([alias])[0]
        try:
            structure, tensors = take_apart(value)
        except StructureError:  # no other process will see it
            return transform(value, lambda t: t.clone() if isinstance(t, torch.Tensor) else t)
        if any(map(special, tensors)):
            return put_together(structure, [tensor.detach().clone() for tensor in tensors])
        # A structure may hold the very objects that were taken apart, so it is made anew.
        aliases = [tensor.detach() for tensor in tensors]
        del value, tensors
        shared = Counter(tensor.untyped_storage().data_ptr() for tensor in aliases)
        if all(self._is_alone(t, shared[t.untyped_storage().data_ptr()]) for t in aliases):
            return put_together(structure, aliases)
        return put_together(structure, copied(aliases))

    def _is_alone(self, tensor: torch.Tensor, aliases: int) -> bool:
        """Whether nobody but `aliases` of ours, and what we have anyway, refers to the memory."""
        if self._copies_all:
            return False
        address = tensor.untyped_storage().data_ptr()
        if address == 0:
            return True  # no memory at all
        ours = self._ours(address)
        if not (ours or tensor.untyped_storage().resizable()):
            return False  # not torch's memory: whoever lent it may write to it again
        return references(tensor) == aliases + ours


Copy = Callable[[torch.Tensor, torch.Tensor], object]
"""`(destination, source)`, both uint8 of one size: copies now, or later."""


def copied(
    tensors: list[torch.Tensor], take: Take = fresh, copy: Copy | None = None
) -> list[torch.Tensor]:
    """Copies of a caller's tensors, laid out in memory as these are.

    Args:
        tensors: What to copy.
        take: Gives the memory.
        copy: Told what to copy where; default: it is copied at once.
    """
    copy = copy or torch.Tensor.copy_
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors if _is_simple(tensor)}
    if len(storages) == len(tensors):  # as most are, and soon done
        copies = []
        for tensor in tensors:
            memory = take(tensor.nbytes, 0, tensor.device).view(tensor.dtype).view(tensor.shape)
            copy(memory, tensor.detach())
            copies.append(memory)
        return copies
    try:
        signature = describe(NOTHING, tensors)
    except ActivationError:  # no memory with strides, so no transport will move it either
        return [tensor.clone() for tensor in tensors]
    blocks = signature.memory_of(tensors)
    copies = [take(b.numel(), b.data_ptr() % ALIGNMENT, b.device) for b in blocks]
    for there, here in zip(copies, blocks, strict=True):
        copy(there, here)
    return signature.over(copies)


def _is_simple(tensor: torch.Tensor) -> bool:
    """Whether a tensor lies in memory as a new one would, and is nothing but that."""
    return (
        not special(tensor)
        and tensor.data_ptr() % ALIGNMENT == 0
        and tensor.is_contiguous()
        and not (tensor.is_conj() or tensor.is_neg())
    )


SLAB_BYTES = 256 * 1024


class Slabs:
    """Small pieces of a CPU's memory, taken from larger ones that are used again.

    A small allocation between two activations of a megabyte keeps the allocator of the C library
    from using the place of one for the next: with one for each micro-batch, a stage needed three
    times the memory.
    """

    def __init__(self) -> None:
        """Begin without any memory."""
        self._pool = MemoryPool(lambda nbytes: torch.empty(nbytes, dtype=torch.uint8), kept=16)
        self._slab: torch.Tensor | None = None
        self._used = 0

    def take(self, nbytes: int, lead: int, device: torch.device) -> torch.Tensor:
        """Memory that nobody refers to, see `Take`."""
        if device.type != "cpu" or nbytes > SLAB_BYTES // 4:
            return fresh(nbytes, lead, device)
        start = -(-self._used // ALIGNMENT) * ALIGNMENT + lead
        if self._slab is None or start + nbytes > SLAB_BYTES:
            self._slab = self._pool.take(SLAB_BYTES)
            start = lead
        self._used = start + nbytes
        return self._slab[start : self._used]


def _is_compiled(module: nn.Module) -> bool:
    return hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None


class MemoryPool:
    """Memory for received activations, used again when nobody refers to it any more.

    It grows to what the largest activations need and does not depend on the number of
    micro-batches, unless a caller's code keeps what it receives: that memory is left to it.
    """

    def __init__(
        self,
        allocate: Callable[[int], torch.Tensor],
        release: Callable[[torch.Tensor], None] = lambda _: None,
        *,
        kept: int = 4,
    ) -> None:
        """Begin without any.

        Args:
            allocate: Gives memory of so many bytes, uint8.
            release: Told of memory that others may still refer to, but this pool no longer uses.
            kept: The pieces of memory that are kept, at most.
        """
        self._allocate, self._release, self._kept = allocate, release, kept
        self._memory: dict[int, torch.Tensor] = {}
        """By address, the one that was used longest ago first."""

    def keep(self, pieces: int) -> None:
        """From here on, keep so many pieces at most."""
        self._kept = pieces
        while len(self._memory) > pieces:
            self._release(self._memory.pop(next(iter(self._memory))))

    def ours(self, address: int) -> int:
        """How many references the pool itself has to a storage."""
        return int(address in self._memory)

    def clear(self) -> None:
        """Let go of all memory."""
        while self._memory:
            self._release(self._memory.popitem()[1])

    def take(self, nbytes: int) -> torch.Tensor:
        """Memory that nobody refers to, uint8 of `nbytes` or more."""
        too_small: int | None = None
        for address, memory in reversed(list(self._memory.items())):
            if references(memory) > 1:
                continue
            if memory.numel() >= nbytes:
                self._memory[address] = self._memory.pop(address)
                return memory
            too_small = too_small or address
        if too_small is not None:
            memory = self._memory.pop(too_small)
            del memory  # let go before there is more
        if len(self._memory) >= self._kept:
            self._release(self._memory.pop(next(iter(self._memory))))
        # With some room, so that sizes which grow step by step do not each need memory anew.
        step = 1 << max(0, nbytes.bit_length() - 4)
        memory = self._allocate(max(-(-nbytes // step) * step, 1))
        memory = memory.detach()  # a view would refer to its base
        self._memory[memory.untyped_storage().data_ptr()] = memory
        return memory
