"""How long each event of a plan takes under given costs."""

import math
from collections import defaultdict

import numpy as np

from schedcc.analysis.dependencies import Dependencies, ends
from schedcc.analysis.levels import Seconds
from schedcc.table.codes import IS_FORWARD, IS_SEND, IS_TRANSFER, Bools, lookup
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
    for single in costs.single:
        which = kinds[single.of] & (table.rows.micro_batch == min(single.micro_batch, 2**62))
        if single.stage_id is not None:
            which &= sender == min(single.stage_id, 2**62)
        of_rows[which] = single.seconds
    seconds = np.zeros(graph.events)
    seconds[ends(np.arange(len(op)))] = of_rows
    seconds[ends(np.flatnonzero(_MEETS[op]))] = costs.collective
    seconds[_let_go(graph)] = 0.0
    return seconds


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
    of_stage = [_forwards(costs, stage, table) for stage in range(table.stages)]
    firsts = [seconds[0] for seconds in of_stage]
    lasts = [seconds[1] for seconds in of_stage]
    held: defaultdict[int, list[int]] = defaultdict(list)
    for stage, rank in enumerate(table.placement.tolist() or range(table.stages)):
        held[rank].append(stage)
    return max(
        math.fsum((*firsts[: own[0]], *(of_stage[s][2] for s in own), *lasts[own[-1] + 1 :]))
        for own in held.values()
    )


def _forwards(costs: Costs, stage: int, table: PlanTable) -> tuple[float, float, float]:
    """Seconds of a stage's first and last forward, and of all."""
    usual = costs.forward_seconds(table.stages)[stage]
    single = {
        cost.micro_batch: cost.seconds
        for cost in costs.single
        if cost.of == "forward" and cost.stage_id in (None, stage)
    }
    own = {m: seconds for m, seconds in single.items() if m < table.micro_batches}
    total = math.fsum((*own.values(), (table.micro_batches - len(own)) * usual))
    return own.get(0, usual), own.get(table.micro_batches - 1, usual), total
