"""Transfers of activations: both ends know the signature of each before it starts.

What a rank sends to another one and what that receives are in one order, whichever stages they are
for. So a receive whose size is not known yet puts off those behind it, until its header has been
read: at its wait, at the latest. Then a send is complete only at the wait of its receive, and no
longer when that is posted, as plans are checked for.

Along a chain of ranks that does no harm: the last rank waits for no other one, hence the one before
it gets on, and so on. Where channels lead around in a circle, the wait for a send is put off until
that of as many sends later as a stage has buffers: a plan whose receive `m` is posted needs the
buffer of `m - num_buffers`, so that one has been waited for, whatever this rank does. Such channels
need a queue each (`channels="per-edge"` on NCCL).

Windows of the stream are parts of transfers, see `runtime.data.stream`. What is sent through a
channel is in one order, header, activation, window, whatever groups transfers are posted in.
"""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from runtime.data.stream import Stream, Window
from runtime.execution.buffers import BufferPool
from runtime.execution.headers import FirstMessages, Header, Rooms, memory_beside_header
from runtime.execution.signatures import Signatures
from runtime.execution.transfer import Prepared, Transfer
from runtime.tensors.activation import ActivationError, Signature, described
from runtime.tensors.allocator import keep_freed_activations
from runtime.tensors.on_device import require_on
from runtime.transport.control_messages import ROOM, WINDOW_ROOM, packed_in, unpacked, unpacked_from
from runtime.transport.protocol import Pending, Transport
from schemas import Direction
from schemas.plans import in_circle

LATEST = 16
"""Transfers whose signatures can be asked for: more than there are in flight."""


