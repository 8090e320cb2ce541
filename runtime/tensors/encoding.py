"""What ranks tell each other, as bytes: a closed set of types, so that reading them runs no code.

Messages are written with msgpack: numbers, text, bytes, lists and dicts. What it has no type for is
one of its extensions, see `Kind`; a bytearray arrives as bytes. Objects and enumerations are those
of this project (`OURS`): dataclasses, named tuples and models of pydantic, by name, with the values
of their fields; no method of theirs is called but a model's validation and what `Message` asks for.
A user's own object can only be pickled, and unpickling runs code; where `SCHEDCC_PICKLE=0` is set,
that is refused. See docs/explanation/security.md.
"""

import io
import pickle
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from enum import Enum, IntEnum
from functools import cache
from operator import attrgetter
from typing import Any, Protocol, Self, runtime_checkable

import msgpack
import torch
from pydantic import BaseModel

OURS = ("runtime.", "schemas.", "schedcc.")
"""Packages whose data classes may travel."""

DEEPEST = 64
"""Extensions within each other, which msgpack reads with 40 KiB of the thread's stack for each."""

REPEATED, FREE = 16, 2**20
"""Extensions hold the bytes of those within them, and reading copies each. The contents of all may
be so many times as long as the message, and so many bytes more."""


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


class Kind(IntEnum):
    """Extensions of msgpack: what follows is a message itself, if nothing else is said."""

    TUPLE = 1
    SET = 2
    FROZENSET = 3
    SIZE = 4
    INTEGER = 5  # of more than 64 bits, as text
    DTYPE = 6  # of torch; its name
    DEVICE = 7  # of torch; its name
    TENSOR = 8  # dtype, shape and bytes
    TRAVELLING = 9  # the number of a tensor that travels by itself
    OBJECT = 10  # the number of its class's name, and its fields
    MEMBER = 11  # of an enumeration: the number of its class's name, and the value
    PICKLED = 12  # pickle


_SEQUENCES: dict[type, Kind] = {
    tuple: Kind.TUPLE,
    set: Kind.SET,
    frozenset: Kind.FROZENSET,
    torch.Size: Kind.SIZE,
}


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
        try:
            content = writer.packed(value)
            writer.require_few_copies(content)
        except EncodingError:
            raise
        except (RecursionError, ValueError):  # it contains itself, or nearly so
            writer = _Writer(tensors)
            content = writer.packed(writer.pickled(value))
    except EncodingError as error:
        raise EncodingError(f"{type(value).__name__} {error}") from error
    return writer.packed([list(writer.names), content])


class _Writer:
    def __init__(self, tensors: Tensors | None) -> None:
        self.names: dict[str, int] = {}
        self._tensors, self._depth, self._extended = tensors, 0, 0

    def require_few_copies(self, content: bytes) -> None:
        """Refuse a message that is long, and most of it within many extensions.

        Raises:
            ValueError: reading would copy too much.
        """
        if self._extended > REPEATED * len(content) + FREE:
            raise ValueError(f"{self._extended} bytes in extensions within each other")

    def packed(self, value: Any) -> bytes:
        if self._depth > DEEPEST:
            raise ValueError(f"nested more than {DEEPEST} deep")
        self._depth += 1
        data: bytes = msgpack.packb(
            value, default=self._extension, strict_types=True, unicode_errors="surrogatepass"
        )
        self._depth -= 1
        return data

    def pickled(self, value: Any) -> msgpack.ExtType:
        file = io.BytesIO()
        try:
            _Pickler(file, self._tensors).dump(value)
        except Exception as error:  # what objects of any class raise
            raise EncodingError(f"cannot be pickled: {error}") from error
        return self._extension_of(Kind.PICKLED, file.getvalue())

    def _extension(self, value: Any) -> msgpack.ExtType:
        """What msgpack has no type for."""
        kind: Any = type(value)
        if (sequence := _SEQUENCES.get(kind)) is not None:
            return self._of(sequence, list(value))
        if kind is torch.Tensor or (self._tensors is not None and isinstance(value, torch.Tensor)):
            return self._tensor(value)
        if kind is torch.dtype:
            return self._of(Kind.DTYPE, str(value).removeprefix("torch."))
        if kind is torch.device:
            return self._of(Kind.DEVICE, str(value))
        if kind is int:
            return self._of(Kind.INTEGER, f"{value:x}")
        if kind.__module__.startswith(OURS) and (ours := _contents(kind)) is not None:
            number = self.names.setdefault(_name(kind), len(self.names))
            tag = Kind.MEMBER if issubclass(kind, Enum) else Kind.OBJECT
            return self._of(tag, [number, ours(value)])
        return self.pickled(value)

    def _of(self, kind: Kind, content: Any) -> msgpack.ExtType:
        return self._extension_of(kind, self.packed(content))

    def _extension_of(self, kind: Kind, content: bytes) -> msgpack.ExtType:
        self._extended += len(content)
        return msgpack.ExtType(kind, content)

    def _tensor(self, tensor: torch.Tensor) -> msgpack.ExtType:
        if self._tensors is not None:
            return self._of(Kind.TRAVELLING, self._tensors.number(tensor))
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_nested:
            return self.pickled(tensor)
        content = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        data = content.reshape(-1).view(torch.uint8).numpy().tobytes()
        return self._of(Kind.TENSOR, [content.dtype, list(content.shape), data])


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, tensors: Tensors | None) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._tensors = tensors

    def persistent_id(self, value: Any) -> int | None:
        if self._tensors is None or not isinstance(value, torch.Tensor):
            return None
        return self._tensors.number(value)


@cache
def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


@cache
def _contents(kind: Any) -> Callable[[Any], Any] | None:
    """What travels of an object of a class of ours; `None` if it is no data class."""
    if issubclass(kind, Enum):
        return attrgetter("value")
    if issubclass(kind, Message):
        to_message: Callable[[Any], Any] = kind.to_message
        return to_message
    if issubclass(kind, BaseModel):
        return lambda value: dict(value.__dict__)
    if is_dataclass(kind):
        names = [field.name for field in fields(kind)]
        return lambda value: [getattr(value, name) for name in names]
    return list if issubclass(kind, tuple) else None
