"""Structure: nested values taken apart into tensors and everything else, and put together again.

What a layer returns may be any value that can travel: tuples, lists, dicts, named tuples and
dataclasses, with tensors and plain values anywhere inside. In place of each tensor there is its
number, so the bytes that come out are the value without its tensors.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from runtime.tensors.decoding import decode
from runtime.tensors.encoding import EncodingError, Tensors, encode

ALONE = b""
"""The structure of a value that is one tensor."""

NOTHING = encode(None)
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
    tensors = Tensors()
    try:
        return encode(value, tensors), tensors.found
    except EncodingError as error:
        raise StructureError(str(error)) from error


def shown(structure: bytes, parts: Sequence[str]) -> str | None:
    """The structure as text, with `parts` for its tensors; `None` if classes of callers are in it.

    Their code may do anything with texts in place of tensors.
    """
    try:
        value = decode(structure, parts, users=False) if structure != ALONE else parts[0]
    except EncodingError:
        return None
    return str(value)


def put_together(structure: bytes, parts: Sequence[Any]) -> Any:
    """The value of this structure, with `parts` where its tensors were."""
    if structure == ALONE:
        return parts[0]
    return decode(structure, parts)


def holds_values(value: Any) -> bool:
    """Whether anything but tensors and `None` is nested in a value: it may differ next time."""
    if isinstance(value, torch.Tensor):
        return False
    leaves = pytree.tree_leaves(value)
    return any(leaf is not None and not isinstance(leaf, torch.Tensor) for leaf in leaves)
