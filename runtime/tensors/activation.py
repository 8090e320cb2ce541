"""Activations: what travels from stage to stage, and its signature.

An activation is a tensor, or tensors nested in whatever `runtime.tensors.structure` can carry,
beside plain values. Its signature is what both ends of a transfer have to agree on before it
starts: no transport checks it for them.

Exactness decides what belongs to it. Kernels choose their order of summation by the layout of
their operands, so tensors arrive as they were, byte by byte:

- with their strides, also where these leave gaps: what travels is the *block* of memory from the
  first element to the last one;
- at an address that is the same modulo `ALIGNMENT`: matrix products depend on it;
- tensors that share memory share it on the other side too, since the next layer may work in place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from typing import Any

import torch

from runtime.tensors.structure import StructureError, put_together, shown, take_apart

ALIGNMENT = 64
"""Bytes: the alignment of torch's memory on a CPU, to which kernels are sensitive."""

SHOWN = 300
"""Characters of an activation in a message."""

INTERNED_BYTES = 256
"""Structures up to which signatures are kept to be used again: longer ones hold values."""


class ActivationError(ValueError):
    """A value is not an activation, or not the one that was agreed on."""


@dataclass(frozen=True)
class Block:
    """Memory that tensors lie in, from the first byte that is used to the last."""

    nbytes: int
    lead: int = 0
    """Its address modulo `ALIGNMENT`."""


