"""Simulation: when every instruction of a plan starts and ends, under a model of costs.

A longest path in the dependency graph: an instruction starts when everything it depends on is
done. Under rendezvous both ends of a transfer end together, its cost after both have started and
after whatever is ahead of either in its queue; a buffered send does not wait for its receive, which
still takes the cost of the transfer from its own start. Forwards and transfers do not slow each
other down.
"""

import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from schedcc.analysis.breakdown import breakdown
from schedcc.analysis.graph import one_program_a_rank
from schedcc.analysis.levels import Seconds
from schedcc.analysis.order import Order
from schedcc.analysis.times import Backend, backend_for, event_times
from schedcc.errors import UnsoundPlanError
from schedcc.simulation.durations import durations, ideal
from schedcc.table.codes import IS_FORWARD, IS_GROUP_END, IS_PAIRED, IS_POST, Ints
from schedcc.table.positions import by_position, positions
from schedcc.table.table import PlanTable
from schedcc.verify import locally_sound, order_sound, verdict
from schemas import (
    BufferInstruction,
    Costs,
    PipelinePlan,
    Place,
    StageTimeline,
    Timeline,
    TransportModel,
    places,
)
from schemas.reports.breakdown import Breakdown
from schemas.reports.timeline import Spans


def simulate(
    plan: PipelinePlan,
    costs: Costs | None = None,
    transport: TransportModel | None = None,
) -> Timeline:
    """Predict the timeline of a plan.

    Args:
        plan: A sound plan of any form.
        costs: Seconds of forwards, transfers, loads and collectives; default: one second a
            forward, nothing else.
        transport: What transfers wait for; default: the strictest model.

    Returns:
        Spans of all instructions, makespan, and what follows from them.

    Raises:
        UnsoundPlanError: the plan never ends, or does something else than it should.
        ValueError: there are costs for another number of stages, or their sum is no number.
    """
    return timeline(plan, costs, transport, backend_for(plan.programs))


def timeline(
    plan: PipelinePlan, costs: Costs | None, transport: TransportModel | None, backend: Backend
) -> Timeline:
    """What `simulate` predicts, from a backend of the caller's choice."""
    return prediction(plan, costs, transport, backend).timeline(plan)


@dataclass(frozen=True, eq=False)
class Prediction:
    """A timeline as arrays, without an object for each instruction."""

    costs: Costs
    table: PlanTable
    spans: Seconds
    """`[rows, 2]`: start and end of each instruction, as `schemas.Span` has them."""
    makespan: float
    busy: tuple[float, ...]
    """Seconds in forwards, of each program."""
    held: tuple[int, ...]
    """The most activations at once that each program has received or is to send."""

    @property
    def bubble(self) -> float:
        """The fraction of the ranks' time that is idle."""
        total = self.table.ranks * self.makespan
        idle = sum(self.makespan - busy for busy in self.busy)
        return idle / total if total else 0.0

    @property
    def ideal(self) -> float:
        """As in `schemas.Timeline`."""
        return ideal(self.table, self.costs)

    @property
    def ideal_bubble(self) -> float:
        """As in `schemas.Timeline`."""
        table = self.table
        steps = table.ranks * ideal(table, Costs())  # of equal stages
        return (steps - table.micro_batches * table.stages) / steps if steps else 0.0

    @property
    def breakdown(self) -> Breakdown:
        """Where the time of each rank goes; a rank goes on from the start of a post."""
        start, end = self.spans.T
        posted = (IS_POST | IS_GROUP_END)[self.table.rows.op]
        return breakdown(self.table, start, np.where(posted, start, end), self.makespan)

    def programs(self) -> Iterator[tuple[int, int]]:
        """The ranks in their order, each with the index of its program."""
        yield from sorted((rank, p) for p, rank in enumerate(self.table.rank_ids.tolist()))

    def timeline(self, plan: PipelinePlan) -> Timeline:
        """The timeline of the plan that this is the prediction for."""
        by_rank = {program.rank: program for program in plan.programs}
        of_program = np.split(self.spans, self.table.first[1:])
        return Timeline(
            costs=self.costs,
            makespan=self.makespan,
            bubble=self.bubble,
            ideal=self.ideal,
            ideal_bubble=self.ideal_bubble,
            stages=tuple(
                StageTimeline(
                    stage_id=rank if plan.is_one_to_one else None,
                    rank=rank,
                    spans=Spans(
                        by_rank[rank].placed,
                        *(array("d", column.tobytes()) for column in of_program[program].T),
                    ),
                    busy=self.busy[program],
                    idle=self.makespan - self.busy[program],
                    peak_bytes=self.held[program] * self.costs.activation_bytes,
                )
                for rank, program in self.programs()
            ),
        )


