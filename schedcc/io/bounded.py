"""Reading files that may be anything: endless, enormous, devices."""

import os
import stat
import sys
from pathlib import Path
from typing import BinaryIO

from schedcc.errors import PlanFileError
from schedcc.io.plain_text import visible

MOST_BYTES = 2**28
"""Of a plan file. The plan takes up to 40 times the memory of its file."""

STANDARD_INPUT = Path("-")
"""The name that means standard input."""

_AT_ONCE = 2**20
_MARK = b"\xef\xbb\xbf"
"""What some editors put in front of UTF-8 text (a byte order mark)."""


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file or of standard input (`-`), without a byte order mark.

    Raises:
        PlanFileError: it cannot be read, or holds more than `most` bytes.
    """
    try:
        if path == STANDARD_INPUT:
            content = _up_to(most + 1, sys.stdin.buffer)
        else:
            with path.open("rb") as file:
                content = _up_to(most + 1, file)
    except OSError as error:
        raise PlanFileError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    if len(content) > most:
        raise PlanFileError(f"{shown(path)}: holds more than {most:,} bytes, needed no more")
    return content.removeprefix(_MARK)


def _up_to(most: int, file: BinaryIO) -> bytes:
    """At most `most` bytes; memory for as many is not asked for before they are there."""
    parts, left = [], most
    while left and (part := file.read(min(left, _AT_ONCE))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def shown(path: Path) -> str:
    """How messages name a file."""
    return "standard input" if path == STANDARD_INPUT else visible(path)


def is_regular(path: Path) -> bool:
    """Whether a path leads to a file that has an end."""
    return stat.S_ISREG(os.stat(path).st_mode)
