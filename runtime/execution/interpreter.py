"""The interpreter: does what a stage plan says, and decides nothing.

Which micro-batch, which buffer, which peer and in which order is the plan's; what a stage computes
and where micro-batches come from is the caller's. A plan is turned into a list of calls once, and
that list is executed in every run. Adding an instruction to `schemas` makes the type checker point
at the `match` below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

from runtime.execution.buffers import BufferPool
from runtime.execution.listeners import Listener
from runtime.execution.liveness import last_reads
from runtime.execution.transfers import Transfer
from runtime.outputs.results import Results
from runtime.transport.protocol import Transport
from schemas import (
    AllReduceLoss,
    AllReduceMetrics,
    BroadcastLogits,
    BroadcastLoss,
    BufferInstruction,
    CollectLogits,
    ComputeMetrics,
    CopyActivation,
    Direction,
    ForwardPass,
    GroupEnd,
    GroupStart,
    Instruction,
    LoadMicroBatch,
    MoveLogits,
    Place,
    Placed,
    PostRecvActivation,
    PostSendActivation,
    RecvActivation,
    ReduceLoss,
    SendActivation,
    StagePlan,
    TransferInstruction,
    WaitRecvActivation,
    WaitSendActivation,
    places,
)

Forward = Callable[[int, Any, Any], Any]
"""`(micro_batch, input, label) -> output`."""


class Stream(Protocol):
    """Where a stage's micro-batches come from."""

    def has(self, micro_batch: int) -> bool:
        """Whether it exists; waits until that is known. Others are left out of the plan."""

    def load(self, micro_batch: int) -> Mapping[Place, Any]:
        """The values for the buffer's places, on the stage's device."""


class Transfers(Protocol):
    """How activations get from stage to stage."""

    def begin(self, transfers: Sequence[Transfer], /) -> None:
        """Begin transfers, of which none waits for another."""

    def finish(self, transfer: Transfer, /) -> Any:
        """Wait for a transfer; the activation, where it was received."""


@dataclass(frozen=True)
class Work:
    """What one run is about: the micro-batches, what is done to them, and what comes of it."""

    forward: Forward
    stream: Stream
    transfers: Transfers
    results: Results
    own: Callable[[list[Any]], Any]
    """Makes an output the runtime's own, see `runtime.tensors.ownership`."""
    listeners: Sequence[Listener] = ()


Act = Callable[[Work], None]
"""An instruction, with all that its plan says about it looked up."""


