"""Transfers of activations: both ends know the signature of each before it starts.

The first activation of a new *kind* of micro-batch brings its signature along, in a *header*
(`runtime.headers`). Further activations of the kind need none, where their signature follows from
the kind alone (`runtime.kinds`); else each activation brings its header.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from runtime.activation import ActivationError, Signature, described, require_on
from runtime.allocator import keep_freed_activations
from runtime.buffers import BufferPool
from runtime.headers import FirstMessages, Header, memory_beside_header
from runtime.kinds import Kinds
from runtime.messages import ROOM, unpacked
from runtime.stream import UNDER_WAY
from runtime.transport.protocol import Channel, Pending, Transport
from schemas import Direction


class Stream(Protocol):
    """What is known of the micro-batches of a run."""

    def kind(self, micro_batch: int) -> str:
        """What its inputs look like on the first stage."""

    def sent(self, micro_batch: int) -> None:
        """Its activation has been posted."""

    def arrived(self, micro_batch: int) -> None:
        """Its activation has arrived."""


@dataclass
class Transfer:
    """One end of a transfer, from the decision to begin it to its wait."""

    direction: Direction
    micro_batch: int
    peer: int
    value: Any = None
    """The activation: given to be sent, or there after the wait."""
    arriving: tuple[Signature, list[torch.Tensor]] | None = None
    """What is received, and where."""
    pending: list[Pending] = field(default_factory=list)
    """What is to be waited for."""

    @property
    def key(self) -> tuple[Direction, int, int]:
        """What tells it from others that are under way."""
        return self.direction, self.micro_batch, self.peer

    @property
    def channel(self) -> Channel:
        """What it goes through."""
        return self.direction, self.peer


@dataclass
class _Prepared:
    transfer: Transfer
    signature: Signature | None
    """What is sent, or is known to come."""
    tensors: list[torch.Tensor] = field(default_factory=list)
    """Those of the activation that is sent."""
    first: list[torch.Tensor] = field(default_factory=list)
    """The message with the header, or the place for it; empty: there is none."""
    rest: list[torch.Tensor] = field(default_factory=list)
    """Of a long header."""
    room: int = -1
    """For the activation beside the header; see `FirstMessages.room`."""
    settles: bool = False
    """Whether the header says that this is the signature of all activations of this kind."""

    @property
    def beside_header(self) -> bool:
        """Whether the activation is in the message with the header."""
        return self.signature is not None and self.signature.extent <= self.room


class Transfers:
    """The transfers of one stage in one run."""

    def __init__(
        self,
        transport: Transport,
        buffers: BufferPool,
        stream: Stream,
        *,
        dynamic_shapes: bool = False,
    ) -> None:
        """Begin without any signature known.

        Args:
            transport: Connection to the other stages.
            buffers: Where received activations live.
            stream: Knows of each micro-batch what all stages know.
            dynamic_shapes: Whether every activation brings its header.
        """
        self._transport, self._buffers = transport, buffers
        self._stream, self._first = stream, FirstMessages(transport, buffers)
        self._kinds = Kinds(buffers.memory, dynamic_shapes=dynamic_shapes)
        self._latest: dict[Direction, OrderedDict[int, Signature]] = {
            direction: OrderedDict() for direction in Direction
        }
        self._put_off_from: dict[int, deque[_Prepared]] = {}
        """Receives that have not begun, by peer: nobody knows the first one's signature yet."""

    def begin(self, transfers: Sequence[Transfer]) -> None:
        """Begin transfers: of several, which are one group, none waits for another.

        Raises:
            ActivationError: an activation cannot travel, or is not what the other end expects.
        """
        if len(transfers) == 1 and transfers[0].direction is Direction.RECV:
            self._put_off(transfers[0])
            return
        if len(transfers) > 1:
            self.receive_headers()
        prepared = [self._prepared(transfer) for transfer in transfers]
        with_header = [p for p in prepared if p.first]
        with self._group(with_header):
            for p in with_header:
                self._post_first(p)
        for p in prepared:
            for message in p.rest:
                self._post(p.transfer, [message])
        for p in prepared:
            if p.signature is None:
                self._read_header(p)
            elif p.first:  # not before: the other end knows it no sooner
                self._know(p.transfer, Header(p.signature, p.settles))
        with self._group([p for p in prepared if not p.beside_header]):
            for p in prepared:
                self._move(p)
        for transfer in transfers:
            if transfer.direction is Direction.SEND:
                self._stream.sent(transfer.micro_batch)

    def _put_off(self, transfer: Transfer) -> None:
        """Begin to receive, as soon as the signatures of all that comes before are known."""
        waiting = self._put_off_from.setdefault(transfer.peer, deque())
        waiting.append(_Prepared(transfer, None))
        if len(waiting) == 1:
            self._go_on(waiting)

    def _go_on(self, waiting: deque[_Prepared]) -> None:
        """Begin the receives whose signatures are known, and then the next one with a header."""
        while waiting:
            first = waiting[0]
            # Not earlier: the other end, too, knows now what the ones before have settled.
            first.signature = first.signature or self._settled_signature(first.transfer)
            if first.signature is None:
                self._expect_header(first)
                self._post_first(first)
                return
            self._move(waiting.popleft())

    def receive_headers(self, transfer: Transfer | None = None) -> None:
        """Receive headers until a transfer that was put off has begun; by default all of them."""
        for peer, waiting in self._put_off_from.items():
            while waiting and (transfer is None or transfer.peer == peer):
                if transfer is not None and transfer.arriving is not None:
                    return
                self._read_header(waiting[0])
                self._go_on(waiting)

    def finish(self, transfer: Transfer) -> Any:
        """Wait for a transfer; the activation, where it was received."""
        if transfer.direction is Direction.RECV and transfer.arriving is None:
            self.receive_headers(transfer)
        for pending in transfer.pending:
            self._transport.wait(pending)
        if transfer.direction is Direction.SEND:
            self._stream.arrived(transfer.micro_batch)
        if transfer.arriving is not None:
            signature, memory = transfer.arriving
            transfer.arriving = None
            transfer.value = signature.activation(memory)  # not before it is all there
        return transfer.value

    def forward(self, micro_batch: int, module: nn.Module, inputs: Any) -> Any:
        """What the layers return, see `Kinds.forward`."""
        return self._kinds.forward(micro_batch, self._stream.kind(micro_batch), module, inputs)

    def input(self, micro_batch: int) -> Signature:
        """The signature of one of the latest activations that came."""
        return self._latest[Direction.RECV][micro_batch]

    def output(self, micro_batch: int) -> Signature:
        """The signature of one of the latest activations that were sent."""
        return self._latest[Direction.SEND][micro_batch]

    def _prepared(self, transfer: Transfer) -> _Prepared:
        micro_batch, peer = transfer.micro_batch, transfer.peer
        expected = self._settled_signature(transfer)
        if transfer.direction is Direction.RECV:
            prepared = _Prepared(transfer, expected)
            if expected is None:
                self._expect_header(prepared)
            return prepared
        signature, tensors = self._described(transfer)
        if expected is None:
            settles = self._kinds.settles(micro_batch, transfer.value, signature)
            header, *rest = self._first.of(Header(signature, settles))
            room = self._first.room(transfer.channel)
            prepared = _Prepared(transfer, signature, tensors, [header], rest, room, settles)
            if prepared.beside_header:
                memory = signature.memory_of(tensors)
                prepared.first = self._first.joined(header, signature, memory)
            return prepared
        if signature != expected:
            how = "" if str(signature) != str(expected) else " (with another layout in memory)"
            raise ActivationError(
                f"micro-batch {micro_batch} leaves the stage as {signature}{how}, but {expected} "
                f"was agreed on with stage {peer}: what its layers return depends on more than "
                "what their inputs look like, needed dynamic_shapes=True"
            )
        return _Prepared(transfer, expected, tensors)

    def _settled_signature(self, transfer: Transfer) -> Signature | None:
        return self._kinds.settled(transfer.channel, self._stream.kind(transfer.micro_batch))

    def _described(self, transfer: Transfer) -> tuple[Signature, list[torch.Tensor]]:
        try:
            signature, tensors = described(transfer.value)
            require_on(self._transport.device, tensors)
        except ActivationError as error:
            raise ActivationError(
                f"micro-batch {transfer.micro_batch} cannot go to stage {transfer.peer}: {error}"
            ) from error
        return signature, tensors

    def _know(self, transfer: Transfer, header: Header) -> None:
        """From here on, both ends know what a header says."""
        self._first.passed(transfer.channel, header.signature)
        if header.settled:
            kind = self._stream.kind(transfer.micro_batch)
            self._kinds.settle(transfer.channel, kind, header.signature)

    def _expect_header(self, prepared: _Prepared) -> None:
        channel = prepared.transfer.channel
        prepared.room, prepared.first = self._first.room(channel), [self._first.place(channel)]

    def _read_header(self, prepared: _Prepared) -> None:
        """Wait for the header of an activation that comes."""
        transfer, (place,) = prepared.transfer, prepared.first
        self._transport.wait(transfer.pending.pop())
        header: Header = unpacked(place[:ROOM], self._transport, transfer.peer)
        prepared.signature = header.signature
        self._know(transfer, header)

    def _move(self, prepared: _Prepared) -> None:
        """Post the activation, unless it is in the message with the header."""
        transfer, signature = prepared.transfer, prepared.signature
        assert signature is not None
        if transfer.direction is Direction.SEND:
            memory = [] if prepared.beside_header else signature.memory_of(prepared.tensors)
        else:
            memory = (
                memory_beside_header(prepared.first[0], signature)
                if prepared.beside_header
                else self._buffers.receive_memory(signature)
            )
            transfer.arriving = signature, memory
        if not prepared.beside_header:
            self._post(transfer, memory)
        latest = self._latest[transfer.direction]
        latest[transfer.micro_batch] = signature
        if len(latest) > UNDER_WAY:
            latest.popitem(last=False)
        if prepared.first:
            keep_freed_activations(signature.nbytes, self._transport.device)

    def _post_first(self, prepared: _Prepared) -> None:
        joined = self._transport.joins(*prepared.transfer.channel)
        self._post(prepared.transfer, prepared.first, joined=joined)

    def _post(
        self, transfer: Transfer, memory: Sequence[torch.Tensor], *, joined: bool = False
    ) -> None:
        sends = transfer.direction is Direction.SEND
        post = self._transport.post_send if sends else self._transport.post_receive
        transfer.pending.append(post(memory, transfer.peer, joined=joined))

    @contextmanager
    def _group(self, members: Sequence[_Prepared]) -> Iterator[None]:
        if len(members) > 1:
            self._transport.start_group()
        yield
        if len(members) > 1:
            self._transport.end_group()
