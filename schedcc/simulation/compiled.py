"""What the compiler makes, as a table: for plans of which nobody wants the instructions."""

from schedcc.compiler import compile_pipeline, required
from schedcc.derive.repetition import repetition
from schedcc.proof import proven
from schedcc.schedules import Schedule
from schedcc.schedules.epilogue import Outcome, epilogues
from schedcc.schedules.schedule import Overlap
from schedcc.simulation.simulate import sound_order
from schedcc.table.table import PlanTable
from schemas import TransportModel


def compiled_table(
    micro_batches: int,
    stages: int,
    *,
    schedule: str | Schedule = "inference",
    ranks: int | None = None,
    overlap: Overlap = False,
    transport: TransportModel | None = None,
) -> PlanTable:
    """The table of what `compile_pipeline` compiles, sound under a model of its transport.

    The other arguments are those of `compile_pipeline`.

    Raises:
        ScheduleError: an argument is out of range, or the schedule makes no sense.
        UnsoundPlanError: the plan never ends on this transport.
    """
    value, ranks = required(micro_batches, stages, schedule, ranks)
    transport, outcome = transport or TransportModel(), Outcome()
    found = repetition(value, micro_batches, stages, ranks, overlap=overlap)
    if found is None or not proven(found.programs, outcome, transport):
        plan = compile_pipeline(
            micro_batches, stages, schedule=value, ranks=ranks, overlap=overlap, outcome=outcome
        )
        return sound_order(plan, transport).table
    header = found.programs.header().model_copy(update={"micro_batches": micro_batches})
    after = epilogues(found.programs.placement, outcome)
    parts = [(rank, found.rows(rank), epilogue) for rank, epilogue in enumerate(after)]
    return PlanTable.joined(header, parts)
