"""Who waited for whom when a run stopped: the dependency graph, as far as it has not happened."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from schedcc.analysis.dependencies import ends, starts
from schedcc.recordings.recording import PipelineId, RecordedRun, Recording
from schedcc.recordings.run_graph import Neighbours, RunGraph
from schedcc.table.codes import NONE, Bools
from schemas import Direction, HandOver, TransferInstruction, TransportModel
from schemas.reports.postmortem import ExecutionPoint, Wait

_MODELS = (TransportModel(queue="channel"), TransportModel())
"""Asked in turn. A queue per channel leaves the waits that no transport can do without; a transfer
that these do not explain may be held up by the order of a rank's one queue."""


def waits(recording: Recording, pipeline: PipelineId, run: int) -> list[Wait]:
    """The waits among the ranks of one pipeline, in one of its runs."""
    table = recording.plan_table(pipeline, run)
    if table is None:
        return []
    ranks = recording.pipelines[pipeline]
    progress = {
        number: Progress.of(began)
        for number, rank in ranks.items()
        if (began := rank.run(run)) is not None
    }
    absent = sorted(ranks.keys() - progress.keys())
    stuck = [(rank, at.entered) for rank, at in sorted(progress.items()) if at.inside]
    found: dict[int, list[Wait]] = {}
    for model in _MODELS:
        if all(found.get(rank) for rank, _ in stuck):
            break
        graph = RunGraph.of(table, recording.micro_batches(pipeline, run), model)
        pending = _pending(graph, progress)
        before = Neighbours.before(graph.graph, pending, pending)
        for rank, entered in stuck:
            (row,) = graph.rows_at(rank, np.array([entered]))
            if row == NONE or found.get(rank):
                continue
            waiter = int(ends(row))
            here = Point(graph, recording, pipeline, run)
            found[rank] = [
                *(
                    Wait(waiter=here.at(waiter), needed=here.at(needed), why=why)
                    for needed, why in _needed(graph, waiter, before)
                ),
                *(
                    Wait(waiter=here.at(waiter), needed=here.before(needed), why=why)
                    for needed, why in _not_begun(graph, waiter, absent)
                ),
            ]
    return [wait for rank, _ in stuck for wait in found.get(rank, [])]


@dataclass(frozen=True)
class Progress:
    """How far a rank came in its program."""

    entered: int = -1
    """Offset of the last instruction that was entered."""
    left: int = -1
    """Offset of the last instruction that was left."""

    @property
    def inside(self) -> bool:
        """Whether the rank is inside an instruction."""
        return self.left < self.entered

    @classmethod
    def of(cls, run: RecordedRun) -> "Progress":
        """The progress of a run."""
        if len(run.executed) == 0:
            return cls()
        entered = int(run.executed.offset[-1])
        return cls(entered, entered - run.executed.is_open)


@dataclass(frozen=True)
class Point:
    """Makes the points of execution that a wait names."""

    graph: RunGraph
    recording: Recording
    pipeline: PipelineId
    run: int

    def at(self, event: int) -> ExecutionPoint:
        """The instruction that an event belongs to."""
        placed = self.graph.placed(event)
        return ExecutionPoint(
            **self._of(self.graph.rank_of(event)), step=placed.step, instruction=placed.instruction
        )

    def before(self, rank: int) -> ExecutionPoint:
        """A rank that has not begun the run."""
        return ExecutionPoint(**self._of(rank), step=None, instruction=None)

    def _of(self, number: int) -> dict[str, Any]:
        rank = self.recording.pipelines[self.pipeline][number]
        return {"rank": rank.header.rank, "stage_id": rank.stage_id, "run": self.run}


def _pending(graph: RunGraph, progress: dict[int, Progress]) -> Bools:
    """`[events]`: whether an event has not happened.

    Nothing records when a posted transfer ends. It has not ended if something that it comes after
    has not happened.
    """
    table = graph.table
    by_program = [progress.get(rank, Progress()) for rank in table.rank_ids.tolist()]
    entered = np.array([at.entered for at in by_program])[table.program]
    left = np.array([at.left for at in by_program])[table.program]
    rows, pending = np.arange(len(table.rows)), np.zeros(graph.graph.events, dtype=bool)
    pending[starts(rows)] = graph.offset > entered
    posted = graph.ends_posted[ends(rows)]
    pending[ends(rows)] = graph.offset > np.where(posted, entered, left)
    after = Neighbours.after(graph.graph, pending | graph.ends_posted, graph.ends_posted & ~pending)
    new = np.flatnonzero(pending)
    while len(new):
        reached = np.unique(after.of_all(new))
        new = reached[~pending[reached]]
        pending[new] = True
    return pending


def _needed(graph: RunGraph, waiter: int, pending: Neighbours) -> Iterator[tuple[int, str]]:
    """The first pending events of other ranks that `waiter` comes after."""
    seen, rest = {waiter}, [waiter]
    while rest:
        event = rest.pop()
        for before, why in pending.of_one(event).items():
            if before in seen:
                continue
            seen.add(before)
            if graph.rank_of(before) == graph.rank_of(waiter):
                rest.append(before)  # the rank's own transfer under way, which it waits for
            else:
                yield before, why


def _not_begun(graph: RunGraph, waiter: int, absent: list[int]) -> Iterator[tuple[int, str]]:
    """Ranks that have not begun the run, and so have no plan, but a part in an instruction."""
    instruction, table = graph.placed(waiter).instruction, graph.table
    if isinstance(instruction, TransferInstruction):
        peer = table.rank_of_one(instruction.peer)
        if peer in absent:
            yield peer, "data" if instruction.direction is Direction.RECV else "rendezvous"
    elif isinstance(instruction, HandOver):
        members = instruction.members(table.ranks, table.rank_of_one)
        yield from ((rank, "collective") for rank in absent if rank in members)
