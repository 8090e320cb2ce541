"""The header of a GGUF file, walked through before anybody believes its counts.

gguf's own reader makes an object for every element of an array, of as many as the file says there
are, also where the file ends long before. The format: docs/gguf.md of ggml, version 3.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

from runtime.language.models.errors import ModelError

MOST_FIELDS, MOST_TENSORS = 2**12, 2**18
"""Entries of the metadata, and tensors; files of models have some tens, and some thousands."""
MOST_ELEMENTS = 2**23
"""Of all arrays together; the largest are vocabularies, of some hundred thousand tokens."""
MOST_BYTES = 2**28
"""Of the whole header."""
MOST_DIMENSIONS = 4
"""Of a tensor (GGML_MAX_DIMS)."""

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of the types that have a size."""


def check_header(path: Path) -> None:
    """Refuse a file whose header says more than the file holds, or than any model has.

    Raises:
        ModelError: naming what, how much there is, and how much may be.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        _Header(path, file).check()


class _Header:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._size = os.fstat(file.fileno()).st_size
        self._left = min(self._size, MOST_BYTES)
        self._elements = 0
        self._order = "<"

    def check(self) -> None:
        if self._take(len(_MAGIC)) != _MAGIC:
            self._refuse("does not start with GGUF", "")
        version = self._take(4)
        if version[3]:
            self._order = ">"
        (number,) = struct.unpack(f"{self._order}I", version)
        if number not in _VERSIONS:
            self._refuse(f"is of version {number}", f"2 or {_VERSIONS[-1]}")
        tensors, fields = self._long(), self._long()
        self._require("tensors", tensors, MOST_TENSORS)
        self._require("entries in its metadata", fields, MOST_FIELDS)
        for _ in range(fields):
            self._text()
            self._value(self._int())
        for _ in range(tensors):
            self._text()
            dimensions = self._int()
            self._require("dimensions of a tensor", dimensions, MOST_DIMENSIONS)
            self._take(8 * dimensions + 4)
            self._require("bytes before a tensor", self._long(), self._size)

    def _value(self, kind: int) -> None:
        if kind == _STRING:
            self._text()
        elif kind == _ARRAY:
            inner, count = self._int(), self._long()
            self._elements += count
            self._require("elements in its arrays", self._elements, MOST_ELEMENTS)
            if inner == _STRING:
                for _ in range(count):
                    self._text()
            else:
                self._take(count * self._width(inner))
        else:
            self._take(self._width(kind))

    def _width(self, kind: int) -> int:
        if kind not in _SCALARS:  # arrays of arrays among them, which no model has
            self._refuse(f"has a value of type {kind}", "another one")
        return _SCALARS[kind]

    def _text(self) -> None:
        self._take(self._long())

    def _int(self) -> int:
        return int(struct.unpack(f"{self._order}I", self._take(4))[0])

    def _long(self) -> int:
        return int(struct.unpack(f"{self._order}Q", self._take(8))[0])

    def _take(self, count: int) -> bytes:
        if count > self._left:
            self._refuse(
                f"has a header that goes on for {count:,} bytes", f"at most {self._left:,} more"
            )
        self._left -= count
        return self._file.read(count)

    def _require(self, what: str, found: int, most: int) -> None:
        if found > most:
            self._refuse(f"has {found:,} {what}", f"at most {most:,}")

    def _refuse(self, found: str, needed: str) -> None:
        need = f", needed {needed}" if needed else ""
        raise ModelError(
            f"{self._path} cannot be read, and may be damaged or cut off: it {found}{need}"
        )
