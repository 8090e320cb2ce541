"""What a rank knows of a micro-batch that it has fetched, and what its inputs look like."""

from functools import lru_cache
from hashlib import blake2b
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch

from runtime.data.fingerprint import Digests
from runtime.tensors.activation import ALIGNMENT
from runtime.tensors.nested import Flat

_NUMBERS = count()


class Note(NamedTuple):
    """What one rank knows of a micro-batch that it has fetched."""

    kind: str
    """What its inputs look like, plain values included."""
    samples: tuple[int, ...]
    """Of its inputs, see `runtime.data.samples`."""
    label_samples: tuple[int, ...]
    look: str
    """What its inputs look like, without any values."""
    label_look: str
    digests: Digests = (None, None)
    """Of inputs and labels, if stages compare them."""

    def to_message(self) -> list[Any]:
        """Lists in place of tuples, which are written faster: a handshake holds many notes."""
        return [list(field) if isinstance(field, tuple) else field for field in self]

    @classmethod
    def from_message(cls, value: list[Any]) -> "Note":
        """The note of which `to_message` has told."""
        fields: Any = (tuple(field) if isinstance(field, list) else field for field in value)
        return cls(*fields)


def look_of(value: Any, *, values: bool, flat: Flat | None = None) -> str:
    """What a value looks like: its structure, and shape, dtype and layout of every tensor.

    Args:
        value: Inputs or labels.
        values: Whether plain values (numbers, text) are a part of it, and where tensors lie.
        flat: The value, if its leaves are known.

    >>> look_of(torch.zeros(2), values=True) == look_of(torch.ones(2), values=True)
    True
    >>> look_of((torch.zeros(2), 3), values=True) == look_of((torch.zeros(2), 4), values=True)
    False
    """
    if type(value) is torch.Tensor and value.layout is torch.strided and not value.is_nested:
        if not values or value.is_meta:
            return _look_of_tensor(value.shape, value.dtype, (), 0)
        lead = value.data_ptr() % ALIGNMENT
        return _look_of_tensor(value.shape, value.dtype, value.stride(), lead)
    flat = flat or Flat(value)
    seen = blake2b(flat.structure.encode(), digest_size=8)
    for leaf in flat.leaves:
        seen.update(_look_of_leaf(leaf, values=values).encode())
    return seen.hexdigest()


def _look_of_leaf(leaf: Any, *, values: bool) -> str:
    if isinstance(leaf, torch.Tensor):
        if type(leaf) is torch.Tensor and leaf.layout is torch.strided and not leaf.is_nested:
            return look_of(leaf, values=values)
        shape = next(_NUMBERS) if leaf.is_nested else tuple(leaf.shape)
        return f"{type(leaf).__name__} {leaf.layout} {leaf.dtype} {shape}"
    if isinstance(leaf, np.ndarray):
        return f"array {leaf.dtype} {leaf.shape}"
    if isinstance(leaf, (bool, int, float, complex, str, bytes, type(None), np.generic)):
        return repr(leaf) if values else type(leaf).__qualname__
    return f"{type(leaf).__qualname__} {next(_NUMBERS)}"  # no two are known to be alike


@lru_cache(maxsize=4096)
def _look_of_tensor(
    shape: torch.Size, dtype: torch.dtype, strides: tuple[int, ...], lead: int
) -> str:
    return blake2b(f"{dtype} {shape} {strides} {lead}".encode(), digest_size=8).hexdigest()
