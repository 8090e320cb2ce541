"""Put a finished directory in the place of another, or of none, in one step."""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from uuid import uuid4

from runtime.checkpoint.errors import CheckpointError
from runtime.checkpoint.write import synchronise
from schedcc.io.plain_text import one_line

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""Linux, `renameat2(2)`: two names change places, and there is no moment when one is missing."""


def at_once(destination: Path, write: Callable[[Path], None]) -> None:
    """Make a directory with what `write` puts into it, or change nothing.

    What `write` makes is on the disk before it gets its name. A directory that has the name already
    is replaced, and removed afterwards.

    Raises:
        CheckpointError: it cannot be written.
    """
    place = destination.resolve()
    unfinished = place.with_name(f".{place.name}.{uuid4().hex[:8]}.unfinished")
    try:
        unfinished.mkdir(parents=True)
        with _in_use(unfinished):
            _remove_what_is_left(place)
            write(unfinished)
            for path in (unfinished, *unfinished.rglob("*")):
                synchronise(path)
            _exchange(unfinished, place) if place.is_dir() else unfinished.rename(place)
            synchronise(place.parent)
    except OSError as error:
        raise CheckpointError(f"{destination} cannot be written: {one_line(error)}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)  # what was there before, if all went well


@contextmanager
def _in_use(directory: Path) -> Iterator[bool]:
    """Lock a directory for as long as this process lives; tells whether nobody else has."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError:
            free = False
        yield free
    finally:
        os.close(descriptor)


def _remove_what_is_left(place: Path) -> None:
    """Remove what processes have begun for the same place, and were killed in."""
    for left in place.parent.glob(f".{escape(place.name)}.*.unfinished"):
        with suppress(FileNotFoundError), _in_use(left) as free:
            if free:
                shutil.rmtree(left, ignore_errors=True)


def _exchange(new: Path, old: Path) -> None:
    """Let two directories change names; where the file system cannot, one after the other."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is not None:
        names = os.fsencode(new), os.fsencode(old)
        if rename(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
            return
    aside = new.with_suffix(".replaced")
    old.rename(aside)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)
