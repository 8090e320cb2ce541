"""The life of an evaluator: from when it is made until it is closed, or nobody holds it any more.

Then whatever the system gave for it is given back at once, without the help of Python's collector
of cycles, and the other ranks can learn that this one will not take part again.
"""

import os
import weakref
from collections.abc import Callable
from typing import Self

from runtime.failure.guard import Guard
from runtime.transport import Transport
from runtime.transport.rendezvous import RendezvousStore

LET_GO = "let go of it, or ended"
CLOSED = "closed it"


class Lifetime:
    """What an evaluator leaves and gives back in the end."""

    def __init__(
        self, evaluator: object, transport: Transport, guard: Guard | None, *, owns: bool
    ) -> None:
        """Begin the life of `evaluator`.

        Args:
            evaluator: Whose life it is.
            transport: What it uses.
            guard: What it has of its own to watch its runs.
            owns: Whether the transport is its own, too.
        """
        ranks = transport.rendezvous
        self.name = "" if ranks is None else ranks.next_evaluator()
        """What all ranks call the evaluator; empty for a single process."""
        self._open = True
        process = os.getpid()
        self._ends: list[Callable[[], None]] = []
        if guard is not None:
            self._ends.append(guard.close)
        if owns:
            self._ends.append(transport.close)
        # The one made last comes first, and a process that ends only says so.
        self._free = weakref.finalize(evaluator, _all, process, self._ends)
        self._free.atexit = False
        self._leave, self._how = None, [LET_GO]
        if ranks is not None:
            told = (process, ranks, self.name, self._how)
            self._leave = weakref.finalize(evaluator, _leave, *told)

    def at_end(self, free: Callable[[], None]) -> None:
        """Call `free` before anything else is given back; it may not hold the evaluator."""
        self._ends.insert(0, free)

    def close(self) -> None:
        """End it now; another time does nothing."""
        self._open = False
        self._how[0] = CLOSED
        if self._leave is not None:
            self._leave()
        self._free()

    def require_open(self) -> None:
        """Refuse to go on with what has ended.

        Raises:
            ValueError: it has.
        """
        if not self._open:
            raise ValueError("the evaluator was closed, needed an open one: make another")


class Closable:
    """Something with a lifetime: `with` closes it in the end."""

    _lifetime: Lifetime

    def close(self) -> None:
        """Give back connections, descriptors, threads and shared memory.

        That also happens, as soon, when nobody holds the evaluator any more. The other stages are
        told if they wait for this one afterwards. A transport or guard that was given stays open.
        """
        self._lifetime.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _all(process: int, ends: list[Callable[[], None]]) -> None:
    while ends and _is(process):
        ends.pop(0)()


def _leave(process: int, ranks: RendezvousStore, name: str, how: list[str]) -> None:
    if _is(process):
        ranks.leave(name, how[0])


def _is(process: int) -> bool:
    """Whether this is that process; one that was forked off must not end what it inherited."""
    return os.getpid() == process
