"""The order in time of a recorded run, against the dependencies of its plan.

Only what holds on every transport counts: a rank executes its instructions one after the other,
and a message is not there before it is sent. That a send ends only with its receive is no such
rule, because transports may buffer; nor is that nobody leaves a collective before all have entered
it, because its source may.

Times are taken before a start and after an end, so on one clock they cannot contradict what really
happened, however late they were taken.
"""

from collections.abc import Iterator

import numpy as np

from schedcc.analysis.dependencies import ends, starts
from schedcc.analysis.levels import levels
from schedcc.io.plain_text import visible
from schedcc.recordings.recording import PipelineId, Recording
from schedcc.recordings.run_graph import RunGraph
from schedcc.table.codes import IS_POST, Bools, Ints
from schedcc.table.table import PlanTable
from schemas import TransportModel
from schemas.reports.conformance import Deviation

LISTED = 100
"""Contradictions of a run that are listed; the others are counted."""


class Causality:
    """What comes before what in a plan, to be compared with the runs of a recording."""

    def __init__(self, table: PlanTable, recording: Recording, clock_error: float) -> None:
        """Compare with a plan; clocks of different machines may differ by `clock_error` seconds.

        Raises:
            ValueError: `clock_error` is no number of seconds.
        """
        if not 0 <= clock_error < 1e9:
            raise ValueError(f"clock error is {clock_error:g}, needed seconds, 0 or more")
        self._recording, self._clock_error = recording, clock_error
        self._table = table
        self._graphs: dict[int | None, RunGraph] = {}
        whole = self._graph_for(None).graph
        self._acyclic = not levels(whole, np.zeros(whole.events)).stuck.any()
        self._devices = sorted({rank.header.device for rank in recording.ranks} - {"cpu"})

    def limits(self) -> Iterator[str]:
        """What cannot be told about the order, and why."""
        if not self._acyclic:
            yield "the plan waits for itself (schedcc check): the order in time is not compared"
        elif self._devices:
            yield (
                f"on {', '.join(map(visible, self._devices))} instructions end when they have been "
                "enqueued: the order in time is not compared"
            )
        elif not self._recording.one_clock:
            yield (
                "the ranks have different clocks: the order in time between them is compared "
                f"to within {self._clock_error:g} s"
            )

    def _graph_for(self, micro_batches: int | None) -> RunGraph:
        """The dependencies of a run whose data held so many micro-batches."""
        if micro_batches not in self._graphs:
            if len(self._graphs) > 1:  # that of whole runs, and another one
                self._graphs.popitem()
            lax = TransportModel(queue="channel", buffered_sends=len(self._table.rows))
            self._graphs[micro_batches] = RunGraph.of(
                self._table, micro_batches, lax, without="collective"
            )
        return self._graphs[micro_batches]

    def contradictions(self, pipeline: PipelineId, run: int) -> Iterator[Deviation]:
        """Events of a run that are earlier than something they depend on.

        The latest known time is followed along the dependencies, past events that nobody records
        (when a posted transfer ends).
        """
        if not self._acyclic or self._devices:
            return
        graph = self._graph_for(self._recording.micro_batches(pipeline, run))
        times, recorded = self._times(graph, pipeline, run)
        causes = latest_causes(graph, times, recorded)
        events = np.flatnonzero(recorded & (causes >= 0))
        cause = causes[events]
        clock = self._clocks(graph, pipeline)
        same = clock[cause // 2] == clock[events // 2]
        allowed = np.where(same, 0, int(self._clock_error * 1e9))
        wrong = times[cause] - times[events] > allowed
        found = events[wrong][np.argsort(times[events[wrong]], kind="stable")]
        for event in found[:LISTED].tolist():
            yield self._deviation(graph, pipeline, run, int(causes[event]), event, times)
        if len(found) > LISTED:
            yield Deviation(code="order", message=f"{len(found) - LISTED:,} more of these", run=run)

    def _times(self, graph: RunGraph, pipeline: PipelineId, run: int) -> tuple[Ints, Bools]:
        """`[events]`: when each event happened, in nanoseconds, and whether that is recorded."""
        times = np.zeros(graph.graph.events, dtype=np.int64)
        recorded = np.zeros(graph.graph.events, dtype=bool)
        for number, rank in self._recording.pipelines[pipeline].items():
            found = rank.run(run)
            if found is None:
                continue
            executed = found.executed
            rows = graph.rows_at(number, executed.offset)
            for event_of, when, known in (
                (starts, executed.start, ~executed.late),
                (ends, executed.end, executed.left & ~IS_POST[executed.rows.op]),
            ):
                kept = known & (rows >= 0)
                times[event_of(rows[kept])] = when[kept]
                recorded[event_of(rows[kept])] = True
        return times, recorded

    def _clocks(self, graph: RunGraph, pipeline: PipelineId) -> Ints:
        """`[rows]`: a number for the clock of each row's rank."""
        names: dict[str, int] = {}
        ranks = self._recording.pipelines[pipeline]
        of_program = [
            names.setdefault(ranks[rank].header.clock, len(names)) if rank in ranks else -1
            for rank in graph.table.rank_ids.tolist()
        ]
        return np.array(of_program, dtype=np.int64)[graph.table.program]

    def _deviation(
        self, graph: RunGraph, pipeline: PipelineId, run: int, cause: int, event: int, times: Ints
    ) -> Deviation:
        ranks = self._recording.pipelines[pipeline]
        first = ranks[graph.rank_of(cause)].header.rank
        second = ranks[graph.rank_of(event)].header.rank
        early, placed = int(times[cause] - times[event]), graph.placed(event)
        message = (
            f"the {_MOMENTS[event % 2]} of {placed.instruction} is {early / 1e9:.6f} s before the "
            f"{_MOMENTS[cause % 2]} of {graph.placed(cause).instruction} on rank {first}, "
            "which it depends on"
        )
        return Deviation(code="order", message=message, rank=second, run=run, step=placed.step)


def latest_causes(graph: RunGraph, times: Ints, recorded: Bools) -> Ints:
    """`[events]`: of the recorded events that each comes after, the latest; -1: there is none.

    Those that it comes after directly, or by way of events that are not recorded.
    """
    order = np.flatnonzero(recorded)
    order = order[np.argsort(times[order], kind="stable")]
    place = np.full(graph.graph.events, -1)
    place[order] = np.arange(len(order))
    latest = np.full(graph.graph.events, -1)
    source = np.concatenate([edges.source for edges in graph.graph.edges])
    target = np.concatenate([edges.target for edges in graph.graph.edges])
    known = recorded[source]
    np.maximum.at(latest, target[known], place[source[known]])
    # Among the others, each in its turn: when all that it comes after are settled.
    source, target = source[~known], target[~known]
    waits = np.bincount(target, minlength=graph.graph.events)
    by_source = np.argsort(source, kind="stable")
    target = target[by_source]
    first = np.zeros(graph.graph.events + 1, dtype=np.int64)
    np.cumsum(np.bincount(source, minlength=graph.graph.events), out=first[1:])
    ready = np.flatnonzero(~recorded & (waits == 0))
    while len(ready):
        counts = first[ready + 1] - first[ready]
        edges = np.repeat(first[ready] - np.cumsum(counts) + counts, counts)
        reached = target[edges + np.arange(counts.sum())]
        np.maximum.at(latest, reached, np.repeat(latest[ready], counts))
        np.subtract.at(waits, reached, 1)
        ready = np.unique(reached[(waits[reached] == 0) & ~recorded[reached]])
    return np.where(latest >= 0, order[latest], -1) if len(order) else latest


_MOMENTS = ("start", "end")