@dataclass(frozen=True)
class TensorSignature:
    """Shape, dtype and strides (in elements) of one tensor, and where it lies."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...]
    block: int = 0
    """The number of the block that it lies in."""
    offset: int = 0
    """Bytes from the beginning of the block."""
    conjugate: bool = False
    negative: bool = False
    """Whether the tensor is a view that conjugates, or negates, what lies in memory."""

    @property
    def extent(self) -> int:
        """Bytes from the first element to the end of the last one."""
        if 0 in self.shape:
            return 0
        steps = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return (steps + 1) * self.dtype.itemsize

    def over(self, memory: torch.Tensor) -> torch.Tensor:
        """The tensor in the memory of its block, uint8 `[nbytes]`."""
        first = (memory.storage_offset() + self.offset) // self.dtype.itemsize
        tensor = torch.empty(0, dtype=self.dtype, device=memory.device)
        tensor.set_(memory.untyped_storage(), first, self.shape, self.strides)
        if self.conjugate:
            tensor = torch._conj(tensor)
        return torch._neg_view(tensor) if self.negative else tensor

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True, eq=False)
class Signature:
    """Structure of an activation, its tensors, and the blocks of memory that they lie in."""

    structure: bytes
    tensors: tuple[TensorSignature, ...]
    blocks: tuple[Block, ...]

    def __str__(self) -> str:
        tensors = [str(tensor) for tensor in self.tensors]
        text = shown(self.structure, tensors) or f"an object with {', '.join(tensors)}"
        return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."

    @property
    def nbytes(self) -> int:
        """Size of all blocks in bytes."""
        return sum(block.nbytes for block in self.blocks)

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """Where its blocks begin, in bytes, in memory that they share one behind the other.

        Where that begins at a multiple of `ALIGNMENT`, each of them is aligned as it has to be.
        """
        offsets, end = [], 0
        for block in self.blocks:
            offsets.append(-(-end // ALIGNMENT) * ALIGNMENT + block.lead)
            end = offsets[-1] + block.nbytes
        return tuple(offsets)

    @property
    def extent(self) -> int:
        """Bytes of that memory."""
        return self.offsets[-1] + self.blocks[-1].nbytes if self.blocks else 0

    def memory_in(self, whole: torch.Tensor) -> list[torch.Tensor]:
        """Memory for every block in `whole`, uint8 of `extent` bytes or more; see `offsets`."""
        return [
            whole[offset : offset + block.nbytes]
            for offset, block in zip(self.offsets, self.blocks, strict=True)
        ]

    def memory_of(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The memory of every block of an activation with this signature, uint8 `[nbytes]`.

        Args:
            tensors: Those of the activation, as `take_apart` gives them.
        """
        memory: list[torch.Tensor | None] = [None] * len(self.blocks)
        for tensor, signature in zip(tensors, self.tensors, strict=True):
            if memory[signature.block] is None:
                begin = tensor.storage_offset() * signature.dtype.itemsize - signature.offset
                whole = torch.empty(0, dtype=torch.uint8, device=tensor.device)
                size = (self.blocks[signature.block].nbytes,)
                memory[signature.block] = whole.set_(tensor.untyped_storage(), begin, size, (1,))
        return [block for block in memory if block is not None]

    def over(self, memory: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The tensors that lie in `memory`, one uint8 tensor of the right size for each block."""
        return [tensor.over(memory[tensor.block]) for tensor in self.tensors]

    def activation(self, memory: Sequence[torch.Tensor]) -> Any:
        """The activation whose blocks are `memory`."""
        return put_together(self.structure, self.over(memory))

    def to_message(self) -> tuple[Any, ...]:
        """Short and quick for what most activations are: headers hold it."""
        if len(self.tensors) == 1:
            (one,), (block,) = self.tensors, self.blocks
            layout = (one.dtype, one.strides, block.lead, one.conjugate, one.negative)
            return self.structure, one.shape, *layout
        return self.structure, self.tensors, self.blocks

    @classmethod
    def from_message(cls, value: Any) -> "Signature":
        """The signature of which `to_message` has told."""
        return cls(*value) if len(value) == len(fields(cls)) else _kept_if_short(*value)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Signature):
            return NotImplemented
        if (self.tensors, self.blocks) != (other.tensors, other.blocks):
            return False
        # Equal values may be written as different bytes, where pickle carries a part of them.
        texts = [f"tensor {n}" for n in range(len(self.tensors))]
        return self.structure == other.structure or (
            (own := shown(self.structure, texts)) is not None
            and own == shown(other.structure, texts)
        )

    def __hash__(self) -> int:
        return hash((self.tensors, self.blocks))


def described(activation: Any) -> tuple[Signature, list[torch.Tensor]]:
    """The signature of an activation, and its tensors.

    Raises:
        ActivationError: it holds something that cannot travel.
    """
    try:
        structure, tensors = take_apart(activation)
    except StructureError as error:
        raise ActivationError(
            f"the activation holds what cannot travel between stages: {error}"
        ) from error
    return describe(structure, tensors), tensors


def describe(structure: bytes, tensors: Sequence[torch.Tensor]) -> Signature:
    """The signature of an activation that has been taken apart.

    Raises:
        ActivationError: a tensor is more than memory with strides.
    """
    for tensor in tensors:
        if kind := special(tensor):
            raise ActivationError(
                f"the activation holds {kind}, {tensor.dtype} {_shape(tensor)}: needed dense "
                "tensors of class torch.Tensor, whose memory can travel between stages"
            )
    if len(tensors) == 1:
        (tensor,) = tensors
        lead = tensor.data_ptr() % ALIGNMENT
        found = (tensor.shape, tensor.dtype, tensor.stride(), lead)
        return _kept_if_short(structure, *found, tensor.is_conj(), tensor.is_neg())
    return _of_several(structure, tensors)


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def special(tensor: torch.Tensor) -> str:
    """What makes a tensor more than memory with strides; empty for most."""
    if type(tensor) not in _PLAIN:
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout is not torch.strided:
        return f"a tensor of layout {tensor.layout}"
    if tensor.is_quantized:
        return "a quantised tensor"
    if tensor.is_meta:
        return "a tensor without memory (on the meta device)"
    if tensor.data_ptr() % tensor.dtype.itemsize:
        return "a tensor at an address that is no multiple of the size of its elements"
    return ""


def _shape(tensor: torch.Tensor) -> str:
    return "of several shapes" if tensor.is_nested else str(list(tensor.shape))


def _kept_if_short(structure: bytes, *layout: Any) -> Signature:
    """The signature of one tensor; of a short structure, from those that are kept."""
    of_one = _of_one if len(structure) <= INTERNED_BYTES else _of_one.__wrapped__
    return of_one(structure, *layout)


@lru_cache(maxsize=4096)
def _of_one(
    structure: bytes,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    strides: tuple[int, ...],
    lead: int,
    conjugate: bool,
    negative: bool,
) -> Signature:
    tensor = TensorSignature(tuple(shape), dtype, strides, 0, 0, conjugate, negative)
    extent = tensor.extent
    return Signature(structure, (tensor,), (Block(extent, lead if extent else 0),))


def _of_several(structure: bytes, tensors: Sequence[torch.Tensor]) -> Signature:
    plain = [
        TensorSignature(tuple(t.shape), t.dtype, t.stride(), 0, 0, t.is_conj(), t.is_neg())
        for t in tensors
    ]
    starts = [tensor.data_ptr() for tensor in tensors]
    groups = _sharing_memory(tensors, starts, [one.extent for one in plain])
    blocks: list[Block] = []
    for number, group in enumerate(groups):
        begin = min(starts[n] for n in group)
        end = max(starts[n] + plain[n].extent for n in group)
        blocks.append(Block(end - begin, begin % ALIGNMENT if end > begin else 0))
        for n in group:
            plain[n] = replace(plain[n], block=number, offset=starts[n] - begin)
    signature = Signature(structure, tuple(plain), tuple(blocks))
    return _interned(signature) if len(structure) <= INTERNED_BYTES else signature


def _sharing_memory(
    tensors: Sequence[torch.Tensor], starts: Sequence[int], extents: Sequence[int]
) -> list[list[int]]:
    """The numbers of tensors that overlap in memory, in the order of the first of each group."""
    storages = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    groups: list[list[int]] = []
    storage = end = -1
    for n in sorted(range(len(tensors)), key=lambda n: (storages[n], starts[n])):
        if storages[n] == storage and starts[n] < end:
            groups[-1].append(n)
            end = max(end, starts[n] + extents[n])
        else:
            groups.append([n])
            storage, end = storages[n], starts[n] + extents[n]
    return sorted(groups, key=min)


@lru_cache(maxsize=1024)
def _interned(signature: Signature) -> Signature:
    """One object for equal signatures: they are compared for every micro-batch."""
    return signature
