"""When events happen: longest paths in the dependency graph."""

from collections.abc import Callable

import networkx as nx

from schedcc.graph import Event
from schemas import BufferInstruction, Instruction, Place

Cost = Callable[[int, Instruction], float]
"""`(stage_id, instruction) -> seconds` between its start and its end at the earliest."""


def event_times(graph: "nx.DiGraph[Event]", cost: Cost) -> dict[Event, float]:
    """When each event of an acyclic graph happens, in seconds, if everything is done at once.

    An event happens when all its predecessors have; an end, the cost of its instruction later.
    """
    times: dict[Event, float] = {}
    for event in nx.topological_sort(graph):
        ready = max((times[before] for before in graph.predecessors(event)), default=0.0)
        times[event] = ready + _cost(graph, event, cost)
    return times


def is_forward(instruction: Instruction) -> bool:
    """Whether an instruction computes: it writes an output."""
    return isinstance(instruction, BufferInstruction) and any(
        access.place is Place.OUTPUT for access in instruction.effects.writes
    )


def _cost(graph: "nx.DiGraph[Event]", event: Event, cost: Cost) -> float:
    if event.moment == "start":
        return 0.0
    return cost(event.stage_id, graph.nodes[event]["instruction"])
