"""What traces are made of: slices in lanes, and bars beside them."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from schedcc.table.codes import is_forward
from schemas import BufferInstruction, Instruction, Phase, TransferInstruction

TraceEvent = dict[str, Any]


class Lane(NamedTuple):
    """Where a rank's slices are drawn."""

    pipeline: int
    rank: int
    staged: bool = False
    """Whether slices name their stage."""

    def event(self, phase: str, microseconds: float, **more: Any) -> TraceEvent:
        """An event of this lane; `phase` is the format's letter for its kind."""
        return {"ph": phase, "pid": self.pipeline, "tid": self.rank, "ts": microseconds, **more}

    def names(self, process: str, thread: str) -> Iterator[TraceEvent]:
        """What the viewer writes beside the lane."""
        for name, text in (("process_name", process), ("thread_name", thread)):
            yield self.event("M", 0, name=name, args={"name": text})


def transfer_bar(
    lane: Lane, instruction: Instruction, number: int, start: float, end: float
) -> Iterator[TraceEvent]:
    """A bar beside the slices, because it overlaps them."""
    assert isinstance(instruction, TransferInstruction)
    name = f"{instruction.direction} {instruction.micro_batch}, stage {instruction.peer}"
    identity = f"{lane.pipeline}.{lane.rank}.{number}"
    for phase, at in (("b", start), ("e", end)):
        yield lane.event(phase, at, id=identity, name=name, cat="transfer")


def described(lane: Lane, instruction: Instruction, where: dict[str, int | None]) -> dict[str, Any]:
    """The words of a slice: what was executed, and where it stands."""
    fields = instruction.model_dump(exclude={"op"})
    kind = "transfer" if isinstance(instruction, TransferInstruction) else "other"
    words: list[str | int] = [instruction.op, *_micro_batch(instruction)]
    if lane.staged and isinstance(instruction, BufferInstruction):
        words[-1] = f"{words[-1]}, stage {instruction.stage}"
    known = {name: value for name, value in where.items() if value is not None}
    return {
        "name": " ".join(map(str, words)),
        "cat": "forward" if is_forward(instruction) else kind,
        "args": {**fields, **known},
    }


def _micro_batch(instruction: Instruction) -> Iterator[int]:
    if isinstance(instruction, BufferInstruction):
        yield instruction.micro_batch


def phase_of(instruction: Instruction) -> Phase | None:
    """Whether an instruction is whole, a post or a wait; `None`: it works on no buffer."""
    return instruction.effects.phase if isinstance(instruction, BufferInstruction) else None


def document(events: Iterable[TraceEvent]) -> dict[str, Any]:
    """The content of a trace file."""
    return {"displayTimeUnit": "ms", "traceEvents": list(events)}
