"""The ends of local channels: what both kinds have, and how the waits of one serve the others.

Nobody but the thread that waits copies small messages. So while it waits for one end, it also looks
after the sends of the others: otherwise two ranks could wait for what each of them still has to
copy.
"""

import os
import select
import socket
import struct
import traceback
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Protocol

import torch
from torch.utils.data._utils import signal_handling

_TIME = struct.Struct("@ll")  # seconds, microseconds

_OPEN: weakref.WeakSet[socket.socket | Connection] = weakref.WeakSet()


def _forget_in_child() -> None:
    """A forked process (a worker that loads data, say) would keep connections of a dead one."""
    for connection in list(_OPEN):
        connection.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


def closed_in_children(connection: socket.socket | Connection) -> None:
    """Have `connection` closed in processes that are forked off from now on."""
    _OPEN.add(connection)


def raised_by_loader(error: BaseException) -> bool:
    """Whether a worker of a `DataLoader` has died: torch raises that from a signal handler.

    So it can come from whatever the main thread is doing, and tells nothing about that.
    """
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_globals.get("__name__") == signal_handling.__name__


class LocalChannelError(RuntimeError):
    """The other end is gone, does not answer, or does not fit."""


class LocalTransfer(ABC):
    """A transfer over a local channel that has been posted."""

    __slots__ = ()

    @abstractmethod
    def wait(self) -> None:
        """Wait until the message is in the receiver's memory.

        Raises:
            LocalChannelError: it will not come there.
        """


class Unfinished(Protocol):
    """An end with sends that could not be copied when they were posted."""

    connection: socket.socket

    def advance(self) -> None:
        """Copy what can be copied by now; errors are kept for the wait."""

    def delegate(self) -> None:
        """Let a thread do it from here on."""


class UnfinishedSends:
    """The unfinished sends of one rank, for whose receives nobody else waits."""

    def __init__(self) -> None:
        """Begin without any."""
        self.unfinished: set[Unfinished] = set()

    def until_readable(self, connection: socket.socket, timeout: timedelta) -> None:
        """Wait for a message over `connection`, while other sends get on; may return too early.

        Raises:
            BlockingIOError: none came for `timeout`.
        """
        while True:
            others = {e.connection.fileno(): e for e in self.unfinished}
            others.pop(connection.fileno(), None)
            if not others:
                return
            waiting = select.poll()
            for descriptor in (connection.fileno(), *others):
                waiting.register(descriptor, select.POLLIN)
            ready = {descriptor for descriptor, _ in waiting.poll(timeout.total_seconds() * 1e3)}
            if not ready:
                raise BlockingIOError
            for descriptor in ready & others.keys():
                others[descriptor].advance()
            if connection.fileno() in ready:
                return

    def delegate(self) -> None:
        """No wait will look after the sends for a while: threads have to."""
        for end in list(self.unfinished):
            end.delegate()


class ChannelEnd(ABC):
    """One end of a channel: a connection that any thread may shut."""

    def __init__(
        self, connection: socket.socket, timeout: timedelta, progress: UnfinishedSends
    ) -> None:
        """Take `connection`, on which nothing may take longer than `timeout`."""
        connection.setblocking(True)
        seconds = _TIME.pack(int(timeout.total_seconds()), timeout.microseconds)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
        self.connection, self.timeout, self.progress = connection, timeout, progress
        self._give_back = weakref.finalize(self, connection.close)
        closed_in_children(connection)

    @abstractmethod
    def begin(self, views: Sequence[torch.Tensor], *, joined: bool = False) -> LocalTransfer:
        """Post a transfer of uint8 tensors; see `Transport.post_send` and `post_receive`."""

    def close(self) -> None:
        """Give the connection back."""
        self.shut()
        self._give_back()

    def shut(self) -> None:
        """End every wait on either side, from any thread."""
        with suppress(OSError):  # the other side was faster
            self.connection.shutdown(socket.SHUT_RDWR)

    def failed(self, error: Exception | None = None) -> LocalChannelError:
        """What to raise after `error`, or after the end of the connection."""
        if isinstance(error, LocalChannelError):
            return error
        if isinstance(error, BlockingIOError):
            return LocalChannelError(f"no answer in {self.timeout.total_seconds():g} s")
        if error is None or isinstance(error, ConnectionError):
            return LocalChannelError("connection closed by peer")
        return LocalChannelError(f"{type(error).__name__}: {error}")
