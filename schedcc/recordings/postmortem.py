"""Postmortem: what each rank of a recorded run was doing, and which one was the cause.

The cause is, in this order:

1. an *error* that a rank made itself: the first one (a lost connection, or the report of another
   rank's error, is a symptom);
2. a *deadlock*: ranks whose instructions need each other, in a circle. A sound plan has none;
3. a rank without an error that waits for no other such rank: it *vanished*, if others were left to
   notice, or is *stuck* in an instruction.
"""

from collections.abc import Iterable

import networkx as nx
import numpy as np

from schedcc.recordings.recording import RankRecording, RecordedRun, Recording, rank_in_words
from schedcc.recordings.waits import waits
from schedcc.table.codes import IS_FORWARD, IS_PAIRED, IS_SEND
from schemas import Placed, TransferInstruction
from schemas.reports.postmortem import (
    Activity,
    Cause,
    ExecutionPoint,
    Postmortem,
    RankState,
    RankStatus,
    Wait,
)


def postmortem(recording: Recording) -> Postmortem:
    """Examine a recording."""
    ranks = tuple(_status(rank, recording) for rank in recording.ranks)
    found = tuple(
        wait
        for pipeline, by_rank in recording.pipelines.items()
        for run in sorted(set.union(*(rank.stopped_in for rank in by_rank.values())))
        for wait in waits(recording, pipeline, run)
    )
    return Postmortem(
        cause=_cause(recording, ranks, found),
        ranks=ranks,
        waits=found,
        damages=recording.damages,
        seconds=_seconds(recording.last - min(rank.first for rank in recording.ranks)),
    )


def _status(rank: RankRecording, recording: Recording) -> RankStatus:
    run = rank.runs[-1] if rank.runs else None
    inside = None if run is None else run.executed.inside
    state = RankState.VANISHED
    if rank.failed:
        state = RankState.FAILED
    elif rank.closed:
        state = RankState.CLOSED
    elif rank.alive:
        state = RankState.RUNNING
    return RankStatus(
        rank=rank.header.rank,
        stage_id=rank.stage_id,
        stages=rank.stages,
        replica=rank.header.replica,
        pipeline=rank.header.pipeline,
        state=state,
        run=None if run is None else run.number,
        micro_batches=(
            None
            if run is None
            else recording.micro_batches(recording.pipeline_of(rank), run.number)
        ),
        instruction=None if run is None or inside is None else _point(rank, run, inside.placed),
        since=_seconds(recording.last - (rank.last if inside is None else inside.start)),
        error=rank.errors[-1][1] if rank.failed else None,
        activity=_activity(rank),
    )


def _point(rank: RankRecording, run: RecordedRun, placed: Placed) -> ExecutionPoint:
    return ExecutionPoint(
        rank=rank.header.rank,
        stage_id=rank.stage_id,
        run=run.number,
        step=placed.step,
        instruction=placed.instruction,
    )


def _activity(rank: RankRecording) -> Activity:
    instructions = forward = transfer = everything = sent = received = 0
    for run in rank.runs:
        executed = run.executed
        left = executed.left
        op, took = executed.rows.op[left], (executed.end - executed.start)[left]
        moved = np.maximum(executed.nbytes[left], 0)
        instructions += len(op)
        everything += int(took.sum())
        forward += int(took[IS_FORWARD[op]].sum())
        transfer += int(took[IS_PAIRED[op]].sum())
        sent += int(moved[IS_SEND[op]].sum())
        received += int(moved[IS_PAIRED[op] & ~IS_SEND[op]].sum())
    return Activity(
        runs=len(rank.runs),
        instructions=instructions,
        forward_seconds=_seconds(forward),
        transfer_seconds=_seconds(transfer),
        other_seconds=_seconds(everything - forward - transfer),
        sent_bytes=sent,
        received_bytes=received,
    )


def _cause(
    recording: Recording, ranks: tuple[RankStatus, ...], found: tuple[Wait, ...]
) -> Cause | None:
    unfinished = {r.rank: r for r in ranks if r.state is not RankState.CLOSED}
    if not unfinished:
        return None
    origins = {r for r, status in unfinished.items() if status.error and not status.error.symptom}
    if origins:
        return _error(recording, ranks, origins)
    graph = nx.DiGraph((wait.waiter.rank, wait.needed.rank) for wait in found)
    graph.add_nodes_from(unfinished)
    knots = [sorted(c) for c in nx.strongly_connected_components(graph) if len(c) > 1]
    if knots:
        names = _and(f"rank {rank}" for rank in knots[0])
        return Cause(kind="deadlock", ranks=tuple(knots[0]), message=f"{names} wait for each other")
    silent = {rank for rank, status in unfinished.items() if status.error is None}
    if not silent:
        return _error(recording, ranks, set(unfinished))
    roots = [rank for rank in sorted(silent) if not nx.descendants(graph, rank) & silent]
    # A rank that others need is a better answer than one that nobody misses, and that than one
    # which was in no instruction.
    inside = [rank for rank in roots if unfinished[rank].instruction is not None]
    missed = [rank for rank in roots if nx.ancestors(graph, rank)]
    suspects = [unfinished[rank] for rank in missed or inside or roots]
    return _silence(recording, suspects, ranks, found)