class Transfers:
    """The transfers of one rank in one run."""

    def __init__(
        self,
        transport: Transport,
        buffers: BufferPool,
        stream: Stream,
        placement: Sequence[int],
        *,
        num_buffers: int = 2,
        dynamic_shapes: bool = False,
        rooms: Rooms | None = None,
    ) -> None:
        """Begin without any signature known.

        Args:
            transport: Connection to the other ranks.
            buffers: Where received activations live.
            stream: Knows of each micro-batch what all ranks know.
            placement: The rank of each stage.
            num_buffers: Of each stage.
            dynamic_shapes: Whether every activation brings its header.
            rooms: What is known from runs before, see `FirstMessages`.
        """
        self._transport, self._buffers = transport, buffers
        self._stream, self._placement = stream, placement
        copied_at = (s for s in range(len(placement) - 1) if placement[s] == placement[s + 1])
        self._signatures = Signatures(
            stream.kind,
            buffers.memory.ours,
            copied_at=tuple(copied_at),
            dynamic_shapes=dynamic_shapes,
        )
        self._first = FirstMessages(
            transport, buffers, defaultdict(int) if rooms is None else rooms
        )
        self._latest: OrderedDict[tuple[Direction, int, int], Signature] = OrderedDict()
        self._put_off_from: dict[int, deque[Prepared]] = {}
        """Receives that have not begun, by rank: nobody knows the first one's signature yet."""
        self._windows: deque[tuple[torch.Tensor, Pending]] = deque()
        """Windows that are being received."""
        self._num_buffers, self._in_circle = num_buffers, in_circle(placement)
        self._sent: dict[int, deque[Transfer]] = {}
        """Sends whose waits are put off, by stage."""
        stream.receive = self._receive_window

    def begin(self, transfers: Sequence[Transfer]) -> None:
        """Begin transfers: of several, which are one group, none waits for another.

        Raises:
            ActivationError: an activation cannot travel, or is not what the other end expects.
        """
        if len(transfers) > 1:
            self._transport.start_group()
        for transfer in transfers:
            if transfer.direction is Direction.RECV:
                self._put_off(transfer)
            else:
                self._send(transfer)
        if len(transfers) > 1:
            self._transport.end_group()

    def finish(self, transfer: Transfer) -> Any:
        """Wait for a transfer; the activation, where it was received."""
        if transfer.direction is Direction.RECV:
            waiting = self._put_off_from[self._placement[transfer.peer]]
            while transfer.arriving is None:
                self._wait_first(waiting)
        elif self._in_circle:
            sent = self._sent.setdefault(transfer.stage, deque())
            sent.append(transfer)
            self._wait_for_sends(sent, self._num_buffers)
            return None
        for pending in transfer.pending:
            self._transport.wait(pending)
        if transfer.arriving is not None:
            signature, memory = transfer.arriving
            transfer.arriving = None
            transfer.value = signature.activation(memory)  # not before it is all there
        return transfer.value

    def finish_sends(self) -> None:
        """Wait for the sends whose waits were put off."""
        for sent in self._sent.values():
            self._wait_for_sends(sent, 0)

    def forward(self, stage: int, micro_batch: int, layers: nn.Module, inputs: Any) -> Any:
        """What the layers of a stage return."""
        return self._signatures.forward(stage, micro_batch, layers, inputs)

    def signature(self, direction: Direction, stage: int, micro_batch: int) -> Signature:
        """That of one of the latest activations that came for a stage, or were sent by it."""
        return self._latest[direction, stage, micro_batch]

    def _send(self, transfer: Transfer) -> None:
        """Send an activation, behind its header if it needs one, and a window behind it."""
        prepared = self._prepared(transfer)
        if prepared.first:
            assert prepared.signature is not None
            self._post_first(prepared)
            for message in prepared.rest:
                self._post(prepared, [message])
            # Not before: the other end knows it no sooner.
            self._know(prepared, Header(prepared.signature, prepared.settles))
        self._move(prepared)
        self._send_window(prepared)

    def _put_off(self, transfer: Transfer) -> None:
        """Begin to receive, as soon as the signatures of all that comes before are known."""
        rank = self._placement[transfer.peer]
        waiting = self._put_off_from.setdefault(rank, deque())
        follows = self._stream.follows_receive(transfer.stage, transfer.micro_batch)
        channel = (Direction.RECV, rank)
        waiting.append(Prepared(transfer, channel, None, window_follows=follows))
        if len(waiting) == 1:
            self._go_on(waiting)

    def _go_on(self, waiting: deque[Prepared]) -> None:
        """Begin the receives whose signatures are known, and then the next one with a header."""
        while waiting:
            first = waiting[0]
            # Not earlier: the other end, too, knows now what the ones before have settled.
            first.signature = first.signature or self._settled(first.transfer)
            if first.signature is None:
                self._expect_header(first)
                self._post_first(first)
                return
            self._move(waiting.popleft())
            if first.window_follows:
                place = self._buffers.small.take(WINDOW_ROOM, 0, self._transport.device)
                pending = self._transport.post_receive([place], first.channel[1])
                self._windows.append((place, pending))

    def _wait_for_sends(self, sent: deque[Transfer], left: int) -> None:
        while len(sent) > left:
            for pending in sent.popleft().pending:
                self._transport.wait(pending)

    def _wait_first(self, waiting: deque[Prepared]) -> None:
        """Wait for the header of the first receive that is put off, and go on with the others."""
        self._read_header(waiting[0])
        self._go_on(waiting)

    def _receive_window(self) -> Window:
        """The next window, which has been expected since the activation before it."""
        while not self._windows:
            for waiting in self._put_off_from.values():
                if any(prepared.window_follows for prepared in waiting):
                    self._wait_first(waiting)
        place, pending = self._windows.popleft()
        self._transport.wait(pending)
        window: Window = unpacked_from(place, self._transport)
        return window

    def _send_window(self, prepared: Prepared) -> None:
        """Send the window that comes right behind an activation, if there is one."""
        transfer = prepared.transfer
        window = self._stream.follows_send(transfer.stage, transfer.micro_batch)
        if window is not None:
            message = packed_in(
                WINDOW_ROOM, window, self._transport.device, self._buffers.small.take
            )
            self._post(prepared, [message])

    def _prepared(self, transfer: Transfer) -> Prepared:
        """A transfer that sends."""
        direction, stage, micro_batch = transfer.key
        channel = (direction, self._placement[transfer.peer])
        expected = self._settled(transfer)
        signature, tensors = self._described(transfer)
        if expected is None:
            settles = self._signatures.settles(stage, micro_batch, signature, transfer.value)
            header, *rest = self._first.of(Header(signature, settles))
            room = self._first.room(channel)
            prepared = Prepared(
                transfer, channel, signature, tensors, [header], rest, room, settles
            )
            if prepared.beside_header:
                memory = signature.memory_of(tensors)
                prepared.first = self._first.joined(header, signature, memory)
            return prepared
        if signature != expected:
            how = "" if str(signature) != str(expected) else " (with another layout in memory)"
            raise ActivationError(
                f"micro-batch {micro_batch} leaves the stage as {signature}{how}, but {expected} "
                f"was agreed on with stage {transfer.peer}: what its layers return depends on more "
                "than what their inputs look like, needed dynamic_shapes=True"
            )
        return Prepared(transfer, channel, expected, tensors)

    def _settled(self, transfer: Transfer) -> Signature | None:
        return self._signatures.settled(transfer.boundary, transfer.micro_batch)

    def _described(self, transfer: Transfer) -> tuple[Signature, list[torch.Tensor]]:
        try:
            signature, tensors = described(transfer.value)
            require_on(self._transport.device, transfer.value, tensors)
        except ActivationError as error:
            raise ActivationError(
                f"micro-batch {transfer.micro_batch} cannot go to stage {transfer.peer}: {error}"
            ) from error
        return signature, tensors

    def _know(self, prepared: Prepared, header: Header) -> None:
        """From here on, both ends know what a header says."""
        transfer = prepared.transfer
        self._first.passed(prepared.channel, header.signature)
        if header.settled:
            self._signatures.settle(transfer.boundary, transfer.micro_batch, header.signature)

    def _expect_header(self, prepared: Prepared) -> None:
        channel = prepared.channel
        prepared.room, prepared.first = self._first.room(channel), [self._first.place(channel)]

    def _read_header(self, prepared: Prepared) -> None:
        """Wait for the header of an activation that comes."""
        (place,) = prepared.first
        self._transport.wait(prepared.transfer.pending.pop())
        header: Header = unpacked(place[:ROOM], self._transport, prepared.channel[1])
        prepared.signature = header.signature
        self._know(prepared, header)

    def _move(self, prepared: Prepared) -> None:
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
            self._post(prepared, memory)
        self._latest[transfer.key] = signature
        if len(self._latest) > LATEST:
            self._latest.popitem(last=False)
        if prepared.first:
            keep_freed_activations(signature.nbytes, self._transport.device)

    def _post_first(self, prepared: Prepared) -> None:
        joined = self._transport.joins(*prepared.channel)
        self._post(prepared, prepared.first, joined=joined)

    def _post(
        self, prepared: Prepared, memory: Sequence[torch.Tensor], *, joined: bool = False
    ) -> None:
        direction, rank = prepared.channel
        sends = direction is Direction.SEND
        post = self._transport.post_send if sends else self._transport.post_receive
        prepared.transfer.pending.append(post(memory, rank, joined=joined))
