"""Runs whose data held fewer micro-batches than their plan: what of the plan was to be executed."""

import networkx as nx

from schedcc.analysis.graph import Event, Node, dependency_graph
from schedcc.restrict import exists, restricted
from schedcc.table.table import fitting
from schemas import PipelinePlan, TransportModel


def run_graph(
    plan: PipelinePlan, micro_batches: int | None, transport: TransportModel
) -> "nx.DiGraph[Node]":
    """The dependency graph of a run of `plan` over `micro_batches` micro-batches.

    Its events have their offsets in the whole plan, as recordings have them.

    Args:
        plan: The plan that was executed.
        micro_batches: How many the data held; `None`: as many as the plan has.
        transport: What the transfers may rely on.
    """
    if micro_batches is None or micro_batches >= plan.micro_batches:
        return dependency_graph(plan, transport)
    offsets = {
        fitting(program.rank): [
            placed.offset
            for placed in program.placed()
            if exists(placed.instruction, micro_batches)
        ]
        for program in plan.programs
    }

    def in_whole_plan(node: Node) -> Node:
        if not isinstance(node, Event):
            return node
        return node._replace(offset=offsets[node.rank][node.offset])

    graph = dependency_graph(restricted(plan, micro_batches), transport)
    return nx.relabel_nodes(graph, in_whole_plan)
