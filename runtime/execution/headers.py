"""Headers: what goes ahead of an activation whose signature the other end cannot know.

A header is a control message. Where a channel takes joined messages, the activation is in the same
message if there is room for it, behind the header and aligned as it has to be::

    header, ROOM bytes | gap | block 0 | gap | block 1          in a place of ROOM + room bytes

So the receive of an activation can be posted before anybody knows how large it will be, and its
message crosses a forward like any other. Elsewhere, and where there is no room for it, the
activation follows in a message of its own, whose receive is posted when the header has been read.

Both ends know the room without a word: it is what the largest activation with a header needed so
far on this channel, in this run or one before it over the same connections, and a quarter more:
activations that grow step by step seldom have none.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch

from runtime.execution.buffers import BufferPool
from runtime.tensors.activation import Signature
from runtime.transport.control_messages import ROOM, packed
from runtime.transport.protocol import PeerChannel, Transport

Rooms: TypeAlias = defaultdict[PeerChannel, int]
"""Bytes for an activation beside its header, by channel; 0: none has needed one."""


class Header(NamedTuple):
    """What goes ahead of an activation that the receiver cannot know."""

    signature: Signature
    settled: bool
    """Whether all activations of this kind have this signature."""


class FirstMessages:
    """Makes the messages with headers on one rank, and the places for them."""

    def __init__(self, transport: Transport, buffers: BufferPool, rooms: Rooms) -> None:
        """Begin with the room that there is on each channel.

        Args:
            transport: Connection to the other ranks.
            buffers: Where received activations live.
            rooms: What runs before, over the same connections, have needed; it is kept up to date.
        """
        self._transport, self._buffers = transport, buffers
        self._room = rooms

    def room(self, channel: PeerChannel) -> int:
        """Bytes that an activation may have beside its header; -1: none can be there."""
        return self._room[channel] if self._transport.joins(*channel) else -1

    def passed(self, channel: PeerChannel, signature: Signature) -> None:
        """A header has been sent, or has come: from now on there is room for such an activation."""
        self._room[channel] = max(self._room[channel], signature.extent * 5 // 4)

    def place(self, channel: PeerChannel) -> torch.Tensor:
        """Where a message with a header is received, uint8."""
        nbytes = ROOM + self.room(channel)
        if nbytes > ROOM:
            return self._buffers.memory.take(nbytes)[:nbytes]
        return self._buffers.small.take(ROOM, 0, self._transport.device)

    def of(self, header: Header) -> list[torch.Tensor]:
        """The control messages that a header is: the first of `ROOM` bytes, and the rest of it."""
        return packed(header, self._transport.device, self._buffers.small.take)

    def joined(
        self, header: torch.Tensor, signature: Signature, memory: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        """A first message of a header with the activation whose blocks are `memory`."""
        parts, end = [header], 0
        for offset, block in zip(signature.offsets, memory, strict=True):
            gap = self._buffers.small.take(offset - end, 0, self._transport.device)
            parts += [gap.zero_(), block]
            end = offset + block.numel()
        return parts


def memory_beside_header(place: torch.Tensor, signature: Signature) -> list[torch.Tensor]:
    """The blocks of an activation that came in the same message as its header."""
    return signature.memory_in(place[ROOM:])
