"""Recordings of runs in which one instruction never ends."""

from pathlib import Path

import networkx as nx

from schedcc import dependency_graph
from schemas import PipelinePlan
from tests.support.recorded_lines import CLOSE, lines_of_run, until, write


def stop_at(directory: Path, plan: PipelinePlan, rank: int, offset: int, ends: dict) -> None:
    """Write what is on file when one instruction never ends, and all others go on as they can.

    `ends` gives the lines that end each rank's file, if any.
    """
    graph, happened = dependency_graph(plan), set()
    for event in nx.topological_sort(graph):
        stuck = (event.rank, event.offset, event.moment) == (rank, offset, "end")
        if not stuck and happened.issuperset(graph.predecessors(event)):
            happened.add(event)
    for program in plan.programs:
        here = program.rank
        entered = max((e.offset for e in happened if e[::2] == (here, "start")), default=-1)
        # Posts are left at once, whenever their transfer ends.
        own = list(program.placed())
        left = entered - 1
        if entered >= 0 and (here, entered, "end") in happened:
            left = entered
        if entered >= 0 and own[entered].instruction.op.startswith("Post"):
            left = entered
        lines = lines_of_run(plan, here)
        if left < len(own) - 1:
            lines = until(lines, entered, left)
        elif not ends.get(here):
            lines = [*lines, CLOSE]
        write(directory, here, plan.ranks, [*lines, *ends.get(here, [])])
