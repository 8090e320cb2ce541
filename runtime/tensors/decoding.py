"""The values of messages that other ranks have encoded: see `encoding` for what they may be."""

import io
import os
import pickle
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

import torch
from pydantic import BaseModel

from runtime.tensors.encoding import (
    FLOAT,
    INTEGER,
    LENGTH,
    OURS,
    SHORT,
    EncodingError,
    Message,
)

PICKLE = "SCHEDCC_PICKLE"
"""The variable that refuses objects of users' classes, where it is 0."""

_DAMAGE: tuple[type[Exception], ...] = (
    *(ValueError, TypeError, AttributeError, ArithmeticError, LookupError),
    *(RuntimeError, struct.error),
)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, tensors: Any) -> None:
        super().__init__(io.BytesIO(data))
        self._tensors = tensors

    def persistent_load(self, number: int) -> Any:
        return self._tensors[number]


def decode(data: bytes, tensors: Any = (), *, users: bool = True) -> Any:
    """The value of bytes that `encode` has made, on whichever rank.

    Args:
        data: No more than the message.
        tensors: What its tensors are replaced by, if they travel by themselves.
        users: Whether it may hold objects of users' classes.

    Raises:
        EncodingError: they are no such bytes, or hold what is refused.
    """
    reader = _Reader(data, tensors, users=users and os.environ.get(PICKLE) != "0")
    try:
        value = reader.value()
    except EncodingError:
        raise
    except _DAMAGE as error:
        raise EncodingError(f"a message of {len(data)} bytes is damaged: {error}") from error
    if reader.at != len(data):
        raise EncodingError(f"a message ends after {reader.at} of {len(data)} bytes")
    return value


class _Reader:
    """Reads a message; each item takes a byte at least, so that memory follows from its length."""

    def __init__(self, data: bytes, tensors: Any, *, users: bool) -> None:
        self._data, self._tensors, self._users = data, tensors, users
        self.at = 0
        self._texts: list[Any] = []

    def value(self) -> Any:
        tag = self._data[self.at]
        self.at += 1
        if tag in _TEXTS:
            content = _TEXTS[tag](self._content())
            self._texts.append(content)
            return content
        if tag in _NUMBERS:
            form, at = _NUMBERS[tag], self.at
            self.at += form.size
            return form.unpack_from(self._data, at)[0]
        return _OTHERS[tag](self)

    def values(self) -> Iterator[Any]:
        """As many as a number says that comes first."""
        return (self.value() for _ in range(self._bounded(self.count())))

    def pairs(self) -> dict[Any, Any]:
        """A dict."""
        return {self.value(): self.value() for _ in range(self._bounded(self.count()))}

    def repeated(self) -> Any:
        """Text that came before."""
        return self._texts[self.count()]

    def travelled(self) -> Any:
        """A tensor that travelled by itself."""
        return self._tensors[self.count()]

    def of_ours(self) -> Any:
        """An object of a class of ours."""
        return _object(_class(self.value()), self.value())

    def member(self) -> Any:
        """A member of an enumeration."""
        return _class(self.value())(self.value())

    def of_user(self) -> Any:
        """An object of a user's class."""
        if not self._users:
            raise EncodingError(
                "a message holds an object of a user's class, which only pickle can carry, and "
                f"{PICKLE} is 0: needed tensors, numbers and texts in tuples, lists and dicts"
            )
        return _Unpickler(self._content(), self._tensors).load()

    def count(self) -> int:
        """A length, or a number of something that came before."""
        self.at += LENGTH.size
        return int(LENGTH.unpack_from(self._data, self.at - LENGTH.size)[0])

    def tensor(self) -> torch.Tensor:
        """A tensor that is a part of the message."""
        dtype, shape, data = self.value()
        if not data and 0 not in shape:
            raise EncodingError(f"a message has no bytes of a tensor {shape}")
        if not data:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(bytearray(data), dtype=torch.uint8).view(dtype).reshape(shape)

    def _content(self) -> bytes:
        length = self._bounded(self.count())
        self.at += length
        return self._data[self.at - length : self.at]

    def _bounded(self, count: int) -> int:
        if count > len(self._data) - self.at:
            raise EncodingError(f"a message has {len(self._data)} bytes, and needs {count} more")
        return count


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
        raise EncodingError(f"a message names {name!r}, needed a data class of this project")
    return found


def _object(kind: Any, content: Any) -> Any:
    if issubclass(kind, BaseModel):
        return kind.model_validate(content)
    if issubclass(kind, tuple):
        return kind(*content)
    if issubclass(kind, Message):
        return kind.from_message(content)
    made = object.__new__(kind)
    for field, value in zip(fields(kind), content, strict=True):
        object.__setattr__(made, field.name, value)
    return made


_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}
_NUMBERS = {ord("j"): SHORT, ord("i"): INTEGER, ord("f"): FLOAT}
_TEXTS: dict[int, Callable[[bytes], Any]] = {
    ord("s"): lambda content: content.decode("utf-8", "surrogatepass"),
    ord("b"): bytes,
    ord("n"): lambda content: int(content, 16),
    ord("t"): lambda content: _DTYPES[content.decode()],
    ord("v"): lambda content: torch.device(content.decode()),
}
_OTHERS: dict[int, Callable[[_Reader], Any]] = {
    ord("N"): lambda _: None,
    ord("T"): lambda _: True,
    ord("F"): lambda _: False,
    ord("("): lambda reader: tuple(reader.values()),
    ord("["): lambda reader: list(reader.values()),
    ord("<"): lambda reader: set(reader.values()),
    ord(">"): lambda reader: frozenset(reader.values()),
    ord("y"): lambda reader: torch.Size(reader.values()),
    ord("{"): _Reader.pairs,
    ord("r"): _Reader.repeated,
    ord("a"): _Reader.tensor,
    ord("#"): _Reader.travelled,
    ord("c"): _Reader.of_ours,
    ord("e"): _Reader.member,
    ord("p"): _Reader.of_user,
}
