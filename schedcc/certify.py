"""The verdict on a schedule of any size, without making its instructions.

The stages go by in blocks of neighbours, as arrays, each block sharing its first stage with the one
before, so that every channel is seen whole; memory does not grow with the number of stages.
"""

from collections.abc import Iterator

from schedcc.compiler import compile_pipeline
from schedcc.epilogue import Outcome, epilogue
from schedcc.errors import require_count
from schedcc.inference import NUM_BUFFERS
from schedcc.pattern import stage_pattern
from schedcc.screens import PIPELINE_SCREENS, PROGRAM_SCREENS, collectives_hold
from schedcc.table import PlanTable
from schedcc.timetable import proven
from schedcc.verify import PIPELINE_QUESTIONS, check, epilogues_hold
from schemas import PlanHeader, Report, StageProgram, TransportModel

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
    if all(_sound(block, transport) for block in blocks) and _ends_meet(stages, outcome):
        return Report(checks=PIPELINE_QUESTIONS, transport=transport)
    plan = compile_pipeline(micro_batches, stages, overlap=overlap, outcome=outcome)
    return check(plan, transport)


def _sound(table: PlanTable, transport: TransportModel) -> bool:
    return (
        all(screen(table) for screen in (*PROGRAM_SCREENS, *PIPELINE_SCREENS))
        and epilogues_hold(table)
        and proven(table, transport)
    )


def _ends_meet(stages: int, outcome: Outcome) -> bool:
    """Whether the first and the last stage fit together, which seldom share a block."""
    header = PlanHeader(format="", micro_batches=1, stages=stages)
    programs = (
        StageProgram(stage_id=stage_id, steps=(), epilogue=epilogue(stages, stage_id, outcome))
        for stage_id in sorted({0, stages - 1})
    )
    return collectives_hold(PlanTable.of(header, programs))


def _blocks(
    micro_batches: int, stages: int, overlap: bool, outcome: Outcome
) -> Iterator[PlanTable]:
    header = PlanHeader(
        format="", micro_batches=micro_batches, stages=stages, num_buffers=NUM_BUFFERS
    )
    size = max(2, _ROWS_PER_BLOCK // (4 * micro_batches))
    for first in range(0, max(1, stages - 1), size - 1):
        parts = [
            (
                stage_id,
                stage_pattern(micro_batches, stages, stage_id, overlap=overlap).rows(),
                epilogue(stages, stage_id, outcome),
            )
            for stage_id in range(first, min(first + size, stages))
        ]
        yield PlanTable.joined(header, parts)
