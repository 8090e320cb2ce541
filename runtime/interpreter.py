"""The interpreter: does what a stage plan says, and decides nothing.

Which micro-batch, which buffer, which peer and in which order is the plan's; what a stage computes
and where micro-batches come from is the caller's. Adding an instruction to `schemas` makes the type
checker point at the `match` below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, assert_never

from runtime.activation import ActivationError, Signature, signature_of
from runtime.buffers import BufferPool
from runtime.listeners import Listener
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


@dataclass
class Interpreter:
    """Executes the plan of one stage."""

    plan: StagePlan
    forward: Forward
    source: Source
    shapes: Shapes
    transport: Transport
    buffers: BufferPool
    results: Results
    listeners: Sequence[Listener] = ()
    _posted: dict[tuple[Direction, int], Pending] = field(default_factory=dict)

    def run(self) -> None:
        """Execute every instruction in order.

        Raises:
            Exception: what an instruction raised, with a note on where in the plan that was.
        """
        for placed in self.plan.program.placed():
            for listener in self.listeners:
                listener.started(placed)
            try:
                self._execute(placed.instruction)
            except Exception as error:
                error.add_note(self._where(placed))
                raise
            for listener in self.listeners:
                listener.finished(placed)

    def _execute(self, instruction: Instruction) -> None:
        match instruction:
            case LoadMicroBatch(micro_batch=micro_batch):
                for place, value in self.source.load(micro_batch).items():
                    self.buffers[instruction.buffer][place] = value
            case ForwardPass():
                self._forward(instruction)
            case RecvActivation():
                self._post_receive(instruction)
                self._wait(instruction)
            case SendActivation():
                self._post_send(instruction)
                self._wait(instruction)
            case PostRecvActivation():
                self._post_receive(instruction)
            case PostSendActivation():
                self._post_send(instruction)
            case WaitRecvActivation() | WaitSendActivation():
                self._wait(instruction)
            case GroupStart():
                self.transport.start_group()
            case GroupEnd():
                self.transport.end_group()
            case ReduceLoss():
                self.results.reduce(instruction.reduction)
            case AllReduceLoss():
                self.results.all_reduce(self.transport)
            case BroadcastLoss():
                self.results.broadcast(self.transport, instruction.source)
            case ComputeMetrics():
                self.results.compute_metrics()
            case AllReduceMetrics():
                self.results.all_reduce_metrics(self.transport)
            case CollectLogits():
                self.results.collect_logits()
            case MoveLogits(source=source, destination=destination):
                self.results.move_logits(self.transport, source, destination)
            case BroadcastLogits(source=source):
                self.results.broadcast_logits(self.transport, source)
            case _:
                assert_never(instruction)

    def _forward(self, instruction: ForwardPass) -> None:
        buffer = self.buffers[instruction.buffer]
        output = self.forward(instruction.micro_batch, buffer[Place.INPUT], buffer[Place.LABEL])
        output = buffer.own(output)
        buffer.clear(Place.INPUT, Place.LABEL)
        where = (self.plan.stage_id, self.plan.stages)
        if Place.OUTPUT in places(instruction.effects.delivers, *where):
            self.results.deliver(output)
        else:
            buffer[Place.OUTPUT] = output

    def _post_receive(self, instruction: TransferInstruction) -> None:
        buffer = self.buffers[instruction.buffer]
        signature = self.shapes.input(instruction.micro_batch)
        memory = buffer.receive_memory(signature)
        transfer = (Direction.RECV, instruction.micro_batch)
        self._posted[transfer] = self.transport.post_receive(memory, instruction.peer)
        buffer[Place.INPUT] = signature.over(memory)

    def _post_send(self, instruction: TransferInstruction) -> None:
        output = self.buffers[instruction.buffer][Place.OUTPUT]
        agreed, found = self.shapes.output(instruction.micro_batch), signature_of(output)
        if not found.fits(agreed):
            raise ActivationError(
                f"micro-batch {instruction.micro_batch} leaves the stage as {found}, "
                f"but {agreed} was agreed on with stage {instruction.peer}"
            )
        payload = agreed.memory_of(output)
        transfer = (Direction.SEND, instruction.micro_batch)
        self._posted[transfer] = self.transport.post_send(payload, instruction.peer)

    def _wait(self, instruction: TransferInstruction) -> None:
        transfer = (instruction.direction, instruction.micro_batch)
        self.transport.wait(self._posted.pop(transfer))

    def _where(self, placed: Placed) -> str:
        return f"at stage {self.plan.stage_id}, {placed.where}: {placed.instruction!r}"
