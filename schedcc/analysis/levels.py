"""When events happen, for graphs of any size: a topological sort level by level, on arrays.

A level is what can happen once all former levels have (A. B. Kahn, "Topological sorting of large
networks", 1962, with all that is ready taken at once). What is on a cycle, or behind one, is never
ready.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from schedcc.analysis.dependencies import Dependencies
from schedcc.table.codes import Bools, Ints

Seconds = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Levels:
    """What a sort finds."""

    seconds: Seconds
    """`[events]`: when each event happens if everything is done at once."""
    stuck: Bools
    """`[events]`: whether an event never happens, being on a cycle or behind one."""


def levels(graph: Dependencies, cost: Seconds) -> Levels:
    """Sort the events of a graph and time them: each happens `cost` after all before it have.

    Args:
        graph: Any graph.
        cost: `[events]`: seconds; zero for the start of an instruction.
    """
    successors, first = _successors(graph)
    waits = np.zeros(graph.events, dtype=np.int64)
    np.add.at(waits, successors, 1)
    seconds = cost.astype(np.float64)
    stuck = np.ones(graph.events, dtype=bool)
    ready = np.flatnonzero(waits == 0)
    while len(ready):
        stuck[ready] = False
        counts = first[ready + 1] - first[ready]
        edges = np.repeat(first[ready] - np.cumsum(counts) + counts, counts) + np.arange(
            counts.sum()
        )
        reached = successors[edges]
        np.maximum.at(seconds, reached, np.repeat(seconds[ready], counts) + cost[reached])
        np.subtract.at(waits, reached, 1)
        ready = np.unique(reached[waits[reached] == 0])
    return Levels(seconds, stuck)


def _successors(graph: Dependencies) -> tuple[Ints, Ints]:
    """The targets of all edges by source, and where those of each source begin."""
    source = np.concatenate([edges.source for edges in graph.edges])
    target = np.concatenate([edges.target for edges in graph.edges])
    first = np.zeros(graph.events + 1, dtype=np.int64)
    np.cumsum(np.bincount(source, minlength=graph.events), out=first[1:])
    return target[np.argsort(source, kind="stable")], first
