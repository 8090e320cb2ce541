"""Timetables: proofs that a plan never gets stuck and is fast, which take one look at each edge.

A timetable gives every event an integer time under unit costs (a forward 1, a transfer 1, all else
0). If along every edge of the dependency graph the time increases by at least the cost of its
target, then

- there is no deadlock: a cycle of waits would have to lead from one stage to another and so through
  the end of a transfer, which takes time (barriers and collectives alone, the other ways to another
  stage, have an order of their own), and time does not increase around a circle;
- the critical path under unit costs is no longer than the last time.

Some timetables are known. With `s` the stage, `m` the micro-batch, `t` the step, and `K` the slots
of a step, of which a transfer takes one:

==================================  ===========================  =======================
programs                            forward begins               transfer ends
==================================  ===========================  =======================
blocking, any placement             `(K + 1) t + K`              `(K + 1) t + slot + 1`
overlapped in the blocking order    `(K + 1) t + K`              `(K + 1) t + slot + 1`
a queue for each channel            `2 t + 1`                    `2 t + 1`
overlapped, one stage on each rank  `3 s + 2 m`                  `3 s + 2 m + 3`
==================================  ===========================  =======================

A blocking step takes its slots and then the forward; a transfer's slot is the first that is free on
both of its ranks, in the order of their queues. A transfer that was posted is in the step behind
the forward of what it sends, as in the blocking variant. Of the two slots of `inference`, even
stages send in the first and odd stages in the second. In the overlapped variant a stage's queue is
busy all the time: receive `m + 1`, send `m`, receive `m + 2`, ... end at intervals of 1. Where each
channel has a queue of its own, all transfers of a step are under way at once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from schedcc.analysis.dependencies import Dependencies, ends, goes_on, starts
from schedcc.table.codes import IS_FORWARD, IS_PAIRED, IS_POST, IS_SEND, IS_TRANSFER, NONE, Ints
from schedcc.table.table import PlanTable

UNITS_PER_STEP = 3
"""What a step allows where every rank has one stage: a send, a receive and a forward."""
_UNITS_ON_RINGS = 4
"""... where ranks have several: in a ring of an odd number of ranks, each has its send and its
receive in two of three slots."""
_ROUNDS = 16
"""How often the slots of a step are worked out anew before they are given up."""


class Allowed(NamedTuple):
    """What a plan may take under unit costs."""

    units: int
    """Of a step."""
    steps: int

    @property
    def total(self) -> int:
        """For all of the plan."""
        return self.units * self.steps


def allowed(table: PlanTable) -> Allowed:
    """What the steps of a plan allow: a forward each, and their transfers without detours.

    A rank with one stage has M + S - 1 steps; with several, as many as its programs have.
    """
    if table.is_one_to_one:
        return Allowed(UNITS_PER_STEP, table.micro_batches + table.stages - 1)
    transfers, steps = table.transfers, int(table.rows.step.max(initial=-1)) + 1
    in_step = table.program[transfers] * (steps + 1) + table.rows.step[transfers]
    most = int(np.unique(in_step, return_counts=True)[1].max(initial=0))
    return Allowed(max(_UNITS_ON_RINGS, most + 1), steps)


def follows_a_timetable(graph: Dependencies) -> bool:
    """Whether a known timetable proves a graph free of deadlock and as fast as it should be.

    `False` proves nothing: the programs may be of another schedule.
    """
    most, cost = allowed(graph.table).total, unit_cost(graph)
    return any(_follows(graph, timetable, most, cost) for timetable in _timetables(graph.table))


def _follows(graph: Dependencies, timetable: "_Timetable", most: int, cost: Ints) -> bool:
    times = _times(graph, timetable, most)
    in_order = all(
        bool((times[e.target] >= times[e.source] + cost[e.target]).all()) for e in graph.edges
    )
    return in_order and int(times.max(initial=0)) <= most


class _Timetable(NamedTuple):
    """When the rows end that take time, `[rows]`, and how long a step is."""

    own_end: Ints
    units: int


def _timetables(table: PlanTable) -> Iterator[_Timetable]:
    """Those that may be a plan's."""
    if table.is_one_to_one and IS_POST[table.rows.op].any():
        yield _overlapped(table)
        return
    step = _steps_of_transfers(table)
    slots = _slots(table, step)
    if slots is not None:
        yield _in_slots(table, step, slots)
    # Where each channel has a queue of its own, all transfers of a step are under way at once.
    yield _in_slots(table, step, np.zeros_like(step))


