"""Traces for a timeline viewer: recorded runs and simulated ones, in Chrome's Trace Event Format.

`chrome://tracing` and https://ui.perfetto.dev open the file. A pipeline is a process, a stage is a
thread, an instruction is a slice; a transfer that was posted is a bar of its own from its post to
its wait, so that what it crosses can be seen. The format is described in "Trace Event Format"
(Google, 2016); times are in microseconds.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from schedcc.recordings.recording import RankRecording, Recording
from schedcc.table.table import is_forward
from schemas import (
    BufferInstruction,
    Instruction,
    Phase,
    Timeline,
    TransferInstruction,
)

TraceEvent = dict[str, Any]


class _Lane(NamedTuple):
    """Where a stage's slices are drawn."""

    pipeline: int
    stage: int

    def event(self, phase: str, microseconds: float, **more: Any) -> TraceEvent:
        return {"ph": phase, "pid": self.pipeline, "tid": self.stage, "ts": microseconds, **more}

    def names(self, process: str, thread: str) -> Iterator[TraceEvent]:
        for name, text in (("process_name", process), ("thread_name", thread)):
            yield self.event("M", 0, name=name, args={"name": text})


def recorded_trace(recording: Recording) -> dict[str, Any]:
    """The trace of all runs of a recording; what never ended is drawn as open."""
    origin = min(rank.first for rank in recording.ranks)
    return _trace(
        event
        for number, (pipeline, by_stage) in enumerate(recording.pipelines.items())
        for rank in by_stage.values()
        for event in _rank_events(rank, _Lane(number, rank.header.stage_id), str(pipeline), origin)
    )


def simulated_trace(timeline: Timeline) -> dict[str, Any]:
    """The trace of a simulated plan."""
    events: list[TraceEvent] = []
    for stage in timeline.stages:
        lane = _Lane(0, stage.rank)
        name = f"rank {stage.rank}" if stage.stage_id is None else f"stage {stage.stage_id}"
        events += lane.names("simulated", name)
        for number, span in enumerate(stage.spans):
            start, end = span.start * 1e6, span.end * 1e6
            described = _described(span.instruction, {"step": span.step})
            if _phase(span.instruction) is Phase.POST:  # its span lasts as long as the transfer
                events += _transfer(lane, span.instruction, number, start, end)
            elif end > start:
                events.append(lane.event("X", start, dur=end - start, **described))
    return _trace(events)


def _rank_events(
    rank: RankRecording, lane: _Lane, pipeline: str, origin: int
) -> Iterator[TraceEvent]:
    yield from lane.names(pipeline, rank.name)
    for run in rank.runs:
        if run.data_ended is not None:
            at, text = (run.data_ended - origin) / 1e3, f"data ends after {run.micro_batches}"
            yield lane.event("i", at, s="t", name=text, cat="data")
        posted: dict[tuple[str, int, int, int], float] = {}
        for executed in run.executed:
            instruction = executed.placed.instruction
            start = (executed.start - origin) / 1e3
            where = {"run": run.number, "step": executed.placed.step, "bytes": executed.nbytes}
            described = _described(instruction, where)
            if executed.end is None:
                yield lane.event("B", start, **described)
                continue
            end = (executed.end - origin) / 1e3
            yield lane.event("X", start, dur=end - start, **described)
            if not isinstance(instruction, TransferInstruction):
                continue
            stages = (instruction.stage, instruction.peer)
            transfer = (instruction.direction, instruction.micro_batch, *stages)
            if _phase(instruction) is Phase.POST:
                posted[transfer] = start
            elif transfer in posted:
                number = (run.number << 32) + executed.placed.offset
                yield from _transfer(lane, instruction, number, posted.pop(transfer), end)
    for at, error in rank.errors:
        text = f"{error.kind}: {error.message}"
        yield lane.event("i", (at - origin) / 1e3, s="t", name=text, cat="error")


def _transfer(
    lane: _Lane, instruction: Instruction, number: int, start: float, end: float
) -> Iterator[TraceEvent]:
    """A bar beside the slices, because it overlaps them."""
    assert isinstance(instruction, TransferInstruction)
    name = f"{instruction.direction} {instruction.micro_batch}, stage {instruction.peer}"
    identity = f"{lane.pipeline}.{lane.stage}.{number}"
    for phase, at in (("b", start), ("e", end)):
        yield lane.event(phase, at, id=identity, name=name, cat="transfer")


def _described(instruction: Instruction, where: dict[str, int | None]) -> dict[str, Any]:
    fields = instruction.model_dump(exclude={"op"})
    kind = "transfer" if isinstance(instruction, TransferInstruction) else "other"
    known = {name: value for name, value in where.items() if value is not None}
    return {
        "name": " ".join(map(str, [instruction.op, *_micro_batch(instruction)])),
        "cat": "forward" if is_forward(instruction) else kind,
        "args": {**fields, **known},
    }


def _micro_batch(instruction: Instruction) -> Iterator[int]:
    if isinstance(instruction, BufferInstruction):
        yield instruction.micro_batch


def _phase(instruction: Instruction) -> Phase | None:
    return instruction.effects.phase if isinstance(instruction, BufferInstruction) else None


def _trace(events: Iterable[TraceEvent]) -> dict[str, Any]:
    return {"displayTimeUnit": "ms", "traceEvents": list(events)}
