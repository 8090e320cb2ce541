"""How long each event of a plan takes under given costs."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

from schedcc.analysis.dependencies import Dependencies, ends
from schedcc.analysis.levels import Seconds
from schedcc.table.codes import IS_FORWARD, IS_SEND, IS_TRANSFER, Bools, Ints, lookup
from schedcc.table.table import PlanTable
from schemas import Costs, HandOver, LoadMicroBatch, ResultInstruction

_IS_LOAD = lookup(lambda op: op is LoadMicroBatch)
_MEETS = lookup(
    lambda op: issubclass(op, HandOver) or (issubclass(op, ResultInstruction) and op.over_replicas)
)


def durations(graph: Dependencies, costs: Costs) -> Seconds:
    """`[events]`: seconds of forwards, transfers, loads and collectives, at their ends.

    Raises:
        ValueError: there are costs for another number of stages or boundaries.
    """
    table = graph.table
    op, stage = table.rows.op, table.rows.stage
    of_rows = np.zeros(len(op))
    forward, transfer, load = IS_FORWARD[op], IS_TRANSFER[op], _IS_LOAD[op]
    of_rows[forward] = np.array(costs.forward_seconds(table.stages))[stage[forward]]
    boundary = np.minimum(stage, table.rows.peer)[transfer]
    of_rows[transfer] = np.array(costs.boundary_seconds(table.stages))[boundary]
    of_rows[load] = costs.load
    sender = np.where(transfer & ~IS_SEND[op], table.rows.peer, stage)
    kinds = {"forward": forward, "transfer": transfer, "load": load}
    for which, seconds_of_single in _single_rows(costs, kinds, table.rows.micro_batch, sender):
        of_rows[which] = seconds_of_single
    seconds = np.zeros(graph.events)
    seconds[ends(np.arange(len(op)))] = of_rows
    seconds[ends(np.flatnonzero(_MEETS[op]))] = costs.collective
    seconds[_let_go(graph)] = 0.0
    return seconds


def _single_rows(
    costs: Costs, kinds: Mapping[str, Bools], micro_batch: Ints, sender: Ints
) -> Iterator[tuple[Ints, float]]:
    """Rows whose time is another one than that of the others, in the order of what counts.

    In time that does not grow with the product of the costs and the rows.
    """
    last: dict[tuple[str, int, int | None], float] = {}
    for single in costs.single:
        key = (single.of, single.micro_batch, single.stage_id)
        last.pop(key, None)  # the last one comes last
        last[key] = single.seconds
    order = np.lexsort((sender, micro_batch)) if last else np.array([], dtype=np.int64)
    micro_batch, sender = micro_batch[order], sender[order]
    for (of, number, stage), seconds in last.items():
        first, stop = _equal(micro_batch, number, 0, len(order))
        if stage is not None:
            first, stop = _equal(sender, stage, first, stop)
        rows = order[first:stop]
        yield rows[kinds[of][rows]], seconds


def _equal(values: Ints, number: int, first: int, stop: int) -> tuple[int, int]:
    """Where a number stands among values that are sorted from `first` to `stop`."""
    within, wanted = values[first:stop], min(number, 2**62)
    left, right = (int(np.searchsorted(within, wanted, side)) for side in ("left", "right"))
    return first + left, first + right


def _let_go(graph: Dependencies) -> Bools:
    """`[events]`: the ends of a collective that come at once after that of its first member."""
    found = np.zeros(graph.events, dtype=bool)
    for edges in graph.edges:
        if edges.why == "collective":
            found[edges.target[edges.source % 2 == 1]] = True
    return found


def ideal(table: PlanTable, costs: Costs) -> float:
    """Seconds that no plan for these forwards can go below, see `schemas.Timeline.ideal`."""
    forward, last = costs.forward_seconds(table.stages), table.micro_batches - 1
    if last < 0:
        return 0.0
    equal = not any(single.of == "forward" for single in costs.single)
    if equal and table.is_one_to_one:
        return math.fsum(forward) + last * max(forward)
    for_all, by_stage = _single_forwards(costs, table.micro_batches)
    of_stage = [
        _forwards(seconds, _merged(for_all, by_stage.get(stage, {})), table.micro_batches)
        for stage, seconds in enumerate(forward)
    ]
    firsts = [seconds[0] for seconds in of_stage]
    lasts = [seconds[1] for seconds in of_stage]
    held: defaultdict[int, list[int]] = defaultdict(list)
    for stage, rank in enumerate(table.placement.tolist() or range(table.stages)):
        held[rank].append(stage)
    return max(
        math.fsum((*firsts[: own[0]], *(of_stage[s][2] for s in own), *lasts[own[-1] + 1 :]))
        for own in held.values()
    )


Singles = dict[int, tuple[int, float]]
"""By micro-batch: the place in the list of costs, of which the last one counts, and seconds."""


def _single_forwards(costs: Costs, micro_batches: int) -> tuple[Singles, dict[int, Singles]]:
    """Forwards that take another time: on every stage, and by stage."""
    for_all: Singles = {}
    by_stage: defaultdict[int, Singles] = defaultdict(dict)
    for place, cost in enumerate(costs.single):
        if cost.of == "forward" and cost.micro_batch < micro_batches:
            found = for_all if cost.stage_id is None else by_stage[cost.stage_id]
            found[cost.micro_batch] = place, cost.seconds
    return for_all, by_stage


def _merged(for_all: Singles, of_stage: Singles) -> dict[int, float]:
    """By micro-batch: seconds on a stage."""
    later = {m: max(own, for_all.get(m, own)) for m, own in of_stage.items()}
    return {m: seconds for m, (_, seconds) in (for_all | later).items()}


def _forwards(
    usual: float, own: dict[int, float], micro_batches: int
) -> tuple[float, float, float]:
    """Seconds of a stage's first and last forward, and of all."""
    total = math.fsum((*own.values(), (micro_batches - len(own)) * usual))
    return own.get(0, usual), own.get(micro_batches - 1, usual), total
