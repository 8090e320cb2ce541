"""Structure: nested values taken apart into tensors and everything else, and put together again.

What a layer returns may be any value that pickle can carry: tuples, lists, dicts, named tuples and
dataclasses, with tensors and plain values anywhere inside. Pickling stops at each tensor and writes
its number instead, so the bytes that come out are the value without its tensors.
"""

import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

ALONE = b""
"""The structure of a value that is one tensor."""

NOTHING = pickle.dumps(None)
"""The structure of a value whose tensors do not matter."""


class StructureError(ValueError):
    """A value holds something that cannot be carried to another process."""


def take_apart(value: Any) -> tuple[bytes, list[torch.Tensor]]:
    """The structure of a value, and its tensors: one that occurs twice is listed once.

    Raises:
        StructureError: pickle cannot carry what is no tensor.
    """
    if isinstance(value, torch.Tensor):
        return ALONE, [value]
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(value)
    except Exception as error:  # what objects of any class raise
        raise StructureError(f"{type(value).__name__} cannot be pickled: {error}") from error
    return file.getvalue(), pickler.tensors


def shown(structure: bytes, parts: Sequence[str]) -> str | None:
    """The structure as text, with `parts` for its tensors; `None` if classes of callers are in it.

    Their code may do anything with texts in place of tensors.
    """
    try:
        value = _PlainUnpickler(structure, parts).load() if structure != ALONE else parts[0]
    except pickle.UnpicklingError:
        return None
    return str(value)


def put_together(structure: bytes, parts: Sequence[Any]) -> Any:
    """The value of this structure, with `parts` where its tensors were."""
    if structure == ALONE:
        return parts[0]
    return _Unpickler(structure, parts).load()


def holds_values(value: Any) -> bool:
    """Whether anything but tensors and `None` is nested in a value: it may differ next time."""
    if isinstance(value, torch.Tensor):
        return False
    leaves = pytree.tree_leaves(value)
    return any(leaf is not None and not isinstance(leaf, torch.Tensor) for leaf in leaves)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, torch.Tensor):
            return None
        number = self._numbers.setdefault(id(value), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(value)
        return number


class _Unpickler(pickle.Unpickler):
    def __init__(self, structure: bytes, parts: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(structure))
        self._parts = parts

    def persistent_load(self, number: int) -> Any:
        return self._parts[number]


class _PlainUnpickler(_Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name}")
