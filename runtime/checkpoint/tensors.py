"""The dtype and shape of a tensor on disk, and the bytes of one in memory."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

import torch


@dataclass(frozen=True)
class Spec:
    """dtype and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Spec:
        """The spec of a tensor on any device, also the meta device."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def bytes(self) -> int:
        """Bytes of the elements."""
        return self.numel * self.dtype.itemsize

    @property
    def numel(self) -> int:
        """The number of elements."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)} {list(self.shape)}"


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype without its prefix.

    >>> dtype_name(torch.bfloat16)
    'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


def dtype_named(name: str) -> torch.dtype:
    """The dtype with this name.

    Raises:
        ValueError: torch has none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype {name!r} is none of torch's")
    return dtype


def digest(tensor: torch.Tensor) -> str:
    """SHA-256 of a tensor's elements in row-major order."""
    content = tensor.detach().cpu().contiguous().reshape(-1)
    return sha256(content.view(torch.uint8).numpy().data).hexdigest()
