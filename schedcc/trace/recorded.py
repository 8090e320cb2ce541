"""The trace of a recording."""

from collections.abc import Iterator
from typing import Any

from schedcc.recordings.recording import RankRecording, Recording
from schedcc.trace.slices import Lane, TraceEvent, described, document, phase_of, transfer_bar
from schemas import Phase, TransferInstruction


def recorded_trace(recording: Recording) -> dict[str, Any]:
    """The trace of all runs of a recording; what never ended is drawn as open."""
    origin = min(rank.first for rank in recording.ranks)
    return document(
        event
        for number, (pipeline, by_rank) in enumerate(recording.pipelines.items())
        for rank in by_rank.values()
        for lane in (Lane(number, rank.pipeline_rank, rank.stage_id is None),)
        for event in _rank_events(rank, lane, str(pipeline), origin)
    )


def _rank_events(
    rank: RankRecording, lane: Lane, pipeline: str, origin: int
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
            about = described(lane, instruction, where)
            if executed.end is None:
                yield lane.event("B", start, **about)
                continue
            end = (executed.end - origin) / 1e3
            yield lane.event("X", start, dur=end - start, **about)
            if not isinstance(instruction, TransferInstruction):
                continue
            stages = (instruction.stage, instruction.peer)
            transfer = (instruction.direction, instruction.micro_batch, *stages)
            if phase_of(instruction) is Phase.POST:
                posted[transfer] = start
            elif transfer in posted:
                number = (run.number << 32) + executed.placed.offset
                yield from transfer_bar(lane, instruction, number, posted.pop(transfer), end)
    for at, error in rank.errors:
        text = f"{error.kind}: {error.message}"
        yield lane.event("i", (at - origin) / 1e3, s="t", name=text, cat="error")
