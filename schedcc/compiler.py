"""The compiler: M, S, a schedule and the wanted outcome in, a checked plan out."""

from collections.abc import Iterator
from typing import TypeVar

from schedcc.derive.forwards import placement_of
from schedcc.derive.programs import Programs
from schedcc.derive.repetition import Repetition, buffers_of, derived, repetition
from schedcc.errors import ScheduleError, UnsoundPlanError, require_count, require_stage
from schedcc.proof import proven
from schedcc.schedules import Schedule, find_schedule
from schedcc.schedules.epilogue import Outcome, epilogue, epilogues
from schedcc.schedules.schedule import Overlap
from schedcc.table.materialise import collection_paused, steps_of
from schedcc.table.rows import Rows
from schedcc.verify import check
from schemas import PipelinePlan, RankProgram, StagePlan, Step, TransportModel

Plan = TypeVar("Plan", StagePlan, PipelinePlan)


def compile_stage(
    micro_batches: int,
    stages: int,
    stage_id: int,
    *,
    schedule: str | Schedule = "inference",
    overlap: Overlap = False,
    outcome: Outcome | None = None,
) -> StagePlan:
    """Compile the plan of one stage, where every rank has one, in time proportional to M + S.

    Args:
        micro_batches: M, the number of micro-batches.
        stages: S, the number of stages.
        stage_id: The stage, from 0 to S - 1.
        schedule: The name of a schedule, or a value of one's own.
        overlap: Whether transfers are split and cross the forwards, see `schedcc.passes`.
        outcome: What the epilogue delivers; by default the average loss, on every stage.

    Returns:
        A plan that has passed the checks which one stage alone can answer.

    Raises:
        ScheduleError: an argument is out of range, or the schedule makes no sense.
    """
    rank, programs = _one_stage(micro_batches, stages, stage_id, schedule, overlap)
    with collection_paused():
        whole = programs.programs if isinstance(programs, Repetition) else programs
        plan = StagePlan.model_construct(
            schedule=whole.schedule,
            micro_batches=micro_batches,
            stages=stages,
            ranks=stages,
            placement=whole.placement,
            num_buffers=whole.num_buffers,
            rank=rank,
            steps=_steps(programs, rank),
            epilogue=epilogue(whole.placement, rank, outcome or Outcome()),
        )
        return require_sound(plan)


def iter_steps(
    micro_batches: int,
    stages: int,
    stage_id: int,
    *,
    schedule: str | Schedule = "inference",
    overlap: Overlap = False,
) -> Iterator[Step]:
    """Yield the steps of `compile_stage` one by one, without checks.

    In constant memory, if the schedule repeats (see `Schedule`). `check_schedule` tells about all
    stages of a pipeline, of any size, whether they are sound.

    Raises:
        ScheduleError: an argument is out of range, or the schedule makes no sense.
    """
    rank, programs = _one_stage(micro_batches, stages, stage_id, schedule, overlap)
    return _iter_steps(programs, rank)


def compile_pipeline(
    micro_batches: int,
    stages: int,
    *,
    schedule: str | Schedule = "inference",
    ranks: int | None = None,
    overlap: Overlap = False,
    outcome: Outcome | None = None,
) -> PipelinePlan:
    """Compile the plans of all ranks.

    Args:
        micro_batches: M, the number of micro-batches.
        stages: S, the number of stages.
        schedule: The name of a schedule, or a value of one's own (`schedcc.Schedule`).
        ranks: R, the number of ranks, which may hold several stages; default: one for each stage.
        overlap: Whether transfers are split and cross the forwards, see `schedcc.passes` and
            `schedcc.schedules.schedule.Overlap`.
        outcome: What the epilogue delivers; by default the average loss, on every rank.

    Returns:
        A plan that has passed all checks, freedom from deadlock included, under `transport_for` its
        variant.

    Raises:
        ScheduleError: an argument is out of range, or the schedule makes no sense.
    """
    value, ranks = required(micro_batches, stages, schedule, ranks)
    outcome, transport = outcome or Outcome(), transport_for(overlap)
    with collection_paused():
        found = repetition(value, micro_batches, stages, ranks, overlap=overlap)
        if found is not None and proven(found.programs, outcome, transport):
            return _plan(found, outcome)
        programs = derived(value, micro_batches, stages, ranks, overlap=overlap)
        return require_sound(_plan(programs, outcome), transport)


