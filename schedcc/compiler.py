"""The compiler: M, S and the wanted outcome in, a checked plan out."""

from collections.abc import Iterator
from itertools import chain
from typing import TypeVar

from schedcc.errors import UnsoundPlanError, require_count, require_stage
from schedcc.schedules.epilogue import Outcome, epilogue
from schedcc.schedules.inference import NUM_BUFFERS
from schedcc.schedules.pattern import Pattern, stage_pattern
from schedcc.table.materialise import Materialiser, collection_paused
from schedcc.verify import check
from schemas import PipelinePlan, StagePlan, StageProgram, Step, TransportModel

Plan = TypeVar("Plan", StagePlan, PipelinePlan)


def compile_stage(
    micro_batches: int,
    stages: int,
    stage_id: int,
    *,
    overlap: bool = False,
    outcome: Outcome | None = None,
) -> StagePlan:
    """Compile the plan of one stage, in time and memory proportional to M + S.

    Args:
        micro_batches: M, the number of micro-batches.
        stages: S, the number of stages.
        stage_id: The stage, from 0 to S - 1.
        overlap: Whether transfers are split and cross the forwards, see `schedcc.passes`.
        outcome: What the epilogue delivers; by default the average loss, on every stage.

    Returns:
        A plan that has passed the checks which one stage alone can answer.

    Raises:
        ScheduleError: an argument is out of range.
    """
    require_count("micro_batches", micro_batches)
    require_count("stages", stages)
    require_stage(stage_id, stages)
    with collection_paused():
        pattern = stage_pattern(micro_batches, stages, stage_id, overlap=overlap)
        plan = StagePlan.model_construct(
            micro_batches=micro_batches,
            stages=stages,
            num_buffers=NUM_BUFFERS,
            stage_id=stage_id,
            steps=_steps(pattern, Materialiser()),
            epilogue=epilogue(stages, stage_id, outcome or Outcome()),
        )
        return require_sound(plan)


def iter_steps(
    micro_batches: int, stages: int, stage_id: int, *, overlap: bool = False
) -> Iterator[Step]:
    """Yield the steps of `compile_stage` one by one, in constant memory and without checks.

    `check_schedule` tells about all stages of a pipeline, of any size, whether they are sound.

    Raises:
        ScheduleError: an argument is out of range.
    """
    require_count("micro_batches", micro_batches)
    require_count("stages", stages)
    require_stage(stage_id, stages)
    pattern = stage_pattern(micro_batches, stages, stage_id, overlap=overlap)
    return _iter_steps(pattern)


def compile_pipeline(
    micro_batches: int, stages: int, *, overlap: bool = False, outcome: Outcome | None = None
) -> PipelinePlan:
    """Compile the plans of all stages; the arguments are those of `compile_stage`.

    Returns:
        A plan that has passed all checks, freedom from deadlock included; in the blocking form,
        whose steps are atomic, also with a barrier after each step.

    Raises:
        ScheduleError: an argument is out of range.
    """
    require_count("micro_batches", micro_batches)
    require_count("stages", stages)
    outcome, materialiser = outcome or Outcome(), Materialiser()
    with collection_paused():
        programs = tuple(
            StageProgram.model_construct(
                stage_id=stage_id,
                steps=_steps(
                    stage_pattern(micro_batches, stages, stage_id, overlap=overlap), materialiser
                ),
                epilogue=epilogue(stages, stage_id, outcome),
            )
            for stage_id in range(stages)
        )
        plan = PipelinePlan.model_construct(
            micro_batches=micro_batches,
            stages=stages,
            num_buffers=NUM_BUFFERS,
            programs=programs,
        )
        return require_sound(plan, TransportModel(step_barrier=not overlap))


def compile_epilogue(stages: int, *, outcome: Outcome | None = None) -> PipelinePlan:
    """Compile the plans of a pipeline that has no micro-batch: M = 0, and only the epilogue.

    A replica whose data has ended before that of the others runs it, to take part in what is
    reduced over all of them.

    Raises:
        ScheduleError: `stages` is no integer of at least 1.
    """
    require_count("stages", stages)
    outcome = outcome or Outcome()
    programs = (
        StageProgram(stage_id=stage_id, steps=(), epilogue=epilogue(stages, stage_id, outcome))
        for stage_id in range(stages)
    )
    plan = PipelinePlan(
        micro_batches=0, stages=stages, num_buffers=NUM_BUFFERS, programs=tuple(programs)
    )
    return require_sound(plan)


def require_sound(plan: Plan, transport: TransportModel | None = None) -> Plan:
    """`plan` if its checks find no error, under a model of its transport (default: the strictest).

    Raises:
        UnsoundPlanError: they do; the message lists them.
    """
    report = check(plan, transport)
    if not report.ok:
        raise UnsoundPlanError("; ".join(map(str, report.errors())))
    return plan


def _steps(pattern: Pattern, materialiser: Materialiser) -> tuple[Step, ...]:
    blocks = pattern.blocks()
    return tuple(chain.from_iterable(materialiser.steps(b.rows, b.first, b.stop) for b in blocks))


def _iter_steps(pattern: Pattern) -> Iterator[Step]:
    for block in pattern.blocks():
        yield from Materialiser().steps(block.rows, block.first, block.stop)
