"""Plans for less data than they were compiled for."""

from typing import TypeVar

from schedcc.errors import ScheduleError
from schemas import BufferInstruction, Instruction, PipelinePlan, StagePlan, Step

Plan = TypeVar("Plan", StagePlan, PipelinePlan)


def restricted(plan: Plan, micro_batches: int) -> Plan:
    """What is left of a plan when the data ends after `micro_batches` of its micro-batches.

    The instructions of all later micro-batches are left out; steps keep their numbers, and the
    epilogue stays. Since both ends of a transfer go together, a sound plan stays sound.

    >>> from schedcc import compile_stage
    >>> plan = restricted(compile_stage(micro_batches=3, stages=2, stage_id=0), 1)
    >>> [[str(instruction) for instruction in step] for step in plan.steps]
    [['LoadMicroBatch(micro_batch=0)', 'ForwardPass(micro_batch=0)'], \
['SendActivation(micro_batch=0)'], [], []]

    Args:
        plan: Any plan.
        micro_batches: How many micro-batches there are, 0 or more; where the plan has no more than
            that, it is handed back as it is.

    Raises:
        ScheduleError: `micro_batches` is no integer of at least 0.
    """
    if isinstance(micro_batches, bool) or not isinstance(micro_batches, int) or micro_batches < 0:
        needed = "needed an integer of at least 0"
        raise ScheduleError(f"micro_batches is {micro_batches!r}, {needed}")
    if micro_batches >= plan.micro_batches:
        return plan
    changes: dict[str, object] = {"micro_batches": micro_batches}
    if isinstance(plan, StagePlan):
        changes["steps"] = _kept(plan.steps, micro_batches)
    else:
        changes["programs"] = tuple(
            program.model_copy(update={"steps": _kept(program.steps, micro_batches)})
            for program in plan.programs
        )
    return plan.model_copy(update=changes)


def exists(instruction: Instruction, micro_batches: int) -> bool:
    """Whether an instruction is none of a micro-batch beyond the first `micro_batches`."""
    return not isinstance(instruction, BufferInstruction) or instruction.micro_batch < micro_batches


def _kept(steps: tuple[Step, ...], micro_batches: int) -> tuple[Step, ...]:
    return tuple(tuple(i for i in step if exists(i, micro_batches)) for step in steps)
