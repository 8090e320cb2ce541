"""`structure`: does every instruction make sense where it stands?"""

from collections.abc import Iterator

import numpy as np

from schedcc.checks.epilogues import check_order_of_results
from schedcc.checks.question import ProgramQuestion
from schedcc.table.positions import by_position, positions
from schedcc.table.table import (
    IS_BUFFER,
    IS_GROUP_END,
    IS_GROUP_START,
    IS_PAIRED,
    IS_POST,
    IS_SEND,
    Ints,
    PlanTable,
)
from schemas import (
    BufferInstruction,
    Direction,
    Finding,
    FindingCode,
    GroupEnd,
    GroupStart,
    HandOver,
    MoveLogits,
    Phase,
    Placed,
    PlanHeader,
    StageProgram,
    TransferInstruction,
)

_BELONGS = by_position(lambda op, stage_id, stages: op.position.includes(stage_id, stages))


def structure_holds(table: PlanTable) -> bool:
    """Are ids in range, peers neighbours, instructions where they belong, epilogues in order?"""
    rows, stages = table.rows, table.stages
    op, buffer_rows, paired = rows.op, IS_BUFFER[rows.op], IS_PAIRED[rows.op]
    neighbour = table.stage + np.where(IS_SEND[op], 1, -1)
    bracket = IS_GROUP_START[op].astype(np.int64) - IS_GROUP_END[op]
    depth = np.cumsum(bracket)
    inside = depth - bracket > 0
    new_step = ~(table.follows & (rows.step == np.roll(rows.step, 1)))
    return (
        bool(((table.stage_ids >= 0) & (table.stage_ids < stages)).all())
        and bool(_BELONGS[op, positions(table)].all())
        and _in_range(rows.micro_batch[buffer_rows], table.micro_batches)
        and _in_range(rows.buffer[buffer_rows], table.num_buffers)
        and _in_range(rows.peer[paired], stages)
        and bool((rows.peer[paired] == neighbour[paired]).all())
        and _in_range(depth, 2)
        and not inside[new_step].any()
        and bool((~inside | IS_POST[op] | IS_GROUP_END[op]).all())
        and int(depth[-1:].sum()) == 0
        and _epilogues_hold(table)
    )


def _epilogues_hold(table: PlanTable) -> bool:
    """Is nothing wrong with the epilogues? Most of them are alike: a few are walked."""
    alike = {
        (stage_id == 0, stage_id == table.stages - 1, epilogue): stage_id
        for stage_id, epilogue in zip(table.stage_ids.tolist(), table.epilogues, strict=True)
    }
    header = PlanHeader(format="", micro_batches=table.micro_batches, stages=table.stages)
    programs = (
        StageProgram(stage_id=stage_id, steps=(), epilogue=epilogue)
        for (_, _, epilogue), stage_id in alike.items()
    )
    return not any(finding for program in programs for finding in check_structure(header, program))


def _in_range(values: Ints, count: int) -> bool:
    return bool(((values >= 0) & (values < count)).all())


def check_structure(header: PlanHeader, program: StageProgram) -> Iterator[Finding]:
    """Are all ids in range, all instructions on stages where they belong, the epilogue in order?"""
    if not 0 <= program.stage_id < header.stages:
        yield Finding(
            code=FindingCode.STRUCTURE,
            stage_id=program.stage_id,
            message=f"stage_id is {program.stage_id}, {_needed(header.stages)}",
        )
        return
    for placed in program.placed():
        for message in _complaints(header, program.stage_id, placed):
            yield Finding(
                code=FindingCode.STRUCTURE,
                stage_id=program.stage_id,
                step=placed.step,
                message=f"{placed.instruction}: {message}",
            )
    yield from _check_groups(program)
    yield from check_order_of_results(header, program)


def _complaints(header: PlanHeader, stage_id: int, placed: Placed) -> Iterator[str]:
    instruction = placed.instruction
    if not instruction.position.includes(stage_id, header.stages):
        yield f"found on stage {stage_id} of {header.stages}, belongs on {instruction.position}"
    if isinstance(instruction, BufferInstruction):
        if not 0 <= instruction.micro_batch < header.micro_batches:
            yield f"micro_batch is {instruction.micro_batch}, {_needed(header.micro_batches)}"
        if not 0 <= instruction.buffer < header.num_buffers:
            yield f"buffer is {instruction.buffer}, {_needed(header.num_buffers)}"
    if isinstance(instruction, TransferInstruction):
        receives = instruction.direction is Direction.RECV
        neighbour = stage_id - 1 if receives else stage_id + 1
        if not 0 <= instruction.peer < header.stages:
            yield f"peer is {instruction.peer}, {_needed(header.stages)}"
        elif instruction.peer != neighbour and 0 <= neighbour < header.stages:
            relation = "the input of stage {} is the output of stage {}"
            flow = (stage_id, neighbour) if receives else (neighbour, stage_id)
            yield f"peer is {instruction.peer}, but {relation.format(*flow)}"
    if isinstance(instruction, HandOver):
        yield from _handed_over(header, stage_id, instruction)


def _handed_over(header: PlanHeader, stage_id: int, instruction: HandOver) -> Iterator[str]:
    last = header.stages - 1
    if instruction.source != last:
        what = instruction.gives or "loss"
        verb = "are" if instruction.gives else "is"
        yield f"source is {instruction.source}, but the {what} {verb} on stage {last}"
    if isinstance(instruction, MoveLogits):
        others = f"needed another stage of {header.stages}"
        if not 0 <= instruction.destination < header.stages or instruction.destination == last:
            yield f"destination is {instruction.destination}, {others}"
        elif stage_id not in instruction.members(header.stages):
            yield f"found on stage {stage_id}, which is neither its source nor its destination"


def _check_groups(program: StageProgram) -> Iterator[Finding]:
    """Does every group begin and end in one step, without another inside, and hold only posts?"""
    group: Placed | None = None
    for placed in program.placed():
        instruction, complaint = placed.instruction, ""
        if group is not None and placed.step != group.step:
            yield _misplaced(program, group, "is not ended in its step")
            group = None
        if isinstance(instruction, GroupStart):
            complaint = "starts a group inside of another" if group else ""
            group = placed
        elif isinstance(instruction, GroupEnd):
            complaint = "" if group else "ends a group that was not started in its step"
            group = None
        elif group and not (
            isinstance(instruction, TransferInstruction) and instruction.effects.phase is Phase.POST
        ):
            complaint = "stands in a group, which holds only posts of transfers"
        if complaint:
            yield _misplaced(program, placed, complaint)
    if group is not None:
        yield _misplaced(program, group, "is not ended in its step")


def _misplaced(program: StageProgram, placed: Placed, complaint: str) -> Finding:
    return Finding(
        code=FindingCode.STRUCTURE,
        stage_id=program.stage_id,
        step=placed.step,
        message=f"{placed.instruction} {complaint}",
    )


def _needed(count: int) -> str:
    return "needed 0" if count == 1 else f"needed 0 to {count - 1}"


STRUCTURE = ProgramQuestion("structure", holds=structure_holds, explain=check_structure)
