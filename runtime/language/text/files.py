"""Files of texts: what their names say of them, what directories hold, and compression."""

from __future__ import annotations

import gzip
import os
import stat
import zlib
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from runtime.language.text.errors import TextError
from schedcc.io.bounded import STANDARD_INPUT, TooLargeError, content_of, up_to
from schedcc.io.plain_text import visible

Kind = Literal["plain", "json", "parquet"]

_KINDS: dict[str, Kind] = {
    ".txt": "plain",
    ".text": "plain",
    ".md": "plain",
    ".rst": "plain",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
MOST_BYTES = 2**31
"""Of a text, compressed or not; it is held in memory as a whole."""

_AT_ONCE = 2**12
"""Compressed bytes, which may become a hundred megabytes."""
_COMPRESSED = (".gz", ".zst")


def kind_of(path: Path, *, records: bool = False) -> Kind:
    """What a file holds, by its suffix before that of a compression.

    Args:
        path: The file.
        records: Whether those that have no suffix of a text hold JSON records, not plain text.
    """
    return _KINDS.get(_inner(path), "json" if records else "plain")


def _inner(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in reversed(path.suffixes)][:2]
    found = [suffix for suffix in suffixes if suffix not in _COMPRESSED]
    return found[0] if found else ""


def contents(path: Path, name: str) -> list[Path]:
    """The path itself, or of a directory all files of texts below it, in order.

    Links to directories are not followed.

    Raises:
        TextError: a directory has none, or a part of it cannot be read.
    """
    if path == STANDARD_INPUT or not os.path.isdir(path):
        return [path]
    files = []
    for folder, below, names in os.walk(path, onerror=_refuse_folder):
        below[:] = [each for each in below if not each.startswith(".")]
        found = [Path(folder, each) for each in names if not each.startswith(".")]
        files += [file for file in found if _inner(file) in _KINDS and _is_regular(file)]
    if not files:
        raise TextError(
            f"directory {name} holds no text: needed files that end in "
            f"{', '.join(_KINDS)}, compressed (.gz, .zst) or not"
        )
    return sorted(files)


def _refuse_folder(error: OSError) -> None:
    raise TextError(
        f"directory {visible(str(error.filename))} cannot be read: {error.strerror or error}"
    ) from error


def _is_regular(file: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(file).st_mode)
    except OSError as error:
        what = f"a link to {visible(os.readlink(file))}: " if os.path.islink(file) else ""
        raise TextError(
            f"text file {visible(str(file))} cannot be read: {what}{error.strerror or error}"
        ) from error


def content(path: Path, what: str) -> bytes:
    """The bytes of a file or of standard input, without compression.

    Raises:
        TextError: it cannot be read, or holds more than `MOST_BYTES`.
    """
    if path != STANDARD_INPUT and os.path.isdir(path):
        raise TextError(f"{what} is a directory, and a file is needed")
    try:
        found = content_of(path, MOST_BYTES)
    except TooLargeError as error:
        raise TextError(f"{what} {error}") from error
    except OSError as error:
        raise TextError(f"{what} cannot be read: {error.strerror or error}") from error
    return _decompressed(path, found, what)


def is_compressed(path: Path) -> bool:
    """Whether a file's name tells of a compression."""
    return path.suffix.lower() in _COMPRESSED


def _decompressed(path: Path, packed: bytes, what: str) -> bytes:
    """The content of a file, without the compression that its name tells of."""
    if not is_compressed(path):
        return packed
    if path.suffix.lower() == ".zst":
        return _zstd(packed, what)
    try:
        text = up_to(MOST_BYTES + 1, gzip.GzipFile(fileobj=BytesIO(packed)))
    except (OSError, EOFError, zlib.error) as error:
        raise TextError(f"{what} is not a whole gzip file: {error}") from error
    require_bounded(len(text), what)
    return text


def _zstd(packed: bytes, what: str) -> bytes:
    zstandard = needed("zstandard", what)
    text, file = BytesIO(), BytesIO(packed)
    frame = None  # a file may have several, and none need say how long it is
    while part := file.read(_AT_ONCE):
        while part:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                text.write(frame.decompress(part))
            except zstandard.ZstdError as error:
                raise TextError(f"{what} is not a whole zstd file: {error}") from error
            require_bounded(text.tell(), what)
            part = frame.unused_data
            frame = None if frame.eof else frame
    if frame is not None:
        raise TextError(f"{what} is not a whole zstd file: its last frame is cut off")
    return text.getvalue()


def require_bounded(nbytes: int, what: str) -> None:
    """Refuse a text of more bytes than are read.

    Raises:
        TextError: naming it.
    """
    if nbytes > MOST_BYTES:
        raise TextError(f"{what} becomes more than {MOST_BYTES:,} bytes, needed no more")


def needed(module: str, what: str) -> Any:
    """Import a module that only some files need.

    Raises:
        TextError: it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise TextError(
            f"{what} can only be read with {package}, which is not installed: "
            f"pip install {package} brings it"
        ) from error
