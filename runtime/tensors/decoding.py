"""The values of messages that other ranks have encoded: see `encoding` for what they may be."""

import io
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

import msgpack
import torch
from pydantic import BaseModel

from runtime.tensors.encoding import (
    DEEPEST,
    FREE,
    OURS,
    REPEATED,
    EncodingError,
    Kind,
    Message,
)

PICKLE = "SCHEDCC_PICKLE"
"""The variable that refuses objects of users' classes, where it is 0."""

SHOWN = 300
"""Characters of what is damaged in a message, for the message of an error."""

_DAMAGE: tuple[type[Exception], ...] = (
    *(ValueError, TypeError, AttributeError, ArithmeticError, LookupError),
    *(RuntimeError, msgpack.UnpackException),
)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, tensors: Sequence[Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._tensors = tensors

    def persistent_load(self, number: int) -> Any:
        return self._tensors[number]


def decode(data: bytes, tensors: Sequence[Any] = (), *, users: bool = True) -> Any:
    """The value of bytes that `encode` has made, on whichever rank.

    Args:
        data: No more than the message.
        tensors: What its tensors are replaced by, if they travel by themselves.
        users: Whether it may hold objects of users' classes.

    Raises:
        EncodingError: they are no such bytes, or hold what is refused.
    """
    reader = _Reader(tensors, len(data), users=users and os.environ.get(PICKLE) != "0")
    try:
        reader.names, content = reader.unpacked(data)
        return reader.unpacked(content)
    except EncodingError:
        raise
    except _DAMAGE as error:
        raise EncodingError(f"a message of {len(data)} bytes is damaged: {_said(error)}") from error


def _said(error: Exception) -> str:
    """The message of an error, in which there may be values that cannot even be shown."""
    try:
        return ascii(" ".join(str(error).split()))[1:-1][:SHOWN]
    except Exception:
        return type(error).__name__


class _Reader:
    """Reads a message; msgpack holds the lengths in it to the length of the whole."""

    def __init__(self, tensors: Sequence[Any], nbytes: int, *, users: bool) -> None:
        self.names: list[str] = []
        self._tensors, self._users, self._depth = tensors, users, 0
        self._left = self._most = REPEATED * nbytes + FREE

    def unpacked(self, data: bytes) -> Any:
        if self._depth > DEEPEST:
            raise EncodingError(f"a message is nested more than {DEEPEST} deep")
        self._depth += 1
        value = msgpack.unpackb(
            data,
            ext_hook=self._extended,
            strict_map_key=False,
            unicode_errors="surrogatepass",
        )
        self._depth -= 1
        return value

    def _extended(self, number: int, data: bytes) -> Any:
        self._left -= len(data)
        if self._left < 0:
            raise EncodingError(
                f"a message holds more than {self._most} bytes in extensions within each other"
            )
        kind = Kind(number)
        if kind is Kind.PICKLED:
            return self._of_user(data)
        content = self.unpacked(data)
        if kind is Kind.TRAVELLING:
            return self._tensors[content]
        if kind in (Kind.OBJECT, Kind.MEMBER):
            named, value = content
            found = _class(self.names[named])
            return _member(found, value) if kind is Kind.MEMBER else _object(found, value)
        return _MADE[kind](content)

    def _of_user(self, data: bytes) -> Any:
        if not self._users:
            raise EncodingError(
                f"a message holds an object of a user's class, or tuples or a tensor within "
                f"{DEEPEST} others ({REPEATED}, if they are long), which only pickle can carry, "
                f"and {PICKLE} is 0: needed tensors, numbers and texts in tuples, lists and dicts"
            )
        try:
            return _Unpickler(data, self._tensors).load()
        except Exception as error:  # what objects of any class raise
            said = f"{type(error).__name__}: {error}"
            raise EncodingError(
                f"an object of a user's class cannot be unpickled: {said}"
            ) from error


@cache
def _class(name: str) -> Any:
    """A data class of ours that has been imported already."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module) if module.startswith(OURS) else None
    for part in path.split("."):
        found = getattr(found, part, None)
    ours = isinstance(found, type) and found.__module__ == module
    data = ours and (
        issubclass(found, (Enum, BaseModel)) or is_dataclass(found) or hasattr(found, "_fields")
    )
    if not data:
        raise EncodingError(
            f"a message names {name!r:.{SHOWN}}, needed a data class of this project"
        )
    return found


def _member(kind: Any, value: Any) -> Any:
    if not issubclass(kind, Enum):
        raise EncodingError(f"a message names a member of {kind.__name__}, needed an enumeration")
    return kind(value)


def _object(kind: Any, content: Any) -> Any:
    if issubclass(kind, BaseModel):
        return kind.model_validate(content)
    if issubclass(kind, Message):
        return kind.from_message(content)
    if issubclass(kind, tuple):
        return kind(*content)
    made = object.__new__(kind)
    for field, value in zip(fields(kind), content, strict=True):
        object.__setattr__(made, field.name, value)
    return made


def _tensor(content: list[Any]) -> torch.Tensor:
    dtype, shape, data = content
    if type(data) is not bytes:  # of a number, bytearray would make as many bytes
        raise EncodingError(f"a message has a {type(data).__name__} for the bytes of a tensor")
    if not data and 0 not in shape:
        raise EncodingError(f"a message has no bytes of a tensor {shape!s:.{SHOWN}}")
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)


_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
_MADE: dict[Kind, Callable[[Any], Any]] = {
    Kind.TUPLE: tuple,
    Kind.SET: set,
    Kind.FROZENSET: frozenset,
    Kind.SIZE: torch.Size,
    Kind.INTEGER: lambda text: int(text, 16),
    Kind.DTYPE: _DTYPES.__getitem__,
    Kind.DEVICE: torch.device,
    Kind.TENSOR: _tensor,
}
