"""The order in time of a recorded run, against the dependencies of its plan.

Only what holds on every transport counts: a stage executes its instructions one after the other,
and a message is not there before it is sent. That a send ends only with its receive is no such
rule, because transports may buffer; nor is that nobody leaves a collective before all have entered
it, because its source may.

Times are taken before a start and after an end, so on one clock they cannot contradict what really
happened, however late they were taken.
"""

from collections.abc import Iterator

import networkx as nx

from schedcc.analysis.graph import Event
from schedcc.io.plain_text import visible
from schedcc.recordings.recording import PipelineId, Recording
from schedcc.recordings.skipped import run_graph
from schemas import BufferInstruction, Phase, PipelinePlan, TransportModel
from schemas.conformance import Deviation


class Causality:
    """What comes before what in a plan, to be compared with the runs of a recording."""

    def __init__(self, plan: PipelinePlan, recording: Recording, clock_error: float) -> None:
        """Compare with `plan`; clocks of different machines may differ by `clock_error` seconds."""
        self._recording, self._clock_error = recording, clock_error
        self._plan = plan
        self._graphs: dict[int | None, nx.DiGraph[Event]] = {}
        self._acyclic = nx.is_directed_acyclic_graph(self._graph_for(None))
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

    def _graph_for(self, micro_batches: int | None) -> "nx.DiGraph[Event]":
        """The dependencies of a run whose data held so many micro-batches."""
        if micro_batches not in self._graphs:
            instructions = sum(1 for program in self._plan.programs for _ in program.placed())
            lax = TransportModel(queue="channel", buffered_sends=instructions)
            graph = run_graph(self._plan, micro_batches, lax)
            edges = graph.edges(data="why")
            graph.remove_edges_from([(a, b) for a, b, why in edges if why == "collective"])
            self._graphs[micro_batches] = graph
        return self._graphs[micro_batches]

    def contradictions(self, pipeline: PipelineId, run: int) -> Iterator[Deviation]:
        """Events of a run that are earlier than something they depend on.

        The latest known time is followed along the dependencies, past events that nobody records
        (when a posted transfer ends).
        """
        if not self._acyclic or self._devices:
            return
        graph = self._graph_for(self._recording.micro_batches(pipeline, run))
        times = self._times(pipeline, run)
        latest: dict[Event, Event] = {}
        for event in nx.topological_sort(graph):
            before = [latest[b] for b in graph.predecessors(event) if b in latest]
            cause = max(before, key=times.__getitem__, default=None)
            if event in times:
                if cause is not None:
                    yield from self._compared(graph, pipeline, run, cause, event, times)
                latest[event] = event
            elif cause is not None:
                latest[event] = cause

    def _times(self, pipeline: PipelineId, run: int) -> dict[Event, int]:
        times = {}
        for stage, rank in self._recording.pipelines[pipeline].items():
            recorded = rank.run(run)
            for executed in [] if recorded is None else recorded.executed:
                offset, instruction = executed.placed.offset, executed.placed.instruction
                times[Event(stage, offset, "start")] = executed.start
                posts = (
                    isinstance(instruction, BufferInstruction)
                    and instruction.effects.phase is Phase.POST
                )
                if executed.end is not None and not posts:
                    times[Event(stage, offset, "end")] = executed.end
        return times

    def _compared(
        self,
        graph: "nx.DiGraph[Event]",
        pipeline: PipelineId,
        run: int,
        cause: Event,
        event: Event,
        times: dict[Event, int],
    ) -> Iterator[Deviation]:
        ranks = self._recording.pipelines[pipeline]
        first, second = ranks[cause.rank].header, ranks[event.rank].header
        allowed = 0 if first.clock == second.clock else int(self._clock_error * 1e9)
        early = times[cause] - times[event]
        if early > allowed:
            message = (
                f"the {event.moment} of {_name(graph, event)} is {early / 1e9:.6f} s before the "
                f"{cause.moment} of {_name(graph, cause)} on rank {first.rank}, "
                "which it depends on"
            )
            step = graph.nodes[event]["step"]
            yield Deviation(code="order", message=message, rank=second.rank, run=run, step=step)


def _name(graph: "nx.DiGraph[Event]", event: Event) -> str:
    return str(graph.nodes[event]["instruction"])
