"""Reading files that may be anything: endless, enormous, devices."""

import os
import stat
import sys
from errno import EBADF
from io import BytesIO
from pathlib import Path
from typing import Protocol

from schedcc.errors import PlanFileError
from schedcc.io.plain_text import visible

MOST_BYTES = 2**28
"""Of a plan file. The plan takes up to 40 times the memory of its file."""

STANDARD_INPUT = Path("-")
"""The name that means standard input."""

_AT_ONCE = 2**20
_MARK = b"\xef\xbb\xbf"
"""What some editors put in front of UTF-8 text (a byte order mark)."""


class Reader(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """At most so many bytes; none at the end."""


class TooLargeError(ValueError):
    """A file holds more than anybody would put there."""


def content_of(path: Path, most: int) -> bytes:
    """The content of a file or of standard input (`-`).

    Raises:
        TooLargeError: it holds more than `most` bytes; of a regular file nothing is read then.
        OSError: it cannot be read.
    """
    if path == STANDARD_INPUT:
        if sys.stdin is None:
            raise OSError(EBADF, "it is closed")
        content = up_to(most + 1, sys.stdin.buffer)
    else:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if stat.S_ISREG(status.st_mode) and status.st_size > most:
                raise TooLargeError(f"holds {status.st_size:,} bytes, needed at most {most:,}")
            content = up_to(most + 1, file)
    if len(content) > most:
        raise TooLargeError(f"holds more than {most:,} bytes, needed no more")
    return content


def read_bounded(path: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file or of standard input (`-`), without a byte order mark.

    Raises:
        PlanFileError: it cannot be read, or holds more than `most` bytes.
    """
    try:
        content = content_of(path, most)
    except TooLargeError as error:
        raise PlanFileError(f"{shown(path)}: {error}") from error
    except OSError as error:
        raise PlanFileError(f"{shown(path)}: cannot be read: {error.strerror}") from error
    return content.removeprefix(_MARK)


def up_to(most: int, file: Reader) -> bytes:
    """At most `most` bytes; memory for as many is not asked for before they are there."""
    content = BytesIO()
    while (left := most - content.tell()) and (part := file.read(min(left, _AT_ONCE))):
        content.write(part)
    return content.getvalue()


def shown(path: Path) -> str:
    """How messages name a file."""
    return "standard input" if path == STANDARD_INPUT else visible(path)


def is_regular(path: Path) -> bool:
    """Whether a path leads to a file that has an end."""
    return stat.S_ISREG(os.stat(path).st_mode)
