"""The local channels of one rank: those to and from ranks on its own host."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

from runtime.transport.protocol import PeerChannel
from runtime.transport.shared_memory.coordinator import LocalCollectives
from runtime.transport.shared_memory.endpoint import ChannelEnd, UnfinishedSends
from runtime.transport.shared_memory.receiver import ReceivingEnd
from runtime.transport.shared_memory.segments import SharedMemory
from runtime.transport.shared_memory.sender import SendingEnd
from runtime.transport.shared_memory.sockets import Listener, connect, host_key
from schemas import Direction

Exchange = Callable[[bytes], bytes]
"""Gives the process at the other end some bytes, and takes as many from it."""

_YES, _NO = b"yes", b"no"


class LocalChannels:
    """Opens and keeps the ends of one rank; there are none to ranks on other hosts."""

    def __init__(self, *, active: bool, directory: Path | None = None) -> None:
        """Begin without any.

        Args:
            active: Whether there will be some.
            directory: Where sockets are; default: in the abstract namespace.
        """
        self._directory = directory
        self.memory = SharedMemory()
        self.progress = UnfinishedSends()
        self.ends: dict[PeerChannel, ChannelEnd] = {}
        """For activations."""
        self.collectives: LocalCollectives | None = None
        """For what all ranks agree on, if all of them are on this host."""
        self._all: list[ChannelEnd] = []
        self._key = host_key() if active else ""  # the other end is told so
        self._shut = False

    def open(self, direction: Direction, peer: int, timeout: timedelta, exchange: Exchange) -> None:
        """Make this end of a channel, if the rank at the other end is on this host.

        Args:
            direction: Of the transfers, seen from this rank.
            peer: The rank at the other end, which has to open its end at the same time.
            timeout: How long a wait may take.
            exchange: With that rank; called at least once.
        """
        sends = direction is Direction.SEND
        end = (self._sending_end if sends else self._receiving_end)(timeout, exchange)
        if end is not None:
            self.ends[direction, peer] = end

    def open_collectives(
        self, rank: int, size: int, timeout: timedelta, exchange: Callable[[int, bytes], bytes]
    ) -> None:
        """Make the ends for collective operations; all ranks have to, at the same time.

        Args:
            rank: This rank.
            size: The number of ranks.
            timeout: How long a wait may take.
            exchange: With the rank that is named.
        """
        coordinator = size - 1
        peers = range(coordinator) if rank == coordinator else range(coordinator, size)
        receiving: dict[int, ChannelEnd] = {}
        sending: dict[int, ChannelEnd] = {}
        for peer in peers:
            # First the channel to the coordinator.
            for sends in (rank != coordinator, rank == coordinator):
                with_peer = partial(exchange, peer)
                if sends and (out := self._sending_end(timeout, with_peer)) is not None:
                    sending[peer] = out
                elif not sends and (into := self._receiving_end(timeout, with_peer)) is not None:
                    receiving[peer] = into
        complete = len(sending) == len(receiving) == len(peers)
        for peer in peers:
            answer = exchange(peer, _YES if complete else _NO)
            complete = complete and (rank == coordinator or answer == _YES)
        if complete:
            self.collectives = LocalCollectives(rank, size, receiving, sending)

    def leave(self) -> None:
        """Before a wait elsewhere, in which this thread does not look after small sends."""
        self.progress.delegate()

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
        """Forget the channels of a generation that is over."""
        for end in self._all:
            end.close()
        self._all.clear()
        self.ends.clear()
        self.collectives = None
        self.progress.unfinished.clear()
        self._shut = False

    def _sending_end(self, timeout: timedelta, exchange: Exchange) -> ChannelEnd | None:
        key, _, name = exchange(self._key.encode()).decode().partition("/")
        if not self._key or key != self._key:
            return None
        connection = connect(name)
        exchange(_NO if connection is None else _YES)
        if connection is None:
            return None
        return self._kept(SendingEnd(connection, timeout, self.progress))

    def _receiving_end(self, timeout: timedelta, exchange: Exchange) -> ChannelEnd | None:
        if not self._key:
            exchange(b"")
            return None
        with Listener(self._directory) as listener:
            if exchange(f"{self._key}/{listener.name}".encode()).decode() != self._key:
                return None
            connection = listener.accept() if exchange(b"") == _YES else None
        if connection is None:
            return None
        return self._kept(ReceivingEnd(connection, timeout, self.progress, self.memory))

    def _kept(self, end: ChannelEnd) -> ChannelEnd:
        self._all.append(end)
        if self._shut:
            end.shut()
        return end
