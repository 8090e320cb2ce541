"""When events happen: longest paths in the dependency graph, on one of two backends.

networkx for plans that a person may want to look at, arrays for plans of any size. Both give the
same times and the same verdict on what never happens, which a test holds them to.
"""

from collections.abc import Iterable
from typing import Literal

import networkx as nx
import numpy as np

from schedcc.analysis.dependencies import Dependencies
from schedcc.analysis.graph import Node, event_nodes, networkx_graph
from schedcc.analysis.levels import Seconds, levels
from schedcc.table.codes import Bools
from schemas import RankProgram

Backend = Literal["networkx", "arrays"]

GRAPH_LIMIT = 2_000
"""Instructions up to which networkx gives the verdict: about 0.1 s."""


def backend_for(programs: Iterable[RankProgram]) -> Backend:
    """The backend for programs of their size."""
    rows = sum(len(p.epilogue) + sum(map(len, p.steps)) for p in programs)
    return "networkx" if rows <= GRAPH_LIMIT else "arrays"


def event_times(graph: Dependencies, cost: Seconds, backend: Backend) -> tuple[Seconds, Bools]:
    """When each event happens if everything is done at once, and which never happen.

    Args:
        graph: Any graph.
        cost: `[events]`: seconds that an event takes once everything before it has happened.
        backend: What to find out with.

    Returns:
        `[events]`: seconds; and whether the event is on a cycle of waits, or behind one, and so
        has no time.
    """
    if backend == "arrays":
        found = levels(graph, cost)
        return found.seconds, found.stuck
    nodes = event_nodes(graph)
    cost_of = dict(zip(nodes, cost.tolist(), strict=True))
    times, stuck = _times(networkx_graph(graph), cost_of)
    return (
        np.array([times.get(node, 0.0) for node in nodes]),
        np.array([node in stuck for node in nodes], dtype=bool),
    )


def knots(graph: "nx.DiGraph[Node]") -> list[set[Node]]:
    """The sets of events that wait for each other in circles; none in a sound plan."""
    if nx.is_directed_acyclic_graph(graph):  # looking for a cycle can take minutes to say so
        return []
    components: list[set[Node]] = list(nx.strongly_connected_components(graph))
    return [c for c in components if len(c) > 1 or graph.has_edge(*2 * list(c))]


def _times(
    graph: "nx.DiGraph[Node]", cost: dict[Node, float]
) -> tuple[dict[Node, float], set[Node]]:
    stuck: set[Node] = set()
    for knot in knots(graph):
        stuck |= knot | nx.descendants(graph, next(iter(knot)))
    times: dict[Node, float] = {}
    for node in nx.topological_sort(graph.subgraph(graph.nodes - stuck)):
        ready = max((times[before] for before in graph.predecessors(node)), default=0.0)
        times[node] = ready + cost[node]
    return times, stuck
