"""Activations: what travels from stage to stage, and its signature.

An activation is a tensor, or tensors in nested tuples, lists and dicts (a pytree). Its signature,
the structure with shape, dtype and strides of every tensor, is what both ends of a transfer have to
agree on before it starts: no transport checks it for them.

Strides belong to it because kernels choose their order of summation by them: a transposed or
channels-last activation that arrived contiguous would give other bits than one process.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils import _pytree as pytree


class ActivationError(ValueError):
    """A value is not an activation, or not the one that was agreed on."""


@dataclass(frozen=True)
class TensorSignature:
    """Shape, dtype and strides (in elements) of one tensor, whose memory has no gaps."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...]

    @staticmethod
    def of(tensor: torch.Tensor) -> "TensorSignature":
        """The signature with which `tensor` travels: its own strides, or those without gaps."""
        return _tensor_signature(tensor.shape, tensor.dtype, tensor.stride())

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def of_same_kind(self, value: Any) -> bool:
        """Whether `value` is a tensor of this shape and dtype; strides can be adapted."""
        return (
            isinstance(value, torch.Tensor)
            and value.dtype is self.dtype
            and value.shape == self.shape
        )

    def memory_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """The memory of `tensor`, or of a copy with these strides: uint8 `[nbytes]`."""
        if tensor.stride() != self.strides:
            like_this = torch.empty_strided(
                self.shape, self.strides, dtype=self.dtype, device=tensor.device
            )
            tensor = like_this.copy_(tensor)
        return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)

    def over(self, memory: torch.Tensor) -> torch.Tensor:
        """The tensor in `memory`, uint8 `[nbytes]`."""
        return memory.view(self.dtype).as_strided(self.shape, self.strides)

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"


@dataclass(frozen=True)
class Signature:
    """Structure of an activation, and the signature of each of its tensors."""

    structure: str
    tensors: tuple[TensorSignature, ...]

    def __str__(self) -> str:
        return str(self._rebuild([str(tensor) for tensor in self.tensors]))

    @property
    def nbytes(self) -> int:
        """Size of all tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors)

    def memory_of(self, activation: Any) -> list[torch.Tensor]:
        """The memory of every tensor of an activation of this signature, uint8 `[nbytes]`."""
        tensors = tensors_of(activation)
        return [s.memory_of(tensor) for s, tensor in zip(self.tensors, tensors, strict=True)]

    def over(self, memory: list[torch.Tensor]) -> Any:
        """The activation in `memory`, one uint8 tensor of the right size for each tensor."""
        return self._rebuild([s.over(m) for s, m in zip(self.tensors, memory, strict=True)])

    def accepts(self, activation: Any) -> bool:
        """Whether an activation has this structure, these shapes and dtypes.

        Strides can be adapted, so they may differ.
        """
        if isinstance(activation, torch.Tensor):  # what most activations are
            return self.structure == _LEAF and self.tensors[0].of_same_kind(activation)
        leaves, structure = pytree.tree_flatten(activation)
        return structure == _structure(self.structure) and all(
            tensor.of_same_kind(leaf) for tensor, leaf in zip(self.tensors, leaves, strict=True)
        )

    def _rebuild(self, leaves: list[Any]) -> Any:
        if self.structure == _LEAF:
            return leaves[0]
        return pytree.tree_unflatten(leaves, _structure(self.structure))


def tensors_of(value: Any) -> list[torch.Tensor]:
    """The tensors in a value, which may hold other things too."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]


def signature_of(activation: Any) -> Signature:
    """The signature of an activation.

    Raises:
        ActivationError: it holds something that is not a tensor.
    """
    leaves, structure = pytree.tree_flatten(activation)
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            raise ActivationError(
                f"activation holds {leaf!r} of type {type(leaf).__name__}, "
                "needed tensors in nested tuples, lists and dicts"
            )
    tensors = tuple(TensorSignature.of(leaf) for leaf in leaves)
    return _signature(_LEAF if structure.is_leaf() else pytree.treespec_dumps(structure), tensors)


@lru_cache(maxsize=4096)
def _tensor_signature(
    shape: torch.Size, dtype: torch.dtype, strides: tuple[int, ...]
) -> TensorSignature:
    like_this = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    if not like_this.is_contiguous():
        strides = torch.empty_like(like_this).stride()
    return TensorSignature(tuple(shape), dtype, tuple(strides))


@lru_cache(maxsize=4096)
def _signature(structure: str, tensors: tuple[TensorSignature, ...]) -> Signature:
    """One object for equal signatures: they are compared and pickled for every micro-batch."""
    return Signature(structure, tensors)


_LEAF = pytree.treespec_dumps(pytree.tree_structure(0))
"""The structure of a single tensor."""


@lru_cache(maxsize=1024)
def _structure(dumped: str) -> pytree.TreeSpec:
    return pytree.treespec_loads(dumped)
