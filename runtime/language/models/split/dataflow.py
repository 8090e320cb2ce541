"""Which of a run's inputs each of its tensors was computed from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_OF_SHAPES = frozenset(
    f"aten::{name}"
    for name in (
        *(f"{what}_like" for what in ("zeros", "ones", "empty", "full", "rand", "randn")),
        *(f"new_{what}" for what in ("zeros", "ones", "empty", "full", "empty_strided")),
    )
)
"""Operations that read shape, dtype and device of a tensor, and none of its elements."""


class Dataflow(TorchDispatchMode):
    """Follows marks through all operations while it is entered.

    Marks belong to memory, not to tensors, so views and writes in place carry them too. What is
    computed from a marked tensor has its marks: none is ever lost, and a tensor without a mark does
    not depend on what was marked with it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._marks: dict[int, frozenset[str]] = {}
        self._alive: list[torch.UntypedStorage] = []
        self.decisions: set[str] = set()
        """Marks of tensors whose elements became plain numbers, which no mark follows."""

    def mark(self, tensor: torch.Tensor, *marks: str) -> None:
        """Add marks to a tensor."""
        storage = tensor.untyped_storage()
        self._alive.append(storage)  # its address must not be used again
        key = storage._cdata
        self._marks[key] = self._marks.get(key, frozenset()).union(marks)

    def marks(self, value: Any) -> frozenset[str]:
        """The marks of all tensors in a nested value."""
        return frozenset().union(*(self._of(tensor) for tensor in _tensors(value)))

    def _of(self, tensor: torch.Tensor) -> frozenset[str]:
        return self._marks.get(tensor.untyped_storage()._cdata, frozenset())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation, and give its outputs the marks of its inputs."""
        output = func(*args, **(kwargs or {}))
        if func._schema.name in _OF_SHAPES:
            return output
        marks = self.marks((args, kwargs))
        if marks:
            tensors = list(_tensors(output))
            if not tensors:
                self.decisions |= marks
            for tensor in tensors:
                self.mark(tensor, *marks)
        return output


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor))
