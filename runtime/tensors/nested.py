"""Nested values of callers: taken to leaves, and put together again from others.

Besides the containers that torch knows (`torch.utils._pytree`), batches come in dataclasses and in
mappings of any class (`UserDict`, the batches of tokenizers). Whatever looks at inputs or labels
looks at the same leaves.
"""

import copy
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Nesting:
    """How a value is nested."""

    structure: pytree.TreeSpec
    inner: Mapping[int, "_Inner"]
    """Leaves of the structure that have leaves of their own."""

    def __str__(self) -> str:
        inner = (f"{n}: {i.value.__class__.__qualname__} {i.keys}" for n, i in self.inner.items())
        nested = (str(i.nesting) for i in self.inner.values())
        return f"{self.structure!r} {', '.join(inner)} {', '.join(nested)}"


@dataclass(frozen=True)
class _Inner:
    value: Any
    keys: tuple[Any, ...]
    nesting: Nesting
    leaves: int


class Flat:
    """A value taken to its leaves once, for all who look at it."""

    def __init__(self, value: Any) -> None:
        """Take `value` to its leaves."""
        self.leaves, self._nesting = flatten(value)

    @cached_property
    def structure(self) -> str:
        """How it is nested, as text."""
        return str(self._nesting)


def flatten(value: Any) -> tuple[list[Any], Nesting]:
    """The leaves of a value, and how it is nested."""
    found, structure = pytree.tree_flatten(value)
    leaves: list[Any] = []
    inner: dict[int, _Inner] = {}
    for number, leaf in enumerate(found):
        parts = _parts(leaf)
        if parts is None:
            leaves.append(leaf)
            continue
        own, nesting = flatten(list(parts.values()))
        inner[number] = _Inner(leaf, tuple(parts), nesting, len(own))
        leaves += own
    return leaves, Nesting(structure, inner)


def unflatten(leaves: Sequence[Any], nesting: Nesting) -> Any:
    """The value that is nested so, with other leaves; what callers hold is not changed."""
    count, position, found = nesting.structure.num_leaves, 0, []
    for number in range(count):
        inner = nesting.inner.get(number)
        size = 1 if inner is None else inner.leaves
        own = leaves[position : position + size]
        position += size
        found.append(own[0] if inner is None else _with(inner, unflatten(own, inner.nesting)))
    return pytree.tree_unflatten(found, nesting.structure)


def transform(value: Any, function: Callable[[Any], Any]) -> Any:
    """The value with `function` applied to each leaf."""
    leaves, nesting = flatten(value)
    return unflatten([function(leaf) for leaf in leaves], nesting)


def _parts(leaf: Any) -> Mapping[Any, Any] | None:
    """What is nested in something that torch takes for a leaf; `None`: nothing."""
    if is_dataclass(leaf) and not isinstance(leaf, type):
        return {f.name: getattr(leaf, f.name) for f in fields(leaf) if hasattr(leaf, f.name)}
    if isinstance(leaf, MutableMapping):
        return leaf
    return None


def _with(inner: _Inner, parts: Sequence[Any]) -> Any:
    changed = copy.copy(inner.value)
    for key, part in zip(inner.keys, parts, strict=True):
        if isinstance(changed, MutableMapping):
            changed[key] = part
        else:
            object.__setattr__(changed, key, part)  # also where it is frozen
    return changed
