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

from schedcc.graph import Event, dependency_graph
from schedcc.recordings.recording import Recording
from schemas import BufferInstruction, Phase, PipelinePlan, TransportModel
from schemas.conformance import Deviation


class Causality:
    """What comes before what in a plan, to be compared with the runs of a recording."""

    def __init__(self, plan: PipelinePlan, recording: Recording, clock_error: float) -> None:
        """Compare with `plan`; clocks of different machines may differ by `clock_error` seconds."""
        self._recording, self._clock_error = recording, clock_error
        instructions = sum(1 for program in plan.programs for _ in program.placed())
        lax = TransportModel(queue="channel", buffered_sends=instructions)
        self._graph = dependency_graph(plan, lax)
        edges = self._graph.edges(data="why")
        self._graph.remove_edges_from([(a, b) for a, b, why in edges if why == "collective"])
        self._acyclic = nx.is_directed_acyclic_graph(self._graph)
        self._devices = sorted({rank.header.device for rank in recording.ranks} - {"cpu"})

    def limits(self) -> Iterator[str]:
        """What cannot be told about the order, and why."""
        if not self._acyclic:
            yield "the plan waits for itself (schedcc check): the order in time is not compared"
        elif self._devices:
            yield (
                f"on {', '.join(self._devices)} instructions end when they have been enqueued: "
                "the order in time is not compared"
            )
        elif not self._recording.one_clock:
            yield (
                "the ranks have different clocks: the order in time between them is compared "
                f"to within {self._clock_error:g} s"
            )

    def contradictions(self, replica: int, run: int) -> Iterator[Deviation]:
        """Events of a run that are earlier than something they depend on.

        The latest known time is followed along the dependencies, past events that nobody records
        (when a posted transfer ends).
        """
        if not self._acyclic or self._devices:
            return
        times = self._times(replica, run)
        latest: dict[Event, Event] = {}
        for event in nx.topological_sort(self._graph):
            before = [latest[b] for b in self._graph.predecessors(event) if b in latest]
            cause = max(before, key=times.__getitem__, default=None)
            if event in times:
                if cause is not None:
                    yield from self._compared(replica, run, cause, event, times)
                latest[event] = event
            elif cause is not None:
                latest[event] = cause

    def _times(self, replica: int, run: int) -> dict[Event, int]:
        times = {}
        for stage, rank in self._recording.replica(replica).items():
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
        self, replica: int, run: int, cause: Event, event: Event, times: dict[Event, int]
    ) -> Iterator[Deviation]:
        ranks = self._recording.replica(replica)
        first, second = ranks[cause.stage_id].header, ranks[event.stage_id].header
        allowed = 0 if first.clock == second.clock else int(self._clock_error * 1e9)
        early = times[cause] - times[event]
        if early > allowed:
            message = (
                f"the {event.moment} of {self._name(event)} is {early / 1e9:.6f} s before the "
                f"{cause.moment} of {self._name(cause)} on rank {first.rank}, which it depends on"
            )
            step = self._graph.nodes[event]["step"]
            yield Deviation(code="order", message=message, rank=second.rank, run=run, step=step)

    def _name(self, event: Event) -> str:
        return str(self._graph.nodes[event]["instruction"])
