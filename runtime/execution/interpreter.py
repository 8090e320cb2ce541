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
from runtime.execution.held_receives import HeldReceives
from runtime.execution.listeners import Listener
from runtime.execution.program import Program
from runtime.execution.transfer import Transfer
from runtime.execution.transfers import Transfers
from runtime.failure.error_text import note
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
    LoadMicroBatch,
    MoveLogits,
    Place,
    Placed,
    PostRecvActivation,
    PostSendActivation,
    RecvActivation,
    ReduceLoss,
    SendActivation,
    StepInstruction,
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
    """Executes the program of one rank, as often as there is work for it."""

    def __init__(self, program: Program, transport: Transport, buffers: BufferPool) -> None:
        """Prepare to execute `program` over `transport`, in `buffers`."""
        self.program = program
        self._transport, self._buffers = transport, buffers
        self._last = len(program.placement) - 1
        self._posted: dict[tuple[Direction, int, int], Transfer] = {}
        self._group: list[Transfer] | None = None
        # Looked up once: asking for the class of an instruction takes longer than most of them.
        known = None if program.plan is None else [*map(_entry, program.steps())]
        self._known: list[_Entry] | None = known

    def run(self, work: Work) -> None:
        """Execute every instruction in order, but those of micro-batches that do not exist.

        Raises:
            Exception: what an instruction raised, with a note on where in the plan that was.
        """
        stream = work.stream
        held = HeldReceives(stream, lambda entry: self._execute(entry, work))
        each, executed = self.program.instructions_of_a_micro_batch, 0
        placed: Placed | None = None
        try:
            for entry in self._known or map(_entry, self.program.steps()):
                placed, micro_batch, method = entry
                if micro_batch is not None:
                    if method is Interpreter._expect and held.take(entry):
                        continue
                    exists = stream.has(micro_batch)
                    executed += held.post(placed.instruction)
                    if not exists:
                        if each is not None and executed == each * stream.count:
                            break
                        continue
                    executed += 1
                self._execute(entry, work)
                executed += held.after(placed.instruction)
            work.results.losses.expect(stream.count)
            for placed in self.program.epilogue:
                for listener in work.listeners:
                    listener.started(placed)
                self._deliver(placed.instruction, work.results)
                for listener in work.listeners:
                    listener.finished(placed)
        except Exception as error:
            if placed is not None:
                where = f"at {self.program.unit} {self.program.rank}, {placed.where}"
                note(error, f"{where}: {placed.instruction!r}")
            raise
        finally:
            self._posted.clear()
            self._group = None

    def _execute(self, entry: "_Entry", work: Work) -> None:
        placed, _, method = entry
        for listener in work.listeners:
            listener.started(placed)
        method(self, placed.instruction, work)
        for listener in work.listeners:
            listener.finished(placed)

    def _deliver(self, instruction: Any, results: Results) -> None:
        delivered: EpilogueInstruction = instruction
        transport = self._transport
        match delivered:
            case ReduceLoss(reduction=reduction):
                results.losses.reduce(reduction)
            case AllReduceLoss():
                results.losses.all_reduce(transport)
            case BroadcastLoss(source=source):
                rank = self._rank_of(source)
                results.losses.broadcast(transport, rank)
                results.metrics.broadcast(rank)
            case ComputeMetrics():
                results.metrics.compute()
            case AllReduceMetrics():
                results.metrics.all_reduce()
            case CollectLogits():
                results.logits.collect()
            case MoveLogits(source=source, destination=destination):
                ends = self._rank_of(source), self._rank_of(destination)
                results.logits.move(transport, *ends)
            case BroadcastLogits(source=source):
                results.logits.broadcast(transport, self._rank_of(source))
            case _:
                assert_never(delivered)

    def _rank_of(self, stage: int) -> int:
        return self.program.placement[stage]

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

    def _expect(self, instruction: PostRecvActivation, work: Work) -> None:
        self._post(instruction, work)

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
_Entry = tuple[Placed, int | None, Method]


def _entry(placed: Placed) -> _Entry:
    """An instruction of a step, with its micro-batch and what executes it."""
    instruction = placed.instruction
    kind = type(instruction)
    if kind not in _METHODS:
        _METHODS[kind] = _method(instruction)
    return placed, getattr(instruction, "micro_batch", None), _METHODS[kind]


_METHODS: dict[type, Method] = {}
"""What executes the instructions of a class."""


def _method(instruction: Any) -> Method:
    found: StepInstruction = instruction
    match found:
        case LoadMicroBatch():
            return Interpreter._load
        case ForwardPass():
            return Interpreter._forward
        case CopyActivation():
            return Interpreter._copy
        case RecvActivation() | SendActivation():
            return Interpreter._transfer
        case PostRecvActivation():
            return Interpreter._expect
        case PostSendActivation():
            return Interpreter._post
        case WaitRecvActivation() | WaitSendActivation():
            return Interpreter._wait
        case GroupStart():
            return Interpreter._start_group
        case GroupEnd():
            return Interpreter._end_group
        case _:
            assert_never(found)
