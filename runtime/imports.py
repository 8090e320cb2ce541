"""Imports that are never searched for garbage, for the beginning of a program of this project."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import torch and transformers without looking for garbage in them, then or later.

    Of their millions of objects hardly one is garbage, and Python would look through all of them
    again and again while they come, in every full collection afterwards, and when the process ends:
    with both, 2.2 of the 5.7 s of CPU time that a process took that did nothing else. The objects
    are kept out of collections for good (`gc.freeze`), those of the caller as well: so this is
    for the beginning of a program of ours, not for a library. Forks share the memory of what is
    frozen, since no collection writes to it.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
