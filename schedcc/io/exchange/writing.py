"""Export: a plan as a CSV file that `torch.distributed.pipelining` loads and runs."""

import csv
from collections.abc import Iterator
from io import StringIO

from schedcc.compiler import require_sound
from schedcc.io.exchange.actions import Action, Kind
from schedcc.table.channels import is_transfer
from schedcc.table.table import is_forward
from schemas import BufferInstruction, Direction, PipelinePlan, RankProgram


def to_torch_csv(plan: PipelinePlan) -> str:
    """The forwards and transfers of a plan, in their order, as torch's `compute_comms` CSV.

    `_PipelineScheduleRuntime._load_csv(file, format="compute_comms")` loads it, and `eval` runs it.
    The loader demands a backward of every micro-batch, and a backward demands its gradient: they
    follow the forwards, and `eval` passes over them. (`step` would run them: the file is a complete
    fill-drain training schedule.)

    A file of torch's names neither buffers nor waits nor results: torch keeps a receive buffer and
    an output for each micro-batch, waits for a receive in its forward and for all sends at the end,
    and returns the losses unreduced. Loads, waits, groups and the epilogue have no cell.

    Args:
        plan: A sound plan of any form.

    Returns:
        The text of the file, one row for each stage.

    Raises:
        UnsoundPlanError: the plan has errors.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for program in sorted(require_sound(plan).programs, key=lambda program: program.rank):
        writer.writerow([*_forwards(program), *_backwards(plan, program.rank)])
    return text.getvalue()


def _forwards(program: RankProgram) -> Iterator[Action]:
    for placed in program.placed():
        instruction = placed.instruction
        if is_transfer(instruction):
            kind = Kind.SEND if instruction.direction is Direction.SEND else Kind.RECEIVE
            yield Action(program.rank, kind, instruction.micro_batch)
        elif is_forward(instruction):
            assert isinstance(instruction, BufferInstruction)
            yield Action(program.rank, Kind.FORWARD, instruction.micro_batch)


def _backwards(plan: PipelinePlan, stage_id: int) -> Iterator[Action]:
    for micro_batch in range(plan.micro_batches):
        if stage_id < plan.stages - 1:
            yield Action(stage_id, Kind.RECEIVE_GRADIENT, micro_batch)
        yield Action(stage_id, Kind.BACKWARD, micro_batch)
        if stage_id > 0:
            yield Action(stage_id, Kind.SEND_GRADIENT, micro_batch)
