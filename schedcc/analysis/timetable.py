"""Timetables: proofs that a plan never gets stuck and is fast, which take one look at each edge.

A timetable gives every event an integer time under unit costs (a forward 1, a transfer 1, all else
0). If along every edge of the dependency graph the time increases by at least the cost of its
target, then

- there is no deadlock: a cycle of waits would have to lead from one stage to another and so through
  the end of a transfer, which takes time (barriers and collectives alone, the other ways to another
  stage, have an order of their own), and time does not increase around a circle;
- the critical path under unit costs is no longer than the last time.

The compiler's schedules have timetables in closed form. With `s` the stage and `m` the micro-batch:

==========  ==============================  ======================================
form        forward of `m` on `s` begins    transfer of `m` from `s` ends
==========  ==============================  ======================================
blocking    `3 (s + m) + 2`                 `3 (s + m + 1) + 1`, on odd `s` + 2
overlapped  `3 s + 2 m`                     `3 s + 2 m + 3`
==========  ==============================  ======================================

In the blocking form step `t` takes from `3 t` to `3 (t + 1)`: two slots in which even and odd
stages send in turn, then the forward. In the overlapped form a stage's queue is busy all the time:
receive `m + 1`, send `m`, receive `m + 2`, ... end at intervals of 1.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from schedcc.analysis.dependencies import Dependencies, ends, goes_on, starts
from schedcc.table.table import (
    IS_FORWARD,
    IS_PAIRED,
    IS_POST,
    IS_SEND,
    IS_TRANSFER,
    Ints,
    PlanTable,
)

UNITS_PER_STEP = 3
"""What a step allows under unit costs: a send, a receive and a forward."""


@dataclass(frozen=True)
class Form:
    """A timetable in closed form, of what takes time; all else happens as soon as it can."""

    split: bool
    """Whether it is one of programs that post transfers."""
    forward_begins: Callable[[Ints, Ints], Ints]
    """`(stage, micro_batch) -> time`"""
    transfer_ends: Callable[[Ints, Ints], Ints]
    """`(source, micro_batch) -> time`"""


BLOCKING = Form(
    split=False,
    forward_begins=lambda s, m: 3 * (s + m) + 2,
    transfer_ends=lambda s, m: 3 * (s + m + 1) + 1 + s % 2,
)
OVERLAPPED = Form(
    split=True,
    forward_begins=lambda s, m: 3 * s + 2 * m,
    transfer_ends=lambda s, m: 3 * s + 2 * m + 3,
)
FORMS = (BLOCKING, OVERLAPPED)


def follows_a_timetable(graph: Dependencies) -> bool:
    """Whether a known timetable proves a graph free of deadlock and as fast as it should be.

    `False` proves nothing: the programs may be of another schedule.
    """
    split = bool(IS_POST[graph.table.rows.op].any())
    return any(_holds(graph, form) for form in FORMS if form.split == split)


def _holds(graph: Dependencies, form: Form) -> bool:
    table = graph.table
    steps = table.micro_batches + table.stages - 1
    last = UNITS_PER_STEP * steps
    times = _times(graph, form, last)
    cost = unit_cost(graph)
    in_order = all(
        bool((times[e.target] >= times[e.source] + cost[e.target]).all()) for e in graph.edges
    )
    return in_order and int(times.max(initial=0)) <= last


def unit_cost(graph: Dependencies) -> Ints:
    """`[events]`: 1 for the end of a forward or a transfer, else 0."""
    op = graph.table.rows.op
    cost = np.zeros(graph.events, dtype=np.int64)
    cost[ends(np.arange(len(op)))] = IS_FORWARD[op] | IS_TRANSFER[op]
    return cost


def _times(graph: Dependencies, form: Form, last: int) -> Ints:
    table = graph.table
    rows, op = np.arange(len(table.rows)), table.rows.op
    stage, micro_batch = table.stage, table.rows.micro_batch
    forward, paired = IS_FORWARD[op], IS_PAIRED[op]
    source = np.where(IS_SEND[op], stage, table.rows.peer)
    own_end = np.zeros(len(rows), dtype=np.int64)
    own_end[forward] = form.forward_begins(stage[forward], micro_batch[forward]) + 1
    own_end[paired] = form.transfer_ends(source[paired], micro_batch[paired])
    own_end[table.rows.step < 0] = last

    # A program has come to the latest of its times so far; those of posts do not hold it up.
    holds_up = np.where(goes_on(table) == ends(rows), own_end, 0)
    came_to = _running_maximum(holds_up, table)
    before = np.where(table.follows, np.roll(came_to, 1), 0)
    if graph.barriers:
        before = np.maximum(before, UNITS_PER_STEP * table.rows.step)
    times = np.empty(graph.events, dtype=np.int64)
    times[starts(rows)] = np.where(forward, np.maximum(before, own_end - 1), before)
    times[ends(rows)] = np.maximum(own_end, times[starts(rows)])
    times[2 * len(rows) :] = UNITS_PER_STEP * np.arange(1, graph.barriers + 1)
    return times


def _running_maximum(values: Ints, table: PlanTable) -> Ints:
    """The largest value so far in each program."""
    beyond = int(np.abs(values).max(initial=0)) * 2 + 1
    lifted = values + table.program * beyond
    return np.maximum.accumulate(lifted) - table.program * beyond
