"""Transfers of activations: both ends know the signature of each before it starts.

The first activation of a new *kind* brings its signature along, in a *header* (see
`runtime.execution.headers`). The kind of a micro-batch is what its inputs look like on the first
stage, which all ranks know beforehand (see `runtime.data.stream`). Further activations of the kind
need no header, if their signature follows from the kind alone. It does not

- where a layer computes shapes from values (it drops padding, say): the operators of torch that do
  so are noticed, see `runtime.tensors.data_dependent_shapes`;
- where an activation holds plain values beside tensors, or memory that is not torch's;
- where that is so on the stage before, or the caller says so (`dynamic_shapes`).

Then each activation brings its header. Nobody runs a layer in order to learn a shape.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from runtime.execution.buffers import BufferPool
from runtime.execution.headers import FirstMessages, Header, memory_beside_header
from runtime.tensors.activation import ActivationError, Signature, described, require_on, special
from runtime.tensors.allocator import keep_freed_activations
from runtime.tensors.data_dependent_shapes import noticing
from runtime.tensors.structure import StructureError, holds_values, take_apart
from runtime.transport.control_messages import ROOM, unpacked
from runtime.transport.protocol import PeerChannel, Pending, Transport
from schemas import Direction

KINDS = 1024
"""Kinds that one end of a channel remembers; the other end forgets the same ones."""

WATCHED = 8
"""Kinds that are watched when they come for the first time."""


LATEST = 16
"""Micro-batches whose signatures can be asked for: more than there are in flight."""


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
    def channel(self) -> PeerChannel:
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
        self._stream, self._dynamic = stream, dynamic_shapes
        self._first = FirstMessages(transport, buffers)
        self._known: dict[PeerChannel, OrderedDict[str, Signature]] = {}
        """What is settled, by channel and kind."""
        self._latest: dict[Direction, OrderedDict[int, Signature]] = {
            direction: OrderedDict() for direction in Direction
        }
        self._put_off_from: dict[int, deque[_Prepared]] = {}
        """Receives that have not begun, by peer: nobody knows the first one's signature yet."""
        self._met: OrderedDict[str, None] = OrderedDict()
        """Kinds that have been forwarded."""
        self._watched = 0
        self._by_kind: set[int] = set()
        """Micro-batches, not sent yet, whose outputs did not take their shapes from values."""

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
        """What the layers return; whether shapes come from values is noticed where it matters.

        Each operator takes longer while it is watched, and kinds that come once need a header in
        any case. So the first few kinds are watched at once, and others when they come again.
        """
        kind = self._stream.kind(micro_batch)
        if self._dynamic or self._settled(Direction.SEND, kind):
            return module(inputs)
        met = kind in self._met
        self._met[kind] = None
        if len(self._met) > KINDS:
            self._met.popitem(last=False)
        if not (met or self._watched < WATCHED) or not self._settled(Direction.RECV, kind):
            return module(inputs)
        self._watched += 1
        with noticing() as noticed:
            output = module(inputs)
        if not noticed.by_value and not self._is_foreign(output):
            self._by_kind.add(micro_batch)
        return output

    def _settled(self, direction: Direction, kind: str) -> bool:
        """Whether activations of a kind need no headers, on any channel of a direction."""
        ways = [known for way, known in self._known.items() if way[0] is direction]
        if direction is Direction.SEND and not ways:
            return False
        return all(kind in known for known in ways)

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
            settles = self._settles(transfer, signature)
            self._by_kind.discard(micro_batch)
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
        known = self._known.setdefault(transfer.channel, OrderedDict())
        return known.get(self._stream.kind(transfer.micro_batch))

    def _described(self, transfer: Transfer) -> tuple[Signature, list[torch.Tensor]]:
        try:
            signature, tensors = described(transfer.value)
            require_on(self._transport.device, tensors)
        except ActivationError as error:
            raise ActivationError(
                f"micro-batch {transfer.micro_batch} cannot go to stage {transfer.peer}: {error}"
            ) from error
        return signature, tensors

    def _settles(self, transfer: Transfer, signature: Signature) -> bool:
        """Whether the signature that is sent follows from the kind of the micro-batch."""
        return not (
            self._dynamic
            or transfer.micro_batch not in self._by_kind
            or holds_values(transfer.value)
            or any(block.lead for block in signature.blocks)  # a place that may be another one
        )

    def _is_foreign(self, output: Any) -> bool:
        """Whether an output is in memory that is not torch's, at whatever address."""
        try:
            tensors = take_apart(output)[1]
        except StructureError:
            return True
        storages = [t.untyped_storage() for t in tensors if not special(t)]
        ours = self._buffers.memory.ours
        return any(not (s.resizable() or ours(s.data_ptr())) for s in storages)

    def _know(self, transfer: Transfer, header: Header) -> None:
        """From here on, both ends know what a header says."""
        self._first.passed(transfer.channel, header.signature)
        if header.settled:
            known = self._known[transfer.channel]
            known[self._stream.kind(transfer.micro_batch)] = header.signature
            if len(known) > KINDS:
                known.popitem(last=False)

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
        if len(latest) > LATEST:
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
