"""Who waited for whom when a run stopped: the dependency graph, as far as it has not happened."""

from collections.abc import Iterator
from dataclasses import dataclass

import networkx as nx

from schedcc.analysis.graph import Event
from schedcc.recordings.recording import PipelineId, Recording, Run
from schedcc.recordings.skipped import run_graph
from schemas import (
    BufferInstruction,
    Direction,
    HandOver,
    Phase,
    PipelinePlan,
    TransferInstruction,
    TransportModel,
)
from schemas.postmortem import Position, Wait

_MODELS = (TransportModel(queue="channel"), TransportModel())
"""Asked in turn. A queue per channel leaves the waits that no transport can do without; a transfer
that these do not explain may be held up by the order of a stage's one queue."""


def waits(recording: Recording, pipeline: PipelineId, run: int) -> list[Wait]:
    """The waits among the ranks of one pipeline, in one of its runs."""
    plan = recording.plan(pipeline, run)
    if plan is None:
        return []
    stages = recording.pipelines[pipeline]
    progress = {
        stage: Progress.of(began)
        for stage, rank in stages.items()
        if (began := rank.run(run)) is not None
    }
    absent = sorted(stages.keys() - progress.keys())
    stuck = [Event(stage, at.entered, "end") for stage, at in progress.items() if at.inside]
    found: dict[Event, list[Wait]] = {}
    for model in _MODELS:
        graph = run_graph(plan, recording.micro_batches(pipeline, run), model)
        pending = _pending(graph, progress)
        for waiter in stuck:
            if waiter not in graph or found.get(waiter):
                continue
            found[waiter] = [
                Wait(
                    waiter=_position(recording, graph, pipeline, run, waiter),
                    needed=_position(recording, graph, pipeline, run, needed),
                    why=why,
                )
                for needed, why in (
                    *_needed(graph, waiter, pending),
                    *_not_begun(graph, waiter, absent, plan),
                )
            ]
    return [wait for waiter in sorted(found) for wait in found[waiter]]


@dataclass(frozen=True)
class Progress:
    """How far a stage came in its program."""

    entered: int = -1
    """Offset of the last instruction that was entered."""
    left: int = -1
    """Offset of the last instruction that was left."""

    @property
    def inside(self) -> bool:
        """Whether the stage is inside an instruction."""
        return self.left < self.entered

    @classmethod
    def of(cls, run: Run) -> "Progress":
        """The progress of a run."""
        if not run.executed:
            return cls()
        entered = run.executed[-1].placed.offset
        return cls(entered, entered if run.open is None else entered - 1)


def _pending(graph: "nx.DiGraph[Event]", progress: dict[int, Progress]) -> set[Event]:
    """The events that have not happened.

    Nothing records when a posted transfer ends. It has not ended if something that it comes after
    has not happened.
    """
    pending = {event for event in graph if not _happened(graph, event, progress)}
    rest = list(pending)
    while rest:
        for after in graph.successors(rest.pop()):
            if _is_posted(graph, after) and after not in pending:
                pending.add(after)
                rest.append(after)
    return pending


def _happened(graph: "nx.DiGraph[Event]", event: Event, progress: dict[int, Progress]) -> bool:
    reached = progress[event.rank]
    entered = event.moment == "start" or _is_posted(graph, event)
    return event.offset <= (reached.entered if entered else reached.left)


def _is_posted(graph: "nx.DiGraph[Event]", event: Event) -> bool:
    instruction = graph.nodes[event]["instruction"]
    posted = isinstance(instruction, BufferInstruction) and instruction.effects.phase is Phase.POST
    return posted and event.moment == "end"


def _needed(
    graph: "nx.DiGraph[Event]", waiter: Event, pending: set[Event]
) -> Iterator[tuple[Event, str]]:
    """The first pending events of other stages that `waiter` comes after."""
    seen, rest = {waiter}, [waiter]
    while rest:
        event = rest.pop()
        for before in graph.predecessors(event):
            if before not in pending or before in seen:
                continue
            seen.add(before)
            if before.rank == waiter.rank:
                rest.append(before)  # the stage's own transfer under way, which it waits for
            else:
                yield before, graph.edges[before, event]["why"]


def _not_begun(
    graph: "nx.DiGraph[Event]", waiter: Event, absent: list[int], plan: PipelinePlan
) -> Iterator[tuple[Event, str]]:
    """Stages that have not begun the run, and so have no plan, but a part in an instruction."""
    instruction = graph.nodes[waiter]["instruction"]
    for stage in absent:
        if isinstance(instruction, TransferInstruction) and plan.rank_of(instruction.peer) == stage:
            receives = instruction.direction is Direction.RECV
            yield Event(stage, 0, "start"), "data" if receives else "rendezvous"
        elif isinstance(instruction, HandOver) and stage in instruction.members(
            plan.ranks, plan.rank_of
        ):
            yield Event(stage, 0, "start"), "collective"


def _position(
    recording: Recording,
    graph: "nx.DiGraph[Event]",
    pipeline: PipelineId,
    run: int,
    event: Event,
) -> Position:
    known = graph.nodes[event] if event in graph else {"step": None, "instruction": None}
    return Position(
        rank=recording.pipelines[pipeline][event.rank].header.rank,
        stage_id=event.rank,
        run=run,
        step=known["step"],
        instruction=known["instruction"],
    )
