"""The texts to evaluate on."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from runtime.language.text.errors import TextError
from schedcc.io.plain_text import visible

DEFAULT_TEXT = "pydoc_data.topics"
STANDARD_INPUT = "-"


class Text(NamedTuple):
    """A text that has been read."""

    name: str
    content: str


def read_texts(paths: Sequence[Path]) -> list[Text]:
    """Read every text once, from the start to the end; `default_text` if none is named.

    Raises:
        TextError: one of them cannot be read, or holds no text.
    """
    if not paths:
        return [Text(DEFAULT_TEXT, default_text())]
    return [Text(name_of(path), read_text(path)) for path in paths]


def name_of(path: Path) -> str:
    """What a text is called."""
    return "standard input" if str(path) == STANDARD_INPUT else str(path)


def default_text() -> str:
    """Return the Python language reference, as the interpreter's own `help()` has it.

    Some 470,000 characters of English prose and code that every Python brings along; it differs
    between versions of Python.
    """
    from pydoc_data.topics import topics

    return "\n\n".join(topics.values())


def read_text(path: Path) -> str:
    r"""Read a UTF-8 text; its line ends become `\n`, and a byte order mark goes.

    Args:
        path: A file, a named pipe, a device such as `/dev/stdin`, or `-` for standard input; what
            comes through a pipe is gone once it has been read.

    Raises:
        TextError: no such file, a directory, not UTF-8, or nothing but white space.
    """
    name = visible(name_of(path))
    what = name if str(path) == STANDARD_INPUT else f"text file {name}"
    if path.is_dir():
        raise TextError(f"{what} is a directory, and a file is needed")
    try:
        text = _bytes(path).decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise TextError(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise TextError(f"{what} cannot be read: {error.strerror or error}") from error
    if not text.strip():
        raise TextError(f"{what} holds no text, only {len(text)} characters of white space")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def _bytes(path: Path) -> bytes:
    if str(path) != STANDARD_INPUT:
        return path.read_bytes()
    if sys.stdin is None:
        raise OSError("it is closed")
    return sys.stdin.buffer.read()
