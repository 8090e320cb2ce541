"""Descriptors in reserve: a process that has used up all others can still say so.

A private store needs a descriptor for a moment. Where a layer or a loader has opened as many as the
system gives (`ulimit -n`), the failure could not be told to the other ranks without one.
"""

import errno
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

COUNT = 2
"""A lock, and a file that is read or written under it."""

_lock = threading.RLock()
_held: list[int] = []


def hold() -> None:
    """Take as many descriptors in reserve as are missing, if there are so many."""
    with _lock, suppress(OSError):
        while len(_held) < COUNT:
            _held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))


@contextmanager
def opened(file: str, flags: int) -> Iterator[int]:
    """A descriptor of a file, in place of one in reserve if there is no other; closed in the end.

    Raises:
        OSError: it cannot be opened.
    """
    with ExitStack() as stack:
        try:
            descriptor = _open(file, flags)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            stack.enter_context(_lock)  # other threads wait for what is in reserve
            if not _held:
                raise
            stack.callback(hold)
            os.close(_held.pop())
            descriptor = _open(file, flags)
        stack.callback(os.close, descriptor)
        yield descriptor


def _renew_lock() -> None:
    """Forget who holds the lock: of the threads of the parent, a child has only the one."""
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_renew_lock)


def _open(file: str, flags: int) -> int:
    return os.open(file, flags | os.O_CLOEXEC, 0o600)
