"""GGUF files, converted once into Hugging Face directories that are kept in a cache.

Nothing heavy is imported until a file has to be converted: a cached one is found in milliseconds.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from runtime.language.models.errors import ModelError
from schedcc.io.plain_text import one_line, visible

_MAGIC = b"GGUF"
# Raised whenever the same file has to be converted anew, because the conversion has changed.
_CONVERSION = 3


def converted(path: Path) -> Path:
    """Return a Hugging Face directory with the model of the GGUF file at `path`.

    It holds the weights in float32, and the tokenizer. It is made by the first call for that file,
    in the cache directory: `$SCHEDCC_CACHE`, or else `schedcc` in `$XDG_CACHE_HOME` or `~/.cache`.
    Processes that call at once wait for one of them to make it.

    Raises:
        ModelError: the file is not GGUF, is damaged, or holds something that the conversion would
            leave out or change; or the cache directory cannot be written to, or can be by others.
    """
    name = _name_of_conversion(path)
    cache = _cache_directory()
    directory = cache / name
    _require_own(cache)
    if directory.is_dir():
        _require_own(directory)
        return directory

    from filelock import FileLock
    from safetensors import SafetensorError

    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_own(cache)
        with FileLock(cache / "lock"):
            if not directory.is_dir():
                _convert(path, directory)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"{path} cannot be converted into {cache}: {one_line(error)}; "
            "SCHEDCC_CACHE can name another directory"
        ) from error
    return directory


def _convert(path: Path, directory: Path) -> None:
    """Make `directory` at one go, so that it is whole if it is there; the cache is locked."""
    from runtime.checkpoint.write import synchronise
    from runtime.language.models.gguf.conversion import convert

    line = f"converting {path} to safetensors, once, into {directory} ..."
    print(visible(line), file=sys.stderr)
    unfinished = directory.with_name("unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a process that was killed
    try:
        unfinished.mkdir(mode=0o755)
        convert(path, unfinished)
        for written in (*unfinished.rglob("*"), unfinished):
            synchronise(written)
        unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _name_of_conversion(path: Path) -> str:
    """Name the conversion so that another file, or another way to convert, has another name."""
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
            status = os.fstat(file.fileno())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    if magic != _MAGIC:
        raise ModelError(f"{path} is not a GGUF file: it does not start with GGUF")
    identity = (str(path.resolve()), status.st_size, status.st_mtime_ns)
    conversion = (_CONVERSION, version("transformers"))
    return f"{path.stem}-{sha256(repr((identity, conversion)).encode()).hexdigest()[:16]}"


def _require_own(directory: Path) -> None:
    """Refuse a directory that somebody else could have put a model into.

    Raises:
        ModelError: it belongs to neither this user nor root, or others may write to it.
    """
    try:
        found = directory.stat()
    except OSError:
        return  # there is none, or whoever uses it will say so
    mode = stat.S_IMODE(found.st_mode)
    if found.st_uid not in (os.getuid(), 0) or mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise ModelError(
            f"{directory}, where converted models are kept, is of user {found.st_uid} with mode "
            f"{mode:o}, needed one of user {os.getuid()} that nobody else can write to (chmod "
            "go-w, or SCHEDCC_CACHE can name another directory)"
        )


def _cache_directory() -> Path:
    own = os.environ.get("SCHEDCC_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "schedcc"
