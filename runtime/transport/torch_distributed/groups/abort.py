"""Ending process groups from any thread, all at once.

What is said of NCCL was read and not run, see docs/explanation/gpu.md: `abort()` waits for the
device, on which a receive of *another* communicator may spin until that is aborted too. So all
aborts are under way before any of them is waited for. And it is allowed only while no thread is
inside a call on the communicator, hence `Calls`.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist

RESERVED_TAG = 2**31 - 1
"""A tag that no transfer has."""

CALL_SECONDS = 1.0
"""How long an abort waits for a call that another thread is making: it enqueues, and returns at
once, unless it is stuck; then nothing but the abort can end it."""

END_SECONDS = 2.0
"""How long the end of aborts, or of groups, is waited for."""


class Calls:
    """Calls on the communicators of a process group: none is made beside an abort."""

    def __init__(self) -> None:
        """Begin without any."""
        self._lock = threading.Lock()

    @contextmanager
    def one(self, check: Callable[[], None]) -> Iterator[None]:
        """A call that enqueues something, unless `check` raises by now."""
        with self._lock:
            check()
            yield

    @contextmanager
    def none(self) -> Iterator[None]:
        """No call; after `CALL_SECONDS` the one that is under way counts as stuck."""
        free = self._lock.acquire(timeout=CALL_SECONDS)
        try:
            yield
        finally:
            if free:
                self._lock.release()


class Ending:
    """Calls that may not come back, each in a thread of its own: ends of groups, for instance."""

    def __init__(self, what: str, ends: Iterable[Callable[[], None]]) -> None:
        """Start them all.

        Args:
            what: Names the threads.
            ends: The calls.
        """
        self.errors: list[Exception] = []
        """What some of them raised, which spares no other."""
        self._threads = [
            threading.Thread(target=self._end, args=(end,), name=what, daemon=True) for end in ends
        ]
        for thread in self._threads:
            thread.start()

    def over(self, seconds: float) -> bool:
        """Whether all have come back, within `seconds`."""
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _end(self, end: Callable[[], None]) -> None:
        try:
            end()
        except Exception as error:  # each backend has errors of its own
            self.errors.append(error)


def abort_nccl(groups: Iterable[dist.ProcessGroup], calls: Iterable[Calls]) -> Ending:
    """Abort all communicators at once, beside no call on any of them."""
    with ExitStack() as entered:
        for one in calls:
            entered.enter_context(one.none())
        ending = Ending("schedcc abort", [group.abort for group in groups])
        ending.over(END_SECONDS)
    return ending


def abort_gloo(group: dist.ProcessGroup) -> None:
    """Close all connections of a gloo group, so that whoever waits on them raises at once.

    A receive that times out does it. But one on a connection that the peer has closed already
    fails before its time, and leaves the others open: hence one on each.
    """
    probe = torch.zeros(1, dtype=torch.uint8)
    for peer in set(range(group.size())) - {group.rank()}:
        with suppress(RuntimeError):
            group.recv([probe], peer, RESERVED_TAG).wait(timedelta(milliseconds=1))


def shut_down(process: int, is_nccl: bool, groups: list[dist.ProcessGroup]) -> None:
    """Shut communicators down together, except in a process that was forked off from `process`."""
    if is_nccl and groups and os.getpid() == process:
        Ending("schedcc shutdown", [group.shutdown for group in groups]).over(END_SECONDS)
