"""The sending end of a local channel.

Small messages are copied by the thread that posts them or waits. From the first large one on,
another thread copies, beside what the rank computes; it ends with this end of the channel.
"""

import os
import socket
import struct
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate
from queue import SimpleQueue

import torch

from runtime.transport.shared_memory.endpoint import (
    ChannelEnd,
    LocalChannelError,
    LocalTransfer,
    UnfinishedSends,
    raised_by_loader,
)
from runtime.transport.shared_memory.segments import write
from runtime.transport.shared_memory.wire_format import FILLED, LONGEST, ReceiveDescriptor

LARGE = 256 * 1024
"""Bytes of a message that take longer to copy than to hand over to another thread."""

CLOSE_SECONDS = 5.0
"""A copy that is being made takes milliseconds."""

THREAD = "schedcc copies"

LISTED = 10
"""Sizes in a message that says that they do not fit."""

_DESCRIPTOR = struct.Struct("i")
_ROOM_FOR_ONE = socket.CMSG_LEN(_DESCRIPTOR.size)
_WAIT, _LOOK = (
    int(flags) for flags in (socket.MSG_CMSG_CLOEXEC, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT)
)


@dataclass(slots=True)
class Sending(LocalTransfer):
    """A send that has been posted."""

    end: "SendingEnd"
    views: Sequence[torch.Tensor]
    joined: bool
    done: bool = False

    def wait(self) -> None:
        """Wait for it; see `LocalTransfer`."""
        if not self.done:
            self.end.finish(self)


