"""What the compiler makes, as a table: for plans of which nobody wants the instructions."""

from schedcc.compiler import required
from schedcc.derive.repetition import derived, repetition
from schedcc.schedules import Schedule
from schedcc.schedules.epilogue import Outcome, epilogues
from schedcc.table.table import PlanTable


def compiled_table(
    micro_batches: int,
    stages: int,
    *,
    schedule: str | Schedule = "inference",
    ranks: int | None = None,
    overlap: bool = False,
) -> PlanTable:
    """The table of what `compile_pipeline` compiles, unchecked; the arguments are its own.

    Raises:
        ScheduleError: an argument is out of range, or the schedule makes no sense.
    """
    value, ranks = required(micro_batches, stages, schedule, ranks)
    found = repetition(value, micro_batches, stages, ranks, overlap=overlap)
    if found is None:
        programs = derived(value, micro_batches, stages, ranks, overlap=overlap)
        rows = list(programs.rows)
    else:
        programs = found.programs
        rows = [found.rows(rank) for rank in range(ranks)]
    header = programs.header().model_copy(update={"micro_batches": micro_batches})
    after = epilogues(programs.placement, Outcome())
    return PlanTable.joined(header, list(zip(range(ranks), rows, after, strict=True)))
