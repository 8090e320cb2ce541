"""Who waited for whom when a run stopped: the dependency graph, as far as it has not happened."""

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx

from schedcc.graph import Event, dependency_graph
from schedcc.recordings import Recording, Run
from schemas import BufferInstruction, Phase, TransportModel
from schemas.postmortem import Position, Wait

_MODELS = (TransportModel(queue="channel"), TransportModel())
"""Asked in turn. A queue per channel leaves the waits that no transport can do without; where it
leaves none, the order of a stage's one queue may explain what is stuck."""


def waits(recording: Recording, replica: int, run: int) -> list[Wait]:
    """The waits among the ranks of one copy of the pipeline, in one of its runs."""
    plan = recording.plan(replica, run)
    if plan is None:
        return []
    stages = recording.replica(replica)
    progress = {stage: Progress.of(rank.run(run)) for stage, rank in stages.items()}
    for model in _MODELS:
        graph = dependency_graph(plan, model)
        found = [
            Wait(
                waiter=_position(recording, graph, replica, run, waiter),
                needed=_position(recording, graph, replica, run, needed),
                why=why,
            )
            for waiter in _stuck(progress, graph)
            for needed, why in _needed(graph, waiter, progress)
        ]
        if found:
            return found
    return []


@dataclass(frozen=True)
class Progress:
    """How far a stage came in its program."""

    entered: int = -1
    """Offset of the last instruction that was entered."""
    left: int = -1
    """Offset of the last instruction that was left."""

    @classmethod
    def of(cls, run: Run | None) -> "Progress":
        """The progress of a run; none of one that a rank never began."""
        if run is None or not run.executed:
            return cls()
        entered = run.executed[-1].placed.offset
        return cls(entered, entered if run.open is None else entered - 1)


def _stuck(progress: dict[int, Progress], graph: "nx.DiGraph[Event]") -> Iterator[Event]:
    for stage, reached in sorted(progress.items()):
        event = Event(stage, reached.entered, "end")
        if reached.left < reached.entered and event in graph:
            yield event


def _needed(
    graph: "nx.DiGraph[Event]", waiter: Event, progress: dict[int, Progress]
) -> Iterator[tuple[Event, str]]:
    """The first events of other stages that have not happened and that `waiter` comes after."""
    seen, rest = {waiter}, [waiter]
    while rest:
        event = rest.pop()
        for before in graph.predecessors(event):
            if before in seen or _happened(graph, before, progress):
                continue
            seen.add(before)
            if before.stage_id == waiter.stage_id or _is_posted(graph, before):
                rest.append(before)  # a transfer under way: it is what that waits for
            else:
                yield before, graph.edges[before, event]["why"]


def _happened(graph: "nx.DiGraph[Event]", event: Event, progress: dict[int, Progress]) -> bool:
    """Whether an event is known to have happened. Nothing records when a posted transfer ends."""
    reached = progress.get(event.stage_id, Progress())
    if event.moment == "start":
        return event.offset <= reached.entered
    return event.offset <= reached.left and not _is_posted(graph, event)


def _is_posted(graph: "nx.DiGraph[Event]", event: Event) -> bool:
    instruction = graph.nodes[event]["instruction"]
    posted = isinstance(instruction, BufferInstruction) and instruction.effects.phase is Phase.POST
    return posted and event.moment == "end"


def _position(
    recording: Recording, graph: "nx.DiGraph[Event]", replica: int, run: int, event: Event
) -> Position:
    return Position(
        rank=recording.replica(replica)[event.stage_id].header.rank,
        stage_id=event.stage_id,
        run=run,
        step=graph.nodes[event]["step"],
        instruction=graph.nodes[event]["instruction"],
    )
