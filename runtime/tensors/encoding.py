"""What ranks tell each other, as bytes: a closed set of types, so that reading them runs no code.

=====  ==============================================  =====  ====================================
tag    value                                           tag    value
=====  ==============================================  =====  ====================================
N T F  `None`, `True`, `False`                         t y v  dtype, size, device of torch
j i n  integers (8 or 64 bits, or text)                a      a tensor of a CPU: dtype, shape, bytes
f      a float                                         #      a tensor that travels by itself
s b r  text, bytes, or one that came before
( [ {  a tuple, a list, a dict                         c e    an object, a member of an enumeration
< >    a set, a frozen set                             p      pickle: an object of a user's class
=====  ==============================================  =====  ====================================

Objects and enumerations are those of this project (`OURS`): dataclasses, named tuples and models of
pydantic, by name, with the values of their fields; no method of theirs is called but a model's
validation and what `Message` asks for. A user's own object can only be pickled, and unpickling runs
code; where `SCHEDCC_PICKLE=0` is set, that is refused. See docs/explanation/security.md.
"""

import io
import pickle
import struct
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from operator import attrgetter
from typing import Any, Protocol, Self, runtime_checkable

import torch
from pydantic import BaseModel

OURS = ("runtime.", "schemas.", "schedcc.")
"""Packages whose data classes may travel."""

LENGTH, FLOAT = struct.Struct("<I"), struct.Struct("<d")
SHORT, INTEGER = struct.Struct("<b"), struct.Struct("<q")
_SHORT, _SMALL = range(-128, 128), range(-(2**63), 2**63)


class EncodingError(ValueError):
    """Bytes are no message, or one that may not be read; or a value cannot be sent."""


@runtime_checkable
class Message(Protocol):
    """A class of ours that travels as another value."""

    def to_message(self) -> Any:
        """What travels."""

    @classmethod
    def from_message(cls, value: Any) -> Self:
        """The object that it was made from."""


class Tensors:
    """The tensors of a value that travel by themselves, each once, in the order they are met."""

    def __init__(self) -> None:
        """Begin without any."""
        self.found: list[torch.Tensor] = []
        self._numbers: dict[int, int] = {}

    def number(self, tensor: torch.Tensor) -> int:
        """The number of a tensor."""
        number = self._numbers.setdefault(id(tensor), len(self.found))
        if number == len(self.found):
            self.found.append(tensor)
        return number


def encode(value: Any, tensors: Tensors | None = None) -> bytes:
    """A value as bytes.

    Args:
        value: Of the types above.
        tensors: Where its tensors go; default: they are a part of the bytes.

    Raises:
        EncodingError: an object of a user's class cannot be pickled.
    """
    writer = _Writer(tensors)
    try:
        writer.write(value)
        return b"".join(writer.parts)
    except RecursionError:  # it contains itself, or nearly so
        return _pickled(value, tensors)
    except EncodingError as error:
        raise EncodingError(f"{type(value).__name__} {error}") from error


class _Writer:
    def __init__(self, tensors: Tensors | None) -> None:
        self.parts: list[bytes] = []
        self._tensors = tensors
        self._texts: dict[tuple[bytes, bytes], int] = {}

    def write(self, value: Any) -> None:
        kind: Any = type(value)
        put = self.parts.append
        if (constant := _CONSTANTS.get(id(value))) is not None:
            put(constant)
        elif kind is int and value in _SHORT:
            put(b"j" + SHORT.pack(value))
        elif kind is int and value in _SMALL:
            put(b"i" + INTEGER.pack(value))
        elif kind is float:
            put(b"f" + FLOAT.pack(value))
        elif kind is str:
            self._text(b"s", value.encode("utf-8", "surrogatepass"))
        elif (tag := _SEQUENCES.get(kind)) is not None:
            put(tag + LENGTH.pack(len(value)))
            for item in value:
                self.write(item)
        elif kind is dict:
            put(b"{" + LENGTH.pack(len(value)))
            for pair in value.items():
                self.write(pair[0])
                self.write(pair[1])
        elif kind is torch.Tensor or (
            self._tensors is not None and isinstance(value, torch.Tensor)
        ):
            self._tensor(value)
        elif (text := _TEXTS.get(kind)) is not None:
            self._text(text[0], text[1](value))
        elif (ours := _kind_of(kind)) is not None:
            put(ours[0])
            self._text(b"s", ours[1])
            self.write(ours[2](value))
        else:
            put(_pickled(value, self._tensors))

    def _text(self, tag: bytes, text: bytes) -> None:
        """Text, or where the same one came before, its number."""
        number = self._texts.get((tag, text))
        if number is not None:
            self.parts.append(b"r" + LENGTH.pack(number))
        else:
            self._texts[tag, text] = len(self._texts)
            self.parts.append(tag + LENGTH.pack(len(text)) + text)

    def _tensor(self, tensor: torch.Tensor) -> None:
        if self._tensors is not None:
            self.parts.append(b"#" + LENGTH.pack(self._tensors.number(tensor)))
            return
        content = tensor.detach().cpu().contiguous()
        data = content.reshape(-1).view(torch.uint8).numpy().tobytes()
        self.parts.append(b"a")
        self.write((content.dtype, tuple(content.shape), data))


@cache
def _kind_of(kind: Any) -> tuple[bytes, bytes, Callable[[Any], Any]] | None:
    """The tag and the name of a class of ours, and what travels of an object of it."""
    if not kind.__module__.startswith(OURS):
        return None
    name = f"{kind.__module__}:{kind.__qualname__}".encode()
    if issubclass(kind, Enum):
        return b"e", name, attrgetter("value")
    if issubclass(kind, Message):
        return b"c", name, kind.to_message
    if issubclass(kind, BaseModel):
        return b"c", name, lambda value: dict(value.__dict__)
    if is_dataclass(kind):
        names = [field.name for field in fields(kind)]
        return b"c", name, lambda value: [getattr(value, name) for name in names]
    return (b"c", name, list) if issubclass(kind, tuple) else None


def _pickled(value: Any, tensors: Tensors | None) -> bytes:
    file = io.BytesIO()
    try:
        _Pickler(file, tensors).dump(value)
    except Exception as error:  # what objects of any class raise
        raise EncodingError(f"cannot be pickled: {error}") from error
    return b"p" + LENGTH.pack(file.tell()) + file.getvalue()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, tensors: Tensors | None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors

    def persistent_id(self, value: Any) -> int | None:
        if self._tensors is None or not isinstance(value, torch.Tensor):
            return None
        return self._tensors.number(value)


_SEQUENCES: dict[type, bytes] = {
    tuple: b"(",
    list: b"[",
    set: b"<",
    frozenset: b">",
    torch.Size: b"y",
}
_CONSTANTS = {id(None): b"N", id(True): b"T", id(False): b"F"}
_TEXTS: dict[type, tuple[bytes, Callable[[Any], bytes]]] = {
    bytes: (b"b", bytes),
    int: (b"n", lambda number: b"%x" % number),
    torch.dtype: (b"t", lambda dtype: str(dtype).removeprefix("torch.").encode()),
    torch.device: (b"v", lambda device: str(device).encode()),
}
"""What travels as text, beside text."""
