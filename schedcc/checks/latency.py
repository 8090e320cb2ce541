"""`latency`: is the plan as fast as its steps allow, or does one transfer wait for another?"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from schedcc.analysis.dependencies import Dependencies, dependencies
from schedcc.analysis.graph import Event, event_nodes
from schedcc.analysis.levels import Seconds
from schedcc.analysis.order import Order
from schedcc.analysis.times import Backend, event_times
from schedcc.analysis.timetable import allowed, unit_cost
from schedcc.checks.question import OrderQuestion, in_full
from schedcc.table.codes import IS_FORWARD, IS_POST, IS_TRANSFER, Ints
from schedcc.table.rows import fitting
from schedcc.table.table import PlanTable
from schemas import Finding, FindingCode, PipelinePlan, TransportModel

_SHOWN = 8
"""Transfers of a chain that a message shows."""


def check_latency(plan: PipelinePlan, order: Order, backend: Backend) -> Iterator[Finding]:
    """Is the critical path under unit costs no longer than the steps allow?

    A forward and a transfer cost 1; a step allows a send, a receive and a forward, and a plan has
    M + S - 1 of them (see `allowed` for ranks with several stages). Steps of a
    blocking plan are atomic, so they are measured with a barrier after each, and so is any plan
    under a model with barriers. A plan that exceeds it may be free of deadlock and yet serialise:
    if every rank sends before it receives, the transfers of one step wait for each other from the
    last stage to the first.
    """
    table = order.table
    timed = _timed(table, order.transport, backend)
    if timed is None:
        return  # a deadlock, which has a finding of its own
    most = allowed(table)
    if timed.length <= most.total:
        return
    rows = _longest_chain(timed.graph, _critical_path(timed.graph, timed.times))
    nodes = event_nodes(timed.graph)
    programs = {fitting(program.rank): list(program.placed()) for program in plan.programs}
    lines = []
    for row in rows[:_SHOWN]:
        event = nodes[2 * row]
        assert isinstance(event, Event)
        placed = programs[event.rank][event.offset]
        name = in_full(placed.instruction, plan.unit)
        lines.append(f"  {plan.unit} {event.rank}, {placed.where}: {name}")
    if len(rows) > _SHOWN:
        lines.append(f"  ... and {len(rows) - _SHOWN} more")
    step = int(table.rows.step[rows[0]]) if len(rows) else -1
    measured = ""
    if timed.barriers:
        free = _under(order.transport, table, backend, barriers=False)
        without = "" if free is None else f" ({free.length} without)"
        measured = f" with a barrier after each step{without}"
    message = (
        f"the critical path is {timed.length} long{measured}, a forward or a transfer 1 each; "
        f"needed at most {most.total} = {most.units} x {most.steps} steps; the longest "
        f"chain in it of transfers that "
        f"wait for one another:"
    )
    yield Finding(
        code=FindingCode.LATENCY,
        severity="warning",
        step=step if step >= 0 else None,
        message="\n".join([message, *lines]),
    )


class _Timed(NamedTuple):
    """The dependencies of a plan, and when its events happen."""

    graph: Dependencies
    times: Seconds
    barriers: bool

    @property
    def length(self) -> int:
        """Of the critical path."""
        return int(self.times.max(initial=0))


def _timed(table: PlanTable, transport: TransportModel, backend: Backend) -> _Timed | None:
    """With barriers where the model has them, or the plan is blocking and can have them."""
    blocking = not IS_POST[table.rows.op].any()
    found = None
    if blocking or transport.step_barrier:
        found = _under(transport, table, backend, barriers=True)
    return found or _under(transport, table, backend, barriers=False)


def _under(
    transport: TransportModel, table: PlanTable, backend: Backend, *, barriers: bool
) -> _Timed | None:
    """The times with or without barriers; `None` where some never come."""
    graph = dependencies(table, transport.model_copy(update={"step_barrier": barriers}))
    times, stuck = event_times(graph, unit_cost(graph).astype(np.float64), backend)
    return None if stuck.any() else _Timed(graph, times, barriers)


def _critical_path(graph: Dependencies, times: Seconds) -> list[int]:
    """The events of a longest path, from its first to its last."""
    cost = unit_cost(graph)
    source = np.concatenate([edges.source for edges in graph.edges])
    target = np.concatenate([edges.target for edges in graph.edges])
    tight = times[source] + cost[target] == times[target]
    before = np.full(graph.events, -1)
    before[target[tight]] = source[tight]
    event = int(times.argmax())
    path = []
    while event >= 0:
        path.append(event)
        event = int(before[event]) if times[event] > 0 else -1
    return path[::-1]


def _longest_chain(graph: Dependencies, path: list[int]) -> Ints:
    """The rows of the longest run of transfers on a path without a forward or a barrier."""
    op = graph.table.rows.op
    runs: list[list[int]] = [[]]
    for event in path:
        row, is_end = divmod(event, 2)
        if event >= 2 * len(op) or (is_end and IS_FORWARD[op[row]]):
            runs.append([])
        elif is_end and IS_TRANSFER[op[row]]:
            runs[-1].append(row)
    return np.array(max(runs, key=len), dtype=np.int64)


LATENCY = OrderQuestion("latency", holds=lambda order: order.proven, explain=check_latency)