def _error(recording: Recording, ranks: tuple[RankStatus, ...], among: set[int]) -> Cause:
    first = min((r.errors[-1][0], r.header.rank) for r in recording.ranks if r.header.rank in among)
    status = next(status for status in ranks if status.rank == first[1])
    assert status.error is not None
    same = {r.rank for r in ranks if r.rank in among and r.error and _says(r) == _says(status)}
    who = _who(status) if len(same) == 1 else _and(f"rank {rank}" for rank in sorted(same))
    where = f" in {_where(status)}" if status.instruction else " outside of a run"
    return Cause(
        kind="error",
        ranks=tuple(sorted(same)),
        message=f"{who} raised {_says(status)}{where}",
        traceback=status.error.traceback,
    )


def _silence(
    recording: Recording,
    suspects: list[RankStatus],
    ranks: tuple[RankStatus, ...],
    found: tuple[Wait, ...],
) -> Cause:
    """Ranks that ended, or stand still, without an error."""
    everyone_vanished = all(r.state in (RankState.VANISHED, RankState.CLOSED) for r in ranks)
    unfinished = [r for r in ranks if r.state is not RankState.CLOSED]
    names = tuple(r.rank for r in suspects)
    vanished = [r for r in suspects if r.state is RankState.VANISHED]
    if vanished and not (everyone_vanished and len(unfinished) > 1):
        message = "; ".join(f"{_who(r)} vanished {_whereabouts(r)}" for r in vanished)
        return Cause(kind="vanished", ranks=tuple(r.rank for r in vanished), message=message)
    if all(r.instruction is None for r in unfinished):
        message = f"no rank was inside an instruction: {_and(map(_who, suspects))} stopped "
        message += "; ".join(dict.fromkeys(_whereabouts(r) for r in suspects))
        return Cause(kind="unknown", ranks=names, message=message)
    message = "; ".join(f"{_who(r)} {_standstill(recording, r, found)}" for r in suspects)
    return Cause(kind="stuck", ranks=names, message=message)


def _standstill(recording: Recording, status: RankStatus, found: tuple[Wait, ...]) -> str:
    if status.instruction is None:
        return f"stopped {_whereabouts(status)}"
    verb = "has not" if status.state is RankState.RUNNING else "did not"
    text, instruction = f"{verb} come out of {_where(status)}", status.instruction.instruction
    waits_for = [str(w.needed) for w in found if w.waiter.rank == status.rank]
    if waits_for:
        return f"{text}, which needed {_and(waits_for)}"
    if isinstance(instruction, TransferInstruction):
        if status.micro_batches is not None and instruction.micro_batch >= status.micro_batches:
            return f"{text}, though the data ended after {status.micro_batches} micro-batches"
        if missing := _missing_peer(recording, status, instruction):
            return f"{text}: {missing} left no recording"
        return f"{text}, though the other end of the transfer had begun"
    return text


def _missing_peer(
    recording: Recording, status: RankStatus, instruction: TransferInstruction
) -> str | None:
    """Who was at the other end of a transfer, if there is no recording of it."""
    rank = next(rank for rank in recording.ranks if rank.header.rank == status.rank)
    plan = next((run.plan.header for run in reversed(rank.runs) if run.plan), None)
    peer = instruction.peer if plan is None else plan.rank_of(instruction.peer)
    if peer in recording.pipelines[recording.pipeline_of(rank)]:
        return None
    one_to_one = plan is None or plan.is_one_to_one
    return f"stage {peer}" if one_to_one else f"rank {peer} of its pipeline"


def _whereabouts(status: RankStatus) -> str:
    if status.instruction is not None:
        return f"in {_where(status)}"
    return (
        "before its first run" if status.run is None else f"after its last line of run {status.run}"
    )


def _where(status: RankStatus) -> str:
    assert status.instruction is not None
    return f"run {status.run}, {status.instruction.where}"


def _says(status: RankStatus) -> str:
    assert status.error is not None
    return f"{status.error.kind}: {status.error.message}"


def _who(status: RankStatus) -> str:
    return rank_in_words(status.rank, status.stages)


def _and(words: Iterable[str]) -> str:
    *most, final = words
    return f"{', '.join(most)} and {final}" if most else final


def _seconds(nanoseconds: int) -> float:
    return nanoseconds / 1e9
