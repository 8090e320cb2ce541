"""Standard output belongs to the command: what anybody else prints goes to standard error."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

_STDOUT, _STDERR = 1, 2


@contextmanager
def others_on_stderr() -> Iterator[None]:
    """Inside, whatever is printed on standard output goes to standard error.

    Libraries print from Python and from C, some by the descriptor: all of these ways are turned.
    """
    kept = sys.stdout  # of which others may have kept a reference as well
    _flush(kept)
    try:
        ours = os.dup(_STDOUT)
    except OSError:  # it is closed
        with redirect_stdout(sys.stderr):
            yield
        return
    os.dup2(_STDERR, _STDOUT)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _flush(kept)
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).fflush(None)  # what C has kept back would come out later
        os.dup2(ours, _STDOUT)
        os.close(ours)


def _flush(stream: TextIO | None) -> None:
    if stream is not None:  # as Python has it where standard output is closed
        stream.flush()
