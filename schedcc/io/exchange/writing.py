"""Export: a plan as a CSV file that `torch.distributed.pipelining` loads and runs."""

import csv
from collections.abc import Iterator
from io import StringIO

from schedcc.compiler import require_sound
from schedcc.io.exchange.actions import Action, Kind
from schedcc.table.channels import is_transfer
from schedcc.table.codes import is_forward
from schemas import BufferInstruction, Direction, PipelinePlan, RankProgram


def to_torch_csv(plan: PipelinePlan) -> str:
    """The forwards and transfers of a plan, in their order, as torch's `compute_comms` CSV.

    `_PipelineScheduleRuntime._load_csv(file, format="compute_comms")` loads it, and `eval` runs it.
    The loader demands a backward of every micro-batch, and a backward demands its gradient: they
    follow the forwards, and `eval` passes over them. (`step` would run them: the file is a complete
    fill-drain training schedule.)

    A file of torch's names neither buffers nor waits nor results: torch keeps a receive buffer and
    an output for each micro-batch, waits for a receive in its forward and for all sends at the end,
    and returns the losses unreduced. Loads, waits, groups, hand-overs between stages of one rank
    and the epilogue have no cell.

    Args:
        plan: A sound plan of any schedule and variant.

    Returns:
        The text of the file, one row for each rank.

    Raises:
        UnsoundPlanError: the plan has errors.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for program in sorted(require_sound(plan).programs, key=lambda program: program.rank):
        writer.writerow([*_forwards(program), *_backwards(plan, program)])
    return text.getvalue()


def _forwards(program: RankProgram) -> Iterator[Action]:
    for placed in program.placed():
        instruction = placed.instruction
        if is_transfer(instruction):
            kind = Kind.SEND if instruction.direction is Direction.SEND else Kind.RECEIVE
            yield Action(instruction.stage, kind, instruction.micro_batch)
        elif is_forward(instruction):
            assert isinstance(instruction, BufferInstruction)
            yield Action(instruction.stage, Kind.FORWARD, instruction.micro_batch)


def _backwards(plan: PipelinePlan, program: RankProgram) -> Iterator[Action]:
    """The backwards of a rank in an order that all ranks can follow.

    With several stages on a rank, it is that of the forwards, back in time.
    """
    forwards = [action for action in _forwards(program) if action.kind is Kind.FORWARD]
    for stage_id, _, micro_batch in forwards if plan.is_one_to_one else reversed(forwards):
        rank = plan.rank_of(stage_id)
        if stage_id < plan.stages - 1 and plan.rank_of(stage_id + 1) != rank:
            yield Action(stage_id, Kind.RECEIVE_GRADIENT, micro_batch)
        yield Action(stage_id, Kind.BACKWARD, micro_batch)
        if stage_id > 0 and plan.rank_of(stage_id - 1) != rank:
            yield Action(stage_id, Kind.SEND_GRADIENT, micro_batch)
