"""The verdict on a schedule of any size, without making its instructions.

The stages go by in blocks of neighbours, as arrays, each block sharing its first stage with the one
before, so that every channel is seen whole; memory does not grow with the number of stages.
"""

from collections.abc import Iterator
from itertools import chain

from schedcc.analysis.order import Order
from schedcc.compiler import compile_pipeline
from schedcc.errors import require_count
from schedcc.schedules.epilogue import Outcome, epilogue
from schedcc.schedules.inference import NUM_BUFFERS
from schedcc.schedules.pattern import stage_pattern
from schedcc.table.table import PlanTable, Rows
from schedcc.verify import check, locally_sound, order_sound, questions
from schemas import PlanHeader, Report, TransportModel

_ROWS_PER_BLOCK = 200_000


def check_schedule(
    micro_batches: int,
    stages: int,
    *,
    overlap: bool = False,
    outcome: Outcome | None = None,
    transport: TransportModel | None = None,
) -> Report:
    """Verify what `compile_pipeline` would compile, in memory proportional to M + S.

    The arguments are those of `compile_pipeline` and of `check`.

    Raises:
        ScheduleError: an argument is out of range.
    """
    require_count("micro_batches", micro_batches)
    require_count("stages", stages)
    outcome, transport = outcome or Outcome(), transport or TransportModel()
    blocks = _blocks(micro_batches, stages, overlap, outcome)
    if all(
        locally_sound(block, alone=False) and order_sound(Order(block, transport))
        for block in chain([_ends(stages, outcome)], blocks)
    ):
        return Report(checks=questions(alone=False), transport=transport)
    plan = compile_pipeline(micro_batches, stages, overlap=overlap, outcome=outcome)
    return check(plan, transport)


def _ends(stages: int, outcome: Outcome) -> PlanTable:
    """The first and the last stage, which seldom share a block, without a micro-batch."""
    header = PlanHeader(format="", micro_batches=0, stages=stages)
    needed = sorted({0, stages - 1})
    parts = [(stage_id, Rows.of(()), epilogue(stages, stage_id, outcome)) for stage_id in needed]
    return PlanTable.joined(header, parts, needed)


def _blocks(
    micro_batches: int, stages: int, overlap: bool, outcome: Outcome
) -> Iterator[PlanTable]:
    header = PlanHeader(
        format="", micro_batches=micro_batches, stages=stages, num_buffers=NUM_BUFFERS
    )
    size = max(2, _ROWS_PER_BLOCK // (4 * micro_batches))
    for first in range(0, max(1, stages - 1), size - 1):
        block = range(first, min(first + size, stages))
        parts = [
            (
                stage_id,
                stage_pattern(micro_batches, stages, stage_id, overlap=overlap).rows(),
                epilogue(stages, stage_id, outcome),
            )
            for stage_id in block
        ]
        yield PlanTable.joined(header, parts, block)
