"""The trace of a recording."""

from collections.abc import Iterator
from itertools import count
from typing import Any

from schedcc.recordings.recording import RankRecording, RecordedRun, Recording
from schedcc.recordings.timed import numbers_of_runs
from schedcc.trace.flows import Flows, Slices
from schedcc.trace.slices import Lane, TraceEvent, described, document, phase_of, transfer_bar
from schemas import Phase, TransferInstruction


def recorded_trace(recording: Recording, run: int | None = None) -> dict[str, Any]:
    """The trace of a recording; what never ended is drawn as open.

    Args:
        recording: Any recording.
        run: Of this run alone; default: of all.

    Raises:
        ValueError: there is no such run.
    """
    origin = min(rank.first for rank in recording.ranks)
    numbers = numbers_of_runs(recording, run)
    events: list[TraceEvent] = []
    ids = count(1)
    for number, (pipeline, by_rank) in enumerate(recording.pipelines.items()):
        holds = {stage: rank for rank, file in by_rank.items() for stage in file.stages}
        flows = {each: Flows(holds) for each in numbers}
        for rank in by_rank.values():
            lane = Lane(number, rank.pipeline_rank, rank.stage_id is None)
            events += lane.names(str(pipeline), rank.name)
            events += _rank_events(rank, lane, flows, origin)
        for own in flows.values():
            events += own.events(ids)
    return document(events)


def _rank_events(
    rank: RankRecording, lane: Lane, flows: dict[int, Flows], origin: int
) -> Iterator[TraceEvent]:
    slices = Slices(lane)
    for run in rank.runs:
        if run.number in flows:
            yield from _run_events(run, slices, flows[run.number], origin)
    for at, error in rank.errors:
        text = f"{error.kind}: {error.message}"
        yield lane.event("i", (at - origin) / 1e3, s="t", name=text, cat="error")


def _run_events(
    run: RecordedRun, slices: Slices, flows: Flows, origin: int
) -> Iterator[TraceEvent]:
    lane = slices.lane
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
        flows.add(slices, instruction, own=True)
        slices.add(start, end)
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
