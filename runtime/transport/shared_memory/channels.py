"""The local channels of one stage: those to and from stages on its own host."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import TypeVar

from runtime.transport.protocol import Channel
from runtime.transport.shared_memory.coordinator import Star
from runtime.transport.shared_memory.endpoint import End, Progress
from runtime.transport.shared_memory.receiver import ReceivingEnd
from runtime.transport.shared_memory.segments import SharedMemory
from runtime.transport.shared_memory.sender import SendingEnd
from runtime.transport.shared_memory.sockets import Offer, dial, host_key
from schemas import Direction

Exchange = Callable[[bytes], bytes]
"""Gives the process at the other end some bytes, and takes as many from it."""

AnyEnd = TypeVar("AnyEnd", bound=End)

_YES, _NO = b"yes", b"no"


class LocalChannels:
    """Opens and keeps the ends of one stage; there are none to stages on other hosts."""

    def __init__(self, *, active: bool) -> None:
        """Begin without any; unless `active`, there will be none."""
        self.memory = SharedMemory()
        self.progress = Progress()
        self.ends: dict[Channel, ReceivingEnd | SendingEnd] = {}
        """For activations."""
        self.star: Star | None = None
        """For what all stages agree on, if all of them are on this host."""
        self._all: list[End] = []
        self._key = host_key() if active else ""  # the other end is told so
        self._shut = False

    def open(self, direction: Direction, peer: int, timeout: timedelta, exchange: Exchange) -> None:
        """Make this end of a channel, if the stage at the other end is on this host.

        Args:
            direction: Of the transfers, seen from this stage.
            peer: The stage at the other end, which has to open its end at the same time.
            timeout: How long a wait may take.
            exchange: With that stage; called at least once.
        """
        sends = direction is Direction.SEND
        end = (self._sending_end if sends else self._receiving_end)(timeout, exchange)
        if end is not None:
            self.ends[direction, peer] = end

    def open_star(
        self, rank: int, size: int, timeout: timedelta, exchange: Callable[[int, bytes], bytes]
    ) -> None:
        """Make the ends for agreements; all stages have to, at the same time.

        Args:
            rank: This stage.
            size: The number of stages.
            timeout: How long a wait may take.
            exchange: With the stage that is named.
        """
        hub = size - 1
        peers = range(hub) if rank == hub else range(hub, size)
        receiving: dict[int, ReceivingEnd] = {}
        sending: dict[int, SendingEnd] = {}
        for peer in peers:
            for sends in (rank != hub, rank == hub):  # first the channel to the hub
                with_peer = partial(exchange, peer)
                if sends and (out := self._sending_end(timeout, with_peer)) is not None:
                    sending[peer] = out
                elif not sends and (into := self._receiving_end(timeout, with_peer)) is not None:
                    receiving[peer] = into
        complete = len(sending) == len(receiving) == len(peers)
        for peer in peers:
            heard = exchange(peer, _YES if complete else _NO)
            complete = complete and (rank == hub or heard == _YES)
        if complete:
            self.star = Star(rank, size, receiving, sending)

    def leave(self) -> None:
        """Before a wait elsewhere, in which this thread does not look after small sends."""
        self.progress.hand_over()

    def abandon(self) -> None:
        """End every wait, from any thread."""
        self._shut = True
        for end in list(self._all):
            end.shut()

    def close(self) -> None:
        """Give back all that the system gave."""
        self.abandon()
        self.clear()
        self.memory.close()

    def clear(self) -> None:
        """Forget the channels of an epoch that is over."""
        for end in self._all:
            end.close()
        self._all.clear()
        self.ends.clear()
        self.star = None
        self.progress.unfinished.clear()
        self._shut = False

    def _sending_end(self, timeout: timedelta, exchange: Exchange) -> SendingEnd | None:
        key, _, name = exchange(self._key.encode()).decode().partition("/")
        if not self._key or key != self._key:
            return None
        connection = dial(name)
        exchange(_NO if connection is None else _YES)
        if connection is None:
            return None
        return self._kept(SendingEnd(connection, timeout, self.progress))

    def _receiving_end(self, timeout: timedelta, exchange: Exchange) -> ReceivingEnd | None:
        if not self._key:
            exchange(b"")
            return None
        with Offer() as offer:
            if exchange(f"{self._key}/{offer.name}".encode()).decode() != self._key:
                return None
            connection = offer.accept() if exchange(b"") == _YES else None
        if connection is None:
            return None
        return self._kept(ReceivingEnd(connection, timeout, self.progress, self.memory))

    def _kept(self, end: AnyEnd) -> AnyEnd:
        self._all.append(end)
        if self._shut:
            end.shut()
        return end
