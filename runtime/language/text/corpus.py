"""The texts to evaluate on, in the ways that corpora lie on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from runtime.language.text.errors import NoTextError, TextError
from runtime.language.text.files import content as content_of
from runtime.language.text.files import contents, kind_of
from runtime.language.text.records import Messages, json_records, parquet_records
from schedcc.io.bounded import STANDARD_INPUT
from schedcc.io.plain_text import visible

DEFAULT_TEXT = "pydoc_data.topics"


class Text(NamedTuple):
    """A text that has been read: a file, or a record of one."""

    name: str
    content: str | Messages
    """A conversation only where the caller has said that there may be some."""
    is_record: bool = False
    """Whether it is one of several in its file: such a one is not divided into lines."""


def read_texts(
    paths: Sequence[Path], field: str | None = None, *, conversations: bool = False
) -> list[Text]:
    """Read every text once, from the start to the end; `default_text` if none is named.

    Args:
        paths: Files, pipes, directories (all texts below them, in the order of their paths), and
            `-` for standard input. `.jsonl`, `.ndjson` and `.parquet` hold records, `.gz` and
            `.zst` are compressed, all others are plain text.
        field: What records call their text; default: `text`. If it is given, what has no suffix
            of a text (standard input, a pipe, `x.json`) holds JSON records, too.
        conversations: Whether a record may be a list of messages.

    Raises:
        TextError: one of them cannot be read, or holds no text.
    """
    if list(paths).count(STANDARD_INPUT) > 1:
        raise TextError("standard input is given twice as a text, and it can be read only once")
    groups = [contents(path, visible(name_of(path))) for path in paths]
    kinds = {kind_of(file, records=field is not None) for files in groups for file in files}
    if field is not None and kinds <= {"plain"}:
        raise TextError(
            f"field is {field!r}, and no text has records with fields: needed JSONL or parquet"
        )
    if not paths:
        return [Text(DEFAULT_TEXT, default_text())]
    return [text for files in groups for text in _of_all(files, field, conversations=conversations)]


def _of_all(files: list[Path], field: str | None, *, conversations: bool) -> list[Text]:
    """The texts of a file, or of those in a directory: of several, some may hold none."""
    found: list[Text] = []
    empty = None
    for file in files:
        try:
            found += _texts(file, field, conversations=conversations)
        except NoTextError as error:
            empty = empty or error
    if empty is not None and not found:
        raise empty
    return found


def _texts(path: Path, field: str | None, *, conversations: bool) -> Iterator[Text]:
    name, kind = name_of(path), kind_of(path, records=field is not None)
    if kind == "plain":
        yield Text(name, read_text(path))
        return
    key = "text" if field is None else field
    if kind == "parquet":
        records = parquet_records(path, visible(name), key)
    else:
        records = json_records(read_text(path), visible(name), key)
    found = False
    for number, content in records:
        if not isinstance(content, str) and not conversations:
            raise TextError(
                f"{visible(name)}, record {number}: {key} is a list, needed a string, or "
                "--chat-template for a conversation"
            )
        if not isinstance(content, str) or content.strip():
            found = True
            yield Text(f"{name}:{number}", content, is_record=True)
    if not found:
        raise NoTextError(f"{visible(name)} holds no record with a text")


def name_of(path: Path) -> str:
    """What a text is called."""
    return "standard input" if path == STANDARD_INPUT else str(path)


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
        path: A file, compressed or not, a named pipe, a device such as `/dev/stdin`, or `-` for
            standard input; what comes through a pipe is gone once it has been read.

    Raises:
        TextError: no such file, a directory, not UTF-8, nothing but white space, or more than
            `files.MOST_BYTES`.
    """
    name = visible(name_of(path))
    what = name if path == STANDARD_INPUT else f"text file {name}"
    try:
        text = content_of(path, what).decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise TextError(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise NoTextError(f"{what} holds no text, only {len(text)} characters of white space")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text