def _overlapped(table: PlanTable) -> _Timetable:
    op, micro_batch = table.rows.op, table.rows.micro_batch
    source = np.where(IS_SEND[op], table.rows.stage, table.rows.peer)
    begins = 3 * np.where(IS_PAIRED[op], source, table.rows.stage) + 2 * micro_batch
    takes = np.where(IS_FORWARD[op], 1, np.where(IS_PAIRED[op], 3, 0))
    return _Timetable(np.where(takes > 0, begins + takes, 0), UNITS_PER_STEP)


def _steps_of_transfers(table: PlanTable) -> Ints:
    """`[rows]`: the step of a row; of a transfer, that behind the forward of what is sent."""
    rows, step = table.rows, table.rows.step.copy()
    send, receive, _ = table.matched
    post, wait = table.splits
    step[post] = step[wait]
    forward = np.flatnonzero(IS_FORWARD[rows.op])
    forwarded = np.full((table.stages, table.micro_batches), NONE, dtype=np.int64)
    forwarded[rows.stage[forward], rows.micro_batch[forward]] = rows.step[forward]
    step[send] = step[receive] = forwarded[rows.stage[send], rows.micro_batch[send]] + 1
    return step


def _in_slots(table: PlanTable, step: Ints, slot: Ints) -> _Timetable:
    """Steps of slots, of which each transfer has one, and then the forward."""
    op = table.rows.op
    post, wait = table.splits
    units = int(slot.max(initial=0)) + 2
    in_slot = units * step + slot + 1
    in_slot[wait] = in_slot[post]
    own_end = np.where(IS_FORWARD[op], units * (step + 1), np.where(IS_PAIRED[op], in_slot, 0))
    return _Timetable(own_end, units)


def _slots(table: PlanTable, steps: Ints) -> Ints | None:
    """`[rows]`: the first slot of its step in which a transfer can be, on both of its ranks."""
    send, receive, _ = table.matched
    transfers = table.transfers
    slot = np.zeros(len(table.rows), dtype=np.int64)
    program, step = table.program[transfers], steps[transfers]
    opens = np.ones(len(transfers), dtype=bool)
    opens[1:] = (program[1:] != program[:-1]) | (step[1:] != step[:-1])
    group, number = np.cumsum(opens), np.arange(len(transfers))
    position = number - np.maximum.accumulate(np.where(opens, number, 0))
    lift = len(transfers) * group  # the groups' running maxima do not meet
    for _ in range(_ROUNDS):
        ahead = np.maximum.accumulate(slot[transfers] - position + lift) - lift + position
        changed = slot.copy()
        changed[transfers] = ahead
        changed[send] = changed[receive] = np.maximum(changed[send], changed[receive])
        if np.array_equal(changed, slot):
            return slot
        slot = changed
    return None


def unit_cost(graph: Dependencies) -> Ints:
    """`[events]`: 1 for the end of a forward or a transfer, else 0."""
    op = graph.table.rows.op
    cost = np.zeros(graph.events, dtype=np.int64)
    cost[ends(np.arange(len(op)))] = IS_FORWARD[op] | IS_TRANSFER[op]
    return cost


def _times(graph: Dependencies, timetable: _Timetable, last: int) -> Ints:
    """`[events]`: what takes time ends by the timetable, all else happens as soon as it can."""
    table = graph.table
    rows, forward = np.arange(len(table.rows)), IS_FORWARD[table.rows.op]
    own_end = np.where(table.rows.step < 0, last, timetable.own_end)

    # A program has come to the latest of its times so far; those of posts do not hold it up.
    holds_up = np.where(goes_on(table) == ends(rows), own_end, 0)
    came_to = _running_maximum(holds_up, table)
    before = np.where(table.follows, np.roll(came_to, 1), 0)
    if graph.barriers:
        before = np.maximum(before, timetable.units * table.rows.step)
    times = np.empty(graph.events, dtype=np.int64)
    times[starts(rows)] = np.where(forward, np.maximum(before, own_end - 1), before)
    times[ends(rows)] = np.maximum(own_end, times[starts(rows)])
    times[2 * len(rows) :] = timetable.units * np.arange(1, graph.barriers + 1)
    return times


def _running_maximum(values: Ints, table: PlanTable) -> Ints:
    """The largest value so far in each program."""
    beyond = int(np.abs(values).max(initial=0)) * 2 + 1
    lifted = values + table.program * beyond
    return np.maximum.accumulate(lifted) - table.program * beyond
