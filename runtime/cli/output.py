"""Standard output belongs to the command: what anybody else prints goes to standard error."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress

_STDOUT, _STDERR = 1, 2


@contextmanager
def others_on_stderr() -> Iterator[None]:
    """Inside, whatever is printed on standard output goes to standard error.

    Libraries print from Python and from C, some by the descriptor: all of these ways are turned.
    """
    sys.stdout.flush()
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
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).fflush(None)  # what C has kept back would come out later
        os.dup2(ours, _STDOUT)
        os.close(ours)
