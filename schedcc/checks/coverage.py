"""`coverage`: is every micro-batch forwarded exactly once, in order, and its output sent on?"""

from collections import Counter
from collections.abc import Iterator

import numpy as np

from schedcc.checks.question import ProgramQuestion
from schedcc.table.ranges import gaps, in_words
from schedcc.table.table import IS_FORWARD, IS_SEND, IS_TRANSFER, Ints, PlanTable
from schemas import (
    BufferInstruction,
    Finding,
    FindingCode,
    Phase,
    Place,
    Placed,
    PlanHeader,
    Position,
    StageProgram,
    places,
)


def coverage_holds(table: PlanTable) -> bool:
    """Is every micro-batch forwarded once, in order, and its output sent once?"""
    rows = table.rows
    forwards = IS_FORWARD[rows.op]
    outputs = IS_TRANSFER[rows.op] & IS_SEND[rows.op]
    order = np.lexsort((rows.micro_batch[outputs], table.program[outputs]))
    every = np.arange(len(table.stage_ids))
    return _each_once(
        table, every, table.program[forwards], rows.micro_batch[forwards]
    ) and _each_once(
        table,
        every[table.stage_ids != table.stages - 1],
        table.program[outputs][order],
        rows.micro_batch[outputs][order],
    )


def _each_once(table: PlanTable, programs: Ints, program: Ints, micro_batch: Ints) -> bool:
    """Whether the given programs have all micro-batches in order, and no other program has any."""
    if len(program) != len(programs) * table.micro_batches:
        return False  # before anything is made whose size the header alone says
    expected = np.tile(np.arange(table.micro_batches), len(programs))
    same_programs = program == np.repeat(programs, table.micro_batches)
    return bool(same_programs.all()) and bool((micro_batch == expected).all())


def check_coverage(header: PlanHeader, program: StageProgram) -> Iterator[Finding]:
    """Is each of the M micro-batches forwarded once, in order, and its output sent once?"""
    forwards: list[tuple[int, Placed]] = []
    sent: Counter[int] = Counter()
    for placed in program.placed():
        instruction = placed.instruction
        if isinstance(instruction, BufferInstruction):
            effects, where = instruction.effects, (program.stage_id, header.stages)
            if Place.OUTPUT in places(effects.writes, *where):
                forwards.append((instruction.micro_batch, placed))
            if Place.OUTPUT in places(effects.reads, *where) and effects.phase is not Phase.WAIT:
                sent[instruction.micro_batch] += 1

    if missing := gaps((m for m, _ in forwards), header.micro_batches):
        yield _finding(program, None, f"{in_words('micro-batch', missing)} never forwarded")
    seen: set[int] = set()
    highest = -1
    for micro_batch, placed in forwards:
        if micro_batch in seen:
            message = f"micro-batch {micro_batch} forwarded again, needed once"
            yield _finding(program, placed.step, message)
        elif micro_batch < highest:
            message = f"micro-batch {micro_batch} forwarded after micro-batch {highest}"
            yield _finding(program, placed.step, message)
        seen.add(micro_batch)
        highest = max(highest, micro_batch)

    if Position.NOT_LAST.includes(program.stage_id, header.stages):
        for micro_batch in sorted(seen):
            if sent[micro_batch] != 1:
                times = f"sent {sent[micro_batch]} times" if sent[micro_batch] else "never sent"
                message = f"output of micro-batch {micro_batch} {times}, needed once"
                yield _finding(program, None, message)


def _finding(program: StageProgram, step: int | None, message: str) -> Finding:
    return Finding(code=FindingCode.COVERAGE, stage_id=program.stage_id, step=step, message=message)


COVERAGE = ProgramQuestion("coverage", holds=coverage_holds, explain=check_coverage)
