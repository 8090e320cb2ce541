"""The dependency graph of a plan for networkx: to look at, to ask, and to explain a deadlock with.

The rules are those of `schedcc.analysis.dependencies`.
"""

from typing import Literal, NamedTuple, TypeAlias

import networkx as nx
import numpy as np

from schedcc.analysis.dependencies import Dependencies, dependencies
from schedcc.table.codes import Bools
from schedcc.table.rows import fitting
from schedcc.table.table import PlanTable
from schemas import PipelinePlan, TransportModel


class Event(NamedTuple):
    """A node: the start or the end of the instruction at position `offset` of a rank's program."""

    rank: int
    offset: int
    moment: Literal["start", "end"]


class Barrier(NamedTuple):
    """A node: all ranks have finished step `step`."""

    step: int


Node: TypeAlias = Event | Barrier

_MOMENTS: tuple[Literal["start", "end"], ...] = ("start", "end")


def dependency_graph(
    plan: PipelinePlan, transport: TransportModel | None = None
) -> "nx.DiGraph[Node]":
    """Build the dependency graph of a plan, under a model of its transport.

    Nodes are `Event`s with the attributes `instruction` and `step` (`None` in the epilogue), and
    `Barrier`s, if the model has them. An edge from `a` to `b` means that `b` cannot happen before
    `a`; its attribute `why` is one of

    - `program`: the rank executes its instructions in order;
    - `data`: the message comes from the other rank;
    - `rendezvous`: a send ends only when the other rank receives (with buffered sends: has made
      room by receiving an earlier message);
    - `queue`: transfers end in the order in which they were issued, per rank or per channel;
    - `collective`: all have to enter a collective before anyone leaves it;
    - `barrier`: nobody begins a step before everybody has finished the step before.

    All data-parallel replicas run the same plan, so one stands for all: a circle of waits among
    several would be one here, too.

    A transfer without a counterpart gets no edge, which is a matter for `check`.

    Args:
        plan: Any plan.
        transport: What the transfers may rely on; default: the strictest model.
    """
    graph = plan_dependencies(plan, transport or TransportModel())
    found = networkx_graph(graph)
    describe(found, plan)
    return found


def plan_dependencies(plan: PipelinePlan, transport: TransportModel) -> Dependencies:
    """The dependencies of a plan; of several programs for one rank, the last one counts."""
    return dependencies(one_program_a_rank(plan), transport)


def one_program_a_rank(plan: PipelinePlan) -> PlanTable:
    """The table of a plan; of several programs for one rank, the last one counts."""
    programs = {fitting(program.rank): program for program in plan.programs}
    return PlanTable.of(plan, programs.values())


def networkx_graph(graph: Dependencies, only: Bools | None = None) -> "nx.DiGraph[Node]":
    """The dependencies as a graph of networkx, or the part of it with the events in `only`."""
    found: nx.DiGraph[Node] = nx.DiGraph()
    nodes = event_nodes(graph)
    kept = np.ones(graph.events, dtype=bool) if only is None else only
    found.add_nodes_from(nodes[event] for event in np.flatnonzero(kept).tolist())
    for edges in graph.edges:
        inside = kept[edges.source] & kept[edges.target]
        pairs = zip(edges.source[inside].tolist(), edges.target[inside].tolist(), strict=True)
        found.add_edges_from(((nodes[a], nodes[b]) for a, b in pairs), why=edges.why)
    return found


def describe(graph: "nx.DiGraph[Node]", plan: PipelinePlan) -> None:
    """Give the events of a graph, or of a part of it, their `instruction` and `step`."""
    for program in plan.programs:
        for placed in program.placed():
            for moment in _MOMENTS:
                event = Event(fitting(program.rank), placed.offset, moment)
                if event in graph:
                    graph.add_node(event, instruction=placed.instruction, step=placed.step)


def event_nodes(graph: Dependencies) -> list[Node]:
    """`[events]`: the node of each event."""
    table = graph.table
    rows = zip(table.rank.tolist(), table.offset.tolist(), strict=True)
    nodes: list[Node] = [Event(*row, moment) for row in rows for moment in _MOMENTS]
    return nodes + [Barrier(step) for step in range(graph.barriers)]
