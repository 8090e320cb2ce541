"""`structure`: does every instruction make sense where it stands?"""

from collections import defaultdict
from collections.abc import Iterator

import numpy as np

from schedcc.checks.question import ProgramQuestion, finding
from schedcc.table.codes import (
    IS_BUFFER,
    IS_COPY,
    IS_GROUP_END,
    IS_GROUP_START,
    IS_PAIRED,
    IS_POST,
    IS_SEND,
    Ints,
)
from schedcc.table.positions import by_position, positions
from schedcc.table.ranges import in_words, needed, runs
from schedcc.table.table import PlanTable
from schemas import (
    BufferInstruction,
    CopyActivation,
    Direction,
    Finding,
    FindingCode,
    GroupEnd,
    GroupStart,
    HandOver,
    Instruction,
    MoveLogits,
    Phase,
    Placed,
    PlanHeader,
    RankProgram,
    ResultInstruction,
    TransferInstruction,
)

_BELONGS = by_position(lambda op, stage_id, stages: op.position.includes(stage_id, stages))


def structure_holds(table: PlanTable) -> bool:
    """Are ids in range, peers neighbours, instructions where they belong, epilogues in order?"""
    rows, stages = table.rows, table.stages
    op, paired, copies = rows.op, IS_PAIRED[rows.op], IS_COPY[rows.op]
    buffer_rows = IS_BUFFER[op]
    neighbour = rows.stage + np.where(IS_SEND[op], 1, -1)
    bracket = IS_GROUP_START[op].astype(np.int64) - IS_GROUP_END[op]
    depth = np.cumsum(bracket)
    inside = depth - bracket > 0
    new_step = ~(table.follows & (rows.step == np.roll(rows.step, 1)))
    return (
        _in_range(table.rank_ids, table.ranks)
        and _in_range(rows.stage[buffer_rows], stages)
        and bool((table.rank_of(rows.stage[buffer_rows]) == table.rank[buffer_rows]).all())
        and bool(_BELONGS[op, positions(table)][buffer_rows].all())
        and _in_range(rows.micro_batch[buffer_rows], table.micro_batches)
        and _in_range(rows.buffer[buffer_rows], table.num_buffers)
        and _in_range(rows.peer_buffer[copies], table.num_buffers)
        and _in_range(rows.peer[paired | copies], stages)
        and bool((rows.peer == neighbour)[paired | copies].all())
        and bool(((table.peer_rank == table.rank) == copies)[paired | copies].all())
        and _in_range(depth, 2)
        and not inside[new_step].any()
        and bool((~inside | IS_POST[op] | IS_GROUP_END[op]).all())
        and int(depth[-1:].sum()) == 0
        and _epilogues_hold(table)
    )


def _epilogues_hold(table: PlanTable) -> bool:
    """Is nothing wrong with the epilogues? Most of them are alike: a few are walked."""
    ends = {table.rank_of_one(0), table.rank_of_one(table.stages - 1)}
    alike = {
        (rank if rank in ends else -1, epilogue): rank
        for rank, epilogue in zip(table.rank_ids.tolist(), table.epilogues, strict=True)
    }
    header = table.header
    programs = (
        RankProgram.model_construct(rank=rank, steps=(), epilogue=epilogue)
        for (_, epilogue), rank in alike.items()
    )
    return not any(found for program in programs for found in check_structure(header, program))


def _in_range(values: Ints, count: int) -> bool:
    return bool(((values >= 0) & (values < count)).all())


def check_structure(header: PlanHeader, program: RankProgram) -> Iterator[Finding]:
    """Are all ids in range, all instructions on ranks where they belong, the epilogue in order?"""
    rank, unit = program.rank, header.unit
    if not 0 <= rank < header.ranks:
        name = "stage_id" if unit == "stage" else "rank"
        message = f"{name} is {rank}, {needed(header.ranks)}"
        yield finding(FindingCode.STRUCTURE, header, rank, message)
        return
    held = header.stages_of(rank)
    for placed in program.placed():
        instruction = placed.instruction
        complaints = (
            _of_buffer_instruction(header, held, instruction)
            if isinstance(instruction, BufferInstruction)
            else _of_other(header, rank, held, instruction)
        )
        for message in complaints:
            yield _finding(header, rank, placed, f"{instruction}: {message}")
    yield from _check_groups(header, program)
    yield from _check_epilogue(header, program)


def _of_buffer_instruction(
    header: PlanHeader, held: tuple[int, ...], instruction: BufferInstruction
) -> Iterator[str]:
    stage_id, stages = instruction.stage, header.stages
    if not 0 <= stage_id < stages:
        yield f"stage is {stage_id}, {needed(stages)}"
        return
    if stage_id not in held:
        yield f"stage is {stage_id}, but the rank holds {in_words('stage', runs(held))}"
    if not instruction.position.includes(stage_id, stages):
        yield f"found on stage {stage_id} of {stages}, belongs on {instruction.position}"
    if not 0 <= instruction.micro_batch < header.micro_batches:
        yield f"micro_batch is {instruction.micro_batch}, {needed(header.micro_batches)}"
    if not 0 <= instruction.buffer < header.num_buffers:
        yield f"buffer is {instruction.buffer}, {needed(header.num_buffers)}"
    if isinstance(instruction, TransferInstruction):
        yield from _of_peer(header, instruction, instruction.direction)
    if isinstance(instruction, CopyActivation):
        yield from _of_peer(header, instruction, Direction.RECV)
        if not 0 <= instruction.peer_buffer < header.num_buffers:
            yield f"peer_buffer is {instruction.peer_buffer}, {needed(header.num_buffers)}"


