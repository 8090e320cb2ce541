"""The interpreter: does what a stage plan says, and decides nothing.

Which micro-batch, which buffer, which peer and in which order is the plan's; what a stage computes
and where micro-batches come from is the caller's. A plan is turned into a list of calls once, and
that list is executed in every run. Adding an instruction to `schemas` makes the type checker point
at the `match` below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, assert_never

from runtime.activation import ActivationError, Signature, signature_of
from runtime.buffers import BufferPool
from runtime.listeners import Listener
from runtime.liveness import last_reads
from runtime.results import Results
from runtime.transport.protocol import Pending, Transport
from schemas import (
    AllReduceLoss,
    AllReduceMetrics,
    BroadcastLogits,
    BroadcastLoss,
    CollectLogits,
    ComputeMetrics,
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


class Source(Protocol):
    """Where a stage's micro-batches come from."""

    def load(self, micro_batch: int) -> Mapping[Place, Any]:
        """The values for the buffer's places, on the stage's device."""


class Shapes(Protocol):
    """The signatures that both ends of every transfer have agreed on before the run."""

    def input(self, micro_batch: int) -> Signature:
        """What this stage receives."""

    def output(self, micro_batch: int) -> Signature:
        """What this stage sends."""


@dataclass(frozen=True)
class Work:
    """What one run is about: the micro-batches, what is done to them, and what comes of it."""

    forward: Forward
    source: Source
    shapes: Shapes
    results: Results
    listeners: Sequence[Listener] = ()


Act = Callable[[Work], None]
"""An instruction, with all that its plan says about it looked up."""

Transfer = tuple[Direction, int, int]
"""Direction, micro-batch and peer of a transfer."""


class Interpreter:
    """Executes the plan of one stage, as often as there is work for it."""

    def __init__(self, plan: StagePlan, transport: Transport, buffers: BufferPool) -> None:
        """Prepare to execute `plan` over `transport`, in `buffers`."""
        self._plan, self._transport, self._buffers = plan, transport, buffers
        self._posted: dict[Transfer, Pending] = {}
        self._acts = [
            (placed, self._act(placed.instruction, last))
            for placed, last in zip(plan.program.placed(), last_reads(plan), strict=True)
        ]

    @property
    def plan(self) -> StagePlan:
        """What is executed."""
        return self._plan

    def run(self, work: Work) -> None:
        """Execute every instruction in order.

        Raises:
            Exception: what an instruction raised, with a note on where in the plan that was.
        """
        listeners = work.listeners
        placed: Placed | None = None
        try:
            for placed, act in self._acts:
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

    def _act(self, instruction: Instruction, last_read: tuple[Place, ...]) -> Act:
        """The call that executes an instruction, after which nobody reads `last_read` again."""
        match instruction:
            case LoadMicroBatch():
                return self._load(instruction)
            case ForwardPass():
                return self._forward(instruction, last_read)
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
                return lambda _work: self._transport.start_group()
            case GroupEnd():
                return lambda _work: self._transport.end_group()
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
            for place, value in work.source.load(micro_batch).items():
                buffer[place] = value

        return act

    def _forward(self, instruction: ForwardPass, last_read: tuple[Place, ...]) -> Act:
        micro_batch, buffer = instruction.micro_batch, self._buffers[instruction.buffer]
        where = (self._plan.stage_id, self._plan.stages)
        delivers = Place.OUTPUT in places(instruction.effects.delivers, *where)

        def act(work: Work) -> None:
            output = work.forward(micro_batch, buffer[Place.INPUT], buffer[Place.LABEL])
            output = buffer.own(output)
            buffer.clear(*last_read)
            if delivers:
                work.results.deliver(output)
            else:
                buffer[Place.OUTPUT] = output

        return act

    def _post_receive(self, instruction: TransferInstruction) -> Act:
        micro_batch, buffer = instruction.micro_batch, self._buffers[instruction.buffer]
        peer, transfer = instruction.peer, _transfer(instruction)

        def act(work: Work) -> None:
            signature = work.shapes.input(micro_batch)
            memory = buffer.receive_memory(signature)
            self._posted[transfer] = self._transport.post_receive(memory, peer)
            buffer[Place.INPUT] = signature.over(memory)

        return act

    def _post_send(self, instruction: TransferInstruction) -> Act:
        micro_batch, buffer = instruction.micro_batch, self._buffers[instruction.buffer]
        peer, transfer = instruction.peer, _transfer(instruction)

        def act(work: Work) -> None:
            output, agreed = buffer[Place.OUTPUT], work.shapes.output(micro_batch)
            if not agreed.accepts(output):
                raise ActivationError(
                    f"micro-batch {micro_batch} leaves the stage as {signature_of(output)}, "
                    f"but {agreed} was agreed on with stage {peer}"
                )
            self._posted[transfer] = self._transport.post_send(agreed.memory_of(output), peer)

        return act

    def _wait(self, instruction: TransferInstruction, last_read: tuple[Place, ...]) -> Act:
        buffer, transfer = self._buffers[instruction.buffer], _transfer(instruction)

        def act(_: Work) -> None:
            self._transport.wait(self._posted.pop(transfer))
            buffer.clear(*last_read)

        return act


def _transfer(instruction: TransferInstruction) -> Transfer:
    return instruction.direction, instruction.micro_batch, instruction.peer


def _both(first: Act, second: Act) -> Act:
    def act(work: Work) -> None:
        first(work)
        second(work)

    return act
