"""`structure`: does every instruction make sense where it stands?"""

from collections import Counter
from collections.abc import Iterator

from schedcc.ranges import gaps, in_words
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
    PipelinePlan,
    Placed,
    PlanHeader,
    ResultInstruction,
    StageProgram,
    TransferInstruction,
)


def check_stages(plan: PipelinePlan) -> Iterator[Finding]:
    """Does the plan have one program for each of its stages?"""
    counts = Counter(program.stage_id for program in plan.programs)
    if missing := gaps(counts, plan.stages):
        yield Finding(
            code=FindingCode.STRUCTURE,
            message=f"no program for {in_words('stage', missing)} (stages={plan.stages})",
        )
    for stage_id, count in counts.items():
        if count > 1:
            yield Finding(
                code=FindingCode.STRUCTURE,
                stage_id=stage_id,
                message=f"{count} programs for stage {stage_id}, needed 1",
            )


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
    yield from _check_epilogue(header, program)


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


def _check_epilogue(header: PlanHeader, program: StageProgram) -> Iterator[Finding]:
    last = program.stage_id == header.stages - 1
    seen: list[ResultInstruction] = []
    for instruction in program.epilogue:
        assert isinstance(instruction, ResultInstruction)
        ops = [earlier.op for earlier in seen]
        complaints = []
        if instruction.op in ops:
            complaints.append("found a second time in the epilogue, needed once")
        complaints += [
            f"{earlier} has handed out the {instruction.gives} already"
            for earlier in seen
            if earlier.gives is not None
            and earlier.gives == instruction.gives
            and earlier.op != instruction.op
        ]
        if last and instruction.needs and not any(need in seen for need in instruction.needs):
            needed = " or ".join(map(str, instruction.needs))
            complaints.append(f"no {needed} before it, on whose result it works")
        complaints += [
            f"found after {op}, which hands out what it changes"
            for op in instruction.precedes
            if op in ops
        ]
        for complaint in complaints:
            yield Finding(
                code=FindingCode.STRUCTURE,
                stage_id=program.stage_id,
                message=f"epilogue: {instruction}: {complaint}",
            )
        seen.append(instruction)


def _needed(count: int) -> str:
    return "needed 0" if count == 1 else f"needed 0 to {count - 1}"
