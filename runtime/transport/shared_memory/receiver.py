"""The receiving end of a local channel."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate

import torch

from runtime.transport.shared_memory.endpoint import (
    ChannelEnd,
    LocalChannelError,
    LocalTransfer,
    UnfinishedSends,
)
from runtime.transport.shared_memory.segments import Extent, SharedMemory
from runtime.transport.shared_memory.wire_format import FILLED, LONGEST, ReceiveDescriptor

BOUNCE_BYTES = 64 * 1024
"""The least memory for a bounce buffer: small messages of many sizes can share it."""

MOST_SPARE_BYTES = 4 * 2**20
"""The most memory that is kept from one bounce buffer to the next."""


@dataclass(slots=True)
class Receiving(LocalTransfer):
    """A receive that has been posted."""

    end: "ReceivingEnd"
    number: int
    views: Sequence[torch.Tensor]
    bounce_buffer: torch.Tensor | None
    """Where the message comes first, if `views` are not in shared memory."""

    def wait(self) -> None:
        """Wait for it; see `LocalTransfer`."""
        self.end.finish(self)


class ReceivingEnd(ChannelEnd):
    """The end of a channel that messages come out of."""

    def __init__(
        self,
        connection: socket.socket,
        timeout: timedelta,
        progress: UnfinishedSends,
        memory: SharedMemory,
    ) -> None:
        """Receive over `connection`, best into what `memory` has allocated."""
        super().__init__(connection, timeout, progress)
        self._memory = memory
        self._posted = self._filled = 0
        self._told: set[int] = set()
        self._released = memory.released
        self._spare: torch.Tensor | None = None

    def begin(self, views: Sequence[torch.Tensor], *, joined: bool = False) -> Receiving:
        """Post a receive into uint8 tensors; see `Transport.post_receive`.

        Raises:
            LocalChannelError: the other end is gone.
        """
        buffer, sizes = None, [view.numel() for view in views]
        extent = self._memory.extent(views)
        if extent is None and views:
            buffer, extent = self._bounce_buffer(sizes)
        try:
            self._post(extent, sizes, joined)
        except OSError as error:
            raise self.failed(error) from error
        self._posted += 1
        return Receiving(self, self._posted, views, buffer)

    def finish(self, receiving: Receiving) -> None:
        """Wait for a message that was posted before; see `Receiving.wait`."""
        try:
            while self._filled < receiving.number:
                if self.progress.unfinished:
                    self.progress.until_readable(self.connection, self.timeout)
                if not self.connection.recv(len(FILLED)):
                    raise self.failed()
                self._filled += 1
        except OSError as error:
            raise self.failed(error) from error
        if (buffer := receiving.bounce_buffer) is not None:
            offset = 0
            for view in receiving.views:
                view.copy_(buffer[offset : offset + view.numel()])
                offset += view.numel()
            self._spare = buffer if buffer.numel() <= MOST_SPARE_BYTES else None

    def _bounce_buffer(self, sizes: Sequence[int]) -> tuple[torch.Tensor, Extent]:
        """Shared memory with room for tensors of `sizes` bytes, kept for the next message."""
        *offsets, nbytes = accumulate(sizes, initial=0)
        buffer, self._spare = self._spare, None
        if buffer is None or buffer.numel() < nbytes:
            buffer = self._memory.allocate(max(nbytes, BOUNCE_BYTES))
        whole = self._memory.extent([buffer])
        assert whole is not None
        return buffer, Extent(whole.segment, tuple(offsets))

    def _post(self, extent: Extent | None, sizes: Sequence[int], joined: bool) -> None:
        """Tell where the next message is to come, and which segments have gone since the last."""
        gone: set[int] = set()
        if self._memory.released != self._released:
            self._released = self._memory.released
            gone = self._told - self._memory.numbers()
            self._told -= gone
        number, offsets = (0, ()) if extent is None else (extent.segment.number, extent.offsets)
        data = ReceiveDescriptor(
            number, list(zip(offsets, sizes, strict=True)), list(gone), joined
        ).packed()
        if len(data) > LONGEST:
            raise LocalChannelError(f"a message of {len(sizes)} tensors is too long for a channel")
        if extent is None or number in self._told:
            self.connection.send(data)
        else:
            socket.send_fds(self.connection, [data], [extent.segment.descriptor])
            self._told.add(number)
