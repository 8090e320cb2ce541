"""`check_schedule`: the verdict on what `compile_pipeline` would compile, without compiling it."""

from schedcc.compiler import compile_pipeline, required, transport_for
from schedcc.derive.repetition import derived, repetition
from schedcc.proof import proven
from schedcc.schedules import Schedule
from schedcc.schedules.epilogue import Outcome
from schedcc.schedules.schedule import Overlap
from schedcc.verify import check, questions
from schemas import Report, TransportModel


def check_schedule(
    micro_batches: int,
    stages: int,
    *,
    schedule: str | Schedule = "inference",
    ranks: int | None = None,
    overlap: Overlap = False,
    outcome: Outcome | None = None,
    transport: TransportModel | None = None,
) -> Report:
    """Verify what `compile_pipeline` would compile; of a schedule that repeats, whatever M is.

    The arguments are those of `compile_pipeline` and of `check`.

    Raises:
        ScheduleError: an argument is out of range, or the schedule makes no sense.
    """
    value, ranks = required(micro_batches, stages, schedule, ranks)
    outcome = outcome or Outcome()
    if transport is None:
        transport = transport_for(overlap).model_copy(update={"step_barrier": False})
    found = repetition(value, micro_batches, stages, ranks, overlap=overlap)
    programs = (
        derived(value, micro_batches, stages, ranks, overlap=overlap)
        if found is None
        else found.programs
    )
    if proven(programs, outcome, transport):
        return Report(checks=questions(alone=False), transport=transport)
    plan = compile_pipeline(
        micro_batches, stages, schedule=value, ranks=ranks, overlap=overlap, outcome=outcome
    )
    return check(plan, transport)