def compile_epilogue(
    stages: int,
    *,
    schedule: str | Schedule = "inference",
    ranks: int | None = None,
    outcome: Outcome | None = None,
) -> PipelinePlan:
    """Compile the plans of a pipeline that has no micro-batch: M = 0, and only the epilogue.

    A replica whose data has ended before that of the others runs it, to take part in what is
    reduced over all of them.

    Raises:
        ScheduleError: an argument is out of range, or the schedule makes no sense.
    """
    value, ranks = required(1, stages, schedule, ranks)
    placement = placement_of(value, stages, ranks)
    programs = Programs(
        schedule=value.name,
        placement=placement,
        micro_batches=0,
        steps=0,
        num_buffers=buffers_of(value, None, stages, ranks),
        rows=[Rows.of(())] * ranks,
    )
    return require_sound(_plan(programs, outcome or Outcome()))


def transport_for(overlap: Overlap) -> TransportModel:
    """The strictest model under which the plans of a variant are sound.

    Steps of the blocking variant are atomic, so they may have a barrier after each.
    """
    if overlap == "channel":
        return TransportModel(queue="channel")
    return TransportModel(step_barrier=not overlap)


def required(
    micro_batches: int, stages: int, schedule: str | Schedule, ranks: int | None
) -> tuple[Schedule, int]:
    """The schedule as a value and R, if the arguments are in range.

    Raises:
        ScheduleError: they are not.
    """
    require_count("micro_batches", micro_batches)
    require_count("stages", stages)
    ranks = stages if ranks is None else require_count("ranks", ranks)
    if ranks > stages:
        raise ScheduleError(f"ranks is {ranks}, needed at most one for each of {stages} stages")
    return find_schedule(schedule), ranks


def require_sound(plan: Plan, transport: TransportModel | None = None) -> Plan:
    """`plan` if its checks find no error, under a model of its transport (default: the strictest).

    Raises:
        UnsoundPlanError: they do; the message lists them.
    """
    report = check(plan, transport)
    if not report.ok:
        raise UnsoundPlanError("; ".join(map(str, report.errors())))
    return plan


def _one_stage(
    micro_batches: int, stages: int, stage_id: int, schedule: str | Schedule, overlap: Overlap
) -> tuple[int, Programs | Repetition]:
    """The rank of a stage, and the programs of all ranks, of which each has one stage."""
    value, ranks = required(micro_batches, stages, schedule, None)
    require_stage(stage_id, stages)
    sizes = (micro_batches, stages, ranks)
    found = repetition(value, *sizes, overlap=overlap)
    rank = placement_of(value, stages, ranks)[stage_id]
    return rank, found or derived(value, *sizes, overlap=overlap)


def _plan(programs: Programs | Repetition, outcome: Outcome) -> PipelinePlan:
    whole = programs.programs if isinstance(programs, Repetition) else programs
    return PipelinePlan.model_construct(
        schedule=whole.schedule,
        micro_batches=programs.micro_batches,
        stages=len(whole.placement),
        ranks=whole.ranks,
        placement=whole.placement,
        num_buffers=whole.num_buffers,
        programs=tuple(
            RankProgram.model_construct(rank=rank, steps=_steps(programs, rank), epilogue=after)
            for rank, after in enumerate(epilogues(whole.placement, outcome))
        ),
    )


def _steps(programs: Programs | Repetition, rank: int) -> tuple[Step, ...]:
    rows = programs.rows(rank) if isinstance(programs, Repetition) else programs.rows[rank]
    return steps_of(rows, 0, programs.steps)


def _iter_steps(programs: Programs | Repetition, rank: int) -> Iterator[Step]:
    if isinstance(programs, Programs):
        yield from _steps(programs, rank)
        return
    for block in programs.blocks(rank):
        yield from steps_of(*block)