class Interpreter:
    """Executes the plan of one stage, as often as there is work for it."""

    def __init__(self, plan: StagePlan, transport: Transport, buffers: BufferPool) -> None:
        """Prepare to execute `plan` over `transport`, in `buffers`."""
        self._plan, self._transport, self._buffers = plan, transport, buffers
        self._posted: dict[tuple[Direction, int, int], Transfer] = {}
        self._group: list[Transfer] | None = None
        self._acts = [
            (placed, _micro_batch(placed.instruction), self._act(placed.instruction, last))
            for placed, last in zip(plan.program.placed(), last_reads(plan), strict=True)
        ]

    @property
    def plan(self) -> StagePlan:
        """What is executed."""
        return self._plan

    def close(self) -> None:
        """Let go of everything; there is nothing to be run any more."""
        self._acts.clear()  # they refer to this object

    def run(self, work: Work) -> None:
        """Execute every instruction in order, but those of micro-batches that do not exist.

        Raises:
            Exception: what an instruction raised, with a note on where in the plan that was.
        """
        listeners, has = work.listeners, work.stream.has
        placed: Placed | None = None
        try:
            for placed, micro_batch, act in self._acts:
                if micro_batch is not None and not has(micro_batch):
                    continue
                for listener in listeners:
                    listener.started(placed)
                act(work)
                for listener in listeners:
                    listener.finished(placed)
        except Exception as error:
            if placed is not None:
                where = f"at stage {self._plan.stage_id}, {placed.where}"
                error.add_note(f"{where}: {placed.instruction!r}")
            raise
        finally:
            self._posted.clear()
            self._group = None

    def _act(self, instruction: Instruction, last_read: tuple[Place, ...]) -> Act:
        """The call that executes an instruction, after which nobody reads `last_read` again."""
        match instruction:
            case LoadMicroBatch():
                return self._load(instruction)
            case ForwardPass():
                return self._forward(instruction, last_read)
            case CopyActivation():
                raise ValueError(f"{instruction!r}: a rank with several stages cannot be executed")
            case RecvActivation():
                return _both(self._post_receive(instruction), self._wait(instruction, last_read))
            case SendActivation():
                return _both(self._post_send(instruction), self._wait(instruction, last_read))
            case PostRecvActivation():
                return self._post_receive(instruction)
            case PostSendActivation():
                return self._post_send(instruction)
            case WaitRecvActivation() | WaitSendActivation():
                return self._wait(instruction, last_read)
            case GroupStart():
                return self._start_group
            case GroupEnd():
                return self._end_group
            case ReduceLoss(reduction=reduction):
                return lambda work: work.results.reduce(reduction)
            case AllReduceLoss():
                return lambda work: work.results.all_reduce(self._transport)
            case BroadcastLoss(source=source):
                return lambda work: work.results.broadcast(self._transport, source)
            case ComputeMetrics():
                return lambda work: work.results.compute_metrics()
            case AllReduceMetrics():
                return lambda work: work.results.all_reduce_metrics(self._transport)
            case CollectLogits():
                return lambda work: work.results.collect_logits()
            case MoveLogits(source=source, destination=destination):
                return lambda work: work.results.move_logits(self._transport, source, destination)
            case BroadcastLogits(source=source):
                return lambda work: work.results.broadcast_logits(self._transport, source)
            case _:
                assert_never(instruction)

    def _load(self, instruction: LoadMicroBatch) -> Act:
        micro_batch, buffer = instruction.micro_batch, self._buffers[instruction.buffer]

        def act(work: Work) -> None:
            for place, value in work.stream.load(micro_batch).items():
                buffer[place] = value

        return act

    def _forward(self, instruction: ForwardPass, last_read: tuple[Place, ...]) -> Act:
        micro_batch, buffer = instruction.micro_batch, self._buffers[instruction.buffer]
        where = (self._plan.stage_id, self._plan.stages)
        delivers = Place.OUTPUT in places(instruction.effects.delivers, *where)

        def act(work: Work) -> None:
            # In a list, so that nothing here refers to the output when its owner is looked for.
            output = [work.forward(micro_batch, buffer[Place.INPUT], buffer[Place.LABEL])]
            buffer.clear(*last_read)
            if delivers:
                work.results.deliver(output, work.own)
            else:
                buffer[Place.OUTPUT] = work.own(output)

        return act

    def _post_receive(self, instruction: TransferInstruction) -> Act:
        micro_batch, peer = instruction.micro_batch, instruction.peer

        def act(work: Work) -> None:
            self._begin(work, Transfer(Direction.RECV, micro_batch, peer))

        return act

    def _post_send(self, instruction: TransferInstruction) -> Act:
        micro_batch, buffer = instruction.micro_batch, self._buffers[instruction.buffer]
        peer = instruction.peer

        def act(work: Work) -> None:
            output = buffer[Place.OUTPUT]
            self._begin(work, Transfer(Direction.SEND, micro_batch, peer, output))

        return act

    def _begin(self, work: Work, transfer: Transfer) -> None:
        self._posted[transfer.key] = transfer
        if self._group is not None:
            self._group.append(transfer)
        else:
            work.transfers.begin([transfer])

    def _start_group(self, _: Work) -> None:
        self._group = []

    def _end_group(self, work: Work) -> None:
        assert self._group is not None, "no group was started"
        members, self._group = self._group, None
        work.transfers.begin(members)

    def _wait(self, instruction: TransferInstruction, last_read: tuple[Place, ...]) -> Act:
        buffer = self._buffers[instruction.buffer]
        key = (instruction.direction, instruction.micro_batch, instruction.peer)

        def act(work: Work) -> None:
            value = work.transfers.finish(self._posted.pop(key))
            if instruction.direction is Direction.RECV:
                buffer[Place.INPUT] = value
            buffer.clear(*last_read)

        return act


def _micro_batch(instruction: Instruction) -> int | None:
    return instruction.micro_batch if isinstance(instruction, BufferInstruction) else None


def _both(first: Act, second: Act) -> Act:
    def act(work: Work) -> None:
        first(work)
        second(work)

    return act
