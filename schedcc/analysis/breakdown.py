"""Where the time went: what each rank spent in forwards, and waiting for what."""

import numpy as np

from schedcc.analysis.levels import Seconds
from schedcc.table.codes import IS_FORWARD, IS_PAIRED, IS_SEND, lookup
from schedcc.table.table import PlanTable
from schemas import LoadMicroBatch
from schemas.reports.breakdown import Breakdown, RankSeconds, StageSeconds

_IS_LOAD = lookup(lambda op: issubclass(op, LoadMicroBatch))


def breakdown(table: PlanTable, start: Seconds, end: Seconds, seconds: float) -> Breakdown:
    """Add up what the ranks spent.

    Args:
        table: The instructions that were executed, or are to be.
        start: `[rows]`: when each was entered.
        end: `[rows]`: when its rank went on; that of a post is not the end of its transfer.
        seconds: How long the run took, for the idle time.
    """
    ranks = tuple(
        _of_rank(rank, table, start, end, seconds) for rank in sorted({*table.rank_ids.tolist()})
    )
    busiest = max(ranks, key=lambda rank: _rounded(rank.work), default=None)
    stage = None
    if busiest is not None and busiest.work > 0:
        stage = max(busiest.stages, key=lambda stage: _rounded(stage.work)).stage_id
    return Breakdown(seconds=seconds, ranks=ranks, bottleneck=stage)


def _rounded(seconds: float) -> float:
    """Without what the order of a sum makes of it, so that of equal ones the first is found."""
    return float(f"{seconds:.9g}")


def _of_rank(
    rank: int, table: PlanTable, start: Seconds, end: Seconds, seconds: float
) -> RankSeconds:
    own = np.flatnonzero(table.rank == rank)
    rows, took = table.rows[own], (end - start)[own]
    receives = IS_PAIRED & ~IS_SEND
    kinds = (IS_FORWARD, _IS_LOAD, receives, IS_PAIRED & IS_SEND)
    stages = []
    for stage in np.unique(rows.stage[rows.stage >= 0]).tolist():
        of_stage = rows.stage == stage
        sums = (float(took[of_stage & kind[rows.op]].sum()) for kind in kinds)
        forward, data, receive, send = sums
        stages.append(
            StageSeconds(stage_id=stage, forward=forward, data=data, receive=receive, send=send)
        )
    known = np.logical_or.reduce(kinds)[rows.op] & (rows.stage >= 0)
    return RankSeconds(
        rank=rank,
        stages=tuple(stages),
        other=float(took[~known].sum()),
        idle=max(0.0, seconds - float(took.sum())),
    )
