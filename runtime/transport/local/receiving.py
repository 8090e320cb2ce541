"""The receiving end of a local channel."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import accumulate

import torch

from runtime.transport.local.end import End, LocalChannelError, Progress
from runtime.transport.local.memory import Extent, SharedMemory
from runtime.transport.local.word import FILLED, LONGEST, Posting

DETOUR_BYTES = 64 * 1024
"""The least memory for a detour: small messages of many sizes can share it."""

MOST_SPARE_BYTES = 4 * 2**20
"""The most memory that is kept from one detour to the next."""


@dataclass(slots=True)
class Receiving:
    """A receive that has been posted."""

    end: "ReceivingEnd"
    number: int
    views: Sequence[torch.Tensor]
    detour: torch.Tensor | None
    """Where the message comes first, if `views` are not in shared memory."""

    def wait(self) -> None:
        """Wait for the message.

        Raises:
            LocalChannelError: it will not come.
        """
        self.end.finish(self)


class ReceivingEnd(End):
    """The end of a channel that messages come out of."""

    def __init__(
        self,
        connection: socket.socket,
        timeout: timedelta,
        progress: Progress,
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
        detour, sizes = None, [view.numel() for view in views]
        extent = self._memory.extent(views)
        if extent is None and views:
            detour, extent = self._detour(sizes)
        try:
            self._post(extent, sizes, joined)
        except OSError as error:
            raise self.failed(error) from error
        self._posted += 1
        return Receiving(self, self._posted, views, detour)

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
        if (detour := receiving.detour) is not None:
            offset = 0
            for view in receiving.views:
                view.copy_(detour[offset : offset + view.numel()])
                offset += view.numel()
            self._spare = detour if detour.numel() <= MOST_SPARE_BYTES else None

    def _detour(self, sizes: Sequence[int]) -> tuple[torch.Tensor, Extent]:
        """Shared memory with room for tensors of `sizes` bytes, kept for the next detour."""
        *offsets, nbytes = accumulate(sizes, initial=0)
        detour, self._spare = self._spare, None
        if detour is None or detour.numel() < nbytes:
            detour = self._memory.allocate(max(nbytes, DETOUR_BYTES))
        whole = self._memory.extent([detour])
        assert whole is not None
        return detour, Extent(whole.segment, tuple(offsets))

    def _post(self, extent: Extent | None, sizes: Sequence[int], joined: bool) -> None:
        """Say where the next message is to come, and which segments have gone since the last."""
        gone: set[int] = set()
        if self._memory.released != self._released:
            self._released = self._memory.released
            gone = self._told - self._memory.numbers()
            self._told -= gone
        number, offsets = (0, ()) if extent is None else (extent.segment.number, extent.offsets)
        places = list(zip(offsets, sizes, strict=True))
        word = Posting(number, places, list(gone), joined).packed()
        if len(word) > LONGEST:
            raise LocalChannelError(f"a message of {len(sizes)} tensors is too long for a channel")
        if extent is None or number in self._told:
            self.connection.send(word)
        else:
            socket.send_fds(self.connection, [word], [extent.segment.descriptor])
            self._told.add(number)