def _of_peer(
    header: PlanHeader, instruction: TransferInstruction | CopyActivation, direction: Direction
) -> Iterator[str]:
    stage_id, peer, stages = instruction.stage, instruction.peer, header.stages
    receives = direction is Direction.RECV
    neighbour = stage_id - 1 if receives else stage_id + 1
    if not 0 <= peer < stages:
        yield f"peer is {peer}, {needed(stages)}"
    elif peer != neighbour:
        if 0 <= neighbour < stages:
            relation = "the input of stage {} is the output of stage {}"
            flow = (stage_id, neighbour) if receives else (neighbour, stage_id)
            yield f"peer is {peer}, but {relation.format(*flow)}"
    elif isinstance(instruction, CopyActivation):
        if header.rank_of(peer) != header.rank_of(stage_id):
            yield (
                f"peer is {peer} on rank {header.rank_of(peer)}, needed a stage of the same rank: "
                "others are received from"
            )
    elif header.rank_of(peer) == header.rank_of(stage_id):
        yield (
            f"peer is {peer} on the same rank {header.rank_of(peer)}, needed a stage of another: "
            "a rank hands on its own by CopyActivation"
        )


def _of_other(
    header: PlanHeader, rank: int, held: tuple[int, ...], instruction: Instruction
) -> Iterator[str]:
    if not any(instruction.position.includes(stage_id, header.stages) for stage_id in held):
        own = f"stage {rank} of {header.stages}"
        if not header.is_one_to_one:
            own = f"rank {rank}, which holds {in_words('stage', runs(held))} of {header.stages}"
        yield f"found on {own}, belongs on {instruction.position}"
    if isinstance(instruction, HandOver):
        yield from _handed_over(header, rank, instruction)


def _handed_over(header: PlanHeader, rank: int, instruction: HandOver) -> Iterator[str]:
    last = header.stages - 1
    if instruction.source != last:
        what = instruction.gives or "loss"
        verb = "are" if instruction.gives else "is"
        yield f"source is {instruction.source}, but the {what} {verb} on stage {last}"
    if isinstance(instruction, MoveLogits):
        to, unit = instruction.destination, header.unit
        if not 0 <= to < header.stages or header.rank_of(to) == header.rank_of(last):
            others = "" if unit == "stage" else f" on another rank than stage {last}"
            yield f"destination is {to}, needed another stage of {header.stages}{others}"
        elif rank not in instruction.members(header.ranks, header.rank_of):
            ends = "is" if unit == "stage" else "holds"
            yield f"found on {unit} {rank}, which {ends} neither its source nor its destination"


def _check_groups(header: PlanHeader, program: RankProgram) -> Iterator[Finding]:
    """Does every group begin and end in one step, without another inside, and hold only posts?"""
    group: Placed | None = None
    for placed in program.placed():
        instruction, complaint = placed.instruction, ""
        if group is not None and placed.step != group.step:
            yield _finding(
                header, program.rank, group, f"{group.instruction} is not ended in its step"
            )
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
            yield _finding(header, program.rank, placed, f"{instruction} {complaint}")
    if group is not None:
        yield _finding(header, program.rank, group, f"{group.instruction} is not ended in its step")


def _check_epilogue(header: PlanHeader, program: RankProgram) -> Iterator[Finding]:
    """Does every instruction find the result that it works on, and is none handed out twice?"""
    last = program.rank == header.rank_of(header.stages - 1)
    seen: set[ResultInstruction] = set()
    ops: set[str] = set()
    handed_out: defaultdict[str, dict[str, ResultInstruction]] = defaultdict(dict)
    for instruction in program.epilogue:
        assert isinstance(instruction, ResultInstruction)
        complaints = []
        if instruction.op in ops:
            complaints.append("found a second time in the epilogue, needed once")
        if instruction.gives is not None:
            complaints += [
                f"{earlier} has handed out the {instruction.gives} already"
                for op, earlier in handed_out[instruction.gives].items()
                if op != instruction.op
            ]
            handed_out[instruction.gives].setdefault(instruction.op, instruction)
        if last and instruction.needs and seen.isdisjoint(instruction.needs):
            needed = " or ".join(map(str, instruction.needs))
            complaints.append(f"no {needed} before it, on whose result it works")
        complaints += [
            f"found after {op}, which hands out what it changes"
            for op in instruction.precedes
            if op in ops
        ]
        for complaint in complaints:
            message = f"epilogue: {instruction}: {complaint}"
            yield finding(FindingCode.STRUCTURE, header, program.rank, message)
        seen.add(instruction)
        ops.add(instruction.op)


def _finding(header: PlanHeader, rank: int, placed: Placed, message: str) -> Finding:
    stage_id = getattr(placed.instruction, "stage", None)
    return finding(
        FindingCode.STRUCTURE, header, rank, message, stage_id=stage_id, step=placed.step
    )


STRUCTURE = ProgramQuestion("structure", holds=structure_holds, explain=check_structure)
