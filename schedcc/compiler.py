"""The compiler: M, S and the wanted outcome in, a checked plan out."""

from typing import TypeVar

from schedcc.checks import check
from schedcc.epilogue import Outcome, epilogue
from schedcc.errors import UnsoundPlanError, require_count, require_stage
from schedcc.inference import NUM_BUFFERS, inference_steps
from schedcc.passes import overlapped
from schemas import PipelinePlan, StagePlan, StageProgram

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
    program = _program(micro_batches, stages, stage_id, overlap, outcome or Outcome())
    plan = StagePlan(
        micro_batches=micro_batches,
        stages=stages,
        num_buffers=NUM_BUFFERS,
        stage_id=stage_id,
        steps=program.steps,
        epilogue=program.epilogue,
    )
    return require_sound(plan)


def compile_pipeline(
    micro_batches: int, stages: int, *, overlap: bool = False, outcome: Outcome | None = None
) -> PipelinePlan:
    """Compile the plans of all stages; the arguments are those of `compile_stage`.

    Returns:
        A plan that has passed all checks, freedom from deadlock included.

    Raises:
        ScheduleError: an argument is out of range.
    """
    require_count("micro_batches", micro_batches)
    require_count("stages", stages)
    outcome = outcome or Outcome()
    programs = (_program(micro_batches, stages, s, overlap, outcome) for s in range(stages))
    plan = PipelinePlan(
        micro_batches=micro_batches,
        stages=stages,
        num_buffers=NUM_BUFFERS,
        programs=tuple(programs),
    )
    return require_sound(plan)


def require_sound(plan: Plan) -> Plan:
    """`plan` if its checks find no error.

    Raises:
        UnsoundPlanError: they do; the message lists them.
    """
    report = check(plan)
    if not report.ok:
        raise UnsoundPlanError("; ".join(map(str, report.errors())))
    return plan


def _program(
    micro_batches: int, stages: int, stage_id: int, overlap: bool, outcome: Outcome
) -> StageProgram:
    program = StageProgram(
        stage_id=stage_id,
        steps=tuple(inference_steps(micro_batches, stages, stage_id)),
        epilogue=epilogue(stages, stage_id, outcome),
    )
    return overlapped(program, stages) if overlap else program
