"""The interpreter: does what a stage plan says, and decides nothing.

Which micro-batch, which buffer, which peer and in which order is the plan's; what a stage computes
and where micro-batches come from is the caller's. Adding an instruction to `schemas` makes the type
checker point at the `match` below.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, assert_never

from runtime.data.stream import Stream
from runtime.execution.buffers import BufferPool
from runtime.execution.listeners import Listener
from runtime.execution.transfers import Transfer, Transfers
from runtime.outputs.results import Results
from runtime.transport.protocol import Transport
from schemas import (
    AllReduceLoss,
    AllReduceMetrics,
    BroadcastLogits,
    BroadcastLoss,
    CollectLogits,
    ComputeMetrics,
    CopyActivation,
    Direction,
    EpilogueInstruction,
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
)

Forward = Callable[[int, Any, Any], Any]
"""`(micro_batch, input, label) -> output`, of one stage."""


@dataclass(frozen=True)
class Work:
    """What one run is about: the micro-batches, what is done to them, and what comes of it."""

    forwards: Mapping[int, Forward]
    """By stage."""
    stream: Stream
    transfers: Transfers
    results: Results
    own: Callable[[list[Any]], Any]
    """Makes an output the runtime's own, see `runtime.tensors.ownership`."""
    listeners: Sequence[Listener] = ()


class Interpreter:
    """Executes the plan of one stage, as often as there is work for it."""

    def __init__(self, plan: StagePlan, transport: Transport, buffers: BufferPool) -> None:
        """Prepare to execute `plan` over `transport`, in `buffers`."""
        self._plan, self._transport, self._buffers = plan, transport, buffers
        # Looked up once: asking for the class of an instruction takes longer than most of them.
        self._program = [
            (
                placed,
                getattr(placed.instruction, "micro_batch", None),
                self._method(placed.instruction),
            )
            for placed in plan.program.placed()
        ]
        self._last = plan.stages - 1
        self._posted: dict[tuple[Direction, int, int], Transfer] = {}
        self._group: list[Transfer] | None = None

    @property
    def plan(self) -> StagePlan:
        """What is executed."""
        return self._plan

    def run(self, work: Work) -> None:
        """Execute every instruction in order, but those of micro-batches that do not exist.

        Raises:
            Exception: what an instruction raised, with a note on where in the plan that was.
        """
        listeners, has = work.listeners, work.stream.has
        placed: Placed | None = None
        try:
            for placed, micro_batch, method in self._program:
                if micro_batch is not None and not has(micro_batch):
                    continue
                for listener in listeners:
                    listener.started(placed)
                method(self, placed.instruction, work)
                for listener in listeners:
                    listener.finished(placed)
        except Exception as error:
            if placed is not None:
                where = f"at {self._plan.unit} {self._plan.rank}, {placed.where}"
                error.add_note(f"{where}: {placed.instruction!r}")
            raise
        finally:
            self._posted.clear()
            self._group = None

    @classmethod
    def _method(cls, instruction: Instruction) -> "Method":
        """What executes instructions of this class."""
        match instruction:
            case LoadMicroBatch():
                return cls._load
            case ForwardPass():
                return cls._forward
            case CopyActivation():
                return cls._copy
            case RecvActivation() | SendActivation():
                return cls._transfer
            case PostRecvActivation() | PostSendActivation():
                return cls._post
            case WaitRecvActivation() | WaitSendActivation():
                return cls._wait
            case GroupStart():
                return cls._start_group
            case GroupEnd():
                return cls._end_group
            case _:
                return cls._deliver

    def _deliver(self, instruction: EpilogueInstruction, work: Work) -> None:
        results, transport = work.results, self._transport
        match instruction:
            case ReduceLoss(reduction=reduction):
                results.losses.reduce(reduction)
            case AllReduceLoss():
                results.losses.all_reduce(transport)
            case BroadcastLoss(source=source):
                results.losses.broadcast(transport, source)
                results.metrics.broadcast(source)
            case ComputeMetrics():
                results.metrics.compute()
            case AllReduceMetrics():
                results.metrics.all_reduce()
            case CollectLogits():
                results.logits.collect()
            case MoveLogits(source=source, destination=destination):
                results.logits.move(transport, source, destination)
            case BroadcastLogits(source=source):
                results.logits.broadcast(transport, source)
            case _:
                assert_never(instruction)

    def _load(self, instruction: LoadMicroBatch, work: Work) -> None:
        buffer = self._buffers[instruction.stage, instruction.buffer]
        values = work.stream.load(instruction.stage, instruction.micro_batch)
        for place, value in values.items():
            buffer[place] = value

    def _copy(self, instruction: CopyActivation, _work: Work) -> None:
        output = self._buffers[instruction.peer, instruction.peer_buffer].take(Place.OUTPUT)
        self._buffers[instruction.stage, instruction.buffer][Place.INPUT] = output

    def _forward(self, instruction: ForwardPass, work: Work) -> None:
        stage, micro_batch = instruction.stage, instruction.micro_batch
        buffer = self._buffers[stage, instruction.buffer]
        forward = work.forwards[stage]
        # In a list, so that nothing here refers to the output when its owner is looked for.
        output = [forward(micro_batch, buffer[Place.INPUT], buffer[Place.LABEL])]
        buffer.clear(Place.INPUT, Place.LABEL)  # a plan that is sound reads them once
        if stage == self._last:
            work.results.logits.deliver(output, work.own)
        else:
            buffer[Place.OUTPUT] = work.own(output)
        work.stream.forwarded(stage, micro_batch)

    def _transfer(self, instruction: TransferInstruction, work: Work) -> None:
        self._post(instruction, work)
        self._wait(instruction, work)

    def _start_group(self, _: GroupStart, _work: Work) -> None:
        self._group = []

    def _end_group(self, _: GroupEnd, work: Work) -> None:
        assert self._group is not None, "no group was started"
        members, self._group = self._group, None
        work.transfers.begin(members)

    def _post(self, instruction: TransferInstruction, work: Work) -> None:
        direction, stage = instruction.direction, instruction.stage
        transfer = Transfer(direction, stage, instruction.micro_batch, instruction.peer)
        if direction is Direction.SEND:
            transfer.value = self._buffers[stage, instruction.buffer][Place.OUTPUT]
        self._posted[transfer.key] = transfer
        if self._group is not None:
            self._group.append(transfer)
        else:
            work.transfers.begin([transfer])

    def _wait(self, instruction: TransferInstruction, work: Work) -> None:
        buffer = self._buffers[instruction.stage, instruction.buffer]
        direction = instruction.direction
        key = (direction, instruction.stage, instruction.micro_batch)
        value = work.transfers.finish(self._posted.pop(key))
        if direction is Direction.RECV:
            buffer[Place.INPUT] = value
        else:
            buffer.clear(Place.OUTPUT)


Method = Callable[[Interpreter, Any, Work], None]