class SendingEnd(ChannelEnd):
    """The end of a channel that messages go into."""

    def __init__(
        self, connection: socket.socket, timeout: timedelta, progress: UnfinishedSends
    ) -> None:
        """Send over `connection`."""
        super().__init__(connection, timeout, progress)
        self._queue: deque[Sending] = deque()
        self._segments: dict[int, int] = {}
        """Descriptors, by number; they are closed with this end."""
        self._forget_segments = weakref.finalize(self, _close_all, self._segments)
        self._received = bytearray(LONGEST)
        self._changed = threading.Condition()
        self._by_thread = False
        self._thread: threading.Thread | None = None
        self._work: SimpleQueue[SendingEnd | None] = SimpleQueue()
        """What the thread waits for; it holds this end only while there is something to send."""
        self._end_thread = weakref.finalize(self, self._work.put, None)
        self._end_thread.atexit = False
        self._error: LocalChannelError | None = None

    def begin(self, views: Sequence[torch.Tensor], *, joined: bool = False) -> Sending:
        """Post a send of uint8 tensors, which may not change before its wait."""
        sending = Sending(self, views, joined)
        with self._changed:
            self._queue.append(sending)
        if self._by_thread or sum(view.numel() for view in views) >= LARGE:
            self.delegate()
        else:
            self.advance()
        return sending

    def finish(self, sending: Sending) -> None:
        """Wait for a message that was posted before; see `Sending.wait`."""
        while not (self._by_thread or sending.done or self._error):
            self._attempt(wait=True)
        with self._changed:
            self._changed.wait_for(lambda: sending.done or self._error)
        if self._error and not sending.done:
            raise LocalChannelError(str(self._error)) from self._error

    def advance(self) -> None:
        """Copy what there is a receive for; what goes wrong is raised by the waits."""
        if self._error is None:
            self._attempt(wait=False)

    def delegate(self) -> None:
        """Let another thread copy, from here on."""
        self.progress.unfinished.discard(self)
        with self._changed:
            self._by_thread = True
            if self._error is not None:
                return
            if self._thread is None:
                thread = threading.Thread(target=_copy, args=(self._work,), name=THREAD)
                thread.daemon = True
                self._thread = thread
                thread.start()
            self._work.put(self)

    def close(self) -> None:
        """Give the connection back, when nothing is copied any more."""
        self.shut()
        with self._changed:
            self._error = self._error or self.failed()
            self._changed.notify_all()
            thread = self._thread
        self._end_thread()
        if thread is not None and thread is not threading.current_thread():
            thread.join(CLOSE_SECONDS)
        super().close()
        self._forget_segments()

    def copy(self) -> None:
        """Copy all that has been posted, in the thread."""
        while self._queue and self._error is None:
            self._attempt(wait=True)
            with self._changed:
                self._changed.notify_all()

    def _attempt(self, *, wait: bool) -> None:
        """Copy what there is a receive for, and keep what goes wrong."""
        try:
            if wait and self.progress.unfinished - {self} and not self._by_thread:
                self.progress.until_readable(self.connection, self.timeout)
            self._copy_posted(wait=wait)
        except Exception as error:  # perhaps on the thread, where no other would raise it
            if raised_by_loader(error):
                raise
            self._error = LocalChannelError(str(self.failed(error)))  # holds no frame, nor this end
        if not self._by_thread:
            if self._queue and self._error is None:
                self.progress.unfinished.add(self)
            else:
                self.progress.unfinished.discard(self)

    def _copy_posted(self, *, wait: bool) -> None:
        while self._queue:
            posted = self._next_posted(wait=wait)
            if posted is None:
                return
            sending = self._queue.popleft()
            for offset, view in zip(_offsets(sending, posted), sending.views, strict=True):
                write(self._segments[posted.segment], offset, view)
            self.connection.send(FILLED)
            sending.done = True
            wait = False

    def _next_posted(self, *, wait: bool) -> ReceiveDescriptor | None:
        """Where the next receive is to be filled; `None` if none is posted, unless to `wait`."""
        try:
            length, attached, _, _ = self.connection.recvmsg_into(
                [self._received], _ROOM_FOR_ONE, _WAIT if wait else _LOOK
            )
        except BlockingIOError:
            if wait:
                raise
            return None
        if not length:
            raise self.failed()
        descriptors = [_DESCRIPTOR.unpack(data)[0] for _, _, data in attached]
        try:
            posted = ReceiveDescriptor.unpacked(memoryview(self._received)[:length])
            for number in posted.gone:
                os.close(self._segments.pop(number))
            known = posted.segment in self._segments  # a segment comes with the first of its name
            if bool(descriptors) == known if posted.places else posted.joined:
                raise KeyError(posted.segment)
        except (struct.error, KeyError) as error:
            _close_all(dict(enumerate(descriptors)))
            raise LocalChannelError(f"a receive descriptor of {length} bytes is damaged") from error
        for descriptor in descriptors:
            self._segments[posted.segment] = descriptor
        return posted


def _offsets(sending: Sending, posted: ReceiveDescriptor) -> Sequence[int]:
    """Where each tensor of a message goes.

    Raises:
        LocalChannelError: they do not fit there.
    """
    sizes = [view.numel() for view in sending.views]
    expected = [size for _, size in posted.places]
    fits = sum(sizes) <= sum(expected) if sending.joined else sizes == expected
    if not (fits and sending.joined == posted.joined):
        joined = " joined" if sending.joined and not posted.joined else ""
        how = " joined into at most" if posted.joined else ""
        raise LocalChannelError(
            f"{_listed(sizes)} bytes sent{joined}, but the peer receives{how} {_listed(expected)}"
        )
    if not sending.joined:
        return [offset for offset, _ in posted.places]
    return list(accumulate(sizes[:-1], initial=posted.places[0][0]))


def _listed(sizes: Sequence[int]) -> str:
    first = [*map(str, sizes[:LISTED]), *["..."] * (len(sizes) > LISTED)]
    return f"[{', '.join(first)}]"


def _copy(work: "SimpleQueue[SendingEnd | None]") -> None:
    """What the thread does, until nobody holds its end any more."""
    while (end := work.get()) is not None:
        end.copy()
        del end


def _close_all(segments: dict[int, int]) -> None:
    while segments:
        os.close(segments.popitem()[1])
