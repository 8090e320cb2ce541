"""`deadlock`: can the plan get stuck with ranks waiting for each other in a circle?"""

from collections.abc import Iterator
from itertools import pairwise

import networkx as nx
import numpy as np

from schedcc.analysis.graph import Barrier, Event, Node, describe, networkx_graph
from schedcc.analysis.levels import levels
from schedcc.analysis.order import Order
from schedcc.analysis.times import Backend, knots
from schedcc.analysis.timetable import unit_cost
from schedcc.checks.question import OrderQuestion, in_full
from schemas import Finding, FindingCode, PipelinePlan

_TRIED = 64
"""Waits from which a short cycle is looked for; all of them would take quadratic time."""


def check_deadlock(graph: "nx.DiGraph[Node]", unit: str = "stage") -> Iterator[Finding]:
    """Is the dependency graph free of cycles? One finding for each knot of waits that is not.

    Args:
        graph: What waits for what, with its instructions.
        unit: What to call who waits, see `PlanHeader.unit`.
    """
    for knot in knots(graph):
        yield _finding(graph, _short_cycle(graph.subgraph(knot)), unit)


def _short_cycle(knot: "nx.DiGraph[Node]") -> list[Node]:
    """The shortest cycle through any of the first waits, in the order of events."""
    waits = sorted((u, v) for u, v, why in knot.edges(data="why") if why != "program")[:_TRIED]
    paths = [nx.shortest_path(knot, after, before) for before, after in waits]
    return min(paths, key=len)


def _finding(graph: "nx.DiGraph[Node]", cycle: list[Node], unit: str) -> Finding:
    around = list(pairwise([*cycle, cycle[0]]))
    waits = [
        (
            _describe(graph, after, unit),
            _describe(graph, before, unit),
            graph.edges[before, after]["why"],
        )
        for before, after in reversed(around)
        if graph.edges[before, after]["why"] != "program"
    ]
    width = [max(len(wait[column]) for wait in waits) for column in (0, 1)]
    lines = [
        f"  {waiter:{width[0]}}  waits for  {waited:{width[1]}}  ({why})"
        for waiter, waited, why in waits
    ]
    ranks = sorted({node.rank for node in cycle if isinstance(node, Event)})
    message = "\n".join([_headline(ranks, unit), *lines])
    return Finding(code=FindingCode.DEADLOCK, message=message)


def _headline(ranks: list[int], unit: str) -> str:
    if len(ranks) == 1:
        return f"{unit} {ranks[0]} waits for itself:"
    *most, final = (str(rank) for rank in ranks)
    circle = "" if len(ranks) == 2 else " in a circle"
    return f"{unit}s {', '.join(most)} and {final} wait for each other{circle}:"


def _describe(graph: "nx.DiGraph[Node]", event: Node, unit: str) -> str:
    if isinstance(event, Barrier):
        return f"the barrier after step {event.step}"
    node = graph.nodes[event]
    where = "epilogue" if node["step"] is None else f"step {node['step']}"
    return f"{unit} {event.rank}, {where}: {in_full(node['instruction'], unit)}"


def _explain(plan: PipelinePlan, order: Order, backend: Backend) -> Iterator[Finding]:
    """The circles; with arrays, networkx sees only what a topological sort has not got through."""
    stuck = None
    if backend == "arrays":
        stuck = levels(order.graph, unit_cost(order.graph).astype(np.float64)).stuck
        if not stuck.any():
            return
    waits = networkx_graph(order.graph, stuck)
    describe(waits, plan)
    yield from check_deadlock(waits, plan.unit)


DEADLOCK = OrderQuestion("deadlock", holds=lambda order: order.proven, explain=_explain)
