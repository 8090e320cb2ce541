"""Records of a corpus: one a line of JSON, or one a row of parquet."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

from runtime.language.text.errors import TextError
from runtime.language.text.files import content, is_compressed, needed, require_bounded
from schedcc.io.plain_text import one_line

Messages: TypeAlias = list[dict[str, Any]]
"""A conversation, as chat templates take it: `{"role": ..., "content": ...}` each."""

_ROWS = 256
"""Rows of parquet that are in memory as the file has them; each may be as long as the file says."""


def json_records(text: str, name: str, field: str) -> Iterator[tuple[int, str | Messages]]:
    """The text of every line that is not blank, with the number of the line; of null, none.

    Raises:
        TextError: a line is no JSON object, or its text is missing or none.
    """
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TextError(f"{where} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise TextError(f"{where} is no JSON object: needed one with the key {field!r}")
        if field not in record:
            raise TextError(
                f"{where} has no key {field!r}: it has {', '.join(map(repr, record)) or 'none'} "
                "(--field names another)"
            )
        yield number, _content(record[field], where, field)


def parquet_records(path: Path, name: str, field: str) -> Iterator[tuple[int, str | Messages]]:
    """The text of every row, with its number from 1 on; of null, none.

    Raises:
        TextError: the file cannot be read, or has no such column, or pyarrow is not installed.
    """
    what = f"text file {name}"
    parquet = needed("pyarrow.parquet", what)
    source = BytesIO(content(path, what)) if is_compressed(path) else path
    rows: list[Any] = []
    nbytes = 0
    try:
        file = parquet.ParquetFile(source)
        columns = file.schema_arrow.names
        if field not in columns:
            raise TextError(
                f"{name} has no column {field!r}: it has {', '.join(map(repr, columns))} "
                "(--field names another)"
            )
        for batch in file.iter_batches(batch_size=_ROWS, columns=[field]):
            some = batch[0].to_pylist()
            nbytes += sum(map(_nbytes, some))
            require_bounded(nbytes, name)
            rows += some
    except TextError:
        raise
    except Exception as error:  # of pyarrow's own hierarchy, and the system's
        problem = one_line(error)
        raise TextError(f"{name} is not a parquet file that can be read: {problem}") from error
    for number, value in enumerate(rows, 1):
        yield number, _content(value, f"{name}, row {number}", field)


def _nbytes(value: Any) -> int:
    """The bytes of a text, or of all texts of a conversation.

    Those of the batch may be fewer: a column can be a dictionary of texts, and numbers.
    """
    if isinstance(value, str | bytes):
        return len(value if isinstance(value, bytes) or value.isascii() else value.encode())
    if isinstance(value, dict):
        return sum(map(_nbytes, value.values()))
    return sum(map(_nbytes, value)) if isinstance(value, list) else 1


def _content(value: Any, where: str, field: str) -> str | Messages:
    if value is None:
        return ""
    if isinstance(value, str):
        require_characters(value, f"{where}: {field}")
        return value
    if isinstance(value, list) and value and all(map(_is_message, value)):
        return [*value]
    raise TextError(
        f"{where}: {field} is {type(value).__name__}, needed a string, or a list of messages "
        "with role and content"
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value


def require_characters(text: str, what: str) -> None:
    """Refuse a text with half a character, which JSON can hold and UTF-8 cannot.

    Raises:
        TextError: naming it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise TextError(
            f"{what} has half a character, {half}, at {error.start}: needed text that UTF-8 can "
            "hold"
        ) from error