def prediction(
    plan: PipelinePlan | PlanTable,
    costs: Costs | None = None,
    transport: TransportModel | None = None,
    backend: Backend = "arrays",
) -> Prediction:
    """What `simulate` predicts, as arrays; the arguments are its own.

    Args:
        plan: A plan, or the table of a sound one.
        costs: Seconds of everything.
        transport: What transfers wait for.
        backend: What to find the times with.

    Raises:
        UnsoundPlanError: the plan never ends, or does something else than it should.
        ValueError: there are costs for another number of stages, or their sum is no number.
    """
    costs = costs or Costs()
    transport = transport or TransportModel()
    order = (
        Order(plan, transport)
        if isinstance(plan, PlanTable)
        else sound_order(plan, transport, backend)
    )
    # Only now is a number in the header one of programs that there are.
    table = order.table
    with np.errstate(over="ignore"):  # which is told below
        seconds, _ = event_times(order.graph, durations(order.graph, costs), backend)
    makespan = float(seconds.max(initial=0.0))
    total = table.ranks * makespan
    if not math.isfinite(total):
        raise ValueError(f"the costs add up to {total} seconds, needed a finite number of seconds")
    spans = seconds[: 2 * len(table.rows)].reshape(-1, 2)
    forward = IS_FORWARD[table.rows.op]
    took = (spans[:, 1] - spans[:, 0])[forward]
    programs = len(table.rank_ids)
    busy = np.bincount(table.program[forward], weights=took, minlength=programs)
    held = _most_held(table)
    return Prediction(costs, table, spans, makespan, tuple(busy.tolist()), tuple(held.tolist()))


def sound_order(
    plan: PipelinePlan, transport: TransportModel, backend: Backend = "arrays"
) -> Order:
    """What waits for what in a plan.

    Raises:
        UnsoundPlanError: the plan has errors.
    """
    if backend == "arrays":
        table = PlanTable.of(plan, plan.programs)
        order = Order(table, transport)
        if locally_sound(table, alone=False) and order_sound(order):
            return order
    report = verdict(plan, transport, backend)
    if not report.ok:
        raise UnsoundPlanError(f"a plan with errors has no timeline: {next(report.errors())}")
    return Order(one_program_a_rank(plan), transport)


def _touched(op: Any, stage_id: int, stages: int) -> list[bool]:
    """Which places an instruction reads or writes."""
    if not issubclass(op, BufferInstruction):
        return [False] * len(Place)
    effects = op.effects
    own = set(places(effects.reads + effects.writes, stage_id, stages))
    return [place in own for place in Place]


_TOUCHES: NDArray[np.bool_] = by_position(_touched)
"""`[code, position, place]`."""


def _most_held(table: PlanTable) -> Ints:
    """`[programs]`: the most activations at once, each from its write to its last read.

    Only what a transfer moves counts: inputs that are received, outputs that are sent. The order
    of the program decides, so instructions that take no time hold what they hold, too.
    """
    row, place = np.nonzero(_TOUCHES[table.rows.op, positions(table)])
    value = table.rows.stage[row] * table.micro_batches + table.rows.micro_batch[row]
    value = value * len(Place) + place
    values = table.stages * max(1, table.micro_batches) * len(Place)
    travels = np.zeros(values, dtype=bool)
    travels[value[IS_PAIRED[table.rows.op[row]]]] = True
    row, value = row[travels[value]], value[travels[value]]
    first, last = np.full(values, len(table.rows)), np.full(values, -1)
    np.minimum.at(first, value, row)
    np.maximum.at(last, value, row)
    # An activation is held from before its first row to behind its last one.
    changes = np.zeros(2 * len(table.rows) + 1, dtype=np.int64)
    np.add.at(changes, 2 * first[travels], 1)
    np.add.at(changes, 2 * last[travels] + 1, -1)
    held = np.cumsum(changes)[:-1].reshape(-1, 2)[:, 0]
    most = np.zeros(len(table.rank_ids), dtype=np.int64)
    np.maximum.at(most, table.program, held)
    return most
