"""What the compiler makes, as a table: for plans of which nobody wants the instructions."""

from schedcc.errors import require_count
from schedcc.schedules.epilogue import Outcome, epilogue
from schedcc.schedules.inference import NUM_BUFFERS
from schedcc.schedules.pattern import stage_pattern
from schedcc.table.table import PlanTable
from schemas import PlanHeader


def compiled_table(micro_batches: int, stages: int, *, overlap: bool = False) -> PlanTable:
    """The table of what `compile_pipeline` compiles, unchecked.

    Raises:
        ScheduleError: `micro_batches` or `stages` is no integer of at least 1.
    """
    require_count("micro_batches", micro_batches)
    require_count("stages", stages)
    header = PlanHeader(
        format="", micro_batches=micro_batches, stages=stages, num_buffers=NUM_BUFFERS
    )
    parts = [
        (
            stage_id,
            stage_pattern(micro_batches, stages, stage_id, overlap=overlap).rows(),
            epilogue(stages, stage_id, Outcome()),
        )
        for stage_id in range(stages)
    ]
    return PlanTable.joined(header, parts)
